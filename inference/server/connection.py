"""What a connection has beside uvicorn's own: a short way for calls that are all there, bounded heads, a calm end."""

import asyncio
import socket
from time import monotonic
from typing import Any, Protocol, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from inference.server.addresses import Address
from inference.server.heads import Heads
from inference.server.pace import Pace
from inference.server.predict import Rest
from inference.server.protocols import Headers
from inference.server.replies import HeaderList
from inference.server.turn import Reply

MAX_HEAD_BYTES = 64 * 1024
HEAD_S = 10.0
# A caller that takes nothing of its answer for so long is cut off: else its call would be in progress for ever.
_UNREAD_S = 30.0
# Larger bodies go the long way, on which they are refused before they are read.
_SHORT_BYTES = 64 * 1024
# How long a body that did not come with its head is waited for before the call is a task of its own.
_REST_OF_BODY_S = 0.05
# How long an idle connection may still bring a request after the process was told to stop.
_LAST_REQUEST_S = 1.0
# Who sends one of these wants more than an answer.
_UNUSUAL = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"})


class Application(Protocol):
    """What the short way asks of the application."""

    heads: Heads
    pace: Pace

    def call_address(self, target: bytes) -> Address | None:
        """The address of a prediction call whose request target (path, no query) is well known; else None."""

    def at_once(self, headers: Headers, address: Address, body: bytes, reply: Reply, fd: int) -> Rest | None:
        """See `Predictor.at_once`."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a short way, and ended where a head grows past 64 kB or is not complete after 10 s.

    The short way is for a call of a well-known address whose body comes with its head, or right behind it: it is
    answered while its last bytes are parsed, by a function call in place of a task, a queue of messages and an event.
    Whatever is unusual, or has to wait, goes uvicorn's way from the point that was reached.

    When the process stops, uvicorn closes idle connections at once, also one whose first request is on its way: its
    caller sees a reset. Here an idle connection gets a moment; what it brings is answered with `Connection: close`.
    """

    _head_bytes = 0
    _in_head = False
    # Whether the next byte begins a request.
    _between = True
    # What was read last, while the parser is at the first request in it.
    _read: bytes = b""
    # The socket that may be asked for how long a request waited in it.
    _fd = -1
    # What was read of requests that wait for a turn of the loop.
    _held = b""
    _lost = False
    _head_timer: asyncio.TimerHandle | None = None
    _stopping = False
    # The call that is on the short way, and what of its body is here.
    _call: tuple[Headers, Address] | None = None
    _body = b""
    _body_timer: asyncio.TimerHandle | None = None
    # Whether its answer is still to come; the next request of the connection has to wait for it.
    _owes = False
    # An answer of the short way does not touch uvicorn's keep-alive timer, which costs as much as a prediction's log.
    _idle_timer: asyncio.TimerHandle | None = None
    _answered_at = 0.0
    _rest: Rest | None = None
    _unread_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family in (socket.AF_INET, socket.AF_INET6):
            self._fd = peer.fileno()
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fd = -1
        self._lost = True
        self._disarm()
        for timer in (self._body_timer, self._idle_timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        self._call = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread_timer = self.loop.call_later(_UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def data_received(self, data: bytes) -> None:
        if self._held:
            self._held += data
            if len(self._held) > MAX_HEAD_BYTES + _SHORT_BYTES:
                self.transport.pause_reading()
        elif self._between and (pace := cast(Application, self.app).pace).is_over():
            self._held = data
            # It is here: the time for heads is not for what the loop needs.
            self._disarm()
            pace.wait(self._take_held)
        else:
            self._take(data)

    def _take_held(self) -> None:
        data, self._held = self._held, b""
        if not self._lost:
            # No error where it was not paused.
            self.transport.resume_reading()
            self._take(data)

    def _take(self, data: bytes) -> None:
        if self._between:
            application = cast(Application, self.app)
            if self._is_free() and (found := application.heads.find(data)) is not None:
                if self._head_timer is not None:
                    self._disarm()
                self._unset_keepalive_if_required()
                self._owes = True
                head, body = found
                self._rest = application.at_once(head.headers, head.address, body, self._reply, self._fd)
                if self._rest is None:
                    return
                self._owes = False
            else:
                self._read = data
        in_pieces = self._in_head
        super().data_received(data)
        self._read = b""
        if self._in_head:
            # Only a head that comes in pieces is counted, and of its last piece nothing: a body may be in it.
            if in_pieces:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._end()
                    return
            if self._head_timer is None and self.transport is not None:
                self._arm()
        elif self._call is not None and self._body_timer is None:
            self._body_timer = self.loop.call_later(_REST_OF_BODY_S, self._go_the_long_way)

    def on_message_begin(self) -> None:
        self._in_head = True
        self._between = False
        self._head_bytes = 0
        self.url = b""
        self.headers = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._disarm()
        if self._rest is not None:
            self._begin_cycle()
            return
        address = cast(Application, self.app).call_address(self.url)
        if address is not None and self.parser.get_method() == b"POST" and self._is_free() and self._stays():
            headers = dict(self.headers)
            length = headers.get(b"content-length")
            if length is not None and int(length) <= _SHORT_BYTES and _UNUSUAL.isdisjoint(headers):
                self._call = headers, address
                self._body = b""
                return
        self._begin_cycle()

    def on_body(self, body: bytes) -> None:
        if self._call is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        read, self._read = self._read, b""
        if self._call is None:
            self._between = self._stays() and not self.parser.should_upgrade()
            super().on_message_complete()
            return
        self._between = True
        (headers, address), self._call = self._call, None
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        if read:
            cast(Application, self.app).heads.keep(read, headers, address, self._body)
        self._owes = True
        self._rest = cast(Application, self.app).at_once(headers, address, self._body, self._reply, self._fd)
        if self._rest is not None:
            self._owes = False
            self._begin_cycle()
            super().on_message_complete()

    def _is_free(self) -> bool:
        """Whether an answer may be written at once."""
        return (
            (self.cycle is None or self.cycle.response_complete)
            and not self._owes
            and not self._stopping
            and not self.flow.write_paused
        )

    def _stays(self) -> bool:
        """Whether the connection lives on after the request that was parsed last."""
        return bool(self.parser.should_keep_alive() and self.parser.get_http_version() == "1.1")

    def _reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        self._owes = False
        if self.transport.is_closing():
            return
        lines = b"\r\n".join(map(b": ".join, (*self.server_state.default_headers, *headers)))
        self.transport.write(b"%b%b\r\ncontent-length: %d\r\n\r\n%b" % (STATUS_LINE[status], lines, len(body), body))
        self._answered_at = monotonic()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_unused)

    def _close_if_unused(self) -> None:
        self._idle_timer = None
        if not self._is_idle():
            # What ends this request arms the timer again.
            return
        left = self._answered_at + self.timeout_keep_alive - monotonic()
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._close_if_unused)
        elif self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_handler()

    def _go_the_long_way(self) -> None:
        """The body is slow to come: a task waits for it, with a deadline."""
        self._body_timer = None
        self._call = None
        self._begin_cycle()
        if self._body:
            super().on_body(self._body)

    def _begin_cycle(self) -> None:
        """uvicorn's part of a request whose head was parsed."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()
        if self._stopping:
            self.cycle.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        rest, self._rest = self._rest, None
        super()._start_asgi_task(cycle, app if rest is None else cast(Any, rest))

    def end_after_next(self) -> None:
        """Answer the next request with `Connection: close`; closed at once, it could cut off one that is on its way."""
        self._stopping = True

    def shutdown(self) -> None:
        self._stopping = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LAST_REQUEST_S, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        if self._is_idle():
            self.transport.close()
        elif self._held or self._owes:
            self.loop.call_later(_LAST_REQUEST_S, self._close_if_idle)

    def _is_idle(self) -> bool:
        """Whether no request is on its way, in progress, or waiting for its turn."""
        return (
            not (self._in_head or self._held or self._owes)
            and self._call is None
            and (self.cycle is None or self.cycle.response_complete)
        )

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_S, self._end)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end(self) -> None:
        self._disarm()
        if not self.transport.is_closing():
            self.send_400_response("The request's head is too large or too slow.")
