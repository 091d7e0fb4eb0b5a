"""A study's key, and what is encrypted with it: pictures, heat maps, the case reference, comments.

The key is wrapped by one that is derived from the master key. Each text has the study and the field bound in and each
file its name, so that none can be put in another's place. A study without its wrapped key cannot be read by anyone.
"""

import base64
import binascii
import hashlib
import hmac
import unicodedata
import uuid
from collections.abc import Collection

from controlplane.errors import DomainError
from controlplane.jobs import vault
from controlplane.studies.models import Study

STUDY_KEYS = b"signalbox-study-keys"
REFERENCES = b"signalbox-study-references"
SEARCHES = b"signalbox-study-searches"
_FILES = vault.Folder("studies")


def new_study_key() -> tuple[bytes, bytes]:
    """A fresh key and the same wrapped, as `Study.wrapped_key` keeps it."""
    key = vault.new_key()
    return key, vault.encrypt(vault.derived_key(STUDY_KEYS), key, STUDY_KEYS)


def open_key(study: Study) -> bytes:
    """The study's key. Raises DomainError `gone` for an erased study, VaultError where the master key is another."""
    if not study.wrapped_key:
        raise DomainError("gone", "The study was erased.")
    return vault.decrypt(vault.derived_key(STUDY_KEYS), bytes(study.wrapped_key), STUDY_KEYS)


def seal_text(study: Study, text: str, field: str = "reference") -> bytes:
    """The text encrypted; b"" for an empty one. `field` must be the same to open it."""
    return vault.encrypt(open_key(study), text.encode(), _bound(study, field)) if text else b""


def open_text(study: Study, sealed: bytes | memoryview, field: str = "reference") -> str:
    """What `seal_text` was given. Raises DomainError `gone`, VaultError."""
    return vault.decrypt(open_key(study), bytes(sealed), _bound(study, field)).decode() if sealed else ""


def seal_file(study: Study, content: bytes) -> str:
    """Writes an encrypted file of the study and returns its name. Raises DomainError `storage_full`, `gone`."""
    return _FILES.write(open_key(study), content)


def open_file(study: Study, name: str) -> bytes:
    """The content of a file of the study. Raises DomainError `gone`, VaultError."""
    return _FILES.read(open_key(study), name)


def remove_files(names: Collection[str]) -> None:
    """Deletes files of studies; no error where they are gone, or the name is empty."""
    for name in names:
        _FILES.remove(name)


def files_older_than(moment: float) -> list[str]:
    """Names of all studies' files that were written before that Unix time."""
    return _FILES.names_older_than(moment)


def picture_digest(study: Study, content: bytes) -> str:
    """Finds the same picture again within its study; of no use outside it, or without its key."""
    return hmac.new(open_key(study), content, hashlib.sha256).hexdigest()


def reference_digest(team_id: uuid.UUID, reference: str) -> str:
    """Finds an exact case reference again (in any case, with any white space) without knowing it."""
    text = " ".join(unicodedata.normalize("NFKC", reference).casefold().split())
    if not text:
        return ""
    return hmac.new(vault.derived_key(REFERENCES), team_id.bytes + text.encode(), hashlib.sha256).hexdigest()


def seal_search(user_id: uuid.UUID, reference: str) -> str:
    """A reference that a person looks for, as it may stand in an address: encrypted, of use to that person alone."""
    if not reference:
        return ""
    sealed = vault.encrypt(vault.derived_key(SEARCHES), reference.encode(), user_id.bytes)
    return base64.urlsafe_b64encode(sealed).decode()


def open_search(user_id: uuid.UUID, sealed: str) -> str:
    """What `seal_search` was given; "" for anything that it did not give to this person."""
    try:
        content = base64.b64decode(sealed.encode("ascii"), b"-_", validate=True)
        return vault.decrypt(vault.derived_key(SEARCHES), content, user_id.bytes).decode()
    except (vault.VaultError, binascii.Error, UnicodeError):
        return ""


def _bound(study: Study, field: str) -> bytes:
    return study.pk.bytes + field.encode()
