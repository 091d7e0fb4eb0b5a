"""A call of a hundred thousand rows in binary: one copy of its body, views of it, and a thinned record."""

import asyncio
import tracemalloc

import numpy as np
import orjson
import pytest

from inference import capture
from inference.batching import Arrays
from inference.contracts import CapturePolicy, Datatype, Source, SpoolRecord
from inference.server.protocols import v2
from inference.server.replies import Message, read_body, reply
from tests.inference.signatures import deployment_of, spec, version_of

pytestmark = pytest.mark.unit

ROWS, COLUMNS = 100_000, 30
PIECE = 64 * 1024
VERSION = version_of(spec("x", Datatype.FP32, -1, COLUMNS))


def request(cells: np.ndarray, *, output: bool = True) -> tuple[dict[bytes, bytes], bytes]:
    """Headers and body whose JSON part has a length that is no multiple of an element's."""
    document = {
        "inputs": [
            {
                "name": "x",
                "datatype": "FP32",
                "shape": list(cells.shape),
                "parameters": {"binary_data_size": cells.nbytes},
            }
        ],
        "parameters": {"binary_data_output": output},
    }
    head = orjson.dumps(document)
    head += b" " * (1 - len(head) % 4)
    return {b"inference-header-content-length": b"%d" % len(head)}, head + cells.tobytes()


async def received(headers: dict[bytes, bytes], body: bytes) -> bytes:
    """The body as the server puts it together from pieces."""
    pieces = iter(range(0, len(body), PIECE))

    async def receive() -> Message:
        start = next(pieces)
        end = start + PIECE
        return {"type": "http.request", "body": body[start:end], "more_body": end < len(body)}

    deadline = asyncio.get_running_loop().time() + 60
    return await read_body(receive, headers, 64 * 1024 * 1024, deadline, lambda amount: None, 16 * 1024)


def model(inputs: Arrays) -> Arrays:
    return {"y": inputs["x"][:, :2] * 2}


async def test_tensors_are_views_of_the_body_wherever_its_json_part_ends() -> None:
    cells = np.arange(40 * COLUMNS, dtype=np.float32).reshape(40, COLUMNS)
    for shift in range(1, 9):
        headers, body = request(cells)
        length = int(headers[b"inference-header-content-length"])
        head, tail = body[:length], body[length:]
        headers[b"inference-header-content-length"] = b"%d" % (length + shift)
        call = v2.decode(
            await received(headers, head + b" " * shift + tail), headers, deployment_of(VERSION, max_rows=64), VERSION
        )
        assert call.inputs["x"].flags.aligned
        assert not call.inputs["x"].flags.owndata
        np.testing.assert_array_equal(call.inputs["x"], cells)


async def test_a_hundred_thousand_rows_take_the_body_and_the_outputs_and_little_more() -> None:
    cells = np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    headers, body = request(cells)
    route = deployment_of(VERSION, max_rows=ROWS)
    sent: list[int] = []

    async def send(message: Message) -> None:
        sent.append(len(message.get("body", b"")))

    tracemalloc.start()
    try:
        got = await received(headers, body)
        call = v2.decode(got, headers, route, VERSION)
        outputs = model(call.inputs)
        _kind, _headers, content = v2.encode(call, outputs, route, VERSION, "id")
        await reply(send, 200, [], content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    written = sum(array.nbytes for array in outputs.values())
    # The buffer grows by an eighth at a time; the outputs are there as arrays and as the answer.
    assert peak <= 1.25 * len(body) + 2 * written + 1024 * 1024, peak / len(body)
    assert sum(sent) == len(content)
    assert max(sent) <= 512 * 1024


def test_the_record_of_a_large_call_is_made_from_the_rows_that_are_kept() -> None:
    cells = np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    record = SpoolRecord(id="0" * 32, at=0.0, source=Source.LIVE)
    tracemalloc.start()
    try:
        capture.fill(record, VERSION, CapturePolicy(), {"x": cells}, {"y": cells[:, :2] * 2})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert record.features is not None
    kept = {name: len(values) for name, values in record.features.items()}
    assert len(kept) == COLUMNS
    assert set(kept.values()) == {-(-ROWS // 12)}
    assert np.array_equal(np.float32(record.features["x[3]"][:5]), cells[::12, 3][:5])
    # Numbers of Python take 32 bytes with their place in a list: those of all cells would be 96 MB.
    assert peak <= 32 * capture.FEATURE_CELLS * 2.5
