"""Moving traffic between versions: every change is a new split revision, and an old one is never edited."""

from collections.abc import Iterable, Mapping
from typing import Any

from django.utils import timezone

from controlplane.audit.services import Actor, record_change
from controlplane.catalog.models import ModelVersion, RegisteredModel, VersionState
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.deployments.services.deployments import check_text, current
from controlplane.deployments.services.purpose import refuse_unfit_for_clinical
from controlplane.deployments.settling import routes_change
from controlplane.deployments.shares import Percentage, live_shares, shadow_shares
from controlplane.errors import DomainError, field_error

MAX_REASON = 500
NO_SHADOW: Mapping[str | int, Percentage] = {}


def apply_split(
    *,
    actor: Actor,
    deployment: Deployment,
    shares: Mapping[str | int, Percentage],
    shadow: Mapping[str | int, Percentage] = NO_SHADOW,
    reason: str = "",
    expected_revision: int | None = None,
) -> SplitRevision:
    """Makes the next revision from shares in per cent and publishes it; it is `preparing` until every process has it.

    A revision that was still preparing is superseded. `expected_revision` is the number the editor was made from
    (0: no split yet); None does not check.
    Raises DomainError `must_total_100`, `unknown_version` (unknown, archived or rejected, or named twice), `not_ready`
    (still being validated), `stale_revision` (with both values), `validation_error`, `bad_text` or `gone`.
    """
    live = live_shares(shares)
    shadowed = shadow_shares(shadow, live)
    _check_reason(reason)
    with routes_change():
        deployment = current(deployment)
        newest = newest_split(deployment)
        _check_expected(newest, expected_revision, live, shadowed)
        return _add(actor, "split.apply", deployment, newest, live, shadowed, reason)


def promote(
    *,
    actor: Actor,
    deployment: Deployment,
    version: int,
    reason: str = "",
    expected_revision: int | None = None,
) -> SplitRevision:
    """Gives a version all of the traffic; other versions' shadows stay. Raises DomainError as apply_split does."""
    _check_reason(reason)
    with routes_change():
        deployment = current(deployment)
        newest = newest_split(deployment)
        live = live_shares({version: 100})
        shadow = {int(number): points for number, points in (newest.shadow if newest else {}).items()}
        shadow.pop(version, None)
        _check_expected(newest, expected_revision, live, shadow)
        return _add(actor, "split.promote", deployment, newest, live, shadow, reason)


def roll_back(
    *,
    actor: Actor,
    deployment: Deployment,
    to: int | None = None,
    reason: str = "",
    expected_revision: int | None = None,
) -> SplitRevision:
    """Makes a new revision equal to one that served before: number `to`, else the one before the current split.

    Rolling back twice goes back two splits. Raises DomainError `conflict` where there is no such revision or it never
    served, and as apply_split does.
    """
    _check_reason(reason)
    with routes_change():
        deployment = current(deployment)
        newest = newest_split(deployment)
        target = _served(deployment, to) if to is not None else _previous(deployment, newest)
        live = {int(number): points for number, points in target.shares.items()}
        shadow = {int(number): points for number, points in target.shadow.items()}
        _check_expected(newest, expected_revision, live, shadow)
        return _add(actor, "split.roll_back", deployment, newest, live, shadow, reason, returns_to=target)


def newest_split(deployment: Deployment) -> SplitRevision | None:
    """The revision that prepares, else the one that serves: what an editor shows and a change replaces."""
    return (
        SplitRevision.objects.filter(deployment=deployment, state__in=[RevisionState.PREPARING, RevisionState.ACTIVE])
        .order_by("-number")
        .first()
    )


def _served(deployment: Deployment, number: int) -> SplitRevision:
    revision = SplitRevision.objects.filter(deployment=deployment, number=number).first()
    if revision is None:
        raise field_error("conflict", "to", f"{deployment.name} has no split revision {number}.")
    if revision.activated_at is None:
        raise field_error("conflict", "to", f"Split revision {number} of {deployment.name} never served.")
    return revision


def _previous(deployment: Deployment, newest: SplitRevision | None) -> SplitRevision:
    """The split that served before the newest; for one that is a roll-back itself, before what it returned to."""
    if newest is not None:
        start = newest.returns_to or newest
        earlier = SplitRevision.objects.filter(
            deployment=deployment, number__lt=start.number, activated_at__isnull=False
        ).exclude(shares=newest.shares, shadow=newest.shadow)
        for revision in earlier.order_by("-number")[:1]:
            # A roll-back stands for what it returned to, else undoing would walk over the same splits again.
            return revision.returns_to or revision
    raise DomainError("conflict", f"{deployment.name} has no earlier split to return to.")


def _check_reason(reason: str) -> None:
    if len(reason) > MAX_REASON:
        raise field_error("validation_error", "reason", f"A reason has at most {MAX_REASON} characters.")
    check_text("reason", reason)


def _check_expected(
    newest: SplitRevision | None, expected: int | None, live: Mapping[int, int], shadow: Mapping[int, int]
) -> None:
    number = newest.number if newest else 0
    if expected is None or expected == number:
        return
    yours = SplitRevision(number=expected, shares=_keyed(live), shadow=_keyed(shadow)).as_json()
    extra: dict[str, Any] = {
        "expected_revision": expected,
        "current_revision": number,
        "current": described(newest) if newest else None,
        "yours": {"shares": yours["shares"], "shadow": yours["shadow"]},
    }
    by = f" {newest.actor} made it." if newest else ""
    message = f"The split was changed in between: revision {number} is the newest, not {expected}.{by}"
    raise DomainError("stale_revision", message, extra=extra)


def described(revision: SplitRevision) -> dict[str, Any]:
    """A revision with who, when and why."""
    return {
        **revision.as_json(),
        "actor": revision.actor,
        "reason": revision.reason,
        "failure": revision.failure,
        "created_at": revision.created_at,
        "activated_at": revision.activated_at,
        "ended_at": revision.ended_at,
    }


def _check_versions(deployment: Deployment, live: Mapping[int, int], shadow: Mapping[int, int]) -> None:
    """Raises DomainError for the first version that cannot take traffic, naming it."""
    model = deployment.model
    numbers = dict.fromkeys(shadow, "shadow") | dict.fromkeys(live, "shares")
    found = lock_versions(model, numbers)
    for number, field in sorted(numbers.items()):
        version = found.get(number)
        message = refusal(version, f"Version {number} of {model.name}")
        if message is not None:
            pending = version is not None and version.state in (VersionState.UPLOADED, VersionState.VALIDATING)
            raise field_error("not_ready" if pending else "unknown_version", [field, str(number)], message)


def lock_versions(model: RegisteredModel, numbers: Iterable[int]) -> dict[int, ModelVersion]:
    """Versions by number, locked: none is archived between this look and the end of the change."""
    rows = ModelVersion.objects.filter(model=model, number__in=list(numbers)).only("number", "state", "reason")
    return {version.number: version for version in rows.order_by("number").select_for_update(of=("self",))}


def refusal(version: ModelVersion | None, name: str) -> str | None:
    """Why a version cannot take traffic, or None where it can."""
    if version is None:
        return f"{name} does not exist."
    if version.state == VersionState.READY:
        return None
    if version.state == VersionState.ARCHIVED:
        return f"{name} is archived."
    if version.state == VersionState.REJECTED:
        return f"{name} was rejected at validation: {version.reason}".removesuffix(": ")
    return f"{name} is still being validated."


def _add(
    actor: Actor,
    action: str,
    deployment: Deployment,
    newest: SplitRevision | None,
    live: Mapping[int, int],
    shadow: Mapping[int, int],
    reason: str,
    returns_to: SplitRevision | None = None,
) -> SplitRevision:
    """Under the lock: the next revision and its audit event."""
    _check_versions(deployment, live, shadow)
    refuse_unfit_for_clinical(deployment, [number for number, points in live.items() if points])
    now = timezone.now()
    if newest is not None and newest.state == RevisionState.PREPARING:
        newest.state, newest.ended_at = RevisionState.SUPERSEDED, now
        newest.save(update_fields=["state", "ended_at"])
    revision = SplitRevision.objects.create(
        deployment=deployment,
        number=deployment.next_revision,
        shares=_keyed(live),
        shadow=_keyed(shadow),
        reason=reason,
        actor=actor.label,
        actor_user_id=actor.user_id,
        returns_to=returns_to,
    )
    deployment.next_revision += 1
    deployment.save(update_fields=["next_revision"])
    record_change(
        actor=actor,
        action=action,
        of=deployment,
        before=newest.as_json() if newest else None,
        after=revision.as_json(),
        reason=reason,
    )
    return revision


def _keyed(points: Mapping[int, int]) -> dict[str, int]:
    return {str(number): share for number, share in sorted(points.items())}
