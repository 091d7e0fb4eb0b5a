"""A long body is read in another way than a short one, with the same end: the same call, or the same refusal.

Spaces make a body long, so each document here is read in both ways.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inference.contracts import VersionRoute
from inference.errors import InferenceError
from inference.server.protocols import Call, sagemaker, v1, v2
from inference.server.protocols.body import count_colons, may_hold_booleans
from tests.inference.signatures import JSON, deployment_of, spec, version_of

pytestmark = pytest.mark.unit

Decode = Callable[..., Call]
SPACES = b" " * 2000
# Rows of three cells, fewer and more than are added up to see whether all are finite.
FEW, MANY = 2, 90
# Datatypes with what their other cells are.
TYPES = {"FP16": "0.5", "FP32": "0.5", "FP64": "0.5", "INT64": "3", "BOOL": "true", "BYTES": '"t"'}
CELLS = (
    *("0", "-0", "-0.0", "7", "0.1", "1E5", "1e-46", "5e-324", "65504", "65519.9", "65520", "9007199254740993"),
    *("9223372036854775807", "9223372036854775808", "18446744073709551615", "18446744073709551616", "1" + "0" * 400),
    *("3.4028234663852886e38", "3.4028235677973366e38", "1e39", "-1e39", "1.7e308", "1e309", "-1e309", "1e999", "3.0"),
    *("true", "false", "null", "NaN", "Infinity", "-Infinity", "nul", "tru", "01", "1.", ".5", "+1", "1_0", "0x1"),
    *('"1"', '"1.5"', '""', '"true"', '"a:b"', '"\\u0000"', '"\\ud800"', '"\\\\u0000"', '"é"', '"\\""', '"', "'1'"),
    *("[]", "[1]", "[1, 2]", "[true]", "[[1]]", "{}", '{"b64": ""}', '{"a": 1, "a": 2}', '{"a:": true}', "1, 2", ""),
    *("1]", "]", "}", "1e", "\\u0031", "\0", "\x0b1", "// 1", "[" * 2000),
)


def outcome(decode: Decode, body: bytes, version: VersionRoute) -> Any:
    try:
        call = decode(body, dict(JSON), deployment_of(version, max_rows=100), version)
    except InferenceError as error:
        return error.code, error.message, error.errors
    inputs = {name: (array.dtype, array.shape, array.tolist()) for name, array in call.inputs.items()}
    # Texts, so that NaN is equal to itself and -0.0 is not 0.0.
    return repr((inputs, call.rows, call.client_id, call.style))


def long_ones(body: bytes) -> Iterator[bytes]:
    """The body with spaces behind it, and where that is outside of its texts, with spaces before its last text."""
    yield body + SPACES
    for mark in (b'"data"', b'"instances"', b'"inputs"'):
        if body.count(mark) == 1:
            yield body.replace(mark, SPACES + mark)


def assert_read_alike(decode: Decode, body: bytes, version: VersionRoute) -> None:
    short = outcome(decode, body, version)
    for long in long_ones(body):
        told = outcome(decode, long, version)
        # The places of what is no JSON are counted in bytes, spaces included.
        assert told[0] == "bad_json" == short[0] if short[0] == "bad_json" else told == short, (body[:300], told, short)


def flat(cell: str, rows: int, at: int, filler: str) -> str:
    cells = [filler] * (3 * rows)
    cells[at] = cell
    return ",".join(cells)


def nested(cell: str, rows: int, at: int, filler: str) -> str:
    lines = [[filler] * 3 for _ in range(rows)]
    lines[at][1] = cell
    return ",".join(f"[{','.join(line)}]" for line in lines)


def v2_body(data: str, rows: int, datatype: str = "FP32") -> bytes:
    head = f'"name":"x","shape":[{rows},3],"datatype":"{datatype}"'
    return f'{{"inputs":[{{{head},"data":[{data}]}}]}}'.encode()


@pytest.mark.parametrize("datatype", TYPES)
@pytest.mark.parametrize("rows", [FEW, MANY])
def test_every_kind_of_cell_is_read_alike(datatype: str, rows: int) -> None:
    options: dict[str, Any] = {"columns": ("a", "b", "c")}
    versions = [
        version_of(spec("x", datatype, -1, 3)),
        version_of(spec("x", datatype, -1, 3), **options, nullable=("b",)),
        version_of(spec("x", datatype, -1, 3), **options, accepts_non_finite=True),
    ]
    for version in versions:
        for cell in CELLS:
            assert_read_alike(
                v2.decode, v2_body(flat(cell, rows, 3 * rows - 2, TYPES[datatype]), rows, datatype), version
            )
            table = nested(cell, rows, rows - 1, TYPES[datatype])
            assert_read_alike(v1.decode, f'{{"instances":[{table}]}}'.encode(), version)
            if rows == FEW:
                assert_read_alike(v2.decode, v2_body(table, rows, datatype), version)
                assert_read_alike(sagemaker.decode, f"[{table}]".encode(), version)


TENSOR = '{"name":"x","shape":[2,3],"datatype":"FP32","data":[1,2,3,4,5,6]}'
ODD = "1,true,3,4,false,6"
ODD_V2 = (
    f'{{"inputs":[{TENSOR}]}}',
    f'\ufeff{{"inputs":[{TENSOR}]}}',
    f'{{"inputs":[{TENSOR}]}} {{}}',
    f'{{"inputs":[{TENSOR}],"inputs":[{TENSOR}]}}',
    f'{{"inputs":[{TENSOR[:-1]},"data":[1,2,3,4,5,6]}}]}}',
    f'{{"inputs":[{TENSOR[:-1]},"dat\\u0061":[1,2,3,4,5,6]}}]}}',
    f'{{"inputs":[{TENSOR[:-1]},"extra":{{"a":1,"a":2}}}}]}}',
    f'{{"inputs":[{TENSOR[:-1]},"extra":":"}}]}}',
    f'{{"inputs":[{TENSOR}],"id":"a: \\"b\\": true"}}',
    f'{{"inputs":[{TENSOR}],"id":"a","id":"b"}}',
    f'{{"id":"\\u0000","inputs":[{TENSOR}]}}',
    f'{{"id":"\\\\u0000","inputs":[{TENSOR}]}}',
    f'{{"id":"\\ud800","inputs":[{TENSOR}]}}',
    f'{{"id":"tr\\u0075e","inputs":[{TENSOR}]}}',
    f'{{"id":true,"inputs":[{TENSOR}]}}',
    f'{{"inputs":[{TENSOR}],"parameters":{{"binary_data_output":true}}}}',
    f'{{"parameters":{{"binary_data_output":false}},"inputs":[{TENSOR}]}}',
    f'{{"inputs":[{TENSOR}],"outputs":[{{"name":"y"}}]}}',
    f'{{"inputs":[{TENSOR},{TENSOR}]}}',
    f'{{"inputs":[{TENSOR.replace("1,2,3,4,5,6", ODD)}],"id":"after"}}',
    f'{{"inputs":[{{"data":[{ODD}],"name":"x","shape":[2,3],"datatype":"FP32"}}]}}',
    '{"inputs":[{"data":[1,2,3,4,5,6],"datatype":"FP32","name":"x","shape":[2,3]}]}',
    f'{{"inputs":[{{"data":[1,2,3,4,5,6],"datatype":"FP32","name":"x","shape":[{ODD}]}}]}}',
    f'{{"inputs":[{TENSOR.replace("[2,3]", "[2,true]")}]}}',
    f'{{"inputs":[{TENSOR.replace("FP32", "FP64")}]}}',
    f'{{"inputs":[{TENSOR.replace("[2,3]", "[2.0,3]")}]}}',
    f'{{"inputs":[{TENSOR.replace("6]", "6,7]")}]}}',
    f'{{"inputs":[{TENSOR}],"unknown":null}}',
    '{"inputs":true}',
    '{"inputs":[]}',
    "[1,2,3]",
    "true",
    '"text: "',
    "",
)
ODD_V1 = (
    '{"instances":[[1,2,3]],"instances":[[4,5,6]]}',
    '\ufeff{"instances":[[1,2,3]]}',
    '{"instances":[[1,2,3]]}]',
    '{"signature_name":"a:b","instances":[[1,2,3]]}',
    '{"instances":[[1,2,3]],"signature_name":"true"}',
    '{"instances":[[1,true,3]],"signature_name":"s"}',
    '{"instances":[[1,2,3],"abc"]}',
    '{"instances":["abc","def"]}',
    '{"instances":[{"a":1,"b":2,"c":3},{"a":1,"b":2,"c":3}]}',
    '{"instances":[{"a":1,"b":2,"c":3},[1,2,3]]}',
    '{"instances":[[1,2,3],{"a":1,"b":true,"c":3}]}',
    '{"instances":[{"a":1,"b":2,"c":true},{"a":1,"b":2,"c":3}]}',
    '{"instances":[{"a":1,"b":2,"c":3,"c":4}]}',
    '{"instances":[[1,2,3],[1,2]]}',
    '{"instances":[[1,2,3],4]}',
    '{"inputs":[[1,2,3],[4,true,6]]}',
    '{"inputs":{"a":[1],"b":[2],"c":[true]}}',
    '{"instances":[[[1],[2],[3]]]}',
    '{"instances":[1,2,3]}',
)


def test_odd_documents_are_read_alike() -> None:
    for version in (version_of(), version_of(columns=("a", "b", "c"))):
        for document in ODD_V2:
            assert_read_alike(v2.decode, document.encode(), version)
        for document in (*ODD_V1, *ODD_V2):
            assert_read_alike(v1.decode, document.encode(), version)
            assert_read_alike(sagemaker.decode, document.encode(), version)


def test_booleans_and_colons_are_found_wherever_they_stand() -> None:
    def told(document: Any, **options: Any) -> list[tuple[int, bool]]:
        body = json.dumps(document, **options).encode()
        return [(count_colons(long), may_hold_booleans(long)) for long in (SPACES + body, body + SPACES)]

    assert told({"a": [1, 2.5e-7, None]}) == [(1, False)] * 2
    assert told([1, [2]]) == [(0, False)] * 2
    assert told({"a:": "::", "b": {"c": "'s r"}}) == [(6, False)] * 2
    for held in (True, False, [1, True], {"a": False}):
        for document in (held, [held], {"a": held}, {"a": held, "b": "c"}, ["r", held, "s"]):
            assert [booleans for _, booleans in told(document)] == [True] * 2
