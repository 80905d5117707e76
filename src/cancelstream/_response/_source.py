"""What a `CancellableStreamedResponse` reads from, and its iteration.

Known limit. The HTTP response, which an HTTP/2 reset needs, is looked up in private attributes of pydantic-ai's
classes, where those for OpenAI and Anthropic keep it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final, Self

from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import StreamedResponse

from .._interrupt import Pull
from .._state import Event

if TYPE_CHECKING:
    from ._response import CancellableStreamedResponse

__all__ = ("Events", "Pulled", "Source")

UNWIND_LIMIT: Final = 1000
"""Events that are read, and dropped, to find the first wait: more than one read of 64 KB holds."""

_logger = logging.getLogger("cancelstream")


class Source:
    """The stream inside, as its `PeekableAsyncStream` sees it: something to iterate and to close."""

    def __init__(self, response: CancellableStreamedResponse) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[ModelResponseStreamEvent]:
        return self._response._read()

    async def close(self) -> None:
        response, inner = self._response, self._response._inner
        if inner is None:
            return
        response._keep()
        if self.response is None and inner.provider_url:
            await _unwind(inner)
        if type(inner).close_stream is not StreamedResponse.close_stream:
            await inner.close_stream()

    @property
    def response(self) -> Any:
        """The HTTP response, where the stream's class keeps it as those for OpenAI and Anthropic do."""
        stream = getattr(self._response._inner, "_response", None)
        return getattr(getattr(stream, "source", stream), "response", None)


async def _unwind(inner: StreamedResponse) -> None:
    """Read on to the first real wait, and interrupt that: every generator down to the connection ends by it.

    For a provider whose HTTP response is out of reach, such as Google: between two chunks its SDK's generators are
    suspended inside each other, and closing the outermost leaves the connection to the garbage collector.
    """
    pull, events = Pull(lambda _: None), aiter(inner)
    pull.stopping = True
    try:
        for _ in range(UNWIND_LIMIT):
            pull.rearm()
            await pull.run(anext(events))
    except (StopAsyncIteration, Exception) as end:  # noqa: BLE001 - however it ends, it is over
        _logger.debug("unwound %r: %r", inner, end)


class Pulled:
    """One reading of a response: pulls, and finds its end."""

    __slots__ = ("_response",)

    def __init__(self, response: CancellableStreamedResponse) -> None:
        self._response = response

    def __aiter__(self) -> Self:
        return self

    async def pull(self) -> Any:
        """What the response's source has next; whatever comes instead, the response knows of it."""
        response = self._response
        try:
            return await response._pull.__anext__()
        except BaseException as error:
            await self.ended(error)
            raise

    async def ended(self, error: BaseException) -> None:
        """A pull raised this: the response is to know what it means."""
        response = self._response
        if isinstance(error, StopAsyncIteration):
            await response._found_end()
        elif isinstance(error, asyncio.CancelledError):
            # Somebody else's: what was being pulled is lost with it, so whatever follows is no natural end.
            response._broken = True
        elif isinstance(error, Exception):
            response._life.apply(Event.ERROR)

    async def aclose(self) -> None:
        """Nothing to do: an iterator that is dropped leaves the stream open, as the response's own context does."""


class Events(Pulled):
    """The iteration of a response's events, which are counted."""

    __slots__ = ()

    async def __anext__(self) -> ModelResponseStreamEvent:
        event: ModelResponseStreamEvent = await self.pull()
        self._response._meter.feed_event(event)
        return event
