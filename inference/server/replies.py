"""Answers on the wire: the start and the body of a response, the error body, and bodies read within bounds."""

import asyncio
import contextlib
import zlib
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from io import BytesIO
from typing import Any, TypeVar

import orjson

from inference.errors import ErrorBody, InferenceError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Coroutine[Any, Any, Message]]
Send = Callable[[Message], Awaitable[None]]
HeaderList = list[tuple[bytes, bytes]]
Result = TypeVar("Result")

JSON = b"application/json"
# A caller that was refused mid-body is listened to for so long, so that the refusal reaches it before the reset.
_LINGER_S = 1.0
_LINGER_BYTES = 16 * 1024 * 1024
# An unread rest of a body up to here is cheaper to skip than a new connection.
_SKIP_BYTES = 64 * 1024
# The length of the JSON part of a V2 body with binary tensors behind it, and what these are aligned to.
BINARY_LENGTH = b"inference-header-content-length"
_ALIGNMENT = 16
_PIECE_BYTES = 512 * 1024
# A body may be waited for so long in all, plus the time that it takes at the least rate.
BODY_GRACE_S = 10.0
# Who was too slow is not listened to any longer than it takes to hear the refusal.
_CLOSE = {"Connection": "close"}


class ClientGoneError(Exception):
    """The caller hung up; nobody reads an answer."""


async def reply(send: Send, status: int, headers: HeaderList, body: bytes) -> None:
    """Send a whole response; `headers` hold the content type, the length is added here."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    # A large body goes in pieces, each when the last is on its way: the socket's own buffer would hold it once more.
    view = memoryview(body)
    for start in range(0, len(body) - _PIECE_BYTES, _PIECE_BYTES):
        await send({"type": "http.response.body", "body": view[start : start + _PIECE_BYTES], "more_body": True})
    rest = -(-len(body) // _PIECE_BYTES) - 1
    await send({"type": "http.response.body", "body": body if rest < 1 else view[rest * _PIECE_BYTES :]})


def error_body(error: InferenceError, request_id: str, job: str = "") -> bytes:
    """The data plane's error body."""
    body = ErrorBody(
        error=error.message,
        code=error.code,
        errors=error.errors,
        retryable=error.retryable,
        request_id=request_id,
    )
    if job:
        body["job"] = job
    return orjson.dumps(body)


async def reply_error(send: Send, error: InferenceError, request_id: str, *, job: str = "") -> None:
    """Send an error with its headers."""
    await reply(send, error.status, error_headers(error, request_id), error_body(error, request_id, job))


def error_headers(error: InferenceError, request_id: str) -> HeaderList:
    headers = [(b"content-type", JSON), (b"x-request-id", request_id.encode())]
    headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in error.headers.items()]
    return headers


async def refuse_unread(
    receive: Receive, send: Send, error: InferenceError, request_id: str, headers: dict[bytes, bytes]
) -> None:
    """Send an error while some of the request's body is unread.

    A short declared rest is left to the server to skip. Otherwise the connection ends, and what the caller still
    sends is read for a moment: closing with unread bytes resets the connection and can swallow the answer.
    """
    declared = headers.get(b"content-length", b"")
    bodiless = not declared and b"transfer-encoding" not in headers
    short = declared.isdigit() and int(declared) <= _SKIP_BYTES and b"expect" not in headers
    if bodiless or (short and "Connection" not in error.headers):
        await reply_error(send, error, request_id)
        return
    body = error_body(error, request_id)
    error.headers = {**error.headers, **_CLOSE}
    lines = [*error_headers(error, request_id), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": error.status, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    if b"expect" not in headers:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await _skip(receive)
    await send({"type": "http.response.body", "body": b""})


async def _skip(receive: Receive) -> None:
    skipped = 0
    while skipped < _LINGER_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        skipped += len(message.get("body", b""))


async def read_body(
    receive: Receive,
    headers: dict[bytes, bytes],
    cap: int,
    deadline: float,
    hold: Callable[[int], None],
    min_rate: int,
) -> bytes:
    """The whole body, decompressed. `deadline` is the loop's clock; `hold` is told of bytes before they are kept.

    Raises InferenceError: too_large past `cap` bytes (before or after decompression), deadline_exceeded when the body
    does not arrive in time, body_too_slow when it takes longer than BODY_GRACE_S and `min_rate` bytes a second allow,
    whatever the deadline, unsupported_media_type for an unknown Content-Encoding, bad_request for broken gzip.
    Raises ClientGoneError.
    """
    encoding = headers.get(b"content-encoding", b"identity").strip().lower()
    if encoding not in (b"identity", b"gzip", b"x-gzip"):
        raise InferenceError("unsupported_media_type", "The Content-Encoding is not supported: send gzip or none.")
    declared = headers.get(b"content-length")
    if declared is not None and int(declared) > cap:
        raise too_large(cap)
    lead = _lead(headers) if encoding == b"identity" else b""
    body = await _whole(receive, cap, deadline, hold, min_rate, lead)
    if encoding != b"identity" and body:
        body = _inflated(body, cap)
        hold(len(body))
    return body


def _lead(headers: dict[bytes, bytes]) -> bytes:
    """White space that goes before a body with binary tensors, so that they lie aligned and can be used in place.

    JSON allows it; the header with the length of the JSON part is corrected.
    """
    length = headers.get(BINARY_LENGTH, b"")
    if not length.isdigit() or len(length) > 18 or headers.get(b"content-type", b"").startswith(b"image/"):
        return b""
    lead = -int(length) % _ALIGNMENT
    headers[BINARY_LENGTH] = b"%d" % (int(length) + lead)
    return b" " * lead


async def _whole(
    receive: Receive, cap: int, deadline: float, hold: Callable[[int], None], min_rate: int, lead: bytes
) -> bytes:
    """The body's pieces together, behind `lead`."""
    give_up_at = asyncio.get_running_loop().time() + BODY_GRACE_S
    try:
        async with asyncio.timeout_at(min(deadline, give_up_at)) as patience:

            def came(amount: int) -> None:
                nonlocal give_up_at
                hold(amount)
                give_up_at += amount / min_rate
                patience.reschedule(min(deadline, give_up_at))

            return await _joined(receive, cap, came, lead)
    except TimeoutError:
        if give_up_at < deadline:
            raise InferenceError("body_too_slow", headers=dict(_CLOSE)) from None
        message = "The body did not arrive before the deadline."
        raise InferenceError("deadline_exceeded", message, headers=dict(_CLOSE)) from None


async def _joined(receive: Receive, cap: int, hold: Callable[[int], None], lead: bytes) -> bytes:
    # One buffer that grows in place and is handed out as it is: pieces in a list would be in memory twice when joined.
    body = BytesIO()
    body.write(lead)
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > cap:
            raise too_large(cap)
        hold(len(chunk))
        body.write(chunk)
        if not message.get("more_body", False):
            return body.getvalue()


def _inflated(body: bytes, cap: int) -> bytes:
    """A gzip body's content, stopped at the cap: a small file may hold any number of zeros."""
    inflater = zlib.decompressobj(wbits=31)
    try:
        content = inflater.decompress(body, cap + 1)
    except zlib.error as error:
        raise InferenceError("bad_request", "The body is not the gzip that its Content-Encoding says.") from error
    if len(content) > cap:
        raise too_large(cap)
    if not inflater.eof or inflater.unused_data:
        raise InferenceError("bad_request", "The gzip body is truncated or has more data behind its end.")
    return content


def too_large(cap: int) -> InferenceError:
    """The refusal of a body above `cap` bytes."""
    return InferenceError("too_large", f"The body is larger than the cap of {cap} bytes.")


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result. When the caller hangs up the work is cancelled and ClientGoneError raised."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


async def _gone(receive: Receive) -> None:
    """Returns when the caller has hung up; to be used once the body is read."""
    while (await receive())["type"] != "http.disconnect":
        pass
