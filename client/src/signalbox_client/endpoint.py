"""Where the server is and what is sent to it: address, key, headers, bodies in pieces. Nothing here does I/O."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Sequence
from ipaddress import ip_address

import httpx

from signalbox_client.retrying import Deadline

Header = tuple[bytes, bytes]
Part = bytes | memoryview

# Pieces that are sent as one, so that a small call is one packet; and the longest piece that is sent at once: the
# transport copies what it sends, and what it could not send yet.
_JOINED_BYTES = 64 * 1024
_PIECE_BYTES = 1024 * 1024
_CONNECT_S = 10.0
_MOST_PATHS = 1024


class Body(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A request's body in pieces, which can be sent again."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            if len(part) <= _PIECE_BYTES:
                yield part  # type: ignore[misc]  # a memoryview of bytes is as good where it is only joined
                continue
            view = memoryview(part)
            for start in range(0, len(view), _PIECE_BYTES):
                yield view[start : start + _PIECE_BYTES]  # type: ignore[misc]  # as above

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece


class Endpoint:
    """A Signalbox and the key for it. The key is in no repr and no error."""

    def __init__(
        self,
        base_url: str | None,
        key: str | None,
        *,
        timeout_s: float,
        allow_insecure_http: bool = False,
        user_agent: str,
    ) -> None:
        """`base_url` and `key` are by default SIGNALBOX_URL and SIGNALBOX_KEY. Raises ValueError for what cannot be."""
        url = _url(base_url or os.environ.get("SIGNALBOX_URL", ""))
        secret = os.environ.get("SIGNALBOX_KEY", "") if key is None else key
        if not (secret.isascii() and secret.isprintable() and " " not in secret):
            raise ValueError("The key has characters that no key has. (It is not shown here.)")
        self.is_secure = url.scheme == "https"
        if secret and not (self.is_secure or allow_insecure_http or is_loopback(url.host)):
            raise ValueError(
                f"A key is not sent to {url.host} over http, where it can be read on the way: use https, or give"
                " allow_insecure_http=True on a network that you trust."
            )
        self.timeout_s = timeout_s
        self.origin = str(url).rstrip("/")
        self._urls: dict[str, httpx.URL] = {}
        self._headers: list[Header] = [
            (b"Host", url.netloc),
            (b"Accept", b"*/*"),
            (b"Accept-Encoding", b"identity"),
            (b"User-Agent", user_agent.encode()),
        ]
        if secret:
            self._headers.append((b"Authorization", b"Bearer " + secret.encode()))
        self.has_key = bool(secret)

    def __repr__(self) -> str:
        return f"{self.origin!r}, {'with a key' if self.has_key else 'without a key'}"

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Sequence[Header] = (),
        parts: Sequence[Part] = (),
        deadline: Deadline | None = None,
        patience_s: float = 0.0,
    ) -> httpx.Request:
        """A request that is ready to be sent. `patience_s`: how long the server was asked to wait before it answers."""
        sent = [*self._headers, *headers]
        size = sum(map(len, parts))
        if parts or method == "POST":
            sent.append((b"Content-Length", b"%d" % size))
        stream = httpx.ByteStream(b"".join(parts)) if size <= _JOINED_BYTES else Body(parts)
        wait_s = self.timeout_s + patience_s
        connect_s = min(_CONNECT_S, wait_s)
        if deadline is not None:
            # At least a millisecond: 0 would mean not to wait at all, an error of another kind.
            wait_s = max(deadline.left_s, 0.001)
            connect_s = min(connect_s, wait_s)
        timeout = {"connect": connect_s, "read": wait_s, "write": wait_s, "pool": wait_s}
        return httpx.Request(method, self._url(path), headers=sent, stream=stream, extensions={"timeout": timeout})

    def _url(self, path: str) -> httpx.URL:
        url = self._urls.get(path)
        if url is None:
            if len(self._urls) >= _MOST_PATHS:
                self._urls.clear()
            url = self._urls[path] = httpx.URL(self.origin + path)
        return url


def _url(text: str) -> httpx.URL:
    if not text:
        raise ValueError("Give base_url, such as https://signalbox.example.org, or set SIGNALBOX_URL.")
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url is not an address: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("base_url begins with https:// (or http://) and a host.")
    if url.userinfo or url.query or url.fragment:
        raise ValueError("base_url has no user, query or fragment; the key is given as `key`.")
    return url


def is_loopback(host: str) -> bool:
    """Whether a host's name is this machine itself, whatever a name server says."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
