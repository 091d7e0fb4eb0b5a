"""The home folder: private, writable, with sockets whose address fits."""

import os
import tempfile
from pathlib import Path

import pytest

from controlplane.local.errors import CannotStart
from controlplane.local.home import LONGEST_SOCKET_FOLDER, Account, Home, reachable, socket_folder

pytestmark = pytest.mark.unit

SOMEBODY = Account("somebody", 12345, 12345)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_its_folders_are_for_the_owner_alone(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.create()
    assert {mode(folder) for folder in home.root.iterdir()} == {0o700}
    assert mode(home.root) == (0o711 if os.geteuid() == 0 else 0o700)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(CannotStart, match=r"cannot be written .*SIGNALBOX_HOME="):
        Home(blocked / "home").create()


def test_a_password_is_made_once_and_is_private(tmp_path: Path) -> None:
    home = Home(tmp_path)
    password = home.password("word")
    assert len(password) >= 24
    assert home.password("word") == password
    assert mode(tmp_path / "word") == 0o600


def test_a_short_socket_folder_is_taken_as_it_is() -> None:
    # Not pytest's own folder, whose path may be too long already.
    with tempfile.TemporaryDirectory(prefix="sb-") as short:
        preferred = Path(short) / "run"
        assert socket_folder(preferred) == preferred
        assert mode(preferred) == 0o700


def test_a_deep_home_gets_a_short_private_socket_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * LONGEST_SOCKET_FOLDER) / "run"
    folder = socket_folder(deep)
    try:
        assert len(os.fsencode(folder)) <= LONGEST_SOCKET_FOLDER
        assert mode(folder) == 0o700
        assert socket_folder(deep) == folder
    finally:
        folder.rmdir()


def test_a_link_under_the_short_name_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("l" * LONGEST_SOCKET_FOLDER) / "run"
    folder = socket_folder(deep)
    folder.rmdir()
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(CannotStart, match="belongs to somebody else"):
            socket_folder(deep)
    finally:
        folder.unlink()


def test_a_closed_folder_on_the_way_makes_a_place_unreachable(tmp_path: Path) -> None:
    place = tmp_path / "closed" / "place"
    place.mkdir(parents=True)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            # The runner of the tests may itself stand in a private folder.
            assert not reachable(place, SOMEBODY)
            return
    assert reachable(place, SOMEBODY)
    place.parent.chmod(0o700)
    assert not reachable(place, SOMEBODY)
