"""`CancellableStreamedResponse`: one streamed response that can be stopped, and that says what it was.

Mechanism. Its events are pulled through a `PeekableAsyncStream`, which interrupts a pending pull and closes the
stream inside. `cancel()` does three things, in this order:

1. It claims the end of the stream's life (`_state.py`), so that nothing is handed out any more.
2. It keeps all that had been received by then, the chunk in flight included, as the response's text and usage.
3. It forwards the close, down to openai's `AsyncStream.close()`.

The stream inside may not be open yet: `CancellableModel` opens its request on the first pull, so that a request that
is still waiting for its headers has a `cancel()`, a state and a usage like any other. The task that leaves the
response's context leaves the request's context too, as in pydantic-ai.

An answer is whole when its provider has said how it ended and all of it was handed out. From then on a `cancel()`,
and leaving the context, close the stream and change nothing else (`is_all_said()`).

Known limits. Where pydantic-ai makes several events of the chunk that says the end, or one that brings text, the
answer is known to be whole when the next event is asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, cast

import anyio
from openai import AsyncStream
from pydantic_ai.messages import FinishReason, ModelMessage, ModelResponse, ModelResponseStreamEvent, PartEndEvent
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.openai import OpenAIResponsesStreamedResponse, OpenAIStreamedResponse
from pydantic_ai.usage import RequestUsage

from .._closing import Closing
from .._counting import Api
from .._errors import CancellationUnsupported, named
from .._history import mark_interrupted
from .._openai import Growing, text_of
from .._peekable import PeekableAsyncStream, is_stranded, shut_socket_now
from .._state import Event, Life, State, checked_reason
from .._upstream.pydantic_ai_streams import keep_timing, other_iterator_of, reported_by
from .._usage import Meter, Reported, ResponseUsage, attempt
from ._feed_agent import LEAVE_TIMEOUT, AgentFeed, Opener
from ._iteration import Events

__all__ = ("CancellableStreamedResponse",)


class _OnFeed:
    """An attribute that pydantic-ai keeps on a stream, and the response's feed."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, response: CancellableStreamedResponse | None, owner: type[object] | None = None) -> Any:
        feed = None if response is None else response._feed
        return None if feed is None else getattr(feed, self._name)

    def __set__(self, response: CancellableStreamedResponse, value: object) -> None:
        if response._feed is not None:
            setattr(response._feed, self._name, value)


class _Forwarded:
    """An attribute of the stream inside, and its default while that is not open."""

    def __init__(self, default: object = None) -> None:
        self._default = default

    def __set_name__(self, owner: type[object], name: str) -> None:
        self._name = name

    def __get__(self, response: CancellableStreamedResponse | None, owner: type[object] | None = None) -> Any:
        inner = None if response is None else response._inner
        return self._default if inner is None else getattr(inner, self._name)

    def __set__(self, response: CancellableStreamedResponse, value: object) -> None:
        if response._inner is not None:
            setattr(response._inner, self._name, value)


class CancellableStreamedResponse(StreamedResponse):
    """A pydantic-ai `StreamedResponse` with a synchronous `cancel()`, and an account of what was stopped.

    Iterates the events of the stream it wraps, unchanged. Once it is cancelled the iteration just ends.

    Args:
        inner: An open pydantic-ai stream, whose context the caller still has to leave.

    Raises:
        TypeError: If `inner` is no pydantic-ai `StreamedResponse`.
    """

    _feed: Any = None
    """Where it reads from (`AgentFeed`), once it has one."""

    # pydantic-ai sets these attributes on a running stream: on the stream inside, which is the one that runs.
    final_result_event = cast("Any", _Forwarded())
    provider_response_id = cast("Any", _Forwarded())
    provider_details = cast("Any", _Forwarded())
    canonical_system = cast("Any", _Forwarded())
    finish_reason = cast("FinishReason | None", _Forwarded())
    state = cast("Any", _Forwarded("complete"))
    metadata = cast("Any", _Forwarded())
    failed_attempts = cast("Any", _Forwarded())

    def __init__(self, inner: StreamedResponse) -> None:
        # Python does not check what a caller without a type checker passes, most likely a raw openai stream.
        if not isinstance(inner, StreamedResponse):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"CancellableStreamedResponse was given {named(inner)}: pass a pydantic-ai StreamedResponse, or use "
                "CancellableStreamedResponse.from_openai(stream) for openai's AsyncStream and PeekableAsyncStream "
                "for any other async iterable"
            )
        meter = Meter(model=inner.model_name, provider=inner.provider_name, provider_url=inner.provider_url)
        meter.sent()
        meter.opened()
        life = Life()
        self._begin(life, meter, AgentFeed(life, meter, inner=inner), inner.model_request_parameters)

    @classmethod
    def from_openai(
        cls, stream: AsyncStream[Any], request: Mapping[str, Any] | None = None
    ) -> CancellableStreamedResponse:
        """Wrap a stream of `AsyncOpenAI`: chat completion chunks or events of the Responses API.

        Iterates pydantic-ai's events of it; `chunks()` has the SDK's own objects, `stream_text()` the text, which is
        read without building any. Leave its context, as `async with`, to close the stream.

        Args:
            stream: The stream, which nothing was read from yet.
            request: The arguments of `create()`, to count the request by; by default they are read from what was sent.

        Raises:
            TypeError: `stream` is not one of these: it is a blocking client's, or another library's.
            ValueError: It was read, wrapped or closed before, or its response is no event stream.

        A refused stream is closed, unless it has a wrapper already.
        """
        from ._openai import OpenAIResponse  # a response itself, so it comes after this one

        return OpenAIResponse.of(stream, request)

    @classmethod
    def _opening(
        cls, opener: Opener, *, model: Model, meter: Meter, parameters: ModelRequestParameters, in_run: bool
    ) -> CancellableStreamedResponse:
        """`open_lazily` of this room."""
        response, life = cls.__new__(cls), Life()
        response._begin(life, meter, AgentFeed(life, meter, opener=opener), parameters, in_run=in_run)
        response._model = model
        return response

    def _begin(
        self, life: Life, meter: Meter, feed: AgentFeed, parameters: ModelRequestParameters, *, in_run: bool = False
    ) -> None:
        super().__init__(model_request_parameters=parameters)
        self._life = life
        self._meter = meter
        self._feed = feed
        self._model: Model | None = None
        self._born = datetime.now(UTC)
        self._record: dict[str, Any] = {}
        self._in_run = in_run
        self._broken = False
        """A pull of a run was given up, and the run has not said why."""
        self._is_settled = False
        self._is_stopped = False
        self._latest: object = None
        """The event that was handed out last."""
        self._pull = PeekableAsyncStream(feed)
        self._on_cut: Callable[[], Awaitable[None]] | None = None
        """Awaited in the pull that finds the stream cut, before its iteration ends: a run's place to settle."""

    # --- reading ----------------------------------------------------------------------------------------------

    def __aiter__(self) -> AsyncIterator[ModelResponseStreamEvent]:
        """The one iteration of this stream: a second loop goes on where the first one stopped."""
        # A fallback that has read on to the first event puts an iterator here that gives that event again.
        return other_iterator_of(self) or Events(self)

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:  # pragma: no cover
        # Never called: this class has its own `__aiter__`. The base class asks for it.
        async for event in self:
            yield event

    async def stream_text(self, *, delta: bool = False) -> AsyncIterator[str]:
        """The response's text as it arrives; ends without an error when the stream is cancelled.

        Args:
            delta: Whether to yield each piece by itself, or the whole text so far (the default).
        """
        growing = Growing()
        async for event in self:
            if piece := text_of(event):
                yield piece if delta else growing.add(piece)

    def chunks(self) -> AsyncIterator[Any]:
        """The SDK's own objects, unchanged, of a response that `from_openai()` or `open_stream()` made.

        Ends without an error when the stream is cancelled.

        Raises:
            TypeError: This response wraps a pydantic-ai stream, which does not hand them out.
        """
        raise TypeError(
            f"a response that wraps {type(self._inner).__name__} has no chunks, only pydantic-ai's events: "
            "wrap openai's own stream with `CancellableStreamedResponse.from_openai(stream)`"
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the stream, whether or not it has ended, and settle the usage."""
        await self._leave("task_cancelled" if isinstance(error, asyncio.CancelledError) else "left", error)

    async def close(self) -> None:
        """Close the stream, whether or not it has ended, and settle the usage; what leaving its context does."""
        await self._leave("left")

    aclose = close

    @property
    def _inner(self) -> StreamedResponse | None:
        return None if self._feed is None else self._feed.inner

    async def _found_end(self) -> None:
        """The iteration is over: by itself, or because the stream was cut."""
        if self._broken:
            self._life.apply(Event.LEAVE, "task_cancelled")
        elif self._life.apply(Event.END):
            self._finished = True
            self._settle()
        elif self._on_cut is not None and self._is_stopped:
            await self._on_cut()

    def _break_off(self) -> None:
        """Note that a foreign cancellation ended a pull: its item is lost, if there was one."""
        if self._is_end_said() and self._life.apply(Event.END):
            return
        if self._in_run:
            self._broken = True
        else:
            self._life.apply(Event.LEAVE, "task_cancelled")

    # --- stopping ---------------------------------------------------------------------------------------------

    # Awaiting what it returns does what awaiting pydantic-ai's does.
    def cancel(self, reason: str | None = None) -> Closing:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Stop this response: nothing is handed out any more, and the provider is told at once.

        Idempotent, and a no-op once the stream has ended. Safe from any thread, task or signal handler. If the answer
        is whole already, its state, message and usage stay those of a whole answer.

        Args:
            reason: Why, in at most 200 characters; it is kept as `cancel_reason` and in the message.

        Returns:
            An awaitable, which need not be awaited: it returns when the connection is closed.

        Raises:
            TypeError: If the reason is not a string.
            ValueError: If it is too long.
            CancellationUnsupported: If this stream has no way to be closed. Then nothing was changed.
        """
        reason = checked_reason(reason)
        if self._life.state in (State.LIVE, State.LEFT):
            whole = self._is_all_said()
            if not whole:
                self._require_a_way_to_stop()
            self._is_stopped = True
            if self._life.stop(Event.CANCEL, reason, whole=whole):
                self._cancelled = self.cancelled
        return self._pull.cancel()

    def _require_a_way_to_stop(self) -> None:
        if not self._feed.can_close:
            raise CancellationUnsupported(
                f"{type(self._inner).__name__} has no close_stream(), so cancel() cannot stop it: leave the context it "
                "was opened in, or open it through CancellableModel(model), which leaves that context for you"
            )

    def _shut_socket_now(self) -> None:
        """Tell the server of a cancelled stream, for a caller that keeps its loop from running meanwhile."""
        shut_socket_now(self._pull)

    async def close_stream(self) -> None:
        """Stop this response and wait until it is closed; pydantic-ai's own `cancel()` calls this."""
        closing = self.cancel()
        # In a run of cancelstream the consumer waits for this very call, and need not wait for a slow connection too.
        if self._on_cut is None:
            await closing

    async def _leave(self, reason: str, error: BaseException | None = None) -> None:
        """Close whatever is open, within `LEAVE_TIMEOUT`, and settle the usage; for the holder of the context.

        Args:
            reason: Why it was left, if it had not ended.
            error: The error that the context is left with, for the request's own context.
        """
        self._life.stop(Event.LEAVE, reason, whole=self._is_all_said())
        if is_stranded(self._pull):  # a host drove us step by step, and has closed its loop
            await self._pull.close()
            self._settle()
            return
        try:
            with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
                await self._pull.close()
        finally:
            # Also where a `task.cancel()` ends the waiting: a shield of anyio's does not keep it out.
            await self._leave_context(error)

    async def _leave_context(self, error: BaseException | None) -> None:
        """Leave the request's own context, if there is one, and settle the usage."""
        feed = self._feed
        feed.keep()
        context, feed.context = feed.context, None
        try:
            if context is not None:
                failed = error if self._life.state is State.FAILED else None
                with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
                    await context.__aexit__(type(failed) if failed else None, failed, None)
        finally:
            self._settle()

    # --- what it was ------------------------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether the answer was cut: by `cancel()`, or because the stream was left before the answer was whole."""
        return self._life.is_cut

    @property
    def _is_whole(self) -> bool:
        """Whether the stream came to its natural end, or was stopped when the answer was whole."""
        return self._life.state is State.COMPLETE

    def _is_all_said(self) -> bool:
        """Whether a stop changes nothing: the provider has said how the answer ended, and all of it was handed out.

        Any thread may call it.
        """
        if not self._is_end_said():
            return False
        # When the stream inside waits for more, or closes its last part, all of the chunks before it was handed out.
        latest = self._latest
        return self._pull._pull.task is not None or (isinstance(latest, PartEndEvent) and latest.next_part_kind is None)

    def _is_end_said(self) -> bool:
        """Whether the provider has said how the answer ended."""
        inner = self._inner
        if inner is None or inner.finish_reason is None or inner.state in ("suspended", "incomplete"):
            return False
        # A refusal has its finish reason from its first word on; the provider's own comes with the end.
        return bool((inner.provider_details or {}).get("finish_reason"))

    def _has_ended(self) -> bool:
        """Whether the answer is whole; not so where the stream ended and pydantic-ai knows that it was too early."""
        return self._is_whole and (self._inner is None or self._inner.state != "incomplete")

    @property
    def _is_job(self) -> bool:
        """Whether the answer is a job that the provider works on without this stream, and has not ended."""
        return self._inner is not None and self._inner.state == "suspended"

    def _cancelled_job(self) -> ModelResponse | None:
        """The message of a stream that was cancelled; its model cancels the job on the server with it, if any."""
        stopped = self._life.state is State.INTERRUPTED and self._inner is not None and not is_stranded(self._pull)
        return self.get() if stopped else None

    @property
    def _has_failed(self) -> bool:
        """Whether the stream ended in an error."""
        return self._life.state is State.FAILED

    @property
    def cancel_reason(self) -> str | None:
        """Why it was stopped, `None` if it was not."""
        return self._life.reason

    @property
    def usage(self) -> ResponseUsage:
        """The tokens that arrived so far, with bounds; one object, final once the stream has ended.

        Calling it, `usage()`, returns it too.
        """
        if self._pull._closed.is_set() and (self.cancelled or self._is_whole):
            self._settle()
        elif not self._is_settled:
            self._note_server()
            self._meter.observe(reported=self._reported(), finish_reason=self.finish_reason, ended=self._has_ended())
        return self._meter.usage

    def _note_server(self) -> None:
        """Tell the meter who answers: the stream inside says so, some only by and by."""
        inner = self._inner
        if inner is not None:
            self._meter.served(
                model=inner.model_name,
                provider=inner.provider_name,
                provider_url=inner.provider_url,
                api=_api_of(inner),
            )

    def _reported(self) -> RequestUsage | Reported | None:
        inner = self._inner
        if isinstance(inner, CancellableStreamedResponse):
            return inner._all_reported()
        return None if inner is None else reported_by(inner)

    def _all_reported(self) -> Reported:
        """The usage that the provider reported, for a response that wraps this one."""
        _ = self.usage  # brings the meter up to date
        return self._meter.reported

    def _settle(self) -> None:
        """Bring the usage to its final state, and with it every message that was made of this response."""
        if self._is_settled:
            return
        self._is_settled = True
        self._finished = self._is_whole
        if self._pull._late:
            self._meter.late(self._pull._late)
            self._pull._late.clear()
        if self._pull._lost and not self._is_whole:
            self._meter.lost()
        self._note_server()
        kept = self._feed.kept or (None if self._inner is None else attempt(self._inner.get, None))
        self._meter.settle(
            parts=[] if kept is None else kept.parts,
            reported=self._reported(),
            ended=self._has_ended(),
            finish_reason=self.finish_reason,
        )
        self._record.update(self._meter.usage.record())

    def get(self) -> ModelResponse:
        """The answer so far as a `ModelResponse`: `state='interrupted'`, with the reason, once it was cut."""
        state = self._life.state
        if state is State.FAILED:
            self._settle()
        response = self._arrived()
        if response.state == "incomplete" and self._has_ended():
            response = replace(response, state="complete")  # the stream inside was stopped when the answer was whole
        # A server-side job that was only left goes on, and can be resumed; one that was cancelled cannot.
        if state is State.INTERRUPTED or (state is State.LEFT and response.state != "suspended"):
            usage = self.usage
            self._record.update(usage.record())
            response = replace(response, usage=self._message_usage(cut=True))
            return mark_interrupted(response, reason=self._life.reason or "cancelled", usage_record=self._record)
        return replace(response, usage=self._message_usage(cut=False))

    def _arrived(self) -> ModelResponse:
        inner = self._inner
        if inner is not None:
            return self._feed.kept or inner.get()
        # A request that failed has no response; pydantic-ai would find a price for one that has a model's name.
        failed = self._life.state is State.FAILED
        return ModelResponse(
            parts=[],
            model_name="" if failed else self.model_name,
            provider_name=None if failed else self.provider_name,
            provider_url=None if failed else self.provider_url,
            timestamp=self._born,
            state="incomplete",
        )

    def _message_usage(self, *, cut: bool) -> ResponseUsage:
        return self._meter.usage_in_message(None if cut else self._plain_usage())

    def _plain_usage(self) -> RequestUsage:
        """pydantic-ai's own usage of this response: what the provider reported."""
        inner = self._inner
        if inner is None:
            return RequestUsage()
        return inner._plain_usage() if isinstance(inner, CancellableStreamedResponse) else inner.usage

    def _has_made(self, message: ModelMessage) -> bool:
        """Whether this message is the one that pydantic-ai has recorded of this response."""
        usage = self._meter.usage
        return isinstance(message, ModelResponse) and (message.usage is usage or message.usage is usage._in_total)

    @property
    def model_name(self) -> str:
        """The name of the model that answers."""
        if self._inner is not None:
            return self._inner.model_name
        return "" if self._model is None else self._model.model_name

    @property
    def provider_name(self) -> str | None:
        """The provider's name."""
        if self._inner is not None:
            return self._inner.provider_name
        return None if self._model is None else self._model.system

    @property
    def provider_url(self) -> str | None:
        """The provider's base URL."""
        if self._inner is not None:
            return self._inner.provider_url
        return None if self._model is None else self._model.base_url

    @property
    def timestamp(self) -> datetime:
        """When the response began."""
        return self._born if self._inner is None else self._inner.timestamp

    def get_stream_cancel_errors(self) -> tuple[type[BaseException], ...]:
        """The errors that closing may raise in the stream inside; this response ends without one."""
        return super().get_stream_cancel_errors() if self._inner is None else self._inner.get_stream_cancel_errors()


keep_timing(CancellableStreamedResponse, first_chunk_at=_OnFeed("first_chunk_at"), deadline=_OnFeed("deadline"))


def _api_of(stream: StreamedResponse) -> Api | None:
    """Which of OpenAI's interfaces a stream comes through."""
    if isinstance(stream, OpenAIResponsesStreamedResponse):
        return "openai-responses"
    return "openai-chat" if isinstance(stream, OpenAIStreamedResponse) else None
