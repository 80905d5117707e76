"""What a `PeekableAsyncStream` promises, shown on sources in memory; sockets are in `tests/engine`."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from cancelstream._closing import Closing
from cancelstream._peekable import PeekableAsyncStream

LIMIT = 20.0


class Source:
    """An async iterable that says when it waits, how it unwound, and whether it was closed."""

    def __init__(self, *items: Any, then_wait: bool = False) -> None:
        self.items = items
        self.then_wait = then_wait
        self.waiting = asyncio.Event()
        self.unwound: list[str] = []
        self.closed = 0

    async def __aiter__(self) -> AsyncIterator[Any]:
        try:
            for item in self.items:
                yield item
            if self.then_wait:
                self.waiting.set()
                await asyncio.Event().wait()
            self.unwound.append("end")
        except BaseException as error:
            self.unwound.append(type(error).__name__)
            raise

    async def close(self) -> None:
        self.closed += 1


async def read(stream: PeekableAsyncStream[Any]) -> list[Any]:
    return [item async for item in stream]


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_it_yields_what_the_source_yields() -> None:
    """Iterating yields the source's items in order, and leaving the block closes the source."""
    source = Source(1, 2, 3)
    async with PeekableAsyncStream(source) as stream:
        assert await read(stream) == [1, 2, 3]
        assert source.unwound == ["end"]
    assert source.closed == 1
    assert not stream.cancelled


async def test_peek_does_not_take() -> None:
    """`peek()` returns the next item and leaves it to be pulled; at the end it raises `EndOfStream`."""
    async with PeekableAsyncStream(Source(1, 2)) as stream:
        assert [await stream.peek(), await stream.peek(), await anext(stream)] == [1, 1, 1]
        assert not await stream.is_exhausted()
        assert await read(stream) == [2]
        assert await stream.is_exhausted()
        with pytest.raises(anyio.EndOfStream):
            await stream.peek()


async def test_a_pending_pull_ends_and_cancel_never_raises() -> None:
    """`cancel()` ends a pull that waits: the loop just ends, the source unwinds, the task stays uncancelled."""
    source = Source(1, then_wait=True)
    async with PeekableAsyncStream(source) as stream:
        reader = asyncio.create_task(read(stream))
        await asyncio.wait_for(source.waiting.wait(), LIMIT)
        stream.cancel()
        assert await asyncio.wait_for(reader, LIMIT) == [1]
        assert stream.cancelled
        assert source.unwound == ["CancelledError"]
        assert reader.cancelling() == cancelling() == 0
        await asyncio.wait_for(stream.cancel(), LIMIT)
        assert source.closed == 1


async def test_no_item_after_cancel() -> None:
    """A pull that starts after `cancel()` returned yields nothing, and the source is closed between two pulls."""
    source = Source(1, 2, 3)
    stream = PeekableAsyncStream(source)
    assert await anext(stream) == 1
    closing = stream.cancel()
    assert await read(stream) == []
    await asyncio.wait_for(closing, LIMIT)
    assert source.unwound == ["GeneratorExit"]
    assert source.closed == 1


async def test_what_was_peeked_when_cancel_came_is_late() -> None:
    """An item that was only looked at is not handed out after `cancel()`, and counts as received."""
    stream = PeekableAsyncStream(Source(1, 2))
    assert await stream.peek() == 1
    await asyncio.wait_for(stream.cancel(), LIMIT)
    assert stream._late == [1]
    with pytest.raises(anyio.EndOfStream):
        await stream.peek()


async def test_the_outer_cancellation_wins() -> None:
    """When `task.cancel()` and ours meet, in either order, the task is cancelled."""
    for ours_first in (True, False):
        source = Source(then_wait=True)
        stream = PeekableAsyncStream(source)
        reader = asyncio.create_task(read(stream))
        await asyncio.wait_for(source.waiting.wait(), LIMIT)
        if ours_first:
            stream.cancel()
        reader.cancel()
        if not ours_first:
            stream.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(reader, LIMIT)
        await asyncio.wait_for(stream.close(), LIMIT)
        assert source.closed == 1


async def test_cancel_after_the_end_changes_nothing() -> None:
    """After a natural end `cancel()` is a no-op, and awaiting it returns at once."""
    source = Source(1)
    async with PeekableAsyncStream(source) as stream:
        assert await read(stream) == [1]
        await asyncio.wait_for(stream.cancel(), LIMIT)
        assert not stream.cancelled


async def test_closing_can_be_used_as_anyone_likes() -> None:
    """What `cancel()` returns may be dropped, awaited twice, made a task of, and handed to another loop."""
    stream = PeekableAsyncStream(Source(1, then_wait=True))
    closing = stream.cancel()
    assert isinstance(closing, Closing)
    await asyncio.wait_for(asyncio.gather(closing, asyncio.create_task(closing)), LIMIT)
    await closing
    stream.cancel()  # dropped
    await asyncio.wait_for(asyncio.to_thread(lambda: asyncio.run(_await(closing))), LIMIT)


async def _await(closing: Closing) -> None:
    await closing


async def test_eight_threads_cancel_at_once() -> None:
    """Any number of threads may cancel at the same moment: one cancel, one close."""
    source = Source(then_wait=True)
    stream = PeekableAsyncStream(source)
    reader = asyncio.create_task(read(stream))
    await asyncio.wait_for(source.waiting.wait(), LIMIT)
    barrier = threading.Barrier(8)
    futures: list[Any] = []
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        barrier.wait(LIMIT)
        futures.append(asyncio.run_coroutine_threadsafe(stream.cancel(), loop))

    threads = [threading.Thread(target=cancel) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert await asyncio.wait_for(reader, LIMIT) == []
    await asyncio.to_thread(lambda: [thread.join(LIMIT) for thread in threads])
    for future in futures:
        await asyncio.wait_for(asyncio.wrap_future(future), LIMIT)
    assert source.closed == 1


async def test_cancel_from_a_plain_signal_handler_wakes_an_idle_loop() -> None:
    """A handler set with `signal.signal` ends a pull although nothing else happens in the loop."""
    source = Source(then_wait=True)
    stream = PeekableAsyncStream(source)
    before = signal.signal(signal.SIGUSR1, lambda *_: stream.cancel())
    try:
        reader = asyncio.create_task(read(stream))
        await asyncio.wait_for(source.waiting.wait(), LIMIT)
        # Sent to the main thread while its loop sleeps in `select`.
        main = threading.main_thread().ident
        assert main is not None
        sender = threading.Timer(0.05, signal.pthread_kill, [main, signal.SIGUSR1])
        sender.start()
        done, _ = await asyncio.wait([reader], timeout=LIMIT)
        assert done
        assert reader.result() == []
        sender.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    await stream.close()


@pytest.mark.parametrize("suspends", [True, False])
async def test_inside_its_own_pull_nothing_waits_for_itself(suspends: bool) -> None:
    """`cancel()` and `close()` inside the stream's own pull return at once, and the loop ends."""

    async def source() -> AsyncIterator[int]:
        yield 1
        if suspends:
            await asyncio.sleep(0)
        await stream.cancel()
        await stream.close()
        yield 2

    stream = PeekableAsyncStream(source())
    assert await asyncio.wait_for(read(stream), LIMIT) == [1]
    await asyncio.wait_for(stream.close(), LIMIT)
    assert stream._late == [2]


async def test_a_forgotten_stream_is_closed_and_says_where_it_was_made() -> None:
    """A stream that was dropped without a close is closed, and warns with its place in debug mode."""
    source = Source(1, 2)
    asyncio.get_running_loop().set_debug(True)
    streams = [PeekableAsyncStream(source)]
    assert await anext(streams[0]) == 1
    with pytest.warns(ResourceWarning, match=r"made at .*test_peekable\.py:\d+, in test_a_forgotten"):
        streams.clear()
    while not source.closed:
        await asyncio.sleep(0)
    assert source.unwound == ["GeneratorExit"]


def test_a_stream_is_refused_what_it_cannot_iterate() -> None:
    """A synchronous stream is refused with the name of what serves it; anything else with a plain error."""
    with pytest.raises(TypeError, match=r"cancelstream\.sync"):
        PeekableAsyncStream([1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="__aiter__"):
        PeekableAsyncStream(1)  # type: ignore[arg-type]
