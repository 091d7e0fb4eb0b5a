"""Bounds what a request may send to the Django processes, before Django spools it.

Django's ASGI handler reads a whole body before a view runs: without a bound a caller could fill the disk, and a model
that does not fit would be refused only after its last byte.
"""

import asyncio
import contextlib
import errno
import json
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django.conf import settings

from controlplane.catalog.storage import in_words, require_space
from controlplane.catalog.uploads import caps
from controlplane.errors import PROBLEM_MEDIA_TYPE, DomainError, problem_document

Scope = dict[str, Any]
Message = Mapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# The upload of a version: through the API, and through its page.
MODEL_UPLOAD = re.compile(r"/api/models/[^/]+/versions/(\d+/)?|/models/[^/]+/(upload|versions/\d+/complete)/")
# A picture: posted as a job, and in the form of the try-it page. Nothing else sends more than text.
PICTURE_UPLOAD = re.compile(r"/api/deployments/[^/]+/jobs/|/deployments/[^/]+/try/")
# What a form's frame and its text fields may add to its files.
FRAME_BYTES = 8 * 1024 * 1024
# Whoever was refused mid-body is listened to for so long: closing with unread bytes resets the connection, and a front
# door that fails to write the rest may never read the refusal. It hangs up as soon as it has.
_LINGER_S = 5.0
_LINGER_BYTES = 64 * 1024 * 1024


class BodyLimits:
    """Wraps an ASGI application: 413 for a body over the cap, declared or not; 507 where there is no room for it."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        passage = _Passage(receive, send, cap_of(scope["path"]))
        try:
            _refuse_declared(scope, passage.cap)
            await self._application(scope, passage.receive, passage.send)
        except DomainError as error:
            await passage.refuse(scope, error)
            return
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            await passage.refuse(scope, DomainError("storage_full"))
            return
        if passage.over:
            await passage.refuse(scope, _too_large(passage.cap))


def cap_of(path: str) -> int:
    """The most bytes that a body to this path may have. Small where it can: it is held before a sign-in is checked."""
    if MODEL_UPLOAD.fullmatch(path):
        return sum(caps().values()) + FRAME_BYTES
    if PICTURE_UPLOAD.fullmatch(path):
        return int(settings.SIGNALBOX_MAX_PICTURE_BYTES) + FRAME_BYTES
    return FRAME_BYTES


class _Passage:
    """One request on its way in: counts its body, and knows whether the answer has begun."""

    def __init__(self, receive: Receive, send: Send, cap: int) -> None:
        self.cap = cap
        self.over = False
        self._receive = receive
        self._send = send
        self._counted = 0
        self._started = False
        # Whether nothing more of the body comes.
        self._ended = False

    async def receive(self) -> Message:
        """The next message; a disconnect once the body is over the cap, on which Django drops what it has."""
        if self.over:
            return {"type": "http.disconnect"}
        message = await self._next()
        if message["type"] == "http.request":
            self._counted += len(message.get("body", b""))
            if self._counted > self.cap:
                self.over = True
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        self._started = True
        await self._send(message)

    async def refuse(self, scope: Scope, error: DomainError) -> None:
        """Answers with a problem document, unless another answer has begun; what still comes of the body is dropped."""
        if self._started:
            return
        request_id = _header(scope, b"x-request-id") or uuid.uuid4().hex
        body = json.dumps(problem_document(error.code, error.message, request_id)).encode()
        headers = [
            (b"content-type", PROBLEM_MEDIA_TYPE.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", request_id.encode("latin-1")),
            (b"connection", b"close"),
        ]
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await self._drop_rest()
        await self.send({"type": "http.response.body", "body": b""})

    async def _drop_rest(self) -> None:
        dropped = 0
        while not self._ended and dropped < _LINGER_BYTES:
            dropped += len((await self._next()).get("body", b""))

    async def _next(self) -> Message:
        message = await self._receive()
        self._ended = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message


def _refuse_declared(scope: Scope, cap: int) -> None:
    """Raises DomainError by the declared length, before a byte is read."""
    declared = _header(scope, b"content-length")
    if not declared.isascii() or not declared.isdigit():
        return
    if int(declared[:20]) > cap:
        raise _too_large(cap)
    if int(declared) > settings.FILE_UPLOAD_MAX_MEMORY_SIZE:
        # Once as Django spools it, once as the store's draft.
        require_space(2 * int(declared))


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for found, value in scope["headers"] if found == name), "")


def _too_large(cap: int) -> DomainError:
    return DomainError("too_large", f"The body is larger than the cap of {in_words(cap)}.")
