"""A run that was entered and not left: its handle is dropped, or its loop is closed.

1. The state, the task and the context of a run do not hold its handle (`_run_state.py`), so the handle is finalized as
   soon as the last name for it is gone, while the run goes on. It is ended on its loop, and the provider is told within
   that call.
2. A host that drives a generator around a run step by step closes its loop half way. The handle may never be finalized
   then: pydantic-ai's scopes hold the task of the step that entered the run, that task holds the generator, and anyio
   holds the scopes. A closed loop lets go of its timers, so the provider is told within `close()`.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final
from weakref import finalize, ref

from .._run_state import RunState

__all__ = ("Entered",)

FAR: Final = 365 * 86_400.0
"""Seconds after which a timer rings that is not meant to."""

_running: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


class Entered:
    """The parts of an entered run that have to be ended, and how.

    Args:
        state: The run's.
        end: Ends the run; on its loop. It does not know the run's handle.
    """

    def __init__(self, state: RunState, end: Callable[[], Awaitable[object]]) -> None:
        self._state = state
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        # Weakly, so that the loop holds nothing of the run.
        self._unwatch = _when_closed(self._loop, partial(_tell, ref(state), self._pid))

    def leave(self) -> None:
        """The run is left: there is nothing more to notice; on its loop."""
        self._unwatch()

    def drop(self, made: str) -> None:
        """Begin to end a run without references, and warn; in any thread."""
        if os.getpid() != self._pid:
            return  # it is the run of the process that this one was forked from
        _stop_stream(self._state)
        with suppress(RuntimeError):  # that loop is closed: nothing of the run can go on
            self._loop.call_soon_threadsafe(self._start)
        warnings.warn(
            f"a run was dropped without being left, made at {made}: use `async with`", ResourceWarning, stacklevel=3
        )

    def _start(self) -> None:
        self._unwatch()
        task = self._loop.create_task(self._finish(), name="cancelstream-dropped")
        _running.add(task)
        task.add_done_callback(_running.discard)

    async def _finish(self) -> None:
        # Whatever it raises, no caller is left to raise it to.
        with suppress(Exception):
            if self._state.stream is not None:
                await self._state.stream.cancel("left")
        with suppress(Exception, asyncio.CancelledError):
            await self._end()
        with suppress(Exception):
            await self._state.end_tasks()


def _stop_stream(state: RunState) -> None:
    state.left_as = state.left_as or "left"
    if state.stream is not None:
        with suppress(Exception):
            state.stream.cancel("left")


def _tell(state: ref[RunState], pid: int) -> None:
    """The loop of a run that is open was closed, perhaps by a child process in its own copy."""
    open_run = state()
    if open_run is not None and os.getpid() == pid:
        _stop_stream(open_run)


class _Timed:
    """The object that a loop holds until it is closed."""

    def ring(self) -> None:
        """Nothing is to be done."""


def _when_closed(loop: asyncio.AbstractEventLoop, act: Callable[[], object]) -> Callable[[], object]:
    """Have `act` called when this loop is closed, and return what takes that back; both on the loop."""
    timed = _Timed()
    closed = finalize(timed, act)
    closed.atexit = False
    timer = ref(loop.call_later(FAR, timed.ring))

    def take_back() -> None:
        closed.detach()
        if (handle := timer()) is not None:
            handle.cancel()

    return take_back
