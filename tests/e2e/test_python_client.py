"""Both clients against the running product: predictions, feedback, jobs, limits and refusals."""

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.routing import uuid7
from signalbox_client import (
    Conflict,
    ConnectionFailed,
    Deadline,
    DeadlineExceeded,
    Feedback,
    Forbidden,
    InvalidInput,
    JobFailed,
    NotAuthenticated,
    NotFound,
    RateLimited,
    Retrying,
    TensorSpec,
)
from tests.client.driving import made
from tests.e2e.control import Control, control_of
from tests.inference import toys
from tests.inference.runtime.picture_files import GREY_8, chest, dicom, encoded
from tests.services import Product, free_port

pytestmark = pytest.mark.timeout(400)

TABLE, LINE, HALF, TEXT, SEVERAL, LONG = "py-table", "py-line", "py-half", "py-text", "py-several", "py-long"
PICTURES, JOBS = "py-pictures", "py-jobs"
LABELS = ("dark", "grey", "bright")
ROW = {"a": 1.0, "b": 2.0, "c": 3.0}


@pytest.fixture(scope="module")
def control(product: Product) -> Iterator[Control]:
    """A classifier in two versions split 50/50, toys of every kind of tensor, pictures in two lanes."""
    with control_of(product) as control:
        for scale in (1.0, 2.0):
            control.upload(TABLE, toys.classifier(scale=scale), columns="a,b,c", labels="no,yes")
        control.upload(LINE, toys.linear_regression(), columns="a,b,c", task="tabular-regression")
        control.upload(HALF, toys.half_precision(), task="tensor")
        control.upload(TEXT, toys.text(), task="tensor")
        control.upload(SEVERAL, toys.several(), task="tensor")
        control.upload(LONG, toys.dynamic(), task="tensor")
        model = toys.picture_classifier(tail="Softmax")
        preprocessor, labels = json.dumps(GREY_8), ",".join(LABELS)
        control.upload(PICTURES, model, preprocessor=preprocessor, labels=labels, task="image-classification")
        for name, number in (
            (TABLE, 1),
            (TABLE, 2),
            (LINE, 1),
            (HALF, 1),
            (TEXT, 1),
            (SEVERAL, 1),
            (LONG, 1),
            (PICTURES, 1),
        ):
            version = control.validated(name, number)
            assert version["state"] == "ready", (name, version["reason"])
        control.deploy(TABLE, shares={"1": 50, "2": 50})
        control.deploy(LINE, HALF, TEXT, SEVERAL, LONG, PICTURES)
        control.deploy(JOBS, model=PICTURES, lane="job")
        labelled = control.client.put(f"/api/deployments/{TABLE}/labels/", json={"labels": {"canary": 2}})
        assert labelled.status_code == 200, labelled.text
        yield control


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def signalbox(product: Product, control: Control, kind: str) -> Iterator[Any]:
    """The client, with a key of every scope."""
    with made(kind, product.base_url, control.key, deadline_s=60.0) as client:
        yield client


def classified(rows: np.ndarray, scale: float) -> np.ndarray:
    """What the table's version of this scale answers."""
    raw = rows @ (toys.CLASS_WEIGHTS * np.float32(scale))
    raised = np.exp(raw - raw.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


# Tensors


def test_arrays_in_arrays_out_with_everything_that_is_told(signalbox: Any, control: Control) -> None:
    rows = np.array([[1, 2, 3], [-1, 0, 2]], np.float32)
    answer = signalbox.predict(
        TABLE, rows, sticky_key="card-1", client_id="order-1", request_id="trace-1", context={"country": "de"}
    )
    assert answer.output == pytest.approx(classified(rows, float(answer.version)), abs=1e-6)
    assert answer["probabilities"] is answer.output
    assert (answer.client_id, answer.request_id, answer.split_revision) == ("order-1", "trace-1", 1)
    logged = control.prediction(answer.prediction_id)
    assert (logged["version"], logged["client_id"], logged["context"]) == (answer.version, "order-1", {"country": "de"})
    assert (logged["pinned"], answer.rate_limit, answer.warnings) == (False, None, ())


def test_lists_float64_and_other_layouts_go_too(signalbox: Any) -> None:
    wanted = [[2.5], [-2.5]]
    for rows in ([[1, 2, 3], [-1, 0, 2]], np.array([[1.0, 2, 3], [-1, 0, 2]]), np.array([[1, -1], [2, 0], [3, 2]]).T):
        assert signalbox.predict(LINE, rows).output.tolist() == wanted


def test_half_precision_is_sent_and_answered_as_it_is(signalbox: Any) -> None:
    rows = np.array([[0.1, 2, 65000]], np.float16)
    answer = signalbox.predict(HALF, rows / np.float16(2))
    assert answer.output.dtype == np.float16
    assert answer.output.tolist() == rows.tolist()


def test_texts_go_there_and_back(signalbox: Any) -> None:
    answer = signalbox.predict(TEXT, {"words": np.array(["one", "größer", ""])})
    assert answer["numbers"].tolist() == [1, -1, -1]
    assert answer["echo"].tolist() == ["one", "größer", ""]
    assert signalbox.predict(TEXT, [b"two"])["numbers"].tolist() == [2]


def test_several_inputs_and_outputs_go_by_name(signalbox: Any) -> None:
    inputs = {"left": np.array([[0.5, 5]], np.float32), "right": np.array([[1, 2]])}
    answer = signalbox.predict(SEVERAL, inputs)
    assert (answer["sum"].tolist(), answer["larger"].tolist()) == ([[1.5, 7]], [[False, True]])
    assert list(signalbox.predict(SEVERAL, inputs, outputs=["larger"]).outputs) == ["larger"]
    with pytest.raises(InvalidInput, match="left, right"):
        signalbox.predict(SEVERAL, [[1, 2]])


def test_a_large_batch_goes_in_pieces(signalbox: Any) -> None:
    rows = np.random.default_rng(0).standard_normal((4096, 1024)).astype(np.float32)
    # 16 MB, many times what a socket takes at once; and the connection is as good as new afterwards.
    assert signalbox.predict(LONG, rows).output == pytest.approx(rows.sum(axis=1, keepdims=True), abs=1e-2)
    assert signalbox.predict(LONG, [[1, 2]]).output.tolist() == [[3]]


def test_metadata_says_what_a_deployment_takes(signalbox: Any) -> None:
    told = signalbox.metadata(TABLE)
    assert (told.name, told.versions) == (TABLE, (1, 2))
    assert told.inputs == (TensorSpec("features", "FP32", (-1, 3)),)
    assert signalbox.metadata(TABLE, 2).outputs == (TensorSpec("probabilities", "FP32", (-1, 2)),)


def test_the_servers_words_about_bad_input_are_passed_on(signalbox: Any) -> None:
    with pytest.raises(InvalidInput) as shape:
        signalbox.predict(TABLE, np.ones((1, 4), np.float32))
    assert (shape.value.status, shape.value.code, shape.value.retryable) == (422, "wrong_shape", False)
    assert shape.value.request_id
    with pytest.raises(InvalidInput, match="did you mean") as name:
        signalbox.predict(TABLE, {"feature": np.ones((1, 3), np.float32)})
    assert name.value.code == "unknown_feature"
    with pytest.raises(InvalidInput) as cell:
        signalbox.predict(TABLE, [[1, float("nan"), 3]])
    assert cell.value.code == "non_finite"
    assert cell.value.errors[0].loc[0] == "inputs"


# Rows and pictures


def test_rows_are_answered_in_their_order(signalbox: Any, control: Control) -> None:
    answer = signalbox.predict_rows(LINE, [ROW, {"a": 0, "b": 0, "c": 0}])
    assert list(answer) == [[2.5], [0.5]]
    assert len(answer) == 2
    assert signalbox.predict_rows(LINE, ROW)[0] == [2.5]
    assert signalbox.predict_rows(LINE, np.array([[1, 2, 3]])).predictions == [[2.5]]
    assert control.prediction(answer.prediction_id)["rows"] == 2
    with pytest.raises(InvalidInput) as misspelt:
        signalbox.predict_rows(LINE, {"a": 1, "b": 2, "d": 3})
    assert misspelt.value.code == "unknown_feature"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    pixels = chest()
    contents = {"png": encoded(pixels), "jpeg": encoded(pixels, "JPEG", quality=95), "dcm": dicom(pixels)}
    for name, content in contents.items():
        (folder / f"chest.{name}").write_bytes(content)
    return {name: folder / f"chest.{name}" for name in contents}


@pytest.mark.parametrize("name", ["png", "jpeg", "dcm"])
def test_pictures_are_answered_with_scores(signalbox: Any, files: dict[str, Path], name: str) -> None:
    by_path = signalbox.predict_picture(PICTURES, files[name])
    assert tuple(by_path.scores) == LABELS
    assert by_path.label == max(LABELS, key=by_path.scores.__getitem__)
    assert sum(by_path.scores.values()) == pytest.approx(1, abs=1e-5)
    with files[name].open("rb") as opened:
        assert signalbox.predict_picture(PICTURES, opened).scores == by_path.scores
    content = files[name].read_bytes()
    assert signalbox.predict_picture(JOBS, content, deadline=60).scores == pytest.approx(by_path.scores, abs=1e-6)
    assert signalbox.predict_rows(PICTURES, [content, content])[1]["scores"] == pytest.approx(by_path.scores)


def test_what_is_no_picture_is_refused_by_the_server(signalbox: Any) -> None:
    with pytest.raises(InvalidInput) as refused:
        signalbox.predict_picture(PICTURES, b"%PDF-1.7" + b"\0" * 40)
    assert (refused.value.status, refused.value.code) == (415, "not_an_image")


# Which version answers


def test_a_sticky_key_meets_one_version_in_tensors_and_rows(signalbox: Any) -> None:
    seen: Counter[int] = Counter()
    for number in range(24):
        options = {"sticky_key": f"customer-{number}"}
        versions = {
            signalbox.predict(TABLE, [[1, 2, 3]], **options).version,
            signalbox.predict_rows(TABLE, ROW, **options).version,
        }
        assert len(versions) == 1
        seen.update(versions)
    # One in eight million draws leaves a version out.
    assert set(seen) == {1, 2}


def test_versions_and_labels_can_be_pinned(signalbox: Any, product: Product, control: Control, kind: str) -> None:
    for options in ({"version": 2}, {"label": "canary"}):
        for answer in (signalbox.predict(TABLE, [[1, 2, 3]], **options), signalbox.predict_rows(TABLE, ROW, **options)):
            assert answer.version == 2
            assert control.prediction(answer.prediction_id)["pinned"] is True
    with pytest.raises(NotFound):
        signalbox.predict_rows(TABLE, ROW, label="nobody")
    with made(kind, product.base_url, control.issued(scopes=["predict"])) as plain, pytest.raises(Forbidden):
        plain.predict_rows(TABLE, ROW, version=2)


def test_a_retried_prediction_is_logged_as_a_retry(signalbox: Any, control: Control) -> None:
    key = f"again-{datetime.now(UTC).isoformat()}"
    first, second = (signalbox.predict_rows(LINE, ROW, idempotency_key=key) for _ in range(2))
    assert first.prediction_id != second.prediction_id
    assert control.prediction(second.prediction_id)["retry_of"] == first.prediction_id


# Who may


def test_a_key_that_is_none_is_refused(product: Product, control: Control, kind: str) -> None:
    with made(kind, product.base_url, "sb_nobody") as client:
        with pytest.raises(NotAuthenticated) as refused:
            client.predict(TABLE, [[1, 2, 3]])
        assert (refused.value.status, refused.value.code) == (401, "not_authenticated")
        assert "sb_nobody" not in str(refused.value)
        assert client.ready()
    with made(kind, product.base_url, control.key) as client:
        with pytest.raises(NotFound):
            client.predict_rows("there-is-none", ROW)
        with pytest.raises(NotFound):
            client.ready("there-is-none")
        assert client.ready(TABLE)


def test_deployments_are_listed_with_their_splits(signalbox: Any) -> None:
    found = {deployment.name: deployment for deployment in signalbox.deployments()}
    assert found[TABLE].shares == {1: 50.0, 2: 50.0}
    assert (found[TABLE].labels, found[TABLE].model, found[TABLE].retired) == ({"canary": 2}, TABLE, False)
    assert found[JOBS].lane == "job"


# Limits and lost connections


def test_the_keys_limit_is_told_and_its_retry_after_obeyed(product: Product, control: Control, kind: str) -> None:
    # One call every two seconds once the thirty are used up; asking whether the key works uses none.
    key = control.issued(scopes=["predict"], rate_per_minute=30)
    with made(kind, product.base_url, key) as client:
        told = client.predict_rows(LINE, ROW)
        assert (told.rate_limit.limit, told.rate_limit.remaining) == (30, 29)
        with pytest.raises(RateLimited) as limited:
            for _ in range(40):
                client.predict_rows(LINE, ROW, retries=0)
        assert (limited.value.status, limited.value.retryable) == (429, True)
        assert limited.value.retry_after is not None
        assert 1 <= limited.value.retry_after <= 2
        assert limited.value.rate_limit is not None
        assert limited.value.rate_limit.remaining == 0
        # Too short for what the server asks to wait: refused at once, instead of after waiting in vain.
        with pytest.raises(RateLimited):
            client.predict_rows(LINE, ROW, deadline=0.9)
        assert client.predict_rows(LINE, ROW).predictions == [[2.5]]


def test_a_connection_that_is_refused_is_tried_again_and_then_told(kind: str) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with made(kind, address, "sb_any", retrying=Retrying(base_s=0.001)) as client:
        with pytest.raises(ConnectionFailed) as failed:
            client.predict_rows(LINE, ROW)
        assert (failed.value.status, failed.value.sent, failed.value.retryable) == (0, False, True)
        assert address in str(failed.value)
        assert "sb_any" not in str(failed.value)
        assert not client.ready()


def test_connections_are_kept(signalbox: Any) -> None:
    signalbox.predict_rows(LINE, ROW)
    first = [repr(connection) for connection in pool_of(signalbox)]
    for _ in range(3):
        signalbox.predict_rows(LINE, ROW)
    (connection,) = pool_of(signalbox)
    assert len(first) == 1
    assert "Request Count: 4" in repr(connection) or "Request Count: 5" in repr(connection)


def pool_of(client: Any) -> list[Any]:
    connections: list[Any] = client._http._transport._pool.connections
    return connections


# What really happened


def test_feedback_by_either_id_alone_and_in_batches(signalbox: Any, control: Control, kind: str) -> None:
    order = f"feedback-{kind}"
    first = signalbox.predict_rows(TABLE, ROW, client_id=order)
    second = signalbox.predict(TABLE, [[1, 2, 3]])
    taken = signalbox.feedback(first.prediction_id, "yes", certainty=0.9, observed_at=datetime.now(UTC))
    assert taken.status in ("counted", "pending")
    assert taken.prediction_id == first.prediction_id
    for answer in (first, second):
        control.prediction(answer.prediction_id)
    by_client = signalbox.feedback(deployment=TABLE, client_id=order, truth="no")
    assert (by_client.status, by_client.prediction_id) == ("counted", first.prediction_id)
    assert signalbox.feedback(first.prediction_id, "no").status == "known"
    with pytest.raises(InvalidInput) as unknown:
        signalbox.feedback(second.prediction_id, "maybe")
    assert unknown.value.code == "unknown_label"
    report = signalbox.feedback_batch([Feedback("maybe", second.prediction_id), Feedback("yes", second.prediction_id)])
    assert (report.counted, report.pending) == (1, 0)
    assert [(row.index, row.status, row.code) for row in report.refused] == [(0, 422, "unknown_label")]
    told = control.got(f"/api/predictions/{first.prediction_id}/feedback/")["results"]
    assert [said["label"] for said in told] == ["no", "yes"]


def test_feedback_of_a_regression_is_a_number(signalbox: Any, control: Control) -> None:
    answer = signalbox.predict_rows(LINE, ROW)
    control.prediction(answer.prediction_id)
    assert signalbox.feedback(answer.prediction_id, np.float32(2.5)).status == "counted"
    with pytest.raises(TypeError, match="truth"):
        signalbox.feedback(answer.prediction_id, None)


# Jobs


def test_a_job_is_submitted_once_and_waited_for(signalbox: Any, files: dict[str, Path], kind: str) -> None:
    job = signalbox.submit_job(JOBS, picture=files["png"], client_id=f"study-{kind}", idempotency_key=f"job-{kind}")
    assert job.status in ("queued", "running", "succeeded")
    result = job.wait(90)
    assert (job.status, result.prediction_id, result.version) == ("succeeded", job.id, 1)
    expected = signalbox.predict_picture(PICTURES, files["png"]).scores
    assert result.scores == pytest.approx(expected, abs=1e-5)
    again = signalbox.submit_job(JOBS, picture=files["png"], client_id=f"study-{kind}", idempotency_key=f"job-{kind}")
    assert again.id == job.id
    assert again.wait().outputs == result.outputs
    with pytest.raises(Conflict):
        signalbox.submit_job(JOBS, picture=files["dcm"], idempotency_key=f"job-{kind}")
    with pytest.raises(Conflict):
        job.cancel()
    assert signalbox.job(job.id).state == job.state


def test_a_job_of_rows_or_arrays_is_answered_too(signalbox: Any) -> None:
    by_row = signalbox.submit_job(LINE, [ROW])
    by_name = signalbox.submit_job(LINE, inputs={"x": np.array([[1, 2, 3]], np.float32)}, version=1)
    assert by_row.wait(90).outputs == by_name.wait(90).outputs == {"y": [[2.5]]}
    with pytest.raises(TypeError, match="one of"):
        signalbox.submit_job(LINE)


def test_a_job_that_waits_can_be_cancelled_and_outlives_a_deadline(
    signalbox: Any, product: Product, files: dict[str, Path]
) -> None:
    pid = product.pid_of("worker")
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        waiting = signalbox.submit_job(JOBS, picture=files["png"])
        with pytest.raises(DeadlineExceeded) as late:
            waiting.wait(0.5)
        assert late.value.job_id == waiting.id
        assert waiting.cancel().status == "cancelled"
        with pytest.raises(JobFailed) as cancelled:
            waiting.wait(5)
        assert cancelled.value.code == "cancelled"
        # The deadline is shared: what is over for the one is over for the other.
        deadline = Deadline(4.0)
        with pytest.raises(DeadlineExceeded) as pending:
            signalbox.predict_picture(JOBS, files["png"], deadline=deadline)
        assert pending.value.job_id
    finally:
        os.kill(pid, signal.SIGCONT)
    assert tuple(signalbox.job(pending.value.job_id).wait(90).scores) == LABELS


def test_feedback_may_come_before_its_prediction_and_no_later_than_it_is_kept(signalbox: Any) -> None:
    assert signalbox.feedback(uuid7(), "yes").status == "pending"
    with pytest.raises(NotFound) as late:
        signalbox.feedback("0198a000-0000-7000-8000-00000000000a", "yes")
    assert late.value.code == "feedback_window_closed"


def test_observed_at_has_a_time_zone(signalbox: Any) -> None:
    with pytest.raises(ValueError, match="time zone"):
        signalbox.feedback(uuid7(), "yes", observed_at=datetime(2026, 1, 1))
    with pytest.raises(InvalidInput):
        signalbox.feedback(uuid7(), "yes", observed_at=datetime.now(UTC) + timedelta(days=2))


def test_threads_share_one_client(product: Product, control: Control) -> None:
    with made("sync", product.base_url, control.key) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: client.predict(LINE, [[number, 0, 0]]).output.item(), range(64)))
    assert answers == [number + 0.5 for number in range(64)]
