"""The feed that a `CancellableStreamedResponse` reads from: a pydantic-ai stream, opened by the first pull.

A feed is what the response's `PeekableAsyncStream` iterates and closes. It knows neither of the two, so no cycle
keeps a stream, and a stream without a reference is freed at once.

Known limit. The HTTP response, which an HTTP/2 reset needs, is known of the streams for OpenAI and Anthropic only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final, cast

from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import StreamedResponse

from .._interrupt import Pull
from .._state import Life, State
from .._upstream.pydantic_ai import keep_last_total
from .._upstream.pydantic_ai_streams import enforce_deadline, http_response_of, read_directly
from .._usage import Meter, attempt

__all__ = ("LEAVE_TIMEOUT", "AgentFeed", "Opener", "aclose")

LEAVE_TIMEOUT: Final = 10.0
"""Seconds that leaving may wait for a stream to close: anyio's guide names this for cleaning up under a shield."""

UNWIND_LIMIT: Final = 1000
"""Events that are read, and dropped, to find the first wait: more than one read of 64 KB holds."""

Opener = Callable[[], AbstractAsyncContextManager[StreamedResponse]]
"""Makes the context of a request; nothing is sent before it is entered."""

_logger = logging.getLogger("cancelstream")


class AgentFeed:
    """A pydantic-ai stream: one that is open, or the request for one.

    Args:
        life: The response's.
        meter: The response's.
        inner: The stream, if it is open.
        opener: Opens it otherwise.

    Attributes:
        inner: The stream once it is open, or pydantic-ai's response that stands for it.
        context: The request's context, while it has to be left.
        kept: The message that had arrived when the stream was cut.
        first_chunk_at: When the first item came, by `time.perf_counter()`.
        deadline: pydantic-ai's, for each pull of a stream that is still to be opened.
    """

    def __init__(
        self, life: Life, meter: Meter, *, inner: StreamedResponse | None = None, opener: Opener | None = None
    ) -> None:
        self.inner: StreamedResponse | None = inner
        self.context: AbstractAsyncContextManager[StreamedResponse] | None = None
        self.kept: ModelResponse | None = None
        self.first_chunk_at: float | None = None
        self.deadline: Any = None
        self._life = life
        self._meter = meter
        self._opener = opener
        self._is_opened_here = opener is not None
        if inner is not None:
            keep_last_total(inner)

    @property
    def can_close(self) -> bool:
        """Whether it can be stopped: a request that was opened here is left, another one needs `close_stream()`."""
        inner = self.inner
        return self._is_opened_here or inner is None or _has_close_stream(inner)

    async def open(self) -> StreamedResponse:
        """Open the request if it is not open yet, and return the stream."""
        if self.inner is None:
            # Called once, and not kept: the opener knows the run whose request it is.
            opener, self._opener = cast("Opener", self._opener), None
            context = opener()
            self._meter.sent()
            try:
                inner = await context.__aenter__()
            except Exception as error:
                self._meter.failed(error, cut=self._life.state is not State.LIVE)
                raise
            self._meter.opened()
            # From here on there is something to leave; an opening that fails or is interrupted leaves by itself.
            self.context = context
            if self.deadline is not None:
                enforce_deadline(inner, self.deadline)
            read_directly(inner)
            keep_last_total(inner)
            self.inner = inner
        return self.inner

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._read()

    async def _read(self) -> AsyncGenerator[Any]:
        async for event in await self.open():
            self.note_first_chunk()
            yield event
            # Whatever is read after a cancel is read to be counted, and is no part of what was delivered.
            if self._life.state is not State.LIVE:
                self.keep()

    def note_first_chunk(self) -> None:
        """Something came."""
        if self.first_chunk_at is None:
            self.first_chunk_at = time.perf_counter()

    def keep(self) -> None:
        """Keep what has arrived so far as it is, if that has not been done yet."""
        # A whole response stays the inner stream's: leaving its context may add to it, such as the model that a
        # `FallbackModel` goes on with.
        if self.kept is None and self.inner is not None and self._life.state is not State.COMPLETE:
            self.kept = attempt(self.inner.get, None) or self._text_alone(self.inner)

    def _text_alone(self, inner: StreamedResponse) -> ModelResponse:
        """The text that arrived, where pydantic-ai cannot make a message of what did."""
        return ModelResponse(
            parts=[TextPart(self._meter.text)],
            model_name=inner.model_name,
            provider_name=inner.provider_name,
            provider_url=inner.provider_url,
            timestamp=inner.timestamp,
            state="incomplete",
        )

    async def close(self) -> None:
        """Close the stream, and then its iteration: the two refer to each other."""
        inner = self.inner
        if inner is None:
            return
        self.keep()
        try:
            if self.response is None and inner.provider_url:
                await _unwind(inner)
            if _has_close_stream(inner):
                await inner.close_stream()
        finally:
            await aclose(aiter(inner))

    @property
    def response(self) -> Any:
        """The HTTP response, where the stream's class keeps it as those for OpenAI and Anthropic do."""
        return http_response_of(self.inner)


def _has_close_stream(inner: StreamedResponse) -> bool:
    return type(inner).close_stream is not StreamedResponse.close_stream


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
        _logger.debug("unwound a %s: %s", type(inner).__name__, type(end).__name__)


async def aclose(iteration: Any) -> None:
    """Close an asynchronous iterator, if it can be closed and nothing pulls from it."""
    close: Callable[[], Awaitable[None]] | None = getattr(iteration, "aclose", None)
    if close is not None:
        with suppress(RuntimeError):  # it is being pulled
            await close()
