"""Who may call `cancel()`: anyone, from anywhere."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio

from cancelstream import PeekableAsyncStream

from .conftest import H1, H2, LIMIT, SILENT, Wire

MakeWire = Callable[..., Wire]
MAIN = ("httpx2", "httpx-tls", "aiohttp", "httpx2-h2-tls")


async def texts(stream: PeekableAsyncStream[Any], after: Callable[[str], object] = lambda _: None) -> list[str]:
    got: list[str] = []
    async for chunk in stream:
        if text := chunk.choices[0].delta.content:
            got.append(text)
            after(text)
    return got


async def reading(wire: Wire) -> tuple[PeekableAsyncStream[Any], asyncio.Task[list[str]]]:
    """A stream whose last chunk has come, and a reader that waits for the next."""
    stream = PeekableAsyncStream(await wire.open("silent:3"))
    third = asyncio.Event()
    reader = asyncio.create_task(texts(stream, lambda text: third.set() if text == "2 " else None))
    await asyncio.wait_for(third.wait(), LIMIT)
    for _ in range(12):
        await asyncio.sleep(0)
    return stream, reader


async def ended(wire: Wire, stream: PeekableAsyncStream[Any], reader: asyncio.Task[list[str]]) -> None:
    done, _ = await asyncio.wait([reader], timeout=LIMIT)
    assert done, "the reader hangs"
    assert reader.result() == ["0 ", "1 ", "2 "]
    assert reader.cancelling() == 0
    assert stream.cancelled
    await asyncio.wait_for(stream.cancel(), LIMIT)
    await wire.until_told()
    again = await wire.open("silent:3")
    await again.close()


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_the_consumer_itself(name: str, make_wire: MakeWire) -> None:
    """`stream.cancel()` in the middle of the loop over it: no further chunk, and the loop ends."""
    wire = make_wire(name, SILENT, SILENT)
    stream = PeekableAsyncStream(await wire.open("silent:3"))
    assert await texts(stream, lambda text: stream.cancel() if text == "1 " else None) == ["0 ", "1 "]
    await asyncio.wait_for(stream.close(), LIMIT)
    await wire.until_told()


@pytest.mark.parametrize("name", MAIN)
async def test_inside_the_pull(name: str, make_wire: MakeWire) -> None:
    """A decoder that cancels the stream it decodes for: the chunk it was working on is not handed out."""
    wire = make_wire(name, SILENT, SILENT)
    source = await wire.open("silent:3")
    stream = PeekableAsyncStream(source)
    decode = source._decoder.decode

    def cancelling(line: str) -> Any:
        if '"1 "' in line:
            stream.cancel()
        return decode(line)

    source._decoder.decode = cancelling
    assert await asyncio.wait_for(texts(stream), LIMIT) == ["0 "]
    await asyncio.wait_for(stream.close(), LIMIT)
    await wire.until_told()
    late = [chunk.choices[0].delta.content for chunk in stream._late]
    assert late[0] == "1 "


@pytest.mark.parametrize("name", [*H1, *H2])
async def test_eight_threads_at_once(name: str, make_wire: MakeWire) -> None:
    """One of them cancels, the others change nothing, and each may wait for the close on the stream's loop."""
    wire = make_wire(name, SILENT, SILENT)
    stream, reader = await reading(wire)
    loop = asyncio.get_running_loop()
    barrier = threading.Barrier(8)
    waiting: list[Any] = []

    def cancel() -> None:
        barrier.wait(LIMIT)
        waiting.append(asyncio.run_coroutine_threadsafe(stream.cancel(), loop))

    threads = [threading.Thread(target=cancel) for _ in range(8)]
    for thread in threads:
        thread.start()
    await ended(wire, stream, reader)
    for thread in threads:
        await asyncio.to_thread(thread.join, LIMIT)
    for future in waiting:
        await asyncio.wait_for(asyncio.wrap_future(future), LIMIT)


@pytest.mark.parametrize("name", MAIN)
async def test_a_handler_of_the_loops(name: str, make_wire: MakeWire) -> None:
    """`loop.add_signal_handler(SIGUSR1, stream.cancel)`."""
    wire = make_wire(name, SILENT, SILENT)
    stream, reader = await reading(wire)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, stream.cancel)
    try:
        signal.raise_signal(signal.SIGUSR1)
        await ended(wire, stream, reader)
    finally:
        loop.remove_signal_handler(signal.SIGUSR1)


@pytest.mark.parametrize("name", MAIN)
async def test_a_plain_handler_on_an_idle_loop(name: str, make_wire: MakeWire) -> None:
    """`signal.signal` runs it while the loop sleeps in `select`, and nothing else would wake it."""
    wire = make_wire(name, SILENT, SILENT)
    stream, reader = await reading(wire)
    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGUSR1, lambda *_: stream.cancel())
    sender = threading.Timer(0.1, signal.pthread_kill, [main, signal.SIGUSR1])
    sender.start()
    try:
        await ended(wire, stream, reader)
    finally:
        signal.signal(signal.SIGUSR1, before)
        sender.join(LIMIT)


async def three() -> AsyncIterator[int]:
    for number in range(3):
        yield number


class TestWithoutALoop:
    def test_made_before_there_is_one(self) -> None:
        """A stream that is made outside of a loop belongs to the loop that first uses it."""
        stream = PeekableAsyncStream(three())

        async def main() -> list[int]:
            async with stream:
                return [number async for number in stream]

        assert asyncio.run(main()) == [0, 1, 2]

    def test_cancelled_before_there_is_one(self) -> None:
        """It yields nothing then, and is closed by whoever comes first: a pull, a close, or an await of the cancel."""
        closed: list[str] = []

        class Source:
            def __aiter__(self) -> AsyncIterator[int]:
                return three()

            async def close(self) -> None:
                closed.append("closed")

        async def pull(stream: PeekableAsyncStream[int]) -> None:
            assert [number async for number in stream] == []
            await stream.close()

        async def close(stream: PeekableAsyncStream[int]) -> None:
            await stream.close()

        async def wait(stream: PeekableAsyncStream[int]) -> None:
            await stream.cancel()

        for how in (pull, close, wait):
            stream = PeekableAsyncStream(Source())
            stream.cancel()
            assert stream.cancelled
            asyncio.run(asyncio.wait_for(how(stream), LIMIT))
        assert closed == ["closed"] * 3

    def test_a_closed_loop(self) -> None:
        """`cancel()` after the loop was closed raises nothing, and awaiting it elsewhere returns."""
        stream: PeekableAsyncStream[int] = PeekableAsyncStream(three())

        async def begin() -> None:
            await anext(stream)

        asyncio.run(begin())
        closing = stream.cancel()
        assert stream.cancelled

        async def wait() -> None:
            await asyncio.wait_for(closing, LIMIT)
            assert [number async for number in stream] == []

        asyncio.run(wait())

    def test_a_loop_that_shuts_down_meanwhile(self) -> None:
        """`asyncio.run` that ends right after the cancel cancels the closing too: it is finished all the same."""
        closed: list[str] = []

        class Source:
            async def __aiter__(self) -> AsyncIterator[int]:
                try:
                    yield 1
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0)
                    closed.append("unwound")

            async def close(self) -> None:
                await asyncio.sleep(0)
                closed.append("closed")

        async def main() -> None:
            stream = PeekableAsyncStream(Source())
            await anext(stream)
            stream.cancel()

        asyncio.run(main(), debug=True)
        assert closed == ["unwound", "closed"]


class TestOtherLoops:
    async def test_awaited_on_another_threads_loop(self, make_wire: MakeWire) -> None:
        """What `cancel()` returned, awaited where the stream does not live."""
        wire = make_wire("httpx2", SILENT, SILENT)
        stream, reader = await reading(wire)

        async def elsewhere() -> bool:
            await asyncio.wait_for(stream.cancel(), LIMIT)
            await asyncio.wait_for(stream.close(), LIMIT)
            return True

        assert await asyncio.to_thread(asyncio.run, elsewhere())
        await ended(wire, stream, reader)

    @pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
    async def test_eager_tasks(self, make_wire: MakeWire) -> None:
        """With tasks that run at once, up to their first wait, everything stays as it is."""
        loop = asyncio.get_running_loop()
        factory = loop.get_task_factory()
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
        try:
            probe = asyncio.sleep(0)
            try:
                await asyncio.create_task(probe)
            except TypeError:
                probe.close()
                if not type(loop).__module__.startswith("uvloop"):
                    raise
                pytest.skip("newer versions of uvloop hand this factory what it takes from Python 3.14 on")
            wire = make_wire("httpx2", SILENT, SILENT)
            stream, reader = await reading(wire)
            stream.cancel()
            await ended(wire, stream, reader)
        finally:
            loop.set_task_factory(factory)

    def test_trio_is_told_at_construction(self) -> None:
        """Under trio it says what to use instead, before anything was done."""

        async def main() -> None:
            with pytest.raises(RuntimeError, match=r"trio\.CancelScope"):
                PeekableAsyncStream(three())

        trio.run(main)

    def test_trio_is_told_at_the_first_pull(self) -> None:
        """So does a stream that was made outside of it."""
        stream = PeekableAsyncStream(three())

        async def main() -> None:
            with pytest.raises(RuntimeError, match=r"trio\.CancelScope"):
                await anext(stream)

        trio.run(main)
        asyncio.run(stream.close())
