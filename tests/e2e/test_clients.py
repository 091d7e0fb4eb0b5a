"""What clients do with the whole product: the documented programs, SageMaker's forms, pictures, jobs, keys, metrics."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.e2e.control import Control, control_of
from tests.inference.runtime.picture_files import GREY_8, chest, dicom, encoded
from tests.inference.toys import classifier, picture_classifier
from tests.services import Product, wait_for

pytestmark = pytest.mark.timeout(400)

TABLE, PICTURES, JOBS = "clients-table", "clients-pictures", "clients-jobs"
PREDICT = f"/v1/models/{TABLE}:predict"
BODY: dict[str, Any] = {"instances": [{"a": 1.0, "b": 2.0, "c": 3.0}]}
LABELS = ["dark", "grey", "bright"]
PIXELS = chest()


@pytest.fixture(scope="module")
def control(product: Product) -> Iterator[Control]:
    """A table of named columns in two versions, split 50/50, and a model of pictures, deployed in two lanes."""
    with control_of(product) as control:
        for scale in (1.0, 2.0):
            control.upload(TABLE, classifier(scale=scale), columns="a,b,c", labels="no,yes")
        preprocessor = json.dumps(GREY_8)
        model = picture_classifier(tail="Softmax")
        control.upload(PICTURES, model, preprocessor=preprocessor, labels=",".join(LABELS), task="image-classification")
        for name, number in ((TABLE, 1), (TABLE, 2), (PICTURES, 1)):
            version = control.validated(name, number)
            assert version["state"] == "ready", version["reason"]
        control.deploy(TABLE, shares={"1": 50, "2": 50})
        control.deploy(PICTURES)
        control.deploy(JOBS, model=PICTURES, lane="job")
        labels = control.client.put(f"/api/deployments/{TABLE}/labels/", json={"labels": {"stable": 1, "canary": 2}})
        assert labels.status_code == 200, labels.text
        yield control


@pytest.fixture(scope="module")
def document(control: Control) -> dict[str, Any]:
    return control.got(f"/api/deployments/{TABLE}/openapi.json")


# The documentation


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
@pytest.mark.parametrize("name", [TABLE, PICTURES])
def test_the_documented_programs_run_as_they_are(language: str, name: str, control: Control, tmp_path: Path) -> None:
    runner = {"curl": "bash", "python": sys.executable, "javascript": "node"}[language]
    for needed in (runner, "curl") if language == "curl" else (runner,):
        if shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed: apt-get install {'nodejs' if needed == 'node' else needed}")
    operation = control.got(f"/api/deployments/{name}/openapi.json")["paths"][f"/v1/models/{name}:predict"]["post"]
    source = next(sample["source"] for sample in operation["x-codeSamples"] if sample["label"] == language)
    assert source in operation["description"]
    path = tmp_path / {"curl": "call.sh", "python": "call.py", "javascript": "call.mjs"}[language]
    path.write_text(source.replace("sb_YOUR_KEY", control.key), "utf-8")
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    done = subprocess.run([runner, path], capture_output=True, text=True, timeout=60, check=False, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout
    assert len(json.loads(done.stdout)["predictions"]) == 1


def test_the_documented_bodies_are_answered(document: dict[str, Any], control: Control) -> None:
    assert document["servers"] == [{"url": str(control.client.base_url).rstrip("/")}]
    for path, operations in document["paths"].items():
        example = operations["post"]["requestBody"]["content"]["application/json"]["example"]
        answer = control.client.post(path, json=example)
        assert answer.status_code == 200, answer.text
        for header in operations["post"]["responses"]["200"]["headers"]:
            if document["components"]["headers"][header]["required"]:
                assert header in answer.headers


# SageMaker, health, TensorFlow Serving's other calls


def test_invocations_take_csv_and_json(product: Product, control: Control) -> None:
    target = {"X-Amzn-SageMaker-Target-Model": TABLE}
    lines = control.client.post(
        "/invocations", content="1,2,3\n4,5,6\n", headers={**target, "Content-Type": "text/csv"}
    )
    assert (lines.status_code, lines.headers["content-type"]) == (200, "text/csv; charset=utf-8"), lines.text
    assert [len(line.split(",")) for line in lines.text.splitlines()] == [2, 2]
    named = control.client.post("/invocations", json=BODY, headers=target)
    assert named.status_code == 200, named.text
    many = control.client.post("/invocations", json=BODY)
    assert (many.status_code, many.json()["code"]) == (400, "bad_request")
    # A key for one deployment need not name it.
    with product.http(control.issued(deployments=[TABLE])) as client:
        bare = client.post("/invocations", json=[[1, 2, 3]])
    assert bare.status_code == 200, bare.text
    assert sum(bare.json()["predictions"][0]) == pytest.approx(1)


def test_health_needs_no_key(product: Product, control: Control) -> None:
    with product.http() as client:
        for path in ("/ping", "/v2/health/live", "/v2/health/ready"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json"), path
        for path in ("/v2", f"/v2/models/{TABLE}", f"/v2/models/{TABLE}/ready", f"/v1/models/{TABLE}"):
            assert client.get(path).status_code == 401, path
            assert control.client.get(path).status_code == 200, path
        metadata = control.got(f"/v1/models/{TABLE}/labels/canary/metadata")
    assert metadata["model_spec"] == {"name": TABLE, "signature_name": "", "version": "2"}


# Pictures

FILES = {
    "image/png": encoded(PIXELS),
    "image/jpeg": encoded(PIXELS, "JPEG", quality=95),
    "application/dicom": dicom(PIXELS),
}


def b64(content: bytes) -> dict[str, Any]:
    return {"instances": [{"b64": base64.b64encode(content).decode()}]}


def scores_in(answer: httpx.Response) -> dict[str, float]:
    """The scores of the one picture, whose label is the highest."""
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["predictions"]
    scores: dict[str, float] = prediction["scores"]
    assert list(scores) == LABELS
    assert sum(scores.values()) == pytest.approx(1, abs=1e-5)
    assert prediction["label"] == max(LABELS, key=scores.__getitem__)
    return scores


@pytest.fixture(scope="module")
def expected(control: Control) -> dict[str, float]:
    """The scores of the pixels themselves, as a tensor sent by V2: the mean of what the preprocessor makes of them."""
    from PIL import Image

    small = Image.fromarray(PIXELS).resize((8, 8), Image.Resampling.BILINEAR)
    values = [(value / 255 - 0.5) / 0.5 for value in small.tobytes()]
    name = control.got(f"/v2/models/{PICTURES}")["inputs"][0]["name"]
    tensor = {"name": name, "datatype": "FP32", "shape": [1, 1, 8, 8], "data": values}
    answer = control.client.post(f"/v2/models/{PICTURES}/infer", json={"inputs": [tensor]})
    assert answer.status_code == 200, answer.text
    return dict(zip(LABELS, answer.json()["outputs"][0]["data"], strict=True))


@pytest.mark.parametrize("name", [PICTURES, JOBS])
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("raw", [False, True], ids=["b64", "raw"])
def test_pictures_are_answered_with_labelled_scores(
    name: str, kind: str, raw: bool, control: Control, expected: dict[str, float]
) -> None:
    address = f"/v1/models/{name}:predict"
    headers = {"X-Deadline-Ms": "60000"}
    if raw:
        answer = control.client.post(address, content=FILES[kind], headers={**headers, "Content-Type": kind})
    else:
        answer = control.client.post(address, json=b64(FILES[kind]), headers=headers)
    assert scores_in(answer) == pytest.approx(expected, abs=0.01 if kind == "image/jpeg" else 1e-5)
    logged = control.prediction(answer.headers["X-Prediction-Id"])
    assert logged["lane"] in (("job",) if name == JOBS else ("inline", "executor"))
    assert (logged["version"], logged["outcome"]) == (1, "ok")
    # Of a picture the log has numbers, never pixels.
    assert logged["inputs"] in (None, {})
    assert (logged["pictures"][0]["width"], logged["pictures"][0]["height"]) == (64, 64)


def test_v2_and_sagemaker_take_pictures_too(control: Control, expected: dict[str, float]) -> None:
    content = base64.b64encode(FILES["image/png"]).decode()
    tensor = {"name": "pixels", "datatype": "BYTES", "shape": [1], "data": [content]}
    for name in (PICTURES, JOBS):
        answer = control.client.post(
            f"/v2/models/{name}/infer", json={"inputs": [tensor]}, headers={"X-Deadline-Ms": "60000"}
        )
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["data"] == pytest.approx(list(expected.values()), abs=1e-5)
        raw = control.client.post(
            "/invocations",
            content=FILES["application/dicom"],
            headers={
                "Content-Type": "application/dicom",
                "X-Amzn-SageMaker-Target-Model": name,
                "X-Deadline-Ms": "60000",
            },
        )
        assert scores_in(raw) == pytest.approx(expected, abs=1e-5)


def test_a_bad_picture_is_refused_alike_in_every_lane(control: Control) -> None:
    for name in (PICTURES, JOBS):
        for content, code in ((b"%PDF-1.7" + b"\0" * 40, "not_an_image"), (FILES["image/png"][:-40], "corrupt_image")):
            answer = control.client.post(f"/v1/models/{name}:predict", json=b64(content))
            assert answer.json()["code"] == code, (name, answer.text)
            assert answer.status_code in (415, 422)


# Jobs


@contextmanager
def worker_paused(product: Product) -> Iterator[None]:
    """While the Celery worker hands nothing out, a job stays queued."""
    pid = product.pid_of("worker")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def finished(control: Control, address: str) -> dict[str, Any]:
    """The job at its end; each look waits a while at the server."""
    job: dict[str, Any] = {}

    def ended() -> bool:
        job.update(control.got(address, wait="20"))
        return job["status"] not in ("queued", "running")

    wait_for(ended, 60, "the job's end")
    return job


def test_who_prefers_not_to_wait_gets_the_jobs_address(control: Control, expected: dict[str, float]) -> None:
    headers = {"Prefer": "respond-async", "X-Client-Id": "study-7", "X-Context": "site=north"}
    for path in (f"/v1/models/{JOBS}:predict", f"/v2/models/{JOBS}/infer"):
        body = b64(FILES["image/png"])
        if path.endswith("infer"):
            tensor = {"name": "pixels", "datatype": "BYTES", "shape": [1], "data": [body["instances"][0]["b64"]]}
            body = {"inputs": [tensor]}
        answer = control.client.post(path, json=body, headers=headers)
        assert answer.status_code == 202, answer.text
        job = finished(control, answer.headers["Location"])
        assert (job["status"], job["deployment"], job["version"], job["client_id"]) == ("succeeded", JOBS, 1, "study-7")
        assert job["result"]["scores"] == pytest.approx(expected, abs=1e-5)
        logged = control.prediction(job["prediction_id"])
        assert (logged["client_id"], logged["context"], logged["lane"]) == ("study-7", {"site": "north"}, "job")


def test_past_the_deadline_v1_answers_202_and_v2_504_with_the_job(product: Product, control: Control) -> None:
    picture = b64(FILES["image/png"])
    tensor = {"name": "pixels", "datatype": "BYTES", "shape": [1], "data": [picture["instances"][0]["b64"]]}
    headers = {"X-Deadline-Ms": "4000"}
    with worker_paused(product):
        with ThreadPoolExecutor(2) as pool:
            calls = [
                pool.submit(
                    httpx.post, f"{product.base_url}{path}", json=body, headers=sent, timeout=30, trust_env=False
                )
                for path, body in (
                    (f"/v1/models/{JOBS}:predict", picture),
                    (f"/v2/models/{JOBS}/infer", {"inputs": [tensor]}),
                )
                for sent in [{**headers, "Authorization": f"Bearer {control.key}"}]
            ]
            v1, v2 = (call.result() for call in calls)
        assert v1.status_code == 202, v1.text
        assert v1.json()["status"] == "queued"
        assert (v2.status_code, v2.json()["code"], v2.json()["retryable"]) == (504, "deadline_exceeded", True)
        assert v1.json()["job"] == v1.headers["Location"]
        assert v2.json()["job"] == v2.headers["Location"]
    for answer in (v1, v2):
        assert finished(control, answer.headers["Location"])["status"] == "succeeded"


# Ids, context, routing


def test_a_callers_id_and_context_are_echoed_and_logged(control: Control) -> None:
    headers = {"X-Client-Id": "order-1", "X-Context": "country=de, channel=app", "X-Request-Id": "trace-1"}
    answer = control.client.post(PREDICT, json=BODY, headers=headers)
    assert (answer.headers["X-Client-Id"], answer.headers["X-Request-Id"]) == ("order-1", "trace-1")
    logged = control.prediction(answer.headers["X-Prediction-Id"])
    assert (logged["client_id"], logged["context"]) == ("order-1", {"country": "de", "channel": "app"})
    assert (logged["source"], logged["pinned"]) == ("live", False)
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    v2 = control.client.post(f"/v2/models/{TABLE}/infer", json={"id": "order-2", "inputs": [tensor]})
    assert v2.json()["id"] == "order-2"
    assert control.prediction(v2.headers["X-Prediction-Id"])["client_id"] == "order-2"


def test_a_sticky_key_meets_one_version_on_every_protocol(control: Control) -> None:
    tensor = {"name": "features", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    seen: Counter[str] = Counter()
    for number in range(24):
        headers = {"X-Sticky-Key": f"customer-{number}", "X-Amzn-SageMaker-Target-Model": TABLE}
        answers = [
            control.client.post(PREDICT, json=BODY, headers=headers),
            control.client.post(f"/v2/models/{TABLE}/infer", json={"inputs": [tensor]}, headers=headers),
            control.client.post("/invocations", json=BODY, headers=headers),
        ]
        versions = {answer.headers["X-Model-Version"] for answer in answers}
        assert len(versions) == 1
        seen.update(versions)
    # One in eight million draws leaves a version out.
    assert set(seen) == {"1", "2"}


def test_a_pin_needs_its_scope_and_is_logged(product: Product, control: Control) -> None:
    pins = (f"/v1/models/{TABLE}/versions/2:predict", f"/v1/models/{TABLE}/labels/canary:predict")
    for path in pins:
        answer = control.client.post(path, json=BODY)
        assert answer.headers["X-Model-Version"] == "2"
        logged = control.prediction(answer.headers["X-Prediction-Id"])
        assert (logged["pinned"], logged["version"]) == (True, 2)
    with product.http(control.issued(scopes=["predict"])) as client:
        for path in pins:
            answer = client.post(path, json=BODY)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert client.post(PREDICT, json=BODY).status_code == 200


def test_a_test_keys_calls_are_marked_and_left_out_of_figures(product: Product, control: Control) -> None:
    def counted() -> int:
        # By version: refused calls, which earlier tests made, are added up for a second before they are counted.
        versions = control.got(f"/api/deployments/{TABLE}/metrics/", since="1h")["versions"]
        return sum(version["calls"] for version in versions)

    key = control.issued(test=True, scopes=["predict"])
    assert key.startswith("sb_test_")
    with product.http(key) as client:
        tried = client.post(PREDICT, json=BODY)
    assert tried.status_code == 200
    assert control.prediction(tried.headers["X-Prediction-Id"])["source"] == "test"
    # A live call that is logged after it is counted; by then the test's would be, too.
    before = counted()
    live = control.client.post(PREDICT, json=BODY)
    assert control.prediction(live.headers["X-Prediction-Id"])["counted"] is True
    assert counted() == before + 1


def test_a_revoked_key_is_refused_within_5_s(product: Product, control: Control) -> None:
    made = control.client.post("/api/keys/", json={"label": "short-lived", "scopes": ["predict"]}).json()
    with product.http(made["key"]) as client:
        wait_for(lambda: client.post(PREDICT, json=BODY).status_code == 200, 10, "the key works")
        assert control.client.delete(f"/api/keys/{made['id']}/").status_code == 204
        revoked_at = time.monotonic()
        wait_for(lambda: client.post(PREDICT, json=BODY).status_code == 401, 5, "the key is refused")
        assert time.monotonic() - revoked_at <= 5
        # On every process: connections are spread over them.
        for _ in range(8):
            with product.http(made["key"]) as other:
                assert other.post(PREDICT, json=BODY).status_code == 401


# Metrics


def calls_in(text: str) -> float:
    """Answered calls of the table's deployment, by the counter and by the histogram, which agree."""
    pattern = rf'^(\w+){{([^}}]*deployment="{TABLE}"[^}}]*)}} (\S+)$'
    counter = histogram = 0.0
    for name, labels, value in re.findall(pattern, text, re.MULTILINE):
        if name == "signalbox_calls_total" and 'code="ok"' in labels:
            counter += float(value)
        elif name.endswith("_seconds_count") and "compute" not in name:
            histogram += float(value)
    assert counter == histogram, text
    return counter


def test_metrics_add_up_over_processes_also_after_a_kill(product: Product, control: Control) -> None:
    def scraped() -> float:
        answer = control.client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        return calls_in(answer.text)

    def call_many(_: int) -> None:
        with product.http(control.key) as client:
            for _ in range(10):
                assert client.post(PREDICT, json=BODY).status_code == 200

    before = scraped()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call_many, range(8)))
    assert scraped() == before + 80
    with psycopg.connect(product.settings["DATABASE_URL"], autocommit=True) as database:
        query = "SELECT pid FROM dataplane_process WHERE heartbeat_at > now() - interval '3 seconds'"
        pids = {row[0] for row in database.execute(query).fetchall()}
        killed = next(iter(pids))
        os.kill(killed, signal.SIGKILL)

        def replaced() -> bool:
            return bool({row[0] for row in database.execute(query).fetchall()} - pids)

        wait_for(replaced, 60, "a new process", every_s=0.2)
    with product.http(control.key) as client:
        wait_for(lambda: _answers(client), 30, "the new process answers")
        text = client.get("/metrics").text
    assert calls_in(text) >= before + 80


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get(f"/v1/models/{TABLE}").status_code == 200
    except httpx.TransportError:
        return False


def test_metrics_need_a_key_that_may_read(product: Product, control: Control) -> None:
    with product.http(control.issued(scopes=["predict"])) as client:
        assert client.get("/metrics").status_code == 403
    with product.http("sb_nobody") as client:
        assert client.get("/metrics").status_code == 401
    with product.http() as client:
        # On this machine itself nobody else listens; behind a proxy somebody might.
        assert client.get("/metrics").status_code == 200
        assert client.get("/metrics", headers={"X-Forwarded-For": "203.0.113.9"}).status_code == 401
