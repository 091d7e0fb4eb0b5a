"""What is told of figures is what they are."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import charts, pacing, throughput
from benchmarks.__main__ import MEASURES, markdown
from benchmarks.calls import CASES, call_of, scores_of
from benchmarks.figures import Limit, keep, machine, ratios, spread
from benchmarks.load import Load
from benchmarks.report import begin, milliseconds, per_second, rewritten
from benchmarks.throughput import Windows

pytestmark = pytest.mark.unit

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def _load(per_s: float, p50_ms: float = 1.0) -> Load:
    return Load(int(per_s), per_s, p50_ms, 2 * p50_ms, 3 * p50_ms)


def _head() -> dict[str, Any]:
    return {"at": "2026-11-22T10:00:00+00:00", "machine": machine(), "quick": False, "rounds": 3, "window_s": 10.0}


@pytest.fixture
def windows() -> Windows:
    """Signalbox beside one that is half as fast and one that did not run."""
    found = Windows()
    found.loads["trees/v1/1", 32] = {
        "Signalbox": [_load(1000), _load(1200), _load(900)],
        "FastAPI": [_load(500), _load(400), _load(450)],
        "BentoML": [_load(10)],
    }
    found.drop("BentoML", [CASES["trees/v1/1"]], "it ended: no such module")
    return found


def test_a_spread_is_the_median_and_both_ends() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert spread([]) == {"median": 0.0, "low": 0.0, "high": 0.0}
    assert milliseconds(spread([0.5])) == "0.500 ms"
    assert per_second(spread([1000, 3000, 2000])) == "2,000 (1,000 to 3,000)"


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([10.0, 30.0], [5.0, 10.0]) == {"median": 2.5, "low": 2.0, "high": 3.0}


def test_limits_hold_on_their_own_side() -> None:
    assert Limit("share", 0.9, 0.9, at_least=True).holds and not Limit("share", 0.89, 0.9, at_least=True).holds
    assert Limit("times", 5.0, 5).holds and not Limit("times", 5.01, 5).holds


def test_one_that_did_not_run_has_a_reason_and_no_figure(windows: Windows) -> None:
    (case,) = windows.figures()
    assert set(case["subjects"]) == {"Signalbox", "FastAPI"}
    assert case["ratios"]["FastAPI"]["per_s"] == {"median": 2.0, "low": 2.0, "high": 3.0}
    assert case["not_run"] == {"BentoML": "it ended: no such module"}
    peers = {"BentoML": {"how": "as usual", "versions": {}, "not_run": "it ended: no such module"}}
    text = markdown(MEASURES["peers"], _head() | {"cases": [case], "peers": peers})
    assert "| trees/v1/1 | 32 | FastAPI | 450 (400 to 500) |" in text
    assert text.count("not run: it ended: no such module") == 2
    assert machine()["processor"] in text and "2026-11-22" in text
    # A bound is judged only where both sides were measured.
    limits = throughput.limits("peers", {"cases": [case]})
    assert [(limit.bound, limit.measured, limit.holds) for limit in limits] == [(2.5, 2.0, False)]


def test_overload_is_judged_beyond_the_peak() -> None:
    of = {"share_of_peak": 0.95, "recovered_after_s": 1.0, "p99_ms": 900.0, "other": 0}
    of |= {"refused": 9, "refused_p99_ms": 60.0}
    offered = {times: {name: spread([value]) for name, value in of.items()} for times in ("1x", "2x")}
    limits = pacing.overload_limits({"offered": offered, "rate_limited": {"refused_p99_ms": 1.0}})
    assert [limit.holds for limit in limits] == [True, True, True, True, False, True]


def test_the_page_and_its_json_keep_each_measure_apart(tmp_path: Path) -> None:
    page = PAGE.read_text()
    for name in [*MEASURES, "pages", "studies"]:
        assert "told anew" in rewritten(page, "told anew", name)
    with pytest.raises(ValueError, match=begin("none")):
        rewritten(page, "told anew", "none")
    kept = tmp_path / "performance.json"
    keep(kept, "open", {"errors": 0})
    keep(kept, "bench", {"cases": []})
    keep(kept, "open", {"errors": 1})
    assert json.loads(kept.read_text()) == {"bench": {"cases": []}, "open": {"errors": 1}}


def test_the_charts_need_no_network(windows: Windows, tmp_path: Path) -> None:
    file, page = tmp_path / "performance.json", tmp_path / "build" / "performance.html"
    assert charts.main(["--figures", str(file), "--out", str(page)]) == 1
    keep(file, "bench", _head() | {"cases": windows.figures()})
    assert charts.main(["--figures", str(file), "--out", str(page)]) == 0
    text = page.read_text()
    assert "Requests a second at 32 connections" in text and "FastAPI" in text
    assert 'src="http' not in text and "src='http" not in text


@pytest.mark.parametrize("name", CASES)
def test_a_bare_server_takes_every_form_and_answers_with_the_scores_of_the_model(name: str) -> None:
    """Without HTTP: what the floor reads of a call, and what is read of its answer, are the same rows and scores."""
    from benchmarks.bare import BareApp, Model

    case = CASES[name]
    call = call_of(case)
    model = Model(str(case.model.file()))
    headers = [(key.lower().encode(), value.encode()) for key, value in call.headers.items()]
    told, content = BareApp(model).forms[f"/{case.form}"](call.body, headers)
    named = {key.decode().title(): value.decode() for key, value in told}
    scores = scores_of(case, content, named)
    wanted = model.run(case.model.rows(case.rows))[-1]
    assert scores.shape == wanted.shape
    assert abs(scores - wanted).max() < 1e-4


def test_an_answer_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="no scores"):
        scores_of(CASES["trees/v1/1"], b'{"error": "no"}', {})
    with pytest.raises(ValueError, match="no output probabilities"):
        scores_of(CASES["trees/v2/1"], b'{"outputs": []}', {})
