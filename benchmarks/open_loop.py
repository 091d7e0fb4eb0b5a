"""An open loop: calls at a fixed rate, whatever the server does, each timed from the moment at which it was due.

So a server that stalls pays for every call that was due meanwhile (no "coordinated omission", Tene 2013). A call that
is due while all connections wait for answers waits for one, and that wait counts, unless its caller gives up. What the
generator spent, and by how much it sent late, is told with every result.
"""

import base64
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.load import Target, on_last_core

# Of a part's time: the bins in which `Part.bins` tells the course of things.
BIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Stage:
    """So many calls a second for so long."""

    rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Part:
    """What became of the calls of one stage. Times in milliseconds from when a call was due.

    `statuses`: answers by status; `given_up`: calls for which no connection came free in time, never sent; `failed`:
    connections that ended before an answer, and calls without an answer when the time was over. `served_p99_ms`: of
    answers 200, from when the call was written; `refused_*`: of answers 429 and 503, likewise. `late_*`: from due to
    written.
    `answered_per_s`: answers 200 that arrived while the stage went on, whenever they were due.
    `bins`: for each half second [answers 200 of calls due in it, their p99, all calls due in it].
    """

    rate: float
    seconds: float
    sent: int
    statuses: dict[str, int]
    given_up: int
    failed: int
    answered_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    most_ms: float
    served_p99_ms: float
    refused_p50_ms: float
    refused_p99_ms: float
    late_p50_ms: float
    late_p99_ms: float
    bins: list[list[float]]

    @property
    def ok(self) -> int:
        return self.statuses.get("200", 0)

    @property
    def errors(self) -> int:
        return self.sent - self.ok


@dataclass(frozen=True, slots=True)
class Result:
    """All stages, and what the generator itself cost: processor microseconds a call, its share of one core."""

    parts: list[Part]
    own_us_per_call: float
    own_share: float


def run(
    target: Target,
    stages: Sequence[Stage],
    *,
    connections: int = 256,
    grace_s: float = 10.0,
    patience_s: float = 3600.0,
) -> Result:
    """Send the stages one after the other from a process of its own, on the last processor.

    `grace_s`: how long answers are waited for after the last call was due. `patience_s`: how long a call waits for a
    free connection, as callers' pools bound it.
    Raises RuntimeError where the generator fails.
    """
    specification = {
        "url": target.url,
        "headers": dict(target.headers),
        "body": base64.b64encode(target.body).decode(),
        "stages": [asdict(stage) for stage in stages],
        "connections": connections,
        "grace_s": grace_s,
        "patience_s": patience_s,
    }
    done = subprocess.run(
        on_last_core([sys.executable, "-m", "benchmarks.generator"]),
        input=json.dumps(specification),
        capture_output=True,
        text=True,
        timeout=sum(stage.seconds for stage in stages) + grace_s + 60,
        check=False,
        start_new_session=True,
    )
    if done.returncode:
        raise RuntimeError(f"the open loop failed: {done.stderr[-2000:]}")
    told = json.loads(done.stdout)
    return Result([Part(**part) for part in told["parts"]], told["own_us_per_call"], told["own_share"])
