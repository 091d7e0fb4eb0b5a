"""What the pages about API keys show."""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.db.models import Sum

from controlplane.accounts.limits import calls_of_day
from controlplane.accounts.models import ApiKey, User
from controlplane.deployments.models import KeyGrant
from controlplane.predictions.models import FailedCall, KeyUse

TONES = {"active": "good", "revoked": "bad", "expired": "warn"}


@dataclass(frozen=True, slots=True)
class KeyRow:
    key: ApiKey
    state: str
    tone: str
    reach: str
    calls: int


@dataclass(frozen=True, slots=True)
class KeysPage:
    rows: list[KeyRow]


@dataclass(frozen=True, slots=True)
class KeyPage:
    key: ApiKey
    state: str
    tone: str
    reach: str
    calls: int
    # Of a key with a quota: calls that count against it, of this day of UTC.
    used_today: int
    last_used_at: datetime | None
    failures: list[FailedCall]


def _reach(names: list[str], key: ApiKey) -> str:
    return "every deployment of the team" if key.every_deployment else ", ".join(names) or "none"


def keys_page(user: User, now: datetime) -> KeysPage:
    """Every key that the person may manage, newest first. Three queries however many keys there are."""
    keys = list(ApiKey.objects.for_user(user).select_related("team")[:500])
    ids = [key.pk for key in keys]
    granted: dict[uuid.UUID, list[str]] = {}
    for key_id, name in KeyGrant.objects.filter(key_id__in=ids).values_list("key_id", "deployment__name"):
        granted.setdefault(key_id, []).append(name)
    since = now - timedelta(days=1)
    used = KeyUse.objects.filter(key_id__in=ids, hour__gte=since).values_list("key_id").annotate(total=Sum("calls"))
    calls = dict(used)
    rows = [
        KeyRow(key, key.state(now), TONES[key.state(now)], _reach(granted.get(key.pk, []), key), calls.get(key.pk, 0))
        for key in keys
    ]
    return KeysPage(rows)


def key_page(key: ApiKey, since: datetime, now: datetime) -> KeyPage:
    """A key, its use and its last hundred failed calls. Five queries."""
    names = list(key.grants.values_list("deployment__name", flat=True))
    used = KeyUse.objects.filter(key_id=key.pk)
    latest = used.order_by("-hour").first()
    return KeyPage(
        key=key,
        state=key.state(now),
        tone=TONES[key.state(now)],
        reach=_reach(names, key),
        calls=used.filter(hour__gte=since).aggregate(total=Sum("calls"))["total"] or 0,
        used_today=calls_of_day(key, now) if key.quota_per_day is not None else 0,
        last_used_at=latest.hour if latest else None,
        failures=list(FailedCall.objects.filter(key_id=key.pk)[:100]),
    )
