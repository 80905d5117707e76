"""A conversation can always go on: runs of several turns, cut at every moment by every means."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any
from zlib import crc32

import pytest
from pydantic_ai import Agent, CancellationToken, ModelMessage, capture_run_messages
from pydantic_ai.exceptions import RunCancelled

from cancelstream import IncompleteOutputError, run_stream, run_stream_events
from cancelstream.sync import run_stream as run_stream_sync

from .cuts import SCRIPTS, Act, Blow, Boom, Script, World, agrees, from_outside, in_the_loop, text_of_event

ACTS: list[Act] = ["cancel", "break", "error"]
BLOWS: list[Blow] = ["cancel", "task", "timeout"]
STRIDE = 8
"""In the suite, the items from one cut to the next, and the tenth part of the turns of the loop; a soak takes each."""


def first(step: int, *case: object) -> int:
    """Where a case begins, from 0: each somewhere else, for more moments in all."""
    return crc32(repr(case).encode()) % step


LONG = pytest.mark.parametrize(
    "stride", [pytest.param(STRIDE, id="some"), pytest.param(1, id="every", marks=pytest.mark.soak)]
)
SCRIPT = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name.replace(" ", "-"))


def snapshots(result: Any) -> Any:
    return result.stream_response(debounce_by=None)


def outputs(result: Any) -> Any:
    return result.stream_output(debounce_by=None)


def grouped(result: Any) -> Any:
    return result.stream_response()


def events(result: Any) -> Any:
    return result


def text_seen(seen: list[Any]) -> str:
    """The text of the last snapshot, or of the events."""
    if seen and hasattr(seen[-1], "text"):
        return seen[-1].text or ""
    return "".join(map(text_of_event, seen))


async def check(world: World, agent: Agent[None, Any], run: Any, seen: list[Any]) -> None:
    agrees(run)
    if run_has_output := getattr(run, "get_output", None):
        if run.cancelled:
            with pytest.raises(IncompleteOutputError):
                await run_has_output()
        elif run.new_messages():
            await run_has_output()
    await world.check(agent, run.all_messages(), text_seen(seen))


Door = tuple[Callable[..., Any], Callable[[Any], AsyncIterator[Any]]]
DOORS: list[Door] = [
    (run_stream, snapshots),
    (run_stream_events, events),
    (run_stream, outputs),
    (run_stream, grouped),
]
NAMES = ["snapshots", "events", "outputs", "grouped"]


@SCRIPT
@pytest.mark.parametrize("door", DOORS, ids=NAMES)
@pytest.mark.parametrize("act", ACTS)
@LONG
async def test_at_every_item(script: Script, door: Door, act: Act, stride: int) -> None:
    """By `cancel()`, `break` or an error in the loop, at each event and each snapshot."""
    make, read = door
    at, there = 1 + first(stride, script.name, act, DOORS.index(door)), True
    while there:
        world = World(script)
        agent = world.agent()
        run = make(agent, "go")
        seen, there = await in_the_loop(run, read, act, at)
        await check(world, agent, run, seen)
        at += stride


@SCRIPT
@pytest.mark.parametrize("door", DOORS[:2], ids=NAMES[:2])
@pytest.mark.parametrize("blow", BLOWS)
@LONG
async def test_at_every_turn_of_the_loop(script: Script, door: Door, blow: Blow, stride: int) -> None:
    """By another task: `cancel()`, a cancellation of the consumer's task, or a timeout; and no task is left."""
    make, read = door
    step = 1 if stride == 1 else 10 * stride + 1
    soonest = 0 if blow == "cancel" else 1  # a task that is cancelled before its first turn does not run at all
    turns, struck = soonest + first(step, script.name, blow, DOORS.index(door)), True
    while struck:
        world = World(script)
        agent = world.agent()
        before = asyncio.all_tasks()
        run = make(agent, "go")
        seen, struck = await from_outside(run, read, blow, turns)
        for _ in range(5):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        await check(world, agent, run, seen)
        turns += step


@pytest.fixture
def thread_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop of this thread, which blocking runs are driven on; closed after the test."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    asyncio.set_event_loop(None)
    loop.close()


@SCRIPT
@pytest.mark.parametrize("act", ACTS)
@LONG
def test_blocking(script: Script, act: Act, stride: int, thread_loop: asyncio.AbstractEventLoop) -> None:
    """The same at each snapshot of a blocking run."""
    at, there = 1 + first(stride, script.name, act), True
    while there:
        world, seen = World(script), list[Any]()
        agent = world.agent()
        run = run_stream_sync(agent, "go")
        with suppress(Boom), run as result:
            for item in result.stream_response(debounce_by=None):
                seen.append(item)
                if len(seen) == at:
                    if act == "break":
                        break
                    if act == "error":
                        raise Boom
                    result.cancel("pressed")
        there = len(seen) >= at
        agrees(run)
        thread_loop.run_until_complete(world.check(agent, run.all_messages(), text_seen(seen)))
        at += stride


# --- pydantic-ai's own methods, with the capability --------------------------------------------------------------


@SCRIPT
@pytest.mark.parametrize("act", ACTS)
@LONG
async def test_own_run_stream(script: Script, act: Act, stride: int) -> None:
    """`agent.run_stream()` with `Cancellable()`, at each snapshot, by its own `cancel()`, `break` and an error."""
    at, there = 1 + first(stride, script.name, act), True
    while there:
        world, seen = World(script), list[Any]()
        agent = world.agent()
        with suppress(Boom), capture_run_messages() as messages:
            async with agent.run_stream("go") as result:
                async for item in result.stream_response(debounce_by=None):
                    seen.append(item)
                    if len(seen) == at:
                        if act == "break":
                            break
                        if act == "error":
                            raise Boom
                        await result.cancel()
                        messages = result.all_messages()
        there = len(seen) >= at
        await world.check(agent, messages, text_seen(seen))
        at += stride


@SCRIPT
@pytest.mark.parametrize("by", ["token", "task"])
@LONG
async def test_own_run_stream_events(script: Script, by: str, stride: int) -> None:
    """`agent.run_stream_events()` with `Cancellable()`, at each turn of the loop, by its token and by its task."""
    step = 1 if stride == 1 else 10 * stride + 1
    turns, struck = 1 + first(step, script.name, by), True
    while struck:
        world, seen, messages = World(script), list[Any](), list[ModelMessage]()
        agent, token = world.agent(), CancellationToken()

        async def reading() -> None:
            try:
                async with agent.run_stream_events("go", cancellation_token=token) as stream:  # noqa: B023
                    async for event in stream:
                        seen.append(event)  # noqa: B023
                        if event.event_kind == "agent_run_result":
                            messages.extend(event.result.all_messages())  # noqa: B023
            except (RunCancelled, asyncio.CancelledError) as error:
                cancelled = RunCancelled.from_cancellation(error)
                if cancelled is not None and not messages:  # noqa: B023
                    messages.extend(cancelled.all_messages())  # noqa: B023

        before = asyncio.all_tasks()
        task = asyncio.create_task(reading())
        for _ in range(turns):
            await asyncio.sleep(0)
        struck = not task.done()
        if by == "token":
            token.cancel()
        else:
            task.cancel()
        await asyncio.wait([task])
        # pydantic-ai's own runs leave a task behind at a few moments.
        for left in asyncio.all_tasks() - before - {task}:
            left.cancel()
            await asyncio.wait([left])
        if messages:
            await world.check(agent, messages, text_seen(seen))
        turns += step
