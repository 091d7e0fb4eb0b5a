"""Creating, editing and retiring deployments."""

import re
from typing import Any

from django.db import IntegrityError, transaction
from django.utils import timezone

from controlplane.accounts.models import Team
from controlplane.audit.services import Actor, record_change
from controlplane.catalog.models import ModelVersion, RegisteredModel, VersionState
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.deployments.settling import routes_change
from controlplane.errors import DomainError, field_error
from inference.contracts import Lane

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}")
# Addresses of pages under /deployments/.
RESERVED_NAMES = frozenset({"new"})
KEEP = ("keep", "hash", "drop")
MAX_DESCRIPTION = 2000
MAX_RETENTION_DAYS = 3650
MAX_ROWS = 1_000_000
MIN_BODY_BYTES, MAX_BODY_BYTES = 1024, 1024**3
MAX_BATCH_ROWS = 4096
MAX_WAIT_MS = 1000
MAX_CACHE_TTL_S = 86_400
MIN_CACHE_BYTES, MAX_CACHE_BYTES = 64 * 1024, 1024**3
# As many as a serving process lets in at all.
MAX_IN_FLIGHT = 512


def create_deployment(
    *, actor: Actor, team: Team, name: str, model: RegisteredModel, demo: bool = False, **settings: Any
) -> Deployment:
    """Makes a deployment without a split, so that calls answer `no_active_version`; `settings` as edit_deployment.

    Raises DomainError `bad_name`, `conflict` for a name that is or was in use, `gone` for an archived model,
    `not_found` for a model of another team, and as edit_deployment does.
    """
    if NAME.fullmatch(name) is None or name in RESERVED_NAMES:
        message = "A deployment's name has 1 to 60 characters of a–z, 0–9, - and _, and begins with a–z or 0–9."
        raise field_error("bad_name", "name", f"“{name}” is reserved." if name in RESERVED_NAMES else message)
    if model.team_id != team.pk:
        raise field_error("not_found", "model", f"The team {team.name} has no model “{model.name}”.")
    if model.archived_at is not None:
        raise field_error("gone", "model", f"The model {model.name} is archived.")
    deployment = Deployment(team=team, name=name, model=model, demo=demo, created_by_id=actor.user_id)
    _assign(deployment, settings)
    taken = f"There is, or was, a deployment named “{name}”: names are never used twice."
    with routes_change():
        if Deployment.objects.filter(name=name).exists():
            raise field_error("conflict", "name", taken)
        try:
            with transaction.atomic():
                deployment.save(force_insert=True)
        except IntegrityError:
            raise field_error("conflict", "name", taken) from None
        record_change(actor=actor, action="deployment.create", of=deployment, after=_snapshot(deployment))
    return deployment


def edit_deployment(*, actor: Actor, deployment: Deployment, **settings: Any) -> Deployment:
    """Changes settings of a deployment; what is not named stays. Nothing is written where nothing differs.

    Settings: `description`, `lane` (contracts.Lane), `payload_share` (0 to 1), `retention_days`, `column_policy`
    (column name -> keep, hash or drop), `max_rows`, `max_body_bytes`, `max_batch_rows`, `cache_ttl_s`, `cache_bytes`,
    `max_wait_ms`, `max_in_flight`.
    Raises DomainError `validation_error`, `bad_columns` or `gone`.
    """
    with routes_change():
        deployment = current(deployment)
        before = _snapshot(deployment)
        _assign(deployment, settings)
        if _snapshot(deployment) != before:
            deployment.save(update_fields=list(settings))
            record_change(
                actor=actor, action="deployment.edit", of=deployment, before=before, after=_snapshot(deployment)
            )
    return deployment


def retire_deployment(*, actor: Actor, deployment: Deployment, reason: str = "") -> Deployment:
    """Ends a deployment for good: its calls answer 410 for 30 days, then 404. Raises DomainError `gone`."""
    now = timezone.now()
    with routes_change():
        deployment = current(deployment)
        before = _snapshot(deployment)
        SplitRevision.objects.filter(
            deployment=deployment, state__in=[RevisionState.PREPARING, RevisionState.ACTIVE]
        ).update(state=RevisionState.SUPERSEDED, ended_at=now)
        deployment.retired_at = now
        deployment.save(update_fields=["retired_at"])
        record_change(actor=actor, action="deployment.retire", of=deployment, before=before, reason=reason)
    return deployment


def current(deployment: Deployment) -> Deployment:
    """The row as it is now, to be read under the lock of routes_change. Raises DomainError `gone` for a retired one."""
    fresh = Deployment.objects.select_related("model", "team").get(pk=deployment.pk)
    if fresh.retired_at is not None:
        raise DomainError("gone", f"The deployment {fresh.name} was retired.")
    return fresh


def _assign(deployment: Deployment, settings: dict[str, Any]) -> None:
    """Sets checked values. Raises DomainError for the first that cannot be."""
    for name, value in settings.items():
        check = CHECKS.get(name)
        if check is None:
            raise TypeError(f"a deployment has no setting {name}")
        check(deployment, name, value)
        setattr(deployment, name, value)


def _check_description(deployment: Deployment, name: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > MAX_DESCRIPTION:
        raise field_error("validation_error", name, f"A description is a text of at most {MAX_DESCRIPTION} characters.")
    check_text(name, value)


def check_text(field: str, value: str) -> None:
    """Raises DomainError `bad_text` for what PostgreSQL cannot store."""
    if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
        raise field_error("bad_text", field, "The text contains U+0000 or half of a surrogate pair.")


def _check_lane(deployment: Deployment, name: str, value: Any) -> None:
    if value not in {lane.value for lane in Lane}:
        raise field_error("validation_error", name, f"A lane is one of {', '.join(Lane)}.")


def _check_share(deployment: Deployment, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise field_error("validation_error", name, "The share of payloads that is kept is a number from 0 to 1.")


def _whole(low: int, high: int) -> Any:
    def check(deployment: Deployment, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise field_error("validation_error", name, f"{name} is a whole number from {low} to {high}.")

    return check


def _duration(most: int, unit: str) -> Any:
    def check(deployment: Deployment, name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise field_error("validation_error", name, f"{name} is a number of {unit} from 0 to {most}.")

    return check


def _check_columns(deployment: Deployment, name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise field_error("bad_columns", name, "The column policy names columns and what is kept of each.")
    known: set[str] = set()
    if value:
        versions = ModelVersion.objects.filter(model=deployment.model_id).exclude(state=VersionState.REJECTED)
        known = {column["name"] for columns in versions.values_list("columns", flat=True) for column in columns}
    for column, keep in value.items():
        if column not in known:
            message = f"No version of {deployment.model.name} has a column “{column}”."
            raise field_error("bad_columns", [name, column], message)
        if keep not in KEEP:
            raise field_error("bad_columns", [name, column], f"A column is one of {', '.join(KEEP)}.")


CHECKS = {
    "description": _check_description,
    "lane": _check_lane,
    "payload_share": _check_share,
    "retention_days": _whole(1, MAX_RETENTION_DAYS),
    "column_policy": _check_columns,
    "max_rows": _whole(1, MAX_ROWS),
    "max_body_bytes": _whole(MIN_BODY_BYTES, MAX_BODY_BYTES),
    "max_batch_rows": _whole(1, MAX_BATCH_ROWS),
    "max_wait_ms": _duration(MAX_WAIT_MS, "milliseconds"),
    "cache_ttl_s": _duration(MAX_CACHE_TTL_S, "seconds"),
    "cache_bytes": _whole(MIN_CACHE_BYTES, MAX_CACHE_BYTES),
    "max_in_flight": _whole(1, MAX_IN_FLIGHT),
}


def _snapshot(deployment: Deployment) -> dict[str, Any]:
    return {"model": deployment.model.name, **deployment.settings_json()}
