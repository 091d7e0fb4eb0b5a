"""Encrypted files: nothing readable on the disk, nothing readable without its key."""

import os
import time
from pathlib import Path

import pytest

from controlplane.catalog import storage
from controlplane.errors import DomainError
from controlplane.jobs import vault
from controlplane.jobs.payloads import Payload, pack, unpack


def test_what_is_sealed_comes_back_and_is_not_on_the_disk(home: Path) -> None:
    name, key = vault.seal(b"a patient's picture" * 10)

    assert vault.unseal(name, key) == b"a patient's picture" * 10
    (file,) = (path for path in home.rglob("*") if path.is_file())
    assert b"patient" not in file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    vault.remove(name)
    vault.remove(name)
    assert not file.exists()
    with pytest.raises(vault.VaultError):
        vault.unseal(name, key)


def test_a_changed_or_swapped_file_is_refused(home: Path) -> None:
    first, first_key = vault.seal(b"one")
    second, second_key = vault.seal(b"two")
    for name, key in ((first, second_key), (second, first_key), (first, b""), ("../../etc/passwd", first_key)):
        with pytest.raises(vault.VaultError):
            vault.unseal(name, key)
    file = home / "pictures" / "jobs" / first[:2] / first
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(vault.VaultError):
        vault.unseal(first, first_key)


def test_another_master_key_opens_nothing(home: Path, settings: object) -> None:
    name, key = vault.seal(b"one")
    settings.SIGNALBOX_MASTER_KEY = "another"  # type: ignore[attr-defined]  # a setting of ours
    with pytest.raises(vault.VaultError):
        vault.unseal(name, key)


def test_tensors_come_back_as_they_were(home: Path) -> None:
    import numpy as np

    inputs = {
        "numbers": np.array([[1.5, -0.0], [float("nan"), 3]], np.float32),
        "texts": np.array([["a"], ["\u00e9"]], dtype=object),
        "flags": np.array([True, False]),
        "half": np.array([0.5], np.float16),
    }
    back = unpack(pack(Payload(inputs=inputs))).inputs
    for name, array in inputs.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_a_disk_without_room_takes_no_job(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "HEADROOM_BYTES", 2**62)
    with pytest.raises(DomainError) as refused:
        vault.seal(b"one more")
    assert refused.value.code == "storage_full"
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_a_file_that_is_erased_while_the_old_ones_are_listed_is_no_error(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [vault.seal(content)[0] for content in (b"one", b"two", b"three")]
    stat = Path.stat

    def stat_of_one_that_goes(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.name == names[1]:
            path.unlink(missing_ok=True)
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", stat_of_one_that_goes)
    assert set(vault.names_older_than(time.time() + 60)) == {names[0], names[2]}
