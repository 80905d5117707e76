"""The hooks that are added to an agent, once: its model calls, its tool calls, and the messages it adds.

None of it does anything unless the agent runs for a `CancellableAgentStream`, which the context says. Then a call can
be stopped, none begins after that, and strands goes on as after a call that was cancelled: it appends what arrived,
runs its hooks and ends. If strands could not do so, because something else was interrupted, we put it right afterwards.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, cast
from weakref import WeakSet

from strands import Agent
from strands.hooks import BeforeInvocationEvent, HookOrder, MessageAddedEvent
from strands.middleware import (
    ExecuteToolContext,
    ExecuteToolStage,
    InvokeModelContext,
    InvokeModelStage,
    ModelStopReason,
    ToolResultEvent,
    TypedEvent,
)
from strands.types.agent import ConcurrentInvocationMode
from strands.types.content import Message
from strands.types.tools import ToolResult

from .._interrupt import Interrupted, Interruptible
from .._state import Life
from ._driving import LATE_LIMIT, run_on
from ._messages import flag, interrupted_result, is_flagged, unanswered
from ._model_call import ModelCall, TappedModel

__all__ = ("Invocation", "current", "prepare")


_FINAL: Final = frozenset({"end_turn", "stop_sequence", "content_filtered", "guardrail_intervened"})
"""The reasons of a model's to end its answer that end the run. strands runs tools for `tool_use`, and raises for
`max_tokens`."""


class Invocation:
    """One run of an agent, or of several: what it is doing, and how that is stopped. On the run's loop only.

    Args:
        agents: The agents whose calls belong to it.
        life: The stream's.
        give_up: Interrupts whatever strands waits for.
        when_begun: Is called with the state that strands passes on, before any event.
        wants_more: Whether a model's answer is not the run's: there are several agents, or an output is asked for.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        life: Life,
        give_up: Callable[[], None],
        when_begun: Callable[[dict[str, Any]], None],
        *,
        wants_more: bool,
    ) -> None:
        self.agents = agents
        self.is_over = False
        self.is_stopped = False
        """It was stopped, whether or not its answer was whole by then."""
        self.ignores_cancel = False
        """Whether to ignore an earlier `agent.cancel()`, which came while the agent was idle."""
        self._life = life
        self._give_up = give_up
        self._when_begun = when_begun
        self._wants_more = wants_more
        self._models: list[TappedModel] = []
        self._doing: dict[object, tuple[Agent, Callable[[], None]]] = {}
        self._results: dict[str, ToolResult] = {}
        self._ends = False  # strands has come to the end of its run, or has been told to

    @property
    def is_cut(self) -> bool:
        """Whether it was stopped before its answer was whole."""
        return self._life.is_cut

    @property
    def _is_ending(self) -> bool:
        return self.is_stopped or self.is_cut

    @property
    def is_answered(self) -> bool:
        """Whether the model has given the run's answer, all of which was handed out: a stop changes nothing then."""
        calls = self.calls
        return bool(calls) and not self._wants_more and calls[-1].stop_reason in _FINAL

    @property
    def calls(self) -> list[ModelCall]:
        """The model calls so far."""
        return [call for model in self._models for call in model.calls]

    @property
    def tool_calls(self) -> int:
        """How many tools have given a result that is no error."""
        return sum(result["status"] == "success" for result in self._results.values())

    def stop(self) -> bool:
        """Stop every call that is going on, and say whether strands ends by itself then."""
        for agent, stop in list(self._doing.values()):
            self._ends = True
            stop()
            # Have strands end the run, if there is more to it. An agent that has several at once would end them all.
            if self.is_answered:
                continue
            if agent.concurrent_invocation_mode is ConcurrentInvocationMode.THROW:
                agent.cancel()
        return self._ends

    async def put_right(self) -> None:
        """Close every call, settle its usage, and append what strands had no chance to."""
        for call in self.calls:
            await call.finish()
        if not self._is_ending:
            return
        for agent in self.agents:
            if agent.model.stateful:
                continue  # the conversation is kept elsewhere
            calls = [call for call in self.calls if call.agent is agent]
            if calls and not calls[-1].is_recorded:
                if calls[-1].is_cut:
                    message, _ = await calls[-1].partial()
                    await _append(agent, message)
                elif calls[-1].is_cut_off:
                    await _append(agent, await calls[-1].whole())
            if ids := unanswered(agent.messages):
                results = [self._results.get(name) or interrupted_result(name) for name in ids]
                await _append(agent, {"role": "user", "content": [{"toolResult": result} for result in results]})

    @contextmanager
    def _going_on(self, agent: Agent, stop: Callable[[], None]) -> Generator[None]:
        key = object()
        self._doing[key] = (agent, stop)
        try:
            yield
        finally:
            del self._doing[key]

    async def invoke_model(self, context: InvokeModelContext, next_fn: Any) -> AsyncGenerator[TypedEvent]:
        """A model call of strands'."""
        agent = cast("Agent", context.agent)
        if self._is_ending:
            self._give_up()
            await asyncio.get_running_loop().create_future()
        model = TappedModel(context.model, agent)
        self._models.append(model)
        self._ends = False

        def stop() -> None:
            for call in model.calls:
                call.cut()

        with self._going_on(agent, stop):
            async for event in next_fn(context.replace(model=cast("Any", model))):
                if not isinstance(event, ModelStopReason) or not model.calls:
                    yield event
                    continue
                call = model.calls[-1]
                await call.finish()
                if self.is_cut and call.is_cut:
                    event = await call.cut_short(event)
                elif self._is_ending and call.is_cut_off:
                    event = await call.told_short(event)
                # A graph goes on when one of its agents has answered.
                self._ends = self._ends or (event.stop_reason != "tool_use" and len(self.agents) == 1)
                yield event

    async def execute_tool(self, context: ExecuteToolContext, next_fn: Any) -> AsyncGenerator[TypedEvent]:
        """A tool call of strands'."""
        tool_use_id = str(context.tool_use.get("toolUseId"))
        guard = Interruptible()
        events = next_fn(context)

        async def step() -> TypedEvent:
            event = cast("TypedEvent", await anext(events))
            if isinstance(event, ToolResultEvent) and not event.backgrounded:
                self._results[tool_use_id] = event.tool_result
            return event

        with self._going_on(cast("Agent", context.agent), guard.cancel):
            began = False
            try:
                while not self._is_ending:
                    began = True
                    yield await guard.run(step())
                if began:
                    await run_on(step, LATE_LIMIT)
            except StopAsyncIteration:
                return
            except Interrupted:
                pass
            finally:
                await events.aclose()
            result = self._results.get(tool_use_id) or interrupted_result(tool_use_id)
            yield ToolResultEvent(result)

    def added(self, event: MessageAddedEvent) -> None:
        """A message was appended: flag it if it is not whole, before any session stores it."""
        message, reason = event.message, self._life.reason or "cancelled"
        if message["role"] == "assistant":
            call = next((call for call in reversed(self.calls) if call.agent is event.agent), None)
            if call is None or call.is_recorded:
                return
            call.is_recorded = True
            if self.is_cut and call.message is not None and not is_flagged(message):
                # An `agent.cancel(message=...)` would have put this in its place.
                message["content"] = call.message["content"]
                flag(message, reason=reason, usage=call.meter.usage.record(), dropped=call.dropped)
        elif self.is_cut and not is_flagged(message):
            answered = [block["toolResult"]["toolUseId"] for block in message["content"] if "toolResult" in block]
            if any(name not in self._results for name in answered):
                flag(message, reason=reason, usage=None, dropped=None)

    def began(self, event: BeforeInvocationEvent) -> None:
        """Take the agent over, when its call begins."""
        if self.ignores_cancel:
            event.agent.cancel_signal.clear()
            self.ignores_cancel = False
        self._when_begun(event.invocation_state)


current: ContextVar[Invocation | None] = ContextVar("cancelstream.strands.invocation", default=None)
"""The run that this context belongs to."""

_prepared: WeakSet[Agent] = WeakSet()


def prepare(agent: Agent) -> None:
    """Hook into an agent; the first time counts."""
    if agent in _prepared:
        return
    _prepared.add(agent)
    agent.add_middleware(InvokeModelStage, _invoke_model)
    agent.add_middleware(ExecuteToolStage, _execute_tool)
    agent.hooks.add_callback(BeforeInvocationEvent, _began, order=HookOrder.SDK_FIRST)
    agent.hooks.add_callback(MessageAddedEvent, _added, order=HookOrder.SDK_FIRST)


def _of(agent: object) -> Invocation | None:
    invocation = current.get()
    if invocation is None or invocation.is_over or not any(one is agent for one in invocation.agents):
        return None
    return invocation


def _invoke_model(context: InvokeModelContext, next_fn: Any) -> AsyncGenerator[TypedEvent]:
    invocation = _of(context.agent)
    # A copied agent has copies of our hooks.
    if invocation is None or isinstance(context.model, TappedModel):
        return cast("AsyncGenerator[TypedEvent]", next_fn(context))
    return invocation.invoke_model(context, next_fn)


def _execute_tool(context: ExecuteToolContext, next_fn: Any) -> AsyncGenerator[TypedEvent]:
    invocation = _of(context.agent)
    # A tool in the background has a signal of its own, and outlives the run.
    if invocation is None or context.cancel_signal is not context.agent.cancel_signal:
        return cast("AsyncGenerator[TypedEvent]", next_fn(context))
    return invocation.execute_tool(context, next_fn)


def _began(event: BeforeInvocationEvent) -> None:
    invocation = _of(event.agent)
    if invocation is not None:
        invocation.began(event)


def _added(event: MessageAddedEvent) -> None:
    invocation = _of(event.agent)
    if invocation is not None:
        invocation.added(event)


async def _append(agent: Agent, message: Message) -> None:
    message["tracking_id"] = str(uuid.uuid4())
    agent.messages.append(message)
    await agent.hooks.invoke_callbacks_async(MessageAddedEvent(agent=agent, message=message))
