"""Request heads that were parsed before: the calls of one caller mostly differ in their bodies alone."""

from inference.server.addresses import Address
from inference.server.protocols import Headers

# A head with an id of its own in it is kept in vain: it costs a look-up, and its place is soon another's.
_MOST = 1024
_LONGEST_BYTES = 2048
_END = b"\r\n\r\n"


class Head:
    """A head of a call that may go the short way; its body has `length` bytes. Its headers are not to be changed."""

    __slots__ = ("address", "headers", "length")

    def __init__(self, headers: Headers, address: Address, length: int) -> None:
        self.headers = headers
        self.address = address
        self.length = length


class Heads:
    """Heads by their very bytes. One is kept only after the parser read a request that consists of it and its body, so
    that the same bytes, at the beginning of a message, mean the same: method, address, headers and where the body ends.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and the body of a whole request, where `data` is one with a head that is known."""
        end = data.find(_END) + len(_END)
        head = self._known.get(data[:end])
        return (head, data[end:]) if head is not None and len(data) == end + head.length else None

    def keep(self, data: bytes, headers: Headers, address: Address, body: bytes) -> None:
        """Keep the head of a request as the parser read it from `data`, where that is all of it and nothing more."""
        end = data.find(_END) + len(_END)
        if end > _LONGEST_BYTES or data[end:] != body or headers.get(b"content-length") != b"%d" % len(body):
            return
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[data[:end]] = Head(headers, address, len(body))
