"""The far side of a scenario: a connection that must be given back, and a source that reads from it.

The connection behaves like those of the HTTP libraries: whoever gives it back first does it, once, under anyio's
shield; if that is torn, it is never given back. Everything that goes wrong is noted in `wrong`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import anyio

from .scenario import Scenario, Step
from .scripted_loop import TURN, ScriptedLoop


class SourceError(Exception):
    """What the source raises by itself, or because its connection was closed."""


class World:
    def __init__(self, loop: ScriptedLoop, scenario: Scenario) -> None:
        self.loop = loop
        self.scenario = scenario
        self.trace: list[str] = []
        self.wrong: list[str] = []
        self.made: list[int] = []  # items that the source yielded
        self.error_raised = False
        self.tolerant = False  # the source swallowed a cancellation: it may be lost
        self.stubborn = False  # it swallows every one
        self.over = False  # the run is over: whoever swallows may end
        self.slot_free = True
        self.torn = False  # giving back was interrupted
        self.releasing = False
        self.closed = 0
        self.response_closed = False
        self.unwinding = False  # the source was cancelled, and cleans up
        self.children: list[asyncio.Task[Any]] = []
        self.waits: set[asyncio.Future[None]] = set()
        # What happens to the consumer from inside the source; set by the run.
        self.cancel: Callable[[], Any] = lambda: None
        self.close: Callable[[], Awaitable[None]]
        self.task_cancel: Callable[[], Any] = lambda: None
        self.outer_count: Callable[[], int] = lambda: 0

    def note(self, what: str) -> None:
        self.trace.append(f"{self.loop.turn:4} {what}")

    def wait(self, turns: int) -> asyncio.Future[None]:
        """A future that is done in that many turns."""
        future = self.loop.create_future()
        self.waits.add(future)

        def done() -> None:
            self.waits.discard(future)
            if not future.done():
                future.set_result(None)

        self.loop.place(turns, done, 0.3)
        return future

    async def read(self, turns: int) -> None:
        """Wait for the connection, as every real wait of a source does."""
        if self.response_closed:
            raise SourceError("closed")
        await self.wait(turns)
        if self.response_closed:
            raise SourceError("closed")

    async def shielded(self, turns: int) -> None:
        """A stretch that anyio shields, of bare yields only. A cancellation thrown here breaks the connection."""
        with anyio.CancelScope(shield=True):
            try:
                for _ in range(turns):
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                self.wrong.append("a cancellation was thrown into a shielded stretch")
                raise

    async def release(self) -> None:
        """Give the connection back."""
        if self.releasing:
            return
        self.releasing = True
        before = self.outer_count()
        try:
            with anyio.CancelScope(shield=True):
                for step in self.scenario.release:
                    if step.kind == "wait":
                        await self.wait(step.turns)
                    else:
                        await self.shielded(step.turns)
        except BaseException as error:
            self.note(f"giving back was torn by {error!r}")
            self.torn = True
            # At the end of a source that ended by itself, its clean-up is a wait like any other.
            if self.unwinding and isinstance(error, asyncio.CancelledError) and self.outer_count() == before:
                self.wrong.append("a clean-up was torn that nobody cancelled")
            raise
        self.slot_free = True

    async def take(self, step: Step) -> None:
        """One step of the source, other than yielding an item."""
        self.note(f"source: {step.kind} {step.turns}")
        await getattr(self, f"_{step.kind}")(step.turns)

    async def _wait(self, turns: int) -> None:
        await self.read(turns)

    async def _bare(self, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def _shielded(self, turns: int) -> None:
        await self.shielded(turns)

    async def _poll_anyio(self, turns: int) -> None:
        for _ in range(turns):
            with anyio.move_on_after(1.5 * TURN):
                await self.read(4)

    async def _poll_asyncio(self, turns: int) -> None:
        for _ in range(turns):
            try:
                async with asyncio.timeout(1.5 * TURN):
                    await self.read(4)
            except TimeoutError:
                # An `asyncio.timeout` that runs out takes a cancellation of its own wait that is not
                # `task.cancel()` for its own: ours may be lost in it, until the deadline.
                self.tolerant = True

    async def _child(self, turns: int) -> None:
        await self._task(self.read(turns))

    async def _gather(self, turns: int) -> None:
        await asyncio.gather(self._task(self.read(turns)), self._task(self.read(1)))

    async def _cancelled_child(self, turns: int) -> None:
        child = self._task(self.read(turns + 3))
        self.loop.place(turns, child.cancel, 0.6)
        try:
            await child
        except asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            if task.cancelling():
                raise
            if self.cancelled_by_us():
                raise
        await self.read(turns)

    def cancelled_by_us(self) -> bool:
        return False

    async def _swallow(self, turns: int) -> None:
        self.tolerant = True
        try:
            await self.read(turns)
        except asyncio.CancelledError:
            await self.read(turns)

    async def _stubborn(self, turns: int) -> None:
        self.tolerant = self.stubborn = True
        while not self.over:
            try:
                await self.loop.create_future()
            except asyncio.CancelledError:
                self.note("source: swallowed")

    async def _stubborn_child(self, turns: int) -> None:
        self.tolerant = self.stubborn = True
        await self._task(self._stubborn(turns))

    async def _spin(self, turns: int) -> None:
        self.stubborn = True
        while True:
            await asyncio.sleep(0)

    async def _error(self, turns: int) -> None:
        self.error_raised = True
        raise SourceError("by itself")

    async def _cancel_inside(self, turns: int) -> None:
        self.cancel()

    async def _close_inside(self, turns: int) -> None:
        await self.close()

    async def _task_cancel_inside(self, turns: int) -> None:
        self.task_cancel()

    def _task(self, coroutine: Any) -> asyncio.Task[Any]:
        task = self.loop.create_task(coroutine)
        self.children.append(task)
        return task


class Response:
    """An HTTP response, as far as closing goes."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.extensions: dict[str, Any] = {}

    @property
    def is_closed(self) -> bool:
        return self._world.response_closed

    async def aclose(self) -> None:
        world = self._world
        world.note("response: aclose")
        if not world.response_closed:
            world.response_closed = True
            for wait in list(world.waits):  # a pending read sees it
                if not wait.done():
                    wait.set_result(None)
            await world.release()


async def steps(world: World) -> AsyncGenerator[int]:
    """The source proper."""
    world.slot_free = False
    try:
        for step in world.scenario.steps:
            if step.kind == "item":
                item = len(world.made)
                world.made.append(item)
                world.note(f"source: yields {item}")
                yield item
            else:
                await world.take(step)
    except BaseException as error:
        world.note(f"source: unwinds from {error!r}")
        world.unwinding = isinstance(error, asyncio.CancelledError)
        raise
    finally:
        try:
            for _ in range(world.scenario.lead_in):
                await asyncio.sleep(0)
        finally:
            await world.release()
        world.note("source: has unwound")


async def chained(world: World, depth: int) -> AsyncGenerator[int]:
    inner = steps(world) if depth == 0 else chained(world, depth - 1)
    try:
        async for item in inner:
            yield item
    finally:
        await inner.aclose()


class Iterator:
    """Iterates as `openai.AsyncStream` does: `__anext__` is a coroutine function over a generator."""

    def __init__(self, world: World) -> None:
        self._generator = steps(world)

    def __aiter__(self) -> AsyncIterator[int]:
        return self

    async def __anext__(self) -> int:
        return await self._generator.__anext__()

    async def aclose(self) -> None:
        await self._generator.aclose()


class AwaitableIterator(Iterator):
    """One whose `__anext__` returns some other awaitable."""

    def __anext__(self) -> Any:
        return _Awaitable(self._generator.__anext__())


class _Awaitable:
    def __init__(self, awaitable: Awaitable[int]) -> None:
        self._awaitable = awaitable

    def __await__(self) -> Generator[Any, Any, int]:
        return self._awaitable.__await__()


class Source:
    """What the stream is given."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.generators: list[Any] = []
        if world.scenario.has_response:
            self.response = Response(world)
        if world.scenario.close == "none":
            self.aclose = None

    def __aiter__(self) -> AsyncIterator[int]:
        world = self._world
        match world.scenario.kind:
            case "generator":
                return steps(world)
            case "chain":
                return chained(world, 1)
            case "iterator":
                return Iterator(world)
            case _:
                return AwaitableIterator(world)

    async def close(self) -> None:
        """Closes as the scenario has it."""
        world = self._world
        world.closed += 1
        world.note(f"source: close ({world.scenario.close})")
        match world.scenario.close:
            case "raises":
                raise SourceError("while closing")
            case "waits":
                await world.wait(3)
            case "stuck":
                await world.loop.create_future()
            case "swallows":
                while not world.over:
                    try:
                        await world.loop.create_future()
                    except asyncio.CancelledError:
                        world.note("source: close swallowed")
            case _:
                pass
        if not world.slot_free and not world.releasing:
            await world.release()
