"""/api/keys/ and /api/audit/: API keys, shown once, and what happened."""

from datetime import datetime
from typing import Any
from uuid import UUID

from django.db.models import QuerySet
from django.http import Http404
from django.urls import path, reverse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from drf_spectacular.utils import OpenApiParameter
from rest_framework import serializers, status
from rest_framework.exceptions import PermissionDenied
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response

from controlplane.accounts.models import ApiKey, Right, Team
from controlplane.accounts.queries import scopes_beyond
from controlplane.accounts.services import DEFAULT_SCOPES, limit_key, revoke_key
from controlplane.api.access import actor_of, key_of, require, require_anywhere, rights, team_of, team_scope
from controlplane.api.pagination import CursorPagination
from controlplane.api.schema import described
from controlplane.audit.models import AuditEvent
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.keys import issue_key_for
from controlplane.errors import field_error
from inference.contracts import Scope


class KeySerializer(serializers.ModelSerializer[ApiKey]):
    """A key as lists show it: never the key itself, nor its digest."""

    team = serializers.CharField(source="team.name", read_only=True)
    state = serializers.SerializerMethodField()
    deployments = serializers.SerializerMethodField(help_text="Names of deployments, or null for every one.")
    created_by = serializers.CharField(source="created_by.username", read_only=True, default=None)

    class Meta:
        model = ApiKey
        fields = [
            *("id", "label", "prefix", "team", "state", "scopes", "deployments", "test", "rate_per_minute"),
            *("quota_per_day", "created_at", "created_by", "expires_at", "revoked_at"),
        ]
        read_only_fields = fields

    def get_state(self, key: ApiKey) -> str:
        return key.state(timezone.now())

    def get_deployments(self, key: ApiKey) -> list[str] | None:
        return None if key.every_deployment else sorted(grant.deployment.name for grant in key.grants.all())


class IssuedKeySerializer(KeySerializer):
    """A key at the moment it is issued."""

    key = serializers.CharField(read_only=True, help_text="The key itself. It is shown this once.")

    class Meta(KeySerializer.Meta):
        fields = [*KeySerializer.Meta.fields, "key"]
        read_only_fields = fields


class NewKeySerializer(serializers.Serializer[Any]):
    label = serializers.CharField(max_length=100)  # type: ignore[assignment]  # a field of that name
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=list(Scope)), required=False, default=list(DEFAULT_SCOPES), max_length=20
    )
    deployments = serializers.ListField(
        child=serializers.SlugField(max_length=60), required=False, allow_null=True, default=None, max_length=1000
    )
    team = serializers.CharField(required=False, allow_blank=True, default="")
    expires_at = serializers.DateTimeField(required=False, allow_null=True, default=None)
    test = serializers.BooleanField(required=False, default=False)
    rate_per_minute = serializers.IntegerField(required=False, allow_null=True, default=None)
    quota_per_day = serializers.IntegerField(
        required=False, allow_null=True, default=None, help_text="Calls a day of UTC; null: no quota."
    )


class LimitsSerializer(serializers.Serializer[Any]):
    """Limits of a key that exists; what is left out stays, null takes a limit away."""

    rate_per_minute = serializers.IntegerField(required=False, allow_null=True)
    quota_per_day = serializers.IntegerField(required=False, allow_null=True)


class KeyList(GenericAPIView[ApiKey]):
    queryset = ApiKey.objects.none()
    serializer_class = NewKeySerializer

    @described(responses=KeySerializer(many=True))
    def get(self, request: Request) -> Response:
        require_anywhere(request, Right.MANAGE_KEYS)
        keys = key_rows().filter(team_scope(request, Right.MANAGE_KEYS))
        return self.get_paginated_response(KeySerializer(self.paginate_queryset(keys), many=True).data)

    @described(responses={201: IssuedKeySerializer})
    def post(self, request: Request) -> Response:
        """Issues a key. It is in the answer's `key`, and nowhere afterwards."""
        require_anywhere(request, Right.MANAGE_KEYS)
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        fields: dict[str, Any] = serializer.validated_data
        team = team_of(request, fields.pop("team"))
        require(request, Right.MANAGE_KEYS, team.pk)
        refuse_scopes_beyond(request, team, fields["scopes"])
        names = fields.pop("deployments")
        deployments = None if names is None else deployments_named(team, names)
        refuse_deployments_beyond(request, deployments)
        refuse_limits_beyond(request, fields["rate_per_minute"], fields["quota_per_day"])
        key, plain = issue_key_for(actor=actor_of(request), team=team, deployments=deployments, **fields)
        issued = key_rows().get(pk=key.pk)
        return Response(
            {**KeySerializer(issued).data, "key": plain},
            status=status.HTTP_201_CREATED,
            headers={"Location": reverse("key", args=[key.pk]), "Cache-Control": "no-store"},
        )


class KeyDetail(GenericAPIView[ApiKey]):
    queryset = ApiKey.objects.none()
    serializer_class = KeySerializer

    def get(self, request: Request, key_id: UUID) -> Response:
        return Response(KeySerializer(self._key(request, key_id)).data)

    @described(request=LimitsSerializer, responses=KeySerializer)
    def patch(self, request: Request, key_id: UUID) -> Response:
        """Changes the key's limits, on every serving process at once; no key its own, a limited key none."""
        key = self._key(request, key_id)
        refuse_limiting(request, key)
        serializer = LimitsSerializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        limits = {"rate_per_minute": key.rate_per_minute, "quota_per_day": key.quota_per_day}
        limit_key(actor=actor_of(request), key=key, **{**limits, **serializer.validated_data})
        return Response(KeySerializer(self._key(request, key_id)).data)

    @described(request=None, responses={204: None})
    def delete(self, request: Request, key_id: UUID) -> Response:
        """Revokes the key for good, on every serving process at once."""
        revoke_key(actor=actor_of(request), key=self._key(request, key_id))
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _key(self, request: Request, key_id: UUID) -> ApiKey:
        """Raises Http404 for another team's key, PermissionDenied without the right to manage keys."""
        found: ApiKey | None = key_rows().filter(team_scope(request, *Right), pk=key_id).first()
        if found is None:
            raise Http404("There is no such key.")
        require(request, Right.MANAGE_KEYS, found.team_id)
        return found


class AuditSerializer(serializers.ModelSerializer[AuditEvent]):
    team = serializers.SerializerMethodField()

    class Meta:
        model = AuditEvent
        fields = [
            *("id", "at", "actor", "actor_id", "team", "action", "target_type", "target_id", "target_label"),
            *("before", "after", "reason", "address", "request_id"),
        ]
        read_only_fields = fields

    def get_team(self, event: AuditEvent) -> str | None:
        names: dict[UUID, str] = self.context["teams"]
        return names.get(event.team_id) if event.team_id else None


class NewestEventFirst(CursorPagination):
    ordering = "-id"


FILTERS = ("actor", "actor_id", "action", "target_type", "target_id", "request_id")


class AuditList(GenericAPIView[AuditEvent]):
    queryset = AuditEvent.objects.none()
    serializer_class = AuditSerializer
    pagination_class = NewestEventFirst

    @described(parameters=[OpenApiParameter(name, str) for name in (*FILTERS, "since", "until")])
    def get(self, request: Request) -> Response:
        """Events of the teams whose audit log whoever asks may read, newest first."""
        require_anywhere(request, Right.AUDIT)
        events = AuditEvent.objects.filter(team_scope(request, Right.AUDIT))
        for name in FILTERS:
            value = request.query_params.get(name)
            if value is not None:
                if "\x00" in value:
                    raise field_error("bad_text", name, "The text contains U+0000.")
                events = events.filter(**{name: value})
        for name, lookup in (("since", "at__gte"), ("until", "at__lt")):
            if name in request.query_params:
                events = events.filter(**{lookup: moment(request.query_params[name], name)})
        page = self.paginate_queryset(events)
        teams = dict(Team.objects.values_list("pk", "name"))
        return self.get_paginated_response(AuditSerializer(page, many=True, context={"teams": teams}).data)


def key_rows() -> QuerySet[ApiKey]:
    """Keys with all that their serializer reads: two queries."""
    return ApiKey.objects.select_related("team", "created_by").prefetch_related("grants__deployment")


def refuse_scopes_beyond(request: Request, team: Team, scopes: list[str]) -> None:
    """Raises PermissionDenied for a scope beyond the rights of whoever asks: no key outranks its issuer."""
    beyond = scopes_beyond(scopes, rights(request, team.pk))
    issuer = key_of(request)
    # People who may ask may pin; of keys it is a scope of its own, which no right stands for.
    if issuer is not None and Scope.PIN in scopes and not issuer.has_scope(Scope.PIN):
        beyond.append(Scope.PIN.value)
    if beyond:
        raise PermissionDenied(f"You cannot give a key rights that you do not hold: {', '.join(beyond)}.")


def refuse_deployments_beyond(request: Request, deployments: list[Deployment] | None) -> None:
    """Raises PermissionDenied where a key for single deployments would issue one that reaches further than itself."""
    issuer = key_of(request)
    if issuer is None or issuer.every_deployment:
        return
    reach = set(issuer.grants.values_list("deployment_id", flat=True))
    if deployments is None or not {deployment.pk for deployment in deployments} <= reach:
        raise PermissionDenied("The key cannot issue one for deployments that it does not reach itself: name its own.")


def refuse_limits_beyond(request: Request, rate_per_minute: int | None, quota_per_day: int | None) -> None:
    """Raises PermissionDenied where a key with limits would issue one with wider limits, or without."""
    issuer = key_of(request)
    if issuer is None:
        return
    held = ((issuer.rate_per_minute, rate_per_minute), (issuer.quota_per_day, quota_per_day))
    if any(own is not None and (given is None or given > own) for own, given in held):
        raise PermissionDenied("The key has limits, and cannot issue one with wider limits or with none.")


def refuse_limiting(request: Request, key: ApiKey) -> None:
    """Raises PermissionDenied where a key would change its own limits, or one with limits those of another key."""
    asker = key_of(request)
    if asker is None:
        return
    if asker.pk == key.pk:
        raise PermissionDenied("A key cannot change its own limits.")
    if asker.rate_per_minute is not None or asker.quota_per_day is not None:
        raise PermissionDenied("The key has limits itself, and cannot change those of another.")


def deployments_named(team: Team, names: list[str]) -> list[Deployment]:
    """The team's deployments of these names. Raises DomainError `validation_error` naming the first unknown one."""
    found = {
        deployment.name: deployment for deployment in Deployment.objects.current().filter(team=team, name__in=names)
    }
    for index, name in enumerate(names):
        if name not in found:
            raise field_error(
                "validation_error", ["deployments", index], f"The team {team.name} has no deployment “{name}”."
            )
    return [found[name] for name in names]


def moment(text: str, name: str) -> datetime:
    """A time with its zone (UTC where none is given). Raises DomainError `validation_error`."""
    try:
        # A plus sign that a client forgot to encode arrives as a space.
        parsed = parse_datetime(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        parsed = None
    if parsed is None:
        raise field_error("validation_error", name, "A time reads 2026-01-31T12:00:00Z.")
    return parsed if timezone.is_aware(parsed) else timezone.make_aware(parsed)


urlpatterns = [
    path("keys/", KeyList.as_view(), name="keys"),
    path("keys/<uuid:key_id>/", KeyDetail.as_view(), name="key"),
    path("audit/", AuditList.as_view(), name="audit"),
]
