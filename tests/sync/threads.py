"""Threads and signals for the tests: what ends, ends in time, and what it raised is told."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

T = TypeVar("T")

LIMIT = 10.0


class Running(Generic[T]):
    """A function in a thread of its own."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append(self._function())
        except BaseException as error:
            self._error = error

    def result(self) -> T:
        """What it returned, or raised."""
        self._thread.join(LIMIT)
        assert not self._thread.is_alive(), "it did not end"
        if self._error is not None:
            raise self._error
        return self._outcome[0]


class Reader(Running[list[Any]]):
    """Reads something to its end in a thread of its own."""

    def __init__(self, source: Iterator[Any]) -> None:
        self.read: list[Any] = []
        self._source = source
        self._grew = threading.Condition()
        super().__init__(self._read_all)

    def _read_all(self) -> list[Any]:
        for item in self._source:
            with self._grew:
                self.read.append(item)
                self._grew.notify_all()
        return self.read

    def wait(self, number: int) -> None:
        """Block until so many items were read."""
        with self._grew:
            assert self._grew.wait_for(lambda: len(self.read) >= number, LIMIT), f"read only {self.read}"


def in_thread(function: Callable[[], T]) -> T:
    """Call it in another thread, and wait for it."""
    return Running(function).result()


def soon(function: Callable[[], T]) -> Running[T]:
    """Call it in another thread, a little later: most likely when this one waits, and it must not matter."""

    def call() -> T:
        threading.Event().wait(0.05)
        return function()

    return Running(call)


def on_loop(function: Callable[[], Awaitable[T]], loop: asyncio.AbstractEventLoop) -> T:
    """What it returns on that loop, which runs in another thread or stands still."""

    async def call() -> T:
        return await function()

    if loop.is_running():
        return asyncio.run_coroutine_threadsafe(call(), loop).result(LIMIT)
    return loop.run_until_complete(call())


def left_on(loop: asyncio.AbstractEventLoop) -> set[asyncio.Task[Any]]:
    """The tasks that are still there after some turns of the loop."""

    async def look() -> set[asyncio.Task[Any]]:
        for _ in range(50):
            await asyncio.sleep(0)
        return asyncio.all_tasks() - {asyncio.current_task()}

    return on_loop(look, loop)


@contextmanager
def on_signal(handler: Callable[[], object]) -> Iterator[Callable[[], None]]:
    """Have this thread, the main one, call `handler` on a signal; what it gives sends that signal, from any thread."""
    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, lambda *_: handler())
    try:
        yield lambda: signal.pthread_kill(main, signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
