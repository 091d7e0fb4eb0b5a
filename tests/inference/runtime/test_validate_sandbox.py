"""Validation in the throw-away child: what comes back, and what happens to a model that fights: table B, row 30."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inference.contracts import ReportCheck, ValidationReport, ValidationRequest
from inference.runtime.checks import plan
from inference.runtime.onnx import load_model
from inference.runtime.sandbox import Limits, Sandbox
from inference.runtime.validate import PRELOAD, _read_checks, limits_for, validate, validate_in_sandbox
from tests.inference import toys

pytestmark = pytest.mark.unit

SMALL = Limits(memory_bytes=1024**3, cpu_s=10, wall_s=20, file_bytes=2**20)


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(preload=PRELOAD) as sandbox:
        yield sandbox


def report_on(
    sandbox: Sandbox,
    tmp_path: Path,
    data: bytes,
    limits: Limits = SMALL,
    on_checks: Callable[[tuple[ReportCheck, ...]], None] | None = None,
    **described: Any,
) -> ValidationReport:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    request = ValidationRequest(model_path=str(path), rewritten_path=str(tmp_path / "rewritten"), **described)
    return validate_in_sandbox(sandbox, request, limits, on_checks=on_checks)


def test_the_child_reports_what_this_process_would(sandbox: Sandbox, tmp_path: Path) -> None:
    report = report_on(sandbox, tmp_path, toys.classifier(), labels=("a", "b"), columns=("x", "y", "z"))
    here = validate(
        ValidationRequest(model_path=str(tmp_path / "model.onnx"), labels=("a", "b"), columns=("x", "y", "z"))
    )
    assert report.ok
    assert (report.signature, report.task, report.activation) == (here.signature, here.task, here.activation)
    assert [check.name for check in report.checks] == [check.name for check in here.checks]


def test_a_refusal_comes_back_with_its_code(sandbox: Sandbox, tmp_path: Path) -> None:
    report = report_on(sandbox, tmp_path, b"<html>")
    assert (report.ok, report.code, report.model_bytes) == (False, "not_onnx", 6)


def test_the_cut_model_is_written_by_the_caller(sandbox: Sandbox, tmp_path: Path) -> None:
    report = report_on(sandbox, tmp_path, toys.zipmap_classifier())
    assert report.ok and report.zipmap_cut and report.labels == ("no", "yes")
    assert load_model((tmp_path / "rewritten").read_bytes()).signature.inputs == report.signature.inputs  # type: ignore[union-attr]  # not None, or the test fails


def test_golden_inputs_reach_the_child(sandbox: Sandbox, tmp_path: Path) -> None:
    x = np.ones((2, 3), np.float32)
    np.savez(tmp_path / "golden.npz", x=x, y=x @ toys.SLOPES + toys.INTERCEPT)
    report = report_on(sandbox, tmp_path, toys.linear_regression(), golden_path=str(tmp_path / "golden.npz"))
    assert report.ok and report.golden_sets == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's file needs root to make")
def test_a_file_that_only_its_owner_reads_is_validated(sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    assert report_on(sandbox, tmp_path / "private", toys.linear_regression()).ok


@pytest.mark.parametrize("elements", [10**12, 10**9])
def test_a_memory_bomb_is_refused_for_memory(sandbox: Sandbox, tmp_path: Path, elements: int) -> None:
    started = time.monotonic()
    report = report_on(sandbox, tmp_path, toys.memory_bomb(elements))
    assert (report.ok, report.code) == (False, "validation_failed")
    assert "memory: the model needs more than 1,024 MB" in report.reason
    assert time.monotonic() - started < 30


def test_an_endless_loop_is_refused_for_time(sandbox: Sandbox, tmp_path: Path) -> None:
    limits = Limits(memory_bytes=1024**3, cpu_s=10, wall_s=1.5)
    started = time.monotonic()
    told: list[list[str]] = []
    report = report_on(
        sandbox,
        tmp_path,
        toys.endless_loop(),
        limits,
        on_checks=lambda checks: told.append([check.name for check in checks]),
    )
    assert (report.ok, report.code) == (False, "validation_failed")
    assert "timeout" in report.reason
    assert time.monotonic() - started < 15
    # What it did until then was told while it ran, and stays; the check that it never ended is named.
    *done, failed = report.checks
    assert told[-1] == [check.name for check in done] == ["file", "graph", "types", *told[-1][3:]]
    assert (failed.name, failed.ok, failed.detail) == ("sample", False, report.reason)


def test_checks_are_told_in_the_planned_order(sandbox: Sandbox, tmp_path: Path) -> None:
    told: list[tuple[ReportCheck, ...]] = []
    report = report_on(sandbox, tmp_path, toys.zipmap_classifier(), on_checks=told.append)
    assert told[-1] == report.checks
    assert [check.name for check in report.checks if check.name != "zipmap"] == list(plan(golden=False))


def test_of_what_a_captured_child_tells_only_checks_are_read() -> None:
    lines = [b'{"name": "file", "ok": true, "detail": "a\\u0000b"}', b"\xff", b"[1]", b'{"name": "load"}']
    assert _read_checks(lines) == [ReportCheck(name="file", ok=True, detail="a b")]


def test_the_limits_end_before_thirty_seconds_but_for_large_files() -> None:
    assert limits_for(100 * 1024**2).wall_s + 5 <= 30
    assert limits_for(1024**3).wall_s < 80


def test_a_crash_is_refused_as_a_crash(tmp_path: Path) -> None:
    """The crash itself is the sandbox's probe: a function that dies as the runtime would."""

    class Crashing(Sandbox):
        def call(self, function: str, argument: bytes, limits: Limits, **options: Any) -> Any:
            return super().call("tests.inference.runtime.sandbox_probes:segfault", argument, limits, **options)

    with Crashing(preload=(), package="tests.inference.runtime") as crashing:
        report = report_on(crashing, tmp_path, toys.linear_regression())
    assert (report.ok, report.code) == (False, "validation_failed")
    assert report.reason == "Validation ended by crash: the runtime crashed while it loaded or ran the model."
    assert [(check.name, check.ok) for check in report.checks] == [("file", False)]


def test_the_sandbox_lives_on_after_models_that_fight(sandbox: Sandbox, tmp_path: Path) -> None:
    assert not report_on(sandbox, tmp_path, toys.memory_bomb()).ok
    assert report_on(sandbox, tmp_path, toys.linear_regression()).ok
