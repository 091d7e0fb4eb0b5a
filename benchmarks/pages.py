"""`python -m benchmarks pages`: the server time of every page of an installation that had a busy day."""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figures import keep, processor
from benchmarks.measures import cpu_s
from benchmarks.report import rewritten, table
from inference.runtime import collector

if TYPE_CHECKING:
    from benchmarks.seeding import Busy

LIMIT_MS = 200
# Parts of a page that it asks for again and again; the others are asked for as a browser would.
LIVE = {"HX-Request": "true"}


def _paths(prediction_id: str) -> list[tuple[str, str, bool]]:
    """(what it is, address, whether it is asked for as a live part)."""
    of = "/deployments/checkout/"
    found = [
        ("overview", "/", False),
        ("overview, live", "/", True),
        ("overview, 24 h", "/?range=24h", False),
        ("deployments", "/deployments/", False),
        ("deployments, live", "/deployments/", True),
        ("new deployment", "/deployments/new/", False),
    ]
    for tab in ("", "latency/", "accuracy/", "drift/"):
        name = tab.rstrip("/") or "traffic"
        found += [(f"{name}, {window}", f"{of}{tab}?range={window}", False) for window in ("6h", "24h")]
    return [
        *found,
        ("traffic, 30 d", f"{of}?range=30d", False),
        ("traffic, live", f"{of}traffic/?range=24h", True),
        ("failed calls, live", f"{of}errors/?range=24h", True),
        ("head, live", f"{of}head/", True),
        ("history, live", f"{of}history/", True),
        ("latency, live", f"{of}latency/?range=24h", True),
        ("accuracy, live", f"{of}accuracy/?range=24h", True),
        ("drift, live", f"{of}drift/?range=24h", True),
        ("predictions", f"{of}predictions/?range=24h", False),
        ("predictions, live", f"{of}predictions/?range=24h", True),
        ("predictions by client id", f"{of}predictions/?range=24h&q=order-1230", False),
        ("predictions by a client id that is none", f"{of}predictions/?range=24h&q=order-none", False),
        ("predictions of version 2", f"{of}predictions/?range=24h&version=2", False),
        ("predictions that failed", f"{of}predictions/?range=24h&outcome=server_error", False),
        ("predictions that timed out (none)", f"{of}predictions/?range=24h&outcome=timeout", False),
        ("predictions by code", f"{of}predictions/?range=24h&code=internal", False),
        ("predictions of a version that is none", f"{of}predictions/?range=24h&version=9", False),
        ("one prediction", f"{of}predictions/{prediction_id}/", False),
        ("try it", f"{of}try/", False),
        ("settings", f"{of}settings/", False),
        ("models", "/models/", False),
        ("one model", "/models/fraud/", False),
        ("one version", "/models/fraud/versions/1/", False),
        ("upload", "/models/fraud/upload/", False),
        ("studies", "/studies/", False),
        ("new study", "/studies/new/", False),
        ("jobs", "/jobs/", False),
        ("audit", "/audit/", False),
        ("keys", "/keys/", False),
        ("system", "/system/", False),
    ]


@contextmanager
def database() -> Iterator[None]:
    """An own PostgreSQL and Redis with all tables, gone afterwards. Settings are read from here on."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    import django

    from tests import services
    from tests.settings import TEST_ROOT

    cluster = services.cluster(TEST_ROOT, os.getpid())
    try:
        cluster.create("signalbox_main")
        django.setup()
        from django.core.management import call_command
        from django.test.utils import setup_test_environment

        call_command("migrate", interactive=False, verbosity=0)
        setup_test_environment()
        with services.redis_server(TEST_ROOT / "redis-main"):
            yield
    finally:
        services.end_cluster(TEST_ROOT)


def measured(busy: "Busy", rounds: int, only: str = "") -> dict[str, Any]:
    """Asks for every page `rounds` times, the pages in turn; a first round counts the queries and nothing else."""
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    from tests.controlplane.cast import signed_in

    client = signed_in(busy.person)
    # As controlplane/asgi.py does.
    collector.settle()
    took: dict[str, list[float]] = {}
    spent: dict[str, float] = {}
    queries: dict[str, int] = {}
    paths = [one for one in _paths(str(busy.prediction_id)) if only in one[0]]
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (backend,) = cursor.fetchone()
    for name, path, live in paths:
        with CaptureQueriesContext(connection) as asked:
            answer = client.get(path, headers=LIVE if live else {})
        assert answer.status_code == 200, f"{path} answers {answer.status_code}"
        queries[name], took[name], spent[name] = len(asked), [], 0.0
    for _ in range(rounds):
        for name, path, live in paths:
            began_at, used_s = time.perf_counter(), time.thread_time() + cpu_s(backend)
            client.get(path, headers=LIVE if live else {})
            took[name].append((time.perf_counter() - began_at) * 1000)
            spent[name] += (time.thread_time() + cpu_s(backend) - used_s) * 1000
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": busy.rows,
        "rounds": rounds,
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_average": [round(value, 2) for value in os.getloadavg()],
            "python": platform.python_version(),
        },
        "pages": [
            {
                "page": name,
                "median_ms": round(statistics.median(took[name]), 1),
                "most_ms": round(max(took[name]), 1),
                "cpu_ms": round(spent[name] / rounds, 1),
                "queries": queries[name],
            }
            for name in queries
        ],
    }


def markdown(figures: dict[str, Any]) -> str:
    machine = figures["machine"]
    head = (
        f"{figures['at'][:10]}, {machine['processor']}, {machine['cores']} cores, Python {machine['python']}; "
        f"{figures['rows']:,} predictions of 100 features in 24 h, 40 deployments in 3 teams; rounds: "
        f"{figures['rounds']}, load average {machine['load_average'][0]}."
    )
    rows = [
        (one["page"], f"{one['median_ms']:.0f} ms", f"{one['cpu_ms']:.0f} ms", str(one["queries"]))
        for one in figures["pages"]
    ]
    return f"{head}\n\n{table(('page', 'median', 'processor time', 'queries'), rows)}\n"


def main(arguments: list[str]) -> int:
    """Exit status 1 where a page's median is over the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks pages", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="logged predictions (1,000,000)")
    parser.add_argument("--rounds", type=int, default=9, help="times that each page is asked for (9)")
    parser.add_argument("--only", default="", help="pages whose name holds this text")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON to this file")
    parser.add_argument("--write", type=Path, metavar="PAGE.md", help="put the table into this page")
    asked = parser.parse_args(arguments)
    with database():
        from benchmarks.seeding import seed

        figures = measured(seed(asked.rows), asked.rounds, asked.only)
    text = markdown(figures)
    print(text)
    if asked.out is not None:
        asked.out.write_text(json.dumps(figures, indent=2) + "\n")
    if asked.write is not None:
        asked.write.write_text(rewritten(asked.write.read_text(), text, "pages"))
        keep(asked.write.with_suffix(".json"), "pages", figures)
    slow = [one["page"] for one in figures["pages"] if one["median_ms"] > LIMIT_MS]
    if slow:
        print(f"over {LIMIT_MS} ms: {', '.join(slow)}")
    return 1 if slow else 0
