"""What had arrived when `cancel()` came: not handed out, counted where it can be, and never in the server's way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cancelstream import PeekableAsyncStream
from cancelstream._peekable import _finisher
from cancelstream._upstream import http
from cancelstream.testing import Answer, Burst, Silence, Text

from .conftest import LIMIT, Wire

MakeWire = Callable[..., Wire]
DRAINED = ("httpx2", "httpx", "httpx2-tls", "httpx-tls")


def burst(chunks: int) -> Answer:
    """All chunks in one write, and then nothing."""
    return Answer(Burst(Text(*(f"{number} " for number in range(chunks)))), Text(Silence()))


def texts(chunks: list[Any]) -> list[str]:
    return [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]


async def read_one(stream: PeekableAsyncStream[Any]) -> str:
    while True:
        chunk = await anext(stream)
        if text := chunk.choices[0].delta.content:
            return str(text)


@pytest.mark.parametrize("chunks", [2, 10, 100])
@pytest.mark.parametrize("name", DRAINED)
async def test_what_was_decoded_is_counted_and_not_handed_out(name: str, chunks: int, make_wire: MakeWire) -> None:
    """On HTTP/1.1 every chunk of a burst is recovered after the close, in order, and none comes out of the loop."""
    wire = make_wire(name, burst(chunks), burst(1))
    stream = PeekableAsyncStream(await wire.open())
    assert await read_one(stream) == "0 "
    closing = stream.cancel()
    assert [chunk async for chunk in stream] == []
    await asyncio.wait_for(closing, LIMIT)
    assert texts(stream._late) == [f"{number} " for number in range(1, chunks)]
    assert not stream._lost
    await wire.until_told()
    again = await wire.open()
    await again.close()


async def something_unread(stream: PeekableAsyncStream[Any]) -> None:
    """Wait until the transport holds what was not decoded: what the server has sent may still be under way."""
    async with asyncio.timeout(LIMIT):
        while not http.has_unread(stream.source.response):
            await asyncio.sleep(0)


@pytest.mark.parametrize("name", DRAINED)
async def test_more_than_one_read_is_known_to_be_lost(name: str, make_wire: MakeWire) -> None:
    """Of a burst of 700 KB what one read held is recovered; that there was more is known."""
    wire = make_wire(name, burst(5000))
    stream = PeekableAsyncStream(await wire.open())
    assert await read_one(stream) == "0 "
    record = await wire.server.until_request(0, LIMIT)
    await record.until_chunks(5000, LIMIT)
    await something_unread(stream)
    await asyncio.wait_for(stream.cancel(), LIMIT)
    late = texts(stream._late)
    assert late == [f"{number} " for number in range(1, len(late) + 1)]
    assert len(late) < 4999
    assert stream._lost


@pytest.mark.parametrize("name", ["aiohttp", "aiohttp-tls", "httpx2-h2", "httpx-h2-tls"])
async def test_where_closing_loses_it_that_is_known(name: str, make_wire: MakeWire) -> None:
    """aiohttp and HTTP/2 drop what they hold when they close: nothing is claimed of it but that it was there."""
    wire = make_wire(name, burst(2000))
    stream = PeekableAsyncStream(await wire.open("whole:2000"))
    assert await read_one(stream) == "0 "
    await something_unread(stream)
    await asyncio.wait_for(stream.cancel(), LIMIT)
    late = texts(stream._late)
    assert late == [f"{number} " for number in range(1, len(late) + 1)]
    assert len(late) < 1999
    assert stream._lost


@pytest.mark.parametrize("name", ["httpx2", "httpx-tls", "aiohttp", "httpx2-h2"])
async def test_a_consumer_that_keeps_up_has_lost_nothing(name: str, make_wire: MakeWire) -> None:
    """The pull was waiting, so nothing had arrived: no doubt is cast on the count."""
    wire = make_wire(name, Answer(Text("0 ", "1 ", "2 ", Silence())))
    stream = PeekableAsyncStream(await wire.open("silent:3"))
    third = asyncio.Event()
    got: list[str] = []

    async def read() -> None:
        async for chunk in stream:
            got.extend(texts([chunk]))
            if len(got) == 3:
                third.set()

    reader = asyncio.create_task(read())
    await asyncio.wait_for(third.wait(), LIMIT)
    for _ in range(20):
        await asyncio.sleep(0)
    await asyncio.wait_for(stream.cancel(), LIMIT)
    await asyncio.wait_for(reader, LIMIT)
    assert got == ["0 ", "1 ", "2 "]
    assert stream._late == []
    assert not stream._lost


async def test_the_number_drained_is_bounded(make_wire: MakeWire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Usage is not kept waiting by a large buffer; what is left of it counts as lost."""
    monkeypatch.setattr(_finisher, "LATE_LIMIT", 20)
    wire = make_wire("httpx2", burst(100))
    stream = PeekableAsyncStream(await wire.open())
    assert await read_one(stream) == "0 "
    await asyncio.wait_for(stream.cancel(), LIMIT)
    assert len(stream._late) == 20
    assert stream._lost


@pytest.mark.parametrize("name", DRAINED)
async def test_draining_never_delays_the_server(name: str, make_wire: MakeWire) -> None:
    """However slow the decoding is, the server is told first."""
    wire = make_wire(name, burst(100))
    source = await wire.open()
    stream = PeekableAsyncStream(source)
    assert await read_one(stream) == "0 "
    decode, decoded_at = source._decoder.decode, [0.0]

    def slow(line: str) -> Any:
        if line.startswith("data"):
            time.sleep(0.003)  # as JSON and pydantic would
            decoded_at.append(time.monotonic())
        return decode(line)

    source._decoder.decode = slow
    called = time.monotonic()
    await asyncio.wait_for(stream.cancel(), LIMIT)
    told = await wire.until_told()
    assert len(stream._late) == 99
    assert decoded_at[-1] - called > 0.25, "it was not slow"
    assert told < decoded_at[20]


async def test_a_source_without_a_response_is_not_run_further() -> None:
    """A generator in memory has received nothing: to drain it would be to run it."""
    ran: list[int] = []

    async def source() -> AsyncIterator[int]:
        for number in range(10):
            ran.append(number)
            yield number

    stream = PeekableAsyncStream(source())
    assert await anext(stream) == 0
    await asyncio.wait_for(stream.cancel(), LIMIT)
    assert ran == [0]
    assert stream._late == []
    assert not stream._lost
