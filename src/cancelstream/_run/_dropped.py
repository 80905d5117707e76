"""A run that was entered and dropped: it cannot be left any more, and is ended on its loop.

The state, the task and the context of a run do not hold its handle (`_run_state.py`), so the handle is finalized as
soon as the last name for it is gone, while the run goes on. The provider is told within that call.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress

from .._run_state import RunState

__all__ = ("Entered",)

_running: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


class Entered:
    """What has to be ended of a run that was entered, and how.

    Args:
        state: The run's.
        end: Ends the run; on its loop. It does not know the run's handle.
    """

    def __init__(self, state: RunState, end: Callable[[], Awaitable[object]]) -> None:
        self._state = state
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()

    def drop(self, made: str) -> None:
        """Nobody has a name for the run any more: begin to end it, and warn; in any thread."""
        if os.getpid() != self._pid:
            return  # it is the run of the process that this one was forked from
        self._state.left_as = self._state.left_as or "left"
        stream = self._state.stream
        if stream is not None:
            with suppress(Exception):
                stream.cancel("left")
        with suppress(RuntimeError):  # that loop is closed: nothing of the run can go on
            self._loop.call_soon_threadsafe(self._start)
        warnings.warn(
            f"a run was dropped without being left, made at {made}: use `async with`", ResourceWarning, stacklevel=3
        )

    def _start(self) -> None:
        task = self._loop.create_task(self._finish(), name="cancelstream-dropped")
        _running.add(task)
        task.add_done_callback(_running.discard)

    async def _finish(self) -> None:
        # Whatever it raises, nobody is left to be told.
        with suppress(Exception):
            if self._state.stream is not None:
                await self._state.stream.cancel("left")
        with suppress(Exception, asyncio.CancelledError):
            await self._end()
        with suppress(Exception):
            await self._state.end_tasks()
