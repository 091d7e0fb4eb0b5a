"""Encrypted files: what callers sent to a job, never in the clear on a disk.

Each object has an AES-256-GCM key of its own, wrapped (AES-256-GCM again) by a key derived from SIGNALBOX_MASTER_KEY,
which lives outside the database. The wrapped key is stored in the object's row: who deletes it has erased the file,
wherever copies of it may lie. The object's name is bound into both, so files cannot be swapped.
"""

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from controlplane.catalog.storage import require_space
from controlplane.errors import DomainError

MAGIC = b"SBV1"
NONCE = 12
KEY = 32


class VaultError(Exception):
    """The object is missing, was changed, or belongs to another master key."""


def folder() -> Path:
    return Path(settings.SIGNALBOX_PICTURES) / "jobs"


def seal(content: bytes) -> tuple[str, bytes]:
    """Writes an encrypted object; returns its name and its wrapped key. Raises DomainError storage_full."""
    # The database and the spool beside it must not run out of room for the sake of waiting jobs.
    require_space(len(content))
    name = secrets.token_hex(16)
    key, nonce = AESGCM.generate_key(KEY * 8), os.urandom(NONCE)
    sealed = MAGIC + nonce + AESGCM(key).encrypt(nonce, content, name.encode())
    path = _path(name)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(sealed)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise DomainError("storage_full", "The file cannot be stored right now.") from error
    wrapping_nonce = os.urandom(NONCE)
    return name, wrapping_nonce + AESGCM(_wrapping_key()).encrypt(wrapping_nonce, key, name.encode())


def unseal(name: str, wrapped: bytes) -> bytes:
    """The object's content. Raises VaultError."""
    try:
        sealed = _path(name).read_bytes()
    except OSError as error:
        raise VaultError("the object's file cannot be read") from error
    wrapped = bytes(wrapped)
    try:
        key = AESGCM(_wrapping_key()).decrypt(wrapped[:NONCE], wrapped[NONCE:], name.encode())
        if not sealed.startswith(MAGIC):
            raise VaultError("the object's file is not one of this vault")
        start = len(MAGIC) + NONCE
        return AESGCM(key).decrypt(sealed[len(MAGIC) : start], sealed[start:], name.encode())
    except (InvalidTag, ValueError) as error:
        raise VaultError("the object was changed, or the master key is another one") from error


def remove(name: str) -> None:
    """Deletes the object's file; no error where it is gone already."""
    if name:
        _path(name).unlink(missing_ok=True)


def names_older_than(moment: float) -> list[str]:
    """Names of the objects whose files were written before that Unix time."""
    if not folder().is_dir():
        return []
    return [path.name for path in folder().glob("*/*") if path.stat().st_mtime < moment]


def _path(name: str) -> Path:
    if len(name) != 32 or not set(name) <= set("0123456789abcdef"):
        raise VaultError("this is no object's name")
    return folder() / name[:2] / name


def _wrapping_key() -> bytes:
    derived: bytes = HKDF(SHA256(), KEY, None, b"signalbox-job-payloads").derive(settings.SIGNALBOX_MASTER_KEY.encode())
    return derived
