"""How long after a cancel the server sees the client go, against the best that a client can do by hand.

In one run, the ways taken in turn, so that a slow moment of the machine strikes them alike:

- `run_stream`: `result.cancel()` of a real agent;
- `from openai`: `CancellableStreamedResponse.from_openai(stream).cancel()`, where this version has it;
- `AsyncStream.close()`: awaited, on a raw openai stream;
- `socket abort`: the bare socket of a raw openai stream, shut down.

The server is in a process of its own; both clocks are the monotonic one of the machine. Two moments: while a chunk
comes every 5 ms, and on a server that has fallen silent.

    python benchmarks/cancel_latency.py [--trials 60]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import socket
import statistics
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import CancellableStreamedResponse, run_stream
from cancelstream.testing import Answer, ScriptedServer, Silence, Text

MOMENTS = {
    "a chunk every 5 ms": Answer(Text(*["word "] * 4000, gap=0.005)),
    "silent": Answer(Text(*["word "] * 5, Silence())),
}
PIECES = 5

# A way: read PIECES pieces, stop, and return the moment at which it was asked to.
Way = Callable[[AsyncOpenAI], Awaitable[float]]


def serve(moment: str, pipe: Connection) -> None:
    """The server's process: tells its address, and for each request when its client was gone."""
    with ScriptedServer(MOMENTS[moment], repeat=True) as server:
        pipe.send(server.base_url)
        while (index := pipe.recv()) is not None:
            pipe.send(server.wait_request(index, 10).wait_disconnected(10))


async def by_run_stream(client: AsyncOpenAI) -> float:
    agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
    called = 0.0
    async with run_stream(agent, "go") as result:
        pieces = 0
        async for _ in result.stream_text(delta=True, debounce_by=None):
            pieces += 1
            if pieces == PIECES:
                called = time.monotonic()
                result.cancel()
    return called


async def raw(client: AsyncOpenAI):
    stream = await client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "go"}], stream=True
    )
    pieces = 0
    async for chunk in stream:
        pieces += bool(chunk.choices and chunk.choices[0].delta.content)
        if pieces == PIECES:
            break
    return stream


async def by_from_openai(client: AsyncOpenAI) -> float:
    stream = await client.chat.completions.create(
        model="gpt-4o", messages=[{"role": "user", "content": "go"}], stream=True
    )
    called = 0.0
    async with CancellableStreamedResponse.from_openai(stream) as response:
        pieces = 0
        async for _ in response.stream_text(delta=True):
            pieces += 1
            if pieces == PIECES:
                called = time.monotonic()
                response.cancel()
    return called


async def by_close(client: AsyncOpenAI) -> float:
    stream = await raw(client)
    called = time.monotonic()
    await stream.close()
    return called


async def by_socket(client: AsyncOpenAI) -> float:
    stream = await raw(client)
    sock = stream.response.extensions["network_stream"].get_extra_info("socket")
    called = time.monotonic()
    sock.shutdown(socket.SHUT_RDWR)
    await stream.close()
    return called


WAYS: dict[str, Way] = {
    "run_stream": by_run_stream,
    "from openai": by_from_openai,
    "AsyncStream.close()": by_close,
    "socket abort": by_socket,
}


async def measure(moment: str, trials: int) -> dict[str, list[float]]:
    ways = {
        name: way
        for name, way in WAYS.items()
        if name != "from openai" or hasattr(CancellableStreamedResponse, "from_openai")
    }
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(moment, theirs), daemon=True)
    process.start()
    times: dict[str, list[float]] = {name: [] for name in ways}
    async with AsyncOpenAI(base_url=await asyncio.to_thread(ours.recv), api_key="k", max_retries=0) as client:
        request = 0
        for trial in range(-2, trials):
            for name, way in ways.items():
                called = await way(client)
                ours.send(request)
                request += 1
                gone = await asyncio.to_thread(ours.recv)
                if trial >= 0:  # the first two warm up
                    times[name].append((gone - called) * 1000)
    ours.send(None)
    process.join(10)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=60)
    trials = parser.parse_args().trials
    for moment in MOMENTS:
        times = asyncio.run(measure(moment, trials))
        base = statistics.median(times["AsyncStream.close()"])
        print(f"\n{moment}, {trials} trials: cancel to server, ms")
        print(f"{'':<22}{'p50':>8}{'p95':>8}{'max':>8}{'p50 / AsyncStream.close()':>28}")
        for name, values in times.items():
            p50, p95 = statistics.median(values), statistics.quantiles(values, n=20)[-1]
            print(f"{name:<22}{p50:>8.2f}{p95:>8.2f}{max(values):>8.2f}{p50 / base:>28.2f}")


if __name__ == "__main__":
    main()
