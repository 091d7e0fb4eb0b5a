"""A line printed from a template says what the filled record says, or it is not printed."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from inference import capture
from inference.contracts import (
    Activation,
    CapturePolicy,
    Column,
    Lane,
    Signature,
    Source,
    SpoolRecord,
    Task,
    TensorSpec,
    VersionRoute,
)
from inference.contracts import Datatype as D
from inference.server.lines import Lines
from inference.spool import SpoolReader, SpoolWriter
from tests.inference.server.house import deployment, with_fields

pytestmark = pytest.mark.unit

NAMES = ("amount", "50% off", 'a "quoted" ü')
ROW = np.array([[0.1, -2.5e-7, 3.0]], dtype=np.float32)
ANSWER = {"label": np.array([1]), "probabilities": np.array([[0.25, 0.75]], dtype=np.float32)}


def version(**fields: Any) -> VersionRoute:
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype=D.FP32, shape=(-1, 3)),),
        outputs=(
            TensorSpec(name="label", datatype=D.INT64, shape=(-1,)),
            TensorSpec(name="probabilities", datatype=D.FP32, shape=(-1, 2)),
        ),
        score_output=1,
    )
    usual: dict[str, Any] = {
        "signature": signature,
        "task": Task.TABULAR_CLASSIFICATION,
        "labels": ("ok", "fraud"),
        "columns": tuple(Column(name=name) for name in NAMES),
    }
    return VersionRoute(id="v-100%", model="m", number=2, artifact_sha256="00", artifact_bytes=1, **{**usual, **fields})


def record(**fields: Any) -> SpoolRecord:
    usual: dict[str, Any] = {
        "id": "01900000-0000-7000-8000-000000000001",
        "at": 1_700_000_000.25,
        "source": Source.TEST,
        "deployment_id": "d-%s",
        "version_id": "v-100%",
        "version": 2,
        "key_id": "k%b",
        "routes_generation": 3,
        "revision": 4,
        "compute_ms": 0.125,
        "total_ms": 1.5,
    }
    return SpoolRecord(**{**usual, **fields})


def printed(lines: Lines, route: VersionRoute, given: SpoolRecord, row: Any, outputs: Any, **policy: Any) -> Any:
    """(the line as a record or None, the filled record as it is read back)."""
    split = with_fields(deployment(route), capture=CapturePolicy(hash_salt="ab" * 8, **policy))
    line = lines.line(given, split, route, {"x": row}, outputs)
    filled = msgspec.structs.replace(given)
    capture.fill(filled, route, split.capture, {"x": row}, outputs)
    read = msgspec.json.Decoder(SpoolRecord)
    return line if line is None else read.decode(line), read.decode(msgspec.json.encode(filled))


@pytest.mark.parametrize(
    "fields",
    [{}, {"columns": ()}, {"columns": (), "labels": ()}, {"labels": ()}, {"task": Task.TENSOR}],
    ids=["named columns", "no names", "no names and labels", "no labels", "tensor"],
)
@pytest.mark.parametrize("share", [1.0, 0.0])
def test_the_second_call_is_printed_and_says_what_a_filled_record_says(fields: dict[str, Any], share: float) -> None:
    lines, route = Lines(), version(**fields)
    assert printed(lines, route, record(), ROW, ANSWER, payload_share=share)[0] is None
    later = record(id="01900000-0000-7000-8000-0000000000ff", at=1_700_000_123.5, compute_ms=0.0, total_ms=17.25)
    other = {"label": np.array([0]), "probabilities": np.array([[0.1, np.nan]], dtype=np.float32)}
    line, filled = printed(lines, route, later, ROW * 7, other, payload_share=share)
    assert line == filled
    assert line is not None
    assert (line.inputs is None) == (share == 0.0)


def test_missing_values_are_null_on_either_way() -> None:
    lines = Lines()
    route = version(columns=tuple(Column(name=name, nullable=True) for name in NAMES))
    holes = np.array([[np.nan, 1.0, np.nan]], dtype=np.float32)
    assert printed(lines, route, record(), holes, ANSWER)[0] is None
    for row in (ROW, holes):
        line, filled = printed(lines, route, record(), row, ANSWER)
        assert line == filled
        assert line is not None


@pytest.mark.parametrize(
    "fields",
    [
        {"columns": tuple(Column(name=name, keep="drop") for name in NAMES)},
        {"columns": tuple(Column(name=name, keep="hash") for name in NAMES)},
        {"activation": Activation.SOFTMAX},
    ],
    ids=["dropped", "hashed", "softmax"],
)
def test_what_is_not_the_models_own_numbers_is_never_printed(fields: dict[str, Any]) -> None:
    lines, route = Lines(), version(**fields)
    assert [printed(lines, route, record(), ROW, ANSWER)[0] for _ in range(3)] == [None] * 3


@pytest.mark.parametrize(
    "fields",
    [
        {"client_id": "c"},
        {"idempotency_key": "i"},
        {"context": {"country": "de"}},
        {"warnings": ["w"]},
        {"lane": Lane.EXECUTOR},
        {"rows": 2},
    ],
)
def test_a_call_with_anything_of_its_own_is_not_printed(fields: dict[str, Any]) -> None:
    lines, route = Lines(), version()
    printed(lines, route, record(), ROW, ANSWER)
    assert printed(lines, route, record(), ROW, ANSWER)[0] is not None
    assert printed(lines, route, record(**fields), ROW, ANSWER)[0] is None


def test_shapes_that_change_are_not_printed() -> None:
    lines, route = Lines(), version(columns=())
    printed(lines, route, record(), ROW, ANSWER)
    assert printed(lines, route, record(), np.ones((1, 4), np.float32), ANSWER)[0] is None
    wider = {**ANSWER, "probabilities": np.ones((1, 3), np.float32)}
    assert printed(lines, route, record(), ROW, wider)[0] is None


def test_keys_versions_and_pins_have_lines_of_their_own() -> None:
    lines, route = Lines(), version()
    for fields in ({}, {"key_id": "other"}, {"routes_generation": 9}, {"pinned": True}):
        assert printed(lines, route, record(**fields), ROW, ANSWER)[0] is None
        line, filled = printed(lines, route, record(**fields), ROW, ANSWER)
        assert line == filled
    changed = version(columns=tuple(Column(name=name) for name in "abc"))
    assert printed(lines, changed, record(), ROW, ANSWER)[0] is None
    line, filled = printed(lines, changed, record(), ROW, ANSWER)
    assert line == filled


def test_the_spool_reads_printed_lines(tmp_path: Path) -> None:
    lines, route = Lines(), version()
    printed(lines, route, record(), ROW, ANSWER)
    line = lines.line(record(), with_fields(deployment(route)), route, {"x": ROW}, ANSWER)
    assert line is not None
    spool = SpoolWriter(tmp_path)
    spool.append_line(line)
    spool.append(record(id="second"))
    spool.close()
    assert [each.id for _, each in SpoolReader(tmp_path).records()] == [record().id, "second"]
