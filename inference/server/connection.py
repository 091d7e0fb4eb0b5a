"""What a connection has beside uvicorn's own: bounds on a request's head, a calm end, and answers in one piece."""

import asyncio

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from inference.server.replies import EXCHANGE, HeaderList

MAX_HEAD_BYTES = 64 * 1024
HEAD_S = 20.0
# How long an idle connection may still bring a request after the process was told to stop.
_LAST_REQUEST_S = 1.0


class WholeExchange:
    """One request whose body and answer pass as wholes, see `inference.server.replies.Exchange`.

    It does what uvicorn's `receive` and `send` do for one message of each, in a quarter of their time: they look at
    every header of ours for characters that cannot be in it. Where anything is unusual it leaves the work to them.
    """

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def take_body(self) -> bytes | None:
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        body = bytes(cycle.body)
        cycle.body = bytearray()
        cycle.message_event.clear()
        return body

    def send(self, status: int, headers: HeaderList, body: bytes) -> bool:
        cycle = self._cycle
        if cycle.response_started or cycle.disconnected or cycle.flow.write_paused or not cycle.keep_alive:
            return False
        cycle.response_started = cycle.response_complete = True
        lines = [b"%b: %b\r\n" % header for header in (*cycle.default_headers, *headers)]
        cycle.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], b"".join(lines), body))
        cycle.message_event.set()
        cycle.on_response()
        return True


class BoundedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, ended where a head grows past 64 kB or is not complete after 20 s.

    When the process stops, uvicorn closes idle connections at once, also one whose first request is on its way: its
    caller sees a reset. Here an idle connection gets a moment; what it brings is answered with `Connection: close`.
    """

    _head_bytes = 0
    _in_head = False
    _head_timer: asyncio.TimerHandle | None = None
    _stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            # Only a head that comes in pieces is counted: one that fits a single read is within bounds.
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._end()
                return
        super().data_received(data)
        if self._in_head and self._head_timer is None and self.transport is not None:
            self._arm()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._head_timer is not None:
            self._disarm()
        super().on_headers_complete()
        self.scope["extensions"] = {EXCHANGE: WholeExchange(self.cycle)}  # type: ignore[dict-item]  # one object of ours
        if self._stopping:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        self._stopping = True
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(_LAST_REQUEST_S, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        if not self._in_head and (self.cycle is None or self.cycle.response_complete):
            self.transport.close()

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
