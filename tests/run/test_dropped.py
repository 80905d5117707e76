"""A run that was entered and dropped is ended soon after, and says where it was made."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import FunctionToolCallEvent

from cancelstream import run_stream, run_stream_events
from cancelstream.testing import Answer, Silence, StartServer, Text, ToolCall

from .conftest import MakeAgent

LIMIT = 20.0
MORE = Answer(Text("Hello", " there", Silence()))


def run_text(agent: Agent[Any, Any]) -> tuple[Any, Callable[[Any], AsyncIterator[Any]]]:
    return run_stream(agent, "Hi"), lambda run: run.stream_text(delta=True, debounce_by=None)


def run_events(agent: Agent[Any, Any]) -> tuple[Any, Callable[[Any], AsyncIterator[Any]]]:
    return run_stream_events(agent, "Hi"), aiter


@pytest.mark.parametrize("door", [run_text, run_events])
async def test_a_run_that_is_dropped(
    door: Callable[..., tuple[Any, Callable[[Any], AsyncIterator[Any]]]],
    scripted_server: StartServer,
    make_agent: MakeAgent,
) -> None:
    """An `__aenter__` without its exit: a warning names the place, the provider is told, and no task is left."""
    server = scripted_server(MORE)
    before = asyncio.all_tasks()

    async def forget() -> None:
        run, read = door(make_agent(server))
        await run.__aenter__()
        await anext(read(run))

    with pytest.warns(ResourceWarning, match=r"dropped without being left, made at .*test_dropped\.py:\d+, in run_"):
        await asyncio.create_task(forget())
    await server.records[0].until_disconnected(LIMIT)
    while asyncio.all_tasks() - before:
        await asyncio.sleep(0)


@pytest.mark.parametrize("door", [run_text, run_events])
async def test_a_generator_around_a_run(
    door: Callable[..., tuple[Any, Callable[[Any], AsyncIterator[Any]]]],
    scripted_server: StartServer,
    make_agent: MakeAgent,
) -> None:
    """One that is dropped leaves the run by itself: nothing of the run's warns, and nothing is left."""
    server = scripted_server(MORE)
    before = asyncio.all_tasks()

    async def generator() -> AsyncIterator[Any]:
        run, read = door(make_agent(server))
        async with run:
            async for item in read(run):
                yield item

    async def forget() -> None:
        items = generator()
        await anext(items)

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        await asyncio.create_task(forget())
        await server.records[0].until_disconnected(LIMIT)
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)
        gc.collect()
    assert not [str(warning.message) for warning in told if issubclass(warning.category, ResourceWarning)]


@pytest.mark.parametrize("door", [run_text, run_events])
async def test_a_run_that_was_never_entered(
    door: Callable[..., tuple[Any, Callable[[Any], AsyncIterator[Any]]]],
    scripted_server: StartServer,
    make_agent: MakeAgent,
) -> None:
    """Nothing of it was begun, so it may be dropped."""
    server = scripted_server(MORE)
    door(make_agent(server))
    gc.collect()
    assert not server.records


async def test_a_run_is_dropped_while_a_tool_runs(scripted_server: StartServer, make_agent: MakeAgent) -> None:
    """The tool is cancelled, and no further request is made."""
    server = scripted_server(Answer(ToolCall("wait", "{}")), MORE)
    agent = make_agent(server)
    started, cancelled = asyncio.Event(), asyncio.Event()

    @agent.tool_plain
    async def wait() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    before = asyncio.all_tasks()

    async def forget() -> None:
        run = run_stream_events(agent, "Hi")
        await run.__aenter__()
        while not isinstance(await anext(run), FunctionToolCallEvent):
            pass
        await started.wait()

    async with asyncio.timeout(LIMIT):
        with pytest.warns(ResourceWarning, match="dropped without being left"):
            await asyncio.create_task(forget())
        await cancelled.wait()
        while asyncio.all_tasks() - before:
            await asyncio.sleep(0)
    assert len(server.records) == 1
