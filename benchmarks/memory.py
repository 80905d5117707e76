"""What a stream holds: after its end, without the garbage collector, and while its client does not read.

1. Ended: the bytes that a whole answer, and one that was cut, leave behind with the collector off, a stream. Beside
   the SDK's own stream and pydantic-ai's own run, which leave their own.
2. Stalled: the bytes that each of many clients holds that do not read, once their answer has stopped coming, without
   the text that they have accepted, which the message keeps. Beside the SDK's stream read in a plain handler.

The provider is the scripted server in a process of its own, so that only the reader's memory is counted
(`tracemalloc`, which counts Python's allocations exactly).

    python benchmarks/memory.py [--clients 100] [--only ended stalled]

The exit status is 1 if a goal was missed: a whole stream leaves less than 20 KB, a cut one no more than pydantic-ai's
own run does, a stalled one no more than the SDK's and 256 KB.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import open_stream, run_stream, run_stream_events
from cancelstream.starlette import CancellableEventResponse

KB = 1000
WHOLE_GOAL, STALLED_GOAL = 20 * KB, 256 * KB
NOISE = 20 * KB
STREAMS = 10
ASK: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
PROVIDER = """
import sys
from cancelstream.testing import Answer, ScriptedServer, Silence, Text
pieces, size, end = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
words = [f"{number} ".ljust(size, "w") for number in range(pieces)]
answer = Answer(Text(*words)) if end == "whole" else Answer(Text(*words, Silence()))
with ScriptedServer(answer, repeat=True) as server:
    print(server.base_url, flush=True)
    sys.stdin.read()
"""
Door = Callable[[AsyncOpenAI, int], Awaitable[None]]
missed: list[str] = []


async def read(items: Any, pieces: int) -> None:
    """Read so many items, and leave."""
    number = 0
    async for _ in items:
        number += 1
        if number == pieces:
            return


def agent(client: AsyncOpenAI) -> Agent[None, str]:
    return Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))


async def sdk(client: AsyncOpenAI, pieces: int) -> None:
    async with await client.chat.completions.create(**ASK, stream=True) as stream:
        await read(stream, pieces)


async def raw(client: AsyncOpenAI, pieces: int) -> None:
    async with open_stream(client.chat.completions.create, **ASK) as response:
        await read(response.stream_text(delta=True), pieces)
        response.get()


async def pydantic_run(client: AsyncOpenAI, pieces: int) -> None:
    async with agent(client).run_stream("Hi") as run:
        await read(run.stream_text(delta=True, debounce_by=None), pieces)
        run.all_messages()


async def run_text(client: AsyncOpenAI, pieces: int) -> None:
    async with run_stream(agent(client), "Hi") as run:
        await read(run.stream_text(delta=True, debounce_by=None), pieces)
        run.all_messages()


async def pydantic_events(client: AsyncOpenAI, pieces: int) -> None:
    async with agent(client).run_stream_events("Hi") as run:
        await read(run, pieces)


async def run_events(client: AsyncOpenAI, pieces: int) -> None:
    async with run_stream_events(agent(client), "Hi") as run:
        await read(run, pieces)
        run.all_messages()


async def left_behind(door: Door, url: str, pieces: int) -> float:
    """The bytes that a stream of this door leaves, with the collector off."""
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        for _ in range(3):
            await door(client, pieces)
        gc.collect()
        await asyncio.sleep(0.1)  # what the collector has found is closed by the loop
        gc.collect()
        gc.disable()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(STREAMS):
                await door(client, pieces)
            await asyncio.sleep(0.1)
            return (tracemalloc.get_traced_memory()[0] - before) / STREAMS
        finally:
            gc.enable()


async def ended(provider: Callable[..., str]) -> None:
    pieces, size = 300, 500
    for end in ("whole", "cut"):
        url, wanted = provider(pieces, size, end), pieces + 50 if end == "whole" else pieces - 20
        print(f"\nended, {end}: KB that an answer of {pieces * size / KB:.0f} KB leaves with the collector off")
        theirs: float = 0
        for door, is_theirs in (
            (sdk, True),
            (raw, False),
            (pydantic_run, True),
            (run_text, False),
            (pydantic_events, True),
            (run_events, False),
        ):
            held = await left_behind(door, url, wanted)
            print(f"  {door.__name__:16} {held / KB:8.1f}")
            if is_theirs:
                theirs = held
                continue
            goal = WHOLE_GOAL if end == "whole" else theirs + NOISE
            if held > goal:
                missed.append(f"{door.__name__}, {end}: {held / KB:.0f} KB, the goal is {goal / KB:.0f}")


class StalledClient:
    """Accepts so many bytes, and then no more."""

    def __init__(self, accepts: int, gone: asyncio.Event) -> None:
        self._accepts = accepts
        self._gone = gone
        self.text = 0
        self.stalled = asyncio.Event()

    async def receive(self) -> Any:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        body = message.get("body", b"")
        if self.text + len(body) > self._accepts:
            self.stalled.set()
            await self._gone.wait()
        self.text += len(body)


async def serve_sdk(client: AsyncOpenAI, stalled: StalledClient) -> None:
    async with await client.chat.completions.create(**ASK, stream=True) as stream:
        async for chunk in stream:
            if chunk.choices and (text := chunk.choices[0].delta.content):
                await stalled.send({"body": text.encode()})
            if stalled.stalled.is_set():
                return


async def serve_raw(client: AsyncOpenAI, stalled: StalledClient) -> None:
    response = CancellableEventResponse(lambda: open_stream(client.chat.completions.create, **ASK))
    await response({"type": "http"}, stalled.receive, stalled.send)


async def held_by_stalled(serve: Callable[..., Awaitable[None]], client: AsyncOpenAI, clients: int) -> float:
    """The bytes that each of these clients holds, without the text that it has accepted."""
    gone = asyncio.Event()
    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    all_of_them = [StalledClient(100 * KB, gone) for _ in range(clients)]
    tasks = [asyncio.create_task(serve(client, each)) for each in all_of_them]
    await asyncio.gather(*(each.stalled.wait() for each in all_of_them))
    await asyncio.sleep(1)  # what the kernel still has to hand over
    gc.collect()
    held = (tracemalloc.get_traced_memory()[0] - before) / clients
    kept = 0 if serve is serve_sdk else sum(each.text for each in all_of_them) / clients
    gone.set()
    await asyncio.wait(tasks)
    return held - kept


async def stalled(provider: Callable[..., str], clients: int) -> None:
    url = provider(500, 2000, "whole")
    http = httpx2.AsyncClient(limits=httpx2.Limits(max_connections=None), timeout=60)
    print(f"\nstalled: KB that each of {clients} clients holds that do not read, beside the text that was sent")
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, http_client=http) as client:
        theirs: float = 0
        for serve in (serve_sdk, serve_raw):
            await held_by_stalled(serve, client, 2)
            held = await held_by_stalled(serve, client, clients)
            print(f"  {serve.__name__:16} {held / KB:8.1f}")
            if serve is serve_sdk:
                theirs = held
            elif held > theirs + STALLED_GOAL:
                missed.append(f"a stalled client: {held / KB:.0f} KB, the goal is {(theirs + STALLED_GOAL) / KB:.0f}")


async def main(only: list[str], clients: int) -> None:
    processes: list[subprocess.Popen[str]] = []

    def provider(*arguments: object) -> str:
        command = [sys.executable, "-c", PROVIDER, *map(str, arguments)]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout is not None
        return processes[-1].stdout.readline().strip()

    try:
        if "ended" in only:
            await ended(provider)
        if "stalled" in only:
            await stalled(provider, clients)
    finally:
        for process in processes:
            process.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=["ended", "stalled"], default=["ended", "stalled"])
    options = parser.parse_args()
    tracemalloc.start()
    asyncio.run(main(options.only, options.clients))
    for goal in missed:
        print(f"missed: {goal}")
    sys.exit(1 if missed else 0)
