"""The pages."""

from django.urls import path

from controlplane.dashboard.views import frame

urlpatterns = [
    path("theme/", frame.theme, name="theme"),
]
