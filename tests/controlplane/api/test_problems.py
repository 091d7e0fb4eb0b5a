"""Every failure of the control API is one problem document."""

from typing import Any

import pytest
from django.http import Http404
from django.test import Client
from rest_framework import exceptions
from rest_framework.exceptions import ErrorDetail

from controlplane.api.problems import problem_handler
from controlplane.errors import DomainError, field_error
from inference.errors import TABLE, InferenceError
from tests.controlplane.cast import Caller

pytestmark = pytest.mark.urls("tests.controlplane.api.catalog_urls")


def answer(error: Exception) -> Any:
    response = problem_handler(error, {"request": None, "view": None})
    assert response is not None
    return response


@pytest.mark.unit
@pytest.mark.parametrize("code", sorted(TABLE))
def test_every_code_of_the_table_keeps_its_status(code: str) -> None:
    for error in (DomainError(code), InferenceError(code)):
        response = answer(error)
        assert response.status_code == TABLE[code].status
        assert response.data["code"] == code and response.data["title"] == TABLE[code].meaning
        assert response.data["retryable"] is TABLE[code].retryable


@pytest.mark.unit
def test_fields_are_pointed_at() -> None:
    response = answer(field_error("bad_labels", ["labels", 3], "This label is there twice."))
    assert response.data["errors"] == [{"loc": ["labels", 3], "msg": "This label is there twice."}]
    nested = exceptions.ValidationError({"scopes": {"1": [ErrorDetail("Unknown.", "invalid")]}, "label": ["Missing."]})
    assert answer(nested).data["errors"] == [
        {"loc": ["scopes", "1"], "msg": "Unknown."},
        {"loc": ["label"], "msg": "Missing."},
    ]


@pytest.mark.unit
def test_both_sides_of_a_conflict_are_told() -> None:
    response = answer(DomainError("stale_revision", extra={"current_revision": 8, "expected_revision": 7}))
    assert (response.status_code, response.data["current_revision"]) == (409, 8)


@pytest.mark.unit
def test_django_s_own_refusals_have_codes() -> None:
    for error, status, code in (
        (Http404(), 404, "not_found"),
        (exceptions.NotAuthenticated(), 401, "not_authenticated"),
        (exceptions.MethodNotAllowed("PUT"), 405, "method_not_allowed"),
        (exceptions.UnsupportedMediaType("text/plain"), 415, "unsupported_media_type"),
        (exceptions.ParseError(), 400, "bad_request"),
    ):
        response = answer(error)
        assert (response.status_code, response.data["code"]) == (status, code)
    assert problem_handler(ZeroDivisionError(), {}) is None


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "validation_error"),  # read as an empty form: the missing fields are named
        (b"  ", "empty_body"),
        (b"{", "bad_json"),
        (b"{} {}", "bad_json"),
        (b'{"name": ' + b"9" * 10_000 + b"}", "bad_json"),
        (b"\xff\xfe", "bad_encoding"),
        (b"[" * 100_000, "too_deep"),
        (b'{"name": 1e999}', "non_finite"),
        (b'{"name": NaN}', "non_finite"),
        (b'{"name": "a", "name": "b"}', "duplicate_key"),
        (b"[]", "validation_error"),
        (b'"x"', "validation_error"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused(as_owner: Caller, body: bytes, code: str) -> None:
    response = as_owner.client.post("/api/models/", body, content_type="application/json")
    assert (response.status_code, response.json()["code"]) == (TABLE[code].status, code)
    assert response["Content-Type"] == "application/problem+json"


@pytest.mark.django_db
def test_a_request_id_that_is_not_sane_is_replaced() -> None:
    for given in ("a\x0bb", "x" * 10_000, "<script>", "a b"):
        response = Client().get("/api/models/", headers={"X-Request-Id": given})
        assert response["X-Request-Id"] != given
        assert response.json()["request_id"] == response["X-Request-Id"]
    assert Client().get("/api/models/", headers={"X-Request-Id": "abc-1"})["X-Request-Id"] == "abc-1"
