"""A packed record says, once it is spelled out, what the filled record says; or it is not packed."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from inference import capture
from inference.contracts import (
    Activation,
    CapturePolicy,
    Column,
    Signature,
    Source,
    SpoolLine,
    SpoolRecord,
    Task,
    TensorSpec,
    VersionRoute,
)
from inference.contracts import Datatype as D
from inference.packing import Packer, spell_out, spelled
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


READ = msgspec.json.Decoder(SpoolRecord)


def both(packer: Packer, route: VersionRoute, given: SpoolRecord, row: Any, outputs: Any, **policy: Any) -> Any:
    """(the packed record as it is read back and spelled out, or None; the filled record as it is read back)."""
    split = with_fields(deployment(route), capture=CapturePolicy(hash_salt="ab" * 8, **policy))
    packed, filled = msgspec.structs.replace(given, rows=len(row)), msgspec.structs.replace(given, rows=len(row))
    capture.fill(filled, route, split.capture, {"x": row}, outputs)
    wanted = READ.decode(msgspec.json.encode(filled))
    if not packer.pack(packed, split, route, {"x": row}, outputs):
        assert packed.packed is None
        return None, wanted
    read = READ.decode(msgspec.json.encode(packed))
    assert read.packed is not None
    return msgspec.structs.replace(read, packed=None, **spelled(read.packed)), wanted


def answer(rows: int) -> dict[str, Any]:
    random = np.random.default_rng(rows)
    return {
        "label": random.integers(0, 2, rows),
        "probabilities": random.random((rows, 2), dtype=np.float32),
    }


@pytest.mark.parametrize(
    "fields",
    [{}, {"columns": ()}, {"columns": (), "labels": ()}, {"labels": ()}, {"task": Task.TENSOR}],
    ids=["named columns", "no names", "no names and labels", "no labels", "tensor"],
)
@pytest.mark.parametrize("share", [1.0, 0.0])
@pytest.mark.parametrize("rows", [1, 2, 64])
def test_a_packed_call_says_what_a_filled_record_says(fields: dict[str, Any], share: float, rows: int) -> None:
    packer, route = Packer(), version(**fields)
    for given in (
        record(),
        record(id="01900000-0000-7000-8000-0000000000ff", compute_ms=0.0, client_id="c", rows=rows),
    ):
        table = np.random.default_rng(1).normal(size=(rows, 3)).astype(np.float32)
        packed, filled = both(packer, route, given, table, answer(rows), payload_share=share)
        assert packed == filled
        assert (packed.inputs is None) == (share == 0.0)


def test_missing_values_are_null_on_either_way() -> None:
    packer = Packer()
    route = version(columns=tuple(Column(name=name, nullable=True) for name in NAMES))
    holes = np.array([[np.nan, 1.0, np.nan]], dtype=np.float32)
    unsure = {**ANSWER, "probabilities": np.array([[0.1, np.nan]], dtype=np.float32)}
    for row, told in ((holes, ANSWER), (ROW, ANSWER), (np.vstack((ROW, holes)), answer(2)), (ROW, unsure)):
        packed, filled = both(packer, route, record(), row, told)
        assert packed == filled


@pytest.mark.parametrize(
    "fields",
    [
        {"columns": tuple(Column(name=name, keep="drop") for name in NAMES)},
        {"columns": tuple(Column(name=name, keep="hash") for name in NAMES)},
        {"activation": Activation.SOFTMAX},
    ],
    ids=["dropped", "hashed", "softmax"],
)
def test_what_is_not_the_models_own_numbers_is_never_packed(fields: dict[str, Any]) -> None:
    packer, route = Packer(), version(**fields)
    assert [both(packer, route, record(), ROW, ANSWER)[0] for _ in range(3)] == [None] * 3


def test_texts_and_pictures_are_never_packed() -> None:
    packer, route = Packer(), version()
    assert both(packer, route, record(), np.array([["a", "b", "c"]], dtype=object), ANSWER)[0] is None
    packer = Packer()
    assert both(packer, route, record(), ROW, {**ANSWER, "label": np.array(["yes"], dtype=object)})[0] is None


@pytest.mark.parametrize("task", [Task.TENSOR, Task.IMAGE_CLASSIFICATION])
@pytest.mark.parametrize("rows", [1, 3])
def test_tensors_of_pictures_are_packed_and_are_no_features(task: Task, rows: int) -> None:
    signature = version().signature
    pixels = TensorSpec(name="x", datatype=D.FP32, shape=(-1, 1, 2, 3))
    route = version(columns=(), task=task, signature=with_fields(signature, inputs=(pixels,)))
    picture = np.random.default_rng(1).random((rows, 1, 2, 3), dtype=np.float32)
    packed, filled = both(Packer(), route, record(), picture, answer(rows))
    assert packed == filled
    assert packed.features == {}
    assert (packed.inputs is None) == (task is Task.IMAGE_CLASSIFICATION)


def test_shapes_that_change_and_calls_that_are_large_are_filled() -> None:
    packer, route = Packer(), version(columns=())
    assert both(packer, route, record(), ROW, ANSWER)[0] is not None
    assert both(packer, route, record(), np.ones((1, 4), np.float32), ANSWER)[0] is None
    wider = {**ANSWER, "probabilities": np.ones((1, 3), np.float32)}
    assert both(packer, route, record(), ROW, wider)[0] is None
    many = 1 + capture.PAYLOAD_CELLS // 3
    assert both(packer, route, record(), np.ones((many, 3), np.float32), answer(many))[0] is None
    assert both(packer, route, record(), ROW, ANSWER)[0] is not None


def test_a_first_call_that_is_large_keeps_no_other_from_being_packed() -> None:
    packer, route = Packer(), version()
    many = 1 + capture.PAYLOAD_CELLS // 3
    assert both(packer, route, record(), np.ones((many, 3), np.float32), answer(many))[0] is None
    assert both(packer, route, record(), ROW, ANSWER)[0] is not None


def test_a_version_that_changes_is_packed_by_its_new_names() -> None:
    packer = Packer()
    both(packer, version(), record(), ROW, ANSWER)
    packed, filled = both(packer, version(columns=tuple(Column(name=name) for name in "abc")), record(), ROW, ANSWER)
    assert packed == filled
    assert set(packed.features) == {"a", "b", "c"}


def test_the_ingester_reads_of_a_packed_line_what_it_reads_of_a_filled_one() -> None:
    packer, route = Packer(), version()
    split = with_fields(deployment(route))
    packed, filled = record(idempotency_key="order-7"), record(idempotency_key="order-7")
    assert packer.pack(packed, split, route, {"x": ROW}, ANSWER)
    capture.fill(filled, route, split.capture, {"x": ROW}, ANSWER)
    line, other = (msgspec.json.decode(msgspec.json.encode(each), type=SpoolLine) for each in (packed, filled))
    [part] = spell_out([line])
    assert part is not None
    assert (part.block.columns, part.block.features.tolist()) == ([*NAMES], ROW.tolist())
    assert (part.block.labels, part.block.scores.tolist()) == (["ok", "fraud"], [[0.25, 0.75]])
    for name in ("inputs", "outputs", "features", "scores"):
        assert msgspec.json.decode(getattr(line, name)) == msgspec.json.decode(getattr(other, name))
    assert len(msgspec.json.encode(packed)) < len(msgspec.json.encode(filled))


@pytest.mark.parametrize("damage", [{"input": b"123"}, {"outputs": []}, {"outputs": [b"1", b"2"]}])
def test_a_damaged_line_is_no_record(damage: dict[str, Any]) -> None:
    packer, route, given = Packer(), version(), record()
    assert packer.pack(given, with_fields(deployment(route)), route, {"x": ROW}, ANSWER)
    assert given.packed is not None
    with pytest.raises(msgspec.ValidationError):
        spelled(msgspec.structs.replace(given.packed, **damage))


@pytest.mark.parametrize(
    "damage",
    [
        b'[["x","|O8",[3]],[["label","<i8",[]]],["a","b","c"],true,[],0,true]',
        b'[["x","<f16",[3]],[["label","<i8",[]]],["a","b","c"],true,[],0,true]',
        b'[["x","<f4",[-3]],[["label","<i8",[]]],[],true,[],0,true]',
        b'[["x","<f4",[3]],[],["a","b","c"],true,[],0,true]',
        b'[["x","<f4",[3]],[["label","<i8",[]]],["a","b"],true,[],0,true]',
        b'[["x","<f4",[3]],[["label","<i8",[]]],["a","b","c"],true,["yes","no"],0,true]',
        b'{"x": 1}',
    ],
)
def test_a_damaged_layout_spoils_no_other_line(damage: bytes) -> None:
    packer, route, bad, good = Packer(), version(), record(), record()
    for given in (bad, good):
        assert packer.pack(given, with_fields(deployment(route)), route, {"x": ROW}, ANSWER)
    assert bad.packed is not None
    bad.packed.layout = msgspec.Raw(damage)
    lines = [msgspec.json.decode(msgspec.json.encode(each), type=SpoolLine) for each in (bad, good, bad)]
    assert [part is None for part in spell_out(lines)] == [True, False, True]


def test_the_spool_reads_packed_lines(tmp_path: Path) -> None:
    packer, route, given = Packer(), version(), record()
    assert packer.pack(given, with_fields(deployment(route)), route, {"x": ROW}, ANSWER)
    spool = SpoolWriter(tmp_path)
    spool.append(given)
    spool.append(record(id="second"))
    spool.close()
    [first, second] = [each for _, each in SpoolReader(tmp_path).records()]
    assert (first.id, second.id) == (record().id, "second")
    assert first.features == dict(zip(NAMES, ([0.1], [-2.5e-7], [3.0]), strict=True))


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.int64, np.int32, np.bool_, np.uint8, np.int16, np.float16]
)
@pytest.mark.parametrize("rows", [1, 3])
def test_every_dtype_is_spelled_out_as_it_is_filled(dtype: type, rows: int) -> None:
    table: npt.NDArray[Any] = (np.arange(rows * 3) / 10).reshape(rows, 3).astype(dtype)
    outputs = {"label": np.ones(rows, dtype), "probabilities": np.ones((rows, 2), np.float32)}
    packed, filled = both(Packer(), version(), record(), table, outputs)
    assert packed == filled
    assert [*map(type, packed.outputs["label"])] == [*map(type, outputs["label"].tolist())]


def test_a_number_is_kept_as_it_was_sent_and_a_score_as_it_was_judged() -> None:
    near = {**ANSWER, "probabilities": np.array([[0.3, 0.7]], dtype=np.float32)}
    packed, filled = both(Packer(), version(), record(), ROW, near)
    assert packed == filled
    assert packed.inputs["amount"] == [0.1]
    assert packed.outputs["probabilities"] == [[0.3, 0.7]]
    # A float32 of 0.7 lies below a threshold of 0.7, and so the model decided.
    assert packed.scores["fraud"] == [float(np.float32(0.7))]


def test_calls_that_are_spelled_out_together_are_each_ones_own() -> None:
    packer = Packer()
    random = np.random.default_rng(5)
    lines: list[SpoolLine] = []
    filled: list[SpoolRecord] = []
    routes = [version(), version(columns=(), labels=()), version(task=Task.TENSOR)]
    for number, rows in enumerate([1, 1, 3, 1, 2, 1, 1, 64, 1]):
        route = routes[number % 3]
        split = with_fields(deployment(route), capture=CapturePolicy(payload_share=float(number % 2)))
        table, told = random.normal(size=(rows, 3)).astype(np.float32), answer(rows)
        packed, other = record(rows=rows), record(rows=rows)
        assert packer.pack(packed, split, route, {"x": table}, told)
        capture.fill(other, route, split.capture, {"x": table}, told)
        lines.append(msgspec.json.decode(msgspec.json.encode(packed), type=SpoolLine))
        filled.append(READ.decode(msgspec.json.encode(other)))
    assert lines[3].packed is not None
    lines[3].packed.input = lines[3].packed.input[:-1]
    # A line that was never packed, in between.
    lines.insert(5, msgspec.json.decode(msgspec.json.encode(filled[4]), type=SpoolLine))
    filled.insert(5, filled[4])
    parts = spell_out(lines)
    assert [place for place, part in enumerate(parts) if part is None] == [3, 5]
    for line, part, other in zip(lines, parts, filled, strict=True):
        if part is None:
            continue
        for name in ("inputs", "outputs", "features", "scores"):
            raw = bytes(getattr(line, name))
            assert (msgspec.json.decode(raw) if raw else None) == getattr(other, name)
        assert other.features is not None
        wanted = np.array([*other.features.values()]).T
        assert part.block.columns == [*other.features]
        assert np.array_equal(part.block.features[part.start : part.stop], wanted.astype(np.float32))
