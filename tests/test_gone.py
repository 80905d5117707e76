"""A stream that has ended is gone with its last name, without the help of the garbage collector.

A long-running application collects its oldest objects rarely, and a cycle keeps the whole answer until then.
"""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic_ai import Agent, ModelRequest
from pydantic_ai.direct import model_request_stream
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import (
    CancellableModel,
    CancellableStreamedResponse,
    MemoryStopRegistry,
    PeekableAsyncStream,
    open_stream,
    run_stream,
    run_stream_events,
)
from cancelstream.starlette import CancellableEventResponse
from cancelstream.sync import CancellableStream
from cancelstream.sync import run_stream as blocking_run_stream
from cancelstream.testing import Answer, Gate, ScriptedServer, Text

MARK = "cancelstream-mark"
PIECES = 60
WORDS = tuple(f"{MARK} {'word' * 20} {number} " for number in range(PIECES))
ASK: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
ENDS = ("read", "cancelled", "left")


def left_over() -> int:
    """How many characters of the answer are still held, wherever."""
    mark = MARK.encode()
    held = gc.get_referents(*gc.get_objects())
    found = {id(it): len(it) for it in held if (type(it) is str and MARK in it) or (type(it) is bytes and mark in it)}
    return sum(found.values())


def nothing_more_than(before: int) -> bool:
    """Whether no more is held than before, once the server's thread is done; a cycle would stay for good."""
    for _ in range(200):
        if left_over() <= before:
            return True
        time.sleep(0.01)
    return False


@contextmanager
def no_collector() -> Generator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def settle() -> None:
    """What was only just closed needs a few turns of the loop to be gone."""
    for _ in range(30):
        await asyncio.sleep(0)


class Provider:
    """A provider that says its words and waits, if they are to be cut, before the last one."""

    def __init__(self, end: str) -> None:
        self.end = end
        self.gate = Gate()
        answer = Answer(Text(*WORDS)) if end == "read" else Answer(Text(*WORDS[:-1], self.gate, WORDS[-1]))
        self.server = ScriptedServer(answer, repeat=True)

    async def consume(self, stream: Any, items: AsyncIterator[Any]) -> None:
        number = 0
        async for _ in items:
            number += 1
            if self.end != "read" and number >= PIECES - 5:
                if self.end == "left":
                    return
                stream.cancel()

    def consume_blocking(self, stream: Any, items: Iterator[Any]) -> None:
        for number, _ in enumerate(items):
            if self.end != "read" and number >= PIECES - 5:
                if self.end == "left":
                    return
                stream.cancel()


Door = Callable[[AsyncOpenAI, Provider], Awaitable[None]]


async def raw_text(client: AsyncOpenAI, provider: Provider) -> None:
    async with open_stream(client.chat.completions.create, **ASK) as response:
        await provider.consume(response, response.stream_text(delta=True))
        assert MARK in str(response.get().parts)


async def raw_chunks(client: AsyncOpenAI, provider: Provider) -> None:
    async with open_stream(client.chat.completions.create, **ASK) as response:
        await provider.consume(response, response.chunks())
        assert response.usage.output.value


async def raw_events(client: AsyncOpenAI, provider: Provider) -> None:
    stream = await client.chat.completions.create(**ASK, stream=True)
    async with CancellableStreamedResponse.from_openai(stream) as response:
        await provider.consume(response, aiter(response))
        assert MARK in str(response.get().parts)


async def traced(client: AsyncOpenAI, provider: Provider) -> None:
    """Read by the SDK."""
    stream: Any = await client.chat.completions.create(**ASK, stream=True)
    inside = stream._iterator
    stream._iterator = (chunk async for chunk in inside)
    del inside
    async with CancellableStreamedResponse.from_openai(stream) as response:
        await provider.consume(response, response.stream_text(delta=True))


async def any_stream(client: AsyncOpenAI, provider: Provider) -> None:
    async with PeekableAsyncStream(await client.chat.completions.create(**ASK, stream=True)) as stream:
        await provider.consume(stream, stream)


async def model(client: AsyncOpenAI, provider: Provider) -> None:
    cancellable = CancellableModel(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
    async with model_request_stream(cancellable, [ModelRequest.user_text_prompt("Hi")]) as response:
        await provider.consume(response, aiter(response))
        assert MARK in str(response.get().parts)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("door", [raw_text, raw_chunks, raw_events, traced, any_stream, model])
async def test_a_stream_that_has_ended_is_gone(door: Door, end: str) -> None:
    """Whole, cancelled or left early: no text of it is held once nobody has a name for it."""
    provider = Provider(end)
    with provider.server as server:
        async with AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
            await door(client, provider)  # what the first one makes for all of them
            await settle()
            with no_collector():
                before = left_over()
                for _ in range(2):
                    await door(client, provider)
                await settle()
                assert nothing_more_than(before)


def agent_of(client: AsyncOpenAI) -> Agent[None, str]:
    return Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))


async def run_text(client: AsyncOpenAI, provider: Provider) -> None:
    async with run_stream(agent_of(client), "Hi") as run:
        await provider.consume(run, run.stream_text(delta=True, debounce_by=None))
        assert run.all_messages()
        assert MARK in str(run.response)


async def their_run_text(client: AsyncOpenAI, provider: Provider) -> None:
    async with agent_of(client).run_stream("Hi") as run:
        await provider.consume(None, run.stream_text(delta=True, debounce_by=None))
        assert run.all_messages()
        assert MARK in str(run.response)


async def run_events(client: AsyncOpenAI, provider: Provider) -> None:
    async with run_stream_events(agent_of(client), "Hi") as run:
        await provider.consume(run, run)
        assert run.all_messages()
        assert MARK in str(run.response)


async def their_run_events(client: AsyncOpenAI, provider: Provider) -> None:
    async with agent_of(client).run_stream_events("Hi") as run:
        await provider.consume(None, aiter(run))


async def web(client: AsyncOpenAI, factory: Callable[[], Any], provider: Provider) -> None:
    sent = bytearray()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.extend(message.get("body", b""))
        if provider.end != "read" and sent.count(MARK.encode()) >= PIECES - 5:
            if provider.end == "left":
                raise OSError("the client is gone")
            await registry.stop(str(response.stop_id), owner="Ann")

    registry = MemoryStopRegistry()
    response = CancellableEventResponse(factory, registry=registry, owner="Ann")
    await response({"type": "http"}, receive, send)
    assert response.end is not None
    assert response.end.state == ("complete" if provider.end == "read" else "interrupted")


async def web_raw(client: AsyncOpenAI, provider: Provider) -> None:
    await web(client, lambda: open_stream(client.chat.completions.create, **ASK), provider)


async def web_run(client: AsyncOpenAI, provider: Provider) -> None:
    await web(client, lambda: run_stream(agent_of(client), "Hi"), provider)


async def web_events(client: AsyncOpenAI, provider: Provider) -> None:
    await web(client, lambda: run_stream_events(agent_of(client), "Hi"), provider)


async def held_by(door: Door, provider: Provider) -> int:
    """How many characters a stream of this door leaves behind, without the collector."""
    with provider.server as server:
        async with AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
            await door(client, provider)
            await settle()
            with no_collector():
                await settle()  # what the collector has found is closed by the loop
                gc.collect()
                before = left_over()
                for _ in range(2):
                    await door(client, provider)
                await settle()
                held = left_over() - before
                for _ in range(4):  # the server's thread lets go of what it sent, too
                    if held <= 0:
                        break
                    await asyncio.sleep(0.05)
                    held = min(held, left_over() - before)
                return max(held, 0) // 2


@pytest.mark.parametrize(
    ("door", "theirs"),
    [
        (run_text, their_run_text),
        (run_events, their_run_events),
        (web_raw, None),
        (web_run, their_run_text),
        (web_events, their_run_events),
    ],
)
@pytest.mark.parametrize("end", ENDS)
async def test_a_run_that_has_ended_is_gone(door: Door, theirs: Door | None, end: str) -> None:
    """A whole one leaves nothing; one that was cut no more copies than pydantic-ai's own that is left early."""
    answer = sum(map(len, WORDS))
    copies = 0 if end == "read" or theirs is None else math.ceil(await held_by(theirs, Provider("left")) / answer)
    # They do not all stop at the same piece.
    assert await held_by(door, Provider(end)) <= copies * answer + 10 * len(WORDS[0]) * (end != "read")


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("reading", ["text", "events"])
def test_a_blocking_stream_that_has_ended_is_gone(reading: str, end: str) -> None:
    """The same."""
    provider = Provider(end)

    def door(client: OpenAI) -> None:
        with CancellableStream[Any](client.chat.completions.create(**ASK, stream=True)) as stream:
            items = stream.stream_text(delta=True) if reading == "text" else iter(stream)
            provider.consume_blocking(stream, items)
            assert MARK in str(stream.get().parts)

    with provider.server as server, OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        door(client)
        with no_collector():
            before = left_over()
            for _ in range(2):
                door(client)
            assert nothing_more_than(before)


@pytest.mark.parametrize("end", ENDS)
def test_a_blocking_run_that_has_ended_is_gone(end: str) -> None:
    """A whole one leaves nothing; one that was cut no more copies than pydantic-ai's own that is left early."""
    provider, answer = Provider(end), sum(map(len, WORDS))
    copies = 0
    if end != "read":
        with ThreadPoolExecutor(1) as another:  # the main thread's loop is the one that the blocking run is on
            theirs = another.submit(asyncio.run, held_by(their_run_text, Provider("left")))
            copies = math.ceil(theirs.result() / answer)

    def door(agent: Agent[None, str]) -> None:
        with blocking_run_stream(agent, "Hi") as run:
            provider.consume_blocking(run, run.stream_text(delta=True, debounce_by=None))
            assert run.all_messages()
            assert MARK in str(run.response)

    # The loop of the main thread is the one that a blocking run is on there.
    with provider.server as server, asyncio.Runner() as runner:
        asyncio.set_event_loop(runner.get_loop())
        client = AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        agent = agent_of(client)
        door(agent)
        with no_collector():
            before = left_over()
            for _ in range(2):
                door(agent)
            assert nothing_more_than(before + 2 * (copies * answer + 10 * len(WORDS[0]) * (end != "read")))
        runner.run(client.close())


async def strands_run(client: AsyncOpenAI, provider: Provider) -> None:
    strands, models = pytest.importorskip("strands"), pytest.importorskip("strands.models.openai")
    from cancelstream.strands import stream_async

    model = models.OpenAIModel(client=client, model_id="gpt-4o")
    agent = strands.Agent(model=model, callback_handler=None)
    async with stream_async(agent, "Hi") as stream:
        await provider.consume(stream, stream.stream_text(delta=True))
    assert MARK in str(agent.messages)


async def their_strands_run(client: AsyncOpenAI, provider: Provider) -> None:
    strands, models = pytest.importorskip("strands"), pytest.importorskip("strands.models.openai")
    agent = strands.Agent(model=models.OpenAIModel(client=client, model_id="gpt-4o"), callback_handler=None)
    events = agent.stream_async("Hi")
    await provider.consume(agent, events)
    await events.aclose()


@pytest.mark.parametrize("end", ENDS)
async def test_a_strands_run_that_has_ended_is_gone(end: str) -> None:
    """It leaves no more than strands' own that is read to its end."""
    theirs = await held_by(their_strands_run, Provider("read"))
    assert await held_by(strands_run, Provider(end)) <= theirs + 10 * len(WORDS[0]) * (end != "read")
