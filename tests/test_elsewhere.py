"""A stream belongs to one event loop and one process: asked from elsewhere, it goes on where it belongs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import PeekableAsyncStream, open_stream, run_stream, run_stream_events
from cancelstream.testing import Answer, Gate, StartServer, Text

WORDS = ("a ", "b ", "c ", "d ")
ASK: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}


async def a_stream(client: AsyncOpenAI) -> AsyncIterator[Any]:
    async for chunk in await client.chat.completions.create(**ASK, stream=True):
        if chunk.choices and chunk.choices[0].delta.content:
            yield chunk.choices[0].delta.content


def peekable(client: AsyncOpenAI, _: Agent[None, str]) -> tuple[Any, Callable[[], Any]]:
    stream = PeekableAsyncStream(a_stream(client))
    return stream, lambda: stream


def raw_text(client: AsyncOpenAI, _: Agent[None, str]) -> tuple[Any, Callable[[], Any]]:
    stream = open_stream(client.chat.completions.create, **ASK)
    return stream, lambda: stream.stream_text(delta=True)


def raw_events(client: AsyncOpenAI, _: Agent[None, str]) -> tuple[Any, Callable[[], Any]]:
    stream = open_stream(client.chat.completions.create, **ASK)
    return stream, lambda: stream


def run_text(_: AsyncOpenAI, agent: Agent[None, str]) -> tuple[Any, Callable[[], Any]]:
    run = run_stream(agent, "Hi")
    return run, lambda: run.stream_text(delta=True, debounce_by=None)


def run_events(_: AsyncOpenAI, agent: Agent[None, str]) -> tuple[Any, Callable[[], Any]]:
    run = run_stream_events(agent, "Hi")
    return run, lambda: run


@pytest.mark.parametrize("door", [peekable, raw_text, raw_events, run_text, run_events])
@pytest.mark.parametrize("meanwhile", [False, True], ids=["between pulls", "during a pull"])
async def test_a_pull_from_another_event_loop(
    door: Callable[..., tuple[Any, Callable[[], Any]]], meanwhile: bool, scripted_server: StartServer
) -> None:
    """It is one error that says so, and the owner's loop gets everything, as if nothing had been."""
    gate = Gate()
    server = scripted_server(Answer(Text(*WORDS[:2], gate, *WORDS[2:])), Answer(Text(*WORDS)))

    async def pull(read: Callable[[], Any]) -> None:
        await anext(aiter(read()))

    async with AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
        stream, read = door(client, agent)
        async with stream:
            items = aiter(read())
            got = [await anext(items)]
            pending = None
            if meanwhile:

                async def rest() -> list[Any]:
                    return [item async for item in items]

                pending = asyncio.create_task(rest())
                await gate.until_reached()
                await asyncio.sleep(0)
            with pytest.raises(
                RuntimeError, match=r"belongs to another event loop: read it there\. `cancel\(\)` works"
            ):
                await asyncio.to_thread(lambda: asyncio.run(pull(read)))
            gate.open()
            got += [item async for item in items] if pending is None else await pending
        texts = [item for item in got if isinstance(item, str)]
        assert texts == [*WORDS] or (not texts and len(got) > len(WORDS))
        assert not stream.cancelled


async def test_a_stream_may_be_cancelled_from_another_event_loop(scripted_server: StartServer) -> None:
    """And there it may be waited for."""
    server = scripted_server(Answer(Text("a ", Gate(), "b ")))
    async with AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        async with open_stream(client.chat.completions.create, **ASK) as stream:
            assert await anext(stream.stream_text()) == "a "

            async def cancel() -> None:
                await stream.cancel("elsewhere")

            await asyncio.to_thread(lambda: asyncio.run(cancel()))
            assert [text async for text in stream.stream_text()] == []
        assert stream.cancel_reason == "elsewhere"


def test_under_trio() -> None:
    """Every door says that it runs on asyncio."""
    trio = pytest.importorskip("trio")

    async def under_trio() -> None:
        client = AsyncOpenAI(api_key="none")
        agent = Agent("test")
        for make in (
            lambda: open_stream(client.chat.completions.create, **ASK),
            lambda: run_stream(agent, "Hi"),
            lambda: run_stream_events(agent, "Hi"),
        ):
            with pytest.raises(RuntimeError, match="runs on asyncio, and this is trio"):
                make()

    trio.run(under_trio)


def test_without_an_event_loop_of_asyncios() -> None:
    """As under curio: entering or reading says so."""
    stream = open_stream(AsyncOpenAI(api_key="none").chat.completions.create, **ASK)

    async def read() -> None:
        await anext(stream.stream_text())

    for coroutine in (read(), run_stream(Agent("test"), "Hi").__aenter__()):
        with pytest.raises(RuntimeError, match="no event loop of asyncio's runs here"):
            coroutine.send(None)
    stream.cancel()


FORKING = """
    import os, sys, warnings
    from openai import OpenAI
    from cancelstream.sync import CancellableStream

    warnings.simplefilter("error")
    client = OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
    for how in sys.argv[2:]:
        stream = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}], stream=True)
        with CancellableStream(stream) as response:
            got = []
            for text in response.stream_text(delta=True):
                got.append(text)
                if len(got) == 1:
                    child = os.fork()
                    if child == 0:
                        if how == "leaves":
                            response.__exit__(None, None, None)
                        elif how == "cancels":
                            response.cancel()
                            assert [*response.stream_text()] == []
                        else:
                            response.__del__()
                        os._exit(0)
                    assert os.waitpid(child, 0)[1] == 0
                    print("forked", how, flush=True)
            print(*got, response.cancelled, flush=True)
"""

FORKING_ASYNC = """
    import asyncio, os, sys, warnings
    from openai import AsyncOpenAI
    from cancelstream import open_stream

    warnings.simplefilter("error")

    async def main(how):
        client = AsyncOpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
        ask = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
        async with client, open_stream(client.chat.completions.create, **ask) as response:
            got = []
            async for text in response.stream_text(delta=True):
                got.append(text)
                if len(got) == 1:
                    child = os.fork()
                    if child == 0:
                        if how == "cancels":
                            response.cancel()
                        else:
                            response._pull.__del__()
                        os._exit(0)
                    assert os.waitpid(child, 0)[1] == 0
                    print("forked", how, flush=True)
            print(*got, response.cancelled, flush=True)

    for how in sys.argv[2:]:
        asyncio.run(main(how))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="it has no fork")
@pytest.mark.parametrize(
    ("script", "ways"), [(FORKING, ["leaves", "cancels", "drops"]), (FORKING_ASYNC, ["cancels", "drops"])]
)
def test_a_forked_child_only_lets_go(script: str, ways: list[str], scripted_server: StartServer) -> None:
    """A child shares its parent's socket: whatever it does with the stream, its parent reads on to the end."""
    gates = [Gate() for _ in ways]
    server = scripted_server(*(Answer(Text(*WORDS[:2], gate, *WORDS[2:])) for gate in gates))
    command = [sys.executable, "-c", textwrap.dedent(script), server.base_url, *ways]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told: list[str] = []
        for gate in gates:
            told.append(process.stdout.readline())
            gate.open()
            told.append(process.stdout.readline())
        _, errors = process.communicate(timeout=30)
    whole = " ".join(" ".join(WORDS).split())
    assert [" ".join(line.split()) for line in told] == [
        line for way in ways for line in (f"forked {way}", f"{whole} False")
    ], errors
