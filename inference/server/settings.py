"""The data plane's settings, from the environment alone; a bad value stops the start with one sentence."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from inference.server.memory import memory_bytes

Network = IPv4Network | IPv6Network

# The processor time that this container may use, where it has a quota of its own (cgroup v2).
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_MOST_PROCESSES = 256
_MB = 1024 * 1024


class BadSettingError(Exception):
    """A setting that cannot be used; the message is one sentence that says what to type."""


class Processes(NamedTuple):
    """Serving processes on one socket: how many there always are, and how many there may be."""

    least: int
    most: int


@dataclass(frozen=True, slots=True)
class Settings:
    """`upstream` None: paths that are not the data plane's answer 404. `database_url` "": only local documents."""

    home: Path
    host: str
    port: int
    web_processes: Processes
    secret_key: str
    database_url: str = ""
    upstream: Path | None = None
    public_url: str = ""
    trusted_proxies: tuple[Network, ...] = ()
    # Bytes a second that a request's body must bring.
    min_body_rate: int = 16 * 1024
    # Redis, where kept answers are shared through it; else "".
    cache_redis_url: str = ""
    # Runs of models at the same time in one process, each on one core.
    threads: int = 1
    # Seconds for which the ready address answers 503 before connections are refused.
    drain_s: int = 0
    # What the models of one process may take: an equal part of the host's budget. By default there is no limit.
    model_memory_bytes: int = 1 << 62

    @property
    def artifacts(self) -> Path:
        return self.home / "artifacts"

    @property
    def spool(self) -> Path:
        return self.home / "spool"

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def metrics(self) -> Path:
        """Where each process keeps the figures that it is asked for, and by which its parent sees what it does."""
        return self.run / "metrics"

    def trusts(self, address: str) -> bool:
        """Whether forwarding headers from this peer address are believed."""
        try:
            peer = ip_address(address)
        except ValueError:
            return False
        return any(peer in network for network in self.trusted_proxies)


def read(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings. Raises BadSettingError."""
    public_url = _value(environ, "SIGNALBOX_PUBLIC_URL")
    if public_url and urlsplit(public_url).scheme not in ("http", "https"):
        raise BadSettingError(f"SIGNALBOX_PUBLIC_URL={public_url} is no web address: give https://host.")
    host = _value(environ, "SIGNALBOX_HOST", "127.0.0.1")
    insecure = _value(environ, "SIGNALBOX_INSECURE_HTTP") == "1"
    if not (_is_loopback(host) or insecure or public_url.startswith("https://")):
        raise BadSettingError(
            f"Keys and pictures would cross the network unencrypted on SIGNALBOX_HOST={host}: put a TLS proxy in front "
            "and set SIGNALBOX_PUBLIC_URL=https://..., or set SIGNALBOX_INSECURE_HTTP=1."
        )
    secret_key = _value(environ, "SIGNALBOX_SECRET_KEY")
    home = Path(_value(environ, "SIGNALBOX_HOME", "var")).absolute()
    if not secret_key:
        # The control plane keeps a generated one here; the two wings must share it.
        try:
            secret_key = (home / "secret-key").read_text().strip()
        except OSError as error:
            raise BadSettingError(
                "SIGNALBOX_SECRET_KEY is not set: give the control plane's, by which published documents are signed."
            ) from error
    upstream = _value(environ, "SIGNALBOX_UPSTREAM")
    web_processes = _processes(environ)
    model_memory_mb = _number(environ, "SIGNALBOX_MODEL_MEMORY_MB", _default_model_memory_mb(), 1, 1 << 24)
    return Settings(
        home=home,
        host=host,
        port=_number(environ, "SIGNALBOX_PORT", 8000, 0, 65_535),
        web_processes=web_processes,
        secret_key=secret_key,
        database_url=_value(environ, "DATABASE_URL"),
        upstream=Path(upstream) if upstream else None,
        public_url=public_url,
        min_body_rate=_number(environ, "SIGNALBOX_MIN_BODY_KIB_S", 16, 1, 1024 * 1024) * 1024,
        trusted_proxies=_networks(_value(environ, "SIGNALBOX_TRUSTED_PROXIES")),
        cache_redis_url=_cache_redis_url(environ),
        threads=max(1, _number(environ, "SIGNALBOX_THREADS", cores(), 1, 4096) // web_processes.most),
        drain_s=_number(environ, "SIGNALBOX_DRAIN_S", 0, 0, 300),
        model_memory_bytes=model_memory_mb * _MB // web_processes.most,
    )


def cores() -> int:
    """Cores that this process may use: of the machine, of its set of processors, of its container's quota."""
    usable = len(os.sched_getaffinity(0))
    try:
        quota, period = _QUOTA.read_text().split()
    except OSError:
        return usable
    return usable if quota == "max" else max(1, min(usable, int(quota) // int(period)))


def _processes(environ: Mapping[str, str]) -> Processes:
    """A number, or the least and the most with a hyphen between them."""
    text = _value(environ, "SIGNALBOX_WEB_PROCESSES", str(_default_processes()))
    least, hyphen, most = text.partition("-")
    numbers = [int(part) for part in ([least, most] if hyphen else [least, least]) if part.isascii() and part.isdigit()]
    if len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1] <= _MOST_PROCESSES:
        raise BadSettingError(
            f"SIGNALBOX_WEB_PROCESSES={text} is not a whole number from 1 to {_MOST_PROCESSES}, nor two such as 1-4."
        )
    return Processes(*numbers)


def _cache_redis_url(environ: Mapping[str, str]) -> str:
    wanted = _value(environ, "SIGNALBOX_CACHE_REDIS", "0")
    if wanted == "0":
        return ""
    url = _value(environ, "REDIS_URL") if wanted == "1" else wanted
    # Celery's words for a Unix socket, in which the control plane gives the embedded Redis.
    if url.startswith("redis+socket://"):
        url = url.replace("redis+socket", "unix", 1).replace("virtual_host=", "db=", 1)
    if urlsplit(url).scheme not in ("redis", "rediss", "unix"):
        raise BadSettingError("SIGNALBOX_CACHE_REDIS is 0, 1 (which needs REDIS_URL), or redis://host:6379/0.")
    return url


def _default_processes() -> int:
    """One on a small machine; else all cores but one, which the control plane's processes have."""
    usable = cores()
    return 1 if usable <= 2 else min(usable - 1, 16)


def _default_model_memory_mb() -> int:
    """Half of the memory: the rest is for calls, the control plane's processes, the database and its files."""
    return max(1, memory_bytes() // 2 // _MB)


def _value(environ: Mapping[str, str], name: str, default: str = "") -> str:
    """A setting, or what the file named by NAME_FILE holds."""
    file = environ.get(f"{name}_FILE", "")
    if not file:
        return environ.get(name, "").strip() or default
    try:
        return Path(file).read_text().strip()
    except OSError as error:
        raise BadSettingError(f"{name}_FILE={file} cannot be read ({error.strerror}).") from error


def _number(environ: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = _value(environ, name, str(default))
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise BadSettingError(f"{name}={text} is not a whole number from {low} to {high}.")
    return int(text)


def _networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise BadSettingError(
            f"SIGNALBOX_TRUSTED_PROXIES={text} is not a list of addresses such as 10.0.0.0/8, 127.0.0.1."
        ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
