"""A durable engine's wrapper of an agent cannot be stopped, and the error says what can; no engine is needed here."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UserError
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel

from cancelstream import Cancellable, run_stream, run_stream_events, sync
from cancelstream._upstream.pydantic_ai import durable_engine

ENGINES = ("DBOS", "Prefect", "Temporal")


def of_engine(engine: str, base: Any, **members: Any) -> Any:
    """A class as pydantic-ai has it for this engine."""
    module = f"pydantic_ai.durable_exec.{engine.lower()}._x"
    return type(f"{engine}X", (base,), {"__module__": module, **members})


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("door", [run_stream, run_stream_events, sync.run_stream])
@pytest.mark.parametrize("is_guarded", [False, True])
def test_a_wrapped_agent(engine: str, door: Any, is_guarded: bool) -> None:
    """It is refused before anything runs, by an error that names what to write."""
    agent = Agent(TestModel(), name="a", capabilities=[Cancellable()] if is_guarded else [])
    wrapped = of_engine(engine, WrapperAgent)(agent)
    for given in (wrapped, WrapperAgent(wrapped)):
        with pytest.raises(UserError, match=rf"Cancellable .*capabilities=\[{engine}Durability\(\), Cancellable\(\)\]"):
            door(given, "x")


async def test_the_run_of_a_wrapped_agent_that_has_the_capability() -> None:
    """Its own methods say it, too: they run the model that the engine has wrapped."""
    model = of_engine("DBOS", WrapperModel)(TestModel())
    agent = Agent(model, capabilities=[Cancellable()])
    with pytest.raises(UserError, match=r"capabilities=\[DBOSDurability\(\), Cancellable\(\)\]"):
        await agent.run("x")


@pytest.mark.parametrize("inside", [True, False])
async def test_a_durable_agent_without_the_capability(inside: bool) -> None:
    """Inside a workflow nothing can be added to its run any more; outside it is as any other."""
    agent = Agent(TestModel(), capabilities=[of_engine("DBOS", AbstractCapability, in_durable_context=inside)()])
    if inside:
        with pytest.raises(UserError, match=r"workflow of DBOS.*capabilities=\[DBOSDurability\(\), Cancellable\(\)\]"):
            run_stream(agent, "x")
    else:
        async with run_stream(agent, "x") as result:
            assert await result.get_output() == "success (no tool calls)"


async def test_a_durable_agent_with_the_capability() -> None:
    """That is the way that works, inside a workflow and outside."""
    durability = of_engine("DBOS", AbstractCapability, in_durable_context=True)()
    agent = Agent(TestModel(), capabilities=[durability, Cancellable()])
    async with run_stream(agent, "x") as result:
        assert await result.get_output() == "success (no tool calls)"


def test_other_wrappers_are_welcome() -> None:
    """Only an engine's is refused."""
    run_stream(WrapperAgent(Agent(TestModel())), "x")
    for thing in (Agent(TestModel()), WrapperModel(TestModel()), None, "pydantic_ai.durable_exec.dbos"):
        assert durable_engine(thing) is None


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("file", "name"),
    [("_agent.py", "Agent(WrapperAgent"), ("_model.py", "Model(WrapperModel"), ("_durability.py", "Durability(")],
)
def test_where_pydantic_ai_keeps_them(engine: str, file: str, name: str) -> None:
    """The canary: their classes are where they are looked for."""
    spec = find_spec("pydantic_ai.durable_exec")
    assert spec is not None
    [folder] = spec.submodule_search_locations or ()
    source = (Path(folder) / engine.lower() / file).read_text(encoding="utf-8")
    assert f"class {engine}{name}" in source


def test_the_real_ones() -> None:
    """Where an engine is installed its own class is known."""
    pytest.importorskip("dbos", reason="needs pydantic-ai-slim[dbos]")
    dbos: Any = import_module("pydantic_ai.durable_exec.dbos")
    assert durable_engine(dbos.DBOSDurability()) == "DBOS"
    assert durable_engine(object.__new__(dbos.DBOSAgent)) == "DBOS"
