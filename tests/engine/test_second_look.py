"""A thread that stops a stream at the very moment in which its reader registers: the reader looks a second time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cancelstream import PeekableAsyncStream
from cancelstream._closing import Latch

LIMIT = 5.0


class Waiters(dict[Any, Any]):
    """Has the latch set by another thread just before a waiter is in it: that thread finds nobody to wake."""

    def __init__(self, latch: Latch) -> None:
        super().__init__()
        self._latch = latch

    def __setitem__(self, key: Any, value: Any) -> None:
        self._latch.set()
        super().__setitem__(key, value)


async def test_a_latch_is_set_before_its_waiter_is_registered() -> None:
    """The waiter returns all the same, and leaves nothing."""
    latch = Latch()
    latch._waiters = Waiters(latch)
    await asyncio.wait_for(latch.wait(), LIMIT)
    assert not latch._waiters


@pytest.mark.parametrize("first", [True, False], ids=["registered first", "registered last"])
async def test_a_waiter_whose_loop_is_closed(first: bool) -> None:
    """It keeps none of the others from being woken."""
    latch, gone = Latch(), asyncio.new_event_loop()
    stranded = latch.wait()

    def strand() -> None:
        own = asyncio._get_running_loop()
        asyncio._set_running_loop(gone)
        stranded.send(None)
        asyncio._set_running_loop(own)
        gone.close()

    if first:
        strand()
    waiting = [asyncio.create_task(latch.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    if not first:
        strand()
    latch.set()
    await asyncio.wait_for(asyncio.gather(*waiting), LIMIT)
    stranded.close()


async def test_a_stream_is_stopped_while_its_reader_takes_the_fast_path() -> None:
    """What the stop cleared is set again by then: the reader sees the mark, and hands out nothing."""

    class Source:
        at_registering: Callable[[], object] = staticmethod(lambda: None)

        def __aiter__(self) -> Any:
            return self

        async def _next(self) -> int:
            return 1

        @property
        def __anext__(self) -> Callable[[], Coroutine[Any, Any, int]]:
            self.at_registering()
            return self._next

    source = Source()
    async with PeekableAsyncStream[int](source) as stream:
        assert await anext(stream) == 1
        assert await stream.peek() == 1  # the next pull is a slow one
        source.at_registering = stream.cancel
        assert [item async for item in stream] == [1]
        assert stream.cancelled
        assert [item async for item in stream] == []
        assert stream._next is None
