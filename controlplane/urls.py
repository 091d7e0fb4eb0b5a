"""The table of contents: pages, the control API, sign-in, the site admin's tables."""

from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.urls import include, path

admin.autodiscover()
admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]  # as allauth documents it

urlpatterns = [
    path("api/", include("controlplane.api.urls")),
    path("accounts/", include("allauth.urls")),
    path("admin/", admin.site.urls),
    path("", include("controlplane.dashboard.urls")),
]

handler400 = "controlplane.dashboard.views.failures.bad_request"
handler403 = "controlplane.dashboard.views.failures.permission_denied"
handler404 = "controlplane.dashboard.views.failures.not_found"
handler500 = "controlplane.dashboard.views.failures.server_error"
