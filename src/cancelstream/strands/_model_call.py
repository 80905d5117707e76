"""One call of a model: its chunks, pulled so that the pull can be interrupted and its connection closed.

strands' model classes are async generators that hold their connection in local variables. Whatever the class, it is
closed by an interruption of the read that it waits in: the exception passes through every layer down from there, and
the HTTP library drops the connection itself. So a call that is suspended between two chunks is read on until it would
wait, and interrupted there.

Two things are looked up in those local variables (`_upstream/strands.py`): the tool calls that a class has gathered and
not handed out yet, and the HTTP response that an HTTP/2 reset needs.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any, cast

from strands import Agent
from strands.middleware import ModelStopReason
from strands.types.content import Message
from strands.types.event_loop import Usage
from strands.types.streaming import StreamEvent

from .._peekable import PeekableAsyncStream
from .._upstream.strands import gathered_calls, http_response_of
from . import _bedrock
from ._driving import LATE_LIMIT, run_on
from ._messages import Partial, partial_message, whole_message
from ._usage import CallMeter, strands_usage

__all__ = ("ModelCall", "TappedModel")


class ModelCall:
    """One call of a model.

    Args:
        agent: The agent that makes it.
        source: The model's chunks.
        signal: Is set when the call is cut, for the model classes that know of `cancel_signal`.
        meter: Counts what is in `chunks`.
        chunks: What arrived is appended to it.
    """

    def __init__(
        self, agent: Agent, source: Chunks, signal: _Signal, meter: CallMeter, chunks: list[StreamEvent]
    ) -> None:
        self.agent = agent
        self.meter = meter
        self.message: Message | None = None
        """The part of a cut answer that arrived, once it was put together."""
        self.dropped: list[dict[str, Any]] = []
        """The blocks that were left out of it."""
        self.is_recorded = False
        """Whether its message is in the agent's history."""
        self.stop_reason: str | None = None
        """Why the model ended its answer, in strands' words, once it said so: all that it says came before that."""
        self._source = source
        self._signal = signal
        self._chunks = chunks
        self._stream = PeekableAsyncStream(source)
        self._hang_up: Callable[[], None] | None = None
        self._ended = self._failed = False

    @property
    def is_cut(self) -> bool:
        """Whether it was stopped before the answer was whole, by whomever."""
        return not self._ended and not self._failed and self.stop_reason is None

    @property
    def is_cut_off(self) -> bool:
        """Whether the answer is whole, and the call was stopped before what strands has to say behind it."""
        return not self._ended and not self._failed and self.stop_reason is not None

    def cut(self) -> None:
        """Stop it, and tell the provider; on the agent's loop."""
        self._signal.cut()
        self._stream.cancel()
        self._hang_up_thread()

    def _opened(self, hang_up: Callable[[], None]) -> None:
        """A thread of the model's has its response; in that thread."""
        self._hang_up = hang_up  # first, and look second: `cut` does it the other way round
        if self._signal.is_set():
            self._hang_up_thread()

    def _hang_up_thread(self) -> None:
        if self._hang_up is not None:
            with suppress(Exception):  # it has just been read to its end
                self._hang_up()

    async def read(self) -> AsyncIterator[StreamEvent]:
        """The chunks; they just end when the call is cut."""
        token = _bedrock.calling.set(self._opened)
        try:
            async for chunk in self._stream:
                self._chunks.append(chunk)
                if isinstance(stop := cast("dict[str, Any]", chunk).get("messageStop"), dict):
                    self.stop_reason = str(cast("dict[str, Any]", stop).get("stopReason"))
                yield chunk
            self._ended = not self._stream.cancelled
        except Exception as error:
            self._failed = True
            self.meter.failed(error, cut=self._stream.cancelled)
            raise
        finally:
            with suppress(ValueError):  # closed by the garbage collector, elsewhere
                _bedrock.calling.reset(token)
            if not self._ended:
                self.cut()

    async def finish(self) -> None:
        """Wait until its connection is closed, and settle its usage; idempotent."""
        if not self._ended:
            self.cut()
            await self._stream.cancel()
        stream = self._stream
        late = [*stream._late, *self._source.late]
        lost = stream._lost
        whole = self._ended or self.is_cut_off
        unsaid = [] if whole else self._unsaid()
        self.meter.settle(ended=whole, late=late, unsaid=unsaid, lost=lost and not whole)

    async def whole(self) -> Message:
        """The message of an answer that is whole."""
        return await whole_message(self._chunks)

    async def partial(self) -> Partial:
        """The answer that arrived, as a message, and the parts that had to be left out of it."""
        if self.message is None:
            self.message, self.dropped = await partial_message(self._chunks, self._unsaid())
        return self.message, self.dropped

    async def cut_short(self, event: ModelStopReason) -> ModelStopReason:
        """How strands is told that the call was stopped: as one that was cancelled, with what arrived."""
        message, _ = await self.partial()
        usage = cast("Usage", strands_usage(self.meter.usage))
        return ModelStopReason("cancelled", message, usage, event.metrics)

    async def told_short(self, event: ModelStopReason) -> ModelStopReason:
        """How strands is told of an answer that is whole, and whose usage did not come any more."""
        usage = cast("Usage", strands_usage(self.meter.usage))
        return ModelStopReason(cast("Any", self.stop_reason), await self.whole(), usage, event.metrics)

    def _unsaid(self) -> list[Mapping[str, Any]]:
        told = {
            cast("Mapping[str, Any]", start).get("toolUse", {}).get("toolUseId")
            for chunk in self._chunks
            if (start := (chunk.get("contentBlockStart") or {}).get("start"))
        }
        return [use for use in self._source.unsaid if use["toolUseId"] not in told]


class TappedModel:
    """A model whose call can be cut; everything but `stream` is the model's own.

    Args:
        model: The model.
        agent: The agent that calls it.
    """

    def __init__(self, model: Any, agent: Agent) -> None:
        self._model = model
        self._agent = agent
        self.calls: list[ModelCall] = []
        """Its calls: one, unless a middleware tries again."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def stream(
        self, messages: Any, tool_specs: Any = None, system_prompt: Any = None, **kwargs: Any
    ) -> AsyncIterator[StreamEvent]:
        """The model's own `stream`, as a call that can be cut."""
        signal = _Signal(kwargs.get("cancel_signal") or threading.Event())
        _bedrock.watch(self._model)
        source = Chunks(self._model.stream(messages, tool_specs, system_prompt, **{**kwargs, "cancel_signal": signal}))
        chunks: list[StreamEvent] = []
        meter = CallMeter(self._model, messages, tool_specs, system_prompt, chunks)
        call = ModelCall(self._agent, source, signal, meter, chunks)
        self.calls.append(call)
        return call.read()


class Chunks:
    """A model's chunks, as a source that can be closed."""

    def __init__(self, chunks: AsyncIterable[StreamEvent]) -> None:
        self._iterator = aiter(chunks)
        self._ended = False
        self.late: list[StreamEvent] = []
        """The chunks that were received while it was closed."""
        self.unsaid: list[dict[str, Any]] = []
        """The tool uses that the model's class had gathered when it was interrupted."""

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> StreamEvent:
        try:
            return await self._iterator.__anext__()
        except BaseException as error:
            self._ended = True
            if not isinstance(error, StopAsyncIteration):
                self.unsaid = gathered_calls(error.__traceback__)
            raise

    async def aclose(self) -> None:
        """Read on until it would wait, and interrupt it there."""

        async def read() -> None:
            self.late.append(await self.__anext__())

        if not self._ended:
            await run_on(read, LATE_LIMIT)
        if (close := getattr(self._iterator, "aclose", None)) is not None:
            await close()

    @property
    def response(self) -> Any:
        """The HTTP response, where the class is one that keeps the SDK's stream in a variable."""
        return http_response_of(self._iterator)


class _Signal(threading.Event):
    """The agent's cancel signal, and set for good when its call is cut: strands clears its own as soon as it ends."""

    def __init__(self, agents: threading.Event) -> None:
        super().__init__()
        self._agents = agents

    def cut(self) -> None:
        """The call was cut."""
        super().set()

    def set(self) -> None:
        self._agents.set()

    def is_set(self) -> bool:
        return super().is_set() or self._agents.is_set()
