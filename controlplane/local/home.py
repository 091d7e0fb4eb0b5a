"""The home folder: where one machine's state lives, which files are secret, and where sockets may stand."""

import os
import pwd
import secrets
import stat
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from controlplane.local.errors import CannotStart

# sockaddr_un holds 108 bytes on Linux and 104 on macOS; a folder of at most this length leaves room for every name.
LONGEST_SOCKET_FOLDER = 80


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged account of the operating system that a child runs as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Home:
    """Paths below $SIGNALBOX_HOME. `root` is absolute."""

    root: Path

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def redis(self) -> Path:
        return self.root / "redis"

    @property
    def lock_file(self) -> Path:
        return self.run / "lock"

    @property
    def status_file(self) -> Path:
        return self.run / "status.json"

    @property
    def admin_password_file(self) -> Path:
        return self.root / "admin-password"

    @property
    def doctor_password_file(self) -> Path:
        """Of the demo's account `doctor`."""
        return self.root / "doctor-password"

    @property
    def demo_mark(self) -> Path:
        """Exists once the demo was loaded into this home."""
        return self.root / "demo-loaded"

    def create(self) -> None:
        """Makes the folders, each 0700; raises CannotStart where the home cannot be written.

        As root the home itself is 0711, since PostgreSQL runs as another account below it; what is secret is 0600.
        """
        try:
            if not self.root.exists():
                self.root.mkdir(parents=True)
                self.root.chmod(0o711 if os.geteuid() == 0 else 0o700)
            for name in ("run", "log", "redis", "artifacts", "spool", "static"):
                (self.root / name).mkdir(mode=0o700, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
        except OSError as error:
            raise CannotStart(
                f"{self.root} cannot be written ({error.strerror}): choose another folder, "
                "for example SIGNALBOX_HOME=$HOME/signalbox make run."
            ) from None

    def write_private(self, file: Path, content: str) -> None:
        """Writes `content` to `file` (mode 0600) in one step, so that a reader never sees half of it."""
        draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(content)
        draft.replace(file)

    def password(self, name: str) -> str:
        """The password kept in the file `name` of the home (0600), made the first time."""
        file = self.root / name
        if not file.exists():
            self.write_private(file, secrets.token_urlsafe(24) + "\n")
        return file.read_text().strip()


def socket_folder(preferred: Path, account: Account | None = None) -> Path:
    """A 0700 folder for Unix sockets, owned by `account` (or by this process): `preferred`, or a short one elsewhere.

    A socket's address holds about a hundred bytes, so a deep home needs a short folder, named after the deep one.
    Raises CannotStart where the short name is taken by someone else.
    """
    folder = preferred
    if len(os.fsencode(preferred)) > LONGEST_SOCKET_FOLDER:
        base = Path("/run") if os.geteuid() == 0 and os.access("/run", os.W_OK) else Path("/tmp")  # noqa: S108
        folder = base / f"signalbox-{sha256(os.fsencode(preferred)).hexdigest()[:12]}"
    uid = account.uid if account else os.geteuid()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # lstat: in a shared folder somebody else may have put a link under this name.
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (uid, os.geteuid()):
        raise CannotStart(f"{folder} is needed for sockets but belongs to somebody else: remove it and start again.")
    if account and found.st_uid != account.uid:
        os.chown(folder, account.uid, account.gid)
    folder.chmod(0o700)
    return folder


def reachable(path: Path, account: Account) -> bool:
    """Whether `account` may walk down to `path` and into it, judged by the mode bits of every folder on the way."""
    for folder in (path, *path.parents):
        try:
            found = folder.stat()
        except FileNotFoundError:
            continue
        if found.st_uid == account.uid:
            allowed = found.st_mode & stat.S_IXUSR
        elif found.st_gid == account.gid:
            allowed = found.st_mode & stat.S_IXGRP
        else:
            allowed = found.st_mode & stat.S_IXOTH
        if not allowed:
            return False
    return True


def unprivileged_account(owner_of: Path | None = None) -> Account | None:
    """The account that PostgreSQL runs as when this process is root; None when it is not root.

    The owner of an existing cluster stays its owner; a new one goes to `postgres`, else to `nobody`.
    """
    if os.geteuid() != 0:
        return None
    if owner_of is not None and owner_of.exists() and (uid := owner_of.stat().st_uid) != 0:
        try:
            entry = pwd.getpwuid(uid)
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
        except KeyError:
            raise CannotStart(
                f"{owner_of} belongs to uid {uid}, which has no account here: give it to one, "
                f"for example chown -R nobody {owner_of}."
            ) from None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    raise CannotStart("PostgreSQL refuses to run as root and there is no account `nobody`: type useradd -r nobody.")
