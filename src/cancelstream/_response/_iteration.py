"""The iteration of a `CancellableStreamedResponse`: one pull after another, and how it ended."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from pydantic_ai.messages import ModelResponseStreamEvent

from .._interrupt import MisplacedPull
from .._state import Event

if TYPE_CHECKING:
    from ._response import CancellableStreamedResponse

__all__ = ("Events", "Pulled")


class Pulled:
    """One reading of a response: pulls, and finds its end.

    It has no state of its own, so that any number of readings of one response go on where another one stopped, and
    the response need not hold the one that it gave out.
    """

    __slots__ = ("_response",)

    def __init__(self, response: CancellableStreamedResponse) -> None:
        self._response = response

    def __aiter__(self) -> Self:
        return self

    async def pull(self) -> Any:
        """Return the next item of the response's source; tell the response of an end or an error instead."""
        response = self._response
        try:
            return await response._pull.__anext__()
        except BaseException as error:
            await self.ended(error)
            raise

    async def ended(self, error: BaseException) -> None:
        """A pull raised this: the response is to know what it means."""
        response = self._response
        if isinstance(error, MisplacedPull):
            return  # the response's own reader goes on
        if isinstance(error, StopAsyncIteration):
            await response._found_end()
        elif isinstance(error, asyncio.CancelledError):
            response._break_off()
        elif isinstance(error, Exception):
            response._life.apply(Event.ERROR)

    async def aclose(self) -> None:
        """Nothing to do: an iterator that is dropped leaves the stream open, as the response's own context does."""


class Events(Pulled):
    """The iteration of a response's events, which are counted."""

    __slots__ = ()

    async def __anext__(self) -> ModelResponseStreamEvent:
        event: ModelResponseStreamEvent = await self.pull()
        response = self._response
        response._latest = event
        response._meter.feed_event(event)
        return event
