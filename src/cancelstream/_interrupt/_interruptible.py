"""`Interruptible`: the driver for an awaitable that is no stream, with a `cancel()` for any thread and a deadline."""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from ._deadline import Deadline
from ._driver import Interrupted, Pull
from ._loops import ELSEWHERE, MisplacedPull, require_loop

__all__ = ("Interruptible",)

T = TypeVar("T")


class Interruptible:
    """Runs one awaitable after another in the current task, so that `cancel()` can interrupt it from any thread.

    For an awaitable that has no stream yet, or is not one: `create()` that waits for headers, a request context being
    entered, a pull through layers of another library.

    Args:
        loop: The event loop that it is for; by default the one that it is first used in.
    """

    __slots__ = ("_loop", "_pull", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._pull = Pull(_drop)
        self._loop = loop
        self._timer: Deadline | None = None

    @property
    def cancelled(self) -> bool:
        """Whether `cancel()` was called."""
        return self._pull.stopping

    def inside(self) -> bool:
        """Whether the caller runs in the task whose awaitable is suspended here."""
        task = self._pull.task
        return task is not None and task is current_task()

    def require_own_loop(self) -> None:
        """Refuse another event loop than its own; the first one is that.

        Raises:
            MisplacedPull: The caller is not on its loop. Nothing was changed.
        """
        loop = require_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise MisplacedPull(ELSEWHERE)

    async def run(self, awaitable: Awaitable[T], discard: Callable[[T], object] | None = None) -> T:
        """Await it, and end early when `cancel()` is called.

        A result that arrives although `cancel()` was called is returned: look at `cancelled`.

        Args:
            awaitable: The awaitable. A coroutine is closed unstarted if `cancel()` came before.
            discard: Is called with a result that cannot be returned, because the consumer cancelled the task.

        Raises:
            MisplacedPull: This is another event loop than it was made for, or used in before. It goes on there.
            Interrupted: It ended because of `cancel()`.
            CancelledError: The consumer cancelled the task, whether or not `cancel()` was called too.
        """
        pull = self._pull
        try:
            self.require_own_loop()  # first, and look second: cancel() does it the other way round
        except RuntimeError:
            _close(awaitable)
            raise
        if pull.stopping:
            _close(awaitable)
            await asyncio.sleep(0)  # a pending cancellation of the task comes first
            raise Interrupted
        pull.discard = discard or _drop
        try:
            return await pull.run(awaitable)
        finally:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def cancel(self) -> None:
        """Interrupt what runs, and refuse what would run later; idempotent, from any thread or signal handler."""
        self._pull.stopping = True
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # that loop is closed: nothing can be running in it
                loop.call_soon_threadsafe(self._interrupt, loop)

    def _interrupt(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._pull.task is not None:
            if self._timer is None:
                self._timer = Deadline(loop, self._pull.abandon)
            self._pull.interrupt()


def _close(awaitable: Any) -> None:
    """Close a coroutine that is not begun."""
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()


def _drop(_value: Any) -> None:
    """A result that was asked to be discarded needs no handling."""
