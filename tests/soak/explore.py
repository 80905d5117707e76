"""One run of a scenario against an engine, and what must hold of it.

The engine is `cancelstream`'s own modules, or a copy of them with a planted fault. What is checked is what the user
is promised; nothing looks into the engine.
"""

from __future__ import annotations

import asyncio
import warnings
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio

from .faults import Engine
from .scenario import Scenario, draw
from .scripted_loop import ScriptedLoop, Stuck
from .world import Source, SourceError, World

DEADLINE = 1.0  # seconds: documented


@dataclass
class Outcome:
    scenario: Scenario
    wrong: list[str]
    trace: list[str]

    def __str__(self) -> str:
        lines = [f"seed {self.scenario.seed}: " + "; ".join(self.wrong), str(self.scenario), *self.trace]
        return "\n".join(lines)


class Boom(Exception):
    """What a sibling in the consumer's task group fails with."""


class Run:
    """One scenario, run once."""

    def __init__(self, engine: Engine, loop: ScriptedLoop, scenario: Scenario) -> None:
        self.engine = engine
        self.loop = loop
        self.scenario = scenario
        self.world = World(loop, scenario)
        self.stream: Any = engine.PeekableAsyncStream(Source(self.world))
        self.late: list[int] = self.stream._late
        self.received: list[int] = []
        self.pulls_lost = False  # a pull of the consumer's own was thrown away with its result
        self.consumer: asyncio.Task[None] | None = None
        self.helpers: list[asyncio.Task[Any]] = []
        self.scope: anyio.CancelScope | None = None
        self.sibling: asyncio.Future[None] | None = None
        self.timeout: asyncio.Timeout | None = None
        self.guard: Any = None
        self.saw = ""  # what the consumer's outer context saw
        self.ended = False  # the loop over the stream ended by itself
        self.cancelled_ours = False
        self.requested: list[str] = []  # outer cancellations that were accepted
        self.inside = False  # the consumer is inside its outer context
        self.dropped = False

    # --- what happens -------------------------------------------------------------------------------------

    def cancel(self) -> Any:
        if self.stream is None:
            return None
        closing = self.stream.cancel()
        self.world.note(f"cancel() -> {self.stream.cancelled}")
        self.cancelled_ours = self.cancelled_ours or self.stream.cancelled
        if self.guard is not None:
            self.guard.cancel()
        return closing

    async def close(self, stream: Any) -> None:
        if stream is not None:
            self.world.note("close()")
            self.cancelled_ours = True
            await stream.close()

    def task_cancel(self) -> None:
        if self.consumer is not None and not self.consumer.done() and self.consumer.cancel():
            self.world.note("task.cancel()")
            self.requested.append("task")

    def outer_count(self) -> int:
        """Another number whenever somebody else has cancelled the consumer once more."""
        if "group" in self.requested:
            return self.loop.turn  # the group cancels it some turns after its child has failed
        others = sum(helper.cancelling() for helper in self.helpers)
        return len(self.requested) + others + (self.timeout is not None and self.timeout.expired())

    def happen(self, kind: str) -> None:
        match kind:
            case "cancel":
                self.cancel()
            case "await":
                closing = self.cancel()
                if closing is not None:
                    self.helpers.append(self.loop.create_task(closing))
            case "task":
                self.task_cancel()
            case "scope" if self.scope is not None and self.inside:
                self.world.note("scope.cancel()")
                self.requested.append("scope")
                self.scope.cancel()
            case "group" if self.sibling is not None and not self.sibling.done() and self.inside:
                self.world.note("the sibling fails")
                self.sibling.set_exception(Boom())
            case "close" if self.stream is not None:
                self.helpers.append(self.loop.create_task(self.close(self.stream)))
            case _:
                pass

    # --- the consumer ---------------------------------------------------------------------------------------

    async def consume(self) -> None:
        try:
            match self.scenario.outer:
                case "timeout":
                    self.timeout = asyncio.timeout_at(self.loop.time() + self.scenario.timeout * 0.001)
                    try:
                        async with self.timeout:
                            await self.inside_outer()
                    except TimeoutError:
                        self.saw = "timeout"
                    self.check(
                        not self.timeout.expired() or self.saw == "timeout" or self.world.tolerant, "a timeout was lost"
                    )
                case "scope":
                    with anyio.CancelScope() as self.scope:
                        await self.inside_outer()
                    self.saw = "scope" if self.scope.cancelled_caught else ""
                case "group":
                    try:
                        async with asyncio.TaskGroup() as group:
                            self.sibling = self.loop.create_future()
                            group.create_task(self.fail(self.sibling))
                            try:
                                await self.inside_outer()
                            finally:
                                if not self.sibling.done():
                                    self.sibling.set_result(None)
                    except* Boom:
                        self.saw = "group"
                    except* SourceError:
                        self.saw = "error"
                        self.check(self.world.error_raised, "an error of our own closing came out")
                case _:
                    await self.inside_outer()
        except SourceError:
            self.saw = "error"
            self.check(self.world.error_raised, "an error of our own closing came out")
        # Whatever is left of a cancellation comes out here.
        for _ in range(3):
            await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        # A task group of 3.11 leaves a count behind when its sibling fails while it is being left.
        if "task" not in self.requested and self.scenario.outer != "group":
            self.check(task.cancelling() == 0, f"cancelling() is {task.cancelling()} in the end")

    async def fail(self, sibling: asyncio.Future[None]) -> None:
        try:
            await sibling
        except Boom:
            self.requested.append("group")
            raise

    async def inside_outer(self) -> None:
        self.inside = True
        try:
            await self.read()
            for _ in range(3):
                await asyncio.sleep(0)
        finally:
            self.inside = False

    async def read(self) -> None:
        stream = self.stream
        match self.scenario.consumer:
            case "with":
                async with stream:
                    await self.loop_over(stream)
            case "peek":
                async with stream:
                    while not await stream.is_exhausted():
                        await self.turns(self.scenario.pause)
                        try:
                            seen = await stream.peek()
                        except anyio.EndOfStream:
                            break
                        try:
                            taken = await anext(stream)
                        except StopAsyncIteration:
                            break
                        self.check(seen == taken, f"peek() saw {seen}, {taken} was pulled")
                        self.take(taken)
                    self.ended = True
            case "prefetch":
                async with stream:
                    await self.prefetch(stream)
            case "two":
                async with stream:
                    other = self.loop.create_task(self.loop_over(stream))
                    self.helpers.append(other)
                    self.pulls_lost = True
                    try:
                        await self.loop_over(stream)
                    finally:
                        other.cancel()
            case "nested":
                async with self.engine.PeekableAsyncStream(stream) as outer:
                    await self.loop_over(outer)
            case "guarded":
                async with stream:
                    await self.guarded(stream)
            case "destroyed":
                async with stream:
                    await self.destroyed(stream)
            case "dropped":
                del stream
                self.dropped = True
                await self.turns(self.scenario.pause)
                try:
                    self.take(await anext(self.stream))
                    self.take(await anext(self.stream))
                except StopAsyncIteration:
                    self.ended = True
                finally:
                    self.stream = None
            case _:
                await self.loop_over(stream)

    async def loop_over(self, stream: Any) -> None:
        async for item in stream:
            self.take(item)
            await self.turns(self.scenario.pause)
        self.ended = True

    async def guarded(self, stream: Any) -> None:
        """Pull through a guard, with layers in between, as a run does; both are cancelled together."""
        self.guard = self.engine.Interruptible()
        while not self.guard.cancelled:
            try:
                await self.guard.run(self.layer(stream))
            except (StopAsyncIteration, self.engine.Interrupted):
                break
            await self.turns(self.scenario.pause)
        self.ended = True

    async def layer(self, stream: Any) -> None:
        item = await anext(stream)
        self.take(item)

    async def destroyed(self, stream: Any) -> None:
        """Begin a pull and throw it away while it waits, as when its task is collected."""
        pull = anext(stream)
        try:
            waits_on = pull.send(None)
        except StopIteration as done:
            self.take(done.value)
        except StopAsyncIteration:
            pass
        else:
            if waits_on is not None:
                waits_on._asyncio_future_blocking = False
            self.dropped = True
            await self.turns(self.scenario.pause)
            pull.close()
        self.ended = True

    async def prefetch(self, stream: Any) -> None:
        """Pull in tasks of its own, as a consumer that debounces does."""
        self.pulls_lost = True
        while True:
            pull = self.loop.create_task(self.pull(stream))
            self.helpers.append(pull)
            await asyncio.wait([pull])
            if not pull.result():
                break
            await self.turns(self.scenario.pause)
        self.ended = True

    async def pull(self, stream: Any) -> bool:
        try:
            self.take(await anext(stream))
        except StopAsyncIteration:
            return False
        return True

    def take(self, item: int) -> None:
        self.world.note(f"consumer: got {item}")
        self.check(not self.cancelled_ours, f"item {item} was handed out after cancel()")
        self.received.append(item)

    async def turns(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    # --- what must hold -------------------------------------------------------------------------------------

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.world.wrong.append(what)

    async def main(self) -> None:
        world, loop = self.world, self.loop
        world.cancel = self.cancel
        world.task_cancel = self.task_cancel
        world.outer_count = self.outer_count

        world.close = lambda: self.close(self.stream)
        self.consumer = loop.create_task(self.consume())
        for action in self.scenario.actions:
            loop.place(action.turn, lambda kind=action.kind: self.happen(kind), action.where)  # type: ignore[misc]
        await asyncio.wait([self.consumer])
        self.judge_consumer(self.consumer)
        # What nobody has closed is closed now.
        if self.stream is not None:
            started = loop.time()
            await self.stream.close()
            self.check(loop.time() - started < 1.5 * DEADLINE, "close() took longer than the deadline")
        self.stream = None
        await self.settle()
        self.judge_rest()

    async def settle(self) -> None:
        mine = asyncio.current_task()
        self.world.over = True
        for child in self.world.children:
            child.cancel()
        others = {task for task in asyncio.all_tasks() if task is not mine}
        if others:
            _, left = await asyncio.wait(others, timeout=3 * DEADLINE)
            self.check(not left, f"still running: {left}")
            for task in left:
                task.cancel()
        await self.turns(8)

    def judge_consumer(self, consumer: asyncio.Task[None]) -> None:
        world = self.world
        if consumer.cancelled():
            self.check("task" in self.requested, "a CancelledError that nobody asked for came out")
            return
        error = consumer.exception()
        if error is not None:
            raise error
        if not world.tolerant:
            # Before 3.13 a task group that fails, by a sibling or in its body, drops a cancellation that came with it.
            dropped_by_group = self.saw == "group" or (self.scenario.outer == "group" and self.saw == "error")
            self.check("task" not in self.requested or dropped_by_group, "a task.cancel() was lost")
            if self.saw != "error":  # which passes by the end of the outer context's body
                self.check("scope" not in self.requested or self.saw == "scope", "a cancelled scope was lost")
                self.check("group" not in self.requested or self.saw == "group", "a failing group was lost")
        if not self.requested and not self.dropped and self.saw not in ("timeout", "error"):
            self.check(self.ended, "the loop did not end")

    def judge_rest(self) -> None:
        world = self.world
        for helper in self.helpers:
            if helper.done() and not helper.cancelled() and helper.exception() is not None:
                self.check(isinstance(helper.exception(), SourceError), f"{helper.exception()!r} in {helper}")
        everything = self.received + self.late
        if self.pulls_lost or self.requested or self.saw == "timeout":
            self.check(sorted(everything) == sorted(set(everything)), f"handed out twice: {everything}")
        else:
            self.check(everything == world.made, f"made {world.made}, got {self.received}, late {self.late}")
        tearable = any(step.kind == "wait" for step in self.scenario.release)
        bounded = world.stubborn or self.scenario.close in ("stuck", "swallows", "none")
        if not (world.torn and tearable) and not bounded and not self.dropped:
            self.check(world.slot_free, "the connection was not given back")
        if self.scenario.close != "none" and not world.stubborn and not (self.dropped and self.ended):
            self.check(world.closed == 1, f"the source was closed {world.closed} times")
        self.check(not self.loop.complaints, f"the loop complained: {self.loop.complaints}")


def run(engine: Engine, loop: ScriptedLoop, seed: int) -> Outcome:
    """Run the scenario of a seed."""
    loop.reset()
    scenario = draw(seed)
    one = Run(engine, loop, scenario)
    task = loop.create_task(one.main())
    try:
        loop.run_until_complete(task)
    except Stuck as stuck:
        one.world.wrong.append(f"stuck: {stuck}")
        give_up(loop, one.world)
    return Outcome(scenario, one.world.wrong, one.world.trace)


def give_up(loop: ScriptedLoop, world: World) -> None:
    """End what a run that got stuck has left, as far as it can be ended."""
    loop.reset()
    world.over = True
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    with suppress(Stuck):
        loop.run_until_complete(asyncio.wait(left, timeout=5 * DEADLINE))


@dataclass
class Report:
    runs: int
    distinct: int
    first: Outcome | None
    """The first run that went wrong."""


def explore(engine: Engine, first_seed: int, runs: int, *, eager: bool = False) -> Report:
    """Run the scenarios of so many seeds, up to the first that goes wrong."""
    seen: set[int] = set()
    loop = ScriptedLoop()
    if eager:
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # of the streams that a scenario drops
            for seed in range(first_seed, first_seed + runs):
                outcome = run(engine, loop, seed)
                seen.add(hash(tuple(outcome.trace)))
                if outcome.wrong:
                    return Report(seed - first_seed + 1, len(seen), outcome)
    finally:
        loop.close()
    return Report(runs, len(seen), None)
