"""Takes uploaded files: models stream past memory into a draft of the store, and are hashed on the way."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.uploadedfile import UploadedFile
from django.core.files.uploadhandler import FileUploadHandler
from django.http import HttpRequest

from controlplane.catalog.storage import Draft, in_words, require_space
from controlplane.errors import DomainError

# Django's class takes a type argument in the stubs alone.
if TYPE_CHECKING:
    AnyUploadedFile = UploadedFile[Any]
else:
    AnyUploadedFile = UploadedFile

# Form fields whose files go into the store, with their caps. Any other file is small and read at once.
REFERENCE_BYTES = 512 * 1024 * 1024
GOLDEN_BYTES = 512 * 1024 * 1024
SMALL_BYTES = 1024 * 1024
# What the multipart frame and the text fields may add to the files.
FRAME_BYTES = 8 * 1024 * 1024


def caps() -> Mapping[str, int]:
    """Cap in bytes by form field."""
    return {"file": settings.SIGNALBOX_MAX_MODEL_BYTES, "golden": GOLDEN_BYTES, "reference": REFERENCE_BYTES}


class DraftedFile(AnyUploadedFile):
    """An uploaded file that lies in the store's drafts."""

    def __init__(self, draft: Draft, *, field: str, name: str) -> None:
        super().__init__(ContentFile(b""), name, size=draft.size_bytes)
        self.draft = draft
        self.field_name = field


class DraftUploadHandler(FileUploadHandler):
    """Writes files of known fields to drafts; small files of other fields stay in memory.

    A draft belongs to the handler until the service keeps it: `close` discards what is left, whatever went wrong.
    Raises DomainError `too_large` and `storage_full`.
    """

    chunk_size = 1 << 20

    def __init__(self, request: HttpRequest | None = None) -> None:
        super().__init__(request)
        self._drafts: list[Draft] = []
        self._current: Draft | None = None
        self._small: bytearray | None = None

    def handle_raw_input(
        self,
        input_data: Any,
        META: Any,
        content_length: int,
        boundary: Any,
        encoding: Any = None,
    ) -> None:
        """Refuses by the declared length before a byte is written."""
        most = sum(caps().values()) + FRAME_BYTES
        if content_length > most:
            raise DomainError("too_large", f"The upload is larger than the cap of {in_words(most)}.")
        require_space(content_length)

    def new_file(self, *args: Any, **kwargs: Any) -> None:
        super().new_file(*args, **kwargs)
        self._current = self._small = None
        cap = caps().get(self.field_name or "")
        if cap is None:
            self._small = bytearray()
        else:
            self._current = Draft(most=cap)
            self._drafts.append(self._current)

    def receive_data_chunk(self, raw_data: bytes, start: int) -> None:
        if self._current is not None:
            self._current.write(raw_data)
        elif self._small is not None:
            self._small += raw_data
            if len(self._small) > SMALL_BYTES:
                raise DomainError(
                    "too_large", f"“{self.field_name}” is larger than the cap of {in_words(SMALL_BYTES)}."
                )

    def file_complete(self, file_size: int) -> AnyUploadedFile | None:
        name, field = self.file_name or "", self.field_name or ""
        if self._current is not None:
            self._current.finish()
            return DraftedFile(self._current, field=field, name=name)
        content = ContentFile(bytes(self._small or b""))
        return UploadedFile(content, name, self.content_type or "", file_size, self.charset)

    def upload_interrupted(self) -> None:
        self.close()

    def close(self) -> None:
        """Discards every draft; one that was kept is in the store already, and stays."""
        for draft in self._drafts:
            draft.discard()
        self._drafts.clear()
