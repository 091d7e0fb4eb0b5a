"""The control API. Each room of the control plane brings its own module of addresses."""

from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView

urlpatterns = [
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path("", include("controlplane.api.keys")),
    path("", include("controlplane.api.catalog")),
    path("", include("controlplane.api.deployments")),
    path("", include("controlplane.api.predictions")),
    path("", include("controlplane.api.jobs")),
    path("", include("controlplane.api.docs")),
]
