"""The key of the try-it page: one per team, another where it was ended, and waited for only while it is new."""

import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from controlplane.accounts.models import ApiKey, Team
from controlplane.accounts.queries import find_usable_key
from controlplane.accounts.services import revoke_key
from controlplane.audit.models import AuditEvent
from controlplane.dashboard import trial
from controlplane.dashboard.pages.tryit import body_from_cells, try_page
from controlplane.deployments.documents import active_route
from controlplane.deployments.models import Deployment
from controlplane.deployments.services.trial import TrialKey, trial_key
from tests.controlplane.cast import ACTOR
from tests.controlplane.jobs.conftest import home, pictures

__all__ = ["home", "pictures"]


def key_of(token: str) -> ApiKey:
    found = find_usable_key(token)
    assert found is not None
    return found


def test_a_team_has_one_trial_key_for_as_long_as_it_can_be_used(team: Team, other_team: Team) -> None:
    first = trial_key(team)
    assert trial_key(team).token == first.token != trial_key(other_team).token
    assert key_of(first.token).test
    assert ApiKey.objects.filter(team=team).count() == 1


def test_a_trial_key_that_was_revoked_or_has_expired_is_followed_by_another(
    team: Team, django_capture_on_commit_callbacks: Any
) -> None:
    first = trial_key(team).token
    revoke_key(actor=ACTOR, key=key_of(first))
    with django_capture_on_commit_callbacks() as published:
        second = trial_key(team).token
    assert len(published) == 1
    ApiKey.objects.filter(pk=key_of(second).pk).update(expires_at=timezone.now() - timedelta(seconds=1))
    third = trial_key(team).token

    assert len({first, second, third}) == 3
    assert key_of(third).state(timezone.now()) == "active"
    assert trial_key(team).token == third
    assert find_usable_key(first) is None
    assert AuditEvent.objects.filter(action="key.issue", team_id=team.pk).count() == 3


def test_a_trial_key_is_fresh_for_a_moment(team: Team) -> None:
    key = trial_key(team)
    assert key.is_fresh and trial_key(team).is_fresh
    ApiKey.objects.update(created_at=timezone.now() - timedelta(minutes=1))
    assert trial_key(team) == TrialKey(key.token, is_fresh=False)


class Door(ThreadingHTTPServer):
    """Stands for the front door: it knows no key for the first `strangers` calls."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.strangers = 0
        self.keys: list[str] = []


class Answers(BaseHTTPRequestHandler):
    server: Door

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Authorization"].removeprefix("Bearer "))
        known = len(self.server.keys) > self.server.strangers
        body = b'{"predictions": [1.0]}' if known else b'{"error": "The key is unknown.", "code": "not_authenticated"}'
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def door(settings: Any) -> Iterator[Door]:
    with Door() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        settings.SIGNALBOX_HOST, settings.SIGNALBOX_PORT = "127.0.0.1", server.server_port
        yield server
        server.shutdown()
        thread.join()


def ask(key: TrialKey) -> int:
    return trial.call("/v1/models/checkout:predict", key, b"{}", "application/json").status


def test_a_fresh_key_is_waited_for_and_another_refusal_is_the_answer_at_once(door: Door) -> None:
    door.strangers = 2
    assert ask(TrialKey("sb_test_new", is_fresh=True)) == 200
    assert door.keys == ["sb_test_new"] * 3
    door.strangers = 99
    door.keys.clear()
    assert ask(TrialKey("sb_test_old", is_fresh=False)) == 401
    assert door.keys == ["sb_test_old"]


def test_the_page_goes_on_after_the_key_was_revoked(
    owners: Client, team: Team, deployment: Deployment, door: Door
) -> None:
    for _ in range(2):
        assert owners.post(f"/deployments/{deployment.name}/try/", {"json": "{}"}).status_code == 200
        revoke_key(actor=ACTOR, key=key_of(door.keys[-1]))
    assert len(set(door.keys)) == 2


def test_a_form_of_a_picture_model_without_a_picture_asks_with_no_rows(pictures: Deployment) -> None:
    page = try_page(active_route(pictures), None)
    assert page is not None
    assert body_from_cells(page, {}) == {"instances": []}
