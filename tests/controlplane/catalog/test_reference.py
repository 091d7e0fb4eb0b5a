"""Reference sets are read through, and refused with the line or the name that is wrong."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from controlplane.catalog.reference import read_reference
from controlplane.errors import DomainError
from inference.errors import InferenceError
from inference.runtime import reference
from inference.runtime.digest import Digest, unpack
from inference.runtime.reference import ReferenceRequest, ReferenceSummary, read_in_sandbox
from inference.runtime.sandbox import Limits, Sandbox

pytestmark = pytest.mark.unit


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def read(content: bytes, **options: Any) -> ReferenceSummary:
        path = tmp_path / "reference"
        path.write_bytes(content)
        return read_reference(path, **options).summary

    return read


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def arrays(**values: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **values)
    return buffer.getvalue()


def test_a_csv_file_with_a_target_is_summed_up(read: Any) -> None:
    summary = read(b"amount,age,target\n1.5,30,0\n-2e3,31,1\n", columns=["amount", "age"], numeric=True)
    assert summary == ReferenceSummary("csv", ("amount", "age"), 2, True)


def test_a_byte_order_mark_and_windows_lines_are_fine(read: Any) -> None:
    assert read(b"\xef\xbb\xbfa,b\r\n1,2\r\n3,4\n", columns=["a", "b"], numeric=True).rows == 2


def test_columns_may_stand_in_any_order(read: Any) -> None:
    assert read(b"b,a\n1,2\n", columns=["a", "b"]).names == ("b", "a")


def test_a_nullable_column_may_miss_values(read: Any) -> None:
    assert read(b"a,b\n1,\n,2\n", columns=["a", "b"], numeric=True, nullable=["a", "b"]).rows == 2


@pytest.mark.parametrize(
    ("content", "sentence", "line"),
    [
        (b"", "The file is empty", None),
        (b"a,b\n", "header but no rows", None),
        (b"1,2\n3,4\n", "must be a header: a, b", 1),
        (b"a,a\n1,2\n", "there twice: a", 1),
        (b"a\n1\n", "Missing columns: b", 1),
        (b"a,b,c\n1,2,3\n", "Unknown columns: c", 1),
        (b"a,\n1,2\n", "no name", 1),
        (b"target\n1\n", "beside the target", 1),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16", 1),
        ("a,b\n1,2\n1,é\n".encode("latin-1"), "Line 3 is not UTF-8", 3),
        (b"a;b\n1;2\n", "semicolons", 1),
        (b"a\tb\n1\t2\n", "tabs", 1),
        (b'a,b\n"1,5",2\n', "use a point, not a comma", 2),
        (b"a,b\n1,2\n1,x\n", "Line 3, column “b”: “x” is not a finite number", 3),
        (b"a,b\n1,inf\n", "is not a finite number", 2),
        (b"a,b\n1,\n", "the column is not nullable", 2),
        (b"a,b\n1,2\n3\n", "Line 3 has 1 fields, the header has 2", 3),
        (b'a,b\n1,2\n1,"3\n4,5\n', "not CSV", None),
        (b"a,b\n1,2\n1,\x00\n", "Line 3 has a NUL byte", 3),
        (b"a,b\n1," + b"9" * 70_000 + b"\n", "Line 2 has a field of more than 65536", 2),
        (b"\x1f\x8b\x08\x00", "compressed", None),
        (b"PK\x03\x04 nonsense", "damaged", None),
        (b"PAR1 nonsense", "Parquet file is damaged", None),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_line(
    read: Any, content: bytes, sentence: str, line: int | None
) -> None:
    with pytest.raises(DomainError) as caught:
        read(content, columns=["a", "b"], numeric=True)
    assert caught.value.code == "bad_reference"
    assert sentence in caught.value.message
    location = caught.value.errors[0]["loc"]
    assert location[0] == "reference"
    if line is not None:
        assert location[1] == line


def test_a_field_of_ten_megabytes_is_refused_without_reading_on(read: Any) -> None:
    with pytest.raises(DomainError, match="more than 65536 characters, or a quote is not closed"):
        read(b'a,b\n1,"' + b"x" * 10_000_000, columns=["a", "b"])


def test_an_npz_file_is_summed_up_from_its_headers(read: Any) -> None:
    summary = read(arrays(x=np.zeros((5, 3), np.float32), target=np.arange(5)))
    assert summary == ReferenceSummary("npz", ("x",), 5, True)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (arrays(x=np.zeros((5, 3)), y=np.zeros(4)), "different numbers of rows"),
        (arrays(x=np.array([{}], dtype=object)), "Python objects"),
        (arrays(x=np.float32(1)), "no rows"),
        (arrays(x=np.zeros((0, 3))), "0 rows"),
        (zipped(**{"x.npy": b"nonsense"}), "not an array"),
        (zipped(**{"readme.txt": b"hello"}), "neither arrays"),
    ],
)
def test_an_archive_that_does_not_fit_is_refused(read: Any, content: bytes, sentence: str) -> None:
    with pytest.raises(DomainError, match=sentence) as caught:
        read(content)
    assert caught.value.code == "bad_reference"


def test_a_zip_bomb_is_refused_by_its_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "MOST_UNPACKED_BYTES", 1000)
    with pytest.raises(InferenceError, match="too many bytes"):
        reference.summarise(io.BytesIO(zipped(**{"x.npy": b"\x00" * 2000})), ReferenceRequest())


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("hoard", "needs more than 256 MB of memory"),
        ("sleep", "could not be read within 1 seconds"),
        ("segfault", "made its reader crash"),
        ("echo", "made its reader say nonsense"),
    ],
)
def test_a_file_that_its_reader_does_not_survive_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, sentence: str
) -> None:
    probes = "tests.inference.runtime.sandbox_probes"
    monkeypatch.setattr(reference, "FUNCTION", f"{probes}:{function}")
    path = tmp_path / "reference"
    path.write_bytes(b"PAR1")
    limits = Limits(memory_bytes=256 * 1024**2, cpu_s=20, wall_s=1 if function == "sleep" else 20)
    with (
        Sandbox(preload=(probes,), package="tests.inference.runtime") as sandbox,
        pytest.raises(InferenceError, match=sentence) as caught,
    ):
        read_in_sandbox(sandbox, path, ReferenceRequest(), limits)
    assert caught.value.code == "bad_reference"


def test_a_file_is_never_read_in_this_process(read: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_here(*_: object) -> None:
        raise AssertionError("read in the process that asked")

    for name in ("summarise", "_csv", "_parquet", "_zip"):
        monkeypatch.setattr(reference, name, read_here)
    assert read(b"a\n1\n").rows == 1


def test_a_parquet_file_is_summed_up_and_its_types_checked(read: Any) -> None:
    def parquet(**columns: list[Any]) -> bytes:
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), sink)
        return sink.getvalue()

    summary = read(parquet(a=[1, 2], b=[0.5, 1.5], target=["x", "y"]), columns=["a", "b"], numeric=True)
    assert summary == ReferenceSummary("parquet", ("a", "b"), 2, True)
    with pytest.raises(DomainError, match="numbers are expected"):
        read(parquet(a=["x"], b=[1.0]), columns=["a", "b"], numeric=True)
    with pytest.raises(DomainError, match="Missing columns: b"):
        read(parquet(a=[1]), columns=["a", "b"])


def test_pictures_come_as_a_zip_with_labels(read: Any) -> None:
    summary = read(zipped(**{"one.png": b"1", "two.dcm": b"2", "labels.csv": b"file,label\none.png,ok\n"}))
    assert summary == ReferenceSummary("pictures", (), 2, True)
    with pytest.raises(DomainError, match=r"labels\.csv, line 2"):
        read(zipped(**{"one.png": b"1", "labels.csv": b"file,label\nthree.png,ok\n"}))
    with pytest.raises(DomainError, match="header file,label"):
        read(zipped(**{"one.png": b"1", "labels.csv": b"name,class\none.png,ok\n"}))


def test_a_header_of_a_million_columns_is_refused_at_once(read: Any) -> None:
    with pytest.raises(DomainError, match="at most 10000"):
        read(b",".join(b"c%d" % n for n in range(400_000)) + b"\n1\n")


def test_a_cell_of_very_many_digits_is_read_in_no_time(read: Any) -> None:
    with pytest.raises(DomainError, match="not a finite number"):
        read(b"a,b\n" + b"1" * 60_000 + b"x,2\n", columns=["a", "b"], numeric=True)


def digested(tmp_path: Path, content: bytes, **options: Any) -> dict[str, Digest]:
    path = tmp_path / "reference"
    path.write_bytes(content)
    return unpack(read_reference(path, **options).digests)


def test_columns_are_digested_for_drift_as_they_are_accepted(tmp_path: Path) -> None:
    table = b"amount,shop,target\n1.5,a,0\n2.5,b,1\n,a,1\nNaN,a,0\n"
    found = digested(tmp_path, table)
    assert found.keys() == {"amount", "shop"}
    assert (found["amount"].n, found["amount"].missing, found["amount"].total) == (2, 2, 4.0)
    assert found["amount"].values().tolist() == [1.5, 2.5]
    assert found["shop"].categories == {"a": 3, "b": 1}
    assert digested(tmp_path, table, texts=True)["amount"].categories == {"1.5": 1, "2.5": 1, "": 1, "NaN": 1}


def test_arrays_are_digested_under_the_names_of_the_log(tmp_path: Path) -> None:
    table = np.arange(12.0).reshape(6, 2)
    assert digested(tmp_path, arrays(x=table, target=np.zeros(6))).keys() == {"x[0]", "x[1]"}
    named = digested(tmp_path, arrays(x=table), named=["amount", "age"])
    assert named["age"].values().tolist() == [1, 3, 5, 7, 9, 11]


def test_pictures_are_digested_by_what_can_be_said_of_them(tmp_path: Path) -> None:
    def png(level: int) -> bytes:
        sink = io.BytesIO()
        Image.fromarray(np.full((20, 40), level, np.uint8)).save(sink, "PNG")
        return sink.getvalue()

    found = digested(tmp_path, zipped(**{"a.png": png(10), "b.png": png(30), "broken.png": b"no picture"}))
    assert found["brightness"].values().tolist() == [10.0, 30.0]
    assert found["size in pixels"].values().tolist() == [800.0, 800.0]
    assert found["aspect ratio"].values().tolist() == [2.0, 2.0]
