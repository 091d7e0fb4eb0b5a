"""The key with which the try-it page calls the front door: a test key per team, kept nowhere in the clear."""

import hashlib
import hmac
from dataclasses import dataclass
from itertools import count

from django.conf import settings
from django.db import transaction
from django.utils import timezone

from controlplane.accounts.models import ApiKey, Team
from controlplane.accounts.queries import digest_of
from controlplane.accounts.services import KEY_CHARACTERS
from controlplane.accounts.signals import keys_changed
from controlplane.audit.services import SYSTEM, record_change
from inference.contracts import Scope

LABEL = "try it (Signalbox's own page)"
SCOPES = [Scope.PREDICT.value, Scope.PIN.value]
# A key that was made a moment ago reaches the data plane within a second or so.
ARRIVES_WITHIN_S = 4.0


@dataclass(frozen=True, slots=True)
class TrialKey:
    """The key itself, and whether the data plane may not know it yet."""

    token: str
    is_fresh: bool


def trial_key(team: Team) -> TrialKey:
    """The team's trial key, made where there is none that can be used, and published.

    Derived from the secret key and a number, so it need not be stored: the next number follows where a key was revoked
    or has expired. Calls with it take the route of any other and are marked as test traffic, which no figure counts.
    """
    for number in count():
        token = _token(team, number)
        key = ApiKey.objects.filter(digest=digest_of(token)).first() or _issue(team, token)
        now = timezone.now()
        if key.state(now) == "active":
            return TrialKey(token, (now - key.created_at).total_seconds() < ARRIVES_WITHIN_S)
    raise AssertionError("numbers do not end")


def _token(team: Team, number: int) -> str:
    label = b"signalbox-trial-key:%d:" % number
    mac = hmac.new(settings.SECRET_KEY.encode(), label + team.pk.bytes, hashlib.sha512)
    return "sb_test_" + mac.hexdigest()[:KEY_CHARACTERS]


def _issue(team: Team, token: str) -> ApiKey:
    with transaction.atomic():
        # Two pages may ask for the same key at once: one makes it.
        key, created = ApiKey.objects.get_or_create(
            digest=digest_of(token),
            defaults={"team": team, "label": LABEL, "prefix": token[:13], "scopes": SCOPES, "test": True},
        )
        if created:
            record_change(
                actor=SYSTEM,
                action="key.issue",
                of=key,
                after=key.as_json(),
            )
            transaction.on_commit(lambda: keys_changed.send(sender=ApiKey, team_id=team.pk))
    return key
