"""The wire forms of a prediction. Each module here speaks one of them and knows no routes, keys or sockets.

Every protocol module has the same two functions:

- `decode(body, headers, deployment, version) -> Call`: `headers` have lower-case names; raises InferenceError with a
  code of the error table. Pictures of image tasks are returned as they were sent, in `Call.pictures`.
- `encode(call, outputs, deployment, version, prediction_id) -> (content type, extra headers, body)`: `outputs` are the
  runtime's arrays by output name, with the activation already applied to the score output.

`table.py` says under which paths each is spoken.
"""

from typing import Any

import msgspec
import numpy as np

from inference.errors import InferenceError

Headers = dict[bytes, bytes]
Reply = tuple[bytes, list[tuple[bytes, bytes]], bytes]

# Content types of a body that is one picture; what it really is, its first bytes tell (application/x-image: SageMaker).
PICTURE_TYPES = frozenset({b"image/png", b"image/jpeg", b"image/jpg", b"application/dicom", b"application/x-image"})


# A struct is made in a third of the time that a dataclass takes; so are the other objects that each call makes.
class Call(msgspec.Struct):
    """One decoded call: what the model is given, and what the encoder must remember to answer in the caller's form.

    `inputs`: arrays by input name with the signature's dtypes. `rows`: rows in the call, 1 where the model has no batch
    dimension. `client_id`: the id sent inside the body (V2 `id`), "" where none was. `pictures`: undecoded files, one a
    row; then `inputs` is empty until they are decoded. `style`: private to the protocol module that made the call.
    `digest`: of version and inputs, b"" until a cache asks for it.
    """

    inputs: dict[str, np.ndarray]
    rows: int
    client_id: str = ""
    pictures: list[bytes] = []
    style: Any = None
    digest: bytes = b""


def content_type(headers: Headers) -> bytes:
    """The media type that the caller declared, lower-case and without parameters; b"" where none was."""
    value = headers.get(b"content-type", b"")
    return value.partition(b";")[0].strip().lower() if value else b""


def refuse_media_type(kind: bytes, *, forms: bool = False) -> None:
    """Raise unsupported_media_type for multipart, XML and, with `forms`, for what an HTML form sends.

    Any other kind is read as JSON. Forms pass on V1, since curl declares one where nothing else was said.
    """
    form = forms and kind == b"application/x-www-form-urlencoded"
    if form or kind.startswith(b"multipart/") or kind.endswith((b"/xml", b"+xml")):
        raise InferenceError(
            "unsupported_media_type",
            f"The Content-Type {kind.decode('latin-1')[:80]} is not read here; send application/json.",
        )
