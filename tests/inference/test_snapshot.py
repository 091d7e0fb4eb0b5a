"""Signed documents."""

import pytest

from inference.contracts import Access, AccessKey, Routes, Scope
from inference.snapshot import SnapshotRejectedError, derive_secret, encode, open_access, open_routes, sign, verify

pytestmark = pytest.mark.unit

SECRET = derive_secret("a secret of the installation")
ACCESS = Access(generation=7, keys=(AccessKey(id="k1", digest="ab", team_id="t1", scopes=(Scope.PREDICT,)),))


def test_a_signed_document_opens_as_it_was() -> None:
    body = encode(ACCESS)
    assert open_access(SECRET, body, sign(SECRET, body)) == ACCESS
    routes = encode(Routes(generation=3))
    assert open_routes(SECRET, routes, sign(SECRET, routes)) == Routes(generation=3)


def test_one_changed_byte_is_refused() -> None:
    body = encode(ACCESS)
    signature = sign(SECRET, body)
    with pytest.raises(SnapshotRejectedError, match="signature"):
        open_access(SECRET, body.replace(b"k1", b"k2"), signature)


def test_another_installations_signature_is_refused() -> None:
    body = encode(ACCESS)
    assert not verify(SECRET, body, sign(derive_secret("another"), body))


def test_a_signed_body_that_is_no_document_is_refused() -> None:
    for body in (b"", b"[]", b'{"generation": "x"}'):
        with pytest.raises(SnapshotRejectedError, match="cannot be read"):
            open_access(SECRET, body, sign(SECRET, body))


def test_a_document_of_a_later_schema_is_refused() -> None:
    body = b'{"generation": 1, "schema": 99}'
    with pytest.raises(SnapshotRejectedError, match="schema 99"):
        open_routes(SECRET, body, sign(SECRET, body))


def test_a_field_of_a_later_release_is_passed_over() -> None:
    body = b'{"generation": 1, "novelty": true}'
    assert open_access(SECRET, body, sign(SECRET, body)) == Access(generation=1)


def test_a_signature_that_is_not_even_ascii_is_refused() -> None:
    body = encode(ACCESS)
    assert not verify(SECRET, body, "\ufffd" * 64)
