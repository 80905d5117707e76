"""Wait in one thread for what happens in another.

The server lives in its own thread; a test waits for what happened there, blocking (`_wait`) or in its own event
loop (`_until`). Both look at the state under one lock and are woken by every change of it, so nothing polls and
nothing sleeps. A wait always has a limit.

Known limit: the awaited form knows asyncio only.
"""

# ruff: noqa: ASYNC109  (a wait for another thread has its limit as an argument, awaited or not)

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Generator
from typing import Final, TypeVar

__all__ = ("LIMIT", "Watched")

LIMIT: Final = 10.0
"""Seconds that a wait takes at most unless told otherwise: far more than loopback needs, and still a quick failure."""

T = TypeVar("T")


class Watched:
    """State that changes in one thread and is waited for in others."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    @contextlib.contextmanager
    def _changing(self) -> Generator[None]:
        """Change state inside this block: every waiter looks again when it is left."""
        with self._condition:
            yield
            self._condition.notify_all()
            for wake in self._listeners:
                wake()

    def _wait(self, check: Callable[[], T | None], timeout: float, told: Callable[[], str]) -> T:
        """Block this thread until `check` returns something, and return that.

        `check` may raise to say that it never will. `told` describes what was waited for and how far it came.
        """
        deadline = time.monotonic() + timeout
        with self._condition:
            while (found := check()) is None:
                if not self._condition.wait(deadline - time.monotonic()) and check() is None:
                    raise TimeoutError(f"waited {timeout} s for {told()}")
            return found

    async def _until(self, check: Callable[[], T | None], timeout: float | None, told: Callable[[], str]) -> T:
        """The same for a coroutine: its loop goes on running meanwhile. `None` is no limit, for the server itself."""
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()

        def wake() -> None:
            # The loop that waited may be closed by now, with the listener not yet removed.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(woken.set)

        with self._condition:
            self._listeners.append(wake)
        try:
            async with asyncio.timeout(timeout):
                while True:
                    woken.clear()
                    with self._condition:
                        found = check()
                    if found is not None:
                        return found
                    await woken.wait()
        except TimeoutError:
            raise TimeoutError(f"waited {timeout} s for {told()}") from None
        finally:
            with self._condition:
                self._listeners.remove(wake)
