"""Load by wrk, one thread of it, on a processor of its own where there are two."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NO_WRK = "wrk was not found, so nothing is measured: type apt-get install wrk."
_REPORT = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\nmeasured {"requests": %d, "us": %d, "bad": %d, "p50": %.1f, "p95": %.1f, "p99": %.1f}\\n',
    summary.requests, summary.duration,
    errors.status + errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a subject takes the call, and which process serves it."""

    name: str
    url: str
    headers: Mapping[str, str]
    pid: int


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


def pin_server(pid: int) -> None:
    """Keep a serving process, with all its threads, on the first processor; wrk has the last."""
    if len(cores()) > 1:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), cores()[:1])


def drive(target: Target, body: bytes, *, connections: int, seconds: float, pause_ms: int = 0) -> Load:
    """One closed loop for so long; `pause_ms`: each connection rests so long between two calls.

    Raises RuntimeError where a call was not answered 200.
    """
    script = 'wrk.method = "POST"\n' + f"wrk.body = {_quoted(body.decode())}\n"
    for name, value in {"Content-Type": "application/json", **target.headers}.items():
        script += f"wrk.headers[ {_quoted(name)} ] = {_quoted(value)}\n"
    if pause_ms:
        # Not all at once: around the pause, so that connections do not march in step.
        script += f"function delay() return math.random({pause_ms // 2}, {pause_ms * 3 // 2}) end\n"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script + _REPORT)
        file.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", file.name, target.url]
        if len(cores()) > 1 and shutil.which("taskset"):
            command = ["taskset", "-c", str(cores()[-1]), *command]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False)
    line = next((line for line in done.stdout.splitlines() if line.startswith("measured ")), None)
    if line is None:
        raise RuntimeError(f"wrk failed on {target.name}: {done.stderr or done.stdout}")
    told = json.loads(line.removeprefix("measured "))
    if told["bad"] or not told["requests"]:
        raise RuntimeError(f"{target.name}: {told['bad']} of {told['requests']} calls were not answered 200")
    return Load(
        told["requests"], told["requests"] / told["us"] * 1e6, told["p50"] / 1e3, told["p95"] / 1e3, told["p99"] / 1e3
    )


def _quoted(text: str) -> str:
    return "[==[" + text + "]==]"
