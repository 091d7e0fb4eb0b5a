"""The two published documents, access and routes: how they are written, signed and opened again."""

import hashlib
import hmac
from typing import TypeVar

import msgspec

from inference.contracts import SCHEMA_VERSION, Access, Routes

_LABEL = b"signalbox-documents"

Document = TypeVar("Document", Access, Routes)

_encoder = msgspec.json.Encoder()
_access_decoder = msgspec.json.Decoder(Access)
_routes_decoder = msgspec.json.Decoder(Routes)


class SnapshotRejectedError(Exception):
    """A document that must not be used: the signature is wrong, or the body is not a document of this schema."""


def derive_secret(secret_key: str) -> bytes:
    """The key that signs documents, made from SIGNALBOX_SECRET_KEY so that the two never stand in for each other."""
    return hmac.new(secret_key.encode(), _LABEL, hashlib.sha256).digest()


def sign(secret: bytes, body: bytes) -> str:
    """Hex HMAC-SHA256 of a document's body; `secret` comes from `derive_secret`."""
    return hmac.new(secret, body, hashlib.sha256).hexdigest()


def verify(secret: bytes, body: bytes, signature: str) -> bool:
    """Whether the signature belongs to exactly these bytes, in constant time."""
    # As bytes: for a text that is not ASCII, as in a damaged file, the comparison would raise.
    return hmac.compare_digest(sign(secret, body).encode(), signature.encode())


def encode(document: Access | Routes) -> bytes:
    """A document's body as it is stored and signed: UTF-8 JSON."""
    return _encoder.encode(document)


def open_access(secret: bytes, body: bytes, signature: str) -> Access:
    """The access document in signed bytes. Raises SnapshotRejectedError."""
    return _open(_access_decoder, secret, body, signature)


def open_routes(secret: bytes, body: bytes, signature: str) -> Routes:
    """The routes document in signed bytes. Raises SnapshotRejectedError."""
    return _open(_routes_decoder, secret, body, signature)


def _open(decoder: msgspec.json.Decoder[Document], secret: bytes, body: bytes, signature: str) -> Document:
    if not verify(secret, body, signature):
        raise SnapshotRejectedError("The document's signature is wrong: do all parts share one SIGNALBOX_SECRET_KEY?")
    try:
        document = decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise SnapshotRejectedError(f"The document cannot be read: {error}") from error
    if document.schema != SCHEMA_VERSION:
        raise SnapshotRejectedError(f"The document has schema {document.schema}, this release reads {SCHEMA_VERSION}.")
    return document
