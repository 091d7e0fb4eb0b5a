"""A request body to one JSON document, with exact errors; the fast parser first, the exact one only for bad bodies."""

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NoReturn

import orjson

from inference.errors import InferenceError, Located
from inference.runtime.cells import MAX_DEPTH, MAX_ERRORS, is_bad_text

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Likeness costs by the product of lengths; names and lists that are longer get no hint.
_LONGEST_NAME = 80
_MOST_NAMES = 500
_KEY = re.compile(rb'"\s*:')
# Bodies below that are read whole sooner than in parts, and few cells' types sooner than all the text is searched.
SHORT_BYTES = 1024


def parse(body: bytes, *, lenient: bool = False) -> Any:
    """The body's one JSON document, as orjson reads it. `lenient`: NaN and infinities are left for the tensor's check.

    Raises InferenceError empty_body, bad_encoding, bad_json, too_deep, non_finite, duplicate_key or bad_text.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return _parse_exactly(body, error, lenient)
    # Looked for in two steps: most bodies hold no backslash, and one byte is found far sooner than six.
    if b"\\" in body and b"\\u0000" in body:
        _refuse_values(document, lenient)
    return document


def count_colons(body: bytes) -> int:
    """How many colons a well-formed document holds, in its texts and behind its keys.

    Behind its last text, where the numbers of most calls are, is no colon but that of the text, were it a key.
    """
    if len(body) < SHORT_BYTES:
        return body.count(b":")
    end = body.rfind(b'"') + 1
    return body.count(b":", 0, end) + (body.find(b":", end) >= 0)


def may_hold_booleans(body: bytes) -> bool:
    """False only of a well-formed document with neither true nor false in it. It pays from `SHORT_BYTES` on.

    Behind its last text no other letters than those of literals and numbers can stand, and one letter is looked for at
    ten times the speed of a word.
    """
    end = body.rfind(b'"') + 1
    if body.find(b"r", end) >= 0 or body.find(b"s", end) >= 0:
        return True
    return body.find(b"true", 0, end) >= 0 or body.find(b"false", 0, end) >= 0


def refuse_duplicate_keys(body: bytes, keys: int) -> None:
    """Raise duplicate_key where an object of the body names a key twice; `keys` is how many keys the parser kept.

    The parser keeps the last of duplicates silently. Every key has a colon behind it, so an equal count is proof; texts
    with colons need the closer look.
    """
    if count_colons(body) != keys and len(_KEY.findall(body)) != keys:
        _parse_with_json(body.removeprefix(_BYTE_ORDER_MARK).decode("utf-8"))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the nearest known name, "" where none is near."""
    near = difflib.get_close_matches(name[:_LONGEST_NAME], islice(known, _MOST_NAMES), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def mistaken_for(given: Iterable[str], wanted: tuple[str, ...]) -> str:
    """A hint for the first of the given names that looks like a wanted one, "." where none does."""
    return next((hint for name in islice(given, _MOST_NAMES) if (hint := did_you_mean(name, wanted))), ".")


def bad_request(message: str, *loc: str | int) -> InferenceError:
    return InferenceError("bad_request", message, [Located(loc=list(loc), msg=message)] if loc else [])


def _parse_exactly(body: bytes, error: orjson.JSONDecodeError, lenient: bool) -> Any:
    """What the fast parser refused: a byte order mark, NaN or a surrogate (maybe fine), else the exact error."""
    if body.startswith(_BYTE_ORDER_MARK):
        return parse(body[len(_BYTE_ORDER_MARK) :], lenient=lenient)
    if not body or body.isspace():
        raise InferenceError("empty_body") from error
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as wrong:
        hint = "; it looks like UTF-16" if body[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        message = f"The body is not UTF-8: the byte at offset {wrong.start} is wrong{hint}."
        raise InferenceError("bad_encoding", message, [Located(loc=["body", wrong.start], msg=message)]) from error
    if "\0" in text[:4]:
        raise InferenceError("bad_encoding", "The body is not UTF-8; it looks like UTF-16.") from error
    if "depth" in error.msg:
        _refuse_depth()
    document = _parse_with_json(text)
    _refuse_values(document, lenient)
    return document


def _refuse_depth() -> NoReturn:
    raise InferenceError("too_deep", f"The JSON is nested deeper than {MAX_DEPTH} levels.")


def _parse_with_json(text: str) -> Any:
    """The document as the standard library reads it: duplicates refused, NaN, infinities and lone surrogates kept."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        _refuse_depth()
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode("utf-8", "surrogatepass"))
        message = (
            f"The body is not one well-formed JSON document: {_REASONS.get(error.msg, error.msg)} at byte {offset}."
        )
        raise InferenceError("bad_json", message, [Located(loc=["body", offset], msg=message)]) from error
    except ValueError as error:
        # Python refuses to read integers of more than 4,300 digits, whose cost grows with the square of the length.
        raise InferenceError("bad_json", "The body holds a number with too many digits.") from error


_REASONS = {"Extra data": "there is more text after the document", "Expecting value": "a value is missing or misspelt"}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    kept = dict(pairs)
    if len(kept) != len(pairs):
        seen: set[str] = set()
        name = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        message = f"The key {name!r} is named twice in one object."
        raise InferenceError("duplicate_key", message, [Located(loc=[name], msg=message)])
    return kept


def _refuse_values(document: Any, lenient: bool) -> None:
    """Raise bad_text or non_finite for the values that the document may not hold, each with its path."""
    code = ""
    errors: list[Located] = []
    for path, value in _leaves(document):
        if isinstance(value, float):
            if lenient or value - value == 0.0:
                continue
            code, message = code or "non_finite", "NaN and infinities (also by overflow, as 1e999) are not accepted"
        elif isinstance(value, str) and is_bad_text(value):
            code, message = code or "bad_text", "the text contains U+0000 or half of a surrogate pair"
        else:
            continue
        errors.append(
            Located(
                loc=[ascii(part) if isinstance(part, str) and is_bad_text(part) else part for part in path], msg=message
            )
        )
        if len(errors) >= MAX_ERRORS:
            break
    if errors:
        where = ".".join(map(str, errors[0]["loc"]))
        raise InferenceError(code, f"{where}: {errors[0]['msg']}.", errors)


def _leaves(document: Any) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every key and scalar of the document with its path, in order, but for lists that are harmless; no recursion."""
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), document)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict):
            stack.extend([((*path, key), item) for key, item in reversed(value.items())])
            for key in value:
                yield (*path, key), key
        elif isinstance(value, list):
            if _is_harmless(value):
                continue
            stack.extend([((*path, index), item) for index, item in reversed(list(enumerate(value)))])
        else:
            yield path, value


def _is_harmless(values: list[Any]) -> bool:
    """Whether a list holds finite numbers only, or good texts only: told for all of them at once."""
    kinds = set(map(type, values))
    if kinds == {str}:
        return not is_bad_text("".join(values))
    if kinds <= {int, float}:
        try:
            total = float(sum(values))
        except OverflowError:
            return False
        return total - total == 0.0
    return False
