"""What every run of ours has: a life of its own, a `cancel()` that works before it is entered, and an account.

`cancel()` claims the end of the run's life, stops the stream that is open, and leaves the rest to the event loop
that the run was entered on, because nothing else of pydantic-ai's may be touched from another thread. A run that was
not entered yet has no loop: there the claim is enough, because entering sets the loop first and looks at the life
second, and `cancel()` does the reverse.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import replace
from typing import Any, Final

from pydantic_ai import ModelMessage
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelResponse
from pydantic_ai.usage import RunUsage

from .._closing import DONE, Closing, Latch
from .._history import apply_policy
from .._model import Account, Cancellable, is_inside
from .._state import Event, Life, State, checked_reason
from .._usage import StreamUsage

__all__ = ("RunHandle",)

CUT: Final = frozenset({State.INTERRUPTED, State.LEFT})
"""The states of a run that was stopped before its end."""


class RunHandle(ABC):
    """A run that can be cancelled from the moment it is made.

    Args:
        agent: The pydantic-ai agent.
        user_prompt: As for the agent's own method.
        kwargs: What else that method takes.

    Raises:
        TypeError: If `agent` is no pydantic-ai agent, or `message_history` no list of its messages.
    """

    def __init__(self, agent: AbstractAgent[Any, Any], user_prompt: Any, kwargs: dict[str, Any]) -> None:
        # Neither is checked by Python, and both would fail far from the call that was wrong.
        if not isinstance(agent, AbstractAgent):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"the first argument is a pydantic-ai Agent, not {agent!r}")
        self._history = apply_policy(kwargs.get("message_history") or [], "allow")
        self._agent = agent
        self._prompt = user_prompt
        # Left to pydantic-ai, the name would be looked for in our frames, where the variable is called `agent`.
        self._kwargs: dict[str, Any] = {**kwargs, "infer_name": False}
        if not _is_cancellable(agent, self._kwargs.get("capabilities") or ()):
            self._kwargs["capabilities"] = [*(self._kwargs.get("capabilities") or ()), Cancellable()]
        self._life = Life()
        self._account = Account()
        self._closed = Latch()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._usage = StreamUsage()
        self._stopping: asyncio.Task[None] | None = None

    def cancel(self, reason: str | None = None) -> Closing:
        """Stop this run: its loop just ends, the provider is told at once, and nothing further starts.

        Idempotent, and a no-op once the run has ended. Safe from any thread, task or signal handler, and at any
        moment: before the run is entered, before the first token, while the server is silent, during a tool.

        Args:
            reason: Why, in at most 200 characters; it is kept as `cancel_reason` and in the message that was cut.

        Returns:
            What may be awaited, and need not be: it returns when the connection is closed and the usage settled.
            Awaited inside the run's own tool it returns at once.

        Raises:
            TypeError: If the reason is not a string.
            ValueError: If it is too long.
        """
        reason = checked_reason(reason)
        if self._life.apply(Event.CANCEL, reason):
            stream = self._account.stream
            if stream is not None:
                stream.cancel(reason)
            if self._loop is None:
                self._closed.set()
            else:
                with suppress(RuntimeError):  # that loop is closed: nothing of this run can be open
                    self._loop.call_soon_threadsafe(self._begin_stop)
        # A run that had ended has nothing of its own to close.
        return Closing(self._closed if self._is_cut else DONE, self._is_inside)

    def tell(self) -> None:
        """Tell the server of a run that was cut, for whoever keeps its loop from running meanwhile."""
        stream, loop = self._account.stream, self._loop
        if stream is not None and loop is not None and not loop.is_running():
            stream.tell()

    def _begin_stop(self) -> None:
        """Start what stopping needs the loop for, once; on the run's loop."""
        if self._stopping is None and not self._closed.is_set():
            self._stopping = asyncio.get_running_loop().create_task(self._stop())

    @property
    def _output_type(self) -> object:
        """What its output is, as it was asked for."""
        asked: object = self._kwargs.get("output_type")
        return asked or self._agent.output_type

    def _output_key(self, tool: str) -> str | None:
        """Under which name the arguments of this output tool hold an output that is no object; `None` for an object."""
        stream = self._account.stream
        tools = () if stream is None else stream.model_request_parameters.output_tools
        return next((output.outer_typed_dict_key for output in tools if output.name == tool), None)

    @abstractmethod
    async def _stop(self) -> None:
        """End whatever of the run is going on, and set `_closed`."""

    def _is_inside(self) -> bool:
        return is_inside(self._account)

    @property
    def _is_cut(self) -> bool:
        return self._life.state in CUT

    @property
    def cancelled(self) -> bool:
        """Whether the run was stopped before its end: by `cancel()`, or because it was left early."""
        return self._is_cut

    @property
    def cancel_reason(self) -> str | None:
        """Why it was stopped, `None` if it was not."""
        return self._life.reason

    @property
    def usage(self) -> StreamUsage:
        """The run's tokens so far, with bounds; one object, final once the run has ended.

        Calling it, `usage()`, returns it too. It counts what was delivered: a provider may bill more.
        """
        total, stream = copy(self._total()), self._account.stream
        if stream is not None:
            _ = stream.usage  # brings it up to date
        if self._is_cut:
            # pydantic-ai counts a step only once something of its answer arrived; the request was made all the same.
            total.requests = max(total.requests, self._account.requests())
        return StreamUsage.combine(total, self._account.usages, into=self._usage)

    @abstractmethod
    def _total(self) -> RunUsage:
        """pydantic-ai's own sum for this run, the response in flight included."""

    def _with_cut_response(self, messages: Sequence[ModelMessage]) -> list[ModelMessage]:
        """The messages of a run that did not end well, with the response that was cut if one was asked for."""
        stream = self._account.stream
        if stream is None or stream.is_whole or (messages and _is_cut_response(messages[-1])):
            return list(messages)
        response = stream.get()
        context = self._account.context
        if context is not None:
            response = replace(response, run_id=context.run_id, conversation_id=context.conversation_id)
        return [*messages, response]


def _is_cut_response(message: ModelMessage) -> bool:
    return isinstance(message, ModelResponse) and message.state in ("interrupted", "incomplete")


def _is_cancellable(agent: AbstractAgent[Any, Any], capabilities: Sequence[object]) -> bool:
    """Whether the agent, or this run of it, has the capability already: its `history=` wins then."""
    found: list[AbstractCapability[Any]] = []
    agent.root_capability.apply(found.append)
    for capability in capabilities:
        if isinstance(capability, AbstractCapability):
            capability.apply(found.append)  # pyright: ignore[reportUnknownMemberType]
    return any(isinstance(capability, Cancellable) for capability in found)
