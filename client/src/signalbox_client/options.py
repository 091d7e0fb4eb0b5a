"""What can be said with any call, checked before anything is sent, and the headers that say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypedDict
from urllib.parse import quote
from uuid import uuid4

from signalbox_client.endpoint import Header
from signalbox_client.retrying import Deadline

_MOST_ID = 128
_MOST_IDEMPOTENCY_KEY = 255
_CONTEXT = (8, 64, 256)
_MOST_DEADLINE_MS = 300_000
_OUTCOMES = ("429", "503", "504", "slow")
# The server is told a little less than is left, so that its own answer at the deadline still arrives.
_WAY_SHARE, _WAY_S = 0.1, 0.2


class CallOptions(TypedDict, total=False):
    """Options of predictions and jobs, each by name and none of them needed.

    deadline: seconds for the whole call, retries and pauses included, or a `Deadline` that several calls share. The
    server computes nothing that waited past it; at most 300 s. Without one the server's own default holds (10 s).
    retries: how often it is tried again at most, in place of the client's; 0 switches it off.
    sticky_key: the same key meets the same version while the split stands (hash what is private).
    client_id: your own id of the call, at most 128 printable characters; feedback may name it.
    idempotency_key: calls with the same one count once, and jobs are made once; one is made for each call by default.
    context: at most 8 pairs to look at the log by; names to 64 and values to 256 characters.
    request_id: your trace's id, echoed and logged, at most 128 characters.
    rehearse: "429", "503", "504" or "slow": with a test key the call ends like that; with a live key nothing changes.
    version, label: pins a version by number or by label, which needs a key with the scope `pin`.
    """

    deadline: float | Deadline | None
    retries: int | None
    sticky_key: str | None
    client_id: str | None
    idempotency_key: str | None
    context: Mapping[str, str] | None
    request_id: str | None
    rehearse: str | None
    version: int | None
    label: str | None


_NAMES = frozenset(CallOptions.__annotations__)


@dataclass(frozen=True)
class Options:
    """The options of one call, checked."""

    deadline: Deadline | None
    retries: int
    version: int | None
    label: str | None
    headers: tuple[Header, ...]

    def sent(self) -> list[Header]:
        """The headers of one attempt: what is left of the deadline is told anew each time."""
        if self.deadline is None:
            return list(self.headers)
        left_s = self.deadline.left_s
        told_ms = int(1000 * (left_s - min(_WAY_SHARE * left_s, _WAY_S)))
        return [*self.headers, (b"X-Deadline-Ms", b"%d" % max(1, min(told_ms, _MOST_DEADLINE_MS)))]

    @property
    def pin(self) -> str:
        """The part of a V1 or V2 address that pins the version, "" where the split decides."""
        if self.version is not None:
            return f"/versions/{self.version}"
        return f"/labels/{quote(self.label, safe='')}" if self.label is not None else ""


def deadline_of(given: float | Deadline | None, default_s: float | None) -> Deadline | None:
    """The deadline of one call. Raises ValueError for one that does not lie ahead."""
    if isinstance(given, Deadline):
        return given
    seconds = default_s if given is None else given
    return None if seconds is None else Deadline(seconds)


def options_of(given: CallOptions, *, retries: int, deadline_s: float | None) -> Options:
    """Raises TypeError for an option that is none, ValueError for a value that the server would refuse or drop."""
    if unknown := given.keys() - _NAMES:
        raise TypeError(f"There is no option {sorted(unknown)[0]!r}; options are {', '.join(sorted(_NAMES))}.")
    headers: list[Header] = []
    if (sticky_key := given.get("sticky_key")) is not None:
        headers.append((b"X-Sticky-Key", _text("sticky_key", sticky_key, 1024)))
    if (client_id := given.get("client_id")) is not None:
        headers.append((b"X-Client-Id", _text("client_id", client_id, _MOST_ID)))
    if (request_id := given.get("request_id")) is not None:
        headers.append((b"X-Request-Id", _text("request_id", request_id, _MOST_ID)))
    if (outcome := given.get("rehearse")) is not None:
        if outcome not in _OUTCOMES:
            raise ValueError(f"rehearse is one of {', '.join(_OUTCOMES)}.")
        headers.append((b"X-Test-Outcome", outcome.encode()))
    if context := given.get("context"):
        headers.append((b"X-Context", _context(context)))
    asked = given.get("retries")
    tries = retries if asked is None else asked
    if tries < 0:
        raise ValueError("retries is 0 or more.")
    key = given.get("idempotency_key")
    if key is not None:
        headers.append((b"Idempotency-Key", _text("idempotency_key", key, _MOST_IDEMPOTENCY_KEY)))
    elif tries:
        # Tried again it is still one prediction in the figures, and one job.
        headers.append((b"Idempotency-Key", str(uuid4()).encode()))
    version, label = given.get("version"), given.get("label")
    if version is not None and label is not None:
        raise ValueError("Give version or label, not both.")
    if version is not None and version < 1:
        raise ValueError("Versions count from 1.")
    deadline = deadline_of(given.get("deadline"), deadline_s)
    return Options(deadline, tries, version, label, tuple(headers))


def _text(name: str, value: str, most: int) -> bytes:
    """A header's value. The server counts an id's bytes."""
    try:
        content = value.encode()
    except UnicodeEncodeError:
        content = b""
    if not content or len(content) > most or not value.isprintable() or value != value.strip():
        raise ValueError(f"{name} is a text of 1 to {most} bytes that can be printed, without spaces around it.")
    return content


def _context(context: Mapping[str, str]) -> bytes:
    most, most_name, most_value = _CONTEXT
    if len(context) > most:
        raise ValueError(f"context has at most {most} pairs.")
    pairs = []
    for name, value in context.items():
        for what, text, longest in (("name", name, most_name), ("value", value, most_value)):
            bad = len(text) > longest or not text.isprintable() or text != text.strip() or "," in text
            if bad or (what == "name" and (not text or "=" in text)):
                raise ValueError(f"The {what} {text[:80]!r} in context does not do: a comma, or too long, or not text.")
        pairs.append(f"{name}={value}")
    return ", ".join(pairs).encode()


def path_of(prefix: str, *segments: str) -> str:
    """A path whose segments came from outside. Raises ValueError for an empty one."""
    if not all(segments):
        raise ValueError("A name in the address is empty.")
    return prefix + "/".join(quote(segment, safe="") for segment in segments)
