"""One run of strands' generator: pulled by hand, stopped from anywhere, always brought to its end.

`cancel()` claims the end of the run's life and has the loop stop what is going on: the model's calls and the tools,
and where there is none, whatever else the pull waits for. Then strands is run to its end, unseen: by the pull that is
going on, or by a task if no pull is going on. So its hooks run, its spans are closed and its agent is free. If strands
has no time to end by itself, we interrupt it, and put right what it did not get to (`_stages.py`).

Every step runs in one context (`_driving.py`), so that the finisher runs in the one that the spans were opened in.

Known limit. A generator that is interrupted and does not end is let go after a second, and keeps its agent's lock.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from typing import Any, Final, cast
from weakref import WeakKeyDictionary, ref

import anyio
from strands import Agent

from .._closing import Closing, Latch
from .._interrupt import DEADLINE, Interruptible
from .._state import Event, Life, checked_reason
from .._upstream.strands import wants_output
from ._driving import Handler, InContext, limited, run_on
from ._stages import Invocation, current, prepare

__all__ = ("AgentRun",)

FINISH_TIMEOUT: Final = 10.0
"""Seconds that finishing may take, hooks included: anyio's guide names this for cleaning up under a shield."""

HOOKS_TIMEOUT: Final = 5.0
"""Seconds of them that strands has to end by itself after a cancel: its hooks may have a session to store."""

_logger = logging.getLogger("cancelstream")


class AgentRun:
    """One run, from before its first event until its agent is free. It belongs to the loop it is first used in.

    Args:
        agent: A strands agent, graph or swarm.
        prompt: As for its `stream_async`.
        kwargs: What else that takes.
    """

    def __init__(self, agent: Any, prompt: Any, kwargs: dict[str, Any]) -> None:
        self._agent = agent
        self._prompt = prompt
        self._kwargs = kwargs
        self.life = Life()
        self.handler = Handler(agent, kwargs)
        self._guard = Interruptible()
        self.invocation = Invocation(
            _agents_of(agent),
            self.life,
            self._guard.cancel,
            self.handler.give_back,
            wants_more=not isinstance(agent, Agent) or wants_output(agent, kwargs),
        )
        self.context = contextvars.copy_context()
        self._events: AsyncGenerator[dict[str, Any]] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._puller: asyncio.Task[Any] | None = None
        self._finisher: asyncio.Task[Any] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._closed = Latch()

    @property
    def is_cut(self) -> bool:
        """Whether it was stopped before its end."""
        return self.life.is_cut

    @property
    def is_finished(self) -> bool:
        """Whether it is over, and its agent free."""
        return self._closed.is_set()

    @property
    def is_open(self) -> bool:
        """Whether the run has begun and no finisher is ending it."""
        return self._events is not None and self._finisher is None and not self._closed.is_set()

    # --- pulling ----------------------------------------------------------------------------------------------

    async def next(self) -> dict[str, Any]:
        """The next event. With the last one the run is finished and the agent free.

        Raises:
            StopAsyncIteration: There is none: the run has ended, or was cut.
            RuntimeError: Another task is pulling.
        """
        if self._finisher is not None or self._closed.is_set():
            await self._closed.wait()
            raise StopAsyncIteration
        if self._puller is not None:
            raise RuntimeError("another task is waiting for the next event of this stream: one pulls at a time")
        self._puller = cast("asyncio.Task[Any]", asyncio.current_task())
        try:
            if self._events is None or self._is_stopped:
                await self._begin()
            event = await self._guard.run(self._step())
            if self._is_stopped:
                raise StopAsyncIteration
            if "result" in event:  # nothing follows it
                self.life.apply(Event.END)
                await self._finish()
        except BaseException as error:  # noqa: BLE001 - what it means is decided there
            await self._end(error, self._puller)
            raise StopAsyncIteration from None
        finally:
            self._puller = None
        return event

    async def _begin(self) -> None:
        """Begin the run, once, when the agent's run before it has been finished."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()  # first, and look second: `cancel()` does it the other way round
        if self._is_stopped:
            await asyncio.sleep(0)  # a cancellation of the task's own, if one is pending, comes first
            raise StopAsyncIteration
        before = _latest.get(self._agent, _no_run)()
        if before is not None and before._is_stopped and before._loop is not None and not before._loop.is_closed():
            await self._guard.run(before._closed.wait())
        _latest[self._agent] = ref(self)
        for agent in self.invocation.agents:
            prepare(agent)
        self.invocation.ignores_cancel = _was_cancelled_idle(self._agent)
        self.context = contextvars.copy_context()
        self.context.run(current.set, self.invocation)
        self._events = self._agent.stream_async(self._prompt, **self.handler.kwargs)

    def _step(self) -> Coroutine[Any, Any, dict[str, Any]]:
        """A step of strands' generator, to be driven."""
        events = cast("AsyncGenerator[dict[str, Any]]", self._events)
        handler = None if self.handler.is_looked_up else self.handler
        return InContext(events.__anext__(), self.context, handler)

    async def _end(self, error: BaseException, puller: asyncio.Task[Any]) -> None:
        """The pull raised: finish, and raise it again if it is the consumer's to see."""
        is_seen = True
        if isinstance(error, asyncio.CancelledError):
            is_seen = puller.cancelling() > 0 or not self._is_stopped
            self.claim(Event.LEAVE, "task_cancelled")
        elif isinstance(error, StopAsyncIteration):
            is_seen = False
            self.life.apply(Event.END)
        elif isinstance(error, Exception):
            is_seen = self.life.apply(Event.ERROR)  # once it is cut, it is what our stopping made of it
        else:
            raise error
        await self._finish()
        if is_seen:
            raise error

    # --- stopping ---------------------------------------------------------------------------------------------

    def cancel(self, reason: str | None) -> Closing:
        """Stop it; any thread. Await the result to wait until the agent is free."""
        reason = checked_reason(reason)
        if self.claim(Event.CANCEL, reason):
            self.stop()
        return Closing(self._closed, self._is_inside)

    def claim(self, event: Event, reason: str) -> bool:
        """Apply a stop, which changes nothing once the run's answer is whole, and say whether there is one to make."""
        if not self.life.stop(event, reason, whole=self.invocation.is_answered):
            return False
        self.invocation.is_stopped = True
        return True

    @property
    def _is_stopped(self) -> bool:
        return self.is_cut or self.invocation.is_stopped

    async def leave(self, reason: str) -> None:
        """End it if it has not ended, and wait until the agent is free; at once when called inside its own tool."""
        self.claim(Event.LEAVE, reason)
        if self._closed.is_set():
            return
        if self._loop is asyncio.get_running_loop() and self._puller is None and self._finisher is None:
            await self._finish()
            return
        self.stop()
        if not self._is_inside():
            with anyio.move_on_after(FINISH_TIMEOUT, shield=True):
                await self._closed.wait()

    def stop(self) -> None:
        """Have the loop stop what is going on; any thread."""
        if self._loop is None:
            self._closed.set()  # nothing was begun
            return
        try:
            self._loop.call_soon_threadsafe(self._stop_soon)
        except RuntimeError:  # the loop is closed: nothing of this run can go on
            for call in self.invocation.calls:
                call.cut()
            self._closed.set()

    def _stop_soon(self) -> None:
        if self._closed.is_set() or self._finisher is not None:
            return
        if self._puller is None:
            self._finisher = asyncio.get_running_loop().create_task(self._finish(), name="cancelstream-strands")
        elif self.invocation.stop():
            self._limit()
        else:
            self._guard.cancel()

    def _limit(self) -> None:
        """Interrupt strands if it does not end by itself."""
        if self._deadline is None:
            # A node that is no agent of this process has none of our hooks, and can only be interrupted.
            seconds = HOOKS_TIMEOUT if isinstance(self._agent, Agent) else DEADLINE
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._guard.cancel)

    def _is_inside(self) -> bool:
        """Whether the caller runs inside this run, so that waiting for it would never end."""
        return current.get() is self.invocation or asyncio.current_task() in (self._puller, self._finisher)

    # --- finishing --------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        """Run strands to its end, unseen; close what it left open; put its history right."""
        self._finisher = asyncio.current_task()
        cancelled: asyncio.CancelledError | None = None
        with anyio.move_on_after(FINISH_TIMEOUT, shield=True):
            for step in (self._run_out, self._close_events, self._put_right):
                try:
                    await step()
                except asyncio.CancelledError as error:
                    cancelled = error
                except Exception as error:  # noqa: BLE001
                    names = (type(self._agent).__name__, type(error).__name__)
                    _logger.debug("finishing a run of a strands %s raised %s", *names)
        if self._deadline is not None:
            self._deadline.cancel()
        self.invocation.is_over = True
        self._closed.set()
        if cancelled is not None:
            raise cancelled

    async def _run_out(self) -> None:
        if self._events is None:
            return
        self._limit()
        if self._is_stopped and not self.invocation.stop():
            # It stands between two things, and goes as far as its first wait.
            await run_on(self._step, FINISH_TIMEOUT, HOOKS_TIMEOUT)
            return
        with suppress(StopAsyncIteration):
            while True:
                await self._guard.run(self._step())

    async def _close_events(self) -> None:
        """Close strands' generator, which has ended by itself unless it was interrupted between two events."""
        if self._events is not None:
            await limited(InContext(self._events.aclose(), self.context))

    async def _put_right(self) -> None:
        await limited(InContext(self.invocation.put_right(), self.context))


_latest: WeakKeyDictionary[Any, ref[AgentRun]] = WeakKeyDictionary()
"""The last run of each agent: the next one waits until it is finished."""


def _no_run() -> None:
    return None


def _agents_of(agent: Any) -> list[Agent]:
    """The agents whose calls belong to a run of this one: itself, or those in its nodes, however deep."""
    if isinstance(agent, Agent):
        return [agent]
    nodes: dict[str, Any] = getattr(agent, "nodes", None) or {}
    return [inner for node in nodes.values() for inner in _agents_of(getattr(node, "executor", None))]


def _was_cancelled_idle(agent: Any) -> bool:
    """Whether `agent.cancel()` was called when nothing was running, which strands keeps for the next run.

    A `cancel_signal=` that is given with the run is seen again by strands itself, wherever it looks.
    """
    return isinstance(agent, Agent) and agent.cancel_signal.is_set()
