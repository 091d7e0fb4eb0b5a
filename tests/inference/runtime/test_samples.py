"""The row that examples show: typical, real, and such as the API takes."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from inference.contracts import Signature
from inference.runtime.sample_calls import Sample
from inference.runtime.samples import SampleRequest, sample_in_sandbox, sample_of
from inference.runtime.sandbox import Sandbox
from tests.inference.signatures import spec

pytestmark = pytest.mark.unit
TABLE = SampleRequest(Signature(inputs=(spec("x", "FP32", -1, 2),), outputs=()), ("amount", "age"), frozenset({"age"}))
CSV = b"age,amount,target\n,1.5,0\n900,99,1\n41,2.5,0\n40,2.25,0\n39,2.0,0\n-7,0,0\n"


def sample(content: bytes, request: SampleRequest) -> Sample:
    return sample_of(io.BytesIO(content), request)


def saved(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_the_row_nearest_to_the_middle_is_taken(tmp_path: Path) -> None:
    assert sample(CSV, TABLE) == {"amount": [2.25], "age": [40.0]}
    path = tmp_path / "reference.csv"
    path.write_bytes(CSV)
    with Sandbox() as sandbox:
        assert sample_in_sandbox(sandbox, path, TABLE) == {"amount": [2.25], "age": [40.0]}


def test_a_row_with_a_missing_value_is_taken_where_there_is_no_other() -> None:
    assert sample(b"age,amount\n,1.5\n", TABLE) == {"amount": [1.5], "age": [None]}
    assert sample(b"age,amount\n1.5,\n", TABLE) == {}


def test_parquet_and_arrays_of_columns_read_alike() -> None:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"age": [40, 41, 42], "amount": [0.1, 0.2, 0.3]}), buffer)
    assert sample(buffer.getvalue(), TABLE) == {"amount": [0.2], "age": [41.0]}
    columns = saved(age=np.array([40, 41, 42]), amount=np.array([0.1, 0.2, 0.3], np.float32))
    assert sample(columns, TABLE) == {"amount": [0.2], "age": [41.0]}
    assert sample(saved(x=np.array([[0.1, 40], [0.2, 41], [0.3, 42]])), TABLE) == {"amount": [0.2], "age": [41.0]}


def test_inputs_without_named_cells_get_their_rows() -> None:
    inputs = (spec("a", "INT64", -1, 2, 2), spec("s", "BYTES", -1), spec("b", "BOOL", -1, 1))
    request = SampleRequest(Signature(inputs=inputs, outputs=()))
    content = saved(a=np.arange(4).reshape(1, 2, 2), s=np.array(["hi"]), b=np.array([[True]]))
    assert sample(content, request) == {"a": [[0, 1], [2, 3]], "s": ["hi"], "b": [True]}
    assert sample(content, SampleRequest(request.signature, golden=True)) == sample(content, request)
    bare = SampleRequest(Signature(inputs=(spec("x", "FP32", -1, 2),), outputs=()))
    assert sample(b"p,q,target\n1,2,0\n", bare) == {"x": [1.0, 2.0]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PAR1",
        b"PK\x03\x04",
        b"\xff\xfe",
        b"age\n1\n",
        b"age,amount\n",
        b"age,amount\n1,1e39\n",
        saved(x=np.ones(3)),
    ],
    ids=["empty", "parquet", "zip", "utf-16", "column", "no rows", "beyond", "shape"],
)
def test_a_file_that_gives_no_row_gives_no_sample(content: bytes) -> None:
    assert sample(content, TABLE) == {}


@pytest.mark.parametrize(("value", "datatype"), [("1.5", "INT64"), ("300", "UINT8"), ("-1", "UINT8"), ("2", "BOOL")])
def test_a_value_that_the_api_would_refuse_is_passed_over(value: str, datatype: str) -> None:
    request = SampleRequest(Signature(inputs=(spec("x", datatype, -1, 1),), outputs=()))
    assert sample(f"x\n{value}\n1\n".encode(), request) == {"x": [True if datatype == "BOOL" else 1]}
