"""Which scope opens what on the data plane: none implies another, but that whoever asks may see what it asks."""

from pathlib import Path

import pytest

from tests.inference.server.house import ADMIN, CALLER, READER, deployment, linear, open_house

pytestmark = pytest.mark.unit
PATHS = {
    "ask": "/v1/models/toy:predict",
    "ask by V2": "/v2/models/toy/infer",
    "ask by SageMaker": "/invocations",
    "pin": "/v1/models/toy/versions/1:predict",
}


@pytest.mark.parametrize(
    ("key", "paths"), [(ADMIN, list(PATHS)), (READER, list(PATHS)), (CALLER, ["pin"])], ids=["admin", "read", "predict"]
)
async def test_a_scope_opens_what_it_names_and_no_more(tmp_path: Path, key: str, paths: list[str]) -> None:
    async with open_house(tmp_path) as house:
        await house.hold(deployment(linear(tmp_path)))
        for path in paths:
            answer = await house.post(PATHS[path], key=key)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert house.served() == []
