"""A busy day for the benchmark of the pages: PostgreSQL makes the log itself, the ingester's code the rollups."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec
import numpy as np
from django.db import connection
from django.utils import timezone

from controlplane.accounts.models import Role as TeamRole
from controlplane.accounts.models import Team, User
from controlplane.audit.models import AuditEvent
from controlplane.catalog.models import ModelVersion
from controlplane.deployments.models import Deployment, RevisionState, SplitRevision
from controlplane.predictions import rollups, sketch_rollups, tallies
from controlplane.predictions.partitions import ensure_partitions
from controlplane.predictions.records import LogRow, Refusal, sort_out
from controlplane.predictions.rollups import FeedbackGatherer, Gatherer
from inference.contracts import Outcome, SpoolRecord, Task
from tests.controlplane.cast import new_key, new_user
from tests.controlplane.deployments.rows import make_deployment, make_model, make_version
from tests.controlplane.predictions.records import refused, served

NAME = "checkout"
FEATURES = 100
COLUMNS = tuple(f"f{index:02d}" for index in range(FEATURES))
LABELS = ("ok", "fraud")
DAY = timedelta(hours=24)
# Percent of the calls that version 1 answers; one in LABELLED gets its truth; one in SHADOWED fails in a shadow.
FIRST_SHARE, LABELLED, SHADOWED = 90, 20, 5_000
OTHERS, TEAMS = 39, ("cards", "radiology", "shop")
# Different payloads and outcomes; the rows of the day are drawn from them.
POOL = 500
BUCKET_S = 10
ERRORS = (
    (Outcome.CLIENT_ERROR, 422, "wrong_type", "f03", 60),
    (Outcome.CLIENT_ERROR, 422, "unknown_feature", "f97", 25),
    (Outcome.CLIENT_ERROR, 422, "model_rejected_input", "", 5),
    (Outcome.SHED, 503, "overloaded", "", 6),
    (Outcome.TIMEOUT, 504, "deadline_exceeded", "", 4),
)

# Ids are UUIDv7: 48 bits of milliseconds, the version, the variant, and made-up bits.
_LOG = """
INSERT INTO prediction (id, at, deployment_id, version_id, version, revision, routes_generation, key_id, client_id,
    idempotency_key, source, role, lane, pinned, queue_ms, compute_ms, total_ms, rows, outcome, status, code, loc,
    inputs, outputs, scores, counted)
SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8'
        || substr(md5(n::text), 4, 15))::uuid,
    at, %(deployment)s, CASE WHEN first THEN %(first)s ELSE %(second)s END::uuid, CASE WHEN first THEN 1 ELSE 2 END,
    1, 1, %(key)s, CASE WHEN n %% 10 = 0 THEN 'order-' || n ELSE '' END, '', CASE WHEN failed THEN 'shadow' ELSE 'live'
    END, CASE WHEN failed THEN 'shadow' ELSE 'live' END, 'inline', false, 0.3, 2, 3, 1,
    CASE WHEN failed THEN 'server_error' ELSE 'ok' END, CASE WHEN failed THEN 500 ELSE 200 END,
    CASE WHEN failed THEN 'internal' ELSE '' END, '', inputs, outputs, scores, true
FROM (SELECT n, %(since)s::timestamptz + n * (interval '24 hours' / %(rows)s) AS at, n %% 100 < %(share)s AS first,
    n %% %(shadowed)s = 0 AS failed FROM generate_series(0, %(rows)s - 1) AS n) AS calls
JOIN payload ON number = n %% %(pool)s
"""
_FEEDBACK = """
INSERT INTO feedback (prediction_id, deployment_id, team_id, client_id, number, latest, state, code, truth, ungradable,
    comment, given_at, given_by, own_only)
SELECT id, deployment_id, %s, '', 1, true, 'counted', '', '{"label": "ok"}', false, '', at + interval '20 minutes',
    'key:bank', false
FROM prediction WHERE deployment_id = %s AND client_id LIKE 'order-%%0' AND outcome = 'ok'
"""


@dataclass(frozen=True, slots=True)
class Busy:
    """The busy deployment, the person who looks at it, and one of its predictions."""

    person: User
    deployment: Deployment
    prediction_id: UUID
    rows: int


def seed(rows: int) -> Busy:
    """Fills an empty database; some minutes for a million rows."""
    teams = [Team.objects.create(name=name) for name in TEAMS]
    person = new_user("owner", teams[0], TeamRole.ADMIN, TeamRole.DATA_SCIENTIST, TeamRole.DOCTOR)
    for team in teams[1:]:
        team.memberships.create(user=person, role=TeamRole.ADMIN)
    model = make_model(teams[0])
    columns = [{"name": name} for name in COLUMNS]
    versions = [make_version(model, columns=columns), make_version(model, columns=columns)]
    deployment = _deploy(teams[0], versions, NAME)
    key, _ = new_key(teams[0], ["predict", "feedback"])
    since = timezone.now() - DAY
    ensure_partitions([since.date(), timezone.now().date()])
    records = [list(_records(deployment, version)) for version in versions]
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("log", lambda: _log(deployment, versions, records[0], since, rows, key.pk)),
        ("rollups", lambda: _rollups(deployment, records, since, rows)),
        ("other deployments", lambda: _others(teams)),
        ("audit", lambda: _audit(teams[0], person)),
        ("compaction", _compact),
    )
    for what, step in steps:
        began_at = time.monotonic()
        step()
        print(f"{what}: {time.monotonic() - began_at:.0f} s", flush=True)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("SELECT id FROM prediction WHERE client_id <> '' ORDER BY id DESC LIMIT 1 OFFSET 100")
        (prediction_id,) = cursor.fetchone()
    return Busy(person, deployment, prediction_id, rows)


def _deploy(team: Team, versions: list[ModelVersion], name: str) -> Deployment:
    deployment = make_deployment(team, versions[0].model, name)
    at = timezone.now() - timedelta(hours=30)
    shares = {"1": FIRST_SHARE * 100, "2": 10_000 - FIRST_SHARE * 100} if len(versions) > 1 else {"1": 10_000}
    SplitRevision.objects.create(
        deployment=deployment, number=1, shares=shares, state=RevisionState.ACTIVE, actor="user:owner", activated_at=at
    )
    Deployment.objects.filter(pk=deployment.pk).update(next_revision=2)
    return deployment


def _records(deployment: Deployment, version: ModelVersion) -> Iterator[SpoolRecord]:
    """Calls of one row of 100 numbers, with latencies as they come."""
    rng = np.random.default_rng(version.number)
    for row in range(POOL):
        values = {
            name: [round(float(value), 4)] for name, value in zip(COLUMNS, rng.normal(size=FEATURES), strict=True)
        }
        fraud = round(float(rng.beta(1, 8)), 4)
        compute_ms = float(rng.lognormal(0.7, 0.4))
        queue_ms = float(rng.lognormal(-1.5, 0.8))
        yield served(
            deployment,
            version,
            at=timezone.now().timestamp() - row,
            inputs=values,
            features=values,
            scores={"ok": [1 - fraud], "fraud": [fraud]},
            queue_ms=queue_ms,
            compute_ms=compute_ms,
            total_ms=queue_ms + compute_ms + 0.2,
        )


def _log(
    deployment: Deployment,
    versions: list[ModelVersion],
    records: list[SpoolRecord],
    since: datetime,
    rows: int,
    key_id: UUID,
) -> None:
    encode = msgspec.json.Encoder().encode
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE payload (number integer, inputs jsonb, outputs jsonb, scores jsonb)")
        cursor.executemany(
            "INSERT INTO payload VALUES (%s, %s, %s, %s)",
            [
                (number, *(encode(part).decode() for part in (one.inputs, one.outputs, one.scores)))
                for number, one in enumerate(records)
            ],
        )
        cursor.execute(
            _LOG,
            {
                "deployment": deployment.pk,
                "first": versions[0].pk,
                "second": versions[1].pk,
                "key": key_id,
                "since": since,
                "rows": rows,
                "share": FIRST_SHARE,
                "shadowed": SHADOWED,
                "pool": POOL,
            },
        )
        cursor.execute(_FEEDBACK, [deployment.team_id, deployment.pk])


def _rollups(deployment: Deployment, records: list[list[SpoolRecord]], since: datetime, rows: int) -> None:
    """The same calls as the ingester would have counted them, and what feedback said of one in LABELLED of them."""
    now = timezone.now()
    encode = msgspec.json.Encoder().encode
    pools = [sort_out([encode(record) for record in mine], now).rows for mine in records]
    spoiled = _refusals(deployment, now)
    draw = random.Random(7)
    told = [[_tally(row, draw) for row in pool] for pool in pools]
    seconds = range(int(since.timestamp()), int(now.timestamp()), BUCKET_S)
    per_bucket = rows / len(seconds)
    gatherer, truths = Gatherer(now), FeedbackGatherer(now)
    for index, second in enumerate(seconds):
        for pool, share, tallied in zip(pools, (FIRST_SHARE, 100 - FIRST_SHARE), told, strict=True):
            count = int(per_bucket * share / 100 + draw.random())
            gatherer.add_rows(pool[0].kind, second, draw.choices(pool, k=count))
            kind = pool[0].kind
            for tally in draw.choices(tallied, k=int(count / LABELLED + draw.random())):
                truths.add(
                    deployment_id=kind.deployment_id,
                    version_id=kind.version_id,
                    version=kind.version,
                    revision=kind.revision,
                    role=kind.role.value,
                    source=kind.source.value,
                    at=datetime.fromtimestamp(second, UTC),
                    tally=tally,
                )
        if draw.random() < 0.3:
            refusal = draw.choices(spoiled, weights=[weight for *_, weight in ERRORS])[0]
            gatherer.add_refusal(replace(refusal, at=float(second)))
        if index % 360 == 359:
            gatherer.save()
            truths.save()
            gatherer, truths = Gatherer(now), FeedbackGatherer(now)
    gatherer.save()
    truths.save()


def _refusals(deployment: Deployment, now: datetime) -> list[Refusal]:
    lines = [
        msgspec.json.encode(refused(deployment, outcome=outcome, status=status, code=code, loc=loc))
        for outcome, status, code, loc, _ in ERRORS
    ]
    return sort_out(lines, now).refusals


def _tally(row: LogRow, draw: random.Random) -> tallies.Tally:
    fraud = float(row.scores["fraud"][0])
    label = "fraud" if draw.random() < fraud else "ok"
    return tallies.tally_of(
        Task.TABULAR_CLASSIFICATION, {"label": label}, row.scores, LABELS, {}, delay=timedelta(minutes=20)
    )


def _others(teams: list[Team]) -> None:
    """OTHERS more deployments with some calls a minute over the day."""
    now = timezone.now()
    gatherer = Gatherer(now)
    for index in range(OTHERS):
        team = teams[index % len(teams)]
        version = make_version(make_model(team, f"model-{index:02d}"))
        deployment = _deploy(team, [version], f"service-{index:02d}")
        calls = [served(deployment, version, total_ms=float(ms)) for ms in np.random.default_rng(index).gamma(2, 2, 20)]
        pool = sort_out([msgspec.json.encode(call) for call in calls], now).rows
        for second in range(int((now - DAY).timestamp()), int(now.timestamp()), 60):
            gatherer.add_rows(pool[0].kind, second, pool)
    gatherer.save()


def _compact() -> None:
    """What the scheduler would have done meanwhile."""
    for compact in (rollups.compact, sketch_rollups.compact):
        while compact():
            pass


def _audit(team: Team, person: User) -> None:
    at = timezone.now()
    AuditEvent.objects.bulk_create(
        [
            AuditEvent(
                at=at - timedelta(minutes=index),
                actor=f"user:{person.username}",
                team_id=team.pk,
                action="split.apply",
                target_type="deployment",
                target_id=NAME,
                target_label=NAME,
            )
            for index in range(20_000)
        ],
        batch_size=2_000,
    )
