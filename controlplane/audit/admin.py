"""The audit log in the site admin's tables: to read, never to change."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest

from controlplane.audit.models import AuditEvent
from controlplane.audit.requests import person_actor
from controlplane.audit.services import record

# Django's admin classes take type arguments in the stubs alone.
if TYPE_CHECKING:
    AnyModelAdmin = admin.ModelAdmin[Any]
else:
    AnyModelAdmin = admin.ModelAdmin


class ReadOnlyAdmin(AnyModelAdmin):
    """Shows rows; the pages and the API change them, through services that keep their rules."""

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class AuditedAdmin(AnyModelAdmin):
    """Writes an audit event beside Django's own log entry, in the same transaction."""

    def log_addition(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        self._audit(request, obj, "add", message)
        return super().log_addition(request, obj, message)

    def log_change(self, request: HttpRequest, obj: Model, message: Any) -> Any:
        self._audit(request, obj, "change", message)
        return super().log_change(request, obj, message)

    def log_deletions(self, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
        for obj in queryset:
            self._audit(request, obj, "delete", None)
        return super().log_deletions(request, queryset)

    def _audit(self, request: HttpRequest, obj: Model, verb: str, message: Any) -> None:
        kind = str(obj._meta.model_name)
        record(
            actor=person_actor(request),
            action=f"{kind}.{verb}",
            target_type=kind,
            target_id=obj.pk,
            target_label=str(obj),
            team_id=obj.pk if kind == "team" else getattr(obj, "team_id", None),
            after={"changes": message} if message else None,
            reason="in the site admin's tables",
        )


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display = ["at", "actor", "action", "target_type", "target_label", "address"]
    list_filter = ["action", "target_type"]
    search_fields = ["actor", "target_label", "target_id", "request_id"]
    show_full_result_count = False
