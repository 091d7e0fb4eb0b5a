"""The artifact store: written once, by hash, whole or not at all."""

import errno
import hashlib
import io
import os
import time
from pathlib import Path

import pytest

from controlplane.catalog import storage
from controlplane.catalog.storage import Draft, draft_from, draft_of, path_of, sweep_drafts
from controlplane.errors import DomainError
from tests.controlplane.catalog.uploads import Usage, files_below

pytestmark = pytest.mark.unit


def test_a_kept_file_lies_under_its_hash(store: Path) -> None:
    draft = Draft(most=100)
    draft.write(b"one ")
    draft.write(b"two")
    kept = draft.keep()
    digest = hashlib.sha256(b"one two").hexdigest()
    assert (kept.sha256, kept.size_bytes) == (digest, 7)
    assert path_of(digest) == store / digest[:2] / digest
    assert path_of(digest).read_bytes() == b"one two"
    assert path_of(digest).stat().st_mode & 0o777 == 0o640
    assert files_below(store) == [digest]


def test_the_same_bytes_twice_are_one_file_that_is_not_touched(store: Path) -> None:
    first = draft_from(io.BytesIO(b"bytes"), most=100).keep()
    inode = path_of(first.sha256).stat().st_ino
    assert draft_from(io.BytesIO(b"bytes"), most=100).keep() == first
    assert path_of(first.sha256).stat().st_ino == inode
    assert files_below(store) == [first.sha256]


def test_a_discarded_draft_leaves_nothing_and_a_kept_one_stays(store: Path) -> None:
    draft = Draft(most=100)
    draft.write(b"half of")
    draft.discard()
    draft.discard()
    assert files_below(store) == []
    kept = draft_from(io.BytesIO(b"whole"), most=100)
    name = kept.keep().sha256
    kept.discard()
    assert files_below(store) == [name]


def test_a_byte_over_the_cap_is_too_large_and_leaves_nothing(store: Path) -> None:
    with pytest.raises(DomainError) as caught:
        draft_from(io.BytesIO(b"x" * 101), most=100)
    assert caught.value.code == "too_large"
    assert files_below(store) == []
    assert draft_from(io.BytesIO(b"x" * 100), most=100).size_bytes == 100


def test_a_nearly_full_volume_is_refused_before_a_byte_is_written(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(10**12, 0, storage.HEADROOM_BYTES + 1000))
    Draft(most=10**9, expected=1000).discard()
    with pytest.raises(DomainError) as caught:
        Draft(most=10**9, expected=1001)
    assert caught.value.code == "storage_full"
    assert files_below(store) == []


def test_a_volume_that_fills_up_meanwhile_is_storage_full(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    draft = Draft(most=100)
    draft.write(b"bytes")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DomainError) as caught:
        draft.keep()
    assert caught.value.code == "storage_full"
    assert files_below(store) == []


def test_a_missing_source_is_an_os_error(store: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        draft_of(tmp_path / "absent", most=10)


def test_only_abandoned_drafts_are_swept(store: Path) -> None:
    old, fresh = Draft(most=10), Draft(most=10)
    long_ago = time.time() - storage.ABANDONED_S - 60
    os.utime(old.path, (long_ago, long_ago))
    assert sweep_drafts() == 1
    assert files_below(store) == [fresh.path.name]
    old.discard()
    fresh.discard()


def test_a_path_is_made_of_a_hash_alone() -> None:
    for text in ("", "../../etc/passwd", "A" * 64, "a" * 63, "a" * 65):
        with pytest.raises(ValueError, match="not a sha256"):
            path_of(text)


def test_sizes_read_in_words() -> None:
    assert [storage.in_words(n) for n in (10, 64 << 20, 2000 << 20)] == ["10 bytes", "64 MB", "1.95 GB"]
