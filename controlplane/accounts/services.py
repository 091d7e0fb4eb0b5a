"""Changes to teams, members and API keys. Each writes its audit event in its own transaction."""

import logging
import re
import secrets
import string
from collections.abc import Sequence
from datetime import datetime

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.utils import timezone

from controlplane.accounts.models import ApiKey, Membership, Role, Team, User
from controlplane.accounts.queries import digest_of
from controlplane.accounts.signals import keys_changed
from controlplane.audit.services import SYSTEM, Actor, record, record_change
from controlplane.errors import DomainError, field_error
from inference.contracts import Scope

logger = logging.getLogger(__name__)

DEFAULT_TEAM = "default"
SITE_ADMIN = "admin"
# 40 base62 characters carry 238 bits, so a plain sha256 is all the hashing they need.
KEY_CHARACTERS = 40
BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
DEFAULT_SCOPES = (Scope.PREDICT.value, Scope.PIN.value, Scope.FEEDBACK.value)
MAX_RATE_PER_MINUTE = 10_000_000
MAX_QUOTA_PER_DAY = 10**12
TEAM_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}")
# Control and format characters would let a label or a name pass for another in the audit log.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


def ensure_site_admin(*, password: str) -> bool:
    """Makes the site admin `admin` and the team `default` where they are missing; True where the person is new.

    The admin of a one-person installation also holds the role data_scientist in `default`, because admin alone does
    not see payloads. An admin who exists keeps password and roles.
    """
    with transaction.atomic():
        team, _ = Team.objects.get_or_create(name=DEFAULT_TEAM)
        user, created = User.objects.get_or_create(
            username=SITE_ADMIN, defaults={"is_staff": True, "is_superuser": True}
        )
        if not created:
            return False
        user.set_password(password)
        user.save(update_fields=["password"])
        for role in (Role.ADMIN, Role.DATA_SCIENTIST):
            Membership.objects.create(user=user, team=team, role=role)
        record(
            actor=SYSTEM,
            action="user.create",
            target_type="user",
            target_id=user.pk,
            target_label=user.username,
            team_id=team.pk,
            after={"username": user.username, "site_admin": True, "roles": [Role.ADMIN, Role.DATA_SCIENTIST]},
        )
    return True


def create_user(*, actor: Actor, username: str, email: str = "", password: str) -> User:
    """Makes a person without any role. Raises DomainError `conflict` (name taken) or `validation_error`."""
    user = User(username=username.strip(), email=email.strip())
    user.set_unusable_password()
    try:
        user.full_clean(exclude=["password"], validate_constraints=False)
        validate_password(password, user)
    except ValidationError as error:
        raise _from_validation(error) from None
    user.set_password(password)
    try:
        with transaction.atomic():
            user.save(force_insert=True)
            record(
                actor=actor,
                action="user.create",
                target_type="user",
                target_id=user.pk,
                target_label=user.username,
                team_id=None,
                after={"username": user.username, "site_admin": False},
            )
    except IntegrityError:
        raise field_error("conflict", "username", f"There is a person named “{user.username}” already.") from None
    return user


def create_team(*, actor: Actor, name: str) -> Team:
    """Makes a team. Raises DomainError `bad_name` or `conflict`."""
    if TEAM_NAME.fullmatch(name) is None:
        raise field_error(
            "bad_name", "name", "A team's name has 1 to 60 characters of a–z, 0–9, - and _, and begins with a–z or 0–9."
        )
    try:
        with transaction.atomic():
            team = Team.objects.create(name=name)
            record(
                actor=actor,
                action="team.create",
                target_type="team",
                target_id=team.pk,
                target_label=name,
                team_id=team.pk,
                after={"name": name},
            )
    except IntegrityError:
        raise field_error("conflict", "name", f"There is a team named “{name}” already.") from None
    return team


def add_member(*, actor: Actor, team: Team, user: User, role: str) -> Membership:
    """Gives a person a role in a team; the same role twice changes nothing. Raises DomainError `validation_error`."""
    if role not in Role.values:
        raise field_error("validation_error", "role", f"A role is one of {', '.join(Role.values)}.")
    with transaction.atomic():
        membership, created = Membership.objects.get_or_create(user=user, team=team, role=role)
        if created:
            record_change(actor=actor, action="member.add", of=membership, after={"role": role})
    return membership


def remove_member(*, actor: Actor, team: Team, user: User, role: str | None = None) -> int:
    """Takes one role, or all of them, from a person in a team; returns how many. The last admin of a team stays.

    Raises DomainError `not_found` or `conflict`.
    """
    with transaction.atomic():
        # The team's row is the lock: two admins who remove each other must not both succeed.
        Team.objects.select_for_update().get(pk=team.pk)
        leaving = list(Membership.objects.filter(team=team, user=user, **({"role": role} if role else {})))
        if not leaving:
            raise DomainError("not_found", f"{user.username} has no such role in {team.name}.")
        admins = Membership.objects.filter(team=team, role=Role.ADMIN)
        if any(m.role == Role.ADMIN for m in leaving) and not admins.exclude(user=user).exists():
            raise DomainError("conflict", f"{user.username} is the last admin of {team.name}: name another one first.")
        for membership in leaving:
            record_change(actor=actor, action="member.remove", of=membership, before={"role": membership.role})
            membership.delete()
    return len(leaving)


def issue_key(
    *,
    actor: Actor,
    team: Team,
    label: str,
    scopes: Sequence[str] = DEFAULT_SCOPES,
    every_deployment: bool = True,
    expires_at: datetime | None = None,
    test: bool = False,
    rate_per_minute: int | None = None,
    quota_per_day: int | None = None,
) -> tuple[ApiKey, str]:
    """Makes a key; returns its row and the key itself, which is kept nowhere and cannot be shown again.

    Grants to single deployments belong to deployments.services.issue_key_for, which passes `every_deployment=False`.
    Sends `keys_changed` after the commit. Raises DomainError `validation_error` or `bad_text`.
    """
    label = label.strip()
    wanted = _clean_scopes(scopes)
    if not 1 <= len(label) <= 100 or UNPRINTABLE.search(label):
        raise field_error("validation_error", "label", "A label has 1 to 100 printable characters.")
    if expires_at is not None and expires_at <= timezone.now():
        raise field_error("validation_error", "expires_at", "The key would have expired already.")
    _check_limits(rate_per_minute, quota_per_day)
    plain = _new_token(test)
    with transaction.atomic():
        key = ApiKey.objects.create(
            team=team,
            label=label,
            # "sb_" or "sb_test_" and five characters: enough to recognise it by, of no use to guess it.
            prefix=plain[: len("sb_test_" if test else "sb_") + 5],
            digest=digest_of(plain),
            scopes=wanted,
            every_deployment=every_deployment,
            test=test,
            rate_per_minute=rate_per_minute,
            quota_per_day=quota_per_day,
            created_by_id=actor.user_id,
            expires_at=expires_at,
        )
        record_change(actor=actor, action="key.issue", of=key, after=key.as_json())
        transaction.on_commit(lambda: _send_keys_changed(team))
    return key, plain


def limit_key(*, actor: Actor, key: ApiKey, rate_per_minute: int | None, quota_per_day: int | None) -> ApiKey:
    """Gives a key other limits, None for no limit; what was used today stays used. The same limits change nothing.

    Sends `keys_changed` after the commit. Raises DomainError `validation_error`, `conflict` for a revoked key.
    """
    _check_limits(rate_per_minute, quota_per_day)
    with transaction.atomic():
        key = ApiKey.objects.select_for_update(of=("self",)).select_related("team").get(pk=key.pk)
        if key.revoked_at is not None:
            raise DomainError("conflict", "The key is revoked: its limits stay as they were.")
        before = {"rate_per_minute": key.rate_per_minute, "quota_per_day": key.quota_per_day}
        after = {"rate_per_minute": rate_per_minute, "quota_per_day": quota_per_day}
        if before != after:
            key.rate_per_minute, key.quota_per_day = rate_per_minute, quota_per_day
            key.save(update_fields=["rate_per_minute", "quota_per_day"])
            record_change(actor=actor, action="key.limit", of=key, before=before, after=after)
            transaction.on_commit(lambda: _send_keys_changed(key.team))
    return key


def revoke_key(*, actor: Actor, key: ApiKey, reason: str = "") -> ApiKey:
    """Ends a key's use for good; revoking a revoked key changes nothing. Sends `keys_changed` after the commit."""
    now = timezone.now()
    with transaction.atomic():
        if ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=now) == 1:
            record_change(
                actor=actor,
                action="key.revoke",
                of=key,
                before={"state": key.state(now)},
                after={"state": "revoked"},
                reason=reason,
            )
            transaction.on_commit(lambda: _send_keys_changed(key.team))
    key.refresh_from_db(fields=["revoked_at"])
    return key


def _send_keys_changed(team: Team) -> None:
    keys_changed.send(sender=ApiKey, team_id=team.pk)


def _new_token(test: bool) -> str:
    return ("sb_test_" if test else "sb_") + "".join(secrets.choice(BASE62) for _ in range(KEY_CHARACTERS))


def _check_limits(rate_per_minute: int | None, quota_per_day: int | None) -> None:
    if rate_per_minute is not None and not 1 <= rate_per_minute <= MAX_RATE_PER_MINUTE:
        raise field_error(
            "validation_error", "rate_per_minute", f"A rate is 1 to {MAX_RATE_PER_MINUTE} calls a minute."
        )
    if quota_per_day is not None and not 1 <= quota_per_day <= MAX_QUOTA_PER_DAY:
        raise field_error("validation_error", "quota_per_day", f"A quota is 1 to {MAX_QUOTA_PER_DAY} calls a day.")


def _clean_scopes(scopes: Sequence[str]) -> list[str]:
    """The scopes in the table's order, each once."""
    known = [scope.value for scope in Scope]
    for index, scope in enumerate(scopes):
        if scope not in known:
            raise field_error("validation_error", ["scopes", index], f"A scope is one of {', '.join(known)}.")
    if not scopes:
        raise field_error("validation_error", "scopes", "A key needs at least one scope.")
    return [scope for scope in known if scope in scopes]


def _from_validation(error: ValidationError) -> DomainError:
    if hasattr(error, "error_dict"):
        field, messages = next(iter(error.message_dict.items()))
        return field_error("validation_error", field, messages[0])
    return field_error("validation_error", "password", " ".join(error.messages))
