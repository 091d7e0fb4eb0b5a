"""What is known of one prediction call: its ids, times and headers, and the record that it leaves in the log."""

from collections import OrderedDict
from time import monotonic, time

from inference.contracts import Outcome, Role, Source, SpoolRecord
from inference.errors import InferenceError
from inference.limits import Allowance
from inference.routing import uuid7
from inference.server.addresses import Address
from inference.server.auth import Caller
from inference.server.held import HeldDeployment, HeldVersion
from inference.server.protocols import Headers

DEFAULT_DEADLINE_MS = 10_000
MAX_DEADLINE_MS = 300_000
_MAX_ID = 128
_MAX_IDEMPOTENCY_KEY = 255
_MAX_CONTEXT_PAIRS = 8
_MAX_CONTEXT_KEY = 64
_MAX_CONTEXT_VALUE = 256


class Ask:
    """One call. Made before anything can be refused, so that every answer has a request id.

    `id` is the prediction's id and, unless the caller sent a usable one, the request's.
    """

    __slots__ = (
        "address",
        "allowance",
        "at",
        "caller",
        "client_id",
        "context",
        "deadline",
        "deployment",
        "headers",
        "held_bytes",
        "id",
        "idempotency_key",
        "occupies",
        "pinned",
        "rehearsal",
        "request_id",
        "started",
        "sticky_key",
        "taken_on",
        "unread",
        "version",
        "waited_s",
    )

    def __init__(self, headers: Headers, address: Address) -> None:
        """Reads only the headers that cannot be refused.

        `started` and `deadline` are seconds of the monotonic clock, which is the event loop's too: asked directly,
        since looking the loop up asks the kernel which process this is.
        """
        self.started = monotonic()
        self.at = time()
        self.id = uuid7()
        self.address = address
        self.headers = headers
        self.caller: Caller | None = None
        self.deployment: HeldDeployment | None = None
        self.version: HeldVersion | None = None
        self.pinned = address.pinned
        self.unread = True
        self.held_bytes = 0
        # The id of the deployment among whose calls in progress it is counted, see `Admission.occupy`.
        self.occupies = ""
        # What a test key asked to happen, see `inference.server.rehearsal`.
        self.rehearsal = ""
        self.allowance: Allowance | None = None
        # Whether it is a job by now: how that ends is counted where the job ends.
        self.taken_on = False
        self.deadline = self.started + DEFAULT_DEADLINE_MS / 1000
        self.waited_s = 0.0
        self.request_id = self.id
        self.client_id = ""
        if b"x-request-id" in self.headers:
            self.request_id = _sane(self.headers[b"x-request-id"], _MAX_ID) or self.id
        if b"x-client-id" in self.headers:
            self.client_id = _sane(self.headers[b"x-client-id"], _MAX_ID)
        self.sticky_key = ""
        self.idempotency_key = ""
        self.context: dict[str, str] = {}

    def arrived_s_ago(self, waited_s: float) -> None:
        """It lay in its socket for so long: all its times count from when it came."""
        self.waited_s = waited_s
        self.started -= waited_s
        self.deadline -= waited_s
        self.at -= waited_s

    def read_headers(self) -> None:
        """The headers that a caller relies on. Raises InferenceError bad_header for one that cannot be read."""
        headers = self.headers
        if (value := headers.get(b"x-deadline-ms")) is not None:
            self.deadline += (_deadline_ms(value) - DEFAULT_DEADLINE_MS) / 1000
        if (value := headers.get(b"x-sticky-key")) is not None:
            self.sticky_key = value.decode("utf-8", "replace")
        if (value := headers.get(b"idempotency-key")) is not None:
            self.idempotency_key = _sane(value, _MAX_IDEMPOTENCY_KEY)
            if not self.idempotency_key:
                raise InferenceError("bad_header", "Idempotency-Key must be 1 to 255 printable characters.")
        if (value := headers.get(b"x-context")) is not None:
            self.context = _context(value)

    def set_client_id(self, sent_in_body: str) -> None:
        """Take the id of a V2 body where no usable X-Client-Id was sent."""
        if sent_in_body and not self.client_id and len(sent_in_body) <= _MAX_ID and sent_in_body.isprintable():
            self.client_id = sent_in_body

    def chosen(self) -> "tuple[HeldDeployment, HeldVersion]":
        """The deployment and the version of a call that got so far."""
        assert self.deployment is not None
        assert self.version is not None
        return self.deployment, self.version

    @property
    def routing_key(self) -> str:
        """What the split is drawn by; the prediction's own id is the random draw."""
        return self.sticky_key or self.idempotency_key or self.id

    def record(self, *, role: Role = Role.LIVE, record_id: str = "") -> SpoolRecord:
        """The log record as far as it is known; the caller adds outcome, times and payload."""
        caller, deployment, version = self.caller, self.deployment, self.version
        record = SpoolRecord(
            id=record_id or self.id,
            at=self.at,
            source=caller.source if caller is not None else Source.LIVE,
            client_id=self.client_id,
            idempotency_key=self.idempotency_key,
            pinned=self.pinned,
            role=role,
            context=self.context,
        )
        if caller is not None:
            record.key_id = caller.id
        if deployment is not None:
            record.deployment_id = deployment.route.id
            record.revision = deployment.route.revision
        if version is not None:
            record.version_id = version.route.id
            record.version = version.route.number
        return record

    def refusal(self, error: InferenceError) -> SpoolRecord:
        """The record of a call that was refused: code and place, no payload."""
        record = self.record()
        record.status = error.status
        record.code = error.code
        record.loc = _place(error)
        record.outcome = Outcome.of_refusal(error.status)
        record.total_ms = (monotonic() - self.started) * 1000
        record.context = {"request_id": self.request_id} if self.request_id != self.id else {}
        return record


class Retries:
    """Which calls were asked before, by key, Idempotency-Key and body: bounded memory of this process.

    The answer of a light call is pure, so a retry is computed again; it is only logged as `retry_of` the first. What
    another process answered is matched by the ingester, from the logged Idempotency-Key.
    """

    def __init__(self, most: int = 65_536) -> None:
        self._most = most
        self._first: OrderedDict[tuple[str, str, str, int], str] = OrderedDict()

    def first_of(self, ask: Ask, deployment_id: str, body: bytes) -> str:
        """The id of the first prediction that this call repeats, "" where it is the first."""
        if not ask.idempotency_key or ask.caller is None:
            return ""
        key = (ask.caller.id, deployment_id, ask.idempotency_key, hash(body))
        first = self._first.setdefault(key, ask.id)
        if len(self._first) > self._most:
            self._first.popitem(last=False)
        return "" if first == ask.id else first


def _sane(value: bytes, most: int) -> str:
    """An id as text, "" where it is too long or holds anything unprintable."""
    if len(value) > most:
        return ""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return ""
    return text if text.isprintable() else ""


def _deadline_ms(value: bytes) -> int:
    if not (value.isdigit() and int(value[:12]) > 0):
        raise InferenceError("bad_header", "X-Deadline-Ms must be a whole number of milliseconds above 0.")
    return min(int(value[:12]), MAX_DEADLINE_MS)


def _context(value: bytes) -> dict[str, str]:
    """`k=v, k=v`, at most 8 pairs."""
    pairs: dict[str, str] = {}
    for part in value.decode("utf-8", "replace").split(","):
        key, equals, text = part.strip().partition("=")
        key, text = key.strip(), text.strip()
        if not equals or not key or len(key) > _MAX_CONTEXT_KEY or len(text) > _MAX_CONTEXT_VALUE:
            raise InferenceError("bad_header", "X-Context must be pairs such as: country=de, channel=app")
        if not (key.isprintable() and text.isprintable()):
            raise InferenceError("bad_header", "X-Context must be printable text.")
        pairs[key] = text
    if len(pairs) > _MAX_CONTEXT_PAIRS:
        raise InferenceError("bad_header", f"X-Context may have at most {_MAX_CONTEXT_PAIRS} pairs.")
    return pairs


def _place(error: InferenceError) -> str:
    """The column or input that a refusal points at: the last name in the path of its first error."""
    if not error.errors:
        return ""
    names = [part for part in error.errors[0]["loc"] if isinstance(part, str)]
    return names[-1].replace("\0", "") if names else ""
