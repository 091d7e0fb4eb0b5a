"""JSON values and buffers to tensors: every bad cell is named, every good one is exact."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from inference.contracts import Datatype
from inference.errors import TABLE, InferenceError
from inference.runtime.cells import explain
from inference.runtime.plans import NUMPY_DTYPES, Array, TensorPlan, plan_of
from inference.runtime.tensors import (
    dumps,
    from_buffer,
    from_flat,
    from_json,
    non_finite_warnings,
    rows_to_json,
    to_json,
)
from tests.inference.signatures import f32, refused, spec, version_of

pytestmark = pytest.mark.unit


def plan(datatype: str, *shape: int, **options: Any) -> TensorPlan:
    return plan_of(version_of(spec("x", datatype, *shape), **options)).inputs[0]


def convert(value: Any, tensor: TensorPlan) -> Array:
    return from_json(value, tensor, lambda path: ["cell", *path])


@pytest.mark.parametrize("datatype", [kind for kind in Datatype if NUMPY_DTYPES[kind].kind in "iu"])
def test_the_limits_of_every_integer_type_are_exact(datatype: Datatype) -> None:
    limits = np.iinfo(NUMPY_DTYPES[datatype])
    tensor = plan(datatype, -1)
    array = convert([limits.min, limits.max], tensor)
    assert array.dtype == NUMPY_DTYPES[datatype]
    assert array.tolist() == [limits.min, limits.max]
    for wrong in (limits.min - 1, limits.max + 1, float(2**70)):
        error = refused(partial(convert, [0, wrong], tensor), "out_of_range", 422)
        assert [located["loc"] for located in error.errors] == [["cell", 1]]


@pytest.mark.parametrize(("datatype", "largest"), [("FP16", 65504.0), ("FP32", 3.4028234663852886e38)])
def test_a_double_that_overflows_the_float_type_is_out_of_range(datatype: str, largest: float) -> None:
    tensor = plan(datatype, -1, 2)
    assert convert([[largest, -largest]], tensor).tolist() == [[largest, -largest]]
    error = refused(lambda: convert([[1.0, 2.0], [3.0, -largest * 1.1]], tensor), "out_of_range", 422)
    assert [located["loc"] for located in error.errors] == [["cell", 1, 1]]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_small_and_large_tables_round_as_numpy_does(datatype: str) -> None:
    tensor = plan(datatype, -1, 30)
    random = np.random.default_rng(11)
    for rows in (1, 100, 1000):
        given = random.standard_normal((rows, 30)) * 10.0 ** random.integers(-8, 4, (rows, 30))
        expected = given.astype(tensor.dtype)
        assert np.array_equal(convert(given.tolist(), tensor), expected)
        flat = from_flat(given.ravel().tolist(), (rows, 30), tensor, lambda path: [*path])
        assert np.array_equal(flat, expected)


def test_large_numbers_whose_sum_overflows_are_fine() -> None:
    assert convert([[1.7e308, 1.7e308]], plan("FP64", -1, 2)).tolist() == [[1.7e308, 1.7e308]]
    assert convert([[2**1000, 1.5]], plan("FP64", -1, 2)).tolist() == [[2.0**1000, 1.5]]
    refused(lambda: convert([[2**1024, 1.5]], plan("FP64", -1, 2)), "out_of_range", 422)


def test_minus_zero_and_subnormals_are_kept() -> None:
    array = convert([[-0.0, 1e-45]], plan("FP32", -1, 2))
    assert math.copysign(1, array[0, 0]) == -1
    assert array[0, 1] == f32(1e-45) != 0


def test_whole_numbers_sent_as_floats_are_integers() -> None:
    assert convert([3.0, 4, -5.0], plan("INT32", -1)).tolist() == [3, 4, -5]
    error = refused(lambda: convert([3.0, 4.5], plan("INT32", -1)), "wrong_type", 422)
    assert error.errors[0]["loc"] == ["cell", 1]


@pytest.mark.parametrize(
    ("datatype", "wrong"),
    [
        ("FP32", "1.5"),
        ("FP32", "1,5"),
        ("FP32", True),
        ("FP32", None),
        ("FP32", {"b64": "AAAA"}),
        ("INT64", "1"),
        ("INT64", False),
        ("INT64", None),
        ("BOOL", 1),
        ("BOOL", "true"),
        ("BYTES", 1),
        ("BYTES", None),
        ("BYTES", {"b64": "!"}),
    ],
)
def test_a_cell_of_the_wrong_type_is_named(datatype: str, wrong: Any) -> None:
    good: Any = {"BOOL": True, "BYTES": "a"}.get(datatype, 1)
    error = refused(lambda: convert([[good, good], [good, wrong]], plan(datatype, -1, 2)), "wrong_type", 422)
    assert [located["loc"] for located in error.errors] == [["cell", 1, 1]]


def test_every_bad_cell_is_named_and_no_more_than_twenty() -> None:
    tensor = plan("FP32", -1, 3, columns=("a", "b", "c"))
    error = refused(lambda: convert([["x", 1, None], [1, True, 1]], tensor), "wrong_type", 422)
    assert [located["loc"] for located in error.errors] == [["cell", 0, 0], ["cell", 0, 2], ["cell", 1, 1]]
    assert "column c" in error.errors[1]["msg"]
    error = refused(lambda: convert([["x"] * 3] * 100, tensor), "wrong_type", 422)
    assert len(error.errors) == 20


@pytest.mark.parametrize(
    "value",
    [
        [],
        [[]],
        [1, 2, 3],
        [[1, 2]],
        [[1, 2, 3], [1, 2]],
        [[1, 2, 3], 4],
        [[[1, 2, 3]]],
        [[1, 2, [3]]],
        5,
        "abc",
        {},
        {"a": 1},
        [{"a": 1}],
        None,
    ],
)
def test_a_wrong_shape_is_answered_with_the_expected_one(value: Any) -> None:
    error = refused(lambda: convert(value, plan("FP32", -1, 3)), "wrong_shape", 422)
    assert "[n, 3]" in error.message


def test_the_one_bad_cell_of_a_large_table_is_named() -> None:
    for shape in ((-1, 3), (-1, -1)):
        tensor = plan("FP32", *shape)
        table: list[list[Any]] = [[1.5, 2.5, 3.5] for _ in range(5000)]
        table[4321][1] = True
        error = refused(partial(convert, table, tensor), "wrong_type", 422)
        assert [located["loc"] for located in error.errors] == [["cell", 4321, 1]]
    flat: list[Any] = [7] * 5000
    flat[4999] = 7.5
    error = refused(lambda: from_flat(flat, (5000,), plan("INT8", -1), lambda path: [*path]), "wrong_type", 422)
    assert [located["loc"] for located in error.errors] == [[4999]]
    flat[4999] = 7.0
    assert (from_flat(flat, (5000,), plan("INT8", -1), lambda path: [*path]) == 7).all()
    texts: list[Any] = ["a"] * 5000
    texts[3] = {"b64": "YQ=="}
    assert (convert(texts, plan("BYTES", -1)) == "a").all()


def test_ragged_rows_of_free_width_are_a_wrong_shape() -> None:
    refused(lambda: convert([[1, 2], [1, 2, 3]], plan("FP32", -1, -1)), "wrong_shape", 422)
    refused(lambda: convert([["a", "b"], ["c"]], plan("BYTES", -1, -1)), "wrong_shape", 422)
    assert convert([[1, 2], [3, 4]], plan("FP32", -1, -1)).shape == (2, 2)


def test_nesting_without_end_is_too_deep() -> None:
    value: Any = 1.0
    for _ in range(70):
        value = [value]
    refused(lambda: convert(value, plan("FP32", -1, 1)), "too_deep", 400)


def test_a_column_of_single_numbers_may_be_bare() -> None:
    tensor = plan("FP32", -1, 1)
    assert convert([1, 2], tensor).tolist() == convert([[1], [2]], tensor).tolist() == [[1], [2]]
    refused(lambda: convert([1, [2]], tensor), "wrong_shape", 422)


def test_a_scalar_and_a_fixed_batch_are_served() -> None:
    assert convert(4, plan("FP32", batched=False)).shape == ()
    assert convert([[1, 2]], plan("FP32", 1, 2, batched=False)).shape == (1, 2)
    refused(lambda: convert([[1, 2]] * 2, plan("FP32", 1, 2, batched=False)), "wrong_shape", 422)


def test_null_and_nan_are_missing_only_in_nullable_columns() -> None:
    tensor = plan("FP32", -1, 2, columns=("a", "b"), nullable=("b",))
    array = convert([[1, None], [2, math.nan]], tensor)
    assert np.isnan(array).tolist() == [[False, True], [False, True]]
    refused(lambda: convert([[None, 1]], tensor), "wrong_type", 422)
    refused(lambda: convert([[math.nan, 1]], tensor), "non_finite", 400)
    refused(lambda: convert([[1, math.inf]], tensor), "non_finite", 400)


def test_a_model_that_accepts_them_gets_nan_and_infinities_but_no_overflow() -> None:
    tensor = plan("FP32", -1, 2, accepts_non_finite=True)
    array = convert([[math.nan, -math.inf]], tensor)
    assert np.isnan(array[0, 0])
    assert array[0, 1] == -np.inf
    refused(lambda: convert([[1e39, math.inf]], tensor), "out_of_range", 422)
    refused(lambda: convert([[None, 1.0]], tensor), "wrong_type", 422)


def test_texts_are_kept_and_bad_ones_refused() -> None:
    tensor = plan("BYTES", -1)
    assert convert(["é", "", {"b64": "w6k="}], tensor).tolist() == ["é", "", "é"]
    for wrong in ("a\0", "\ud800", {"b64": "AA=="}, {"b64": "/w=="}):
        error = refused(partial(convert, ["ok", wrong], tensor), "bad_text", 422)
        assert error.errors[0]["loc"] == ["cell", 1]


@pytest.mark.parametrize("datatype", [kind for kind in Datatype if kind is not Datatype.BYTES])
def test_a_buffer_is_the_array_it_was_made_from(datatype: Datatype) -> None:
    tensor = plan(datatype, -1, 2)
    given = np.array([[0, 1], [1, 0]]).astype(NUMPY_DTYPES[datatype])
    array = from_buffer(memoryview(given.tobytes()), (2, 2), tensor, lambda path: [*path])
    assert array.dtype == given.dtype
    assert not array.flags.writeable
    assert not array.flags.owndata
    assert (array == given).all()
    refused(
        lambda: from_buffer(memoryview(given.tobytes()[:-1]), (2, 2), tensor, lambda path: [*path]), "wrong_shape", 422
    )


def test_bad_values_in_a_buffer_are_found() -> None:
    tensor = plan("FP32", -1, 2)
    content = f32([[1, 2], [np.nan, 4]]).tobytes()
    error = refused(lambda: from_buffer(memoryview(content), (2, 2), tensor, lambda path: [*path]), "non_finite", 400)
    assert error.errors[0]["loc"] == [2]
    refused(lambda: from_buffer(memoryview(b"\2"), (1,), plan("BOOL", -1), lambda path: [*path]), "wrong_type", 422)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"\1\0\0\0a", "wrong_shape"),
        (b"\1\0\0\0a\1\0\0\0", "wrong_shape"),
        (b"\1\0\0\0a\xff\xff\xff\xffb", "wrong_shape"),
        (b"\1\0\0\0a\1\0\0\0b\0", "wrong_shape"),
        (b"\1\0\0\0a\1\0\0\0b\1\0\0\0c", "wrong_shape"),
        (b"\1\0\0\0a\1\0\0\0\xff", "bad_text"),
        (b"\1\0\0\0a\1\0\0\0\0", "bad_text"),
    ],
)
def test_broken_binary_texts_are_refused(content: bytes, code: str) -> None:
    tensor = plan("BYTES", -1)
    refused(lambda: from_buffer(memoryview(content), (2,), tensor, lambda path: [*path]), code, 422)


def test_a_flat_list_names_its_bad_cell_by_index() -> None:
    tensor = plan("FP32", -1, 2, columns=("a", "b"), nullable=("b",))
    assert np.isnan(from_flat([1, None, 2, None], (2, 2), tensor, lambda path: [*path])).sum() == 2
    error = refused(lambda: from_flat([1, None, None, 2], (2, 2), tensor, lambda path: [*path]), "wrong_type", 422)
    assert [located["loc"] for located in error.errors] == [[2]]


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
@pytest.mark.parametrize("rows", [1, 2, 150])
def test_floats_are_converted_and_refused_as_the_walk_over_them_does(datatype: str, rows: int) -> None:
    numbers: list[Any] = [0, -0.0, 7, 0.1, 1e-46, 5e-324, 65519.9, 65520, 2**53 + 1, 2**64, 10**400, 1e39, 1.7e308]
    others: list[Any] = [math.nan, math.inf, -math.inf, True, False, None, "", "1.5", "ab", [], [1], {}, {"b64": ""}]

    def told(read: Callable[[], Array]) -> Any:
        try:
            array = read()
        except InferenceError as error:
            return error.code, error.message, error.errors
        return array.dtype, array.shape, array.tobytes()

    def locate(path: tuple[int, ...]) -> list[str | int]:
        return [*path]

    options: dict[str, Any] = {"columns": ("a", "b")}
    for more in ({}, {"nullable": ("b",)}, {"accepts_non_finite": True}):
        tensor = plan(datatype, -1, 2, **options, **more)
        for cell in (*numbers, *others):
            for place in (0, 2 * rows - 1):
                cells: list[Any] = [1.5] * (2 * rows)
                cells[place] = cell
                table = [cells[start : start + 2] for start in range(0, 2 * rows, 2)]
                flat_truth = told(partial(explain, cells, tensor, locate, (rows, 2)))
                truth = told(partial(explain, table, tensor, locate))
                for booleans in {True, type(cell) is bool}:
                    flat = partial(from_flat, cells, (rows, 2), tensor, locate, booleans=booleans)
                    assert told(flat) == flat_truth, (cell, place, more)
                    nested = partial(from_json, table, tensor, locate, booleans=booleans)
                    assert told(nested) == truth, (cell, place, more)


def test_answers_hold_null_and_never_bare_nan() -> None:
    outputs = {"y": f32([[np.nan, np.inf, 0.1]]), "z": np.array([1])}
    assert dumps({name: to_json(array) for name, array in outputs.items()}) == b'{"y":[[null,null,0.1]],"z":[1]}'
    assert non_finite_warnings(outputs) == ["2 of 3 values of output y are not finite and are sent as null."]


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (f32(3), b"3.0"),
        (np.array(3, dtype=np.float16), b"3.0"),
        (f32([[1, 2], [3, 4]]).T, b"[[1.0,3.0],[2.0,4.0]]"),
        (np.zeros((0, 2), np.float32), b"[]"),
        (np.array([[True]]), b"[[true]]"),
        (np.array([2**64 - 1], np.uint64), b"[18446744073709551615]"),
        (np.array([["a", b"b"]], dtype=object), b'[["a","b"]]'),
    ],
)
def test_every_kind_of_array_is_written(array: Array, text: bytes) -> None:
    assert dumps(to_json(np.asarray(array))) == text


def test_rows_of_several_arrays_are_written_as_their_rows_alone_are() -> None:
    random = np.random.default_rng(5)
    wide = (random.standard_normal((3, 2, 4)) * 10.0 ** random.integers(-12, 20, (3, 2, 4))).astype(np.float32)
    wide[1, 0, 2:] = np.nan, -np.inf
    columns = {
        'a "%b" %': wide,
        "é": np.array([2**63 - 1, -1, 0]),
        "c": np.array([[True], [False], [True]]),
        "d": random.standard_normal((3, 5)).astype(np.float16),
        "e": np.asfortranarray(random.standard_normal((3, 2))),
        "f": np.array([2**64 - 1, 0, 1], np.uint64),
        "g": np.arange(12, dtype=np.int8).reshape(3, 2, 1, 2),
    }
    for others in ({}, {"t": np.array(["x,[", "]],[[", '"'], dtype=object)}, {"z": np.zeros((3, 2, 0), np.float32)}):
        given: dict[str, Array] = {**columns, **others}
        lines = [dict(zip(given, row, strict=True)) for row in zip(*map(to_json, given.values()), strict=True)]
        assert dumps(rows_to_json(given)) == dumps(lines)
    assert dumps(rows_to_json({})) == b"[]"


def test_random_trees_convert_or_are_refused_but_never_crash() -> None:
    random = np.random.default_rng(7)
    cells: list[Any] = [1, 1.5, -0.0, True, None, "a", "\0", {}, {"b64": ""}, [], 2**70, 1e300, math.nan, math.inf]

    def tree(depth: int) -> Any:
        if depth == 0 or random.random() < 0.15:
            return cells[random.integers(len(cells))]
        return [tree(depth - 1) for _ in range(random.integers(0, 4))]

    tensors = [
        plan(kind, *shape) for kind in ("FP32", "INT8", "BOOL", "BYTES") for shape in ((-1,), (-1, 2), (2, -1, 1))
    ]
    for _ in range(1500):
        value = tree(int(random.integers(1, 5)))
        for tensor in tensors:
            try:
                array = convert(value, tensor)
            except InferenceError as error:
                assert TABLE[error.code].status in (400, 422)
                assert error.errors
            else:
                assert array.ndim == len(tensor.shape)
                assert array.dtype == tensor.dtype
