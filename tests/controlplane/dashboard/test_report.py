"""The report page while validation runs, and the moment at which it is over."""

import pytest
from django.test import Client

from controlplane.accounts.models import Team
from controlplane.catalog.models import ModelVersion, VersionState
from tests.controlplane.deployments.rows import make_model, make_version

PATH = "/models/fraud/versions/1/"
LIVE = {"HX-Request": "true"}


@pytest.fixture
def validating(team: Team) -> ModelVersion:
    done = [{"name": "file", "ok": True, "detail": "ONNX"}, {"name": "graph", "ok": True}]
    return make_version(make_model(team), VersionState.VALIDATING, progress=done)


def test_a_report_in_the_making_shows_each_check_with_its_word(owners: Client, validating: ModelVersion) -> None:
    for headers in ({}, LIVE):
        shown = owners.get(PATH, headers=headers).content.decode()
        for name, state in (("file", "done"), ("graph", "done"), ("types", "running"), ("latency", "pending")):
            assert f'<li class="{state}" data-check="{name}">' in shown
        assert shown.count('class="running"') == 1


def test_a_live_report_is_unchanged_until_a_check_ends(owners: Client, validating: ModelVersion) -> None:
    etag = owners.get(PATH, headers=LIVE).headers["ETag"]
    asked = LIVE | {"If-None-Match": etag}
    assert owners.get(PATH, headers=asked).status_code == 304
    ModelVersion.objects.update(progress=[*validating.progress, {"name": "types", "ok": True}])
    assert owners.get(PATH, headers=asked).status_code == 200


def test_a_page_that_waited_is_loaded_anew_when_validation_is_over(owners: Client, validating: ModelVersion) -> None:
    ModelVersion.objects.update(state=VersionState.READY)
    ended = owners.get(PATH, headers=LIVE)
    assert (ended.status_code, ended.headers["HX-Refresh"], ended.content) == (204, "true", b"")
    assert b"data-live" not in owners.get(PATH).content


def test_the_api_tells_how_far_validation_is(owners: Client, validating: ModelVersion) -> None:
    checks = owners.get("/api/models/fraud/versions/1/").json()["checks"]
    assert checks[:4] == [
        {"name": "file", "state": "done", "detail": "ONNX"},
        {"name": "graph", "state": "done", "detail": ""},
        {"name": "types", "state": "running", "detail": ""},
        {"name": "load", "state": "pending", "detail": ""},
    ]
