"""The raw route: a response that reads openai's own stream, and `open_stream`, which can be stopped while it opens.

Mechanism. The stream is read by an `OpenAIFeed`, and whatever is handed out goes through its `Transcript`; so
`chunks()`, `stream_text()` and the events are three readings of one stream, and one may go on where another stopped.

Known limits. The provider's name is taken from the URL: `'azure'`, or else `'openai'`, as pydantic-ai names a client of
any other host.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from copy import copy
from functools import partial
from typing import Any, cast

import anyio
import openai
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import ModelRequestParameters

from .. import _openai
from .._errors import named
from .._openai import MORE, Ahead, Asked, Growing, Transcript, text_of
from .._peekable import require_own_loop
from .._state import Event, Life, State
from .._upstream.openai import client_behind
from .._upstream.pydantic_ai_streams import other_iterator_of
from .._usage import Meter, ResponseUsage
from ._feed_agent import LEAVE_TIMEOUT
from ._feed_openai import OpenAIFeed
from ._iteration import Pulled
from ._response import CancellableStreamedResponse

__all__ = ("OpenAIResponse", "open_stream")


class OpenAIResponse(CancellableStreamedResponse):
    """A response that reads openai's own stream; made by `from_openai()` and `open_stream()`."""

    _feed: OpenAIFeed

    def __init__(
        self,
        asked: Asked,
        *,
        create: Callable[[], Any] | None = None,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        meter = Meter.for_openai(asked.request, api=asked.api, model=asked.model or None, url=asked.url)
        life = Life()
        self._asked_model = asked.model
        self._mapped: Iterator[ModelResponseStreamEvent] = iter(())
        """The rest of the events of the chunk that was handed out last."""
        self._ahead = Ahead()
        self._rest: deque[ModelResponseStreamEvent] = deque()
        """The events that follow from the end of the stream."""
        feed = OpenAIFeed(life, meter, create=create, request=request)
        self._begin(life, meter, feed, ModelRequestParameters())

    @classmethod
    def of(cls, stream: Any, request: Mapping[str, Any] | None) -> OpenAIResponse:
        """A response that reads a stream that is open; one that is refused is closed."""
        try:
            _openai.check_stream(stream, openai.AsyncStream)
            asked = _openai.asked_of(stream, request)
        except Exception:
            _openai.discard(stream)
            raise
        response = cls(asked)
        response._meter.sent()
        response._meter.opened()
        response._feed.adopt(stream, asked)
        return response

    @classmethod
    def opening_by(cls, create: Any, kwargs: Mapping[str, Any]) -> OpenAIResponse:
        """A response whose stream is created on the first pull."""
        method, arguments = _without_partials(create, kwargs)
        client = client_behind(method)
        asked = Asked(
            "openai-chat" if "messages" in arguments else "openai-responses",
            str(getattr(client, "base_url", "")),
            cast("str", arguments.get("model") or ""),
            # A function of the user's own may send anything: what it sent is read once there is a stream.
            None if client is None else arguments,
        )
        return cls(asked, create=partial(create, **{**kwargs, "stream": True}), request=arguments)

    # --- reading ----------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[ModelResponseStreamEvent]:
        """The one iteration of this stream: a second loop goes on where the first one stopped."""
        return other_iterator_of(self) or _OpenAIEvents(self)

    def chunks(self) -> AsyncIterator[Any]:
        """The SDK's own objects, unchanged; ends without an error when the stream is cancelled."""
        return _Chunks(self)

    async def stream_text(self, *, delta: bool = False) -> AsyncIterator[str]:
        """The response's text as it arrives; ends without an error when the stream is cancelled.

        Args:
            delta: Whether to yield each piece by itself, or the whole text so far (the default).
        """
        reading, growing = _Chunks(self), Growing()
        require_own_loop(self._pull)  # what was read and not handed out is taken without a pull
        feed, stream, pull = self._feed, self._pull, self._pull._pull
        while True:
            # `reading.next()`, written out: this runs for every token.
            events = feed.events
            transcript: Any = feed.transcript  # there is one if there are events
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
        transcript = cast("Transcript", self._feed.transcript)
        text = transcript.text(chunk, event)
        if text is None:
            events, text = transcript.events(chunk), ""
            while (mapped := self._map(events)) is not None:
                text += text_of(mapped)
        return text

    def _map(self, events: Iterator[ModelResponseStreamEvent]) -> ModelResponseStreamEvent | None:
        """The next event of a chunk that is handed out."""
        try:
            return next(events, None)
        except Exception:
            self._fail()
            raise

    def _fail(self) -> None:
        """A chunk said that the answer failed: nothing of use can follow."""
        self._life.apply(Event.ERROR)
        self._pull.cancel()

    async def _found_end(self) -> None:
        transcript = self._feed.transcript
        if transcript is not None and self._life.state is State.LIVE and not self._broken:
            try:
                self._rest.extend(transcript.end())
            except Exception:
                self._fail()
                raise
        await super()._found_end()

    # --- stopping ---------------------------------------------------------------------------------------------

    async def _leave(self, reason: str, error: BaseException | None = None) -> None:
        """Close the stream, and see a cancelled background response through, within `LEAVE_TIMEOUT` each."""
        await super()._leave(reason, error)
        if (job := self._feed.cancelling_job) is not None:
            with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
                await asyncio.wait([job])

    # --- what it was ------------------------------------------------------------------------------------------

    def _is_all_said(self) -> bool:
        """As for any response; here the chunks have said it."""
        return self._is_end_said() and not self._ahead.brings

    def _is_end_said(self) -> bool:
        return self._feed.transcript is not None and self._feed.transcript.is_all_said

    def _has_ended(self) -> bool:
        transcript = self._feed.transcript
        return super()._has_ended() and transcript is not None and not transcript.has_failed

    def _note_server(self) -> None:
        """Nothing: the chunks say who answers, and what is reported, and the meter has read them."""

    def _reported(self) -> None:
        return None

    def _plain_usage(self) -> ResponseUsage:
        return self.usage

    def _message_usage(self, *, cut: bool) -> ResponseUsage:
        # No usage limit is checked against it: it is as rich as `usage`, and each message has its own while it grows.
        return copy(self.usage) if self._life.state is State.LIVE else self.usage

    def _settle(self) -> None:
        if self._is_settled:
            return
        self._is_settled = True
        self._finished = self._is_whole
        self._meter.late(self._feed.events.rest())
        self._meter.late(chunk for chunk in self._pull._late if chunk is not MORE)
        self._pull._late.clear()
        if self._pull._lost and not self._is_whole:
            self._meter.lost()
        self._meter.settle(ended=self._has_ended(), finish_reason=self.finish_reason)
        self._record.update(self._meter.usage.record())

    def get(self) -> Any:
        """The answer so far as a `ModelResponse`: `state='interrupted'`, with the reason, once it was cut."""
        if (transcript := self._feed.transcript) is not None:
            if self._is_whole:
                transcript.finish()
            else:
                transcript.flush()
        return super().get()

    @property
    def model_name(self) -> str:
        """The name of the model that answers."""
        return self._asked_model if self._inner is None else self._inner.model_name


class _Chunks(Pulled):
    """The iteration of a stream's chunks."""

    __slots__ = ()

    _response: OpenAIResponse

    async def next(self) -> Any:
        """The next chunk: decoded on the fast lane, or as the SDK has it."""
        feed, pull = self._response._feed, self._response._pull._pull
        require_own_loop(self._response._pull)  # what was read already is handed out without a pull
        while True:
            if feed.events.more and not pull.stopping:
                if (chunk := feed.events.next()) is not None:
                    return chunk
            elif (chunk := await self.pull()) is not MORE:
                return chunk

    async def __anext__(self) -> Any:
        chunk = await self.next()
        response = self._response
        try:
            return cast("Transcript", response._feed.transcript).own(chunk)
        except Exception:
            response._fail()
            raise


class _OpenAIEvents(_Chunks):
    """The iteration of a stream's events."""

    __slots__ = ()

    async def __anext__(self) -> ModelResponseStreamEvent:
        require_own_loop(self._response._pull)  # what was read already is handed out without a pull
        response = self._response
        while response._pull._pull.stopping or (event := response._map(response._mapped)) is None:
            try:
                chunk = await self.next()
            except StopAsyncIteration:
                if not response._rest:
                    raise
                return response._rest.popleft()
            transcript = cast("Transcript", response._feed.transcript)
            response._mapped = response._ahead.events(transcript.events(chunk), says_end=transcript.says_end(chunk))
        return event


def _without_partials(create: Any, kwargs: Mapping[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """The function that a `functools.partial` stands for, and all of its keyword arguments."""
    while isinstance(create, partial):
        given = cast("Any", create)
        create, kwargs = given.func, {**given.keywords, **kwargs}
    return create, kwargs


def open_stream(create: Callable[..., Any], /, **kwargs: Any) -> CancellableStreamedResponse:
    """A response that can be cancelled from now on; the request is sent when something is first read from it.

    Use it as `async with open_stream(client.chat.completions.create, model=..., messages=...) as response:`. The same
    goes for `client.responses.create` and `client.responses.retrieve`. The first read raises
    the errors of `create`.

    Args:
        create: An asynchronous openai client's method that returns a stream; a `functools.partial` of one, or a
            function that calls one, does as well. The request that it sends is counted.
        kwargs: Its arguments; `stream=True` is added.

    Raises:
        TypeError: `create` is not callable, or belongs to a blocking client.
        ValueError: `stream=False` was given.
    """
    if not callable(create):
        raise TypeError(
            f"open_stream takes the method itself, as in `open_stream(client.chat.completions.create, ...)`, "
            f"not {named(create)}; `CancellableStreamedResponse.from_openai` takes a stream"
        )
    method, _ = _without_partials(create, {})
    if isinstance(client_behind(method), openai.OpenAI):
        raise TypeError(
            "open_stream needs a method of `AsyncOpenAI`, and this is one of `OpenAI`: use "
            "`cancelstream.sync.CancellableStream(create(..., stream=True))` for that"
        )
    if getattr(method, "__name__", None) == "stream" and str(getattr(method, "__module__", "")).startswith("openai."):
        raise TypeError(
            "open_stream calls the method that sends the request, and `stream` returns a helper around it: pass "
            "`client.chat.completions.create` or `client.responses.create`, with the same arguments"
        )
    if kwargs.get("stream", True) is not True:
        raise ValueError(f"open_stream always streams, and was given stream={named(kwargs['stream'])}: leave it out")
    return OpenAIResponse.opening_by(create, kwargs)
