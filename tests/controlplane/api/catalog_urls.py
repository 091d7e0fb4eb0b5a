"""The rooms that these tests ask, and none that they do not."""

from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView

urlpatterns = [
    path("api/schema/", SpectacularAPIView.as_view(), name="schema"),
    path("api/", include("controlplane.api.keys")),
    path("api/", include("controlplane.api.catalog")),
    path("api/", include("controlplane.api.deployments")),
    path("api/", include("controlplane.api.docs")),
]
