"""What has to be true before a start; each check raises CannotStart with a sentence that says what to type."""

import errno
import ipaddress
import shutil
import socket
import sys
from pathlib import Path

import psycopg

from controlplane.local.errors import CannotStart

OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 12)
MOST_PROCESSES = 256
# A new cluster takes 60 MB, its log up to 1 GB later; below this much a start would only fail later and worse.
NEEDED_BYTES = 500 * 1024 * 1024


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> None:
    if not OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        raise CannotStart(
            f"Signalbox needs Python 3.11 or 3.12 and this is {version[0]}.{version[1]}: "
            "install python3.12, remove the folder .venv and type make run."
        )


def check_disk(folder: Path, free_bytes: int | None = None) -> None:
    """`free_bytes`: what the folder's file system has left (default: asked)."""
    if free_bytes is None:
        free_bytes = shutil.disk_usage(folder).free
    if free_bytes < NEEDED_BYTES:
        raise CannotStart(
            f"Only {free_bytes // 2**20} MB are free where {folder} is and {NEEDED_BYTES // 2**20} are needed: "
            "free some, or keep the data on another disk with SIGNALBOX_HOME=/path make run."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_processes(value: str) -> None:
    """SIGNALBOX_WEB_PROCESSES: a number, or the least and the most, such as 1-4."""
    numbers = [int(part) if part.isascii() and part.isdigit() else 0 for part in value.split("-")]
    if len(numbers) > 2 or numbers != sorted(numbers) or not (numbers[0] >= 1 and numbers[-1] <= MOST_PROCESSES):
        raise CannotStart(
            f"SIGNALBOX_WEB_PROCESSES={value!r} is not a whole number from 1 to {MOST_PROCESSES}, nor two such as 1-4."
        )


def check_exposure(host: str, served_over_tls: bool, insecure_http: bool) -> None:
    """Plain http beyond this machine only where somebody said so, or TLS ends in front."""
    if not is_loopback(host) and not served_over_tls and not insecure_http:
        raise CannotStart(
            f"SIGNALBOX_HOST={host} would send passwords over plain http: set SIGNALBOX_PUBLIC_URL=https://... with "
            "TLS in front (docs/deploy/), or accept it with SIGNALBOX_INSECURE_HTTP=1."
        )


def free_port(host: str, port: int) -> int:
    """`port`, or a free one for 0; raises CannotStart where it cannot be bound."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
    except socket.gaierror:
        raise CannotStart(f"SIGNALBOX_HOST={host!r} is not an address: use SIGNALBOX_HOST=127.0.0.1.") from None
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CannotStart(_why_not_bound(host, port, error)) from None
        return int(probe.getsockname()[1])


def _why_not_bound(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else 8000
        return f"Port {port} of {host} is in use: stop what listens there, or type SIGNALBOX_PORT={other} make run."
    if error.errno == errno.EACCES:
        return f"Port {port} is for root alone: type SIGNALBOX_PORT=8000 make run."
    return f"SIGNALBOX_HOST={host} is no address of this machine ({error.strerror}): use SIGNALBOX_HOST=127.0.0.1."


def check_database(url: str) -> None:
    """The PostgreSQL at `url` answers and is new enough."""
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            version = connection.info.server_version
    except psycopg.Error as error:
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise CannotStart(f"PostgreSQL cannot be used ({reason}): start it, mend DATABASE_URL, or unset it.") from None
    if version < 160000:
        raise CannotStart(
            f"DATABASE_URL leads to PostgreSQL {version // 10000} and 16 is the oldest that will do: upgrade it, "
            "or unset DATABASE_URL for the embedded one."
        )


def check_redis(url: str) -> None:
    """The Redis at `url` answers."""
    # Imported here: a start with the embedded Redis does not need it.
    import redis

    # kombu and redis-py write a Unix socket's address differently.
    address = url.replace("redis+socket://", "unix://", 1).replace("virtual_host=", "db=", 1)
    try:
        with redis.Redis.from_url(address, socket_timeout=5, socket_connect_timeout=5) as client:
            client.ping()
    except (redis.RedisError, ValueError, OSError) as error:
        raise CannotStart(f"Redis cannot be used ({error}): start it, mend REDIS_URL, or unset it.") from None
