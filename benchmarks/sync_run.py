"""What a piece of a blocking run costs, beside pydantic-ai's own `run_stream_sync`.

A model in this process says its words at once, and each is handed out by itself (`debounce_by=None`), so nothing is
waited for, and only the bridge between the loop and the thread differs. The ways are taken in turn:

- in the main thread, where both drive the thread's own loop;
- in another thread, where a run of ours is on the loop in the background, and each piece wakes this thread.

    python benchmarks/sync_run.py [--pieces 1000] [--rounds 7]

The exit status is 1 if a goal was missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models.function import FunctionModel

from cancelstream.sync import run_stream

GOAL = 1.5
"""At most so many times what `run_stream_sync` takes for a piece, by the median of the rounds."""


def microseconds(run: Any, pieces: int) -> float:
    """For each piece of a run."""
    with run as result:
        started, read = time.perf_counter(), 0
        for _ in result.stream_text(delta=True, debounce_by=None):
            read += 1
        taken = time.perf_counter() - started
    assert read == pieces
    return taken / pieces * 1e6


def compare(pieces: int, rounds: int) -> tuple[float, float, float]:
    """The medians of both ways, and of their ratio."""

    async def say(_messages: list[Any], _info: Any) -> AsyncIterator[str]:
        for _ in range(pieces):
            yield "word "

    agent = Agent(FunctionModel(stream_function=say))
    ways: list[Callable[[], Any]] = [lambda: agent.run_stream_sync("go"), lambda: run_stream(agent, "go")]
    taken = [[microseconds(way(), pieces) for way in ways] for _ in range(rounds + 1)][1:]  # the first one warms up
    theirs, ours = zip(*taken, strict=True)
    return statistics.median(theirs), statistics.median(ours), statistics.median(o / t for t, o in taken)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    missed: list[str] = []

    def measure(where: str) -> None:
        theirs, ours, ratio = compare(options.pieces, options.rounds)
        print(
            f"{where:14} run_stream_sync {theirs:6.1f} us/piece   run_stream {ours:6.1f} us/piece   ratio {ratio:.2f}"
        )
        if ratio > GOAL:
            missed.append(where)

    measure("main thread")
    thread = threading.Thread(target=measure, args=("another thread",))
    thread.start()
    thread.join()
    if missed:
        print(f"missed, more than {GOAL} times: {', '.join(missed)}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
