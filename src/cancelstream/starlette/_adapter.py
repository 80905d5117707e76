"""pydantic-ai's UI adapters (Vercel AI, AG-UI) as a format, with a stop that their clients understand.

The adapter turns a run's events into its protocol's, and does everything in it: a stop is given to it as pydantic-ai's
own `RunCancelled`, which makes it close what is open and send the protocol's own end of an aborted run. Data that
the protocol has no place for goes where it has room for an application's own: Vercel AI gets the stop id in a transient
part `data-cancelstream`, and state, reason and usage as metadata of the message; AG-UI gets them in the custom events
`cancelstream.start` and `cancelstream.end`.

Known limits. A failed run ends as the adapter ends it: with the text of the error, as pydantic-ai sends it. A further
adapter of yours is used as it is, without our two events; its client finds the stop id in the header.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from copy import copy
from typing import Any, Final, Self, cast

from pydantic_ai import ModelMessage
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.exceptions import RunCancelled
from pydantic_ai.messages import ModelResponse
from pydantic_ai.run import AgentRunResultEvent
from pydantic_ai.ui import UIAdapter, UIEventStream

from .._errors import named
from .._run import CancellableRunEvents, run_stream_events
from .._state import checked_reason
from .._usage import StreamUsage
from ._encode import EventEncoder
from ._outbox import Outbox, StreamEnd

__all__ = ("AdapterEncoder", "AdapterRun", "run_adapter")

KEY: Final = "cancelstream"

PRIVATE: Final = frozenset({"model", "provider", "provider_url"})
"""The keys that a message is priced by; a browser need not know them."""


class AdapterEncoder(EventEncoder):
    """Sends what a UI adapter makes of the events; for one response.

    Args:
        adapter: The adapter, made from the request that is answered.
    """

    def __init__(self, adapter: UIAdapter[Any, Any, Any, Any, Any]) -> None:
        super().__init__()
        self._events: UIEventStream[Any, Any, Any, Any] = adapter.build_event_stream()
        self._say = _how_to_say(self._events)
        self._result: Any = None
        self.media_type = self._events.content_type
        self.headers = dict(self._events.response_headers or {})

    def read(self, result: Any) -> AsyncIterator[Any]:
        """The events of the run.

        Raises:
            TypeError: It has none.
        """
        if not isinstance(result, CancellableRunEvents | AdapterRun):
            raise TypeError(
                f"a UI adapter needs events: stream run_adapter(...) or run_stream_events(...), not {named(result)}"
            )
        self._result = result
        events: AsyncIterator[Any] = aiter(cast("Any", result))
        return events

    def pack(self, item: Any) -> Any:
        """The event itself, which the adapter encodes."""
        return item

    async def frames(self, stop_id: str | None, outbox: Outbox) -> AsyncGenerator[str]:
        """The whole stream, an event at a time."""

        async def last(_: object) -> AsyncGenerator[Any]:
            for event in self._say("end", self._told(cast("StreamEnd", outbox.end))):
                yield event

        started = False
        async for event in self._events.transform_stream(self._native(outbox), on_complete=last, on_cancel=last):
            yield self._events.encode_event(event)
            if not started:
                started = True  # the protocol's own start has to be the first
                for event_of_ours in self._say("start", {"stop_id": stop_id}):
                    yield self._events.encode_event(event_of_ours)

    async def _native(self, outbox: Outbox) -> AsyncGenerator[Any]:
        """The run's events, its result held back until it is saved; a cut one ends as the adapter expects it."""
        result: AgentRunResultEvent[Any] | None = None
        async for batch in outbox:
            for event in batch:
                if isinstance(event, AgentRunResultEvent):
                    result = event  # pyright: ignore[reportUnknownVariableType]
                else:
                    yield event
        end = cast("StreamEnd", outbox.end)
        if end.error is not None:
            raise end.error
        if end.state == "interrupted":
            raise _as_cancelled(self._result)
        if result is not None:
            yield result

    def _told(self, end: StreamEnd) -> dict[str, Any]:
        """The end, and what the message that was cut keeps of it, so that it stays with the client's copy of it."""
        response: ModelResponse | None = self._result.response
        kept: dict[str, Any] = ((response.metadata if response is not None else None) or {}).get(KEY, {})
        if "usage" in kept:
            kept = {**kept, "usage": {name: it for name, it in kept["usage"].items() if name not in PRIVATE}}
        return {**end.to_json(), **kept}


def _as_cancelled(run: Any) -> RunCancelled:
    messages = run.all_messages()
    return RunCancelled(
        "the run was cancelled",
        messages=messages,
        new_message_index=len(messages) - len(run.new_messages()),
        usage=run.usage,
    )


def _how_to_say(events: UIEventStream[Any, Any, Any, Any]) -> Callable[[str, dict[str, Any]], list[Any]]:
    """How a protocol takes what an application has to say."""
    with suppress(ImportError):
        from pydantic_ai.ui.vercel_ai import VercelAIEventStream
        from pydantic_ai.ui.vercel_ai.response_types import DataChunk, MessageMetadataChunk

        if isinstance(events, VercelAIEventStream):

            def chunks(what: str, told: dict[str, Any]) -> list[Any]:
                if what == "start":
                    return [DataChunk(type=f"data-{KEY}", data=told, transient=True)]
                return [MessageMetadataChunk(message_metadata={KEY: told})]

            return chunks
    with suppress(ImportError):
        from ag_ui.core import CustomEvent
        from pydantic_ai.ui.ag_ui import AGUIEventStream

        if isinstance(events, AGUIEventStream):
            return lambda what, told: [CustomEvent(name=f"{KEY}.{what}", value=told)]
    return _say_nothing


def _say_nothing(what: str, told: dict[str, Any]) -> list[Any]:  # noqa: ARG001
    return []


class AdapterRun:
    """A run that an adapter has set up, as a source: what `run_adapter` returns, and what `on_end` gets."""

    def __init__(self, adapter: UIAdapter[Any, Any, Any, Any, Any], kwargs: dict[str, Any]) -> None:
        self._adapter = copy(adapter)
        self._adapter.agent = self._agent = _StoppableAgent(adapter.agent)
        self._kwargs = kwargs
        self._events: AsyncIterator[Any] | None = None

    def cancel(self, reason: str | None = None) -> None:
        """Stop it, as `CancellableRunEvents.cancel`; before it has begun it never begins."""
        self._agent.cancel(checked_reason(reason))

    async def __aenter__(self) -> Self:
        self._events = self._adapter.run_stream_native(**self._kwargs)
        return self

    async def __aexit__(self, *_: object) -> None:
        close: Callable[[], Awaitable[None]] | None = getattr(self._events, "aclose", None)
        if close is not None:
            await close()

    def __aiter__(self) -> AsyncIterator[Any]:
        if self._events is None:
            raise RuntimeError("this run was not entered: use `async with run_adapter(...) as events:`")
        return self._events

    @property
    def run(self) -> CancellableRunEvents[Any] | None:
        """The run itself, `None` if the adapter refused the request before there was one."""
        return self._agent.run_events

    @property
    def cancelled(self) -> bool:
        """Whether it was stopped before its end."""
        return self.run is not None and self.run.cancelled

    @property
    def cancel_reason(self) -> str | None:
        """Why it was stopped, `None` if it was not."""
        return None if self.run is None else self.run.cancel_reason

    @property
    def usage(self) -> StreamUsage:
        """The run's tokens."""
        return StreamUsage() if self.run is None else self.run.usage

    @property
    def response(self) -> ModelResponse | None:
        """The part of the latest answer that arrived."""
        return None if self.run is None else self.run.response

    def all_messages(self) -> list[ModelMessage]:
        """The history and what this run added to it."""
        return [] if self.run is None else self.run.all_messages()

    def new_messages(self) -> list[ModelMessage]:
        """The messages that this run added to the history."""
        return [] if self.run is None else self.run.new_messages()


class _StoppableAgent(WrapperAgent[Any, Any]):
    """The adapter's agent, whose run is a `CancellableRunEvents`."""

    run_events: CancellableRunEvents[Any] | None = None
    _asked: str | None = None

    def cancel(self, reason: str) -> None:
        if self.run_events is None:
            self._asked = reason
        else:
            self.run_events.cancel(reason)

    def run_stream_events(self, user_prompt: Any = None, **kwargs: Any) -> Any:
        self.run_events = run_stream_events(self.wrapped, user_prompt, **kwargs)
        if self._asked is not None:
            self.run_events.cancel(self._asked)
        return self.run_events


def run_adapter(adapter: UIAdapter[Any, Any, Any, Any, Any], **kwargs: Any) -> AdapterRun:
    """The agent run behind a UI adapter's request, made stoppable: the `factory` of a response.

    `CancellableEventResponse(lambda: run_adapter(adapter, deps=deps), encode=adapter, ...)` is to
    `adapter.dispatch_request(...)` what `run_stream_events` is to the agent's own: the adapter sanitizes the client's
    messages, takes its tools and approvals, and loads and saves its conversation as ever.

    Args:
        adapter: From `VercelAIAdapter.from_request(request, agent=agent)` or `AGUIAdapter.from_request(...)`.
        kwargs: What the adapter's `run_stream_native` takes.
    """
    return AdapterRun(adapter, kwargs)
