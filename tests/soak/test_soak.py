"""The engine through many interleavings; a few thousand in the suite, 100,000 and more in the soak session.

`CANCELSTREAM_SOAK_RUNS` says how many, `CANCELSTREAM_SOAK_SEED` where they begin; `python -m tests.soak SEED` shows
one of them step by step.
"""

from __future__ import annotations

import os
import sys

import pytest

from .explore import explore, run
from .faults import FAULTS, Engine, Fault, planted
from .scripted_loop import ScriptedLoop

RUNS = int(os.environ.get("CANCELSTREAM_SOAK_RUNS", "3000"))
SEED = int(os.environ.get("CANCELSTREAM_SOAK_SEED", "0"))
UNTIL_FOUND = 20_000

EAGER = [
    pytest.param(False, id="tasks"),
    pytest.param(
        True,
        id="eager-tasks",
        marks=pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12"),
    ),
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("eager", EAGER)
def test_every_interleaving_keeps_the_promises(eager: bool, record_property: pytest.RecordProperty) -> None:
    """Whatever source, consumer and order of events are drawn: nothing is lost, leaked, torn, or left hanging."""
    report = explore(Engine(), SEED, RUNS, eager=eager)
    record_property("distinct", report.distinct)
    assert report.first is None, f"replay with: python -m tests.soak {report.first.scenario.seed}\n{report.first}"
    assert report.runs == RUNS
    # They are different runs, not one run many times.
    assert report.distinct > 0.9 * RUNS


@pytest.mark.timeout(600)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_a_planted_fault_is_found(fault: Fault) -> None:
    """The exploration finds each fault that is planted in a copy of the engine: so it would find it in ours."""
    with planted(fault) as engine:
        report = explore(engine, SEED, UNTIL_FOUND)
    assert report.first is not None, f"{UNTIL_FOUND} runs did not find that it {fault.name}"


def test_a_copy_without_a_fault_is_not_blamed() -> None:
    """The copying itself plants nothing."""
    with planted(None) as engine:
        assert explore(engine, SEED, 300).first is None


def test_a_seed_replays() -> None:
    """The same seed is the same run, step by step, whatever ran before it."""
    traces: list[list[str]] = []
    for before in (0, 5):
        loop = ScriptedLoop()
        for seed in range(before):
            run(Engine(), loop, seed)
        traces.append(run(Engine(), loop, 4711).trace)
        loop.close()
    assert traces[0]
    assert traces[0] == traces[1]
