"""A host drives an asynchronous generator step by step, in its own loop, and closes that loop when it has enough."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import CancellableStreamedResponse, PeekableAsyncStream, open_stream, run_stream, run_stream_events
from cancelstream.testing import Answer, ScriptedServer, StartServer, Text

LIMIT = 10.0

Door = Callable[[AsyncOpenAI], AsyncIterator[str]]


def stepwise(texts: AsyncIterator[str]) -> Iterator[str]:
    """As Streamlit's `st.write_stream` reads one: each step is a task, with a context, of its own."""
    loop = asyncio.new_event_loop()
    try:
        while True:
            yield loop.run_until_complete(anext(texts))  # type: ignore[arg-type]
    except StopAsyncIteration:
        loop.run_until_complete(loop.shutdown_asyncgens())  # the HTTP library's own
    finally:
        loop.close()


async def by_events(client: AsyncOpenAI) -> AsyncIterator[str]:
    agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
    async with run_stream_events(agent, "go") as result:
        async for text in result.stream_text(delta=True):
            yield text


async def by_run(client: AsyncOpenAI) -> AsyncIterator[str]:
    agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
    async with run_stream(agent, "go") as result:
        async for text in result.stream_text(delta=True, debounce_by=None):
            yield text


ASK: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "go"}]}


async def by_open_stream(client: AsyncOpenAI) -> AsyncIterator[str]:
    async with open_stream(client.chat.completions.create, **ASK) as stream:
        async for text in stream.stream_text(delta=True):
            yield text


async def by_from_openai(client: AsyncOpenAI) -> AsyncIterator[str]:
    opened = await client.chat.completions.create(**ASK, stream=True)
    async with CancellableStreamedResponse.from_openai(opened) as stream:
        async for text in stream.stream_text(delta=True):
            yield text


async def by_peekable(client: AsyncOpenAI) -> AsyncIterator[str]:
    async with PeekableAsyncStream(await client.chat.completions.create(**ASK, stream=True)) as stream:
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield chunk.choices[0].delta.content


DOORS = [by_events, by_open_stream, by_from_openai, by_peekable]


Ask = Callable[[Door, Answer], tuple[Iterator[str], ScriptedServer]]


@pytest.fixture
def ask(scripted_server: StartServer) -> Iterator[Ask]:
    """Ask a server of one's own by a client that is never closed: its loop is gone before it could be."""

    def start(door: Door, answer: Answer) -> tuple[Iterator[str], ScriptedServer]:
        server = scripted_server(answer)
        return stepwise(door(AsyncOpenAI(api_key="none", base_url=server.base_url, max_retries=0))), server

    yield start
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # asyncio's own, of the client's connection
        gc.collect()


@pytest.mark.parametrize("door", [by_run, *DOORS])
def test_a_whole_answer(door: Door, ask: Ask) -> None:
    """All of it passes."""
    steps, _ = ask(door, Answer(Text("a ", "b ", "c ")))
    assert "".join(steps) == "a b c "


@pytest.mark.parametrize("taken", [1, 3])
@pytest.mark.parametrize("door", [by_run, *DOORS])
def test_it_is_dropped_when_its_loop_is_closed(door: Door, taken: int, ask: Ask) -> None:
    """Nothing can be awaited any more, and the HTTP/1.1 server is told all the same."""
    steps, server = ask(door, Answer(Text(*["w "] * 2000, gap=0.005)))
    assert [next(steps) for _ in range(taken)] == ["w "] * taken
    steps.close()  # type: ignore[attr-defined]
    del steps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    server.records[0].wait_disconnected(LIMIT)
