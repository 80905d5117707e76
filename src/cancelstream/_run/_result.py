"""`run_stream()`: pydantic-ai's own, with a result that exists before anything is sent.

Two phases, two ways to stop. While the context is being entered, the agent may be waiting for a model, running a
tool, or between the two: there the open stream is closed first, gently, and then pydantic-ai's `ctx.cancel()` ends
what is left. It cancels the task, which is why it is used in this phase only: later the task is the consumer's.
Once there is a result, the pull that was interrupted waits until pydantic-ai's own `result.cancel()` has recorded the
response, and then the consumer's loop just ends. What runs after the response (tools of an exhaustive agent) is
inside the consumer's pull, and is interrupted there.

Known limits. As in pydantic-ai, the first text is taken for the final answer. A tool written as a plain function runs
in a thread that nobody can stop: it is left to finish, and its result is dropped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from copy import copy
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar, Unpack, overload

import anyio
from pydantic_ai import ModelMessage, ModelMessagesTypeAdapter
from pydantic_ai.agent import AbstractAgent, EventStreamHandler
from pydantic_ai.exceptions import RunCancelled, RunTimedOut
from pydantic_ai.messages import ModelResponse, UserContent
from pydantic_ai.output import OutputSpec
from pydantic_ai.result import StreamedRunResult
from pydantic_ai.usage import RunUsage

from .._errors import IncompleteOutputError
from .._history import mark_interrupted
from .._interrupt import Interrupted, Interruptible
from .._model import hand_over
from .._state import Event, State
from ._handle import RunHandle
from ._options import RunOptions, accept_options

__all__ = ("CancellableRun", "run_stream")

T = TypeVar("T")
OutputT = TypeVar("OutputT")
DepsT = TypeVar("DepsT")

LEAVE_TIMEOUT: Final = 10.0
"""Seconds that leaving may take to stop a run: anyio's guide names this for cleaning up under a shield."""


class CancellableRun(RunHandle, Generic[OutputT]):
    """A streamed run of an agent: cancellable from its birth, and entered with `async with`.

    Streams and reads like pydantic-ai's `StreamedRunResult`. Made by `run_stream()`.
    """

    _result: StreamedRunResult[Any, OutputT] | None = None
    _context: AbstractAsyncContextManager[StreamedRunResult[Any, OutputT]] | None = None
    _absorbed: RunCancelled | None = None
    _task: asyncio.Task[Any] | None = None

    def __init__(self, agent: AbstractAgent[Any, Any], user_prompt: Any, kwargs: dict[str, Any]) -> None:
        super().__init__(agent, user_prompt, kwargs)
        self._items: list[_Items[Any]] = []
        self._recorded = asyncio.Event()

    # --- entering and leaving ---------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start the run and wait for the first text, or return at once if it was cancelled.

        Raises:
            RuntimeError: If it was entered before: a run happens once.
        """
        if self._loop is not None:
            raise RuntimeError("this run was entered before: call run_stream() again for another one")
        self._loop = asyncio.get_running_loop()
        if self._is_cut:
            await asyncio.sleep(0)  # a cancellation of the task's own, if one is pending, comes first
            return self
        self._account.when_opened = self._watch
        self._account.when_began = self._stop_if_cut
        self._task = asyncio.current_task()
        context = self._agent.run_stream(self._prompt, **self._kwargs)
        try:
            with hand_over(self._account):
                self._result = await context.__aenter__()
            self._context = context
        except RunCancelled as cancelled:
            self._absorbed = cancelled
            if isinstance(cancelled, RunTimedOut) or self._life.state is not State.INTERRUPTED:
                self._life.apply(Event.LEAVE, self._account.why_left(cancelled))
                raise
        except BaseException as error:
            self._absorbed = RunCancelled.from_cancellation(error)
            left = isinstance(error, asyncio.CancelledError | GeneratorExit)
            self._life.apply(Event.LEAVE if left else Event.ERROR, self._account.why_left(error) if left else None)
            raise
        finally:
            self._task = None
            if self._result is None:
                await self._finish_stop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Stop what has not ended, close everything, and settle the usage."""
        context, result = self._context, self._result
        if context is None or result is None:
            return None
        if self._life.apply(Event.END) if result.is_complete else self._life.apply(Event.LEAVE, self._why_left(error)):
            stream = self._account.stream
            if self._is_cut and stream is not None:
                stream.cancel(self._life.reason)
        if self._is_cut:
            await self._finish_stop()
        with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
            for items in self._items:
                await items.aclose()
        self._context = None
        try:
            return await context.__aexit__(kind, error, traceback)
        finally:
            self._closed.set()

    def _why_left(self, error: BaseException | None) -> str:
        # Without an error the block was just left, whatever became of tasks that prefetched for it.
        return "left" if error is None else self._account.why_left(error)

    # --- stopping ---------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """A stream was made, before its first pull: what happens to it in this run when it is cut."""
        stream = self._account.stream
        if stream is None:  # pragma: no cover - it is called because there is one
            return
        stream.when_cut = self._when_cut
        if self._life.state is State.INTERRUPTED:
            stream.cancel(self._life.reason)

    def _stop_if_cut(self) -> None:
        if self._life.state is State.INTERRUPTED and self._account.context is not None:
            self._account.context.cancel()

    async def _when_cut(self) -> None:
        """In the pull that found its stream cut: wait until pydantic-ai knows, so that its loop takes the right end."""
        self._begin_stop()
        await self._recorded.wait()

    async def _stop(self) -> None:
        try:
            stream = self._account.stream
            closing = None if stream is None else stream.cancel(self._life.reason)
            if self._result is None and closing is not None:
                # Closed gently first: cancelling a task in the middle of its read can damage a shared connection.
                await closing
            if self._result is not None:
                await self._stop_result(self._result)
                if closing is not None:
                    await closing
            elif self._account.context is not None and self._task is not None:
                self._account.context.cancel()
                return  # entering ends with RunCancelled, and finishes
        finally:
            if self._task is None or self._result is not None:
                self._recorded.set()
                self._closed.set()

    async def _stop_result(self, result: StreamedRunResult[Any, OutputT]) -> None:
        try:
            await result.cancel()
        finally:
            self._recorded.set()
            stream = self._account.stream
            if stream is None or not stream.cancelled:
                # The response had ended: what is running is behind it, in the consumer's pull.
                for items in self._items:
                    items.interrupt()

    async def _finish_stop(self) -> None:
        try:
            with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
                if self._result is not None:
                    self._begin_stop()
                if self._stopping is not None:
                    await asyncio.wait([self._stopping])
        finally:
            self._recorded.set()
            self._closed.set()

    def _is_inside(self) -> bool:
        current = asyncio.current_task()
        pulling = any(items.is_pulled_by_us() for items in self._items)
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
        items = _Items(self, None if result is None or self._is_cut else start(result))
        self._items.append(items)
        return items

    def _entered(self) -> StreamedRunResult[Any, OutputT] | None:
        """The result, `None` for a run that was cut before it had one."""
        if self._result is None and not self._is_cut:
            raise RuntimeError("this run was not entered: use `async with run_stream(...) as result:`")
        return self._result

    async def get_output(self) -> OutputT:
        """Read the stream to its end and return the validated output.

        Raises:
            IncompleteOutputError: If the run was cut, before or meanwhile.
        """
        result = self._entered()
        if result is None or self._is_cut:
            raise IncompleteOutputError(self._life.reason or "cancelled")
        items = _Items(self, _only(result.get_output))
        self._items.append(items)
        async for output in items:
            self._life.apply(Event.END)
            return output
        raise IncompleteOutputError(self._life.reason or "cancelled")

    # --- what it was ------------------------------------------------------------------------------------------

    @property
    def response(self) -> ModelResponse:
        """What arrived of the answer: `state='interrupted'`, with the reason, once the run was cut."""
        result = self._entered()
        if result is not None:
            response = result.response
            if not self._is_cut or response.state in ("interrupted", "complete", "suspended"):
                return response
            return replace(response, state="interrupted")
        messages = self.new_messages()
        if messages and isinstance(last := messages[-1], ModelResponse):
            return last
        nothing = ModelResponse(parts=[], model_name=None, state="interrupted")
        return mark_interrupted(nothing, reason=self._life.reason or "cancelled")

    def all_messages(self) -> list[ModelMessage]:
        """The history and what this run added to it; ends in the cut response once the run was cut."""
        if (result := self._result) is not None:
            messages = result.all_messages()
            whole = result.is_complete or self._life.state is State.LIVE
            return list(messages) if whole else self._with_cut_response(messages)
        if self._absorbed is not None:
            return self._with_cut_response(self._absorbed.all_messages())
        return list(self._history)

    def all_messages_json(self) -> bytes:
        """`all_messages()` as JSON, which `ModelMessagesTypeAdapter` reads back, also without this package."""
        return ModelMessagesTypeAdapter.dump_json(self.all_messages())

    def new_messages(self) -> list[ModelMessage]:
        """What this run added to the history."""
        if (result := self._result) is not None:
            older = len(result.all_messages()) - len(result.new_messages())
        elif self._absorbed is not None:
            older = len(self._absorbed.all_messages()) - len(self._absorbed.new_messages())
        else:
            older = len(self._history)
        return self.all_messages()[older:]

    def new_messages_json(self) -> bytes:
        """`new_messages()` as JSON, which `ModelMessagesTypeAdapter` reads back, also without this package."""
        return ModelMessagesTypeAdapter.dump_json(self.new_messages())

    def _total(self) -> RunUsage:
        if self._result is not None:
            return self._result.usage
        stream = self._account.stream
        if self._absorbed is not None:
            total, messages = self._absorbed.usage, self._absorbed.all_messages()
            known = any(isinstance(m, ModelResponse) and stream and m.usage is stream.usage for m in messages)
            return total if stream is None or known else total + stream.usage
        context = self._account.context
        total = (self._kwargs.get("usage") or RunUsage()) if context is None else context.usage
        # A step that is going on is added to the run's sum when it is over.
        return total + stream.usage if stream is not None and self._task is not None else copy(total)


class _Items(Generic[T]):
    """One loop over a run: each pull can be interrupted, and nothing follows a cancel."""

    def __init__(self, run: CancellableRun[Any], source: AsyncIterator[T] | None) -> None:
        self._run = run
        self._source = source
        self._guard = Interruptible()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        run = self._run
        if self._source is None or run._is_cut:
            raise StopAsyncIteration
        try:
            item = await self._guard.run(self._source.__anext__())
        except StopAsyncIteration:
            if run._result is not None and run._result.is_complete:
                run._life.apply(Event.END)
            raise
        except Exception as error:
            if isinstance(error, Interrupted) or run._is_cut:
                raise StopAsyncIteration from None
            run._life.apply(Event.ERROR)
            raise
        if run._is_cut:
            raise StopAsyncIteration
        return item

    def interrupt(self) -> None:
        """End the pull that is going on."""
        self._guard.cancel()

    def is_pulled_by_us(self) -> bool:
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
