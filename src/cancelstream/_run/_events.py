"""`run_stream_events()`: every turn of a run as pydantic-ai's events, cancellable from before anything is sent.

The agent runs in a task of its own, which hands over one event at a time and waits until it is taken. So stopping
never cancels the consumer's task: the open stream is closed first, gently, and the pull inside the run that finds it
cut waits there until pydantic-ai's own cancel ends the run. The consumer's loop ends when the run has.

Each turn is announced in the same channel as its events, so the final-turn filter knows exactly where a turn begins,
and whether it could turn out to be intermediate.

Known limits. A tool written as a plain function runs in a thread, which cannot be stopped: it is left to finish, and
its result is dropped. A coroutine that ignores its cancellation keeps the run from ending: the loop waits for it no
longer than `DEADLINE`, and leaving no longer than `LEAVE_TIMEOUT`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, overload
from weakref import WeakMethod, ref

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from pydantic_ai import AgentRunResult, AgentRunResultEvent, RunContext
from pydantic_ai.agent import AbstractAgent, EventStreamHandler, WrapperAgent
from pydantic_ai.exceptions import RunCancelled
from pydantic_ai.messages import AgentStreamEvent, UserContent
from pydantic_ai.output import OutputSpec
from pydantic_ai.usage import RunUsage

from .._errors import named
from .._final_turn import FinalTurnFilter, FinalTurnOnly, TextRetracted
from .._interrupt import DEADLINE, Interrupted, Interruptible, require_loop
from .._response import LEAVE_TIMEOUT
from .._run_state import RunState, cancelled_run, provide_run_state
from .._state import Event, State
from .._upstream.pydantic_ai import may_have_output_validators
from ._dropped import Entered
from ._handle import RunHandle, outcome_of
from ._moments import STOPS, Action
from ._options import RunOptions, accept_options
from ._text import RunningText, TextSoFar, pieces_of, texts_of

__all__ = ("CancellableRunEvents", "run_stream_events")

T = TypeVar("T")
OutputT = TypeVar("OutputT")
DepsT = TypeVar("DepsT")


@dataclass(frozen=True, slots=True)
class _TurnBegins:
    """Stands before the events of a turn in the channel; it is for the filter, never for the consumer."""

    may_continue: bool


class CancellableRunEvents(RunHandle, Generic[OutputT]):
    """The events of every turn of a run: cancellable from its birth, and entered with `async with`.

    Iterates what pydantic-ai's `run_stream_events` yields, the `AgentRunResultEvent` at the end included, and
    `TextRetracted` if that was asked for. Made by `run_stream_events()`. One loop may read it, once.
    """

    def __init__(
        self, agent: AbstractAgent[Any, Any], user_prompt: Any, kwargs: dict[str, Any], final_turn_only: FinalTurnOnly
    ) -> None:
        super().__init__(agent, user_prompt, kwargs)
        if "event_stream_handler" in kwargs:
            raise TypeError("run_stream_events() gives the events itself: it takes no event_stream_handler")
        if final_turn_only not in (False, True, "retract"):
            raise ValueError(f"final_turn_only must be False, True or 'retract', not {named(final_turn_only)}")
        self._final_turn_only: FinalTurnOnly = final_turn_only
        self._filter = None if final_turn_only is False else FinalTurnFilter(final_turn_only)
        self._ready: deque[AgentStreamEvent | AgentRunResultEvent[OutputT] | TextRetracted] = deque()
        self._over = False
        self._is_pulling = False
        self._task: asyncio.Task[None] | None = None
        self._received: MemoryObjectReceiveStream[Any] | None = None
        self._guard = Interruptible()
        self._failed: BaseException | None = None
        self._error: BaseException | None = None  # the one that the consumer has still to be told
        self._absorbed: RunCancelled | None = None
        self._result: AgentRunResult[OutputT] | None = None

    # --- entering and leaving ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Enter the run; it starts with the first pull, as pydantic-ai's does.

        Raises:
            RuntimeError: If it was entered before: a run happens once.
        """
        if self._loop is not None:
            raise RuntimeError("this run was entered before: call run_stream_events() again for another one")
        self._loop = require_loop()
        self._guard = Interruptible(self._loop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop what has not ended, close everything, and settle the usage."""
        self._no_longer_entered()
        is_stranded = self._is_stranded()
        if not is_stranded and self._life.state is State.LIVE and self._is_over():
            await self._let_it_end()
        self._leave(self._why_left(error), error)
        if self._is_cut and self._state.stream is not None and not self._state.leaves_job:
            self._state.stream.cancel(self.cancel_reason)
        self._over = True
        self._ready.clear()
        if is_stranded:
            if self._received is not None:
                with suppress(RuntimeError):  # a sender that waits cannot be woken on a loop that is closed
                    self._received.close()
            self._closed.set()
            return
        if self._is_cut:
            self._begin_stop()
        await self._wait_for_stop()
        if self._task is not None and self._task.done():
            await self._end_tasks()
        if self._received is not None:
            self._received.close()
        self._failed = self._error = None  # no reader is left to raise it to
        self._closed.set()
        if isinstance(error, asyncio.CancelledError) and RunCancelled.from_cancellation(error) is None:
            while error.__context__ is not None:
                error = error.__context__
            error.__context__ = self._absorbed  # where `RunCancelled.from_cancellation()` finds the run's state

    async def aclose(self) -> None:
        """Stop what has not ended and close everything, as leaving the block does; idempotent."""
        await self.__aexit__(None, None, None)

    def _why_left(self, error: BaseException | None) -> str:
        if isinstance(error, asyncio.CancelledError):
            return "task_cancelled"
        return "left" if error is None else self._state.leave_reason(error)

    async def _let_it_end(self) -> None:
        """Let a run end that is left when its answer is whole: what it hands over until then is dropped."""
        with anyio.move_on_after(LEAVE_TIMEOUT, shield=True), suppress(anyio.EndOfStream, anyio.ClosedResourceError):
            while self._received is not None and self._is_over():
                await self._received.receive()

    # --- the run, in a task of its own ------------------------------------------------------------------------

    def _start(self) -> MemoryObjectReceiveStream[Any]:
        self._state.watch_by(self)
        # No buffer: the run is never more than one event ahead of the consumer.
        send, self._received = anyio.create_memory_object_stream[Any]()
        agent, prompt, options = self._agent, self._prompt, self._kwargs
        handler = _hand_on(send, WeakMethod(self._may_continue))

        async def drive(handle: ref[CancellableRunEvents[OutputT]]) -> None:
            async with send:
                result, error = await outcome_of(agent.run(prompt, event_stream_handler=handler, **options))
                # A run that was dropped is ended, and has no reader to tell.
                if (run := handle()) is not None:
                    run._note_end(result, error)

        with provide_run_state(self._state):
            task = self._task = asyncio.create_task(drive(ref(self)))
        task.add_done_callback(_note_failure)
        self._to_end = Entered(self._state, partial(_end, self._state, task, self._received))
        return self._received

    def _note_end(self, result: AgentRunResult[OutputT] | None, error: BaseException | None) -> None:
        if error is None:
            self._result = result
            self._life.apply(Event.END)
            return
        self._absorbed = cancelled_run(error)
        if self._absorbed is not None or isinstance(error, asyncio.CancelledError):
            self._leave(self._state.leave_reason(error))
        else:
            self._life.apply(Event.ERROR)
        self._failed = error  # not raised: a task keeps its error, and an error its frames

    def _may_continue(self) -> bool:
        """Whether the turn that begins could turn out not to be the last one."""
        stream = self._state.stream
        if stream is None:
            return True
        parameters = stream.model_request_parameters
        agent = self._agent
        while isinstance(agent, WrapperAgent):
            agent = agent.wrapped
        return (
            bool(parameters.function_tools or parameters.output_tools)
            or self._output_type is not str
            or may_have_output_validators(agent)
        )

    # --- stopping ---------------------------------------------------------------------------------------------

    def _is_answering(self) -> bool:
        return False

    def _is_over(self) -> bool:
        """A whole answer is handed out event by event; with the filter it may still be held when all has come."""
        if self._life.state in (State.COMPLETE, State.FAILED):
            return True
        stream = self._state.stream
        if stream is None or not self._is_all_said() or self._is_pulling or self._ready:
            return False
        if self._filter is not None and self._filter.holds:
            return False
        response = stream.get()
        return bool(response.text) and not response.tool_calls

    async def _when_cut(self) -> None:
        """Block the pull that found its stream cut until the run ends; else pydantic-ai takes the answer for whole."""
        if self._is_cut:
            await asyncio.Event().wait()

    async def _stop(self) -> None:
        try:
            stream, task = self._state.stream, self._task
            # The stream of a job that is left is left by its run, in which it stays resumable.
            if stream is not None and not self._state.leaves_job:
                await stream.cancel(self.cancel_reason)
            if task is not None and not task.done():
                match STOPS[self._moment()]:
                    case Action.CANCEL_RUN | Action.CLOSE_AND_CANCEL_RUN if self._state.context is not None:
                        self._state.context.cancel()
                    case _:
                        task.cancel()
                patience = asyncio.get_running_loop().call_later(DEADLINE, self._lose_patience)
                await asyncio.wait([task])
                patience.cancel()
        finally:
            self._closed.set()

    def _lose_patience(self) -> None:
        """End the loop without the run, and let go of one that was cancelled and still wants to hand over events."""
        self._guard.cancel()
        if self._received is not None:
            self._received.close()

    def _is_inside(self) -> bool:
        current = asyncio.current_task()
        return (current is not None and current is self._task) or self._guard.inside() or super()._is_inside()

    # --- streaming --------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> AgentStreamEvent | AgentRunResultEvent[OutputT] | TextRetracted:
        while not self._ready:
            if self._over:
                error, self._error = self._error, None
                try:
                    raise StopAsyncIteration if error is None else error
                finally:
                    error = None  # it knows this frame
            self._ready.extend(await self._next())
        return self._ready.popleft()

    async def _next(self) -> list[Any]:
        """Wait for what the run hands over next, and return what of it may be handed on."""
        if self._loop is None:
            raise RuntimeError("this run was not entered: use `async with run_stream_events(...) as events:`")
        if self._is_stopped:
            return self._finish("cancelled")
        self._guard.require_own_loop()
        received = self._received or self._start()
        self._is_pulling = True
        try:
            item = await self._guard.run(received.receive())
        except (Interrupted, anyio.ClosedResourceError):
            return self._finish("cancelled")
        except anyio.EndOfStream:
            return await self._at_end()
        finally:
            self._is_pulling = False
        if self._is_stopped:
            return self._finish("cancelled")
        if isinstance(item, _TurnBegins):
            return [] if self._filter is None else self._filter.begin_turn(may_continue=item.may_continue)
        return [item] if self._filter is None else self._filter.feed(item)

    async def _at_end(self) -> list[Any]:
        """The run is over: its result, or the text that is still held and then its error."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._is_stopped:
            return self._finish("cancelled")
        if self._result is None:
            self._error, self._failed = self._failed, None
            return self._finish("error")
        event = AgentRunResultEvent(self._result)
        self._over = True
        return [event] if self._filter is None else self._filter.feed(event)

    def _finish(self, reason: str) -> list[Any]:
        self._over = True
        return [] if self._filter is None else self._filter.flush(reason)

    @property
    def _is_stopped(self) -> bool:
        """Whether our own cancel ended it, or it was left: what else cuts a run raises, as it does in pydantic-ai."""
        return self._over or self._life.state is State.INTERRUPTED

    def stream_text(self, *, delta: bool = False) -> AsyncIterator[str]:
        """Stream the text of the run; ends without an error when the run is cancelled.

        With `final_turn_only` this is the answer and nothing that was said on the way to it. Without it, it is what
        was said in all turns. Texts that a tool call or another turn stands between are parted by a blank line.

        Args:
            delta: Whether to yield each piece by itself, or the whole text so far (the default). With
                `final_turn_only='retract'` only the text so far can be had, for a piece cannot be taken back.

        Raises:
            ValueError: If pieces are asked for together with `'retract'`.
        """
        return texts_of(_Reading(self), RunningText(), delta=delta, final_turn_only=self._final_turn_only)

    def _pieces(self) -> AsyncIterator[str | TextSoFar]:
        """As `stream_text(delta=True)`, for a reader that can take text back."""
        return pieces_of(_Reading(self), RunningText())

    def _lose_pull(self, error: asyncio.CancelledError) -> None:
        super()._lose_pull(error)
        self._over = True
        self._begin_stop()

    # --- what it was ------------------------------------------------------------------------------------------

    @property
    def result(self) -> AgentRunResult[OutputT] | None:
        """pydantic-ai's result of the run; `None` while it is going on, and for good if it was cut or failed."""
        return self._result

    def _ended(self) -> AgentRunResult[OutputT] | RunCancelled | None:
        return self._result or self._absorbed

    def _total(self) -> RunUsage:
        ended = self._ended() or self._state.context
        total = (self._kwargs.get("usage") or RunUsage()) if ended is None else ended.usage
        # pydantic-ai adds a response to the sum when it adds it to the messages.
        if self._state.received(self._recorded()[0]) is not None:
            for usage in self._state.turn_usages():
                total = total + usage._in_total  # a new sum: the one of pydantic-ai stays as it is
        return total


class _Reading(Generic[OutputT]):
    """The events of a run for a reading that cannot go on after a pull that was cancelled, as the run's own can."""

    def __init__(self, run: CancellableRunEvents[OutputT]) -> None:
        self._run = run

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self._run.__anext__()
        except asyncio.CancelledError as error:
            self._run._lose_pull(error)
            raise


def _hand_on(send: MemoryObjectSendStream[Any], method: WeakMethod[Callable[[], bool]]) -> EventStreamHandler[Any]:
    """pydantic-ai's `event_stream_handler` for a run; pydantic-ai may keep it after that, so it does not hold the run.

    Args:
        send: Where the events are handed over.
        method: Says whether the turn that begins could turn out not to be the last one.
    """
    step = 0

    def may_continue() -> bool:
        asked = method()
        return asked is None or asked()

    async def hand_on(context: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
        nonlocal step
        # Called for each step of the graph: a model's turn, then its tools, under the same number.
        begins, step = context.run_step != step, context.run_step
        if begins:
            await send.send(_TurnBegins(may_continue=True))
        async for event in events:
            # The request is known when the model answers: the request is opened by the first pull.
            if begins and not may_continue():
                await send.send(_TurnBegins(may_continue=False))
            begins = False
            await send.send(event)

    return hand_on


async def _end(state: RunState, task: asyncio.Task[None], received: MemoryObjectReceiveStream[Any]) -> None:
    """End a run whose handle is gone."""
    if not task.done():
        if state.context is not None:
            state.context.cancel()
        else:
            task.cancel()
        await asyncio.wait([task], timeout=DEADLINE)
    received.close()


def _note_failure(task: asyncio.Task[Any]) -> None:
    """Take note of how the run ended, so that asyncio does not complain about an error that is told elsewhere."""
    if not task.cancelled():
        task.exception()


@overload
def run_stream_events(
    agent: AbstractAgent[DepsT, OutputT],
    user_prompt: str | Sequence[UserContent] | None = None,
    *,
    output_type: None = None,
    final_turn_only: FinalTurnOnly = False,
    **options: Unpack[RunOptions[DepsT]],
) -> CancellableRunEvents[OutputT]: ...


@overload
def run_stream_events(
    agent: AbstractAgent[DepsT, Any],
    user_prompt: str | Sequence[UserContent] | None = None,
    *,
    output_type: OutputSpec[T],
    final_turn_only: FinalTurnOnly = False,
    **options: Unpack[RunOptions[DepsT]],
) -> CancellableRunEvents[T]: ...


def run_stream_events(
    agent: AbstractAgent[Any, Any],
    user_prompt: str | Sequence[UserContent] | None = None,
    *,
    final_turn_only: FinalTurnOnly = False,
    **options: Any,
) -> CancellableRunEvents[Any]:
    """Make a run of the agent that can be cancelled from now on and gives the events of every turn.

    `async with run_stream_events(agent, prompt) as events:` enters it, and `events` is this same object. The run
    starts with the first pull.

    Args:
        agent: The pydantic-ai agent.
        user_prompt: The prompt, `None` to go on from `message_history`.
        final_turn_only: `True` holds the text of a turn until it is known to be the last and drops it otherwise;
            `'retract'` shows it at once and adds a `TextRetracted` event if it was not. Everything but text passes
            in any case, so the reasoning of earlier turns still shows. When the run is cancelled or fails, the text
            of the turn in flight is released. `False` (the default) changes nothing.
        options: The keyword arguments of the agent's own `run_stream_events`: see `RunOptions`. Its
            `cancellation_token` and `timeout` raise as they do there.

    Raises:
        TypeError: If `agent` is no pydantic-ai agent, `message_history` no list of its messages, or an option is not
            one that the agent's own method takes, as `event_stream_handler` is not.
        ValueError: If `final_turn_only` is none of the three.
    """
    run = CancellableRunEvents[Any](agent, user_prompt, options, final_turn_only)
    accept_options(agent, "run_stream_events", options)
    return run
