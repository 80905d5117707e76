"""What a chunk costs when its stream can be cancelled, against the bare stream and pydantic-ai's own wrapper.

Everything that is compared runs in turn within each round, so that a slow moment of the machine strikes all alike;
what is printed are medians over the rounds. It is the processor time of the thread that counts, not the clock: no
network is involved, and what else runs on the machine is not to be measured.

1. In memory: a generator that never suspends, and one with a wait for a future before each chunk. The cost that is
   added to bare iteration, as a share of what pydantic-ai's `PeekableAsyncStream` adds in the same round.
2. Through openai's client and httpx2, the transport in memory: 1 and 50 chunks in a read.
3. End to end: `run_stream` and `stream_text(delta=True)` against pydantic-ai's own, on the same stream.
4. Flat: a chunk of 5,000, of 20,000 and of 80,000, and the memory that is left behind.

    python benchmarks/per_chunk.py [--rounds 15] [--only memory openai run flat]

The exit status is 1 if a goal was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

import httpx2
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai._utils import PeekableAsyncStream as PydanticPeekable
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import PeekableAsyncStream, run_stream

Way = Callable[[], Awaitable[int]]
"""Reads one stream to its end, and returns how many items came."""

missed: list[str] = []


class Empty:
    """A wrapper that does nothing: what any class in between costs."""

    def __init__(self, source: Any) -> None:
        self._iterator = aiter(source)

    def __aiter__(self) -> Empty:
        return self

    async def __anext__(self) -> Any:
        return await self._iterator.__anext__()


async def ready(chunks: int) -> AsyncIterator[int]:
    for chunk in range(chunks):
        yield chunk


async def waiting(chunks: int) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    for chunk in range(chunks):
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future
        yield chunk


async def count(stream: Any) -> int:
    number = 0
    async for _ in stream:
        number += 1
    return number


async def measure(ways: Mapping[str, Way], chunks: int, rounds: int) -> dict[str, list[float]]:
    """Nanoseconds a chunk, for each way and round; the first round is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, way in ways.items():
            gc.collect()
            gc.disable()
            started = time.thread_time_ns()
            number = await way()
            took = time.thread_time_ns() - started
            gc.enable()
            assert number >= chunks, f"{name}: {number} of {chunks}"
            if turn:
                times[name].append(took / chunks)
    return times


def added(times: dict[str, list[float]], name: str, base: str = "bare") -> list[float]:
    return [way - bare for way, bare in zip(times[name], times[base], strict=True)]


def judge(what: str, value: float, goal: float, shown: str) -> None:
    holds = value <= goal
    print(f"    {what}: {shown}  {'ok' if holds else 'MISSED'}")
    if not holds:
        missed.append(what)


async def memory(rounds: int, chunks: int = 20_000) -> None:
    for source, least, aim in ((ready, 20.0, 25.0), (waiting, 7.5, 10.0)):
        ways: dict[str, Way] = {
            "bare": lambda source=source: count(source(chunks)),
            "an empty wrapper": lambda source=source: count(Empty(source(chunks))),
            "PeekableAsyncStream": lambda source=source: count(PeekableAsyncStream(source(chunks))),
            "pydantic-ai's PeekableAsyncStream": lambda source=source: count(PydanticPeekable(source(chunks))),
        }
        times = await measure(ways, chunks, rounds)
        print(f"in memory, {'one wait a chunk' if source is waiting else 'no suspension'}: ns a chunk")
        print(f"    {'bare':<36}{statistics.median(times['bare']):8.0f}")
        for name in list(ways)[1:]:
            print(f"    {name:<36}{statistics.median(added(times, name)):+8.0f}")
        theirs = added(times, "pydantic-ai's PeekableAsyncStream")
        ours = added(times, "PeekableAsyncStream")
        share = statistics.median(their / our for their, our in zip(theirs, ours, strict=True))
        judge(f"of pydantic-ai's, at most 1/{least:g}, aim 1/{aim:g}", 1 / share, 1 / least, f"1/{share:.1f}")
        floor = added(times, "an empty wrapper")
        over = statistics.median(our / empty for our, empty in zip(ours, floor, strict=True))
        print(f"    of an empty wrapper's: {over:.1f} times")


def sse(chunks: int, in_a_read: int) -> list[bytes]:
    """The body of a chat completion, cut into reads."""

    def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        base = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
        return b"data: " + json.dumps(base | more).encode() + b"\n\n"

    events = [event({"role": "assistant", "content": ""})]
    events += [event({"content": f" word{number % 100}"}) for number in range(chunks)]
    events += [event({}, "stop")]
    usage = {"prompt_tokens": 5, "completion_tokens": chunks, "total_tokens": chunks + 5}
    events += [event({}, choices=[], usage=usage), b"data: [DONE]\n\n"]
    return [b"".join(events[start : start + in_a_read]) for start in range(0, len(events), in_a_read)]


class Body(httpx2.AsyncByteStream):
    """Hands out each read once, after a wait, as a socket does."""

    def __init__(self, reads: list[bytes]) -> None:
        self._left = iter(reads)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        for read in self._left:
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future
            yield read


def client_of(reads: list[bytes]) -> AsyncOpenAI:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(reads))

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    return AsyncOpenAI(api_key="none", base_url="http://localhost/v1", http_client=http, max_retries=0)


async def through_openai(rounds: int, chunks: int = 2_000) -> None:
    for in_a_read in (1, 50):
        client = client_of(sse(chunks, in_a_read))

        async def opened(client: AsyncOpenAI = client) -> Any:
            return await client.chat.completions.create(model="m", messages=[], stream=True)

        async def bare() -> int:
            return await count(await opened())

        async def ours() -> int:
            async with PeekableAsyncStream(await opened()) as stream:
                return await count(stream)

        async def theirs() -> int:
            return await count(PydanticPeekable(await opened()))

        ways: dict[str, Way] = {"bare": bare, "ours": ours, "pydantic-ai's": theirs}
        times = await measure(ways, chunks, rounds)
        print(f"through openai's client, {in_a_read} a read: us a chunk")
        for name in ways:
            over = statistics.median(a / b for a, b in zip(times[name], times["bare"], strict=True)) - 1
            print(f"    {name:<36}{statistics.median(times[name]) / 1000:8.1f}  {over:+.1%}")
            if name == "ours":
                judge("over the bare stream, at most 6 %", over, 0.06, f"{over:+.1%}")
        await client.close()


async def end_to_end(rounds: int, chunks: int = 1_000) -> None:
    client = client_of(sse(chunks, 1))
    agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
    for debounce in (None, 0.1):

        async def theirs(debounce: float | None = debounce) -> int:
            async with agent.run_stream("go") as result:
                await _read(result.stream_text(delta=True, debounce_by=debounce))
            return chunks

        async def ours(debounce: float | None = debounce) -> int:
            async with run_stream(agent, "go") as result:
                await _read(result.stream_text(delta=True, debounce_by=debounce))
            return chunks

        times = await measure({"bare": theirs, "ours": ours}, chunks, rounds)
        print(f"stream_text(delta=True, debounce_by={debounce}) of a run: us a chunk")
        over = statistics.median(a / b for a, b in zip(times["ours"], times["bare"], strict=True)) - 1
        print(f"    {'pydantic-ai':<36}{statistics.median(times['bare']) / 1000:8.1f}")
        print(f"    {'cancelstream':<36}{statistics.median(times['ours']) / 1000:8.1f}")
        judge("over pydantic-ai's own, at most 3 %", over, 0.03, f"{over:+.1%}")
    await client.close()


async def _read(stream: AsyncIterator[str]) -> None:
    pieces = [piece async for piece in stream]
    assert "".join(pieces).startswith(" word0 word1")


async def flat(rounds: int) -> None:
    sizes = (5_000, 20_000, 80_000)
    costs: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(rounds + 1):
        for size in sizes:
            gc.collect()
            started = time.thread_time_ns()
            await count(PeekableAsyncStream(waiting(size)))
            if turn:
                costs[size].append((time.thread_time_ns() - started) / size)
    print("flat: ns a chunk, the source's own included")
    for size in sizes:
        print(f"    {size:<36,}{statistics.median(costs[size]):8.0f}")
    ratio = statistics.median(a / b for a, b in zip(costs[sizes[-1]], costs[sizes[0]], strict=True))
    judge("a chunk of 80,000 against one of 5,000, at most 1.1", ratio, 1.1, f"{ratio:.2f}")
    kept: list[int] = []
    for size in (5_000, 80_000):
        stream = PeekableAsyncStream(waiting(size))
        tracemalloc.start()
        async with aclosing(stream):
            for _ in range(size - 10):
                await anext(stream)
            gc.collect()
            kept.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    judge("memory held after 80,000 against 5,000, in bytes, at most 1 KB more", kept[1] - kept[0], 1024, f"{kept}")


SECTIONS: dict[str, Callable[[int], Awaitable[None]]] = {
    "memory": memory,
    "openai": through_openai,
    "run": end_to_end,
    "flat": flat,
}


async def main(rounds: int, only: list[str]) -> int:
    print(f"Python {sys.version.split()[0]}, {rounds} rounds")
    for name in only:
        await SECTIONS[name](rounds)
    for miss in missed:
        print(f"MISSED: {miss}")
    return bool(missed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.rounds, arguments.only)))
