"""Every path that is not the data plane's: streamed both ways to the Django processes behind a Unix socket."""

import asyncio
import html
import logging
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import aiohttp
from yarl import URL

from inference.errors import InferenceError
from inference.limits import ADMITTED_HEADER, admitted_mark
from inference.routing import uuid7
from inference.server.replies import (
    BODY_GRACE_S,
    ClientGoneError,
    HeaderList,
    Receive,
    Scope,
    Send,
    reply,
    reply_error,
)
from inference.server.settings import Settings

_log = logging.getLogger(__name__)

# Of one connection, RFC 9110 section 7.6.1; what a Connection header names is added. `expect` is answered here.
_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_FORWARDING = frozenset(
    {
        b"forwarded",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-prefix",
        b"x-forwarded-proto",
        b"x-real-ip",
    }
)
_ADDED_BY_AIOHTTP = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
MAX_CONNECTIONS = 256
# Calls of ours wait for jobs, and must not take the pages' connections; a process admits no more calls than this.
MAX_CALLS = 512
_CONNECT_S = 2.0
# A caller that is silent for so long in the middle of a body would hold a connection for nothing.
BODY_SILENT_S = 30.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """A whole answer; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Upstream:
    """The control plane. Made inside the event loop; `close` ends its connections."""

    def __init__(self, socket: Path, settings: Settings) -> None:
        self._settings = settings
        # With a public https address Django would send a plain call there: ours never leave this machine.
        self._scheme = "https" if settings.public_url.startswith("https://") else "http"
        self._mark = admitted_mark(settings.secret_key)
        self._session = _session(socket, MAX_CONNECTIONS)
        # Whoever sends bodies slowly holds connections for long, and must not take those of who only reads.
        self._bodies = _session(socket, MAX_CONNECTIONS)
        self._calls = _session(socket, MAX_CALLS)
        # Whether it answered the last time: an outage is one line in the log, however often it is asked meanwhile.
        self._answers = True

    async def close(self) -> None:
        await self._session.close()
        await self._bodies.close()
        await self._calls.close()

    async def fetch(self, method: str, path: str, headers: HeaderList, body: bytes, deadline: float) -> Fetched:
        """One call that was admitted here. Raises InferenceError upstream_unavailable, or deadline_exceeded by the
        loop's clock.
        """
        texts = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
        texts += [("x-forwarded-proto", self._scheme), (ADMITTED_HEADER, self._mark)]
        try:
            async with (
                asyncio.timeout_at(deadline),
                self._calls.request(
                    method,
                    URL(f"http://localhost{path}", encoded=True),
                    headers=texts,
                    data=body or None,
                    allow_redirects=False,
                ) as response,
            ):
                content = await response.read()
                self._tell_answer()
                return Fetched(response.status, {k.lower(): v for k, v in response.headers.items()}, content)
        except TimeoutError:
            raise InferenceError("deadline_exceeded") from None
        except aiohttp.ClientError as error:
            self._tell_outage(error)
            raise InferenceError("upstream_unavailable", headers={"Retry-After": "5"}) from error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on and its answer back, neither held in memory. A caller that hangs up ends both."""
        passage = _Passage(scope, receive, send, self._settings.min_body_rate)
        exchange = asyncio.ensure_future(self._exchange(passage))
        watch = asyncio.ensure_future(passage.hung_up())
        try:
            await asyncio.wait((exchange, watch), return_when=asyncio.FIRST_COMPLETED)
            if exchange.done():
                exchange.result()
        except (aiohttp.ClientError, OSError) as error:
            if passage.gone:
                return
            if passage.slow and not passage.started:
                await reply_error(send, InferenceError("body_too_slow", headers={"Connection": "close"}), uuid7())
            elif passage.started:
                # Half an answer is out: ending without the rest makes the server reset the connection.
                _log.warning("the control plane broke off an answer: %s", type(error).__name__)
            else:
                self._tell_outage(error)
                await reply_unavailable(scope, send)
        finally:
            exchange.cancel()
            watch.cancel()
            await asyncio.gather(exchange, watch, return_exceptions=True)

    async def _exchange(self, passage: "_Passage") -> None:
        scope = passage.scope
        query: bytes = scope["query_string"]
        target = scope["raw_path"] + (b"?" + query if query else b"")
        body = await passage.body()
        session = self._session if body is None else self._bodies
        async with session.request(
            scope["method"],
            URL("http://localhost" + target.decode("latin-1"), encoded=True),
            headers=_texts(forwarded(scope, self._settings)),
            data=body,
            allow_redirects=False,
        ) as response:
            self._tell_answer()
            drop = _HOP_BY_HOP | _named_by_connection(response.raw_headers)
            kept = [(name.lower(), value) for name, value in response.raw_headers if name.lower() not in drop]
            passage.started = True
            await passage.send({"type": "http.response.start", "status": response.status, "headers": kept})
            async for chunk in response.content.iter_any():
                await passage.send({"type": "http.response.body", "body": chunk, "more_body": True})
            await passage.send({"type": "http.response.body", "body": b""})

    def _tell_outage(self, error: Exception) -> None:
        if self._answers:
            self._answers = False
            _log.warning("the control plane does not answer: %s", type(error).__name__)

    def _tell_answer(self) -> None:
        if not self._answers:
            self._answers = True
            _log.info("the control plane answers again")


def _session(socket: Path, limit: int) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path=str(socket), limit=limit),
        # A page or a long poll may take as long as it needs; the caller's hang-up ends it.
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        skip_auto_headers=_ADDED_BY_AIOHTTP,
    )


class _Passage:
    """One request on its way through: its body as a stream, and whether the caller still listens."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, min_body_rate: int) -> None:
        """`min_body_rate`: bytes a second that the body must bring, past BODY_GRACE_S of waiting for it."""
        self.scope = scope
        self.send = send
        self.started = False
        self.gone = False
        self.slow = False
        self._receive = receive
        self._rate = min_body_rate
        self._body_read = asyncio.Event()

    async def body(self) -> AsyncIterator[bytes] | None:
        """The body as it arrives, None where there is none."""
        names = {name for name, _ in self.scope["headers"]}
        if b"content-length" in names or b"transfer-encoding" in names:
            return self._chunks()
        await self._receive()
        self._body_read.set()
        return None

    async def hung_up(self) -> None:
        """Returns when the caller has hung up after sending all of its body."""
        await self._body_read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True

    async def _chunks(self) -> AsyncIterator[bytes]:
        """Raises ClientGoneError, on which aiohttp gives the request up, when the caller hangs up or is too slow.

        Only waiting for the caller counts as slow: the control plane may take what came in its own time.
        """
        clock = asyncio.get_running_loop().time
        received, waited_s = 0, 0.0
        while True:
            began = clock()
            try:
                async with asyncio.timeout(min(BODY_SILENT_S, BODY_GRACE_S + received / self._rate - waited_s)):
                    message = await self._receive()
            except TimeoutError:
                self.slow = True
                raise ClientGoneError from None
            waited_s += clock() - began
            received += len(message.get("body", b""))
            if message["type"] == "http.disconnect":
                self.gone = True
                raise ClientGoneError
            if chunk := message.get("body", b""):
                yield chunk
            if not message.get("more_body", False):
                self._body_read.set()
                return


async def reply_unavailable(scope: Scope, send: Send) -> None:
    """503 in the form that the caller reads: a small page for a browser, else the error body."""
    error = InferenceError("upstream_unavailable", headers={"Retry-After": "5"})
    accept = dict(scope["headers"]).get(b"accept", b"")
    if b"text/html" not in accept:
        await reply_error(send, error, uuid7())
        return
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
        "<title>Signalbox is starting</title><h1>One moment</h1>"
        f"<p>{html.escape(error.message)} Predictions are served meanwhile. This page tries again by itself.</p></html>"
    )
    headers: HeaderList = [(b"content-type", b"text/html; charset=utf-8"), (b"retry-after", b"5")]
    await reply(send, error.status, [*headers, (b"cache-control", b"no-store")], page.encode())


def forwarded(scope: Scope, settings: Settings) -> HeaderList:
    """The request's headers as the control plane gets them: hop-by-hop ones gone, forwarding ones ours.

    X-Forwarded-For is the one address of the caller; -Proto and -Host are what the caller used. What a peer says of
    these is believed only of trusted proxies.
    """
    headers: HeaderList = scope["headers"]
    drop = _HOP_BY_HOP | _FORWARDING | _named_by_connection(headers)
    said = {name: value for name, value in headers if name in _FORWARDING}
    host = dict(headers).get(b"host", b"localhost")
    peer = scope["client"][0] if scope.get("client") else ""
    address, scheme = peer, str(scope.get("scheme") or "http").encode()
    if settings.trusts(peer):
        address = _first_untrusted(said.get(b"x-forwarded-for", b"").decode("latin-1"), peer, settings)
        if said.get(b"x-forwarded-proto") in (b"http", b"https"):
            scheme = said[b"x-forwarded-proto"]
        host = said.get(b"x-forwarded-host", host)
    kept = [(name, value) for name, value in headers if name not in drop]
    return [
        *kept,
        (b"x-forwarded-for", address.encode("latin-1")),
        (b"x-forwarded-proto", scheme),
        (b"x-forwarded-host", host),
    ]


def _first_untrusted(chain: str, peer: str, settings: Settings) -> str:
    """The caller's address: the last of the chain, from the right, that no trusted proxy is."""
    found = peer
    for part in reversed([part.strip() for part in chain.split(",") if part.strip()]):
        try:
            ip_address(part)
        except ValueError:
            return found
        found = part
        if not settings.trusts(part):
            return found
    return found


def _named_by_connection(headers: "HeaderList | tuple[tuple[bytes, bytes], ...]") -> frozenset[bytes]:
    return frozenset(
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    )


def _texts(headers: HeaderList) -> list[tuple[str, str]]:
    # aiohttp writes header text as UTF-8; surrogates carry other bytes through unchanged.
    return [(name.decode("latin-1"), value.decode("utf-8", "surrogateescape")) for name, value in headers]
