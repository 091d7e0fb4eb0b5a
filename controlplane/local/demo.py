"""The demo: two versions of a card-fraud model, two days of history, and traffic with a known truth."""

import io
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from django.conf import settings
from django.core.management import call_command

from controlplane.deployments.documents import active_route
from controlplane.deployments.models import Deployment, RevisionState
from examples.card_fraud import generator
from inference.capture import fill
from inference.contracts import DeploymentRoute, Outcome, Source, SpoolRecord
from inference.routing import Split, Uuid7, bucket
from inference.runtime.onnx import OnnxModel, load_model
from inference.spool import SpoolWriter

NAME = "card-fraud"
FOLDER = Path(generator.__file__).parent
HISTORY_S = 2 * 86_400
HISTORY_CALLS = 20_000
# Payments follow the day: most at 15:00 UTC, fewest in the night.
PEAK_HOUR = 15


def ensure_demo() -> str:
    """Registers, deploys and back-fills what is missing; returns one line that says what was done. Safe to repeat."""
    found = Deployment.objects.filter(name=NAME).first()
    if found is None:
        for number in (1, 2):
            call_command(
                "register_model",
                NAME,
                FOLDER / f"card_fraud_v{number}.onnx",
                task="tabular-classification",
                labels=",".join(generator.LABELS),
                columns=",".join(generator.COLUMNS),
                reference=FOLDER / "reference.csv",
                stdout=io.StringIO(),
            )
        call_command("deploy", NAME, NAME, split="1=90,2=10", stdout=io.StringIO())
        found = Deployment.objects.get(name=NAME)
    if found.demo:
        return f"{NAME} is there already."
    if not found.revisions.filter(state=RevisionState.ACTIVE).exists():
        return f"{NAME} is deployed and waits for a data plane; run load_demo again for its history."
    written = _write_history(active_route(found), time.time())
    # Last, so that a start that was cut off half-way does it again: ids and all are made from the same seed.
    Deployment.objects.filter(pk=found.pk).update(demo=True)
    return f"{NAME} serves 90/10 with {written:,} past predictions."


def _write_history(route: DeploymentRoute, until: float) -> int:
    writer = SpoolWriter(settings.SIGNALBOX_SPOOL)
    try:
        count = 0
        for record in history(route, until):
            writer.append(record)
            count += 1
        return count
    finally:
        writer.close()


def history(route: DeploymentRoute, until: float, calls: int = HISTORY_CALLS) -> Iterator[SpoolRecord]:
    """Spool records of `calls` predictions in the two days before `until`, scored by the deployment's own versions."""
    rng = np.random.default_rng(2026)
    models = {number: _load(route, number) for number in {share.number for share in route.live}}
    split = Split.of(route)
    moments = _moments(until, calls, rng)
    batch = generator.payments(calls, rng)
    now = [0.0]
    new_id = Uuid7(clock=lambda: now[0])
    for index, at in enumerate(moments):
        now[0] = at
        number = split.choose(bucket(route.salt, f"payment-{index}"))
        version = route.versions[number]
        inputs = {version.signature.inputs[0].name: batch.features[index : index + 1]}
        compute_ms = float(rng.lognormal(math.log(0.05 + version.cost_s * 1000), 0.25))
        record = SpoolRecord(
            id=new_id(),
            at=float(at),
            source=Source.DEMO,
            deployment_id=route.id,
            version_id=version.id,
            version=number,
            client_id=f"payment-{index}",
            revision=route.revision,
            queue_ms=0.0,
            compute_ms=compute_ms,
            total_ms=compute_ms + float(rng.lognormal(math.log(0.35), 0.35)),
            outcome=Outcome.OK,
        )
        fill(record, version, route.capture, inputs, models[number].run(inputs))
        yield record


def _load(route: DeploymentRoute, number: int) -> OnnxModel:
    sha256 = route.versions[number].artifact_sha256
    return load_model((Path(settings.SIGNALBOX_ARTIFACTS) / sha256[:2] / sha256).read_bytes())


def _moments(until: float, calls: int, rng: np.random.Generator) -> list[float]:
    """Arrival times (Unix seconds, ascending), denser by day than by night."""
    grid = np.arange(until - HISTORY_S, until, 60.0)
    hour = (grid % 86_400) / 3600
    density = 1.0 + 0.75 * np.cos((hour - PEAK_HOUR) / 24 * 2 * np.pi)
    minutes = rng.choice(grid, size=calls, p=density / density.sum())
    return sorted(float(moment) for moment in minutes + rng.random(calls) * 59.9)
