"""A real event loop whose clock is scripted: every run of a scenario is the same run.

It is asyncio's own selector loop. Two things are added. A turn of the loop takes a millisecond of its clock, and if
nothing is left to do in a turn the clock jumps to the next timer. And a call can be placed at a turn, anywhere among
the callbacks that are ready in it.
"""

from __future__ import annotations

import asyncio
import heapq
import selectors
from collections.abc import Callable
from typing import Any

TURN = 0.001
LIMIT = 60.0
"""Seconds of its own clock that a run may take."""


class Stuck(Exception):
    """Somebody still waits, and nothing is left that could wake them; or it goes on for ever."""


class ScriptedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = 0.0
        self.turn = 0
        self.complaints: list[str] = []
        self._placed: list[tuple[int, int, float, Callable[[], object]]] = []
        self._count = 0
        self._until = LIMIT
        super().__init__(_Selector(self))
        self.set_exception_handler(self._complain)

    def time(self) -> float:
        return self.clock

    def place(self, turns: int, call: Callable[[], object], where: float = 1.0) -> None:
        """Call it that many turns from now: where=0 before all callbacks of that turn, 1 after them."""
        self._count += 1
        heapq.heappush(self._placed, (self.turn + max(turns, 1), self._count, where, call))

    def _complain(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # asyncio's own: a gathering that is cancelled twice, the second time between its children's end and its own.
        if "_GatheringFuture exception was never retrieved" not in context["message"]:
            self.complaints.append(str(context))

    def reset(self) -> None:
        self.turn = 0
        self._until = self.clock + LIMIT
        self._placed.clear()
        self.complaints.clear()

    def _run_once(self) -> None:
        self.turn += 1
        self.clock += TURN
        if self.clock > self._until:
            raise Stuck(f"not over after {LIMIT} seconds")
        ready: Any = self._ready  # type: ignore[attr-defined]
        while self._placed and self._placed[0][0] <= self.turn:
            _, _, where, call = heapq.heappop(self._placed)
            ready.insert(round(where * len(ready)), asyncio.Handle(call, (), self, None))  # type: ignore[arg-type]
        if self._placed and not ready:
            ready.append(asyncio.Handle(_nothing, (), self, None))  # do not sleep before it is due
        super()._run_once()  # type: ignore[misc]


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: ScriptedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Stuck("nothing is ready, and nothing is scheduled")
            if timeout > 0:
                self._loop.clock += timeout
        return ready


def _nothing() -> None: ...
