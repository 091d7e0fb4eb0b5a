"""The pages."""

from django.urls import path

from controlplane.dashboard.views import audit, frame, keys

urlpatterns = [
    path("theme/", frame.theme, name="theme"),
    path("keys/", keys.keys, name="keys"),
    path("keys/issue/", keys.issue, name="key_issue"),
    path("keys/<uuid:key_id>/", keys.key, name="key"),
    path("keys/<uuid:key_id>/revoke/", keys.revoke, name="key_revoke"),
    path("audit/", audit.audit, name="audit"),
]
