"""Splits as the real front door serves them: two processes, their own PostgreSQL database, files and keys."""

import hashlib
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import msgspec
import pytest
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError

from controlplane.accounts.models import Team
from controlplane.accounts.services import revoke_key
from controlplane.catalog.models import ModelVersion, RegisteredModel
from controlplane.deployments.models import DataplaneProcess, RevisionState
from controlplane.deployments.services import (
    apply_split,
    create_deployment,
    issue_key_for,
    retire_deployment,
    roll_back,
    set_label,
    wait_until_settled,
)
from inference.contracts import Datatype, Signature, TensorSpec
from tests.controlplane.deployments.rows import ACTOR, make_model, make_team, make_version
from tests.inference.toys import classifier
from tests.services import REPOSITORY, clean_environment, free_port, wait_for

SIGNATURE = Signature(
    inputs=(TensorSpec(name="features", datatype=Datatype.FP32, shape=(-1, 3)),),
    outputs=(TensorSpec(name="probabilities", datatype=Datatype.FP32, shape=(-1, 2)),),
)
BODY = {"instances": [[1.0, 2.0, 3.0]]}


@dataclass
class FrontDoor:
    """`python -m inference.server` on a database and a home."""

    home: Path
    database_url: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = clean_environment(
            DATABASE_URL=self.database_url,
            SIGNALBOX_HOME=str(self.home),
            SIGNALBOX_SECRET_KEY=settings.SECRET_KEY,
            SIGNALBOX_PORT=str(self.port),
            SIGNALBOX_WEB_PROCESSES="2",
        )
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "inference.server"], cwd=REPOSITORY, env=environment, stdout=log, stderr=log
            )
        wait_for(lambda: DataplaneProcess.objects.live().count() == 2, 60, "two serving processes")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)

    def store(self, model: RegisteredModel, scale: float, *, keep_file: bool = True) -> ModelVersion:
        """The model's next version, with its file where the front door looks for it."""
        data = classifier(scale=scale)
        name = hashlib.sha256(data).hexdigest()
        if keep_file:
            path = self.home / "artifacts" / name[:2] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return make_version(model, content=data, signature=msgspec.to_builtins(SIGNATURE), columns=[])

    def client(self, key: str) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=30.0,
            trust_env=False,
        )


@pytest.fixture
def team(own_database: str) -> Team:
    return make_team()


@pytest.fixture
def door(own_database: str, tmp_path: Path) -> Iterator[FrontDoor]:
    made = FrontDoor(tmp_path, own_database)
    try:
        yield made
    finally:
        made.stop()


def test_a_split_serves_everywhere_within_2_s_and_no_call_fails(door: FrontDoor, team: Team) -> None:
    model = make_model(team)
    for scale in (1.0, 2.0, 3.0):
        door.store(model, scale)
    deployment = create_deployment(actor=ACTOR, team=team, name="checkout", model=model)
    row, key = issue_key_for(actor=ACTOR, team=team, label="loop", deployments=[deployment])
    # Recorded with no data plane up, serving when one comes.
    first = wait_until_settled(apply_split(actor=ACTOR, deployment=deployment, shares={"1": 100}), 60)
    assert first.state == RevisionState.PREPARING
    door.start()
    assert wait_until_settled(first, 30).state == RevisionState.ACTIVE

    answers: list[tuple[float, int, str]] = []
    ending = threading.Event()

    def loop() -> None:
        with door.client(key) as client:
            while not ending.is_set():
                response = client.post("/v1/models/checkout:predict", json=BODY)
                answers.append((time.monotonic(), response.status_code, response.headers.get("X-Model-Version", "")))

    callers = [threading.Thread(target=loop) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        took = []
        for shares in ({"1": 50, "2": 50}, {"2": 100}, {"3": 100}):
            began_at = time.monotonic()
            revision = apply_split(actor=ACTOR, deployment=deployment, shares=shares)
            assert wait_until_settled(revision, 10).state == RevisionState.ACTIVE
            took.append(time.monotonic() - began_at)
        # The other process hears of the activation a moment later.
        settled_at = time.monotonic() + 0.5
        wait_for(lambda: bool(answers) and answers[-1][0] > settled_at + 0.5, 20, "answers after the change")
    finally:
        ending.set()
        for caller in callers:
            caller.join()
    assert {status for _, status, _ in answers} == {200}
    assert {version for at, _, version in answers if at > settled_at} == {"3"}
    assert max(took) <= 2.0, took

    set_label(actor=ACTOR, deployment=deployment, label="stable", version=2)
    with door.client(key) as client:

        def label_answers() -> bool:
            return client.post("/v1/models/checkout/labels/stable:predict", json=BODY).status_code == 200

        wait_for(label_answers, 5, "the label")
        assert client.post("/v1/models/checkout/versions/1:predict", json=BODY).headers["X-Model-Version"] == "1"
        began_at = time.monotonic()
        revoke_key(actor=ACTOR, key=row)
        wait_for(lambda: client.post("/v1/models/checkout:predict", json=BODY).status_code == 401, 5, "the revocation")
        assert time.monotonic() - began_at < 5


def test_a_version_whose_file_is_gone_moves_no_traffic(door: FrontDoor, team: Team) -> None:
    model = make_model(team)
    door.store(model, 1.0)
    door.store(model, 2.0, keep_file=False)
    deployment = create_deployment(actor=ACTOR, team=team, name="checkout", model=model)
    _, key = issue_key_for(actor=ACTOR, team=team, label="loop")
    door.start()
    with door.client(key) as client:

        def status() -> int:
            return client.post("/v1/models/checkout:predict", json=BODY).status_code

        wait_for(lambda: status() == 503, 10, "no_active_version")
        first = wait_until_settled(apply_split(actor=ACTOR, deployment=deployment, shares={"1": 100}), 10)
        assert first.state == RevisionState.ACTIVE
        wait_for(lambda: status() == 200, 10, "an answer")
        broken = wait_until_settled(apply_split(actor=ACTOR, deployment=deployment, shares={"1": 50, "2": 50}), 10)
        assert broken.state == RevisionState.FAILED
        assert broken.failure.startswith("Version 2 does not load: ")
        assert str(door.home) not in broken.failure
        answer = client.post("/v1/models/checkout:predict", json=BODY)
        assert (answer.status_code, answer.headers["X-Split-Revision"]) == (200, "1")
        # The failure blocks nothing that follows.
        door.store(model, 3.0)
        third = wait_until_settled(apply_split(actor=ACTOR, deployment=deployment, shares={"3": 100}), 10)
        assert third.state == RevisionState.ACTIVE
        assert wait_until_settled(roll_back(actor=ACTOR, deployment=deployment), 10).state == RevisionState.ACTIVE
        retire_deployment(actor=ACTOR, deployment=deployment)
        wait_for(lambda: status() == 410, 10, "the retirement")


def test_a_version_that_does_not_fit_into_memory_is_refused_with_the_figures(door: FrontDoor, team: Team) -> None:
    model = make_model(team)
    for scale in (1.0, 2.0, 3.0):
        door.store(model, scale)
    model.versions.filter(number=3).update(memory_bytes=10**15)
    deployment = create_deployment(actor=ACTOR, team=team, name="checkout", model=model)
    _, key = issue_key_for(actor=ACTOR, team=team, label="loop")
    door.start()
    # At 0 % even what would never fit may be named, and what fits is loaded by the first call that pins it.
    first = apply_split(actor=ACTOR, deployment=deployment, shares={"1": 100, "2": 0, "3": 0})
    assert wait_until_settled(first, 10).state == RevisionState.ACTIVE
    with door.client(key) as client:
        wait_for(lambda: client.post("/v1/models/checkout:predict", json=BODY).status_code == 200, 10, "an answer")
        pinned = client.post("/v1/models/checkout/versions/2:predict", json=BODY)
        assert (pinned.status_code, pinned.headers["X-Model-Version"]) == (200, "2")
        refused = client.post("/v1/models/checkout/versions/3:predict", json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (503, "model_memory")
        with pytest.raises(CommandError) as told:
            call_command("deploy", "checkout", model.name, split="1=50,3=50", team=team.name)
        assert re.fullmatch(
            r"checkout serves what it did before\. Version 3 does not load: It needs 953,674,316 MB of memory\. "
            r"Of the [\d,]+ MB for models in each serving process 1 model with traffic holds [\d.]+ MB\.",
            str(told.value),
        )
        answer = client.post("/v1/models/checkout:predict", json=BODY)
        assert (answer.status_code, answer.headers["X-Split-Revision"]) == (200, "1")
