"""Bad prediction calls over real sockets, through the whole product: each refused in words, and none of them logged."""

import contextlib
import gzip
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import psycopg
import pytest

from inference.errors import TABLE
from tests.e2e.control import Control, control_of
from tests.inference.toys import linear_regression
from tests.services import Product, wait_for

pytestmark = pytest.mark.timeout(400)

NAME = "bad-input"
ROWS_CAP, BYTES_CAP = 8, 200_000
PREDICT = f"/v1/models/{NAME}:predict"
INFER = f"/v2/models/{NAME}/infer"
GOOD = b'{"instances": [[1.0, 2.0, 3.0]]}'
TENSOR = {"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}


@dataclass(frozen=True, slots=True)
class House:
    """The product with one deployment, `NAME`."""

    product: Product
    control: Control

    @property
    def client(self) -> httpx.Client:
        return self.control.client


@pytest.fixture(scope="module")
def house(product: Product) -> Iterator[House]:
    with control_of(product) as control:
        control.upload(NAME, linear_regression(), columns="a,b,c", task="tabular-regression")
        assert control.validated(NAME)["state"] == "ready"
        control.deploy(NAME, max_rows=ROWS_CAP, max_body_bytes=BYTES_CAP)
        yield House(product, control)


def served(house: House) -> float:
    """How many calls of the deployment were answered with a prediction, as the front door counts them."""
    lines = house.client.get("/metrics").text.splitlines()
    mine = (line for line in lines if line.startswith("signalbox_calls_total{") and f'deployment="{NAME}"' in line)
    return sum(float(line.rpartition(" ")[2]) for line in mine if 'code="ok"' in line)


def assert_refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error form, with nothing of the inside in it."""
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), body
    assert set(body) == {"error", "code", "errors", "retryable", "request_id"}
    assert TABLE[code].status == status
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "x-prediction-id" not in answer.headers
    key = answer.request.headers.get("authorization", "").removeprefix("Bearer ") or "no key"
    for leaked in ("Traceback", 'File "', "site-packages", "SELECT ", key):
        assert leaked not in answer.text
    return body


def post(house: House, content: bytes, path: str = PREDICT, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return house.client.post(path, content=content, headers={"Content-Type": "application/json", **named})


@dataclass(slots=True)
class Answered:
    """How many predictions a test expects to get."""

    count: int = 0


@pytest.fixture(autouse=True)
def answered(house: House) -> Iterator[Answered]:
    """What a test is refused is no prediction: the front door's count stays, but for what the test says."""
    before = served(house)
    expected = Answered()
    yield expected
    assert served(house) - before == expected.count


DEEP = b'{"instances": ' + b"[" * 90_000 + b"]" * 90_000 + b"}"
BODIES = {
    "1 nothing": (b"", 400, "empty_body"),
    "1 white space": (b" \r\n\t ", 400, "empty_body"),
    "2 truncated": (GOOD[:-2], 400, "bad_json"),
    "2 garbage behind": (GOOD + b"}", 400, "bad_json"),
    "2 two documents": (GOOD + GOOD, 400, "bad_json"),
    "3 not UTF-8": (b'{"instances": ["\xff"]}', 400, "bad_encoding"),
    "3 UTF-16": (GOOD.decode().encode("utf-16"), 400, "bad_encoding"),
    "4 NaN": (b'{"instances": [[NaN, 2, 3]]}', 400, "non_finite"),
    "4 Infinity": (b'{"instances": [[1, -Infinity, 3]]}', 400, "non_finite"),
    "4 overflow": (b'{"instances": [[1, 2, 1e999]]}', 400, "non_finite"),
    "5 deep": (DEEP, 400, "too_deep"),
    "5 many digits": (b'{"instances": [[' + b"9" * 10_000 + b", 2, 3]]}", 400, "bad_json"),
    "5 duplicate key": (b'{"instances": [[1, 2, 3]], "instances": [[4, 5, 6]]}', 400, "duplicate_key"),
    "5 duplicate column": (b'{"instances": [{"a": 1, "b": 2, "c": 3, "a": 4}]}', 400, "duplicate_key"),
    "13 rows": (json.dumps({"instances": [[1, 2, 3]] * (ROWS_CAP + 1)}).encode(), 413, "batch_too_large"),
}


@pytest.mark.parametrize("row", BODIES)
@pytest.mark.parametrize("path", [PREDICT, INFER, "/invocations"], ids=["v1", "v2", "sagemaker"])
def test_a_body_that_is_no_call_is_refused(row: str, path: str, house: House) -> None:
    content, status, code = BODIES[row]
    if path == INFER:
        content = content.replace(b"instances", b"inputs")
        if code in ("non_finite", "batch_too_large", "bad_json") and row[0] in "145":
            content = content.replace(b"[[", b'[{"name":"x","datatype":"FP32","shape":[1,3],"data":[')
            content = content.replace(b"]]", b"]}]")
        if code == "batch_too_large":
            rows = ROWS_CAP + 1
            content = json.dumps({"inputs": [{**TENSOR, "shape": [rows, 3], "data": [0] * 3 * rows}]}).encode()
        if row == "5 duplicate column":
            content = b'{"inputs": [{"name": "x", "name": "x"}]}'
    body = assert_refused(post(house, content, path, X_Amzn_SageMaker_Target_Model=NAME), status, code)
    if row == "2 truncated":
        assert body["errors"][0]["loc"] == ["body", len(content)]


def test_a_byte_order_mark_is_read_over(house: House, answered: Answered) -> None:
    answered.count = 1
    answer = post(house, b"\xef\xbb\xbf" + GOOD)
    assert (answer.status_code, answer.json()) == (200, {"predictions": [[2.5]]})


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        (PREDICT, "multipart/form-data; boundary=x", 415),
        (PREDICT, "application/xml", 415),
        (INFER, "application/x-www-form-urlencoded", 415),
        (INFER, "text/xml", 415),
        (PREDICT, "image/png", 415),
    ],
)
def test_other_kinds_of_bodies_are_refused(path: str, kind: str, status: int, house: House) -> None:
    answer = house.client.post(path, content=GOOD, headers={"Content-Type": kind})
    assert_refused(answer, status, "unsupported_media_type")


def test_tensorflow_servings_clients_declare_what_they_like(house: House, answered: Answered) -> None:
    answered.count = 3
    for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
        answer = house.client.post(PREDICT, content=GOOD, headers={"Content-Type": kind})
        assert answer.status_code == 200, answer.text


def test_a_compressed_bomb_and_unknown_encodings_are_refused(house: House) -> None:
    bomb = gzip.compress(b" " * 60_000_000)
    assert len(bomb) < BYTES_CAP
    assert_refused(post(house, bomb, Content_Encoding="gzip"), 413, "too_large")
    assert_refused(post(house, GOOD, Content_Encoding="zstd"), 415, "unsupported_media_type")
    assert_refused(post(house, b"no gzip", Content_Encoding="gzip"), 400, "bad_request")


# Bytes on the wire, that no client library would send


def talk(house: House, head: str, *pieces: bytes, key: str | None = None) -> httpx.Response:
    """The answer to a request written byte by byte, and everything until the server closes (or answers)."""
    lines = [head, f"Host: 127.0.0.1:{house.product.port}", f"Authorization: Bearer {key or house.control.key}"]
    with socket.create_connection(("127.0.0.1", house.product.port), timeout=20) as connection:
        connection.sendall("\r\n".join(lines).encode() + b"\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
        # The server may have answered and closed already.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        received = b""
        while chunk := connection.recv(65_536):
            received += chunk
    first, _, rest = received.partition(b"\r\n")
    names, _, content = rest.partition(b"\r\n\r\n")
    headers = [(name, value) for name, _, value in (line.partition(b": ") for line in names.split(b"\r\n"))]
    request = httpx.Request("POST", house.product.base_url)
    return httpx.Response(int(first.split()[1]), headers=headers, content=content, request=request)


def test_a_body_past_the_cap_is_refused_and_the_connection_closed(house: House) -> None:
    size = BYTES_CAP + 1
    post_line = f"POST {PREDICT} HTTP/1.1\r\nContent-Type: application/json"
    declared = talk(house, post_line, b"Content-Length: %d\r\n\r\n" % size, b"x" * size)
    assert_refused(declared, 413, "too_large")
    assert declared.headers["connection"] == "close"
    chunk = b"%x\r\n" % 50_000 + b" " * 50_000 + b"\r\n"
    chunked = talk(house, post_line, b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 6)
    assert_refused(chunked, 413, "too_large")
    assert chunked.headers["connection"] == "close"
    # The whole of it is never waited for.
    claimed = talk(house, post_line, b"Content-Length: 99999999999\r\n\r\n", b"{")
    assert_refused(claimed, 413, "too_large")


def test_a_length_that_lies_is_never_a_prediction(house: House) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nContent-Type: application/json\r\nX-Deadline-Ms: 500"
    # Less than declared, and then the end: nobody is left to answer.
    with pytest.raises((IndexError, ValueError)):
        talk(house, head, b"Content-Length: 500\r\n\r\n", GOOD)
    # Less declared than sent: the rest is a request that is none.
    answer = talk(house, head, b"Content-Length: 5\r\n\r\n", GOOD)
    assert answer.status_code == 400
    both = talk(house, head, b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n")
    assert both.status_code == 400


def test_a_strange_request_id_is_replaced(house: House, answered: Answered) -> None:
    answered.count = 4
    for value in (b"a" * 10_240, b"two\xff", b"tab\there", "é\u0085".encode()):
        answer = house.client.post(PREDICT, content=GOOD, headers=[(b"X-Request-Id", value)])
        assert answer.status_code == 200, value
        assert answer.headers["x-request-id"] == answer.headers["x-prediction-id"]


def test_line_ends_and_nul_in_a_header_are_no_second_header(house: House) -> None:
    head = f"POST {PREDICT} HTTP/1.1\r\nContent-Type: application/json"
    for value in (b"a\rb", b"a\0b", b"a\nSet-Cookie: x=1\n"):
        lines = b"X-Request-Id: " + value + b"\r\nContent-Length: 2\r\n\r\n{}"
        answer = talk(house, head, lines)
        assert answer.status_code == 400
        assert "set-cookie" not in answer.headers


# V2's own


def v2(house: House, *tensors: dict[str, Any], **fields: Any) -> httpx.Response:
    return house.client.post(INFER, json={"inputs": list(tensors), **fields})


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"shape": [2, 3]}, "wrong_shape"),
        ({"shape": [1, -3]}, "wrong_shape"),
        ({"shape": [0, 3], "data": []}, "wrong_shape"),
        ({"shape": [2**62, 3]}, "wrong_shape"),
        ({"shape": [2**70, 3]}, "wrong_shape"),
        ({"shape": [1.5, 3]}, "wrong_shape"),
        ({"shape": [3]}, "wrong_shape"),
        ({"datatype": "FP33"}, "wrong_type"),
        ({"datatype": "INT64"}, "wrong_type"),
        ({"data": [1, 2, "3"]}, "wrong_type"),
        ({"name": "y"}, "unknown_feature"),
    ],
    ids=str,
)
def test_a_v2_tensor_that_does_not_fit_is_refused(changes: dict[str, Any], code: str, house: House) -> None:
    body = assert_refused(v2(house, {**TENSOR, **changes}), 422, code)
    assert body["errors"][0]["loc"][0] == "inputs"


def test_a_v2_input_given_twice_is_refused(house: House) -> None:
    assert_refused(v2(house, TENSOR, TENSOR), 422, "invalid_input")


@pytest.mark.parametrize("length", ["999999", "-1", "ten", "0", "1e3", "9" * 30])
def test_a_binary_header_length_that_cannot_be_is_refused(length: str, house: House) -> None:
    tensor = {**TENSOR, "parameters": {"binary_data_size": 12}}
    del tensor["data"]
    content = json.dumps({"inputs": [tensor]}).encode() + b"\0" * 12
    assert_refused(post(house, content, INFER, Inference_Header_Content_Length=length), 400, "bad_header")
    short = json.dumps({"inputs": [tensor]}).encode()
    answer = post(house, short + b"\0" * 4, INFER, Inference_Header_Content_Length=str(len(short)))
    assert_refused(answer, 400, "bad_binary")


# Who and where


def test_what_is_not_there_is_not_found(house: House) -> None:
    for path in (
        "/v1/models/nobody:predict",
        "/v2/models/nobody/infer",
        f"/v1/models/{NAME}/versions/99:predict",
        f"/v2/models/{NAME}/versions/99/infer",
        f"/v1/models/{NAME}/labels/nothing:predict",
        f"/v1/models/{NAME.upper()}:predict",
        f"/v1/models/{NAME}/:predict",
        f"/v1//models/{NAME}:predict",
        f"/v1/models/{NAME}:predict/",
        f"/v1/models/bad%2Finput/{NAME}:predict",
        f"/v2/models/{NAME}/infer/",
        f"/v2/models/..%2f{NAME}/infer",
        f"/V2/models/{NAME}/infer",
    ):
        answer = house.client.post(path, content=GOOD)
        assert answer.status_code == 404, path
        if not path.startswith("/V2"):
            assert_refused(answer, 404, "not_found")


def test_another_method_is_named_with_those_that_go(house: House) -> None:
    for path, allowed in ((PREDICT, "POST"), (INFER, "POST"), ("/invocations", "POST"), ("/ping", "GET, HEAD")):
        for method in ("GET", "PUT", "DELETE", "PATCH") if allowed == "POST" else ("POST", "PUT"):
            answer = house.client.request(method, path)
            assert_refused(answer, 405, "method_not_allowed")
            assert answer.headers["allow"] == allowed


def test_a_retired_deployment_is_gone(house: House) -> None:
    name = f"retired-{uuid4().hex[:8]}"
    control = house.control
    made = control.client.post("/api/deployments/", json={"name": name, "model": NAME})
    assert made.status_code == 201, made.text
    address = f"/v1/models/{name}:predict"
    wait_for(lambda: control.client.post(address, content=GOOD).status_code == 503, 30, "the deployment is known")
    assert_refused(control.client.post(address, content=GOOD), 503, "no_active_version")
    assert "retry-after" in control.client.post(address, content=GOOD).headers
    assert control.client.delete(f"/api/deployments/{name}/").status_code == 204
    wait_for(lambda: control.client.post(address, content=GOOD).status_code == 410, 30, "the deployment is gone")
    assert_refused(control.client.post(address, content=GOOD), 410, "gone")


def test_a_key_that_does_not_hold_is_refused(house: House) -> None:
    def ask(authorization: str | None, path: str = PREDICT) -> httpx.Response:
        headers = {"Authorization": authorization} if authorization is not None else {}
        return httpx.post(house.product.base_url + path, content=GOOD, headers=headers, trust_env=False, timeout=30)

    for wrong in (None, "", "Bearer", "Bearer sb_nobody", "Basic c2I6", house.control.key, "Bearer " + "x" * 5000):
        answer = ask(wrong)
        assert_refused(answer, 401, "not_authenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
    soon = datetime.now(UTC) + timedelta(seconds=3)
    brief = house.client.post("/api/keys/", json={"label": "brief", "expires_at": soon.isoformat()}).json()["key"]
    wait_for(lambda: "expired" in ask(f"Bearer {brief}", INFER).text, 20, "the key expires", every_s=0.1)
    assert_refused(ask(f"Bearer {brief}"), 401, "not_authenticated")
    reader = house.control.issued(scopes=["read"])
    assert_refused(ask(f"Bearer {reader}"), 403, "forbidden")


def test_a_key_for_other_deployments_does_not_learn_of_this_one(house: House) -> None:
    other = f"other-{uuid4().hex[:8]}"
    assert house.client.post("/api/deployments/", json={"name": other, "model": NAME}).status_code == 201
    with house.product.http(house.control.issued(deployments=[other])) as guest:
        here = assert_refused(guest.post(PREDICT, content=GOOD), 404, "not_found")
        nowhere = assert_refused(guest.post("/v1/models/nobody:predict", content=GOOD), 404, "not_found")
    assert here["error"] == nowhere["error"]


# Retries and deadlines


def test_a_retry_is_answered_alike_and_logged_as_one(house: House, answered: Answered) -> None:
    """Light predictions are pure: another body under the same key is another prediction, not a conflict."""
    answered.count = 3
    key = {"Idempotency-Key": uuid4().hex}
    first, again = (house.client.post(PREDICT, content=GOOD, headers=key) for _ in range(2))
    other = house.client.post(PREDICT, content=b'{"instances": [[3, 2, 1]]}', headers=key)
    assert (first.json(), again.status_code, other.status_code) == (again.json(), 200, 200)
    ids = [answer.headers["x-prediction-id"] for answer in (first, again, other)]
    assert len(set(ids)) == 3
    with psycopg.connect(house.product.settings["DATABASE_URL"], autocommit=True) as database:
        query = "SELECT id::text, retry_of::text FROM prediction WHERE id = ANY(%s::uuid[])"

        def logged() -> dict[str, str | None]:
            return dict(database.execute(query, [ids]).fetchall())

        wait_for(lambda: len(logged()) == 3, 30, "the predictions in the log")
        assert logged() == {ids[0]: None, ids[1]: ids[0], ids[2]: None}


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1.5", "", "1e3", "٣"])
def test_a_deadline_that_cannot_be_is_refused(value: str, house: House) -> None:
    headers = [(b"X-Deadline-Ms", value.encode())]
    assert_refused(house.client.post(PREDICT, content=GOOD, headers=headers), 400, "bad_header")


def test_a_huge_deadline_is_cut_to_what_is_allowed(house: House, answered: Answered) -> None:
    answered.count = 2
    for value in ("300001", "9" * 400):
        assert post(house, GOOD, X_Deadline_Ms=value).status_code == 200


def test_a_body_that_comes_too_slowly_is_past_its_deadline(house: House) -> None:
    with socket.create_connection(("127.0.0.1", house.product.port), timeout=20) as connection:
        connection.sendall(
            f"POST {PREDICT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {house.control.key}\r\n"
            "X-Deadline-Ms: 200\r\nContent-Length: 500\r\n\r\n{".encode()
        )
        received = b""
        while b"\r\n\r\n" not in received and (chunk := connection.recv(65_536)):
            received += chunk
    assert received.startswith(b"HTTP/1.1 504")


@pytest.mark.parametrize("value", ["no pairs", "=1", "a=1," * 9, "a=" + "x" * 300, "a=\u0007"], ids=str)
def test_a_context_that_cannot_be_read_is_refused(value: str, house: House) -> None:
    headers = [(b"X-Context", value.encode())]
    answer = house.client.post(PREDICT, content=GOOD, headers=headers)
    assert answer.status_code == 400, answer.text


def test_the_front_door_lives_after_all_of_it(house: House, answered: Answered) -> None:
    answered.count = 1
    assert post(house, GOOD).json() == {"predictions": [[2.5]]}
    with psycopg.connect(house.product.settings["DATABASE_URL"]) as database:
        alive = database.execute(
            "SELECT count(*) FROM dataplane_process WHERE heartbeat_at > now() - interval '5 seconds'"
        ).fetchone()
    assert alive is not None
    assert alive[0] >= 1
    failures = [line for line in house.client.get("/metrics").text.splitlines() if 'code="internal"' in line]
    assert failures == []
