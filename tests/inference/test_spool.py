"""Nothing that was answered is lost, nothing torn is read."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inference.contracts import Source, SpoolRecord
from inference.errors import InferenceError
from inference.spool import SpoolReader, SpoolWriter

pytestmark = pytest.mark.unit


def record(name: str, **fields: object) -> SpoolRecord:
    return SpoolRecord(id=name, at=1.5, source=Source.LIVE, **fields)  # type: ignore[arg-type]  # of several types


def test_a_record_is_readable_the_moment_append_returns(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "spool")
    writer.append(record("a", context={"note": "line\nbreak"}))
    [file] = SpoolReader(tmp_path / "spool").files()
    chunk = file.read(0)
    assert [found.id for found in chunk.records] == ["a"]
    assert chunk.records[0].context == {"note": "line\nbreak"}
    assert not chunk.finished
    writer.close()


def test_the_folder_and_the_file_are_the_owners_alone(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path / "spool")
    [file] = SpoolReader(tmp_path / "spool").files()
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert file.path.stat().st_mode & 0o777 == 0o600
    writer.close()


def test_reading_goes_on_at_the_bookmark(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path)
    writer.append(record("a"))
    [file] = SpoolReader(tmp_path).files()
    bookmark = file.read(0).offset
    writer.append(record("b"))
    assert [found.id for found in file.read(bookmark).records] == ["b"]
    writer.close()


def test_small_steps_give_every_record_once(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path)
    for number in range(50):
        writer.append(record(f"r{number}", context={"pad": "x" * number}))
    writer.close()
    [file] = SpoolReader(tmp_path).files()
    ids: list[str] = []
    offset, finished = 0, False
    while not finished:
        chunk = file.read(offset, limit_bytes=64)
        ids += [found.id for found in chunk.records]
        offset, finished = chunk.offset, chunk.finished and chunk.offset == file.size_bytes()
    assert ids == [f"r{number}" for number in range(50)]


def test_a_torn_tail_is_left_alone_and_ends_with_its_writer(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path)
    writer.append(record("whole"))
    [file] = SpoolReader(tmp_path).files()
    with file.path.open("ab") as torn:
        torn.write(b'{"id": "torn')
    chunk = file.read(0)
    assert [found.id for found in chunk.records] == ["whole"]
    assert (len(chunk.lines), chunk.finished) == (1, False)
    writer.close()
    rest = file.read(chunk.offset)
    assert (rest.lines, rest.torn, rest.finished) == ([], b'{"id": "torn', True)


def test_a_broken_line_is_passed_over(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path)
    writer.append(record("a"))
    writer.close()
    [file] = SpoolReader(tmp_path).files()
    with file.path.open("ab") as damage:
        damage.write(b'\xff\xfe\n{"id": 5}\n')
    chunk = file.read(0)
    assert [found.id for found in chunk.records] == ["a"]
    assert (len(chunk.lines), chunk.finished) == (3, True)


def test_a_full_file_is_rotated_and_handed_to_the_reader(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, rotate_bytes=100)
    for number in range(4):
        writer.append(record(f"a-rather-long-name-to-fill-the-file-{number}"))
    files = SpoolReader(tmp_path).files()
    assert len(files) == 2
    assert all(file.read(0).finished for file in files)
    writer.append(record("last"))
    assert not SpoolReader(tmp_path).files()[-1].read(0).finished
    assert len(list(SpoolReader(tmp_path).records())) == 5
    writer.close()


def test_a_full_disk_refuses_and_leaves_no_part_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = SpoolWriter(tmp_path)
    writer.append(record("before"))
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:5]))
    with pytest.raises(InferenceError) as caught:
        writer.append(record("part"))
    assert caught.value.code == "storage_full"

    def refuse(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(InferenceError):
        writer.append(record("none"))
    monkeypatch.undo()
    writer.append(record("after"))
    assert [found.id for _, found in SpoolReader(tmp_path).records()] == ["before", "after"]
    writer.close()


def test_a_killed_writers_file_is_known_to_be_whole(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from inference.spool import *; from inference.contracts import *\n"
        "w = SpoolWriter(Path(sys.argv[1])); w.append(SpoolRecord(id='x', at=0, source=Source.LIVE))\n"
        "print('written', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"written\n"
        [file] = SpoolReader(tmp_path).files()
        assert not file.read(0).finished
        child.send_signal(signal.SIGKILL)
        child.wait()
    chunk = file.read(0)
    assert [found.id for found in chunk.records] == ["x"]
    assert chunk.finished
