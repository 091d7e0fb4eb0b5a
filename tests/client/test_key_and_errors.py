"""The key goes where it belongs and is shown nowhere; errors say what they know and survive a pickle."""

import pickle
import traceback
from typing import Any

import httpx
import numpy as np
import pytest

import signalbox_client
from inference.errors import TABLE
from signalbox_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    FieldError,
    InvalidInput,
    ServerError,
    SignalboxError,
)
from signalbox_client.errors import kind_of
from signalbox_client.options import options_of
from signalbox_client.rows import document, rows_of
from tests.client.driving import KEY, Driven

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    "url", ["http://signalbox.example.org", "http://10.0.0.7:8000", "http://localhost.evil.example"]
)
def test_a_key_is_not_sent_over_http_to_another_machine(kind: Any, url: str) -> None:
    with pytest.raises(ValueError, match="https") as refused:
        kind(url, KEY)
    assert KEY not in str(refused.value)
    assert KEY not in repr(kind(url, KEY, allow_insecure_http=True))


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost", "http://[::1]:8000", "http://127.9.9.9"])
def test_this_machine_itself_may_be_asked_over_http(url: str) -> None:
    with Client(url, KEY) as client:
        # A proxy of the environment would read the key.
        assert not client._http._trust_env


@pytest.mark.parametrize(
    "url",
    [
        "",
        "signalbox.example.org",
        "ftp://a.example",
        "https://",
        "https://me:secret@a.example",
        "https://a.example/?x=1",
    ],
)
def test_an_address_that_is_none_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SIGNALBOX_URL", raising=False)
    with pytest.raises(ValueError, match="base_url") as refused:
        Client(url, KEY)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["sb_a\nX-Evil: 1", "sb_ä", "sb a"])
def test_a_key_that_is_none_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ValueError, match="not shown") as refused:
        Client("https://a.example", key)
    assert key not in str(refused.value)


def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBOX_URL", "https://a.example/below/")
    monkeypatch.setenv("SIGNALBOX_KEY", KEY)
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={"ready": True})

    with Client(transport=httpx.MockTransport(answer)) as client:
        assert client.ready()
        assert repr(client) == "Client('https://a.example/below', with a key)"
    assert str(seen[0].url) == "https://a.example/below/v2/health/ready"
    assert seen[0].headers["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    hosts: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return httpx.Response(status, headers={"Location": "https://other.example/v1"})

    with (
        Client("https://a.example", KEY, transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ServerError, match=r"https://other\.example") as redirected,
    ):
        client.predict_rows("d", [[1.0]])
    assert (hosts, redirected.value.code) == (["a.example"], "redirected")


def test_the_key_is_in_no_error_and_no_traceback_of_locals() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with (
        Client("https://a.example", KEY, retries=0, transport=httpx.MockTransport(answer)) as client,
        pytest.raises(ConnectionFailed) as failed,
    ):
        client.predict_rows("d", [[1.0]])
    told = traceback.TracebackException.from_exception(failed.value, capture_locals=True)
    mine = [line for line in "".join(told.format()).splitlines() if "KEY = " not in line]
    assert KEY not in "\n".join(mine)
    assert isinstance(failed.value, ConnectionError)


def test_an_error_says_what_the_server_said() -> None:
    body = {
        "error": "instances.0.a: is a text", "code": "wrong_type", "retryable": False, "request_id": "r1",
        "errors": [{"loc": ["instances", 0, "a"], "msg": "is a text"}],
    }  # fmt: skip
    driven = Driven([httpx.Response(422, json=body)])
    with pytest.raises(InvalidInput) as refused:
        driven.run(driven.calls.predict_rows("d", [{"a": "b"}], {}))
    error = refused.value
    assert (error.status, error.code, error.request_id, error.retryable) == (422, "wrong_type", "r1", False)
    assert error.errors == (FieldError(("instances", 0, "a"), "is a text"),)
    assert str(error) == "422 wrong_type: instances.0.a: is a text (request r1)"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), vars(again), str(again)) == (InvalidInput, vars(error), str(error))


def test_every_code_of_the_table_has_a_class_of_its_own_kind() -> None:
    kinds = {code: kind_of(row.status) for code, row in TABLE.items()}
    assert all(issubclass(kind, SignalboxError) for kind in kinds.values())
    assert kinds["gone"] is signalbox_client.NotFound
    assert kinds["stale_revision"] is signalbox_client.Conflict
    assert kinds["too_large"] is signalbox_client.InvalidInput
    assert kinds["storage_full"] is signalbox_client.ServerError


@pytest.mark.parametrize("content", [b"<html>Sign in</html>", b"[]", b"", b"\xff"])
def test_an_answer_of_something_else_is_a_server_error(content: bytes) -> None:
    driven = Driven([httpx.Response(200, content=content)])
    with pytest.raises(ServerError) as strange:
        driven.run(driven.calls.predict_rows("d", [[1.0]], {}))
    assert strange.value.code == "unexpected_answer"


@pytest.mark.parametrize(
    "options",
    [
        {"client_id": "x" * 129},
        {"client_id": "a\nb"},
        {"sticky_key": ""},
        {"rehearse": "500"},
        {"idempotency_key": "\ud800"},
        {"context": {"a": "b,c"}},
        {"context": {"a=b": "c"}},
        {"context": {str(number): "x" for number in range(9)}},
        {"version": 1, "label": "stable"},
        {"version": 0},
        {"retries": -1},
    ],
)
def test_an_option_that_the_server_would_refuse_or_drop_is_refused_here(options: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        options_of(options, retries=0, deadline_s=None)


def test_an_option_that_is_none_is_named() -> None:
    with pytest.raises(TypeError, match="'stickykey'"):
        options_of({"stickykey": "x"}, retries=0, deadline_s=None)  # type: ignore[typeddict-unknown-key]  # the test


def test_names_in_addresses_are_quoted() -> None:
    driven = Driven([httpx.Response(200, json={"predictions": []})])
    driven.run(driven.calls.predict_rows("../../api/keys?x", [[1.0]], {"label": "a b"}))
    assert driven.sent[0].url.raw_path == b"/v1/models/..%2F..%2Fapi%2Fkeys%3Fx/labels/a%20b:predict"


class Table:
    """What pandas' DataFrame offers."""

    ndim = 2

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return [{"a": np.float32(0.5), "b": NAType()}]


class NAType:
    """pandas' missing value."""


def test_rows_are_taken_as_apps_have_them() -> None:
    assert document(instances=rows_of(Table())) == b'{"instances":[{"a":0.5,"b":null}]}'
    assert rows_of({"a": 1}) == [{"a": 1}]
    assert rows_of(np.array([[1, 2]])) == [[1, 2]]
    assert document(instances=rows_of((b"png",))) == b'{"instances":[{"b64":"cG5n"}]}'
    for wrong in ("text", b"bytes", 7, {1, 2}):
        with pytest.raises(InvalidInput):
            rows_of(wrong)
    with pytest.raises(InvalidInput, match="JSON cannot say"):
        document(instances=[object()])
