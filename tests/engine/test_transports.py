"""A cancel reaches the server on every transport, and leaves the client as good as new."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from cancelstream import PeekableAsyncStream

from .conftest import H1, H2, LIMIT, SILENT, WHOLE, Wire

MakeWire = Callable[..., Wire]


async def read(stream: PeekableAsyncStream[Any]) -> list[str]:
    return [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]


async def pending(stream: PeekableAsyncStream[Any], chunks: int) -> tuple[list[str], asyncio.Task[list[str]]]:
    """Read what is there, and begin a pull that waits."""
    got: list[str] = []
    while len([text for text in got if text]) < chunks:
        chunk = await anext(stream)
        got.append(chunk.choices[0].delta.content or "")
    reader = asyncio.create_task(read(stream))
    for _ in range(20):
        await asyncio.sleep(0)
    return got, reader


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_a_pending_pull_ends_and_the_server_is_told(name: str, make_wire: MakeWire) -> None:
    """The loop just ends, the server hears of it at once, the one connection is free for the next request."""
    wire = make_wire(name, SILENT, WHOLE)
    stream = PeekableAsyncStream(await wire.open("silent:3"))
    got, reader = await pending(stream, 3)
    called = time.monotonic()
    stream.cancel()
    assert await asyncio.wait_for(reader, LIMIT) == []
    assert await wire.until_told() - called < 1.0
    assert reader.cancelling() == 0
    await wire.serves()
    assert [text for text in got if text] == ["0 ", "1 ", "2 "]


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_between_two_pulls(name: str, make_wire: MakeWire) -> None:
    """Nobody is pulling when `cancel()` comes: the server is told all the same, and the slot is free."""
    wire = make_wire(name, SILENT, WHOLE)
    stream = PeekableAsyncStream(await wire.open("silent:3"))
    await anext(stream)
    await asyncio.wait_for(stream.cancel(), LIMIT)
    await wire.until_told()
    assert await read(stream) == []
    await wire.serves()


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_before_the_first_pull(name: str, make_wire: MakeWire) -> None:
    """The stream was made and never read."""
    wire = make_wire(name, SILENT, WHOLE)
    stream = PeekableAsyncStream(await wire.open("silent:3"))
    await asyncio.wait_for(stream.cancel(), LIMIT)
    await wire.until_told()
    await wire.serves()


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_leaving_the_block_early(name: str, make_wire: MakeWire) -> None:
    """`break` inside `async with` closes on leaving the block; a second loop goes on where the first stopped."""
    wire = make_wire(name, SILENT, WHOLE)
    async with PeekableAsyncStream(await wire.open("silent:3")) as stream:
        texts: list[str] = []
        for _ in range(2):
            async for chunk in stream:
                if text := chunk.choices[0].delta.content:
                    texts.append(text)
                    break
        assert texts == ["0 ", "1 "]
    await wire.until_told()
    await wire.serves()


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_a_whole_answer(name: str, make_wire: MakeWire) -> None:
    """Nothing is different for an answer that is read to its end, and a cancel after it changes nothing."""
    wire = make_wire(name, WHOLE, WHOLE)
    async with PeekableAsyncStream(await wire.open("whole:3")) as stream:
        assert [text for text in await read(stream) if text] == ["0 ", "1 ", "2 "]
        await asyncio.wait_for(stream.cancel(), LIMIT)
        assert not stream.cancelled
    await wire.serves()
