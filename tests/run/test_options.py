"""The keyword arguments of a run: pydantic-ai's own, refused by name where there is none, and the agent's name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any, get_type_hints

import pydantic_ai
import pytest
from pydantic_ai import Agent
from pydantic_ai.agent import AbstractAgent, WrapperAgent
from pydantic_ai.agent import abstract as pydantic_ai_agent
from pydantic_ai.models.test import TestModel

from cancelstream import RunOptions, run_stream, run_stream_events, sync
from cancelstream._run import _options

DOORS: list[Callable[..., Any]] = [run_stream, run_stream_events, sync.run_stream]
each_door = pytest.mark.parametrize("door", DOORS, ids=["run_stream", "run_stream_events", "sync.run_stream"])


def hints(of: Any) -> dict[str, Any]:
    """Annotations with the names that a module imports for type checkers only."""
    names = {**vars(pydantic_ai_agent), **vars(pydantic_ai), "_instructions": pydantic_ai._instructions}
    for module in ("agent", "models", "toolsets", "workspaces", "_instructions"):
        names |= {name: value for name, value in vars(getattr(pydantic_ai, module)).items() if name not in names}
    return get_type_hints(of, globalns={**names, **vars(_options)}, localns=names)


@pytest.mark.parametrize("method", ["run_stream", "run_stream_events"])
def test_the_options_are_those_of_pydantic_ai(method: str):
    """`RunOptions` has each keyword argument of the installed pydantic-ai, with its type, and no other."""
    theirs = hints(getattr(AbstractAgent, method))
    for name in ("user_prompt", "output_type", "event_stream_handler", "return"):
        theirs.pop(name, None)  # these are in the doors' own signatures
    assert hints(RunOptions) == theirs


@each_door
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("message_histroy", "takes no argument 'message_histroy': did you mean 'message_history'?"),
        ("dep", "takes no argument 'dep': did you mean 'deps'?"),
        ("zzz", r"takes no argument 'zzz': it takes user_prompt, output_type, .*usage_limits"),
    ],
)
def test_an_unknown_option_is_refused_at_the_call(door: Callable[..., Any], given: str, said: str):
    """The error names it and what is near, before anything of the run exists."""
    with pytest.raises(TypeError, match=said) as caught:
        door(Agent(TestModel(), name="agent"), "go", **{given: "a value that is not repeated"})
    assert "not repeated" not in str(caught.value)


def test_an_option_that_the_agents_own_method_takes():
    """An agent class of one's own may take more, by name or all of them."""

    class More(WrapperAgent[None, str]):
        @asynccontextmanager
        async def run_stream(self, *args: Any, tenant: str, **kwargs: Any) -> Any:
            yield

        def run_stream_events(self, user_prompt: Any = None, *, tenant: str = "", **kwargs: Any) -> Any: ...

    agent = More(Agent(TestModel(), name="agent"))
    for door in DOORS:
        door(agent, "go", tenant="one")

    class Named(WrapperAgent[None, str]):
        @asynccontextmanager
        async def run_stream(self, user_prompt: Any = None, *, tenant: str = "") -> Any:
            yield

    named = Named(Agent(TestModel(), name="agent"))
    run_stream(named, "go", tenant="one")
    with pytest.raises(TypeError, match="takes no argument 'tenants': did you mean 'tenant'"):
        run_stream(named, "go", tenants="one")


async def plain_name(door: Callable[..., Any]) -> str | None:
    """The name that pydantic-ai's own method gives an agent that is held in a variable called `weather`."""
    weather = Agent(TestModel())
    async with (weather.run_stream_events if door is run_stream_events else weather.run_stream)("go"):
        pass
    return weather.name


@each_door
def test_an_agent_is_named_after_its_variable(door: Callable[..., Any]):
    """As in pydantic-ai: the variable of the caller, else of its module; a name that it has stays."""
    weather = Agent(TestModel())
    door(weather, "go")
    assert weather.name == asyncio.run(plain_name(door)) == "weather"
    door(of_the_module, "go")
    assert of_the_module.name == "of_the_module"
    of_the_module.name = None
    door(of_the_module, "go", infer_name=False)
    assert of_the_module.name is None
    named = Agent(TestModel(), name="chosen")
    door(named, "go")
    assert named.name == "chosen"
    door([Agent(TestModel())][0], "go")


of_the_module = Agent(TestModel())


@each_door
def test_an_agent_around_another_is_named(door: Callable[..., Any]):
    """A `WrapperAgent` gives its name on to the agent inside."""
    inside = Agent(TestModel())
    around = WrapperAgent(inside)
    door(around, "go")
    assert inside.name == "around"
