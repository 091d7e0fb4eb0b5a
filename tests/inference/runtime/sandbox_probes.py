"""What the sandbox's tests run inside the child: functions that behave, and functions that do not."""

import ctypes
import json
import os
import socket
import time
from pathlib import Path

from inference.errors import InferenceError
from inference.runtime.sandbox_child import given_file, say

CHUNK = 16 * 1024 * 1024


def echo(argument: bytes) -> bytes:
    return argument


def pid(argument: bytes) -> bytes:
    return json.dumps({"pid": os.getpid(), "parent": os.getppid(), "uid": os.geteuid()}).encode()


def refuse(argument: bytes) -> bytes:
    raise InferenceError("invalid_input", "Column amount is missing.", [{"loc": ["amount", 3], "msg": "is missing"}])


def hoard(argument: bytes) -> bytes:
    kept = []
    while True:
        kept.append(bytearray(CHUNK))


def hoard_natively(argument: bytes) -> bytes:
    """Memory that C code takes and aborts over, as std::bad_alloc does."""
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def sleep(argument: bytes) -> bytes:
    time.sleep(60)
    return b""


def spin(argument: bytes) -> bytes:
    while True:
        pass


def segfault(argument: bytes) -> bytes:
    ctypes.string_at(0)
    return b""


def raise_unexpectedly(argument: bytes) -> bytes:
    raise KeyError("a bug")


def fill_disk(argument: bytes) -> bytes:
    with Path(argument.decode()).open("wb", buffering=0) as file:
        while True:
            file.write(bytes(CHUNK))


def reach_out(argument: bytes) -> bytes:
    """Which of the ways out are open: a list of names."""
    opened = []
    address, unix_path, file = json.loads(argument)
    for name, attempt in (
        ("tcp", lambda: socket.socket().connect(tuple(address))),
        ("unix", lambda: socket.socket(socket.AF_UNIX).connect(unix_path)),
        ("read", lambda: Path(file).read_bytes()),
        ("write", lambda: Path(file + ".new").write_bytes(b"x")),
        ("fork", os.fork),
        ("exec", lambda: os.execv("/bin/true", ["true"])),  # noqa: S606
        ("kill", lambda: os.kill(os.getppid(), 0)),
    ):
        try:
            attempt()
        except OSError:
            continue
        opened.append(name)
    return json.dumps(opened).encode()


def environment(argument: bytes) -> bytes:
    return json.dumps(
        {"environ": dict(os.environ), "descriptors": [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]}
    ).encode()


def readable(argument: bytes) -> bytes:
    """Of the files named, those that can be opened."""
    opened = []
    for name in json.loads(argument):
        try:
            with Path(name).open("rb") as file:
                file.read(1)
            opened.append(name)
        except OSError:
            continue
    return json.dumps(opened).encode()


def tell_and_wait(argument: bytes) -> bytes:
    """Says two lines, and goes on when the file that it was given grows."""
    say(b"one")
    say(b"two")
    with given_file() as file:
        while not file.read(1):
            time.sleep(0.01)
    say(b"three")
    return b"told"


def tell_and_die(argument: bytes) -> bytes:
    say(b"one")
    os.write(5, b"half a line")
    os.abort()


def tell_without_end(argument: bytes) -> bytes:
    for number in range(10_000):
        say(b"%4000d" % number)
    return b"told"


def read_file(argument: bytes) -> bytes:
    """The file handed in, and whether it can be written to."""
    with given_file() as file:
        content = file.read()
        try:
            os.write(file.fileno(), b"x")
        except OSError:
            return content
    return b"written"
