"""Which paths are the data plane's, and what each means. Paths are exact: case, slashes and all."""

from dataclasses import dataclass, field
from enum import IntEnum, auto
from urllib.parse import unquote_to_bytes

from inference.server.protocols.table import PROTOCOLS


class Kind(IntEnum):
    LIVE = auto()
    READY = auto()
    PING = auto()
    METRICS = auto()
    V2_SERVER = auto()
    V2_MODEL = auto()
    V2_MODEL_READY = auto()
    V1_STATUS = auto()
    V1_METADATA = auto()
    PREDICT = auto()


_GET = ("GET", "HEAD")
_POST = ("POST",)
# Protocols whose paths are parsed by rules of their own.
_OWN = frozenset({"v1", "v2", "invocations"})


@dataclass(frozen=True, slots=True)
class Address:
    """A path of the data plane. At most one of `number` and `label` pins the version.

    `protocol`: of a prediction, the name in `PROTOCOLS`. `deployment`: "" where the path names none.
    """

    kind: Kind
    deployment: str = ""
    number: int | None = None
    label: str | None = None
    protocol: str = ""
    predicts: bool = field(init=False)
    pinned: bool = field(init=False)
    methods: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        predicts = self.kind is Kind.PREDICT
        object.__setattr__(self, "predicts", predicts)
        object.__setattr__(self, "pinned", self.number is not None or self.label is not None)
        object.__setattr__(self, "methods", _POST if predicts else _GET)


class Addresses:
    """Paths, parsed once: the same few are asked for again and again."""

    _MOST = 4096

    def __init__(self) -> None:
        self._known: dict[bytes, Address | None] = {}

    def known(self, raw_path: bytes) -> Address | None:
        """The address of a path that was found before; None where it was not, which says nothing."""
        return self._known.get(raw_path)

    def find(self, raw_path: bytes) -> Address | None:
        """The address of a path that `is_ours`; None where there is nothing."""
        try:
            return self._known[raw_path]
        except KeyError:
            pass
        address = parse(raw_path)
        if len(self._known) >= self._MOST:
            self._known.clear()
        if len(raw_path) < 512:
            self._known[raw_path] = address
        return address


_FIXED = {
    b"/v2": Address(Kind.V2_SERVER),
    b"/v2/health/live": Address(Kind.LIVE),
    b"/v2/health/ready": Address(Kind.READY),
    b"/ping": Address(Kind.PING),
    b"/metrics": Address(Kind.METRICS),
    b"/invocations": Address(Kind.PREDICT, protocol="invocations"),
}


def is_ours(raw_path: bytes) -> bool:
    """Whether the data plane answers this path itself, if only with 404."""
    return raw_path[:4] in (b"/v1/", b"/v2/", b"/v1", b"/v2") or raw_path in _FIXED or _is_further(raw_path)


def parse(raw_path: bytes) -> Address | None:
    """The address of a path, or None."""
    if raw_path in _FIXED:
        return _FIXED[raw_path]
    parts: list[str] = []
    for segment in raw_path.split(b"/")[1:]:
        decoded = unquote_to_bytes(segment) if b"%" in segment else segment
        if not decoded or b"/" in decoded or b"\0" in decoded:
            return None
        try:
            parts.append(decoded.decode())
        except UnicodeDecodeError:
            return None
    match parts:
        case ["v2", "models", name, *rest]:
            return _v2(name, rest)
        case ["v1", "models", *rest] if rest:
            return _v1(rest)
        case [protocol, *rest] if rest and _is_further(raw_path):
            return _pinned(Kind.PREDICT, rest, protocol)
    return None


def _is_further(raw_path: bytes) -> bool:
    """Whether a path is of a protocol that has no addresses of its own."""
    segment = raw_path[1:].partition(b"/")[0].decode("latin-1")
    return segment in PROTOCOLS and segment not in _OWN


def _v2(name: str, rest: list[str]) -> Address | None:
    number: int | None = None
    if rest[:1] == ["versions"]:
        if len(rest) < 2 or (number := _number(rest[1])) is None:
            return None
        rest = rest[2:]
    match rest:
        case []:
            return Address(Kind.V2_MODEL, name, number)
        case ["ready"]:
            return Address(Kind.V2_MODEL_READY, name, number)
        case ["infer"]:
            return Address(Kind.PREDICT, name, number, protocol="v2")
    return None


def _v1(parts: list[str]) -> Address | None:
    kind, protocol = Kind.V1_STATUS, ""
    if parts[-1] == "metadata" and len(parts) in (2, 4):
        kind, parts = Kind.V1_METADATA, parts[:-1]
    elif parts[-1].endswith(":predict"):
        kind, protocol = Kind.PREDICT, "v1"
        parts = [*parts[:-1], parts[-1].removesuffix(":predict")]
    if not parts[0] or ":" in parts[0]:
        return None
    return _pinned(kind, parts, protocol)


def _pinned(kind: Kind, parts: list[str], protocol: str) -> Address | None:
    """The address of DEPLOYMENT[/versions/N or /labels/L]."""
    match parts:
        case [name]:
            return Address(kind, name, protocol=protocol)
        case [name, "versions", text] if (number := _number(text)) is not None:
            return Address(kind, name, number=number, protocol=protocol)
        case [name, "labels", label] if label and ":" not in label:
            return Address(kind, name, label=label, protocol=protocol)
    return None


def _number(text: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) < 10 and text[0] != "0":
        return int(text)
    return None
