"""The event loops that blocking runs are driven on, and how a thread waits for something on one.

There are two:

1. A run that is entered in the main thread is on the main thread's own loop, the one that `agent.run_sync()` uses
   there, because the connections of one client must not be shared by two loops. It runs while a thread waits for it.
2. A run that is entered in any other thread is on one loop that all of them share. It runs in a thread of its own, all
   the time, so it does not matter which thread reads, stops or leaves the run, and threads may share an agent.

A thread asks the loop for something (`soon`) and takes what comes out of a `Mailbox`. `Mailbox.put` is called on the
loop only.

The shared loop is made when it is first needed, once for each process: after a fork the child makes its own, because
the thread of its parent's is not there. When the interpreter exits the loop is stopped and closed.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from queue import SimpleQueue
from typing import Any, Final, Generic, Protocol, TypeVar

__all__ = ("Mailbox", "Place", "Reply", "is_async", "place_for_this_thread")

T = TypeVar("T")

EXIT_TIMEOUT: Final = 5.0
"""Seconds that the interpreter's exit waits for the shared loop to close what is open on it."""


class Mailbox(Protocol[T]):
    """The place where a loop puts items for a thread that waits."""

    def put(self, item: T) -> None:
        """Add an item, and wake the thread that waits; on the loop."""
        ...

    def ask(self, request: Callable[[], object], context: Context | None = None) -> T:
        """Have the loop call `request`, and wait for the next item; on any thread, one at a time."""
        ...


class Place(Protocol):
    """An event loop, and how other threads reach it."""

    loop: asyncio.AbstractEventLoop
    leave: dict[object, Callable[[], asyncio.Task[None] | None]]
    """For each run that is open here: has the run left, on the loop, and returns the task that does it."""

    def mailbox(self) -> Mailbox[Any]:
        """Return an empty mailbox."""
        ...

    def is_here(self) -> bool:
        """Whether it is this thread that runs the loop now."""
        ...


class Reply(Generic[T]):
    """The result or the error of a coroutine or a function on the loop."""

    def __init__(self, place: Place) -> None:
        self._mailbox: Mailbox[tuple[Any, BaseException | None]] = place.mailbox()

    def set(self, value: T) -> None:
        """It returned this; on the loop."""
        self._mailbox.put((value, None))

    def fail(self, error: BaseException) -> None:
        """It raised this; on the loop."""
        self._mailbox.put((None, error))

    def ask(self, request: Callable[[], object], context: Context | None = None) -> T:
        """Have the loop call `request`, and wait for what it set, or raise what it failed with."""
        value: T
        value, error = self._mailbox.ask(request, context)
        if error is not None:
            try:
                raise error
            finally:
                del error  # it holds this frame
        return value


def is_async() -> bool:
    """Whether an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def place_for_this_thread() -> Place:
    """Return where a run that is entered in this thread belongs."""
    if threading.current_thread() is threading.main_thread():
        return MainLoop(_loop_of_this_thread())
    return _shared_loop()


# --- the main thread's loop -------------------------------------------------------------------------------------------


class MainLoop:
    """The main thread's loop. It stands still until a thread waits for something, and drives it meanwhile.

    That thread may be any; it holds `driving`, which is reentrant because a signal handler may find it held by its own
    thread. A stop that comes from elsewhere while the loop stands still has to be told without the loop: `tell`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.leave: dict[object, Callable[[], asyncio.Task[None] | None]] = {}

    def mailbox(self) -> Mailbox[Any]:
        return _DrivenMailbox(self.loop)

    def is_here(self) -> bool:
        return is_async() and asyncio.get_running_loop() is self.loop

    def tell(self, act: Callable[[], object]) -> None:
        """Call `act` while no thread drives the loop: now, or when the one that drives it stops; never waits."""
        _process.untold.append(act)
        _tell_all()


class _DrivenMailbox(Generic[T]):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._items: deque[T] = deque()
        self._waits = False

    def put(self, item: T) -> None:
        self._items.append(item)
        if self._waits:  # without it, `stop()` would end a loop that is driven for something else
            self._loop.stop()

    def ask(self, request: Callable[[], object], context: Context | None = None) -> T:
        # Asked before the lock is taken: a thread that drives the loop for another run does this, too.
        self._loop.call_soon_threadsafe(request, context=context)
        try:
            return self._drive()
        finally:
            _tell_all()

    def _drive(self) -> T:
        with _process.driving:
            drove, _process.drives, self._waits = _process.drives, True, True
            try:
                while not self._items:
                    if self._loop.is_running():
                        raise RuntimeError(
                            "this run was entered in the main thread, and that thread's event loop is in use by "
                            "another call: enter the run in the thread that reads it"
                        )
                    self._loop.run_forever()
            finally:
                _process.drives, self._waits = drove, False
            return self._items.popleft()


def _tell_all() -> None:
    # Looked at again after each release: what is appended while another thread holds the lock is left to that thread.
    while _process.untold and _process.driving.acquire(blocking=False):
        try:
            if _process.drives:  # we are in a signal handler of the thread that drives, which comes here later
                return
            with suppress(IndexError):
                _process.untold.popleft()()
        finally:
            _process.driving.release()


def _loop_of_this_thread() -> asyncio.AbstractEventLoop:
    """The loop that `agent.run_sync()` uses in this thread: the current one, or a new one that becomes it."""
    loop: asyncio.AbstractEventLoop | None = None
    with warnings.catch_warnings(), suppress(RuntimeError):
        # Some versions of Python make the loop here, and warn that later versions will not.
        warnings.simplefilter("ignore", DeprecationWarning)
        loop = asyncio.get_event_loop()
    if loop is None or loop.is_closed() or any(loop is process.main for process in _of_parents):
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
    _process.main = loop
    return loop


# --- the loop of all other threads ------------------------------------------------------------------------------------


class SharedLoop:
    """A loop in a thread of its own, which runs until the interpreter exits."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.leave: dict[object, Callable[[], asyncio.Task[None] | None]] = {}
        self._is_over = False
        # A daemon, because the interpreter waits for all other threads before it calls `atexit` functions.
        self._thread = threading.Thread(target=self._run, name="cancelstream", daemon=True)
        self._thread.start()

    def mailbox(self) -> Mailbox[Any]:
        return _QueuedMailbox(self.loop)

    def is_here(self) -> bool:
        return threading.current_thread() is self._thread

    def _run(self) -> None:
        while not self._is_over:
            # A tool that calls `sys.exit()` must not end everybody's loop: its task has the error.
            with suppress(KeyboardInterrupt, SystemExit):
                self.loop.run_forever()
        try:
            self.loop.run_until_complete(self._end())
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        finally:
            self.loop.close()

    async def _end(self) -> None:
        """Leave what is open, so that providers are told, and cancel the tasks that are there still."""
        leaving = [task for leave in list(self.leave.values()) if (task := leave()) is not None]
        if leaving:
            await asyncio.wait(leaving, timeout=EXIT_TIMEOUT / 2)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def close(self) -> None:
        """End what is running on the loop, and the loop with it; no other thread may use it afterwards."""
        self._is_over = True
        with suppress(RuntimeError):  # it is closed already
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(EXIT_TIMEOUT)


class _QueuedMailbox(Generic[T]):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: SimpleQueue[T] = SimpleQueue()
        self.put = self._queue.put

    def ask(self, request: Callable[[], object], context: Context | None = None) -> T:
        self._loop.call_soon_threadsafe(request, context=context)
        return self._queue.get()


class _Process:
    """The state that exists once in a process; made anew in a child that was forked."""

    def __init__(self) -> None:
        self.driving = threading.RLock()
        self.drives = False
        self.untold: deque[Callable[[], object]] = deque()
        self.making = threading.Lock()
        self.shared: SharedLoop | None = None
        self.main: asyncio.AbstractEventLoop | None = None


_process = _Process()
_of_parents: Final[list[_Process]] = []
"""Never used, and kept for ever: a loop shares its selector and its pipe with the one in the parent process."""


def _shared_loop() -> SharedLoop:
    with _process.making:
        if _process.shared is None:
            _process.shared = SharedLoop()
        return _process.shared


def _forget_parent() -> None:
    global _process
    _of_parents.append(_process)
    _process = _Process()


def _close_shared_loop() -> None:
    if _process.shared is not None:
        _process.shared.close()


os.register_at_fork(after_in_child=_forget_parent)
atexit.register(_close_shared_loop)
