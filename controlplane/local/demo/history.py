"""Two days of calls that never were: scored by the deployment's own versions, with the truth as far as it came in.

What is sent does not depend on the hour, only how much: so no window of the history differs from another by more than
chance, and drift is found where there is some.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from controlplane.audit.services import COMMAND
from controlplane.deployments.documents import active_route
from controlplane.deployments.models import Deployment
from controlplane.local.demo.cases import Calls, Case
from controlplane.predictions.feedback import BULK_ROWS, Asker, give_feedback
from controlplane.predictions.ingest import record_predictions
from controlplane.predictions.partitions import ensure_partitions
from controlplane.predictions.truths import Statement
from inference.capture import fill
from inference.contracts import DeploymentRoute, Lane, Outcome, Source, SpoolRecord
from inference.errors import TABLE
from inference.routing import Split, Uuid7, bucket
from inference.runtime.onnx import OnnxModel, load_model

Array = npt.NDArray[Any]

HISTORY_S = 2 * 86_400
# Calls follow the day: most at 15:00 UTC, fewest in the night.
PEAK_HOUR = 15
# The share of calls that are refused for a mistake of the caller.
MISTAKEN = 0.004
# Calls that are written together: as the ingester does, some ten seconds' worth.
BATCH = 2_000


@dataclass(frozen=True, slots=True)
class Past:
    """One past call and, where it is known by now, its truth."""

    record: SpoolRecord
    truth: Statement | None


def write_history(case: Case, deployment: Deployment, until: float) -> int:
    """Writes the history and its feedback into the log, all or nothing; returns the number of calls.

    Marks the deployment as `demo` in the same transaction, so that a start that was cut off does it again.
    """
    past = list(history(case, active_route(deployment), until))
    with transaction.atomic():
        ensure_partitions({datetime.fromtimestamp(one.record.at, UTC).date() for one in past})
    now = timezone.now()
    asker = Asker(COMMAND, {deployment.pk: deployment})
    with transaction.atomic():
        for start in range(0, len(past), BATCH):
            record_predictions([one.record for one in past[start : start + BATCH]], now)
        truths = [one.truth for one in past if one.truth is not None]
        for start in range(0, len(truths), BULK_ROWS):
            give_feedback(asker=asker, statements=truths[start : start + BULK_ROWS])
        Deployment.objects.filter(pk=deployment.pk).update(demo=True)
    return len(past)


def history(case: Case, route: DeploymentRoute, until: float) -> Iterator[Past]:
    """The case's past calls in the two days before `until` (Unix seconds), oldest first."""
    rng = np.random.default_rng(2026)
    split = Split.of(route)
    moments = _moments(until, case.history, rng)
    calls = case.draw(case.history, rng, 0.0)
    numbers = [split.choose(bucket(route.salt, f"{case.name}-{index}")) for index in range(case.history)]
    outputs = _answers(route, numbers, calls)
    delays = case.truth_after_s * rng.lognormal(0.0, 0.6, case.history)
    known = (rng.random(case.history) < case.known) & (np.array(moments) + delays < until)
    mistaken = rng.random(case.history) < MISTAKEN
    now = [0.0]
    new_id = Uuid7(clock=lambda: now[0])
    for index, at in enumerate(moments):
        now[0] = at
        number = numbers[index]
        version = route.versions[number]
        compute_ms = float(rng.lognormal(math.log(0.05 + version.cost_s * 1000), 0.25))
        record = SpoolRecord(
            id=new_id(),
            at=at,
            source=Source.DEMO,
            deployment_id=route.id,
            version_id=version.id,
            version=number,
            client_id=f"{case.name}-{index}",
            revision=route.revision,
            lane=Lane.EXECUTOR if calls.pictures else Lane.INLINE,
            queue_ms=0.0,
            compute_ms=compute_ms,
            total_ms=compute_ms + float(rng.lognormal(math.log(case.around_ms), 0.35)),
            context=dict(case.context),
        )
        if mistaken[index]:
            _refuse(record, *case.mistakes[index % len(case.mistakes)])
            yield Past(record, None)
            continue
        if calls.pictures:
            record.pictures = [calls.pictures[index]]
        inputs = {version.signature.inputs[0].name: calls.tensor[index : index + 1]}
        fill(record, version, route.capture, inputs, outputs[index])
        truth = None
        if known[index]:
            known_at = datetime.fromtimestamp(at + float(delays[index]), UTC)
            truth = Statement({"label": calls.truths[index]}, prediction_id=UUID(record.id), given_at=known_at)
        yield Past(record, truth)


def _answers(route: DeploymentRoute, numbers: Sequence[int], calls: Calls) -> list[dict[str, Array]]:
    """What the versions of these numbers say of each call; all calls of one version are one run."""
    answers: list[dict[str, Array]] = [{} for _ in numbers]
    for number in sorted(set(numbers)):
        mine = np.flatnonzero(np.array(numbers) == number)
        name = route.versions[number].signature.inputs[0].name
        outputs = _load(route, number).run({name: calls.tensor[mine]})
        for place, index in enumerate(mine):
            answers[index] = {output: rows[place : place + 1] for output, rows in outputs.items()}
    return answers


def _refuse(record: SpoolRecord, code: str, place: str) -> None:
    record.code, record.loc, record.status = code, place, TABLE[code].status
    record.outcome = Outcome.of_refusal(record.status)
    record.version_id, record.version, record.compute_ms = "", 0, 0.0


def _load(route: DeploymentRoute, number: int) -> OnnxModel:
    sha256 = route.versions[number].artifact_sha256
    return load_model((Path(settings.SIGNALBOX_ARTIFACTS) / sha256[:2] / sha256).read_bytes())


def _moments(until: float, calls: int, rng: np.random.Generator) -> list[float]:
    """Arrival times (Unix seconds, ascending), denser by day than by night."""
    grid = np.arange(until - HISTORY_S, until - 60.0, 60.0)
    hour = (grid % 86_400) / 3600
    density = 1.0 + 0.75 * np.cos((hour - PEAK_HOUR) / 24 * 2 * np.pi)
    minutes = rng.choice(grid, size=calls, p=density / density.sum())
    return sorted(float(moment) for moment in minutes + rng.random(calls) * 59.9)
