"""A source that does not end, or does not close, is let go: nobody waits longer than the deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from cancelstream import PeekableAsyncStream
from cancelstream._interrupt import _deadline
from cancelstream.testing import Answer, Silence, Text

from .conftest import H1, H2, LIMIT, Wire

MakeWire = Callable[..., Wire]
SHORT = 0.2


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "as_documented" not in request.node.name:
        monkeypatch.setattr(_deadline, "DEADLINE", SHORT)


class Stubborn:
    """Waits in a way that cannot be interrupted, or closes in one."""

    def __init__(self, how: str) -> None:
        self.how = how
        self.over = asyncio.Event()
        self.tasks: list[asyncio.Task[Any]] = []
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[int]:
        yield 1
        match self.how:
            case "swallows":
                await self._swallow()
            case "never unwinds":
                try:
                    await self.over.wait()
                finally:
                    await self.over.wait()
            case "awaits a task that swallows":
                self.tasks.append(asyncio.create_task(self._swallow()))
                await self.tasks[0]
            case "gathers tasks that swallow":
                self.tasks.append(asyncio.create_task(self._swallow()))
                await asyncio.gather(*self.tasks)
            case "spins":
                while not self.over.is_set():
                    await asyncio.sleep(0)
            case "catches everything":
                while not self.over.is_set():
                    try:
                        await self.over.wait()
                    except BaseException:
                        continue
            case _:
                await self.over.wait()

    async def _swallow(self) -> None:
        while not self.over.is_set():
            try:
                await self.over.wait()
            except asyncio.CancelledError:
                continue

    async def close(self) -> None:
        self.closed += 1
        match self.how:
            case "raises in close":
                raise OSError("as it closes")
            case "blocks in close":
                await self.over.wait()
            case "swallows in close":
                await self._swallow()
            case _:
                pass

    async def end(self) -> None:
        self.over.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)


HOWS = [
    "swallows",
    "never unwinds",
    "awaits a task that swallows",
    "gathers tasks that swallow",
    "spins",
    "raises in close",
    "blocks in close",
    "swallows in close",
]


async def first(stream: PeekableAsyncStream[int]) -> asyncio.Task[list[int]]:
    assert await anext(stream) == 1

    async def read() -> list[int]:
        return [item async for item in stream]

    reader = asyncio.create_task(read())
    for _ in range(5):
        await asyncio.sleep(0)
    return reader


@pytest.mark.parametrize("how", HOWS)
async def test_the_consumer_is_never_held(how: str) -> None:
    """Its loop ends, whoever awaits the cancel is released, and no task of ours is left."""
    source = Stubborn(how)
    stream = PeekableAsyncStream(source)
    reader = await first(stream)
    started = time.monotonic()
    stream.cancel()
    done, _ = await asyncio.wait([reader], timeout=LIMIT)
    assert done, "the consumer hangs"
    assert reader.result() == []
    assert reader.cancelling() == 0
    await asyncio.wait_for(stream.cancel(), LIMIT)
    await asyncio.wait_for(stream.close(), LIMIT)
    assert time.monotonic() - started < SHORT + 1.0
    assert source.closed == 1
    await source.end()


async def test_not_even_by_one_that_catches_everything() -> None:
    """Nothing reaches such a source; it is left behind, and the consumer goes on."""
    source = Stubborn("catches everything")
    stream = PeekableAsyncStream(source)
    reader = await first(stream)
    stream.cancel()
    assert await asyncio.wait_for(reader, LIMIT) == []
    await asyncio.wait_for(stream.close(), LIMIT)
    await source.end()


@pytest.mark.parametrize("how", ["swallows", "awaits a task that swallows"])
async def test_the_outer_cancellation_is_not_lost_to_one_that_swallows(how: str) -> None:
    """The source swallows everybody's cancellation; when we stop it as well, the consumer's comes out."""
    source = Stubborn(how)
    stream = PeekableAsyncStream(source)
    reader = await first(stream)
    reader.cancel()
    await asyncio.sleep(0)
    stream.cancel()
    done, _ = await asyncio.wait([reader], timeout=LIMIT)
    assert done
    assert reader.cancelled()
    await stream.close()
    await source.end()


async def test_a_deadline_as_documented() -> None:
    """One second, from the cancel."""
    source = Stubborn("swallows")
    stream = PeekableAsyncStream(source)
    reader = await first(stream)
    started = time.monotonic()
    stream.cancel()
    assert await asyncio.wait_for(reader, LIMIT) == []
    assert 0.9 < time.monotonic() - started < 3.0
    await stream.close()
    await source.end()


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_the_transport_is_aborted(name: str, make_wire: MakeWire) -> None:
    """A wrapper around openai's stream that swallows the cancellation: the server is told all the same."""
    wire = make_wire(name, Answer(Text("0 ", Silence())), Answer(Text("0 ", Silence())))

    class Wrapper:
        """Reads on whatever happens, until its connection is gone."""

        def __init__(self, inner: Any) -> None:
            self.inner = inner
            self.response = inner.response

        async def __aiter__(self) -> AsyncIterator[Any]:
            while True:
                try:
                    yield await anext(self.inner)
                except asyncio.CancelledError:
                    await asyncio.Event().wait()

        async def close(self) -> None:
            await asyncio.Event().wait()

    stream = PeekableAsyncStream(Wrapper(await wire.open("silent:1")))
    while not (await anext(stream)).choices[0].delta.content:
        pass

    async def read() -> list[Any]:
        return [item async for item in stream]

    reader = asyncio.create_task(read())
    for _ in range(12):
        await asyncio.sleep(0)
    stream.cancel()
    assert await asyncio.wait_for(reader, LIMIT) == []
    await asyncio.wait_for(stream.close(), LIMIT)
    await wire.until_told()
    again = await wire.open("silent:1")
    await again.close()
