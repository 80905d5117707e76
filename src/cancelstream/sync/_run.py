"""`run_stream()` for code without `async`: a `CancellableRun` behind pydantic-ai's own bridge.

`StreamedRunResultSync` drives an asynchronous result on the thread's own event loop, the one `agent.run_sync()` uses,
which keeps a client's connections on one loop, and it cleans up after Ctrl-C. Here it is given a `CancellableRun`,
whose `cancel()` wakes that loop from any thread and from a signal handler: a signal's handler runs as soon as the
main thread does, and a thread that waits in its event loop does.

Between two pulls the loop stands still, and so does all that `cancel()` leaves to it. Then whoever cancels tells the
server: `_standstill` is held while the loop is driven, so who gets it, without waiting for it, knows that the loop
stands still and stays so. It is reentrant: in a signal handler our own thread stands still by itself.

Known limits. Between two pulls only an HTTP/1.1 server can be told; another one is told by the next pull, or by leaving
the block. A run belongs to the thread that entered it, `cancel()` apart.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast, overload

from pydantic_ai import ModelMessage
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.messages import ModelResponse, UserContent
from pydantic_ai.output import OutputSpec
from pydantic_ai.result import StreamedRunResultSync

from .._errors import IncompleteOutputError
from .._run import CancellableRun
from .._usage import StreamUsage

__all__ = ("BlockingRun", "run_stream")

T = TypeVar("T")
OutputT = TypeVar("OutputT")


class BlockingRun(Generic[OutputT]):
    """A streamed run of an agent in blocking code: cancellable from its birth, and entered with `with`.

    Streams and reads like pydantic-ai's `StreamedRunResultSync`. Made by `run_stream()`.
    """

    def __init__(self, run: CancellableRun[OutputT]) -> None:
        self._run = run
        self._bridge: StreamedRunResultSync[Any, OutputT] | None = None
        self._standstill = threading.RLock()

    # --- entering and leaving ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start the run and wait for the first text, or return at once if it was cancelled.

        Raises:
            RuntimeError: If an event loop is running in this thread, or the run was entered before.
        """
        if self._bridge is not None:
            raise RuntimeError("this run was entered before: call run_stream() again for another one")
        if _is_async():
            raise RuntimeError(
                "cancelstream.sync.run_stream blocks, and an event loop is running in this thread: use "
                "`async with cancelstream.run_stream(...)` here, or `asyncio.to_thread`"
            )
        with self._driving():
            # Like the result that it is made for, ours is entered by it, and then asked for its streams.
            self._bridge = StreamedRunResultSync(cast("Any", self._run))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop what has not ended, close everything, and settle the usage."""
        bridge = self._entered()
        with self._driving():
            bridge.__exit__(kind, error, traceback)

    @contextmanager
    def _driving(self) -> Generator[None]:
        """The event loop may run; whoever cancels leaves the telling to it."""
        try:
            with self._standstill:
                yield
        finally:
            # Cancelled when the loop had just stopped, by somebody who found us still here.
            if self._run.cancelled:
                self._tell()

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
        if self._run.cancelled:
            self._tell()

    def _tell(self) -> None:
        if self._standstill.acquire(blocking=False):
            try:
                self._run.tell()
            finally:
                self._standstill.release()

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
        return self._stream(lambda bridge: bridge.stream_text(delta=delta, debounce_by=debounce_by))

    def stream_output(self, *, debounce_by: float | None = 0.1) -> Iterator[OutputT]:
        """Stream the validated output; ends without an error when the run is cancelled.

        Args:
            debounce_by: Seconds over which pieces are grouped, `None` for each as it comes.
        """
        return self._stream(lambda bridge: bridge.stream_output(debounce_by=debounce_by))

    def stream_response(self, *, debounce_by: float | None = 0.1) -> Iterator[ModelResponse]:
        """Stream snapshots of the response; ends without an error when the run is cancelled.

        Args:
            debounce_by: Seconds over which pieces are grouped, `None` for each as it comes.
        """
        return self._stream(lambda bridge: bridge.stream_response(debounce_by=debounce_by))

    def _stream(self, start: Callable[[StreamedRunResultSync[Any, OutputT]], Iterator[T]]) -> Iterator[T]:
        return self._items(start(self._entered()))

    def _items(self, items: Iterator[T]) -> Iterator[T]:
        while True:
            with self._driving():
                try:
                    item = next(items)
                except StopIteration:
                    return
            # What was on its way when the run was cut is dropped, and the bridge's own loop comes to its end.
            if not self._run.cancelled:
                yield item

    def get_output(self) -> OutputT:
        """Read the stream to its end and return the validated output.

        Raises:
            IncompleteOutputError: If the run was cut, before or meanwhile.
        """
        bridge = self._entered()
        if self._run.cancelled:
            raise IncompleteOutputError(self._run.cancel_reason or "cancelled")
        with self._driving():
            return bridge.get_output()

    def _entered(self) -> StreamedRunResultSync[Any, OutputT]:
        if self._bridge is None:
            raise RuntimeError("this run was not entered: use `with run_stream(...) as result:`")
        return self._bridge

    # --- what it was ------------------------------------------------------------------------------------------

    @property
    def usage(self) -> StreamUsage:
        """The run's tokens so far, with bounds; one object, final once the run has ended.

        Calling it, `usage()`, returns it too. It counts what was delivered: a provider may bill more.
        """
        return self._run.usage

    @property
    def response(self) -> ModelResponse:
        """What arrived of the answer: `state='interrupted'`, with the reason, once the run was cut."""
        return self._run.response

    def all_messages(self) -> list[ModelMessage]:
        """The history and what this run added to it; ends in the cut response once the run was cut."""
        return self._run.all_messages()

    def all_messages_json(self) -> bytes:
        """`all_messages()` as JSON, which `ModelMessagesTypeAdapter` reads back, also without this package."""
        return self._run.all_messages_json()

    def new_messages(self) -> list[ModelMessage]:
        """What this run added to the history."""
        return self._run.new_messages()

    def new_messages_json(self) -> bytes:
        """`new_messages()` as JSON, which `ModelMessagesTypeAdapter` reads back, also without this package."""
        return self._run.new_messages_json()


def _is_async() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@overload
def run_stream(
    agent: AbstractAgent[Any, Any],
    user_prompt: str | Sequence[UserContent] | None = None,
    *,
    output_type: OutputSpec[T],
    **kwargs: Any,
) -> BlockingRun[T]: ...


@overload
def run_stream(
    agent: AbstractAgent[Any, OutputT], user_prompt: str | Sequence[UserContent] | None = None, **kwargs: Any
) -> BlockingRun[OutputT]: ...


def run_stream(
    agent: AbstractAgent[Any, Any], user_prompt: str | Sequence[UserContent] | None = None, **kwargs: Any
) -> BlockingRun[Any]:
    """Make a run of the agent that can be cancelled from now on; nothing is sent before it is entered.

    `with run_stream(agent, prompt) as result:` enters it, and `result` is this same object. It runs on the event loop
    of the thread that enters it, as `agent.run_stream_sync` does, and takes the first text for the final answer.

    Args:
        agent: The pydantic-ai agent.
        user_prompt: The prompt, `None` to go on from `message_history`.
        kwargs: Whatever else the agent's own `run_stream_sync` takes. Its `cancellation_token` and `timeout` raise as
            they do there.

    Raises:
        TypeError: If `agent` is no pydantic-ai agent, or `message_history` no list of its messages.
    """
    return BlockingRun(CancellableRun(agent, user_prompt, kwargs))
