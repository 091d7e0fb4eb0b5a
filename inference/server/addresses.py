"""Which paths are the data plane's, and what each means. Paths are exact: case, slashes and all."""

from dataclasses import dataclass, field
from enum import IntEnum, auto
from urllib.parse import unquote_to_bytes


class Kind(IntEnum):
    LIVE = auto()
    READY = auto()
    PING = auto()
    METRICS = auto()
    V2_SERVER = auto()
    V2_MODEL = auto()
    V2_MODEL_READY = auto()
    V2_INFER = auto()
    V1_STATUS = auto()
    V1_METADATA = auto()
    V1_PREDICT = auto()
    INVOCATIONS = auto()


PREDICTIONS = frozenset({Kind.V2_INFER, Kind.V1_PREDICT, Kind.INVOCATIONS})
_GET = ("GET", "HEAD")
_POST = ("POST",)


@dataclass(frozen=True, slots=True)
class Address:
    """A path of the data plane. At most one of `number` and `label` pins the version."""

    kind: Kind
    deployment: str = ""
    number: int | None = None
    label: str | None = None
    predicts: bool = field(init=False)
    pinned: bool = field(init=False)
    methods: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        predicts = self.kind in PREDICTIONS
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
    b"/invocations": Address(Kind.INVOCATIONS),
}


def is_ours(raw_path: bytes) -> bool:
    """Whether the data plane answers this path itself, if only with 404."""
    return raw_path[:4] in (b"/v1/", b"/v2/", b"/v1", b"/v2") or raw_path in _FIXED


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
    return None


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
            return Address(Kind.V2_INFER, name, number)
    return None


def _v1(parts: list[str]) -> Address | None:
    kind = Kind.V1_STATUS
    if parts[-1] == "metadata" and len(parts) in (2, 4):
        kind, parts = Kind.V1_METADATA, parts[:-1]
    elif parts[-1].endswith(":predict"):
        kind, parts = Kind.V1_PREDICT, [*parts[:-1], parts[-1].removesuffix(":predict")]
    if not parts[0] or ":" in parts[0]:
        return None
    match parts:
        case [name]:
            return Address(kind, name)
        case [name, "versions", text] if (number := _number(text)) is not None:
            return Address(kind, name, number=number)
        case [name, "labels", label] if label and ":" not in label:
            return Address(kind, name, label=label)
    return None


def _number(text: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) < 10 and text[0] != "0":
        return int(text)
    return None
