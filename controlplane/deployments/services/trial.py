"""The key with which the try-it page calls the front door: a test key per team, kept nowhere in the clear."""

import hashlib
import hmac

from django.conf import settings
from django.db import transaction

from controlplane.accounts.models import ApiKey, Team
from controlplane.accounts.queries import digest_of
from controlplane.accounts.services import KEY_CHARACTERS
from controlplane.accounts.signals import keys_changed
from controlplane.audit.services import SYSTEM, record_change
from inference.contracts import Scope

LABEL = "try it (Signalbox's own page)"
SCOPES = [Scope.PREDICT.value, Scope.PIN.value]


def trial_key(team: Team) -> str:
    """The team's trial key, made the first time and published. Derived from the secret key, so it need not be stored.

    Calls with it are answered by the same route as any other and marked as test traffic, which no figure counts.
    """
    mac = hmac.new(settings.SECRET_KEY.encode(), b"signalbox-trial-key:" + team.pk.bytes, hashlib.sha512)
    token = "sb_test_" + mac.hexdigest()[:KEY_CHARACTERS]
    with transaction.atomic():
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
    return token
