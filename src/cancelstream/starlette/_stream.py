"""One stream on its way to a client: who reads it, how it is stopped, what is done when it ends.

The reader is a task of its own. It enters the context, so that the request to the model starts in here, iterates it
into the outbox, leaves it, and calls `on_end`, whether or not anybody still listens: saving follows the result and not
its delivery. The task that serves the request may be cancelled at any `await` and again at the next one (anyio cancels
that way when a client leaves); the reader is not part of that.

`stop()` cancels what is read. If that does not end it within the deadline, because it is of a kind that cannot be
stopped, the reader itself is cancelled and so leaves the context: every stream ends.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Protocol

import anyio
from pydantic_ai.exceptions import RunCancelled

from .._response import text_of
from .._run import CancellableRun
from .._stops import Stopper
from .._usage import ResponseUsage, StreamUsage, usage_to_json
from ._outbox import Outbox, StreamEnd

__all__ = ("OnEnd", "Source", "Stream")

logger = logging.getLogger("cancelstream")

OnEnd = Callable[[Any], object]
"""Called with the result when the stream has ended; what it returns is awaited if it can be."""


class Source(Protocol):
    """A streamable source: an async context manager with a `cancel()` that works before and after it is entered.

    The object that entering it gives is read: its `stream_text(delta=True)`, or else itself as an async iterable.
    """

    def cancel(self) -> object:
        """Stop it; called with `reason=` if it takes that."""
        ...

    async def __aenter__(self) -> Any:
        """Start it."""
        ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None, /
    ) -> bool | None:
        """Close it."""
        ...


class Stream:
    """A source that is read into an outbox. In one event loop.

    Attributes:
        outbox: What was read and was not sent yet.
        end: How it ended, from before `on_end` is called.

    Args:
        source: What is read.
        read: What is read of the result that entering the source gives.
        pack: What of an item waits in the outbox.
        on_end: Called with the result, once, however it ends.
        deadline: How long closing, and `on_end`, may each take, in seconds.
    """

    def __init__(
        self,
        source: Source,
        read: Callable[[Any], AsyncIterator[Any]],
        pack: Callable[[Any], Any],
        on_end: OnEnd | None,
        deadline: float,
    ) -> None:
        # Python does not check what a factory without a type checker makes.
        is_context = isinstance(source, AbstractAsyncContextManager)  # pyright: ignore[reportUnnecessaryIsInstance]
        if not is_context or not callable(getattr(source, "cancel", None)):
            raise TypeError(
                f"factory() made {kind_of(source)}, which is no async context manager with a cancel() that "
                f"works before it is entered: {what_to_write(source)}"
            )
        self.outbox = Outbox()
        self.end: StreamEnd | None = None
        self._source = source
        self._read = read
        self._pack = pack
        self._on_end = on_end
        self._deadline = deadline
        self._stopper = Stopper(source.cancel)
        self._reading = anyio.CancelScope()
        self._reason: str | None = None
        self._complete = False
        self._characters = 0
        self._timer: asyncio.TimerHandle | None = None

    def stop(self, reason: str) -> None:
        """Stop it, once; a second reason is too late."""
        if self._reason is not None or self.end is not None:
            return
        self._reason = reason
        self.outbox.lift()
        if self._stopper.stop(reason):
            self._timer = asyncio.get_running_loop().call_later(self._deadline, self._reading.cancel)
        else:
            self._reading.cancel()

    async def run(self) -> None:
        """Read it to its end, and finish."""
        result: Any = self._source
        error: Exception | None = None
        try:
            with self._reading:
                async with self._source as result:
                    await self._read_all(result)
        except Exception as failed:  # noqa: BLE001  (it is told to the client, to the log and to on_end)
            error = failed
        finally:
            if self._timer is not None:
                self._timer.cancel()
            await self._finish(result, error)

    async def _read_all(self, result: Any) -> None:
        if self._reason is not None and result is not self._source and hasattr(result, "cancel"):
            # It was stopped before entering made what there is to stop.
            Stopper(result.cancel).stop(self._reason)
        items = self._read(result)
        try:
            async for item in items:
                self._characters += len(item if isinstance(item, str) else text_of(item))
                if not self.outbox.dropping:
                    await self.outbox.put(self._pack(item))
                if self._reason is not None:
                    await asyncio.sleep(0)  # one that goes on and never waits is cancelled here
            self._complete = self._reason is None
        finally:
            close: Callable[[], Awaitable[object]] | None = getattr(items, "aclose", None)
            if close is not None:
                with anyio.move_on_after(self._deadline, shield=True):
                    await close()

    async def _finish(self, result: Any, error: Exception | None) -> None:
        """Save, then tell the client: what it asks for next finds what was saved."""
        self.end = end = self._how_it_ended(result, error)
        if end.state == "failed":
            logger.error("a stream failed", exc_info=end.error)
        try:
            with anyio.move_on_after(self._deadline, shield=True) as saving:
                outcome = None if self._on_end is None else self._on_end(result)
                if inspect.isawaitable(outcome):
                    await outcome
            if saving.cancelled_caught:
                logger.error("on_end had not ended after %s s and was cancelled", self._deadline)
        except Exception:
            logger.exception("on_end raised")
        finally:
            self.outbox.close(end)

    def _how_it_ended(self, result: Any, error: Exception | None) -> StreamEnd:
        # A run that its own token or timeout ended raises, as it does in pydantic-ai, and was cut all the same.
        failed = error is not None and not isinstance(error, RunCancelled)
        known = getattr(result, "cancelled", None)  # in cancelstream's results; elsewhere it may be a method
        cut = not failed and (known if isinstance(known, bool) else not self._complete)
        reason = getattr(result, "cancel_reason", None) or self._reason or "task_cancelled"
        usage: object = getattr(result, "usage", None)
        counted = usage if isinstance(usage, ResponseUsage | StreamUsage) else None
        return StreamEnd(
            state="failed" if failed else "interrupted" if cut else "complete",
            reason=reason if cut else None,
            usage=None if counted is None else usage_to_json(counted),
            provenance="unknown" if counted is None else counted.provenance,
            characters=self._characters,
            error=error,
        )


def kind_of(made: Any) -> str:
    """A name for what was given, which holds nothing of its prompt."""
    return f"a {type(made).__name__}"


def what_to_write(made: Any) -> str:
    """The hint for a wrong `factory=`: what it has to be."""
    # pydantic-ai's own runs tell by the name of the method which run of cancelstream is meant.
    made_by = getattr(getattr(made, "func", None), "__name__", type(made).__name__)
    name = "run_stream" if isinstance(made, CancellableRun) or made_by == "run_stream" else "run_stream_events"
    return f"write `lambda: {name}(agent, prompt)`, with `{name}` of cancelstream"
