"""The goals for estimates, on recorded traffic: `CANCELSTREAM_RECORDINGS` names a file of it, or a folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
RECORDINGS = os.environ.get("CANCELSTREAM_RECORDINGS")

pytestmark = pytest.mark.skipif(not RECORDINGS, reason="set CANCELSTREAM_RECORDINGS to recorded traffic to try this")


@pytest.fixture(scope="module")
def benchmark() -> Any:
    """`benchmarks/usage_accuracy.py`, which finds its parts beside it."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import usage_accuracy
    finally:
        sys.path.remove(str(BENCHMARKS))
    return usage_accuracy


@pytest.fixture(scope="module")
def recorded(benchmark: Any) -> tuple[list[Any], list[Any]]:
    path = Path(RECORDINGS or "")
    return benchmark.load(sorted(path.glob("*.jsonl")) if path.is_dir() else [path])


def failed(lines: list[Any]) -> list[str]:
    return [str(line) for line in lines if line.missed]


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("tokenizers")
def test_every_goal_is_reached(benchmark: Any, recorded: Any):
    """With the tokenizer extra, every goal of the table."""
    assert failed(benchmark.judge(*recorded)) == []


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("no_tokenizers")
def test_bounds_hold_without_a_tokenizer(benchmark: Any, recorded: Any):
    """Without one the values are worse, and the bounds and labels hold all the same."""
    cases, rows = recorded
    lines = [*benchmark.judge_reported(cases), *benchmark.judge_bounds(cases, rows)]
    assert failed(lines) == []
