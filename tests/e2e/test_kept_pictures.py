"""A deployment of pictures that keeps its answers, through the whole product."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.control import Control, control_of
from tests.inference.runtime.picture_files import GREY_8, chest, dicom, encoded
from tests.inference.toys import picture_classifier
from tests.services import Product

pytestmark = pytest.mark.timeout(400)

NAME = "kept-pictures"
PIXELS = chest()
PICTURE, OTHER = encoded(PIXELS), encoded(255 - PIXELS)


@pytest.fixture(scope="module")
def control(product: Product) -> Iterator[Control]:
    with control_of(product) as control:
        model = picture_classifier(tail="Softmax")
        described = {"labels": "dark,grey,bright", "task": "image-classification"}
        control.upload(NAME, model, preprocessor=json.dumps(GREY_8), **described)
        version = control.validated(NAME)
        assert version["state"] == "ready", version["reason"]
        control.deploy(NAME, cache_ttl_s=3600)
        yield control


def b64(content: bytes) -> dict[str, Any]:
    return {"instances": [{"b64": base64.b64encode(content).decode()}]}


def test_a_picture_that_was_asked_before_gets_the_answer_that_was_kept(control: Control) -> None:
    def asked(**body: Any) -> tuple[str, bool, dict[str, float]]:
        """(what the answer says of where it is from, what the log does, the scores)"""
        answer = control.client.post(f"/v1/models/{NAME}:predict", **body)
        assert answer.status_code == 200, answer.text
        logged = control.prediction(answer.headers["X-Prediction-Id"])
        return answer.headers["X-Cache"], logged["cached"], answer.json()["predictions"][0]["scores"]

    came, logged, scores = asked(json=b64(PICTURE))
    assert (came, logged) == ("miss", False)
    for body in (
        {"json": b64(PICTURE)},
        {"content": PICTURE, "headers": {"Content-Type": "image/png"}},
        # Another file of the very same pixels.
        {"json": b64(dicom(PIXELS))},
    ):
        assert asked(**body) == ("hit", True, scores)
    came, logged, others = asked(json=b64(OTHER))
    assert (came, logged) == ("miss", False)
    assert others != scores
    assert asked(json=b64(OTHER)) == ("hit", True, others)
