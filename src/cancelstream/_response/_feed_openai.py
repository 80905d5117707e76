"""The feed of a raw-route response: openai's own stream, created by the first pull, on the fast lane.

A pull gives the events of one read of the connection (`FastLane`), or, where that does not know the stream, the SDK's
chunks. Every item that is handed out goes through the stream's `Transcript`, which makes events, text and the message.

A background response of the Responses API runs on without its stream. When it is cancelled it is also cancelled on
the server, in a task of its own.

Known limits. Until the first event has told a background response's id, the job cannot be cancelled on the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final

import openai

from .. import _openai
from .._openai import MORE, Asked, FastLane, Transcript
from .._sse import EventDecoder
from .._state import Life, State
from .._upstream.openai import client_of, iteration_of
from .._usage import Meter
from ._feed_agent import LEAVE_TIMEOUT, AgentFeed, aclose

__all__ = ("OpenAIFeed",)

CLOSE_WAIT: Final = 0.5
"""Seconds that closing waits for the provider to confirm a cancelled background response; leaving waits longer."""

_logger = logging.getLogger("cancelstream")
_running: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


class OpenAIFeed(AgentFeed):
    """A stream of openai's client, or the call that creates one.

    Args:
        life: The response's.
        meter: The response's.
        create: Creates the stream, if it is not adopted.
        request: The arguments it is created with.

    Attributes:
        transcript: What the stream has said so far, once there is a stream.
        events: What was read on the fast lane.
        http: The stream's HTTP response.
        cancelling_job: The task that cancels a background response on the server.
    """

    def __init__(
        self,
        life: Life,
        meter: Meter,
        *,
        create: Callable[[], Any] | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(life, meter)
        self.transcript: Transcript | None = None
        self.events = EventDecoder()
        self.http: Any = None
        self.cancelling_job: asyncio.Task[None] | None = None
        self._create = create
        self._request = request
        self._stream: Any = None
        self._lane: FastLane | None = None

    @property
    def can_close(self) -> bool:
        """The SDK's stream always can be."""
        return True

    def adopt(self, stream: Any, asked: Asked) -> None:
        """Read this stream from now on."""
        _openai.adopt(stream)
        mapping = _openai.Mapping(
            responses_api=asked.api == "openai-responses",
            resumed=asked.resumed is not None,
            model=asked.model,
            provider_url=asked.url,
        )
        self._lane = FastLane.of(stream)
        self.events = self.events if self._lane is None else self._lane.events
        grammar = _openai.CHAT if asked.api == "openai-chat" else _openai.RESPONSES
        build = self._lane.build if self._lane is not None else _as_it_is
        self.transcript = Transcript(mapping, grammar, self._meter, build, asked.choices)
        self.inner = mapping.response
        self.inner.provider_response_id = asked.resumed
        self.http = stream.response
        self._stream = stream

    async def open(self) -> Any:
        """Create the stream if it is not created yet, and return what it amounts to."""
        if self._stream is None and self._create is not None:
            stream = self._create()
            self._meter.sent()
            try:
                if hasattr(stream, "__await__"):
                    stream = await stream
            except Exception as error:
                self._meter.failed(error, cut=self._life.state is not State.LIVE)
                raise
            self._meter.opened()
            try:
                _openai.check_stream(stream, openai.AsyncStream)
                asked = _openai.asked_of(stream)
                if asked.request is None:
                    asked = _openai.asked_of(stream, self._request)
            except Exception:
                await _openai.discard(stream)
                raise
            if asked.request is not None:
                self._meter.asked(asked.request, api=asked.api, model=asked.model, url=asked.url)
            self.adopt(stream, asked)
        return self.inner

    async def _read(self) -> AsyncGenerator[Any]:
        """`MORE` for each read on the fast lane, and then the SDK's chunks."""
        await self.open()
        lane = self._lane
        if lane is not None:
            failure: Exception | None = None
            try:
                events = lane.events
                async for data in lane.reads():
                    events.feed(data)
                    self.note_first_chunk()
                    yield MORE
                    if events.stopped:
                        break
            except Exception as error:  # noqa: BLE001 - the SDK raises it again, in its own words
                failure = error
            try:
                lane.hand_over(failure)
            finally:
                failure = None  # it knows this frame
        async for chunk in self._stream:
            self.note_first_chunk()
            yield chunk

    def keep(self) -> None:
        """Keep what has arrived so far as it is, if that has not been done yet."""
        if self.transcript is not None:
            self.transcript.flush()
        super().keep()

    async def close(self) -> None:
        """Close the stream and its iteration, and cancel a background response that was cancelled."""
        stream, inner = self._stream, self.inner
        if stream is None or inner is None:
            return
        self.keep()
        try:
            await stream.close()
        finally:
            await aclose(iteration_of(stream))
            if self.transcript is not None:
                self.transcript.close(whole=self._life.state is State.COMPLETE)
        details = inner.provider_details or {}
        if self._life.state is State.INTERRUPTED and details.get("background") and inner.provider_response_id:
            job = asyncio.get_running_loop().create_task(_cancel_job(stream, inner.provider_response_id))
            _running.add(job)
            job.add_done_callback(_running.discard)
            self.cancelling_job = job
            await asyncio.wait([job], timeout=CLOSE_WAIT)

    @property
    def response(self) -> Any:
        """The stream's HTTP response."""
        return self.http


async def _cancel_job(stream: Any, response_id: str) -> None:
    client = client_of(stream)
    try:
        await client.responses.cancel(response_id, timeout=LEAVE_TIMEOUT)
    except Exception as error:  # noqa: BLE001 - it may have ended meanwhile
        _logger.debug("cancelling the background response %s raised %s", response_id, type(error).__name__)


def _as_it_is(chunk: Any) -> Any:
    return chunk
