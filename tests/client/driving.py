"""Calls of the client run by hand, without a network: what would be sent and how long it would pause."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from signalbox_client import AsyncClient, AsyncJob, Client, Retrying
from signalbox_client.calls import Calls, Pause, Steps
from signalbox_client.endpoint import Endpoint

Answer = httpx.Response | httpx.HTTPError
KEY = "sb_live_a-key-that-nobody-may-see"


class Clock:
    """Monotonic seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Driven:
    """Runs calls against answers given in advance; each `took_s` seconds, and pauses pass at once."""

    answers: list[Answer]
    retrying: Retrying = field(default_factory=lambda: Retrying(draw=lambda: 1.0))
    retries: int = 3
    took_s: float = 0.0
    clock: Clock = field(default_factory=Clock)
    sent: list[httpx.Request] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        endpoint = Endpoint("https://signalbox.example.org", KEY, timeout_s=30.0, user_agent="tests")
        self.calls = Calls(endpoint, retries=self.retries, deadline_s=None, retrying=self.retrying, clock=self.clock)

    def run(self, steps: Steps[Any]) -> Any:
        answer: httpx.Response | None = None
        failed: httpx.HTTPError | None = None
        while True:
            try:
                step = steps.send(answer) if failed is None else steps.throw(failed)
            except StopIteration as done:
                return done.value
            answer = failed = None
            if isinstance(step, Pause):
                self.pauses.append(step.seconds)
                self.clock.now += step.seconds
                continue
            self.sent.append(step)
            self.clock.now += self.took_s
            given = self.answers.pop(0)
            if isinstance(given, httpx.Response):
                answer = given
            else:
                failed = given


class Awaited:
    """An `AsyncClient`, or a job of it, whose coroutines are run to their end: so that one test serves both clients."""

    def __init__(self, runner: asyncio.Runner, inner: AsyncClient | AsyncJob) -> None:
        self._runner = runner
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        return self._calling(found) if asyncio.iscoroutinefunction(found) else found

    def _calling(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = self._runner.run(method(*arguments, **named))
            return Awaited(self._runner, result) if isinstance(result, AsyncJob) else result

        return call


@contextmanager
def made(kind: str, *arguments: Any, **named: Any) -> Iterator[Any]:
    """A client of `kind` (sync or async), closed at the end."""
    if kind == "sync":
        with Client(*arguments, **named) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        client = Awaited(runner, AsyncClient(*arguments, **named))
        yield client
        client.aclose()
