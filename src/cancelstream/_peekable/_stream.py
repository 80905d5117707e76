"""A single-pass stream that can be looked into, interrupted and closed: what everything else rests on.

`_interrupt` drives a pull step by step, so that `cancel()` can end it by cancelling the future it waits on. `cancel()`
itself only marks the stream and has the loop do the rest (`call_soon_threadsafe`), which is why it may be called from
any thread and from a signal handler. Closing is done by a finisher (`_finisher.py`).

The path of a chunk is `__anext__`: `_next` is the fast path, the source's bound `__anext__`, and `None` when an item is
peeked, or the stream is stopped or pending. Stopping sets `stopping` before it clears `_next`; setting `_next`
rechecks `stopping`. So no stop is missed.

Known limits. It runs on asyncio; trio has cancel scopes. A stream belongs to the loop that it was made in, or first
used in. If that loop is stopped for good, not closed, a close awaited on another loop never returns.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
import types
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from threading import get_ident
from typing import Any, Generic, NoReturn, Self, TypeVar, cast

import anyio

from .._closing import DONE, Closing, Latch
from .._errors import named
from .._interrupt import DEADLINE, ELSEWHERE, MisplacedPull, Pull, require_loop, running_loop
from .._state import Event, Life, State
from .._upstream import http
from .._upstream.python import line_outside
from ._finisher import Finisher, closer

__all__ = ("PeekableAsyncStream",)

T = TypeVar("T")

_EMPTY: Any = object()


class PeekableAsyncStream(Generic[T]):
    """Iterates a source once, and ends at once when `cancel()` is called: our own cancel never raises here.

    Use it as `async with PeekableAsyncStream(source) as stream`, so that leaving the block closes the source. A
    second loop goes on where the first stopped. One task pulls at a time; another one waits for its turn.

    Args:
        source: Any asynchronous iterable. Its `aclose()` or `close()`, if it has one, is called in the end, and its
            `response`, if it is an HTTP response, is closed first.

    Raises:
        TypeError: The source is not asynchronous.
        RuntimeError: Made under trio.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_ended",
        "_finisher",
        "_iterator",
        "_late",
        "_life",
        "_loop",
        "_made_at",
        "_next",
        "_peeked",
        "_pid",
        "_pull",
        "_thread",
        "_unread",
        "source",
    )

    def __init__(self, source: AsyncIterable[T]) -> None:
        self._ended = DONE  # nothing to close until we are sure of the source
        if not hasattr(source, "__aiter__"):
            if hasattr(source, "__iter__"):
                raise TypeError(
                    f"{named(source)} is a synchronous stream: use `cancelstream.sync.CancellableStream` for it, or "
                    "pass the stream of an asynchronous client (`AsyncOpenAI`)"
                )
            raise TypeError(f"{named(source)} is not an asynchronous iterable: it has no `__aiter__`")
        self.source = source
        self._late: list[T] = []
        """The items that were received and not handed out, because the stream was stopped first."""
        self._life = Life()
        self._pull = Pull(self._late.append, http.find_http2_exchange)
        self._closed = Latch()
        self._iterator: AsyncIterator[T] | None = None
        self._next: Callable[[], Coroutine[Any, Any, T]] | None = None
        self._peeked: T = _EMPTY
        self._finisher: Finisher | None = None
        self._unread: bool | None = None  # whether telling the server lost data; None until it was told
        # Made outside a loop, it is bound where it is first used.
        self._loop = running_loop()
        self._thread = None if self._loop is None else get_ident()
        self._pid = os.getpid()
        self._made_at = _made_at(self._loop)
        # Shared with the finisher, which holds nothing of the stream that holds it.
        self._ended = Latch()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel()` ended it. Not so if it had ended before, was closed, or its task was cancelled."""
        return self._life.state is State.INTERRUPTED

    @property
    def _lost(self) -> bool:
        """Closing lost data that had arrived, or may have; known when it is closed."""
        return self._finisher is not None and self._finisher.lost

    # Pulling ------------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        pull_next = self._next
        if pull_next is None or get_ident() != self._thread:
            return await self._next_slowly()
        try:
            awaitable = pull_next()
            waits_on = awaitable.send(None)
        except StopIteration as done:
            # The usual case in a burst: it ended without suspending.
            if self._next is None:
                self._come_late(done.value)
            item: T = done.value
            return item
        except BaseException as error:
            if self._ended_quietly(error):
                raise StopAsyncIteration from None
            raise
        self._next = None  # another reader waits for its turn
        try:
            value = await self._pull.drive(awaitable, waits_on)
        except BaseException as error:
            if self._ended_quietly(error):
                raise StopAsyncIteration from None
            raise
        self._next = pull_next
        if self._pull.stopping:
            self._come_late(value)
        return value

    async def peek(self) -> T:
        """Return the next item without taking it; waits for it.

        Raises:
            anyio.EndOfStream: There is none: the source ended, or the stream was cancelled or closed.
        """
        if self._peeked is _EMPTY:
            try:
                item = await self.__anext__()
            except StopAsyncIteration:
                raise anyio.EndOfStream from None
            self._peeked = item
            self._next = None  # the next pull has this to look at
        if self._pull.stopping:
            raise anyio.EndOfStream
        return self._peeked

    async def is_exhausted(self) -> bool:
        """Whether no item will come any more; waits for the next one to know it, and keeps it."""
        try:
            await self.peek()
        except anyio.EndOfStream:
            return True
        return False

    async def _next_slowly(self) -> T:
        while True:
            if self._pull.stopping or self._ended.is_set():
                self._bind()
                raise StopAsyncIteration
            self._require_own_loop()
            if self._peeked is not _EMPTY:
                item, self._peeked = self._peeked, _EMPTY
                self._go_on()
                return item
            if self._pull.task is None:
                break
            if self._inside():
                raise MisplacedPull("this task is already waiting for the next item of this stream")
            await self._pull.idle()
        if self._iterator is None:
            try:
                self._iterator = _coroutines(aiter(self.source))
            except BaseException as error:
                self._ended_quietly(error)
                raise
        self._go_on()
        return await self.__anext__()

    def _is_in_own_thread(self) -> bool:
        """Whether the caller is in the thread of the stream's loop; that costs less to know than the loop."""
        return get_ident() == self._thread

    def _require_own_loop(self) -> None:
        """Refuse a reader of another event loop than the stream's; bind a stream that has none yet.

        Raises:
            MisplacedPull: The caller is not on the stream's loop. Nothing was changed.
        """
        loop = require_loop()
        self._bind()
        if loop is not self._loop:
            raise MisplacedPull(ELSEWHERE)
        self._thread = get_ident()  # a blocking run's loop is driven by one thread after another

    def _go_on(self) -> None:
        if self._iterator is not None:
            self._next = cast("Callable[[], Coroutine[Any, Any, T]]", self._iterator.__anext__)
        if self._pull.stopping:  # from another thread, just now: it clears after it marks
            self._next = None

    def _come_late(self, item: T) -> NoReturn:
        self._next = None
        self._late.append(item)
        raise StopAsyncIteration

    def _ended_quietly(self, error: BaseException) -> bool:
        """The source has ended with this: say whether the consumer's loop just ends."""
        self._ended.set()
        self._next = None
        if isinstance(error, StopAsyncIteration):
            self._life.apply(Event.END)
            return True
        if self._pull.stopping and isinstance(error, Exception):
            return True  # our own interruption, or an error that our closing caused
        # It failed, or the consumer is being cancelled: perhaps the consumer never comes back to close it.
        self._life.apply(Event.ERROR)
        self._stop()
        return False

    # Stopping -----------------------------------------------------------------------------------------------

    def cancel(self) -> Closing:
        """Stop: a pending pull ends, and none that starts later yields anything.

        Plain, idempotent, and nothing after the end; from any task, thread or signal handler. It takes no lock.
        A pull that another thread is just handing over may still arrive.

        Returns:
            May be dropped. Awaiting it, from any loop, waits until the source is closed.
        """
        if self._life.apply(Event.CANCEL):
            self._stop()
        elif self._ended.is_set() and not self._pull.stopping:
            return Closing(DONE)
        return Closing(self._closed, self._need_not_wait)

    async def close(self) -> None:
        """Stop and wait until the source is closed, at most `DEADLINE` seconds; idempotent, on any loop.

        Called from inside the stream's own pull it returns at once, and so it does where the stream's loop is closed.
        """
        self._life.apply(Event.LEAVE)
        self._stop()
        if self._is_stranded:
            return
        if not self._need_not_wait():
            # The finisher has a deadline; this one is for a loop of another thread that has stopped.
            with anyio.move_on_after(2 * DEADLINE, shield=True):
                await self._closed.wait()

    aclose = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if self._ended.is_set() or self._pull.stopping or self._is_forked():
            return
        self._life.apply(Event.LEAVE)
        self._stop()  # the finisher keeps us until it is done
        made = "" if self._made_at is None else f", made at {self._made_at}"
        warnings.warn(
            f"a stream was dropped without being closed{made}: use `async with`, or `await stream.close()`",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )

    def _stop(self) -> None:
        """Mark it, and have the loop do the rest; any thread."""
        self._pull.stopping = True
        self._next = None
        loop = self._loop
        if self._is_forked():
            self._closed.set()
            return
        if loop is None:
            return  # never used in a loop: the first pull, or await of the closing, binds it
        if loop is running_loop():
            self._shut_socket_now()
        try:
            loop.call_soon_threadsafe(self._finish_soon)
        except RuntimeError:  # the loop is closed: nothing is left that could read or close
            self._shut_socket_now()
            self._closed.set()

    def _shut_socket_now(self) -> None:
        """Tell an HTTP/1.1 server within this call, before any turn of the loop.

        For a stream that was stopped; on the reader's own thread, or where the loop does not run meanwhile.
        """
        if not self._ended.is_set() and self._pull.stopping and self._unread is None and not self._is_forked():
            self._unread = http.shut_and_report_loss(getattr(self.source, "response", None))

    def _is_forked(self) -> bool:
        """Whether this process was forked from the one that made the stream: the connection is its parent's."""
        return os.getpid() != self._pid

    @property
    def _is_stranded(self) -> bool:
        """Whether the stream's loop is closed, so that nothing of it can be awaited any more."""
        return self._loop is not None and self._loop.is_closed()

    def _inside(self) -> bool:
        """Whether the caller runs inside our own pull or closing, so that waiting for us would never end."""
        if self._loop is not running_loop():
            return False
        if self._pull.task is None and getattr(self._iterator, "ag_running", False):
            return True  # a generator that runs and is not suspended: it is what calls us
        return asyncio.current_task() in (self._pull.task, None if self._finisher is None else self._finisher.task)

    def _need_not_wait(self) -> bool:
        self._bind()
        return self._inside()

    def _bind(self) -> None:
        if self._loop is None:
            self._loop = running_loop()
            self._thread = get_ident()
            if self._pull.stopping:
                self._stop()

    def _finish_soon(self) -> None:
        """Begin to close; on the stream's own loop."""
        if self._finisher is None:
            if self._peeked is not _EMPTY:
                self._late.append(self._peeked)
                self._peeked = _EMPTY
            self._finisher = Finisher(self.source, self._iterator, self._pull, self._ended.is_set, self._late)
            complete = self._life.state is State.COMPLETE
            self._finisher.start(self._closed, complete=complete, unread=self._unread)


class _Coroutines(Generic[T]):
    """Gives an iterator whose `__anext__` returns another awaitable one that returns coroutines."""

    __slots__ = ("_iterator",)

    def __init__(self, iterator: AsyncIterator[T]) -> None:
        self._iterator = iterator

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        return await self._iterator.__anext__()

    async def aclose(self) -> None:
        closing = closer(self._iterator)()
        if closing is not None:
            await closing


def _coroutines(iterator: AsyncIterator[T]) -> AsyncIterator[T]:
    if inspect.isasyncgen(iterator) or inspect.iscoroutinefunction(iterator.__anext__):
        return iterator
    return _Coroutines(iterator)


def _made_at(loop: asyncio.AbstractEventLoop | None) -> str | None:
    """The line outside this package that made the stream; looked up in debug mode only."""
    if not (sys.flags.dev_mode if loop is None else loop.get_debug()):
        return None
    return line_outside()


# For the rooms above; the users of a stream need not know of these.


def shut_socket_now(stream: PeekableAsyncStream[Any]) -> None:
    """Tell the HTTP/1.1 server of a stream that was stopped, before any turn of the loop.

    On the reader's own thread, or where the loop does not run meanwhile.
    """
    stream._shut_socket_now()


def is_stranded(stream: PeekableAsyncStream[Any]) -> bool:
    """Whether the stream's loop is closed, so that nothing of it can be awaited any more."""
    return stream._is_stranded


def require_own_loop(stream: PeekableAsyncStream[Any]) -> None:
    """Refuse a caller that reads on another event loop than the stream's; raises `MisplacedPull`."""
    # The thread costs less to know than the loop.
    if not stream._is_in_own_thread():
        stream._require_own_loop()
