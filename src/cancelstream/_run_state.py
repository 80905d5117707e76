"""The state that a run and its parts share: the open stream, the messages, the step that is going on.

The capability (`_model.py`) writes it from pydantic-ai's hooks, and the run's handle (`_run/`) reads it. A run of this
package makes its state itself and hands it to the capability through a context variable, which the first `for_run` in
that context takes, so that an agent called by a tool inside the run never takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, Self
from weakref import ref

from pydantic_ai import CallToolsNode, ModelRequestNode, RunContext, UserPromptNode
from pydantic_ai.exceptions import RunCancelled
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelRequestPart, ModelResponse
from pydantic_ai.usage import RunUsage

from ._history import CUT_STATES, lacks_results, mark_interrupted
from ._response import CancellableStreamedResponse, has_made, is_job
from ._upstream.pydantic_ai import continued, next_request_of, was_cancelled_by_its_own_handle
from ._usage import ResponseUsage

if TYPE_CHECKING:
    from pydantic_ai.workspaces import Workspace

__all__ = ("PastContext", "RunState", "cancelled_run", "current_run_state", "inside", "is_inside", "provide_run_state")


class Watcher(Protocol):
    """The handle of a run."""

    def _on_run_start(self) -> None:
        """The run has a context, and nothing else of it has happened yet."""
        ...

    def _on_stream(self) -> None:
        """A stream was made, before its first pull."""
        ...


def _no_handle() -> None:
    """A run without a handle of cancelstream."""


_PAST: Final = object()
"""The step of a run that is over."""


@dataclass(frozen=True)
class PastContext:
    """The parts of a run's context that outlive the run. The context itself holds all that took part in the run."""

    run_id: str | None
    conversation_id: str | None
    usage: RunUsage
    deadline: datetime | None
    metadata: dict[str, Any] | None
    workspace: Workspace
    was_cancelled: bool

    @classmethod
    def of(cls, context: RunContext[Any]) -> Self:
        """The same of a context."""
        return cls(
            context.run_id,
            context.conversation_id,
            context.usage,
            context.deadline,
            context.metadata,
            context.workspace,
            was_cancelled_by_its_own_handle(context),
        )

    def cancel(self) -> None:
        """There is nothing to cancel any more."""


class RunState:
    """The state of one run of an agent; on the run's own loop, `stream` excepted."""

    def __init__(self) -> None:
        self.stream: CancellableStreamedResponse | None = None
        """The stream that was made last; the open one, if any is."""
        self.usages: list[ResponseUsage] = []
        """The usage of each stream."""
        self.context: RunContext[Any] | PastContext | None = None
        """Set when the run begins: it can be cancelled through it from then on."""
        self.messages: list[ModelMessage] | None = None
        """pydantic-ai's own list of the run's messages, which grows as the run goes on."""
        self.node: object = None
        """The step of pydantic-ai's graph that began last."""
        self.has_result = False
        """Whether pydantic-ai has the result of the run."""
        self.owner: asyncio.Task[Any] | None = None
        """The task that drives the run, while it does: its cancellation is the run's."""
        self._owner_was_cancelled = False
        self._last_results: list[ModelRequestPart] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        """The tasks in which pydantic-ai calls hooks; they end with the run."""
        self._watcher: Callable[[], Watcher | None] = _no_handle
        self._turn_at = 0
        """Where the usages begin of the turn that is going on: an answer may come in several parts."""
        self._asked_at = 0
        """Where the response of the last stream has its place among the messages."""
        self._continues: ModelResponse | None = None
        """The earlier parts of the answer that the last stream goes on with."""
        self.left_by_error = False
        """Whether an error has left the run's block, which ends a job of the provider's, as it does in pydantic-ai."""
        self.left_as: str | None = None
        """Why the run was left before its end, once it was."""
        self.taken = False
        self.run_id: str | None = None

    def watch_by(self, watcher: Watcher) -> None:
        """Tell the run's handle what happens; the state, which lives as long as the run, does not keep it."""
        self._watcher = ref(watcher)

    def take(self, run_id: str | None) -> Self:
        """Claim the state for one run."""
        self.taken, self.run_id = True, run_id
        return self

    def run_started(self, context: RunContext[Any]) -> None:
        """The run has a context."""
        self.context = context
        self.messages = context.messages
        self.note_task()
        if (watcher := self._watcher()) is not None:
            watcher._on_run_start()

    def step_started(self, context: RunContext[Any], node: object) -> None:
        """The run's own task begins a step."""
        self.owner = asyncio.current_task()
        self.node = node
        self.messages = context.messages

    def run_ended(self) -> None:
        """The run is over: let go of all that knows the run, and so this state, and keep what will still be asked."""
        if self.owner is not None:
            self._owner_was_cancelled = self.owner.cancelling() > 0
            self.tasks.discard(self.owner)
            self.owner = None
        self._last_results = self._results(self.messages or ())
        if not isinstance(self.node, UserPromptNode):
            self.node = None if self.node is None else _PAST
        if isinstance(self.context, RunContext):
            self.context = PastContext.of(self.context)

    def stream_made(self, stream: CancellableStreamedResponse, messages: Sequence[ModelMessage]) -> None:
        """A stream was made for a request with these messages; it is the open one until the next."""
        self.usages[:] = self.counted_usages()
        self.stream = stream
        last = messages[-1] if messages else None
        self._continues = last if isinstance(last, ModelResponse) and last.state == "suspended" else None
        self.usages.append(stream.usage)
        place = len(self.messages or ())
        if self._continues is None or place != self._asked_at:
            self._turn_at = len(self.usages) - 1
        self._asked_at = place
        if (watcher := self._watcher()) is not None:
            watcher._on_stream()

    def note_task(self) -> None:
        """Remember the task that calls a hook of the run."""
        task = asyncio.current_task()
        if task is not None:
            self.tasks.add(task)

    async def end_tasks(self) -> None:
        """End the tasks of a run that is over.

        A run that is cancelled just when pydantic-ai hands over to such a task leaves it waiting for ever.
        """
        left = [task for task in self.tasks - {self.owner, asyncio.current_task()} if not task.done()]
        self.tasks.clear()
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)

    def requests(self) -> int:
        """How many of the streams had a request that was sent."""
        return sum(usage._counts for usage in self.counted_usages())

    def counted_usages(self) -> list[ResponseUsage]:
        """The usages that add up to the run's: each look at a background job tells all of it, so the last counts."""
        job, stream = None if self._continues is None else self._continues.provider_response_id, self.stream
        if job and stream is not None and stream.provider_response_id == job and len(self.usages) > 1:
            return [*self.usages[:-2], self.usages[-1]]
        return list(self.usages)

    def turn_usages(self) -> list[ResponseUsage]:
        """Those of them that belong to the turn that is going on."""
        return self.counted_usages()[self._turn_at :]

    def leave_reason(self, error: BaseException | None) -> str:
        """The reason to record for a stream that is left before its end, with this error or without one."""
        context = self.context
        if isinstance(error, TimeoutError) or _is_past(None if context is None else context.deadline):
            return "timeout"
        if self.left_as is not None:
            return self.left_as
        if context.was_cancelled if isinstance(context, PastContext) else was_cancelled_by_its_own_handle(context):
            return "cancelled"
        # A consumer that prefetches is cancelled in a task of its own when it is merely left, so the run's decides.
        if self._owner_was_cancelled or (self.owner is not None and self.owner.cancelling() > 0):
            return "task_cancelled"
        return "left"

    @property
    def is_just_left(self) -> bool:
        """Whether the run was left by `break` or at the end of its block, and nothing has asked for a stop."""
        return self.left_as == "left" and not self.left_by_error

    @property
    def leaves_job(self) -> bool:
        """Whether the run was just left while its provider works on a job: the job goes on."""
        return self.is_just_left and self.stream is not None and is_job(self.stream)

    # --- how the messages of a run end that did not come to its end --------------------------------------------

    def with_ending(self, messages: Sequence[ModelMessage], reason: str | None, *, new: int) -> list[ModelMessage]:
        """The messages of a run that was cut or failed, as they can be gone on with: the last one `is_incomplete`.

        1. The part that the last stream received is the last response, also where pydantic-ai has recorded less of it.
        2. A whole response whose tool calls have no results gets a request with the results that came, marked as cut.
        3. If the run was cut, and did not fail: a whole response without tool calls was cut in the work behind it, so
           it is marked itself.
        4. The same: a request that was not answered gets an empty response, marked as cut.
        5. The answer of a job that was left can be resumed; that of a job that was cancelled is cut.

        Nothing is added to the history of a run that had not begun.

        Args:
            messages: The messages as pydantic-ai has them.
            reason: Why the run was cut, `None` for one that failed.
            new: How many of them are the run's own.
        """
        told = list(messages)
        received = self.received(told)
        if received is not None:
            self._take_in(received, told)
        elif not new:
            return told
        last = told[-1]
        if self.leaves_job and isinstance(last, ModelResponse):
            told[-1] = replace(last, state="suspended")
        elif reason is not None and isinstance(last, ModelResponse) and (is_cut(last) or last.state == "suspended"):
            told[-1] = mark_interrupted(last, reason=reason)
        elif lacks_results(told):
            told.append(self._cut_request(told))
        elif last.state == "incomplete":
            told[-1] = replace(last, state="interrupted")
        elif reason is not None and last.state == "complete":
            if isinstance(last, ModelResponse):
                told[-1] = mark_interrupted(last, reason=reason)
            else:
                nothing = ModelResponse(parts=[], run_id=last.run_id, conversation_id=last.conversation_id)
                told.append(mark_interrupted(nothing, reason=reason))
        return told

    def close_messages(self, *, cut: bool) -> None:
        """Complete pydantic-ai's own list of a run that fails or is cut, unless it had its result.

        pydantic-ai does both itself at most moments: it records what a stream had received, and answers whole tool
        calls that will have no other results with a request that is marked as cut.
        """
        messages = self.messages
        if messages is None or self.has_result:
            return
        if cut and (received := self.received(messages)) is not None:
            self._take_in(received, messages)
        if lacks_results(messages) and self._is_own(messages[-1]):
            messages.append(self._cut_request(messages))

    def _take_in(self, received: ModelResponse, messages: list[ModelMessage]) -> None:
        """Add what was received to the messages, in place of a response that has nothing of it."""
        if messages and isinstance(last := messages[-1], ModelResponse) and is_cut(last) and self._is_own(last):
            messages.pop()
        messages.append(received)

    def _is_own(self, message: ModelMessage) -> bool:
        return self.context is not None and message.run_id == self.context.run_id

    def received(self, messages: Sequence[ModelMessage]) -> ModelResponse | None:
        """All that arrived of the last stream's response, unless it is among the messages already."""
        stream = self.stream
        if stream is None:
            return None
        if any(has_made(stream, message) for message in messages):
            return None
        response = stream.get()
        if self._continues is not None:
            response = continued(self._continues, response)
        recorded = messages[self._asked_at] if self._asked_at < len(messages) else None
        # Where the model is called elsewhere, pydantic-ai's own response may have nothing of what arrived there.
        if isinstance(recorded, ModelResponse) and (recorded.parts or not response.parts or not is_cut(recorded)):
            return None
        if self.context is not None:
            response = replace(response, run_id=self.context.run_id, conversation_id=self.context.conversation_id)
        return response

    def _cut_request(self, messages: Sequence[ModelMessage]) -> ModelRequest:
        """The request that answers the tool calls of the last message as far as they have results."""
        response = messages[-1]
        return ModelRequest(
            parts=self._results(messages),
            run_id=response.run_id,
            conversation_id=response.conversation_id,
            timestamp=datetime.now(UTC),
            state="interrupted",
        )

    def _results(self, messages: Sequence[ModelMessage]) -> list[ModelRequestPart]:
        """The results that came after the last message and are not in a message yet."""
        node = self.node
        if node is _PAST:
            return self._last_results
        request = None
        if isinstance(node, CallToolsNode):
            request = next_request_of(node)  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(node, ModelRequestNode):
            request = node.request
        if request is None or any(message is request for message in messages):
            return []
        return [part for part in request.parts if part.part_kind != "user-prompt"]


def cancelled_run(error: BaseException) -> RunCancelled | None:
    """The messages and the usage of the run that an error has cancelled, in an error of its own.

    The error itself knows the frames that it came through, and with them the run that keeps this.
    """
    cancelled = RunCancelled.from_cancellation(error)
    return None if cancelled is None else copy(cancelled)


def is_cut(message: ModelMessage) -> bool:
    """Whether the message says that it was cut."""
    return message.state in CUT_STATES


def _is_past(deadline: datetime | None) -> bool:
    return deadline is not None and datetime.now(UTC) >= deadline


# A context outlives what runs in it: every task and timer that was made there keeps it. So it holds no state.
_provided: ContextVar[ref[RunState] | None] = ContextVar("cancelstream.run_state", default=None)


@contextmanager
def provide_run_state(state: RunState) -> Generator[None]:
    """Let the first run that begins in this context keep its state in `state`."""
    token = _provided.set(ref(state))
    try:
        yield
    finally:
        _provided.reset(token)


def current_run_state(run_id: str | None) -> RunState:
    """The state that was provided for the run that begins, or a new one; two capabilities of one run share it."""
    provided = _provided.get()
    state = None if provided is None else provided()
    if state is None or (state.taken and (run_id is None or state.run_id != run_id)):
        state = RunState()
    return state.take(run_id)


_inside: ContextVar[tuple[ref[RunState], ...]] = ContextVar("cancelstream.inside", default=())


@contextmanager
def inside(state: RunState | None) -> Generator[None]:
    """Mark that the caller runs a tool of this run."""
    token = _inside.set(_inside.get() if state is None else (*_inside.get(), ref(state)))
    try:
        yield
    finally:
        _inside.reset(token)


def is_inside(state: RunState) -> bool:
    """Whether the caller runs in a tool of this run."""
    return any(reference() is state for reference in _inside.get())
