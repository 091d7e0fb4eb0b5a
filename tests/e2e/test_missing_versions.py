"""What is not there, or not yet: table B row 16 through the whole product, at the front door and as jobs."""

import hashlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.control import Control, control_of
from tests.inference.toys import classifier
from tests.services import Product, wait_for

pytestmark = pytest.mark.timeout(400)

NAME = "missing-versions"
ONE, TWO = classifier(scale=3.0), classifier(scale=5.0)
BODY = {"instances": [{"a": 1.0, "b": 2.0, "c": 3.0}]}
JOBS = f"/api/deployments/{NAME}/jobs/"


@pytest.fixture(scope="module")
def control(product: Product) -> Iterator[Control]:
    """One deployment of two versions, the second at 0 %, so that it can be pinned; and a third that nobody deployed."""
    with control_of(product) as control:
        for number, content in enumerate((ONE, TWO, classifier(scale=7.0)), 1):
            control.upload(NAME, content, columns="a,b,c", labels="no,yes")
            assert control.validated(NAME, number)["state"] == "ready"
        control.deploy(NAME, shares={"1": 100, "2": 0})
        yield control


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def pinned(control: Control, number: int) -> httpx.Response:
    return control.client.post(f"/v1/models/{NAME}/versions/{number}:predict", json=BODY)


def test_an_unknown_deployment_is_not_found(control: Control) -> None:
    for path in ("/v1/models/nobody:predict", "/v2/models/nobody/infer", "/api/deployments/nobody/jobs/"):
        assert code(control.client.post(path, json=BODY)) == (404, "not_found"), path


def test_a_version_that_is_unknown_or_not_deployed_cannot_be_pinned(control: Control) -> None:
    assert pinned(control, 2).status_code == 200
    for number in (3, 99):
        assert code(pinned(control, number)) == (404, "not_found")
        assert code(control.client.post(f"/v2/models/{NAME}/versions/{number}/infer", json={})) == (404, "not_found")
        assert code(control.client.post(f"{JOBS}?version={number}", json=BODY)) == (404, "not_found")


def test_an_archived_deployment_is_gone(control: Control) -> None:
    name = f"{NAME}-gone"
    control.deploy(name, model=NAME)
    assert control.client.delete(f"/api/deployments/{name}/").status_code == 204
    path = f"/v1/models/{name}:predict"
    wait_for(lambda: control.client.post(path, json=BODY).status_code == 410, 30, "the deployment is gone")
    assert code(control.client.post(path, json=BODY)) == (410, "gone")
    assert code(control.client.post(f"/v2/models/{name}/infer", json=BODY)) == (410, "gone")
    assert code(control.client.post(f"/api/deployments/{name}/jobs/", json=BODY)) == (410, "gone")


def test_a_version_that_is_not_loaded_yet_is_said_to_be_and_served_when_it_is(
    product: Product, control: Control
) -> None:
    """A front door that starts while the file of a version is away, as on a host whose shared volume comes late."""
    digest = hashlib.sha256(TWO).hexdigest()
    file = product.home / "artifacts" / digest[:2] / digest
    away = file.with_name(f".{digest}.away")
    file.rename(away)
    try:
        _restart_front_door(product)

        def told() -> bool:
            try:
                return pinned(control, 1).status_code == 200 and pinned(control, 2).status_code == 503
            except httpx.TransportError:
                return False

        wait_for(told, 60, "a front door that lacks a version")
        answer = pinned(control, 2)
        assert code(answer) == (503, "version_not_ready")
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["retryable"] is True
        assert control.client.get(f"/v2/models/{NAME}/versions/2/ready").status_code == 503
    finally:
        _put_back(away, file)
    wait_for(lambda: pinned(control, 2).status_code == 200, 60, "the version once its file is there")


def _restart_front_door(product: Product) -> None:
    before = product.pid_of("server")
    assert before is not None
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: product.pid_of("server") not in (None, before), 30, "another front door")


def _put_back(away: Path, file: Path) -> None:
    if away.exists():
        away.rename(file)
