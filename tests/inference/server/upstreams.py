"""A small web server in the place of Django, and a house in front of it. Test files import both fixtures."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.inference.server.house import House, open_house

Handler = Callable[[web.Request], Any]


def lowered(request: web.Request) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


class ControlPlane:
    """A small web server in the place of Django; `handler` answers everything."""

    def __init__(self) -> None:
        self.handler: Handler = self.echo
        self.requests: list[web.Request] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        answer: web.StreamResponse = await self.handler(request)
        return answer

    @staticmethod
    async def echo(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        document = {"path": request.raw_path, "method": request.method, "length": len(body)}
        return web.json_response({**document, "headers": lowered(request)}, headers={"X-Answer": "yes"})


@pytest.fixture
async def control(tmp_path: Path) -> AsyncIterator[ControlPlane]:
    plane = ControlPlane()
    server = web.Application(client_max_size=1 << 30)
    server.router.add_route("*", "/{path:.*}", plane.answer)
    runner = web.AppRunner(server)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "web.sock")).start()
    yield plane
    await runner.cleanup()


@pytest.fixture
async def house(tmp_path: Path, control: ControlPlane) -> AsyncIterator[House]:
    async with open_house(tmp_path, upstream=tmp_path / "web.sock") as opened:
        yield opened
