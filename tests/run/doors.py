"""The doors of a run, pydantic-ai's own and ours, so that a test can ask each for the same and compare."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.instrumented import InstrumentationSettings

from cancelstream import Cancellable, run_stream, run_stream_events

Open = Callable[..., AbstractAsyncContextManager[Any]]


def plain_agent(model: Model, *, instrument: InstrumentationSettings | None = None, **kwargs: Any) -> Agent[None, Any]:
    """An agent as pydantic-ai makes it; it has a name, so that spans and messages have the same one."""
    agent = Agent(model, **{"name": "agent", **kwargs})
    agent.instrument = instrument
    return agent


def capable_agent(model: Model, **kwargs: Any) -> Agent[None, Any]:
    """The same agent with the capability."""
    return plain_agent(model, **{**kwargs, "capabilities": [*kwargs.get("capabilities", ()), Cancellable()]})


STREAM_DOORS: dict[str, Open] = {
    "plain": lambda model, **kwargs: plain_agent(model, **kwargs).run_stream("go"),
    "capability": lambda model, **kwargs: capable_agent(model, **kwargs).run_stream("go"),
    "run_stream": lambda model, **kwargs: run_stream(plain_agent(model, **kwargs), "go"),
}
"""Each takes a model and what an agent takes, and opens a streamed answer."""

EVENT_DOORS: dict[str, Open] = {
    "plain": lambda model, **kwargs: plain_agent(model, **kwargs).run_stream_events("go"),
    "capability": lambda model, **kwargs: capable_agent(model, **kwargs).run_stream_events("go"),
    "run_stream_events": lambda model, **kwargs: run_stream_events(plain_agent(model, **kwargs), "go"),
}
"""Each takes a model and what an agent takes, and opens the events of a run."""
