"""A thousand live streams on one loop, cancelled together: is every server told, how soon, and what is left behind.

The server is in a process of its own, silent after a few chunks; both clocks are the monotonic one of the machine. The
peer is the same number of raw openai streams whose `AsyncStream.close()` is awaited, all at once, in the same run.

    python benchmarks/many_streams.py [--streams 1000]

The exit status is 1 if a server was not told, or something was left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI

from cancelstream import PeekableAsyncStream
from cancelstream.testing import Answer, ScriptedServer, Silence, Text

LIMIT = 60.0


def serve(pipe: Connection) -> None:
    """The server's process: for a range of requests, when each one's client was gone, `None` if it was not."""
    with ScriptedServer(Answer(Text("0 ", "1 ", Silence())), repeat=True) as server:
        pipe.send(server.base_url)
        while (asked := pipe.recv()) is not None:
            gone: list[float | None] = []
            for index in range(*asked):
                try:
                    gone.append(server.wait_request(index, LIMIT).wait_disconnected(5))
                except TimeoutError:
                    gone.append(None)
            pipe.send(gone)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def opened(client: AsyncOpenAI, number: int) -> list[Any]:
    """As many streams, each read until the server is silent."""

    async def one(_: int) -> Any:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content == "1 ":
                return stream
        raise RuntimeError("the server ended a stream that has no end")

    streams: list[Any] = []
    for start in range(0, number, 50):  # so that no connection waits for the server to accept it
        streams += await asyncio.gather(*map(one, range(start, min(start + 50, number))))
    return streams


async def by_close(streams: list[Any]) -> float:
    called = time.monotonic()
    await asyncio.gather(*(stream.close() for stream in streams))
    return called


async def by_cancel(streams: list[Any]) -> float:
    before = resident()
    ours = [PeekableAsyncStream(stream) for stream in streams]
    readers = [asyncio.create_task(_read(stream)) for stream in ours]
    for _ in range(10):
        await asyncio.sleep(0)
    print(f"    a wrapped stream with a reader that waits: {(resident() - before) / len(streams) / 1024:+.1f} KB")
    called = time.monotonic()
    closings = [stream.cancel() for stream in ours]
    print(f"    the calls took {(time.monotonic() - called) * 1000:.1f} ms")
    for closing in closings:
        await closing
    assert await asyncio.gather(*readers) == [0] * len(readers)
    return called


async def _read(stream: PeekableAsyncStream[Any]) -> int:
    return len([item async for item in stream])


async def main(number: int) -> int:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    url = await asyncio.to_thread(ours.recv)
    limits = httpx2.Limits(max_connections=number, max_keepalive_connections=number)
    wrong: list[str] = []
    request = 0
    ways: dict[str, Callable[[list[Any]], Awaitable[float]]] = {"AsyncStream.close()": by_close, "cancel()": by_cancel}
    for name, way in ways.items():
        print(f"{name}, {number:,} streams")
        http = httpx2.AsyncClient(limits=limits, timeout=LIMIT)
        async with AsyncOpenAI(base_url=url, api_key="k", max_retries=0, http_client=http) as client:
            before, open_before = resident(), descriptors()
            streams = await opened(client, number)
            print(f"    a live stream of openai's: {(resident() - before) / number / 1024:.1f} KB")
            called = await way(streams)
            ours.send((request, request + number))
            gone = await asyncio.to_thread(ours.recv)
            request += number
            times = sorted((at - called) * 1000 for at in gone if at is not None)
            quantiles = statistics.quantiles(times, n=100)
            print(f"    servers told: {len(times):,}; p50 {quantiles[49]:.1f} ms, p99 {quantiles[98]:.1f} ms")
            if len(times) != number:
                wrong.append(f"{name}: {number - len(times)} servers were not told")
            streams.clear()
            gc.collect()
            # The last of what closes, and the server's own side of it.
            for _ in range(100):
                await asyncio.sleep(0)
            left = (
                len(asyncio.all_tasks()) - 1,
                descriptors() - open_before,
                sum(isinstance(each, PeekableAsyncStream) for each in gc.get_objects()),
            )
            print("    left behind: {} tasks, {} descriptors, {} streams".format(*left))
            if any(left):
                wrong.append(f"{name}: left behind {left}")
            (stream,) = await opened(client, 1)  # the client goes on
            await stream.close()
            request += 1
    ours.send(None)
    process.join(10)
    for each in wrong:
        print(f"WRONG: {each}")
    return bool(wrong)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1000)
    sys.exit(asyncio.run(main(parser.parse_args().streams)))
