"""Encrypted files: pictures and what callers sent to a job, never in the clear on a disk.

`Folder` is the one place that writes them: AES-256-GCM under a key that its caller holds, the file's name bound in, so
files cannot be swapped. Keys are stored wrapped (AES-256-GCM again, what they belong to bound in) by keys derived from
SIGNALBOX_MASTER_KEY, which lives outside the database: who deletes a wrapped key has erased the file, wherever copies
of it may lie. `seal` and `unseal` are for jobs, each of whose files has a key of its own; studies hold one key each.
"""

import contextlib
import os
import secrets
from dataclasses import dataclass
from functools import lru_cache
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
JOB_KEYS = b"signalbox-job-payloads"


class VaultError(Exception):
    """The object is missing, was changed, or belongs to another master key."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder of encrypted files below the pictures' folder, each named by 128 random bits."""

    label: str

    @property
    def path(self) -> Path:
        return Path(settings.SIGNALBOX_PICTURES) / self.label

    def write(self, key: bytes, content: bytes) -> str:
        """Writes an encrypted file and returns its name. Raises DomainError storage_full."""
        # The database and the spool beside it must not run out of room for the sake of pictures.
        require_space(len(content))
        name = secrets.token_hex(16)
        sealed = MAGIC + encrypt(key, content, name.encode())
        path = self._path(name)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(sealed)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise DomainError("storage_full", "The file cannot be stored right now.") from error
        return name

    def read(self, key: bytes, name: str) -> bytes:
        """The file's content. Raises VaultError."""
        try:
            sealed = self._path(name).read_bytes()
        except OSError as error:
            raise VaultError("the object's file cannot be read") from error
        if not sealed.startswith(MAGIC):
            raise VaultError("the object's file is not one of this vault")
        return decrypt(key, sealed[len(MAGIC) :], name.encode())

    def remove(self, name: str) -> None:
        """Deletes the file; no error where it is gone already."""
        if name:
            self._path(name).unlink(missing_ok=True)

    def names_older_than(self, moment: float) -> list[str]:
        """Names of the files that were written before that Unix time."""
        found = []
        for path in self.path.glob("*/*"):
            # A job may end, and its file be erased, while this looks.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < moment:
                    found.append(path.name)
        return found

    def _path(self, name: str) -> Path:
        if len(name) != 32 or not set(name) <= set("0123456789abcdef"):
            raise VaultError("this is no object's name")
        return self.path / name[:2] / name


JOBS = Folder("jobs")


def encrypt(key: bytes, content: bytes, bound: bytes) -> bytes:
    """A fresh nonce and the content encrypted; `bound` must be the same to decrypt it."""
    nonce = os.urandom(NONCE)
    return nonce + AESGCM(key).encrypt(nonce, content, bound)


def decrypt(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    """What `encrypt` was given. Raises VaultError."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE], sealed[NONCE:], bound)
    except (InvalidTag, ValueError) as error:
        raise VaultError("the object was changed, or the key is another one") from error


def new_key() -> bytes:
    return AESGCM.generate_key(KEY * 8)


def derived_key(purpose: bytes) -> bytes:
    """The key that is derived from the master key for one purpose; never stored."""
    return _derived(purpose, settings.SIGNALBOX_MASTER_KEY)


@lru_cache(maxsize=16)
def _derived(purpose: bytes, master_key: str) -> bytes:
    derived: bytes = HKDF(SHA256(), KEY, None, purpose).derive(master_key.encode())
    return derived


def seal(content: bytes) -> tuple[str, bytes]:
    """Writes a job's file; returns its name and its wrapped key. Raises DomainError storage_full."""
    key = new_key()
    name = JOBS.write(key, content)
    return name, encrypt(derived_key(JOB_KEYS), key, name.encode())


def unseal(name: str, wrapped: bytes) -> bytes:
    """The content of a job's file. Raises VaultError."""
    return JOBS.read(decrypt(derived_key(JOB_KEYS), bytes(wrapped), name.encode()), name)


def remove(name: str) -> None:
    """Deletes a job's file; no error where it is gone already."""
    JOBS.remove(name)


def names_older_than(moment: float) -> list[str]:
    """Names of the jobs' files that were written before that Unix time."""
    return JOBS.names_older_than(moment)
