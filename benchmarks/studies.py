"""`python -m benchmarks studies`: from a doctor's press on Send until the suggestion stands on the page."""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from benchmarks.convnet import LABELS, network
from benchmarks.figures import keep, processor
from benchmarks.report import rewritten, table
from tests.e2e.clinic import Person, hidden, identity, make_people, rows, signed_in
from tests.e2e.control import control_of
from tests.inference.runtime.picture_files import chest, dicom, encoded
from tests.services import Product

NAME = "chest"
LIMIT_S = 2.0
SIDE = 1024
DOCTORS = ("first-doctor", "second-doctor")
# As static/js/lib/live.js does it: parts are looked for so often, and asked for again after `data-live` seconds.
LOOK_EVERY_S = 0.25
PARTS = ("draft", "upload and de-identify", "send", "page", "in the queue", "decode and run", "until polled")
_TIMES = """
SELECT j.created_at, j.started_at, j.finished_at FROM jobs_job j
JOIN studies_studypicture p ON p.job_id = j.id WHERE p.study_id = %s
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One study of one picture: seconds of it all, and of its parts in the order of PARTS."""

    kind: str
    total_s: float
    parts_s: tuple[float, ...]
    model_s: float


def picture(number: int, kind: str) -> bytes:
    """A made-up chest of 1024 x 1024 with grain, another one each time: DICOM of 12 bits, or PNG of 8."""
    grain = np.random.default_rng(number).normal(0, 3, (SIDE, SIDE))
    shown = np.clip(chest(SIDE, SIDE) + grain, 0, 255)
    if kind == "PNG":
        return encoded(shown.astype(np.uint8))
    values = (shown * 16).astype(np.uint16)
    return dicom(values, BitsStored=12, HighBit=11, WindowCenter="2048", WindowWidth="4096", ViewPosition="PA")


@contextmanager
def clinic() -> Iterator[Product]:
    """The product as `make run` starts it, without the demo: own PostgreSQL (durable) and Redis; two doctors."""
    folder = Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    # As root the embedded PostgreSQL runs as another account, which has to walk through.
    folder.chmod(0o711)
    running = Product(folder / "home", settings={"SIGNALBOX_POSTGRES_FSYNC": "1"})
    try:
        running.start()
        make_people(running, {name: [("default", "doctor")] for name in DOCTORS})
        preprocessor = {"do_grayscale": True, "size": {"height": 224, "width": 224}, "image_mean": [0.5]}
        with control_of(running) as control:
            control.upload(
                NAME,
                network(),
                task="image-multilabel",
                activation="sigmoid",
                labels=",".join(f"finding {number}" for number in range(1, LABELS + 1)),
                preprocessor=json.dumps(preprocessor | {"image_std": [0.5]}),
            )
            version = control.validated(NAME)
            assert version["state"] == "ready", version["reason"]
            control.deploy(NAME)
        yield running
    finally:
        running.remove()
        shutil.rmtree(folder, ignore_errors=True)


def one_study(running: Product, doctor: Person, kind: str, content: bytes) -> Measured:
    """What the page's script does from Send on, and the polls of the page that follows."""
    page = doctor.form()
    marks = [time.time()]
    fields = {"study": hidden(page, "study"), "deployment": NAME, "reference": "timed"}
    made = doctor.script("/studies/new/", **fields)
    assert made.status_code == 201, made.text
    marks.append(time.time())
    added = doctor.script(made.json()["add"], {"file": ("picture", content)}, blackouts="[]")
    assert added.status_code == 201, added.text
    marks.append(time.time())
    sent = doctor.script(made.json()["send"])
    assert sent.status_code == 200, sent.text
    marks.append(time.time())
    address = sent.json()["address"]
    shown = doctor.page(address)
    marks.append(time.time())
    while "data-scores" not in shown:
        assert "No suggestion" not in shown, shown
        # The part's time is over between two looks.
        time.sleep(float(shown.partition('data-live="')[2].partition('"')[0]) + LOOK_EVERY_S / 2)
        shown = doctor.client.get(f"{address}state/", headers={"HX-Request": "true"}).text
    seen_at = time.time()
    (job,) = rows(running, _TIMES, identity(address))
    began, ended = job["started_at"].timestamp(), job["finished_at"].timestamp()
    steps = [marks[at + 1] - marks[at] for at in range(4)]
    queued = max(0.0, began - job["created_at"].timestamp())
    parts = (*steps, queued, ended - began, max(0.0, seen_at - max(ended, marks[-1])))
    computed = rows(running, "SELECT compute_ms FROM prediction WHERE id IN (SELECT job_id FROM studies_studypicture"
                    " WHERE study_id = %s)", identity(address))  # fmt: skip
    model_s = computed[0]["compute_ms"] / 1000 if computed else 0.0
    return Measured(kind, seen_at - marks[0], parts, model_s)


def measured(running: Product, rounds: int) -> dict[str, Any]:
    """Both doctors at once, each sending as soon as the one before is seen; the first two of each are not counted."""
    together = threading.Barrier(len(DOCTORS))
    # Of what else the machine does.
    load_average = [round(value, 2) for value in os.getloadavg()]

    def day(index: int, name: str) -> list[Measured]:
        found = []
        with signed_in(running, name) as doctor:
            together.wait(120)
            for number in range(rounds + 2):
                kind = ("DICOM", "PNG")[(number + index) % 2]
                # Made before the clock runs.
                content = picture(index * 10_000 + number, kind)
                found.append(one_study(running, doctor, kind, content))
        return found[2:]

    with ThreadPoolExecutor(len(DOCTORS)) as pool:
        days = [future.result() for future in [pool.submit(day, *one) for one in enumerate(DOCTORS)]]
    studies = [study for found in days for study in found]
    kinds = {kind: [study.total_s for study in studies if study.kind == kind] for kind in ("DICOM", "PNG")}
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "studies": len(studies),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "load_average": load_average,
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,
        },
        "total": _spread([study.total_s for study in studies]),
        "kinds": {kind: _spread(totals) for kind, totals in kinds.items()},
        "parts": {part: _spread([study.parts_s[at] for study in studies]) for at, part in enumerate(PARTS)},
        "model": _spread([study.model_s for study in studies]),
    }


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50_s": round(statistics.median(ordered), 3),
        "p95_s": round(float(np.percentile(ordered, 95)), 3),
        "most_s": round(ordered[-1], 3),
    }


def markdown(figures: dict[str, Any]) -> str:
    machine = figures["machine"]
    head = (
        f"{figures['at'][:10]}, {machine['processor']}, {machine['cores']} cores, Python {machine['python']}, ONNX "
        f"Runtime {machine['onnxruntime']}; {figures['studies']} studies by two doctors at once, load average "
        f"{machine['load_average'][0]} before they began."
    )
    shown = {"Send to suggestion": figures["total"]}
    shown |= {f"… {kind}": spread for kind, spread in figures["kinds"].items()}
    shown |= {f"part: {part}": spread for part, spread in figures["parts"].items()}
    shown["of which the model"] = figures["model"]
    lines = [
        (what, f"{spread['p50_s']:.2f} s", f"{spread['p95_s']:.2f} s", f"{spread['most_s']:.2f} s")
        for what, spread in shown.items()
    ]
    return f"{head}\n\n{table(('what', 'median', 'p95', 'most'), lines)}\n"


def main(arguments: list[str]) -> int:
    """Exit status 1 where the p95 of it all is over the limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks studies", description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="studies of each doctor (30)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON to this file")
    parser.add_argument("--write", type=Path, metavar="PAGE.md", help="put the table into this page")
    asked = parser.parse_args(arguments)
    with clinic() as running:
        figures = measured(running, asked.rounds)
    text = markdown(figures)
    print(text)
    if asked.out is not None:
        asked.out.write_text(json.dumps(figures, indent=2) + "\n")
    if asked.write is not None:
        asked.write.write_text(rewritten(asked.write.read_text(), text, "studies"))
        keep(asked.write.with_suffix(".json"), "studies", figures)
    over = figures["total"]["p95_s"] > LIMIT_S
    if over:
        print(f"over {LIMIT_S:.0f} s")
    return 1 if over else 0
