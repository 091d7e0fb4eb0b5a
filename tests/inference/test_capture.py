"""What of a prediction is written down, and what never is."""

from typing import Any

import msgspec
import numpy as np
import pytest

from inference.capture import FEATURE_CELLS, TOO_LARGE, fill, hashed, keeps_payload
from inference.contracts import (
    Activation,
    CapturePolicy,
    Column,
    Datatype,
    Signature,
    Source,
    SpoolRecord,
    Task,
    TensorSpec,
    VersionRoute,
)

pytestmark = pytest.mark.unit

SALT = "00ff" * 8
KEEP = CapturePolicy(hash_salt=SALT)
NOTHING = CapturePolicy(payload_share=0.0, hash_salt=SALT)


def version(*columns: Column, datatype: Datatype = Datatype.FP32, **fields: Any) -> VersionRoute:
    fields = {"task": Task.TABULAR_CLASSIFICATION, "labels": ("no", "yes"), **fields}
    return VersionRoute(
        id=f"v-{len(columns)}",
        model="m",
        number=1,
        artifact_sha256="0",
        artifact_bytes=0,
        signature=Signature(
            inputs=(TensorSpec(name="x", datatype=datatype, shape=(-1, max(len(columns), 2))),),
            outputs=(TensorSpec(name="p", datatype=Datatype.FP32, shape=(-1, 2)),),
        ),
        columns=columns,
        **fields,
    )


def filled(route: VersionRoute, policy: CapturePolicy, x: Any, p: Any = ((0.25, 0.75),)) -> SpoolRecord:
    record = SpoolRecord(id="01a20280-0720-72bd-a07f-ded2b42612bf", at=0.0, source=Source.LIVE)
    fill(record, route, policy, {"x": np.asarray(x)}, {"p": np.asarray(p, np.float32)})
    return record


def test_named_columns_scores_and_payload_are_kept() -> None:
    record = filled(version(Column(name="a"), Column(name="b")), KEEP, [[1.0, 2.0], [3.0, 4.0]], [[0, 1], [1, 0]])
    assert record.inputs == record.features == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    assert record.outputs == {"p": [[0.0, 1.0], [1.0, 0.0]]}
    assert record.scores == {"no": [0.0, 1.0], "yes": [1.0, 0.0]}


def test_a_share_of_nothing_keeps_features_and_scores_alone() -> None:
    record = filled(version(Column(name="a"), Column(name="b")), NOTHING, [[1.0, 2.0]])
    assert (record.inputs, record.outputs) == (None, None)
    assert record.features == {"a": [1.0], "b": [2.0]}
    assert record.scores == {"no": [0.25], "yes": [0.75]}


def test_hashed_and_dropped_text_is_nowhere_in_the_record() -> None:
    route = version(
        Column(name="open"), Column(name="card", keep="hash"), Column(name="name", keep="drop"), datatype=Datatype.BYTES
    )
    record = filled(route, KEEP, np.array([["shop", "4111-1111", "Ada"]], object))
    written = msgspec.json.encode(record)
    assert b"4111" not in written
    assert b"Ada" not in written
    stand_in = hashed("4111-1111", SALT)
    assert record.inputs == {"open": ["shop"], "card": [stand_in]}
    assert record.features == {"open": ["shop"], "card": [stand_in], "name": [hashed("Ada", SALT)]}


def test_numbers_of_a_dropped_column_are_counted_but_not_kept() -> None:
    record = filled(version(Column(name="a"), Column(name="b", keep="drop")), KEEP, [[1.0, 2.0]])
    assert record.inputs == {"a": [1.0]}
    assert record.features == {"a": [1.0], "b": [2.0]}


def test_a_hash_depends_on_the_salt() -> None:
    assert hashed("x", "00") != hashed("x", "01")


def test_missing_values_are_written_as_null() -> None:
    record = filled(version(Column(name="a"), Column(name="b", nullable=True)), KEEP, [[1.0, float("nan")]])
    assert b'"features":{"a":[1.0],"b":[null]}' in msgspec.json.encode(record)


def test_text_that_postgresql_refuses_is_mended() -> None:
    record = filled(version(Column(name="a"), Column(name="b")), KEEP, np.array([[b"a\0b", b"\xff"]], object))
    assert record.inputs == {"a": ["a\ufffdb"], "b": ["\ufffd"]}


def test_columns_without_names_count_by_position() -> None:
    record = filled(version(), KEEP, [[1.0, 2.0]])
    assert record.features == {"x[0]": [1.0], "x[1]": [2.0]}
    assert record.inputs == {"x": [[1.0, 2.0]]}


def test_a_picture_tensor_is_no_feature_and_is_not_kept() -> None:
    route = version(task=Task.IMAGE_CLASSIFICATION)
    record = filled(route, KEEP, np.zeros((1, 1, 4, 4), np.float32))
    assert (record.inputs, record.features, record.outputs) == (None, {}, None)
    assert record.scores == {"no": [0.25], "yes": [0.75]}


def test_the_activation_is_in_the_scores_and_not_in_the_outputs() -> None:
    route = version(Column(name="a"), Column(name="b"), activation=Activation.SOFTMAX)
    record = filled(route, KEEP, [[1.0, 2.0]], [[0.0, 0.0]])
    assert record.scores == {"no": [0.5], "yes": [0.5]}
    assert record.outputs == {"p": [[0.0, 0.0]]}


def test_a_large_call_keeps_no_payload_and_counts_evenly_spaced_rows() -> None:
    rows = FEATURE_CELLS
    record = filled(version(), KEEP, np.zeros((rows, 2), np.float32), np.zeros((rows, 2), np.float32))
    assert (record.inputs, record.warnings) == (None, [TOO_LARGE])
    assert record.features is not None
    assert [len(values) for values in record.features.values()] == [rows // 2] * 2


def test_the_kept_share_is_met_and_decided_by_the_id() -> None:
    policy = CapturePolicy(payload_share=0.25)
    kept = [keeps_payload(f"{n * 7919:032x}", policy) for n in range(10_000)]
    assert keeps_payload(f"{7919:032x}", policy) == kept[1]
    everything = [keeps_payload(f"{n:032x}", policy) for n in range(0, 0x1000000, 4096)]
    assert sum(everything) == len(everything) // 4
