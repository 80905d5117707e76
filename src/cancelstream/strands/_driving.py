"""How strands' generator is driven: every step in one context, and with a quiet callback handler at first.

strands opens spans in one step and closes them in another, and the context has to be the same. It calls its callback
handler before it yields, so what it finds as the handler is a quiet one, and the agent's own is called with what is
really handed out. strands looks the handler up in the first moment of a run, before it waits for anything.

Known limit: while a run waits for another one with the same `idempotency_token`, strands looks the handler up later,
finds the agent's own, and calls it itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from typing import Any, Final

from strands import Agent

from .._interrupt import DEADLINE, Interrupted, Interruptible, Pull

__all__ = ("LATE_LIMIT", "Handler", "InContext", "limited", "run_on")

LATE_LIMIT: Final = 0.05
"""Seconds that a model or a tool that was stopped between two things goes on until it waits. The 64 KB of chunks that
may lie in a buffer need about 40 ms. Code that computes without ever waiting is then closed, not interrupted."""


class Handler:
    """The quiet callback handler that strands finds, and the one that is called with what is handed out.

    Args:
        agent: The strands agent, graph or swarm.
        kwargs: What its `stream_async` is to be called with; a handler in it counts, as it does for strands.
    """

    def __init__(self, agent: Any, kwargs: dict[str, Any]) -> None:
        self._agent = agent
        self._own: Callable[..., object] | None = kwargs.get("callback_handler")
        self._is_called = False
        self.is_given = "callback_handler" in kwargs
        self.is_looked_up = self.is_given or not isinstance(agent, Agent)
        """Whether strands has looked for a handler, or has no need to."""
        self.kwargs: dict[str, Any] = {**kwargs, "callback_handler": self} if self.is_given else kwargs
        """The arguments to call strands with instead."""

    def __call__(self, **_event: Any) -> None:
        self._is_called = True

    def hand_on(self, event: dict[str, Any]) -> None:
        """Call the handler, unless strands calls it itself."""
        if self._is_called and self._own is not None:
            self._own(**event)

    def give_back(self, state: dict[str, Any]) -> None:
        """Put the handler that was given where strands has put us: it passes on whatever it is called with."""
        if self.is_given:
            state["callback_handler"] = self._own

    def step_in(self) -> None:
        """Be the agent's handler, for the moment in which strands looks it up."""
        self.is_looked_up = True
        self._own = self._agent.callback_handler
        self._agent.callback_handler = self

    def step_out(self) -> None:
        """Put the agent's handler back, unless another one was set meanwhile."""
        if self._agent.callback_handler is self:
            self._agent.callback_handler = self._own


class InContext(Coroutine[Any, Any, Any]):
    """A coroutine whose every step runs in one context, in every task that drives it.

    Args:
        coroutine: What is run.
        context: Where.
        handler: Is put in place for the first step.
    """

    __slots__ = ("_context", "_coroutine", "_handler")

    def __init__(self, coroutine: Any, context: Context, handler: Handler | None = None) -> None:
        self._coroutine = coroutine
        self._context = context
        self._handler = handler

    def send(self, value: Any) -> Any:
        """Go on."""
        handler, self._handler = self._handler, None
        if handler is None:
            return self._context.run(self._coroutine.send, value)
        handler.step_in()
        try:
            return self._context.run(self._coroutine.send, value)
        finally:
            handler.step_out()

    def throw(self, typ: Any, val: Any = None, tb: Any = None) -> Any:
        """Go on with an error."""
        return self._context.run(self._coroutine.throw, typ if val is None else val)

    def close(self) -> None:
        """Do not go on."""
        self._context.run(self._coroutine.close)

    def __await__(self) -> Generator[Any, Any, Any]:
        raise TypeError("this is driven by hand")  # pragma: no cover - a coroutine has to have one


async def limited(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Await it for `DEADLINE` seconds, then interrupt it."""
    guard = Interruptible()
    timer = asyncio.get_running_loop().call_later(DEADLINE, guard.cancel)
    try:
        await guard.run(coroutine)
    finally:
        timer.cancel()


async def run_on(step: Callable[[], Coroutine[Any, Any, Any]], seconds: float, deadline: float = DEADLINE) -> None:
    """Take steps until one would wait, and interrupt it there: it unwinds every layer down from there.

    Closing a generator that stands at a `yield` reaches that generator alone. The ones inside it, and what they hold
    open, are left to the garbage collector.

    Args:
        step: Takes a step.
        seconds: How long steps are taken that do not wait.
        deadline: Seconds for what is interrupted to unwind.
    """
    pull = Pull(lambda _result: None)
    pull.stopping = True
    pull.rearm()
    timer = asyncio.get_running_loop().call_later(seconds + deadline, pull.abandon)
    until = time.monotonic() + seconds
    try:
        with suppress(StopAsyncIteration, Interrupted, Exception):
            while time.monotonic() < until:
                await pull.run(step())
    finally:
        timer.cancel()
