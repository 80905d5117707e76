"""Waiting for a close from anywhere: a latch, and the return value of `cancel()`.

`cancel()` may be called where nothing can be awaited, and its return value may be dropped, kept, awaited twice, or
handed to another loop. So it holds no future: it points at a latch, and makes a future only while it is awaited.

The latch takes no lock, because a signal handler runs in the middle of its own thread and would wait for itself.
It rests on single dictionary operations, which are atomic, and on one order: `wait()` registers first and looks
second, `set()` marks first and wakes second, so that no wake-up falls between them.

Limit: a latch whose loop is stopped for good before it could be set is never set; a closed loop is noticed where
something is scheduled on it (`_peekable`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Final

__all__ = ("DONE", "Closing", "Latch")


class Latch:
    """Something that becomes true once and stays so; any thread sets it, any loop waits for it."""

    __slots__ = ("_set", "_waiters")

    def __init__(self) -> None:
        self._set = False
        self._waiters: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}

    def is_set(self) -> bool:
        """Whether `set()` was called."""
        return self._set

    def set(self) -> None:
        """Release everyone who waits, now and later; from any thread or signal handler."""
        self._set = True
        waiters = self._waiters
        while waiters:
            try:
                future, loop = waiters.popitem()
            except KeyError:  # pragma: no cover - another thread took the last one in between
                return
            try:
                loop.call_soon_threadsafe(_release, future)
            except RuntimeError:
                continue  # that loop is closed: nothing waits in it any more

    async def wait(self) -> None:
        """Return when it is set, from any loop."""
        if self._set:
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._waiters[future] = loop
        try:
            if self._set:  # set() may have looked before we were registered
                return
            await future
        finally:
            self._waiters.pop(future, None)


def _release(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


DONE: Final = Latch()
"""A latch that is set: for a stream that had ended before it was cancelled."""
DONE.set()


def _nowhere() -> bool:
    return False


class Closing(Coroutine[Any, Any, None]):
    """The return value of `cancel()`: awaiting it waits until the cancelled thing is closed.

    It may be dropped without a warning, awaited any number of times and from any loop, and given to
    `asyncio.create_task` or `asyncio.run_coroutine_threadsafe`.

    Args:
        latch: Is set when the closing is done.
        inside: Says whether the caller is inside the thing that is being closed. It would wait for itself there,
            so awaiting returns at once.
    """

    __slots__ = ("_driven", "_inside", "_latch")

    def __init__(self, latch: Latch, inside: Callable[[], bool] = _nowhere) -> None:
        self._latch = latch
        self._inside = inside
        # One wait for each task that drives this object as a coroutine; empty unless one does.
        self._driven: dict[asyncio.Task[Any] | None, Generator[Any, None, None]] = {}

    def __repr__(self) -> str:
        return f"<Closing {'done' if self._latch.is_set() else 'pending'}>"

    def __await__(self) -> Generator[Any, None, None]:
        if not self._inside():
            yield from self._latch.wait().__await__()

    def send(self, value: None) -> Any:
        """Go on waiting, as a coroutine does; for `create_task` and its like."""
        return self._drive(lambda wait: wait.send(value))

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        """Raise in the wait, as a coroutine does; for `create_task` and its like."""
        error = typ if val is None else val
        return self._drive(lambda wait: wait.throw(error if tb is None else error.with_traceback(tb)))

    def close(self) -> None:
        """Stop waiting; the closing itself goes on."""
        wait = self._driven.pop(_current_task(), None)
        if wait is not None:
            wait.close()

    def _drive(self, step: Callable[[Generator[Any, None, None]], Any]) -> Any:
        task = _current_task()
        wait = self._driven.get(task)
        if wait is None:
            wait = self._driven[task] = self.__await__()
        try:
            return step(wait)
        except BaseException:
            # Ended, so that the next await starts a new wait.
            self._driven.pop(task, None)
            raise


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None
