"""Our cancel against everything that can happen at the same time, in both orders, so many turns of the loop apart.

On real sockets, with a pool of one connection: whatever a race leaves behind is missed by the next trial.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import openai
import pytest

from cancelstream import PeekableAsyncStream
from cancelstream.testing import Answer, Cut, Gate, Text

from .conftest import H1, H2, LIMIT, SILENT, Wire

MakeWire = Callable[..., Wire]
TURNS = range(8)
Act = Callable[[], Any]


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def in_order(first: Act, second: Act, apart: int) -> None:
    first()
    await turns(apart)
    second()


class Trial:
    """A stream with a pull that waits, in a task of its own, under something that may cancel it from outside."""

    def __init__(self, wire: Wire, outer: str) -> None:
        self._wire = wire
        self._outer = outer
        self._scope = anyio.CancelScope()
        self._sibling: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timeout = asyncio.timeout(None)
        self.saw = ""
        self.items_after_cancel = 0
        self.ours = False

    async def begin(self) -> None:
        self.stream: PeekableAsyncStream[Any] = PeekableAsyncStream(await self._wire.open("silent:3"))
        for _ in range(3):
            await anext(self.stream)
        self.task = asyncio.create_task(self._consume())
        await turns(12)

    def cancel(self) -> None:
        self.ours = True
        self.stream.cancel()

    def cancel_outer(self) -> None:
        match self._outer:
            case "task":
                self.task.cancel()
            case "timeout":
                self._timeout.reschedule(asyncio.get_running_loop().time())
            case "scope":
                self._scope.cancel()
            case _:
                self._sibling.set_exception(ZeroDivisionError())

    async def _consume(self) -> None:
        try:
            match self._outer:
                case "timeout":
                    async with self._timeout:
                        await self._read()
                case "scope":
                    with self._scope:
                        await self._read()
                    assert self._scope.cancelled_caught
                    self.saw = "outer"
                case "group":
                    async with asyncio.TaskGroup() as group:
                        group.create_task(_wait(self._sibling))
                        await self._read()
                case _:
                    await self._read()
        except* (TimeoutError, ZeroDivisionError):
            self.saw = "outer"

    async def _read(self) -> None:
        async for _ in self.stream:
            self.items_after_cancel += self.ours
        # Ours ended the loop. Theirs, if it is only on its way, arrives here.
        await turns(20)

    async def end(self) -> None:
        done, _ = await asyncio.wait([self.task], timeout=LIMIT)
        assert done, "the consumer hangs"
        if self._outer == "task":
            assert self.task.cancelled(), "the outer cancellation was lost"
        else:
            self.task.result()
            assert self.saw == "outer", "the outer cancellation was lost"
            assert self.task.cancelling() == 0
        assert self.items_after_cancel == 0
        await asyncio.wait_for(self.stream.close(), LIMIT)


async def _wait(future: asyncio.Future[None]) -> None:
    await future


@pytest.mark.parametrize("outer", ["task", "timeout", "scope", "group"])
@pytest.mark.parametrize("name", [*H1, *H2])
async def test_an_outer_cancellation_wins(name: str, outer: str, make_wire: MakeWire) -> None:
    """Whoever comes first, and however close: the outer one comes out, and the connection is given back."""
    wire = make_wire(name, SILENT, repeat=True)
    number = 0
    for apart in TURNS:
        for ours_first in (True, False):
            trial = Trial(wire, outer)
            await trial.begin()
            acts: tuple[Act, Act] = (trial.cancel, trial.cancel_outer)
            await in_order(*(acts if ours_first else acts[::-1]), apart)
            await trial.end()
            await wire.until_told(number)
            number += 1


@pytest.mark.parametrize("rival", ["cancel", "close", "cancel and await", "two tasks"])
@pytest.mark.parametrize("name", [*H1, *H2])
async def test_ours_against_ours(name: str, rival: str, make_wire: MakeWire) -> None:
    """A second cancel, a close in another task: the loop just ends, once, and everyone who waits is released."""
    wire = make_wire(name, SILENT, repeat=True)
    for number, apart in enumerate(TURNS):
        trial = Trial(wire, "none")
        await trial.begin()
        stream = trial.stream
        waiting: list[Awaitable[Any]] = []

        def second(stream: PeekableAsyncStream[Any] = stream, waiting: list[Awaitable[Any]] = waiting) -> None:
            match rival:
                case "cancel":
                    stream.cancel()
                case "close":
                    waiting.append(asyncio.create_task(stream.close()))
                case "cancel and await":
                    waiting.append(asyncio.create_task(stream.cancel()))
                case _:
                    waiting.extend(asyncio.create_task(stream.close()) for _ in range(2))

        await in_order(trial.cancel, second, apart)
        await asyncio.wait_for(trial.task, LIMIT)
        assert trial.task.cancelling() == 0
        await asyncio.wait_for(asyncio.gather(*waiting), LIMIT)
        await asyncio.wait_for(stream.close(), LIMIT)
        await wire.until_told(number)


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_the_natural_end(name: str, make_wire: MakeWire) -> None:
    """A cancel around the end of the answer either stops it or changes nothing; the next request is served at once."""
    wire = make_wire(name, Answer(Text("0 ", "1 ")), repeat=True)
    # Surely before the end,
    async with PeekableAsyncStream(await wire.open("whole:2")) as stream:
        await asyncio.wait_for(stream.cancel(), LIMIT)
        assert await _texts(stream) == []
        assert stream.cancelled
    # somewhere around it,
    for hops in range(0, 160, 7):
        stream = PeekableAsyncStream(await wire.open("whole:2"))
        reader = asyncio.create_task(_texts(stream))
        await turns(hops)
        await asyncio.wait_for(stream.cancel(), LIMIT)
        texts = await asyncio.wait_for(reader, LIMIT)
        assert reader.cancelling() == 0
        if not stream.cancelled:
            assert texts == ["0 ", "1 "]
    # and surely after it.
    async with PeekableAsyncStream(await wire.open("whole:2")) as stream:
        assert await _texts(stream) == ["0 ", "1 "]
        await asyncio.wait_for(stream.cancel(), LIMIT)
        assert not stream.cancelled


async def _texts(stream: PeekableAsyncStream[Any]) -> list[str]:
    texts = [chunk.choices[0].delta.content for chunk in [chunk async for chunk in stream] if chunk.choices]
    return [text for text in texts if text]


@pytest.mark.parametrize("name", H1)
async def test_a_transport_error(name: str, make_wire: MakeWire) -> None:
    """The connection breaks at the same time: before our cancel it is an error, after it the loop just ends."""
    errors = 0
    for apart in (*TURNS, 60):
        gate = Gate()
        wire = make_wire(name, Answer(Text("0 ", gate, Cut("reset"))), SILENT)
        stream = PeekableAsyncStream(await wire.open())
        while not (await anext(stream)).choices[0].delta.content:
            pass
        reader = asyncio.create_task(_texts(stream))
        await turns(12)
        gate.open()
        record = await wire.server.until_request(0, LIMIT)
        await record.until_ended(LIMIT)
        await turns(apart)
        stream.cancel()
        done, _ = await asyncio.wait([reader], timeout=LIMIT)
        assert done
        error = reader.exception()
        assert error is None or isinstance(error, openai.APIError)
        assert (error is None) == stream.cancelled
        errors += error is not None
        await asyncio.wait_for(stream.close(), LIMIT)
        again = await wire.open()
        await again.close()
    assert errors, "the error never came first"


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_garbage_collection(name: str, make_wire: MakeWire) -> None:
    """A stream that is forgotten between two chunks is closed, the server told, and it says so."""
    wire = make_wire(name, SILENT, repeat=True)
    loop = asyncio.get_running_loop()
    for number, apart in enumerate(TURNS):
        source, debug = await wire.open("silent:3"), loop.get_debug()
        loop.set_debug(True)  # then a stream notes where it is made
        streams = [PeekableAsyncStream(source)]
        loop.set_debug(debug)
        del source
        await anext(streams[0])
        if number % 2:
            streams[0].cancel()  # then it is no longer forgotten
            await turns(apart)
            streams.clear()
        else:
            with pytest.warns(ResourceWarning, match="made at .*test_races.py"):
                streams.clear()
        gc.collect()
        await wire.until_told(number)
        # Its finisher holds the slot for a few turns more.
        await turns(40)


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_a_task_that_is_thrown_away(name: str, make_wire: MakeWire) -> None:
    """A pull is destroyed while it waits, as when its task is collected: the source is closed all the same."""
    wire = make_wire(name, SILENT, repeat=True)
    stream = PeekableAsyncStream(await wire.open("silent:3"))
    pull = await _waiting(stream)
    pull.close()
    await asyncio.wait_for(stream.close(), LIMIT)
    await wire.until_told()
    again = await wire.open("silent:3")
    await again.close()


async def _waiting(stream: PeekableAsyncStream[Any]) -> Any:
    """A pull that is suspended at a real wait, driven by nobody; what came before it is read."""
    while True:
        pull: Any = anext(stream)
        try:
            waits_on = pull.send(None)
            while waits_on is None:
                await asyncio.sleep(0)
                waits_on = pull.send(None)
        except StopIteration:
            continue
        return pull
