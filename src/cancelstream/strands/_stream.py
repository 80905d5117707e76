"""`stream_async()`: strands' own, as an object that can be cancelled.

The run itself is `_run.py`'s. Here its events go through the filter, if one is wanted, and are handed out: each first
to the agent's callback handler, then to the iterating code.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from collections.abc import AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

from pydantic_ai.usage import RunUsage
from strands import Agent
from strands.agent import AgentResult
from strands.multiagent.base import MultiAgentBase

from .._closing import Closing
from .._errors import named
from .._final_turn import FinalTurnFilter, FinalTurnOnly, TextRetracted
from .._run import TextSoFar, pieces_of, texts_of
from .._state import Event, State
from .._usage import StreamUsage, combine
from ._run import AgentRun
from ._text import RunningText

__all__ = ("CancellableAgentStream", "stream_async")


class CancellableAgentStream:
    """The events of a strands agent's run, and a `cancel()`. Made by `stream_async()`.

    Use it as `async with stream_async(...) as stream`, so that leaving the block ends the run: the agent is free then.
    A stream belongs to the loop that it is first used in, and one task pulls at a time.
    """

    def __init__(self, agent: Any, prompt: Any, final_turn_only: FinalTurnOnly, kwargs: dict[str, Any]) -> None:
        if final_turn_only not in (False, True, "retract"):
            raise ValueError(f"final_turn_only must be False, True or 'retract', not {named(final_turn_only)}")
        if not isinstance(agent, Agent | MultiAgentBase):
            raise TypeError(f"the first argument is a strands Agent, Graph or Swarm, not {named(agent)}")
        if final_turn_only and not isinstance(agent, Agent):
            raise ValueError(
                f"final_turn_only is for one agent: a {type(agent).__name__} passes on the events of several, and only "
                "you know whose answer is the final one"
            )
        self._final_turn_only: FinalTurnOnly = final_turn_only
        self._filter = FinalTurnFilter(final_turn_only) if final_turn_only else None
        self._run = AgentRun(agent, prompt, kwargs)
        self._ready: deque[dict[str, Any]] = deque()
        self._is_over = False
        self._error: Exception | None = None
        self._usage = StreamUsage()

    # --- reading ----------------------------------------------------------------------------------------------

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        run = self._run
        while not self._ready:
            if self._is_over:
                error, self._error = self._error, None
                raise StopAsyncIteration if error is None else error
            await self._read()
        event = self._ready.popleft()
        try:
            run.context.run(run.handler.hand_on, event)
        except BaseException:
            await self.close()  # as in strands, an error of the handler's ends the run
            raise
        return event

    async def _read(self) -> None:
        """Make ready what the run gives next, or what is left to hand out at its end."""
        try:
            event = await self._run.next()
        except StopAsyncIteration:
            self._is_over = True
            self._release("cancelled" if self._run.life.state is State.INTERRUPTED else "stop")
        except Exception as error:
            if not self._run.is_finished:
                raise
            # Raised when what was held has been handed out.
            self._is_over = True
            self._error = error
            self._release("error")
        else:
            if self._filter is None:
                self._ready.append(event)
                return
            result = event.get("result")
            if isinstance(result, AgentResult) and result.stop_reason == "tool_use":
                self._release("tool_use")
            self._let_through(self._filter.feed(event))

    def _release(self, reason: str) -> None:
        # A consumer that has left cannot take it.
        if self._filter is not None and self._run.life.state is not State.LEFT:
            self._let_through(self._filter.flush(reason))

    def _let_through(self, events: Iterable[Any]) -> None:
        self._ready.extend({"text_retracted": e} if isinstance(e, TextRetracted) else e for e in events)

    def stream_text(self, *, delta: bool = False) -> AsyncIterator[str]:
        """Stream the agent's text, and nothing else of its events; ends without an error when the run is cancelled.

        With `final_turn_only` this is the answer and nothing that was said on the way to it. Without it, it is what
        was said in all turns, a blank line between two.

        Args:
            delta: Whether to yield each piece by itself, or the whole text so far (the default). With
                `final_turn_only='retract'` only the text so far can be had, for a piece cannot be taken back.

        Raises:
            ValueError: If pieces are asked for together with `'retract'`.
        """
        return texts_of(self, RunningText(), delta=delta, final_turn_only=self._final_turn_only)

    def _pieces(self) -> AsyncIterator[str | TextSoFar]:
        """As `stream_text(delta=True)`, for a reader that can take text back."""
        return pieces_of(self, RunningText())

    # --- stopping ---------------------------------------------------------------------------------------------

    def cancel(self, reason: str | None = None) -> Closing:
        """Stop this run: its loop just ends, the provider is told at once, and nothing further starts.

        Idempotent, and a no-op once the run has ended: it never reaches the agent's next one. Safe from any thread,
        task or signal handler, and at any moment: before it begins, while the provider is silent, during a tool.
        With `final_turn_only`, text that was held is handed out before the loop ends.

        Args:
            reason: Why, in at most 200 characters; it is kept as `cancel_reason` and with the message that was cut.

        Returns:
            An awaitable, which need not be awaited: it returns when the connection is closed, the usage settled and the
            agent free. Awaited inside the run's own tool it returns at once.

        Raises:
            TypeError: If the reason is not a string.
            ValueError: If it is too long.
        """
        return self._run.cancel(reason)

    async def close(self) -> None:
        """End the run if it has not ended, and wait until the agent is free; idempotent.

        Called inside the run's own tool it returns at once.
        """
        self._ready.clear()
        await self._run.leave("left")

    aclose = close

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ready.clear()
        await self._run.leave("task_cancelled" if isinstance(error, asyncio.CancelledError) else "left")

    def __del__(self) -> None:
        run: AgentRun | None = getattr(self, "_run", None)
        if run is None or not run.is_open:
            return
        run.claim(Event.LEAVE, "left")
        run.stop()
        warnings.warn(
            "a strands stream was dropped before its end: use `async with`, or `await stream.close()`",
            ResourceWarning,
            stacklevel=2,
            source=self,
        )

    # --- what it was ------------------------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether the run was cut: by `cancel()`, or because it was left before its answer was whole."""
        return self._run.is_cut

    @property
    def cancel_reason(self) -> str | None:
        """Why it was stopped, `None` if it was not."""
        return self._run.life.reason

    @property
    def usage(self) -> StreamUsage:
        """The run's tokens so far, with bounds; one object, final once the run has ended.

        Calling it, `usage()`, returns it too. It counts what was delivered to this agent, or to the agents of a graph
        or swarm: a provider may bill more.
        """
        invocation = self._run.invocation
        usages = [call.meter.usage for call in invocation.calls]
        requests = sum(usage._counts for usage in usages)
        total = RunUsage(requests=requests, tool_calls=invocation.tool_calls)
        for usage in usages:
            total.incr(usage)
        return combine(total, usages, into=self._usage, cut=self.cancelled)


def stream_async(
    agent: Agent | MultiAgentBase, prompt: Any = None, *, final_turn_only: FinalTurnOnly = False, **kwargs: Any
) -> CancellableAgentStream:
    """Make a run of a strands agent that can be cancelled from now on; nothing is sent before it is iterated.

    `async with stream_async(agent, "...") as stream: async for event in stream: ...` iterates the dictionaries of
    strands' own `agent.stream_async`, unchanged and in order. The agent's callback handler is called with each just
    before it is handed out, and with nothing else.

    After `cancel()`, a `break` or an error the agent can be called again at once. The part that had arrived is the last
    message in `agent.messages`, with a record in its `metadata` that says it was cut, in a form that strands and the
    providers take back: it may be sent as it is.

    Args:
        agent: The agent, or a `Graph` or `Swarm` of agents, whose events are passed through.
        prompt: As for the agent's own `stream_async`.
        final_turn_only: `True` holds the text of a turn, the events with `data`, until it is known that the model does
            not go on to call tools, and drops it if it does. `'retract'` lets it through, and adds
            `{'text_retracted': TextRetracted}` when it has to be taken back. Every other event passes at once. So
            reasoning of earlier turns still shows, and the `event` and `message` dictionaries, which carry the same
            text once more, pass unchanged. For one agent only.
        kwargs: Whatever else the agent's own `stream_async` takes.

    Raises:
        TypeError: If `agent` is none of strands'.
        ValueError: If `final_turn_only` is none of its values, or is asked of a graph or swarm.
    """
    return CancellableAgentStream(agent, prompt, final_turn_only, kwargs)
