"""Whose cancellation ended a pull, where two meet, and what becomes of the value that came with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from cancelstream import PeekableAsyncStream
from cancelstream._interrupt import Interrupted, Interruptible

LIMIT = 20.0


async def test_a_value_that_comes_with_the_consumers_cancellation() -> None:
    """A source that swallows the cancellation of a stopped pull and gives its item: the item counts as received."""
    waiting = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            waiting.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield 1

    stream = PeekableAsyncStream(source())
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.wait_for(waiting.wait(), LIMIT)
    reader.cancel()
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(reader, LIMIT)
    await asyncio.wait_for(stream.close(), LIMIT)
    assert stream._late == [1]


async def test_a_pending_cancellation_comes_before_ours() -> None:
    """What would run after `cancel()` raises the task's own cancellation if one is pending, and ours if none is."""
    guard = Interruptible()
    guard.cancel()

    async def consume() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await guard.run(asyncio.sleep(0))

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(consume())
    with pytest.raises(Interrupted):
        await guard.run(asyncio.sleep(0))


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_cancellation_that_was_asked_for_before_the_pull(stopped: bool) -> None:
    """It arrives at the first wait of the pull, and is the consumer's, whether or not the stream is stopped, too."""
    unwound: list[str] = []

    async def source() -> AsyncIterator[int]:
        try:
            if stopped:
                stream.cancel()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            unwound.append("cancelled")
            for _ in range(5):
                await asyncio.sleep(0)  # our own interruption may come meanwhile
            unwound.append("released")
            if stopped:
                return  # and swallows it: the end of the loop would hide it
            raise
        yield 0

    stream = PeekableAsyncStream(source())

    async def consume() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await anext(stream)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asyncio.create_task(consume()), LIMIT)
    await asyncio.wait_for(stream.close(), LIMIT)
    assert unwound == ["cancelled", "released"]


async def test_a_cancellation_at_a_bare_yield_after_a_timeout_of_the_sources_own() -> None:
    """It reaches the source's next wait: that an earlier one was taken back by its timeout does not hold it up."""
    at_bare_yield = asyncio.Event()

    async def source() -> AsyncIterator[int]:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        at_bare_yield.set()
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.Event().wait()
        yield 0

    async with PeekableAsyncStream(source()) as stream:
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.wait_for(at_bare_yield.wait(), LIMIT)
        reader.cancel()
        done, _ = await asyncio.wait([reader], timeout=LIMIT)
        assert done, "the reader hangs"
        assert reader.cancelled()


async def test_a_source_that_is_cancelled_while_it_is_drained() -> None:
    """What is left to close is closed all the same, and what had been drained by then is counted."""
    closed: list[str] = []

    class Response:
        async def aclose(self) -> None:
            closed.append("response")

    class Source:
        response = Response()
        items = 0

        def __aiter__(self) -> Source:
            return self

        async def __anext__(self) -> int:
            self.items += 1
            if self.items == 3:
                raise asyncio.CancelledError
            return self.items

        async def aclose(self) -> None:
            closed.append("source")

    stream = PeekableAsyncStream(Source())
    assert await anext(stream) == 1
    await asyncio.wait_for(stream.cancel(), LIMIT)
    assert closed == ["response", "source"]
    assert stream._late == [2]
