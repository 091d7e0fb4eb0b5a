"""Counts that are right with several processes, and after one of them died."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inference.server.metrics import BOUNDS_S, Metrics, render

pytestmark = pytest.mark.unit


def lines(folder: Path) -> dict[str, float]:
    """The samples of a scrape by their series."""
    text = render(folder).decode()
    samples = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {series: float(value) for series, _, value in samples}


CALLS = 'signalbox_calls_total{deployment="toy",version="1",code="ok"}'


def count(metrics: Metrics, times: int) -> None:
    counter = metrics.counter("signalbox_calls_total", deployment="toy", version=1, code="ok")
    for _ in range(times):
        counter.add()


def test_counts_of_several_processes_are_summed(tmp_path: Path) -> None:
    one, two = Metrics(tmp_path), Metrics(tmp_path)
    count(one, 3)
    count(two, 4)
    assert lines(tmp_path)[CALLS] == 7
    one.close()
    two.close()


def test_a_dead_processes_counts_are_folded_once(tmp_path: Path) -> None:
    one, two = Metrics(tmp_path), Metrics(tmp_path)
    count(one, 3)
    count(two, 4)
    one.close()
    for _ in range(3):
        assert lines(tmp_path)[CALLS] == 7
    assert len(list(tmp_path.glob("*.series"))) == 1
    two.close()
    assert lines(tmp_path)[CALLS] == 7


def test_a_fold_that_was_interrupted_does_not_count_twice(tmp_path: Path) -> None:
    one = Metrics(tmp_path)
    count(one, 3)
    one.close()
    [file] = tmp_path.glob("*.series")
    content = file.read_bytes()
    assert lines(tmp_path)[CALLS] == 3
    # As if the machine had stopped between the rename of the sums and the removal of the file.
    file.write_bytes(content)
    assert lines(tmp_path)[CALLS] == 3
    assert not file.exists()


def test_a_killed_process_loses_no_count(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from inference.server.metrics import Metrics\n"
        "m = Metrics(Path(sys.argv[1])); c = m.counter('signalbox_rows_total', deployment='toy')\n"
        "[c.add() for _ in range(1000)]; print('counted', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"counted\n"
        assert lines(tmp_path)['signalbox_rows_total{deployment="toy"}'] == 1000
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert lines(tmp_path)['signalbox_rows_total{deployment="toy"}'] == 1000


def test_latencies_fall_into_cumulative_buckets(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    histogram = metrics.histogram("signalbox_predict_seconds", deployment="toy", version=1)
    for seconds in (0.00005, 0.0001, 0.003, 500.0):
        histogram.observe(seconds)
    found = lines(tmp_path)
    name = "signalbox_predict_seconds"
    labels = 'deployment="toy",version="1"'
    assert found[f'{name}_bucket{{{labels},le="0.0001"}}'] == 2
    assert found[f'{name}_bucket{{{labels},le="{BOUNDS_S[-1]:g}"}}'] == 3
    assert found[f'{name}_bucket{{{labels},le="+Inf"}}'] == found[f"{name}_count{{{labels}}}"] == 4
    assert found[f"{name}_sum{{{labels}}}"] == pytest.approx(500.00315)
    metrics.close()


def test_gauges_are_told_per_living_process_and_end_with_it(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.counter("signalbox_in_flight").set(5)
    series = f'signalbox_in_flight{{pid="{os.getpid()}"}}'
    assert lines(tmp_path)[series] == 5
    metrics.close()
    assert series not in lines(tmp_path)


def test_series_past_the_table_are_counted_as_dropped(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for n in range(1100):
        metrics.counter("signalbox_rows_total", deployment=f"d{n}").add()
    metrics.counter("signalbox_rows_total", deployment="x" * 300).add()
    found = lines(tmp_path)
    assert found["signalbox_series_dropped"] == 1100 - 1020 + 1
    assert found['signalbox_rows_total{deployment="d0"}'] == 1
    metrics.close()


def test_label_text_is_escaped(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    metrics.counter("signalbox_rows_total", deployment='a"b\\c\nd').add()
    assert b'{deployment="a\\"b\\\\c\\nd"} 1' in render(tmp_path)
    metrics.close()
