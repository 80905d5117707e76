"""`run_stream()` for code without `async`: a `CancellableRun` that any thread reads, stops and leaves.

The run is on an event loop (`_loops`): in the main thread the loop that `agent.run_sync()` uses there, in all other
threads one that they share and that runs in the background. `_session` enters and leaves it there, and reads it.

Known limits. The main thread's loop stands still between two pulls: there `cancel()` tells an HTTP/1.1 server itself,
and another one is told by the next pull, or by leaving the block. Connections of one client cannot be shared by two
loops: an agent that serves runs of the main thread should not serve runs of other threads, too.
"""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack, overload

from pydantic_ai import ModelMessage
from pydantic_ai.agent import AbstractAgent, EventStreamHandler
from pydantic_ai.messages import ModelResponse, UserContent
from pydantic_ai.output import OutputSpec

from .._errors import IncompleteOutputError
from .._run import CancellableRun, RunOptions, accept_options
from .._usage import StreamUsage
from ._loops import is_async
from ._session import END, Session

if TYPE_CHECKING:
    from pydantic_ai.workspaces import Workspace

__all__ = ("BlockingRun", "run_stream")

T = TypeVar("T")
OutputT = TypeVar("OutputT")
DepsT = TypeVar("DepsT")


class BlockingRun(Generic[OutputT]):
    """A streamed run of an agent in blocking code: cancellable from its birth, and entered with `with`.

    Streams and reads like pydantic-ai's `StreamedRunResultSync`. Made by `run_stream()`. It may be entered, read,
    stopped and left in different threads, one at a time; `cancel()` and what it was may be called from any at any time.
    """

    def __init__(self, run: CancellableRun[OutputT]) -> None:
        self._run = run
        self._session: Session[OutputT] | None = None

    # --- entering and leaving ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start the run and wait for the first text, or return at once if it was cancelled.

        Raises:
            RuntimeError: If an event loop is running in this thread, or the run was entered before.
        """
        if self._session is not None:
            raise RuntimeError("this run was entered before: call run_stream() again for another one")
        if is_async():
            raise RuntimeError(
                "cancelstream.sync.run_stream blocks, and an event loop is running in this thread: use "
                "`async with cancelstream.run_stream(...)` here, or `asyncio.to_thread`"
            )
        self._session = Session(self._run)
        self._session.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop what has not ended, close everything, and settle the usage.

        In a thread where an event loop runs it does not wait for that, because a host may drop a generator there.
        """
        self._entered().leave((kind, error, traceback))

    def __del__(self) -> None:
        session = getattr(self, "_session", None)
        if session is not None and session.was_forgotten():
            session.leave_soon()
            warnings.warn(
                f"a run was dropped without being left, made at {self._run._made_at}: use "
                "`with run_stream(...) as result:`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    # --- stopping ---------------------------------------------------------------------------------------------

    def cancel(self, reason: str | None = None) -> None:
        """Stop this run: its loop just ends, the provider is told at once, and nothing further starts.

        Idempotent, and a no-op once the run has ended. Safe from any thread or signal handler, and at any moment:
        before the run is entered, before the first token, while the server is silent, during a tool.

        Args:
            reason: Why, in at most 200 characters; it is kept as `cancel_reason` and in the message that was cut.

        Raises:
            TypeError: If the reason is not a string.
            ValueError: If it is too long.
        """
        self._run.cancel(reason)
        if self._session is not None:
            self._session.tell()

    @property
    def cancelled(self) -> bool:
        """Whether the run was stopped before its end: by `cancel()`, or because it was left early."""
        return self._run.cancelled

    @property
    def cancel_reason(self) -> str | None:
        """Why it was stopped, `None` if it was not."""
        return self._run.cancel_reason

    # --- streaming --------------------------------------------------------------------------------------------

    def stream_text(self, *, delta: bool = False, debounce_by: float | None = 0.1) -> Iterator[str]:
        """Stream the text of the answer; ends without an error when the run is cancelled.

        Args:
            delta: Whether to yield each piece by itself, or the whole text so far (the default).
            debounce_by: Seconds over which pieces are grouped, `None` for each as it comes.
        """
        return self._stream(lambda run: run.stream_text(delta=delta, debounce_by=debounce_by))

    def stream_output(self, *, debounce_by: float | None = 0.1) -> Iterator[OutputT]:
        """Stream the validated output; ends without an error when the run is cancelled.

        Args:
            debounce_by: Seconds over which pieces are grouped, `None` for each as it comes.
        """
        return self._stream(lambda run: run.stream_output(debounce_by=debounce_by))

    def stream_response(self, *, debounce_by: float | None = 0.1) -> Iterator[ModelResponse]:
        """Stream snapshots of the response; ends without an error when the run is cancelled.

        Args:
            debounce_by: Seconds over which pieces are grouped, `None` for each as it comes.
        """
        return self._stream(lambda run: run.stream_response(debounce_by=debounce_by))

    def _stream(self, start: Callable[[CancellableRun[OutputT]], AsyncIterator[T]]) -> Iterator[T]:
        return self._items(self._entered(), start)

    def _items(
        self, session: Session[OutputT], start: Callable[[CancellableRun[OutputT]], AsyncIterator[T]]
    ) -> Iterator[T]:
        stream = session.stream(start)
        try:
            while (item := stream.pull()) is not END:
                # An item that was on its way when the run was cut is dropped, and the stream comes to its end.
                if not self._run.cancelled:
                    yield item
        finally:
            stream.close()

    def get_output(self) -> OutputT:
        """Read the stream to its end and return the validated output.

        Raises:
            IncompleteOutputError: If the run was cut, before or meanwhile.
        """
        session = self._entered()
        if self._run.cancelled:
            raise IncompleteOutputError(self._run.cancel_reason or "cancelled")
        return session.call(lambda run: run.get_output())

    def _entered(self) -> Session[OutputT]:
        if self._session is None:
            raise RuntimeError("this run was not entered: use `with run_stream(...) as result:`")
        return self._session

    def _look(self, function: Callable[[CancellableRun[OutputT]], T]) -> T:
        return function(self._run) if self._session is None else self._session.look(function)

    # --- what it was ------------------------------------------------------------------------------------------

    @property
    def usage(self) -> StreamUsage:
        """The run's tokens so far, with bounds; one object, final once the run has ended.

        Calling it, `usage()`, returns it too. It counts what was delivered: a provider may bill more.
        """
        return self._look(lambda run: run.usage)

    @property
    def response(self) -> ModelResponse:
        """The part of the answer that arrived: `state='interrupted'`, with the reason, once the run was cut."""
        return self._look(lambda run: run.response)

    def all_messages(self, *, output_tool_return_content: str | None = None) -> list[ModelMessage]:
        """The history and what this run added to it; ends in the cut response once the run was cut.

        Args:
            output_tool_return_content: Not supported in a streamed run, as in pydantic-ai.

        Raises:
            NotImplementedError: If it is given.
        """
        return self._look(lambda run: run.all_messages(output_tool_return_content=output_tool_return_content))

    def all_messages_json(self, *, output_tool_return_content: str | None = None) -> bytes:
        """`all_messages()` as JSON, which `ModelMessagesTypeAdapter` reads back, also without this package."""
        return self._look(lambda run: run.all_messages_json(output_tool_return_content=output_tool_return_content))

    def new_messages(self, *, output_tool_return_content: str | None = None) -> list[ModelMessage]:
        """The messages that this run added to the history; the argument is that of `all_messages()`."""
        return self._look(lambda run: run.new_messages(output_tool_return_content=output_tool_return_content))

    def new_messages_json(self, *, output_tool_return_content: str | None = None) -> bytes:
        """`new_messages()` as JSON, which `ModelMessagesTypeAdapter` reads back, also without this package."""
        return self._look(lambda run: run.new_messages_json(output_tool_return_content=output_tool_return_content))

    @property
    def run_id(self) -> str | None:
        """pydantic-ai's id of this run; `None` until it begins, and for good if it was stopped before that."""
        return self._look(lambda run: run.run_id)

    @property
    def conversation_id(self) -> str | None:
        """The id of the conversation that the run belongs to; `None` until it begins."""
        return self._look(lambda run: run.conversation_id)

    @property
    def metadata(self) -> dict[str, Any] | None:
        """The metadata of the run, if the agent or the call has set any; `None` until it begins."""
        return self._look(lambda run: run.metadata)

    @property
    def workspace(self) -> Workspace:
        """The workspace of the run.

        Raises:
            RuntimeError: If the run has not begun.
        """
        return self._look(lambda run: run.workspace)

    @property
    def timestamp(self) -> datetime:
        """When the response began."""
        return self._look(lambda run: run.timestamp)

    @property
    def is_complete(self) -> bool:
        """Whether the answer was received to its end, by one of the `stream_` methods or by `get_output()`."""
        return self._look(lambda run: run.is_complete)

    def validate_response_output(self, message: ModelResponse, *, allow_partial: bool = False) -> OutputT:
        """Validate a response as the output of this run.

        Args:
            message: The response, such as a snapshot of `stream_response()`.
            allow_partial: Whether it may be a part of an output.

        Raises:
            IncompleteOutputError: If the run was cut before it had an answer.
        """
        return self._entered().call(lambda run: run.validate_response_output(message, allow_partial=allow_partial))


@overload
def run_stream(
    agent: AbstractAgent[DepsT, OutputT],
    user_prompt: str | Sequence[UserContent] | None = None,
    *,
    output_type: None = None,
    event_stream_handler: EventStreamHandler[DepsT] | None = None,
    **options: Unpack[RunOptions[DepsT]],
) -> BlockingRun[OutputT]: ...


@overload
def run_stream(
    agent: AbstractAgent[DepsT, Any],
    user_prompt: str | Sequence[UserContent] | None = None,
    *,
    output_type: OutputSpec[T],
    event_stream_handler: EventStreamHandler[DepsT] | None = None,
    **options: Unpack[RunOptions[DepsT]],
) -> BlockingRun[T]: ...


def run_stream(
    agent: AbstractAgent[Any, Any], user_prompt: str | Sequence[UserContent] | None = None, **options: Any
) -> BlockingRun[Any]:
    """Make a run of the agent that can be cancelled from now on; nothing is sent before it is entered.

    `with run_stream(agent, prompt) as result:` enters it, and `result` is this same object. As `agent.run_stream_sync`
    it takes the first text for the final answer. Threads may share the agent, and pass the run to each other. In the
    main thread the run is on the loop that `agent.run_sync()` uses there.

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
    return BlockingRun(run)
