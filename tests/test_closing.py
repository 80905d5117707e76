"""What `cancel()` returns: a wait for a close that may be dropped, awaited again, and given to any loop or thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from cancelstream._closing import DONE, Closing, Latch

LIMIT = 10


async def until_waited_for(latch: Latch) -> None:
    async with asyncio.timeout(LIMIT):
        while not latch._waiters:
            await asyncio.sleep(0)


def test_it_says_whether_it_is_done() -> None:
    """In its `repr`, for it is what a debugger shows of a `cancel()`."""
    latch = Latch()
    closing = Closing(latch)
    assert (repr(closing), latch.is_set()) == ("<Closing pending>", False)
    latch.set()
    assert (repr(closing), latch.is_set()) == ("<Closing done>", True)
    assert repr(Closing(DONE)) == "<Closing done>"


def test_it_may_be_dropped() -> None:
    """Without the warning that a coroutine gives which nobody has awaited."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closing = Closing(Latch())
        del closing
        gc.collect()


async def in_a_task(closing: Closing) -> None:
    await asyncio.create_task(closing)


async def plainly(closing: Closing) -> None:
    await closing


async def in_another_thread(closing: Closing) -> None:
    await asyncio.to_thread(asyncio.run, plainly(closing))


WAYS: list[Callable[[Closing], Any]] = [plainly, in_a_task, in_another_thread]


@pytest.mark.parametrize("way", WAYS)
async def test_waits_end_with_the_close(way: Callable[[Closing], Any]) -> None:
    """Not before it, all at once, and each later one returns at once."""
    latch = Latch()
    closing = Closing(latch)
    waits = [asyncio.create_task(way(closing)) for _ in range(3)]
    async with asyncio.timeout(LIMIT):
        while len(latch._waiters) < 3:
            await asyncio.sleep(0)
        assert not any(wait.done() for wait in waits)
        latch.set()
        await asyncio.gather(*waits)
        await way(closing)
    assert latch._waiters == {}


async def test_a_close_of_another_thread() -> None:
    """Wakes the loop that waits, which may be asleep."""
    latch = Latch()
    waiting = asyncio.create_task(Latch.wait(latch))
    await until_waited_for(latch)
    thread = threading.Thread(target=latch.set)
    thread.start()
    await asyncio.wait_for(waiting, LIMIT)
    thread.join(LIMIT)


async def test_a_caller_from_inside_does_not_wait_for_itself() -> None:
    """It would wait for ever."""
    async with asyncio.timeout(LIMIT):
        await Closing(Latch(), lambda: True)


@pytest.mark.parametrize("again", WAYS)
async def test_a_wait_that_is_given_up(again: Callable[[Closing], Any]) -> None:
    """A cancellation goes to the waiter, nothing of the wait is left, and the next one waits anew."""
    latch = Latch()
    closing = Closing(latch)
    first = asyncio.create_task(closing)
    await until_waited_for(latch)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert latch._waiters == {}
    second = asyncio.create_task(again(closing))
    await until_waited_for(latch)
    assert not second.done()
    latch.set()
    await asyncio.wait_for(second, LIMIT)


async def test_a_waiter_whose_loop_is_closed_keeps_nobody_waiting() -> None:
    """The others are woken all the same."""
    latch = Latch()
    waiting = asyncio.create_task(latch.wait())
    await until_waited_for(latch)

    def wait_in_a_loop_that_is_closed() -> Closing:
        closing = Closing(latch)

        async def begin() -> None:
            closing.send(None)

        asyncio.run(begin())
        return closing

    left = await asyncio.to_thread(wait_in_a_loop_that_is_closed)
    assert len(latch._waiters) == 2
    latch.set()
    await asyncio.wait_for(waiting, LIMIT)
    assert repr(left) == "<Closing done>"


class TestDrivenAsACoroutine:
    """`create_task` and its like call `send`, `throw` and `close`."""

    async def test_an_error_that_is_thrown_into_it(self) -> None:
        """It comes out, with its traceback; in the old form of `throw` too. The next wait is a new one."""
        latch = Latch()
        closing = Closing(latch)
        boom = ValueError("boom")
        try:
            raise KeyError
        except KeyError as error:
            traceback = error.__traceback__
        closing.send(None)
        with pytest.raises(asyncio.CancelledError):
            closing.throw(asyncio.CancelledError)
        for thrown in (boom,), (ValueError, boom), (ValueError, boom, traceback):
            assert closing.send(None) is not None
            with pytest.raises(ValueError, match="boom") as it:
                closing.throw(*thrown)
            assert it.value is boom
            assert latch._waiters == {}
        frames, lines = it.value.__traceback__, set[Any]()
        while frames is not None:
            lines.add(frames.tb_frame.f_code.co_name + str(frames.tb_lineno))
            frames = frames.tb_next
        assert traceback is not None
        assert traceback.tb_frame.f_code.co_name + str(traceback.tb_lineno) in lines

    async def test_closing_it_gives_the_wait_up(self) -> None:
        """At once, as often as one likes, and before there was one."""
        latch = Latch()
        closing = Closing(latch)
        closing.close()
        closing.send(None)
        assert len(latch._waiters) == 1
        closing.close()
        assert latch._waiters == {}
        closing.close()
        latch.set()
        with pytest.raises(StopIteration):
            closing.send(None)

    def test_without_a_loop(self) -> None:
        """What is done needs none."""
        with pytest.raises(StopIteration):
            Closing(DONE).send(None)
        Closing(DONE).close()

    async def test_two_tasks_that_drive_one(self) -> None:
        """Each has a wait of its own: one that gives up leaves the other's."""
        latch = Latch()
        closing = Closing(latch)
        gives_up, goes_on = (asyncio.create_task(closing) for _ in range(2))
        async with asyncio.timeout(LIMIT):
            while len(latch._waiters) < 2:
                await asyncio.sleep(0)
        gives_up.cancel()
        await asyncio.wait([gives_up])
        assert not goes_on.done()
        latch.set()
        await asyncio.wait_for(goes_on, LIMIT)
        assert gives_up.cancelled()

    async def test_what_is_thrown_comes_out_of_the_wait_that_is_there(self) -> None:
        """Not of a second one: the first would stay registered."""
        latch, boom = Latch(), ValueError("boom")
        closing = Closing(latch)
        waited_for = closing.send(None)
        assert list(latch._waiters) == [waited_for]
        with pytest.raises(ValueError, match="boom"):
            closing.throw(boom)
        assert list(latch._waiters) == []
