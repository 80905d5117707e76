"""The raw route: a response that reads openai's own stream, and `open_stream`, which can be stopped while it opens.

Mechanism. What is pulled is what one read of the connection holds (`FastLane`), or, where that does not know the
stream, the SDK's chunks. Whatever is handed out goes through the stream's `Transcript`, which makes events, text and
the message of it; so `chunks()`, `stream_text()` and the events are three readings of one stream, and one may go on
where another stopped.

A background response of the Responses API runs on without its stream. When it is cancelled it is also cancelled on
the server, in a task of its own, which leaving the context waits for.

Known limits. Until the first event has told a background response's id nobody can cancel it on the server. The
provider's name is taken from the URL: `'azure'`, or else `'openai'`, as pydantic-ai names a client of any other host.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final, cast

import anyio
import openai
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import ModelRequestParameters, StreamedResponse

from .. import _openai
from .._openai import MORE, Asked, FastLane, Growing, Transcript, text_of
from .._sse import EventDecoder
from .._state import Event, State
from .._usage import Meter
from ._response import LEAVE_TIMEOUT, CancellableStreamedResponse
from ._source import Pulled

__all__ = ("OpenAIResponse", "open_stream")

CLOSE_WAIT: Final = 0.5
"""Seconds that closing waits for the provider to confirm a cancelled background response; leaving waits longer."""

_logger = logging.getLogger("cancelstream")
_running: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


class OpenAIResponse(CancellableStreamedResponse):
    """A response that reads openai's own stream; made by `from_openai()` and `open_stream()`."""

    def __init__(self, meter: Meter, model: str) -> None:
        self._asked_model = model
        self._stream: Any = None
        self._http: Any = None
        self._lane: FastLane | None = None
        self._create: Callable[[], Any] | None = None
        self._request: Mapping[str, Any] | None = None
        self._transcript: Transcript | None = None
        self._events = EventDecoder()
        """What was read on the fast lane."""
        self._rest: deque[ModelResponseStreamEvent] = deque()
        """The events that follow from the end of the stream."""
        self._cancelling_job: asyncio.Task[None] | None = None
        self._begin(meter, ModelRequestParameters(), source=_OpenAISource(self))

    @classmethod
    def of(cls, stream: Any, request: Mapping[str, Any] | None) -> OpenAIResponse:
        """A response that reads a stream that is open; one that is refused is closed."""
        try:
            _openai.check_stream(stream, openai.AsyncStream)
            asked = _openai.asked_of(stream, request)
        except Exception:
            _openai.discard(stream)
            raise
        response = cls(_meter(asked), asked.model)
        response._meter.sent()
        response._adopt(stream, asked)
        return response

    @classmethod
    def opening_by(cls, create: Any, kwargs: Mapping[str, Any]) -> OpenAIResponse:
        """A response whose stream is created on the first pull."""
        client = getattr(getattr(create, "__self__", None), "_client", None)
        asked = Asked(
            "openai-chat" if "messages" in kwargs else "openai-responses",
            str(getattr(client, "base_url", "")),
            cast("str", kwargs.get("model") or ""),
            kwargs,
        )
        response = cls(_meter(asked), asked.model)
        response._request = kwargs
        response._create = lambda: create(**{**kwargs, "stream": True})
        return response

    def _adopt(self, stream: Any, asked: Asked) -> None:
        _openai.adopt(stream)
        mapping = _openai.Mapping(
            responses_api=asked.api == "openai-responses",
            resumed=asked.resumed is not None,
            model=asked.model,
            provider_url=asked.url,
        )
        self._lane = FastLane.of(stream)
        self._events = self._events if self._lane is None else self._lane.events
        grammar = _openai.CHAT if asked.api == "openai-chat" else _openai.RESPONSES
        build = self._lane.build if self._lane is not None else _as_it_is
        self._transcript = Transcript(mapping, grammar, self._meter, build)
        self._inner = mapping.response
        self._inner.provider_response_id = asked.resumed
        self._http = stream.response
        self._stream = stream

    async def open(self) -> StreamedResponse:
        """Create the stream if it is not created yet, and return what it amounts to."""
        if self._stream is None and self._create is not None:
            self._meter.sent()
            stream = self._create()
            if hasattr(stream, "__await__"):
                stream = await stream
            try:
                _openai.check_stream(stream, openai.AsyncStream)
                asked = _openai.asked_of(stream, self._request)
            except Exception:
                await _openai.discard(stream)
                raise
            self._adopt(stream, asked)
        return cast("StreamedResponse", self._inner)

    # --- reading ----------------------------------------------------------------------------------------------

    async def _read(self) -> AsyncIterator[Any]:
        """`MORE` for each read on the fast lane, and then the SDK's chunks."""
        await self.open()
        lane = self._lane
        if lane is not None:
            failure: Exception | None = None
            try:
                events = lane.events
                async for data in lane.reads():
                    events.feed(data)
                    self._note_first_chunk()
                    yield MORE
                    if events.stopped:
                        break
            except Exception as error:  # noqa: BLE001 - the SDK raises it again, in its own words
                failure = error
            lane.hand_over(failure)
        async for chunk in self._stream:
            self._note_first_chunk()
            yield chunk

    def __aiter__(self) -> AsyncIterator[ModelResponseStreamEvent]:
        """The one iteration of this stream: a second loop goes on where the first one stopped."""
        if self._event_iterator is None:
            self._event_iterator = _OpenAIEvents(self)
        return self._event_iterator

    def chunks(self) -> AsyncIterator[Any]:
        """The SDK's own objects, unchanged; ends without an error when the stream is cancelled."""
        return _Chunks(self)

    async def stream_text(self, *, delta: bool = False) -> AsyncIterator[str]:
        """The response's text as it arrives; ends without an error when the stream is cancelled.

        Args:
            delta: Whether to yield each piece by itself, or the whole text so far (the default).
        """
        reading, growing = _Chunks(self), Growing()
        stream, pull = self._pull, self._pull._pull
        while True:
            # What `reading.next()` does, written out: this is what happens for every token.
            events = self._events
            transcript: Any = self._transcript  # there is one if there are events
            while events.at < len(events.block) and not pull.stopping:
                piece = transcript.known(events)
                if piece is None:
                    event = events.take()
                    chunk = None if event is None else events.decode(event)
                    piece = "" if chunk is None else self._text(chunk, event)
                if piece:
                    yield piece if delta else growing.add(piece)
            try:
                chunk = await stream.__anext__()
            except BaseException as error:
                await reading.ended(error)
                if isinstance(error, StopAsyncIteration):
                    return
                raise
            if chunk is not MORE and (piece := self._text(chunk)):
                yield piece if delta else growing.add(piece)

    def _text(self, chunk: Any, event: bytes | None = None) -> str:
        """The answer's text in a chunk that is handed out."""
        text = cast("Transcript", self._transcript).text(chunk, event)
        return "".join(map(text_of, self._mapped(chunk))) if text is None else text

    def _mapped(self, chunk: Any) -> Iterator[ModelResponseStreamEvent]:
        """The events of a chunk that is handed out."""
        try:
            yield from cast("Transcript", self._transcript).events(chunk)
        except Exception:
            self._fail()
            raise

    def _fail(self) -> None:
        """A chunk said that the answer failed: nothing of use can follow."""
        self._life.apply(Event.ERROR)
        self._pull.cancel()

    async def _found_end(self) -> None:
        if self._transcript is not None and self._life.state is State.LIVE and not self._broken:
            try:
                self._rest.extend(self._transcript.end())
            except Exception:
                self._fail()
                raise
        await super()._found_end()

    def _keep(self) -> None:
        if self._transcript is not None:
            self._transcript.flush()
        super()._keep()

    # --- stopping ---------------------------------------------------------------------------------------------

    async def leave(self, reason: str, error: BaseException | None = None) -> None:
        """Close the stream, and see a cancelled background response through, within `LEAVE_TIMEOUT` each."""
        await super().leave(reason, error)
        if self._cancelling_job is not None:
            with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
                await asyncio.wait([self._cancelling_job])

    async def _close_source(self) -> None:
        """What closing this stream takes, its HTTP response apart; on its loop."""
        if self._stream is None:
            return
        self._keep()
        await self._stream.close()
        details = self.provider_details or {}
        if self._life.state is State.INTERRUPTED and details.get("background") and self.provider_response_id:
            job = asyncio.get_running_loop().create_task(self._cancel_job(self.provider_response_id))
            _running.add(job)
            job.add_done_callback(_running.discard)
            self._cancelling_job = job
            await asyncio.wait([job], timeout=CLOSE_WAIT)

    async def _cancel_job(self, response_id: str) -> None:
        client = _openai.client_of(self._stream)
        try:
            await client.responses.cancel(response_id, timeout=LEAVE_TIMEOUT)
        except Exception:  # it may have ended meanwhile
            _logger.debug("cancelling the background response %s raised", response_id, exc_info=True)

    # --- what it was ------------------------------------------------------------------------------------------

    def _reported(self) -> None:
        # The chunks have said it, and the meter has read them.
        return None

    def _settle(self) -> None:
        if self._is_settled:
            return
        self._is_settled = True
        self._meter.late(self._events.rest())
        self._meter.late(chunk for chunk in self._pull._late if chunk is not MORE)
        if self._pull._lost:
            self._meter.lost()
        self._meter.settle(ended=self._life.state is State.COMPLETE, finish_reason=self.finish_reason)
        self._record.update(self._meter.usage.record())

    def get(self) -> Any:
        """What arrived so far as a `ModelResponse`: `state='interrupted'`, with the reason, once it was cut."""
        if self._transcript is not None:
            self._transcript.flush()
        return super().get()

    @property
    def model_name(self) -> str:
        """The name of the model that answers."""
        return self._asked_model if self._inner is None else self._inner.model_name


class _OpenAISource:
    """The stream inside, as its `PeekableAsyncStream` sees it."""

    def __init__(self, response: OpenAIResponse) -> None:
        self._response = response

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._response._read()

    async def close(self) -> None:
        await self._response._close_source()

    @property
    def response(self) -> Any:
        return self._response._http


class _Chunks(Pulled):
    """The iteration of a stream's chunks."""

    __slots__ = ()

    async def next(self) -> Any:
        """The next chunk: decoded on the fast lane, or as the SDK has it."""
        response = cast("OpenAIResponse", self._response)
        while True:
            if response._events.more and not response._pull._pull.stopping:
                if (chunk := response._events.next()) is not None:
                    return chunk
            elif (chunk := await self.pull()) is not MORE:
                return chunk

    async def __anext__(self) -> Any:
        chunk = await self.next()
        response = cast("OpenAIResponse", self._response)
        try:
            return cast("Transcript", response._transcript).own(chunk)
        except Exception:
            response._fail()
            raise


class _OpenAIEvents(_Chunks):
    """The iteration of a stream's events."""

    __slots__ = ("_mapped",)

    def __init__(self, response: OpenAIResponse) -> None:
        super().__init__(response)
        self._mapped: Iterator[ModelResponseStreamEvent] = iter(())

    async def __anext__(self) -> ModelResponseStreamEvent:
        response = cast("OpenAIResponse", self._response)
        while response._pull._pull.stopping or (event := next(self._mapped, None)) is None:
            try:
                chunk = await self.next()
            except StopAsyncIteration:
                if not response._rest:
                    raise
                return response._rest.popleft()
            self._mapped = response._mapped(chunk)
        return event


def _meter(asked: Asked) -> Meter:
    return Meter.for_openai(asked.request, api=asked.api, model=asked.model or None, url=asked.url)


def _as_it_is(chunk: Any) -> Any:
    return chunk


def open_stream(create: Callable[..., Any], /, **kwargs: Any) -> CancellableStreamedResponse:
    """A response that can be cancelled from now on; the request is sent when something is first read from it.

    Use it as `async with open_stream(client.chat.completions.create, model=..., messages=...) as response:`. The same
    goes for `client.responses.create` and `client.responses.retrieve`. What `create` raises is raised by the first
    read.

    Args:
        create: An asynchronous openai client's method that returns a stream.
        kwargs: Its arguments; `stream=True` is added.

    Raises:
        TypeError: `create` is not callable, or belongs to a blocking client.
        ValueError: `stream=False` was given.
    """
    if not callable(create):
        raise TypeError(
            f"open_stream takes the method itself, as in `open_stream(client.chat.completions.create, ...)`, "
            f"not {create!r}; `CancellableStreamedResponse.from_openai` takes a stream"
        )
    if isinstance(getattr(getattr(create, "__self__", None), "_client", None), openai.OpenAI):
        raise TypeError(
            "open_stream needs a method of `AsyncOpenAI`, and this is one of `OpenAI`: use "
            "`cancelstream.sync.CancellableStream(create(..., stream=True))` for that"
        )
    if getattr(create, "__name__", None) == "stream" and str(getattr(create, "__module__", "")).startswith("openai."):
        raise TypeError(
            "open_stream calls the method that sends the request, and `stream` returns a helper around it: pass "
            "`client.chat.completions.create` or `client.responses.create`, with the same arguments"
        )
    if kwargs.get("stream", True) is not True:
        raise ValueError(f"open_stream always streams, and was given stream={kwargs['stream']!r}: leave it out")
    return OpenAIResponse.opening_by(create, kwargs)
