"""HTTP/2: one connection for many streams, so a cancel must end one of them and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from cancelstream import PeekableAsyncStream

from .conftest import H2, LIMIT, Wire
from .h2_server import FLOOD_SIZE, MAX_STREAMS

MakeWire = Callable[..., Wire]


class Opened:
    """A source that opens its request with the first pull, and has a response from then on."""

    response: Any = None

    def __init__(self, wire: Wire, play: str) -> None:
        self._wire = wire
        self._play = play

    async def __aiter__(self) -> Any:
        stream = await self._wire.open(self._play)
        self.response = stream.response
        async for chunk in stream:
            yield chunk


async def drain(stream: PeekableAsyncStream[Any]) -> list[float]:
    """Read to the end; when each chunk came."""
    return [time.monotonic() async for _ in stream]


@pytest.mark.parametrize("name", H2)
async def test_the_server_stops(name: str, make_wire: MakeWire) -> None:
    """A stream that is cancelled while chunks come is reset, and the server generates no more."""
    wire = make_wire(name)
    stream = PeekableAsyncStream(await wire.open("drip:2000"))
    await anext(stream)
    await asyncio.wait_for(stream.cancel(), LIMIT)
    await wire.until_told()
    seen = wire.server.streams[0]
    sent = seen.chunks
    await wire.serves()
    assert seen.chunks == sent < 2000
    assert not seen.complete


@pytest.mark.parametrize("name", ["httpx2-h2-tls", "httpx-h2"])
async def test_siblings_keep_their_pace(name: str, make_wire: MakeWire) -> None:
    """Streams that share the connection get every chunk, without a pause, while others are cancelled beside them."""
    wire = make_wire(name)
    siblings = [PeekableAsyncStream(await wire.open("drip:150")) for _ in range(3)]
    readers = [asyncio.create_task(drain(sibling)) for sibling in siblings]
    for index in range(20):
        victim = PeekableAsyncStream(await wire.open("drip:2000"))
        await anext(victim)
        victim.cancel()
        await wire.until_told(3 + index)
    for times in await asyncio.wait_for(asyncio.gather(*readers), 4 * LIMIT):
        assert len(times) == 150
        # A chunk is sent every 2 ms; a machine that is busy with other tests may stall for a while.
        assert max(later - earlier for earlier, later in pairwise(times)) < 3.0
    assert len(wire.server.connections) == 1
    for sibling in siblings:
        await sibling.close()


@pytest.mark.parametrize("name", ["httpx2-h2-tls", "httpx-h2"])
async def test_two_hundred_cancels_leave_the_connection_usable(name: str, make_wire: MakeWire) -> None:
    """Twice as many cancels as the connection may have streams, on one connection that stays the same."""
    wire = make_wire(name)
    for index in range(2 * MAX_STREAMS):
        stream = PeekableAsyncStream(await wire.open("silent:1"))
        if index % 2:
            await anext(stream)
        await asyncio.wait_for(stream.cancel(), LIMIT)
    await wire.until_told(2 * MAX_STREAMS - 1)
    assert all(stream.reset == 8 for stream in wire.server.streams)
    await wire.serves()
    assert len(wire.server.connections) == 1


@pytest.mark.parametrize("name", ["httpx2-h2", "httpx-h2-tls"])
async def test_flow_control_does_not_starve(name: str, make_wire: MakeWire) -> None:
    """What arrived for cancelled streams is acknowledged: after floods of more than the window a sibling is fed."""
    wire = make_wire(name)
    sibling = PeekableAsyncStream(await wire.open("silent:1"))
    await anext(sibling)
    flooded = 0
    # The connection's window is 16 MB. Each flood stops at its stream's window, which is as large.
    for index in range(6):
        stream = PeekableAsyncStream(await wire.open("flood:2000"))
        await anext(stream)
        seen = wire.server.streams[1 + index]
        await wire.server.until(lambda seen=seen: seen.chunks >= 180, "3 MB sent", 4 * LIMIT)
        await asyncio.wait_for(stream.cancel(), LIMIT)
        await wire.until_told(1 + index)
        flooded += seen.chunks * FLOOD_SIZE
    assert flooded > 2**24, "the floods were too small to show anything"
    fed = PeekableAsyncStream(await wire.open("flood:125"))
    assert len(await asyncio.wait_for(drain(fed), 4 * LIMIT)) == 125
    await sibling.close()
    assert len(wire.server.connections) == 1


@pytest.mark.parametrize("name", H2)
async def test_a_request_that_waits_for_headers_is_reset(name: str, make_wire: MakeWire) -> None:
    """There is no response yet, and still the server is told, and the connection is not harmed."""
    wire = make_wire(name)
    sibling = PeekableAsyncStream(await wire.open("drip:100"))
    reading = asyncio.create_task(drain(sibling))
    for index in range(1, 6):
        stream = PeekableAsyncStream(Opened(wire, "never"))
        reader = asyncio.create_task(drain(stream))
        await wire.until_requested(index)
        for _ in range(20):
            await asyncio.sleep(0)
        stream.cancel()
        assert await asyncio.wait_for(reader, LIMIT) == []
        await wire.until_told(index)
        await stream.close()
    assert len(await asyncio.wait_for(reading, LIMIT)) == 100
    assert len(wire.server.connections) == 1
    await sibling.close()


@pytest.mark.parametrize("name", ["httpx2-h2-tls", "httpx-h2-tls"])
@pytest.mark.parametrize("when", ["opening", "reading"])
async def test_a_cancelled_task_does_not_break_the_connection(name: str, when: str, make_wire: MakeWire) -> None:
    """`task.cancel()` at any moment leaves the shared connection whole: without us it breaks it, now and then.

    anyio's shielded checkpoints do not shield from a native cancellation, and TLS then takes the connection for
    broken. Here such a cancellation waits for the next real wait.
    """
    wire = make_wire(name)
    sibling = PeekableAsyncStream(await wire.open("silent:1"))
    await anext(sibling)
    loop = asyncio.get_running_loop()
    moments = Random(7)
    for _ in range(100):
        stream = PeekableAsyncStream(Opened(wire, "drip:2000"))
        if when == "reading":
            await anext(stream)
        reader = asyncio.create_task(drain(stream))
        loop.call_later(moments.uniform(0, 0.004), reader.cancel)
        await asyncio.wait([reader])
        assert reader.cancelled()
        await stream.close()
    # The server is told of everyone that it has heard of.
    await wire.server.until(lambda: all(seen.reset == 8 for seen in wire.server.streams[1:]), "every reset")
    await wire.serves()
    assert len(wire.server.connections) == 1, "the connection was broken, and another one was made"
    await sibling.close()
