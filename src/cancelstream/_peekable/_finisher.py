"""Closing what a stream reads from: one task for each stream that has to be closed, and a deadline.

The order:

1. tell the server (`_upstream.http`), on HTTP/2 before anything that has to be waited for;
2. let the pending pull unwind, since a generator that runs cannot be closed;
3. close the response;
4. pull what had been received and decoded by then, a bounded number: it is not handed out, it is counted;
5. close the iterator, then the source.

Whatever a step raises, the next one is taken. After `DEADLINE` seconds the transport is aborted and whatever is
going on is let go; a step that is still to come gets as far as its first wait.

Known limits. A synchronous `close()` runs on the loop, and blocks it for as long as it takes. Draining runs the
source further, so it is done only where closing its response has cut it off from anything new. Closing loses
bytes that lie unread in a transport or in the kernel.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, cast

from .._closing import Latch
from .._interrupt import Deadline, Pull, run_to_wait
from .._upstream import http

__all__ = ("Finisher", "closer")

LATE_LIMIT: Final = 1000
"""Items drained after a close. One read of 64 KB holds about 440 chunks, and openai needs 0.1 ms and more for each."""

LATE_STRIDE: Final = 16
"""Items drained between two turns of the loop: about 2 ms of work."""

_logger = logging.getLogger("cancelstream")
_running: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


class Finisher:
    """Closes one stream's source; made and used on the stream's loop.

    Args:
        source: What the stream iterates. It may have a `response`, and an `aclose()` or a `close()`.
        iterator: The iteration of it, if it has begun.
        pull: The stream's pull, which is told to stop.
        over: Says whether the iteration has ended; called when it matters.
        late: What is received and not handed out is appended to it.
    """

    def __init__(
        self,
        source: Any,
        iterator: AsyncIterator[Any] | None,
        pull: Pull,
        over: Callable[[], bool],
        late: list[Any],
    ) -> None:
        self._source = source
        self._iterator = iterator
        self._response = getattr(source, "response", None)
        self._pull = pull
        self._over = over
        self._late = late
        self._closing = Pull(_drop)
        self._timed_out = False
        self.lost = False
        """Closing lost data that had arrived, or may have."""
        self.task: asyncio.Task[Any] | None = None

    def start(self, closed: Latch, *, complete: bool, unread: bool | None) -> None:
        """Interrupt the pull and begin to close.

        Args:
            closed: Is set in the end, whatever happens.
            complete: The answer was read to its end: nothing has to be told to the server.
            unread: Whether closing loses data that has arrived; `None` if the server has not been told yet.
        """
        loop = asyncio.get_running_loop()
        if unread is not None:
            self.lost = unread
        elif not self._over():
            self.lost = http.shut_and_report_loss(self._response)
        self._pull.interrupt()
        timer = Deadline(loop, self._time_out)

        def ended(task: asyncio.Task[None]) -> None:
            timer.cancel()
            _running.discard(task)
            self.task = None  # its context may hold anything
            if task.cancelled():  # by a loop that shuts down, before it could begin
                self._finish_at_once()
            closed.set()

        self.task = loop.create_task(self._finish(complete=complete), name="cancelstream-close")
        _running.add(self.task)
        self.task.add_done_callback(ended)

    async def _finish(self, *, complete: bool) -> None:
        self.task = asyncio.current_task()  # an eager task is here before `start` has it
        response, iterator = self._response, self._iterator
        if not complete:
            await self._take(lambda: http.reset_http2_stream(response))
        await self._take(self._pull.idle)
        if not complete and response is None:
            # It still waited for headers, or the source keeps its response to itself.
            await self._take(lambda: http.reset_http2_stream(self._pull.found))
        if response is not None:
            await self._take(closer(response))
            if iterator is not None and not self._over():
                await self._drain(iterator)
        if iterator is not None and iterator is not self._source:
            await self._take(closer(iterator))
        await self._take(closer(self._source))

    def _finish_at_once(self) -> None:
        """Do what is still possible without waiting."""
        http.abort(self._response)
        for step in (closer(self._iterator), closer(self._source)):
            with suppress(Exception):
                awaitable = step()
                if inspect.isawaitable(awaitable):
                    run_to_wait(awaitable)

    async def _take(self, step: Callable[[], Awaitable[None] | None]) -> None:
        """Take one step. Closing is best effort: what it raises is logged, and the next step is taken."""
        try:
            awaitable = step()
            if inspect.isawaitable(awaitable):
                await self._closing.run(awaitable)
        except asyncio.CancelledError:
            # The loop shuts down and cancels every task. It waits for them too, so the closing goes on.
            _logger.debug("closing a %s was cancelled", type(self._source).__name__)
        except Exception as error:  # noqa: BLE001
            _logger.debug("closing a %s raised %s", type(self._source).__name__, type(error).__name__)

    async def _drain(self, iterator: AsyncIterator[Any]) -> None:
        self._pull.rearm()
        try:
            for count in range(1, LATE_LIMIT + 1):
                coroutine = cast("Coroutine[Any, Any, Any]", iterator.__anext__())
                self._late.append(await self._pull.run(coroutine))
                if count % LATE_STRIDE == 0:
                    await asyncio.sleep(0)
        except (StopAsyncIteration, asyncio.CancelledError, Exception) as end:  # noqa: BLE001
            # Its response is closed, so it ends somehow: by an error, or interrupted where it would wait.
            _logger.debug("drained a %s: %s", type(self._source).__name__, type(end).__name__)
            return
        self.lost = True

    def _time_out(self) -> None:
        self.lost = True
        http.abort(self._response)
        self._pull.abandon()
        self._closing.abandon()


def closer(source: Any) -> Callable[[], Awaitable[None] | None]:
    """The function that closes it; one that does nothing if it has none."""
    return getattr(source, "aclose", None) or getattr(source, "close", None) or _nothing


def _nothing() -> None:
    """Close what has no way to be closed."""


def _drop(_value: Any) -> None:
    """A step has no result."""
