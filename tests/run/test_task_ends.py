"""Runs whose task ends, or is another one than the reader's: the end of `asyncio.run()`, and generators."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import run_stream, run_stream_events
from cancelstream.testing import Answer, ScriptedServer, Silence, Text
from cancelstream.testing._plugin import StartServer

from .conftest import MakeAgent

LIMIT = 20
STUCK = Answer(Text("one", " two", Silence()))


@pytest.mark.parametrize("door", [run_stream, run_stream_events])
def test_the_loop_ends_while_a_run_is_read(door: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """A task that reads a run when `asyncio.run()` ends is cancelled without a word in asyncio's log."""

    async def read(run: Any, reading: asyncio.Event) -> None:
        async with run as result:
            async for _ in result.stream_text():
                reading.set()

    async def main(server: ScriptedServer, tasks: list[asyncio.Task[None]]) -> None:
        client = AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client)))
        reading = asyncio.Event()
        tasks.append(asyncio.create_task(read(door(agent, "go"), reading)))
        await asyncio.wait_for(reading.wait(), LIMIT)

    with caplog.at_level(logging.WARNING, "asyncio"):
        for _ in range(3):
            tasks: list[asyncio.Task[None]] = []
            with ScriptedServer(STUCK) as server:
                asyncio.run(main(server, tasks))
                assert tasks[0].cancelled()
                server.records[0].wait_disconnected(LIMIT)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("how", ["closed by another task", "dropped"])
async def test_a_generator_around_the_events(scripted_server: StartServer, make_agent: MakeAgent, how: str) -> None:
    """An async generator around `run_stream_events` may be closed by any task, and by the garbage collector."""
    server = scripted_server(STUCK)
    run = run_stream_events(make_agent(server), "go")

    async def words() -> AsyncGenerator[str]:
        async with run as events:
            async for text in events.stream_text(delta=True):
                yield text

    generator = words()
    assert await anext(generator) == "one"
    if how == "dropped":
        del generator
        gc.collect()
    else:
        await asyncio.create_task(generator.aclose())
    assert await server.records[0].until_disconnected(LIMIT)
    while not run._closed.is_set():
        await asyncio.sleep(0)
    assert (run.cancelled, run.cancel_reason) == (True, "left")
    assert run.all_messages()[-1].state == "interrupted"


@pytest.mark.parametrize("how", ["cancel", "break"])
async def test_stopped_when_the_provider_has_said_how_it_ended(
    scripted_server: StartServer, make_agent: MakeAgent, how: str
) -> None:
    """Before the usage has come, a stop changes nothing: the run reads on to its end, and the counts are reported."""
    server = scripted_server(Answer(Text("one", " two")))
    run = run_stream(make_agent(server), "go")
    async with run as result:
        async for message in result.stream_response(debounce_by=None):
            if message.finish_reason is not None:
                if how == "break":
                    break
                run.cancel("too late")
    assert (run.cancelled, run.usage.complete, run.usage.output.source) == (False, True, "reported")
    assert run.all_messages()[-1].state == "complete"
    assert await run.get_output() == "one two"
