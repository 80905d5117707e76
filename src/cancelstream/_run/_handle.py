"""The handle of every run: a life of its own, a `cancel()` that works before it is entered, its messages and its usage.

`cancel()` claims the end of the run's life, stops the stream that is open, and leaves the rest to the event loop
that the run was entered on (`_moments.py`), because nothing else of pydantic-ai's may be touched from another thread. A
run that was not entered yet has no loop: there the claim is enough, because entering sets the loop first and looks at
the life second, and `cancel()` does the reverse.

An answer is whole when its provider has said how it ended and all of it was handed out. If then nothing of the run is
left to do but to end, a stop changes nothing: the run is over, whatever is called first.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from typing import Any, Protocol, TypeVar
from weakref import WeakMethod

import anyio
from pydantic_ai import ModelMessage, ModelMessagesTypeAdapter, UserPromptNode
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import RunCancelled
from pydantic_ai.messages import ModelResponse
from pydantic_ai.usage import RunUsage

from .. import _response
from .._closing import DONE, Closing, Latch
from .._durable import refuse_per_run, refuse_wrapper
from .._errors import named
from .._history import apply_policy, mark_interrupted
from .._interrupt import running_loop
from .._model import Cancellable
from .._response import LEAVE_TIMEOUT, has_failed, is_all_said, is_job, is_whole, on_cut
from .._run_state import RunState, is_inside
from .._state import Event, Life, State, checked_reason
from .._upstream.python import line_outside
from .._usage import StreamUsage, combine
from ._dropped import Entered
from ._members import refuse_return_content
from ._moments import Moment, moment_of

__all__ = ("RunHandle", "outcome_of", "shut_socket_now")

T = TypeVar("T")


class Ended(Protocol):
    """The object that pydantic-ai gives at the end of a run, failed or not."""

    def all_messages(self) -> list[ModelMessage]: ...

    def new_messages(self) -> list[ModelMessage]: ...


class RunHandle(ABC):
    """A run that can be cancelled from the moment it is made.

    Args:
        agent: The pydantic-ai agent.
        user_prompt: As for the agent's own method.
        kwargs: What else that method takes.

    Raises:
        UserError: If `agent` is a `DBOSAgent` or its like, or cannot be made cancellable in a workflow.
        TypeError: If `agent` is no pydantic-ai agent, or `message_history` no list of its messages.
    """

    def __init__(self, agent: AbstractAgent[Any, Any], user_prompt: Any, kwargs: dict[str, Any]) -> None:
        running_loop()  # not under trio
        # Neither is checked by Python, and both would fail far from the call that was wrong.
        if not isinstance(agent, AbstractAgent):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"the first argument is a pydantic-ai Agent, not {named(agent)}")
        refuse_wrapper(agent)
        conversation = kwargs.get("conversation")
        given = kwargs.get("message_history") if conversation is None else conversation.messages
        self._history = apply_policy(given or [], "allow")
        self._agent = agent
        self._prompt = user_prompt
        # Left to pydantic-ai, the name would be looked for in our frames, where the variable is called `agent`.
        self._kwargs: dict[str, Any] = {**kwargs, "infer_name": False}
        if not _is_cancellable(agent, self._kwargs.get("capabilities") or ()):
            self._kwargs["capabilities"] = [*(self._kwargs.get("capabilities") or ()), Cancellable()]
        self._life = Life()
        self._state = RunState()
        self._closed = Latch()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._usage = StreamUsage()
        self._stopping: asyncio.Task[None] | None = None
        self._asked: str | None = None
        """The reason of a stop that came when the run seemed to be over."""
        self._made_at = line_outside()
        """The line of the caller that made the run."""
        self._to_end: Entered | None = None
        """Set while the run is entered and not left."""

    def __del__(self) -> None:
        entered: Entered | None = getattr(self, "_to_end", None)  # nothing is set if the arguments were wrong
        if entered is not None:
            entered.drop(self._made_at)

    def _no_longer_entered(self) -> None:
        if self._to_end is not None:
            self._to_end.leave()
            self._to_end = None

    # --- stopping ---------------------------------------------------------------------------------------------

    def cancel(self, reason: str | None = None) -> Closing:
        """Stop this run: its loop just ends, the provider is told at once, and nothing further starts.

        Idempotent, and a no-op once the run has ended, or its whole answer was handed out. Safe from any thread, task
        or signal handler, and at any moment: before the run is entered, before the first token, while the server is
        silent, during a tool.

        Args:
            reason: Why, in at most 200 characters; it is kept as `cancel_reason` and in the message that was cut.

        Returns:
            An awaitable, which need not be awaited: it returns when the connection is closed and the usage settled.
            Awaited inside the run's own tool it returns at once.

        Raises:
            TypeError: If the reason is not a string.
            ValueError: If it is too long.
        """
        reason = checked_reason(reason)
        if self._is_over():
            self._asked = self._asked or reason
        elif self._life.apply(Event.CANCEL, reason):
            stream = self._state.stream
            if stream is not None:
                stream.cancel(reason)
            if self._loop is None:
                self._closed.set()
            else:
                try:
                    self._loop.call_soon_threadsafe(self._begin_stop)
                except RuntimeError:  # that loop is closed: nothing of this run can go on
                    self._closed.set()
        # A run that had ended has nothing of its own to close.
        return Closing(self._closed if self._is_cut else DONE, self._is_inside)

    def _is_stranded(self) -> bool:
        """Whether the run's loop is closed, so that nothing of it can be awaited any more.

        A host that drives a generator step by step closes its loop, and drops the generator later.
        """
        return self._loop is not None and self._loop.is_closed()

    def _begin_stop(self) -> None:
        """Start what stopping needs the loop for, once at a time; on the run's loop."""
        if not self._closed.is_set() and (self._stopping is None or self._stopping.done()):
            self._stopping = asyncio.get_running_loop().create_task(self._stop())

    @property
    def _output_type(self) -> object:
        """The type of its output, as it was asked for."""
        asked: object = self._kwargs.get("output_type")
        return asked or self._agent.output_type

    def _output_key(self, tool: str) -> str | None:
        """Under which name the arguments of this output tool hold an output that is no object; `None` for an object."""
        stream = self._state.stream
        tools = () if stream is None else stream.model_request_parameters.output_tools
        return next((output.outer_typed_dict_key for output in tools if output.name == tool), None)

    @abstractmethod
    async def _stop(self) -> None:
        """End whatever of the run is going on, as `STOPS` has it, and set `_closed`."""

    @abstractmethod
    def _is_over(self) -> bool:
        """Whether a stop would change nothing any more."""

    @abstractmethod
    def _is_answering(self) -> bool:
        """Whether the answer is being handed out by `run_stream()`."""

    def _is_all_said(self) -> bool:
        """Whether the provider has said how the last answer ended, and pydantic-ai was handed all of it."""
        stream = self._state.stream
        return stream is not None and (is_whole(stream) or is_all_said(stream)) and not is_job(stream)

    def _moment(self) -> Moment:
        stream = self._state.stream
        return moment_of(
            entered=self._loop is not None,
            over=self._is_over(),
            answering=self._is_answering(),
            begun=self._state.context is not None,
            streaming=stream is not None and not is_whole(stream) and not has_failed(stream),
        )

    def _on_stream(self) -> None:
        """A stream was made, before its first pull: what happens to it in this run when it is cut."""
        stream = self._state.stream
        if stream is None:  # pragma: no cover - it is called because there is one
            return
        on_cut(stream, _weakly(self._when_cut))
        # A validator has sent the run back to its model: it was not over when it was stopped.
        if self._asked is not None and self._life.apply(Event.CANCEL, self._asked):
            self._begin_stop()
        if self._is_cut:
            stream.cancel(self.cancel_reason)

    @abstractmethod
    async def _when_cut(self) -> None:
        """Block the pull that found its stream cut until pydantic-ai knows; else it takes the answer for whole."""

    def _on_run_start(self) -> None:
        """The run has a context: end it if it was cut before."""
        if self._is_cut and self._state.context is not None:
            self._state.context.cancel()

    async def _wait_for_stop(self) -> None:
        """Wait until the stop is done, for as long as leaving may take."""
        if self._stopping is not None:
            with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
                await asyncio.wait([self._stopping])

    async def _end_tasks(self) -> None:
        """pydantic-ai's run is over: end the tasks that it has forgotten, for as long as leaving may take."""
        with anyio.move_on_after(LEAVE_TIMEOUT, shield=True):
            await self._state.end_tasks()

    def _leave(self, reason: str, error: BaseException | None = None) -> None:
        """The run was left before its end, by this error; that a timeout was behind it may be known only later."""
        if self._life.apply(Event.LEAVE, reason):
            self._state.left_by_error = error is not None and not isinstance(error, GeneratorExit)
            self._state.left_as = reason
        elif self._life.state is State.LEFT and reason == "timeout":
            self._state.left_as = reason

    def _lose_pull(self, error: asyncio.CancelledError) -> None:
        """A pull was cancelled by its consumer, which ends the answer there: a loop that goes on finds nothing."""
        reason = self._state.leave_reason(error)
        self._leave("task_cancelled" if reason == "left" else reason)

    def _is_inside(self) -> bool:
        return is_inside(self._state)

    @property
    def _is_cut(self) -> bool:
        return self._life.is_cut

    @property
    def cancelled(self) -> bool:
        """Whether the run was stopped before its end: by `cancel()`, or because it was left early."""
        return self._is_cut

    @property
    def cancel_reason(self) -> str | None:
        """Why it was stopped, `None` if it was not."""
        return self._state.left_as if self._life.state is State.LEFT else self._life.reason

    # --- what it was ------------------------------------------------------------------------------------------

    @property
    def usage(self) -> StreamUsage:
        """The run's tokens so far, with bounds; one object, final once the run has ended.

        Calling it, `usage()`, returns it too. It counts what was delivered: a provider may bill more. `complete` is
        also false for a run that was cut between two whole responses.
        """
        total, stream = copy(self._total()), self._state.stream
        if stream is not None:
            _ = stream.usage  # brings it up to date
        if self._is_cut:
            # pydantic-ai counts a step only once something of its answer arrived; the request was made all the same.
            total.requests = max(total.requests, self._state.requests())
        return combine(total, self._state.counted_usages(), into=self._usage, cut=self._is_cut)

    @abstractmethod
    def _total(self) -> RunUsage:
        """pydantic-ai's own sum for this run, the response in flight included."""

    @abstractmethod
    def _ended(self) -> Ended | None:
        """The object that pydantic-ai gave for this run, `None` until it gives one."""

    def _recorded(self) -> tuple[list[ModelMessage], int]:
        """pydantic-ai's messages of the run, and how many of them are older than it."""
        state, ended = self._state, self._ended()
        if isinstance(state.node, UserPromptNode) or (state.node is None and isinstance(ended, RunCancelled | None)):
            return list(self._history), len(self._history)  # it has not added anything yet
        if ended is not None:
            messages = ended.all_messages()
            return list(messages), len(messages) - len(ended.new_messages())
        messages = state.messages or []
        run_id = None if state.context is None else state.context.run_id
        return list(messages), sum(message.run_id != run_id for message in messages)

    def _messages(self) -> tuple[list[ModelMessage], int]:
        """The messages of the run as they are told, and how many of them are older than it."""
        messages, older = self._recorded()
        if self._life.state not in (State.LIVE, State.COMPLETE):
            reason = (self.cancel_reason or "cancelled") if self._is_cut else None
            messages = self._state.with_ending(messages, reason, new=len(messages) - older)
        elif (received := self._state.received(messages)) is not None and self._is_over():
            messages.append(received)  # whole, and pydantic-ai records it at the end
        return messages, older

    @property
    def response(self) -> ModelResponse:
        """The part of the latest answer that arrived: `state='interrupted'`, with the reason, once the run was cut."""
        messages, older = self._messages()
        if not self._is_cut and (received := self._state.received(messages)) is not None:
            return received  # in flight
        own = [message for message in messages[older:] if isinstance(message, ModelResponse)]
        response = own[-1] if own else ModelResponse(parts=[], model_name=None, state="incomplete")
        if self._is_cut and response.state in ("complete", "incomplete"):
            return mark_interrupted(response, reason=self.cancel_reason or "cancelled")
        return response

    def all_messages(self, *, output_tool_return_content: str | None = None) -> list[ModelMessage]:
        """The history and what this run added to it; ends in what was cut once the run was cut.

        Args:
            output_tool_return_content: Not supported in a streamed run, as in pydantic-ai.

        Raises:
            NotImplementedError: If it is given.
        """
        refuse_return_content(output_tool_return_content)
        return self._messages()[0]

    def all_messages_json(self, *, output_tool_return_content: str | None = None) -> bytes:
        """`all_messages()` as JSON, which `ModelMessagesTypeAdapter` reads back, also without this package."""
        messages = self.all_messages(output_tool_return_content=output_tool_return_content)
        return ModelMessagesTypeAdapter.dump_json(messages)

    def new_messages(self, *, output_tool_return_content: str | None = None) -> list[ModelMessage]:
        """The messages that this run added to the history; the argument is that of `all_messages()`."""
        refuse_return_content(output_tool_return_content)
        messages, older = self._messages()
        return messages[older:]

    def new_messages_json(self, *, output_tool_return_content: str | None = None) -> bytes:
        """`new_messages()` as JSON, which `ModelMessagesTypeAdapter` reads back, also without this package."""
        messages = self.new_messages(output_tool_return_content=output_tool_return_content)
        return ModelMessagesTypeAdapter.dump_json(messages)


def shut_socket_now(run: RunHandle) -> None:
    """Tell the server of a run that was cut, while its event loop stands still; for a caller that keeps it so."""
    stream, loop = run._state.stream, run._loop
    if stream is not None and loop is not None and not loop.is_running():
        _response.shut_socket_now(stream)


async def outcome_of(awaitable: Awaitable[T]) -> tuple[T | None, Exception | asyncio.CancelledError | None]:
    """The result, or the error, which then does not know the frame that it is awaited in, and what is in that."""
    try:
        return await awaitable, None
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - the caller decides what it means
        return None, error


def _weakly(method: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """A method that does not keep its object."""
    reference = WeakMethod(method)

    async def call() -> None:
        if (bound := reference()) is not None:
            await bound()
        else:
            await asyncio.Event().wait()  # its run was dropped, and is being ended

    return call


def _is_cancellable(agent: AbstractAgent[Any, Any], capabilities: Sequence[object]) -> bool:
    """Whether the agent, or this run of it, has the capability already: its `history=` wins then."""
    found: list[AbstractCapability[Any]] = []
    agent.root_capability.apply(found.append)
    for capability in capabilities:
        if isinstance(capability, AbstractCapability):
            capability.apply(found.append)  # pyright: ignore[reportUnknownMemberType]
    if any(isinstance(capability, Cancellable) for capability in found):
        return True
    refuse_per_run(found)
    return False
