"""People and teams in the site admin's tables; keys are shown there and changed on their page."""

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin

from controlplane.accounts.models import ApiKey, Membership, Team, User
from controlplane.audit.admin import AuditedAdmin, ReadOnlyAdmin

# Django's admin classes take type arguments in the stubs alone.
if TYPE_CHECKING:
    Inline = admin.TabularInline[Membership, Any]
    DjangoUserAdmin = UserAdmin[User]
else:
    Inline, DjangoUserAdmin = admin.TabularInline, UserAdmin


class MembershipInline(Inline):
    model = Membership
    extra = 1


@admin.register(User)
class PersonAdmin(AuditedAdmin, DjangoUserAdmin):
    """Django's own user pages without groups and single permissions: roles per team take their place."""

    list_display = ["username", "email", "first_name", "last_name", "is_superuser", "is_active"]
    list_filter = ["is_superuser", "is_active", "memberships__role"]
    fieldsets = [
        (None, {"fields": ["username", "password"]}),
        ("Person", {"fields": ["first_name", "last_name", "email"]}),
        ("Site", {"fields": ["is_active", "is_staff", "is_superuser"]}),
        ("Dates", {"fields": ["last_login", "date_joined"]}),
    ]
    readonly_fields = ["last_login", "date_joined"]
    filter_horizontal = []
    inlines = [MembershipInline]


@admin.register(Team)
class TeamAdmin(AuditedAdmin):
    list_display = ["name", "created_at"]
    search_fields = ["name"]
    inlines = [MembershipInline]


@admin.register(Membership)
class MembershipAdmin(AuditedAdmin):
    list_display = ["user", "team", "role"]
    list_filter = ["team", "role"]
    autocomplete_fields = ["user", "team"]


@admin.register(ApiKey)
class ApiKeyAdmin(ReadOnlyAdmin):
    list_display = ["label", "prefix", "team", "scopes", "created_at", "expires_at", "revoked_at"]
    list_filter = ["team", "test"]
    search_fields = ["label", "prefix"]
    exclude = ["digest"]
