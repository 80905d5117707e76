"""`run_stream()`: pydantic-ai's own, with a result that exists before anything is sent.

Two phases, two ways to stop:

1. While the context is being entered, the agent may wait for a slot, for a model, run a tool, or be between the two.
   pydantic-ai's `ctx.cancel()` cancels its task there, as soon as there is one. Later the task is the consumer's.
2. Once there is a result, the pull that was interrupted waits until pydantic-ai's own `result.cancel()` has recorded
   the response, and then the consumer's loop just ends. Work after the response (tools of an exhaustive agent) is
   inside the consumer's pull, and is interrupted there.

A block that is left when the answer is whole and handed out ends the run as reading on would: its output is validated,
and its messages are whole.

Known limits. As in pydantic-ai, the first text is taken for the final answer, and the context has to be left in the
task that entered it, so an async generator around it must not be closed by another one: `run_stream_events` can be. A
tool written as a plain function runs in a thread, which cannot be stopped: it is left to finish, and its result is
dropped.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from copy import copy
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, overload
from weakref import ref

import anyio
from pydantic_ai import RunContext
from pydantic_ai.agent import AbstractAgent, EventStreamHandler
from pydantic_ai.exceptions import RunCancelled, RunTimedOut, UserError
from pydantic_ai.messages import ModelResponse, UserContent
from pydantic_ai.output import OutputSpec
from pydantic_ai.result import StreamedRunResult
from pydantic_ai.usage import RunUsage

from .._errors import IncompleteOutputError
from .._interrupt import Interrupted, Interruptible, require_loop
from .._response import LEAVE_TIMEOUT, has_made
from .._run_state import PastContext, cancelled_run, provide_run_state
from .._state import Event, State
from ._dropped import Entered
from ._handle import RunHandle
from ._members import RunMembers
from ._moments import STOPS, Action
from ._options import RunOptions, accept_options

__all__ = ("CancellableRun", "run_stream")

_logger = logging.getLogger("cancelstream")

T = TypeVar("T")
OutputT = TypeVar("OutputT")
DepsT = TypeVar("DepsT")


class CancellableRun(RunHandle, RunMembers[OutputT], Generic[OutputT]):
    """A streamed run of an agent: cancellable from its birth, and entered with `async with`.

    Streams and reads like pydantic-ai's `StreamedRunResult`. Made by `run_stream()`.
    """

    _result: StreamedRunResult[Any, OutputT] | None = None
    _context: AbstractAsyncContextManager[StreamedRunResult[Any, OutputT]] | None = None
    _absorbed: RunCancelled | None = None
    _task: asyncio.Task[Any] | None = None
    """The task that enters the run, while it does."""
    _entered_in: weakref.ref[asyncio.Task[Any]] | None = None
    _asked_for = 0
    """How often that task was cancelled by a stop."""

    def __init__(self, agent: AbstractAgent[Any, Any], user_prompt: Any, kwargs: dict[str, Any]) -> None:
        super().__init__(agent, user_prompt, kwargs)
        self._loops: list[_Loop[Any]] = []
        self._recorded_by_pydantic_ai = asyncio.Event()

    # --- entering and leaving ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start the run and wait for the first text, or return at once if it was cancelled.

        Raises:
            RuntimeError: If it was entered before: a run happens once.
        """
        if self._loop is not None:
            raise RuntimeError("this run was entered before: call run_stream() again for another one")
        self._loop = require_loop()
        if self._is_cut:
            await asyncio.sleep(0)  # a cancellation of the task's own, if one is pending, comes first
            return self
        self._state.watch_by(self)
        task = self._task = asyncio.current_task()
        self._entered_in = None if task is None else weakref.ref(task)
        before = 0 if task is None else task.cancelling()
        context = self._agent.run_stream(self._prompt, **self._kwargs)
        try:
            with provide_run_state(self._state):
                self._result = await context.__aenter__()
            self._context = context
            self._to_end = Entered(self._state, partial(context.__aexit__, None, None, None))
        except BaseException as error:
            self._absorbed = cancelled_run(error)
            if not self._is_own_stop(error, before):
                self._note_failure(error)
                raise
        finally:
            self._withdraw()
            self._task = None
            if self._result is None:
                await self._finish_stop()
                await self._end_tasks()
            elif self._is_cut:
                self._begin_stop()  # it got here although it was stopped on the way
        return self

    def _is_own_stop(self, error: BaseException, before: int) -> bool:
        """Whether the stop, and nothing else, ended the entering; `before`: the cancellations that were older."""
        if self._life.state is not State.INTERRUPTED or isinstance(error, RunTimedOut):
            return False
        if isinstance(error, asyncio.CancelledError) and self._asked_for:
            self._withdraw()
            return self._task is not None and self._task.cancelling() <= before
        return isinstance(error, RunCancelled)

    def _withdraw(self) -> None:
        """Take back the cancellations of the task that a stop has asked for."""
        while self._asked_for:
            self._asked_for -= 1
            if self._task is not None:
                self._task.uncancel()

    def _note_failure(self, error: BaseException) -> None:
        if self._absorbed is not None or isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._leave(self._state.leave_reason(error))
        else:
            self._life.apply(Event.ERROR)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Stop what has not ended, close everything, and settle the usage."""
        context, result = self._context, self._result
        self._no_longer_entered()
        if context is None or result is None:
            return None
        is_stranded = self._is_stranded()
        if not is_stranded and self._life.state is State.LIVE and not result.is_complete and self._is_over():
            await self._end(result)
        if result.is_complete:
            self._life.apply(Event.END)
        # Without an error the block was just left, whatever became of tasks that prefetched for it.
        self._leave("left" if error is None else self._state.leave_reason(error), error)
        if is_stranded:
            self._finished()
            return None
        if self._life.state is State.INTERRUPTED:
            self._begin_stop()
            await self._finish_stop()
        with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
            for loop in self._loops:
                await loop.aclose()
        self._context = None
        try:
            return await context.__aexit__(kind, error, traceback)
        except (RuntimeError, ValueError) as complaint:
            if not self._was_entered_in_a_step():
                raise
            # pydantic-ai's scopes and context variables are those of a task that is gone. They go with it, and the run
            # has ended: there is nothing that its complaint could still be about.
            _logger.debug("leaving a run in another task than it was entered in raised %s", type(complaint).__name__)
            return None
        finally:
            await self._end_tasks()
            self._finished()

    def _was_entered_in_a_step(self) -> bool:
        """Whether the task that entered the run has ended: a host drives our caller step by step, each in a task."""
        task = None if self._entered_in is None else self._entered_in()
        return task is None or task.done()

    async def _end(self, result: StreamedRunResult[Any, OutputT]) -> None:
        """Do what reading on to the end would do, for a run that is left when its answer is whole.

        An error of that is dropped: the run was left, so no caller waits for the output.
        """
        with suppress(Exception), anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
            await result.get_output()

    # --- stopping ---------------------------------------------------------------------------------------------

    def _is_answering(self) -> bool:
        return self._result is not None

    def _is_over(self) -> bool:
        result, stream = self._result, self._state.stream
        if self._life.state in (State.COMPLETE, State.FAILED):
            return True
        if result is None or any(loop.is_pulling for loop in self._loops):
            return False
        if result.is_complete or _is_settled(result):
            return True
        if stream is None or not self._is_all_said():
            return False
        # The tools beside the answer, if it calls any, have not run.
        final = stream.final_result_event
        output_call = None if final is None else final.tool_call_id
        return all(call.tool_call_id == output_call for call in result.response.tool_calls)

    async def _when_cut(self) -> None:
        """In the pull that found its stream cut: wait until pydantic-ai knows, so that its loop takes the right end."""
        self._begin_stop()
        await self._recorded_by_pydantic_ai.wait()

    async def _stop(self) -> None:
        try:
            stream = self._state.stream
            closing = None if stream is None else stream.cancel(self.cancel_reason)
            if closing is not None and STOPS[self._moment()] is Action.CLOSE_AND_CANCEL_RUN:
                await closing
            match STOPS[self._moment()]:
                case Action.CANCEL_TASK:
                    if self._task is not None:
                        self._asked_for += 1
                        self._task.cancel()
                case Action.CANCEL_RUN | Action.CLOSE_AND_CANCEL_RUN:
                    if self._task is not None and self._state.context is not None:
                        self._state.context.cancel()
                case Action.RECORD | Action.RECORD_AND_INTERRUPT as action:
                    await self._record(interrupt=action is Action.RECORD_AND_INTERRUPT)
                    if closing is not None:
                        await closing
                case Action.NOTHING:
                    pass
        finally:
            if self._task is None:  # else entering ends by this, and finishes
                self._finished()

    async def _record(self, *, interrupt: bool) -> None:
        try:
            if self._result is not None:
                await self._result.cancel()
        finally:
            self._recorded_by_pydantic_ai.set()
            if interrupt:
                for loop in self._loops:
                    loop.interrupt()

    def _finished(self) -> None:
        self._recorded_by_pydantic_ai.set()
        self._closed.set()

    async def _finish_stop(self) -> None:
        try:
            await self._wait_for_stop()
        finally:
            self._finished()

    def _is_inside(self) -> bool:
        current = asyncio.current_task()
        pulling = any(loop.is_pulled_by_caller() for loop in self._loops)
        return pulling or (current is not None and current is self._task) or super()._is_inside()

    # --- streaming --------------------------------------------------------------------------------------------

    def stream_text(self, *, delta: bool = False, debounce_by: float | None = 0.1) -> AsyncIterator[str]:
        """Stream the text of the answer; ends without an error when the run is cancelled.

        Args:
            delta: Whether to yield each piece by itself, or the whole text so far (the default).
            debounce_by: Seconds over which pieces are grouped, `None` for each as it comes.
        """
        return self._stream(lambda result: result.stream_text(delta=delta, debounce_by=debounce_by))

    def stream_output(self, *, debounce_by: float | None = 0.1) -> AsyncIterator[OutputT]:
        """Stream the validated output; ends without an error when the run is cancelled.

        Args:
            debounce_by: Seconds over which pieces are grouped, `None` for each as it comes.
        """
        return self._stream(lambda result: result.stream_output(debounce_by=debounce_by))

    def stream_response(self, *, debounce_by: float | None = 0.1) -> AsyncIterator[ModelResponse]:
        """Stream snapshots of the response; ends without an error when the run is cancelled.

        Args:
            debounce_by: Seconds over which pieces are grouped, `None` for each as it comes.
        """
        return self._stream(lambda result: result.stream_response(debounce_by=debounce_by))

    def _stream(self, start: Callable[[StreamedRunResult[Any, OutputT]], AsyncIterator[T]]) -> AsyncIterator[T]:
        result = self._entered()
        loop = _Loop(self, None if result is None or self._is_cut else start(result))
        self._loops.append(loop)
        return loop

    def _entered(self) -> StreamedRunResult[Any, OutputT] | None:
        """The result, `None` for a run that was cut before it had one."""
        if self._result is None and not self._is_cut:
            raise RuntimeError("this run was not entered: use `async with run_stream(...) as result:`")
        return self._result

    def _known(self) -> StreamedRunResult[Any, OutputT] | RunContext[Any] | PastContext | None:
        return self._result or self._state.context

    async def get_output(self) -> OutputT:
        """Read the stream to its end and return the validated output.

        Raises:
            IncompleteOutputError: If the run was cut, before or meanwhile.
        """
        result = self._entered()
        if result is None or self._is_cut:
            raise IncompleteOutputError(self.cancel_reason or "cancelled")
        loop = _Loop(self, _only(result.get_output))
        self._loops.append(loop)
        async for output in loop:
            self._life.apply(Event.END)
            return output
        raise IncompleteOutputError(self.cancel_reason or "cancelled")

    # --- what it was ------------------------------------------------------------------------------------------

    @property
    def response(self) -> ModelResponse:
        """The part of the answer that arrived: `state='interrupted'`, with the reason, once the run was cut."""
        result = self._entered()
        return super().response if result is None or self._is_cut else result.response

    def _ended(self) -> StreamedRunResult[Any, OutputT] | RunCancelled | None:
        return self._result or self._absorbed

    def _total(self) -> RunUsage:
        if self._result is not None:
            return self._result.usage
        stream = self._state.stream
        if self._absorbed is not None:
            total, messages = self._absorbed.usage, self._absorbed.all_messages()
            known = stream is None or any(has_made(stream, message) for message in messages)
            return total if stream is None or known else total + stream.usage._in_total
        context = self._state.context
        total = (self._kwargs.get("usage") or RunUsage()) if context is None else context.usage
        # A step that is going on is added to the run's sum when it is over.
        return total + stream.usage._in_total if stream is not None and self._task is not None else copy(total)


def _is_settled(result: StreamedRunResult[Any, Any]) -> bool:
    """Whether the run had ended before it was handed out, as one does that ends in deferred tool calls."""
    try:
        _ = result.result
    except UserError:
        return False
    return True


class _Loop(Generic[T]):
    """One loop over a run: each pull can be interrupted, and nothing follows a cancel."""

    def __init__(self, run: CancellableRun[Any], source: AsyncIterator[T] | None) -> None:
        self._run = ref(run)  # it closes its loops, and so holds them
        self._source = source
        self._guard = Interruptible(run._loop)
        self.is_pulling = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        run = self._run()
        if self._source is None or run is None or run._is_cut:
            raise StopAsyncIteration
        self._guard.require_own_loop()
        self.is_pulling = True
        try:
            item = await self._guard.run(self._source.__anext__())
        except StopAsyncIteration:
            if run._result is not None and run._result.is_complete:
                run._life.apply(Event.END)
            raise
        except asyncio.CancelledError as error:
            run._lose_pull(error)
            raise
        except Exception as error:
            if isinstance(error, Interrupted) or run._is_cut:
                raise StopAsyncIteration from None
            run._life.apply(Event.ERROR)
            raise
        finally:
            self.is_pulling = False
        if run._is_cut:
            raise StopAsyncIteration
        return item

    def interrupt(self) -> None:
        """End the pull that is going on."""
        self._guard.cancel()

    def is_pulled_by_caller(self) -> bool:
        """Whether the caller runs inside this loop's own pull."""
        return self._guard.inside()

    async def aclose(self) -> None:
        """Close the loop's generator, if it is not running."""
        close: Callable[[], Awaitable[None]] | None = getattr(self._source, "aclose", None)
        if close is not None:
            with suppress(RuntimeError):  # it is being pulled, by a task of the consumer's that outlives the block
                await close()


async def _only(get: Callable[[], Awaitable[T]]) -> AsyncIterator[T]:
    yield await get()


@overload
def run_stream(
    agent: AbstractAgent[DepsT, OutputT],
    user_prompt: str | Sequence[UserContent] | None = None,
    *,
    output_type: None = None,
    event_stream_handler: EventStreamHandler[DepsT] | None = None,
    **options: Unpack[RunOptions[DepsT]],
) -> CancellableRun[OutputT]: ...


@overload
def run_stream(
    agent: AbstractAgent[DepsT, Any],
    user_prompt: str | Sequence[UserContent] | None = None,
    *,
    output_type: OutputSpec[T],
    event_stream_handler: EventStreamHandler[DepsT] | None = None,
    **options: Unpack[RunOptions[DepsT]],
) -> CancellableRun[T]: ...


def run_stream(
    agent: AbstractAgent[Any, Any], user_prompt: str | Sequence[UserContent] | None = None, **options: Any
) -> CancellableRun[Any]:
    """Make a run of the agent that can be cancelled from now on; nothing is sent before it is entered.

    `async with run_stream(agent, prompt) as result:` enters it, and `result` is this same object. Like pydantic-ai's
    `run_stream` it takes the first text for the final answer; `run_stream_events` streams every turn.

    Args:
        agent: The pydantic-ai agent.
        user_prompt: The prompt, `None` to go on from `message_history`.
        options: The keyword arguments of the agent's own `run_stream`: see `RunOptions`. Its `cancellation_token` and
            `timeout` raise as they do there.

    Raises:
        TypeError: If `agent` is no pydantic-ai agent, `message_history` no list of its messages, or an option is not
            one that the agent's own method takes.
    """
    run = CancellableRun[Any](agent, user_prompt, options)
    accept_options(agent, "run_stream", options)
    return run
