"""A closed loop by wrk, one thread of it, on a processor of its own where there are two."""

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NO_WRK = "wrk was not found, so nothing is measured: type apt-get install wrk."
# A call may take so long before wrk counts it as failed.
_TIMEOUT_S = 30
_SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
{headers}
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\nmeasured {{"requests": %d, "us": %d, "bad": %d, "p50": %.1f, "p95": %.1f, "p99": %.1f}}\\n',
    summary.requests, summary.duration,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Target:
    """A call that is sent again and again, and who takes it."""

    name: str
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """What one window measured."""

    requests: int
    per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def is_here() -> bool:
    return shutil.which("wrk") is not None


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def pin_to_first(pid: int) -> None:
    """Keep a process, with all its threads, on the first processor; the load has the last."""
    _pin(pid, 0)


def pin_to_last(pid: int) -> None:
    _pin(pid, -1)


def _pin(pid: int, index: int) -> None:
    if len(cores()) > 1:
        for thread in Path(f"/proc/{pid}/task").glob("*"):
            # It may have ended meanwhile.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(int(thread.name), [cores()[index]])


def on_first_core(command: list[str]) -> list[str]:
    """`command`, to be run with all that it starts on the first processor."""
    return _on_core(0, command)


def on_last_core(command: list[str]) -> list[str]:
    return _on_core(-1, command)


def _on_core(index: int, command: list[str]) -> list[str]:
    if len(cores()) > 1 and shutil.which("taskset"):
        return ["taskset", "-c", str(cores()[index]), *command]
    return command


class Closed:
    """A closed loop that goes on beside something else; `result()` waits for its end."""

    def __init__(self, target: Target, *, connections: int, seconds: float, pause_ms: int = 0) -> None:
        self._target, self._seconds = target, seconds
        self._folder = tempfile.TemporaryDirectory(prefix="signalbox-bench-wrk-")
        script = Path(self._folder.name) / "script.lua"
        body = Path(self._folder.name) / "body"
        body.write_bytes(target.body)
        headers = "".join(
            f"wrk.headers[ {_quoted(name)} ] = {_quoted(value)}\n" for name, value in target.headers.items()
        )
        text = _SCRIPT.format(body=body, headers=headers)
        if pause_ms:
            # Not all at once: around the pause, so that connections do not march in step.
            text += f"function delay() return math.random({pause_ms // 2}, {pause_ms * 3 // 2}) end\n"
        script.write_text(text)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", f"--timeout={_TIMEOUT_S}s"]
        self._process = subprocess.Popen(
            on_last_core([*command, "-s", str(script), target.url]),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def result(self) -> Load:
        """Raises RuntimeError where a call was not answered 200."""
        with self._folder:
            try:
                out, err = self._process.communicate(timeout=self._seconds + 60)
            except BaseException:
                self.cancel()
                raise
        line = next((line for line in out.splitlines() if line.startswith("measured ")), None)
        if line is None:
            raise RuntimeError(f"wrk failed on {self._target.name}: {err or out}")
        told = json.loads(line.removeprefix("measured "))
        if told["bad"] or not told["requests"]:
            message = f"{told['bad']} of {told['requests']} calls were not answered 200"
            raise RuntimeError(f"{self._target.name}: {message}")
        per_s = told["requests"] / told["us"] * 1e6
        return Load(told["requests"], per_s, told["p50"] / 1e3, told["p95"] / 1e3, told["p99"] / 1e3)

    def cancel(self) -> None:
        self._process.kill()
        self._process.wait()


def drive(target: Target, *, connections: int, seconds: float, pause_ms: int = 0) -> Load:
    """One closed loop for so long; `pause_ms`: each connection rests so long between two calls.

    Raises RuntimeError where a call was not answered 200.
    """
    return Closed(target, connections=connections, seconds=seconds, pause_ms=pause_ms).result()


def _quoted(text: str) -> str:
    return "[==[" + text + "]==]"
