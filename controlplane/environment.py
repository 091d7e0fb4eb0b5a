"""Reads settings from the environment; a bad value raises ImproperlyConfigured and says what to type."""

import os
import secrets
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured


def text(name: str, default: str = "") -> str:
    """The variable's value, or the content of the file that NAME_FILE points to; surrounding white space is dropped."""
    file = os.environ.get(f"{name}_FILE", "")
    if file:
        try:
            return Path(file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ImproperlyConfigured(f"{name}_FILE={file} cannot be read ({type(error).__name__}).") from None
    return os.environ.get(name, default).strip()


def flag(name: str, default: bool = False) -> bool:
    value = text(name, "1" if default else "0").lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off", ""):
        return False
    raise ImproperlyConfigured(f"{name}={value!r} is not a switch: use {name}=1 or {name}=0.")


def integer(name: str, default: int, low: int, high: int) -> int:
    value = text(name, str(default))
    if not value.isascii() or not value.isdigit() or not low <= int(value) <= high:
        raise ImproperlyConfigured(f"{name}={value!r} is not a whole number from {low} to {high}.")
    return int(value)


def generated_secret(name: str, file: Path, nbytes: int = 48) -> str:
    """The secret from the environment, else from `file`, which is made (mode 0600) the first time."""
    given = text(name)
    if given:
        return given
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ImproperlyConfigured(f"{file} cannot be read ({error.strerror}): give {name} instead.") from None
    secret = secrets.token_urlsafe(nbytes)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Two processes may start at once: the one that links first wins and both read its secret.
        draft = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            stream.write(secret + "\n")
        try:
            os.link(draft, file)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    except OSError as error:
        raise ImproperlyConfigured(
            f"{file} cannot be written ({error.strerror}): set SIGNALBOX_HOME to a folder that can, or give {name}."
        ) from None
    return file.read_text().strip()
