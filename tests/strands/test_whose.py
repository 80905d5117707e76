"""Whose stop it is: this run's, another run's of the agent, the agent's own, or that of the task that reads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

pytest.importorskip("strands", reason="needs cancelstream[strands]")

from strands.hooks import AfterInvocationEvent, AfterModelCallEvent
from strands_support import AGAIN, LIMIT, STUCK, agent_for, check_free, reading, record_of, texts

from cancelstream.strands import stream_async
from cancelstream.testing._plugin import StartServer


async def test_a_timeout_around_the_next_event(scripted_server: StartServer) -> None:
    """`asyncio.wait_for` around it runs out: the run was cut there, and says so inside the block already."""
    agent = agent_for(scripted_server(STUCK, AGAIN))
    async with stream_async(agent, "Hi") as stream:
        pieces = stream.stream_text(delta=True)
        assert [await asyncio.wait_for(anext(pieces), LIMIT) for _ in range(2)] == ["one", " two"]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(pieces), 0.1)
        assert (stream.cancelled, stream.cancel_reason) == (True, "task_cancelled")
        assert not stream.usage.complete
        assert record_of(agent.messages[-1])["reason"] == "task_cancelled"
        assert [text async for text in pieces] == []
    assert (stream.cancelled, stream.cancel_reason) == (True, "task_cancelled")
    await check_free(agent)


async def test_the_signal_that_runs_share_is_not_set(scripted_server: StartServer) -> None:
    """Where an agent may run several at once, no moment of a run's stop shows the others a stop."""
    agent = agent_for(scripted_server(STUCK, STUCK), concurrent_invocation_mode="unsafe_reentrant")
    seen: list[bool] = []

    def note(event: AfterModelCallEvent) -> None:
        seen.append(event.agent.cancel_signal.is_set())

    agent.hooks.add_callback(AfterModelCallEvent, note)
    first, second = stream_async(agent, "count"), stream_async(agent, "count too")
    async with first, second, reading(first) as one, reading(second) as two:
        await one.until_texts(2)
        await two.until_texts(2)
        await first.cancel("enough")
        await one.end()
        assert seen == [False]
        assert not two.task.done()


async def test_a_cancel_of_an_idle_agent_is_forgotten_once(scripted_server: StartServer) -> None:
    """The agent's own `cancel()` between two parts of one run ends it, though one from before the run did not."""
    agent = agent_for(scripted_server(AGAIN, AGAIN))

    def go_on(event: AfterInvocationEvent) -> None:
        if len(agent.messages) == 2:
            event.resume = "and then?"
            agent.cancel()

    agent.hooks.add_callback(AfterInvocationEvent, go_on)
    agent.cancel()
    events: list[dict[str, Any]] = [event async for event in stream_async(agent, "hello")]
    assert "".join(texts(events)) == "Here I am."
    assert events[-1]["result"].stop_reason == "cancelled"


async def test_a_signal_that_is_set_beside_a_cancel_of_an_idle_agent(scripted_server: StartServer) -> None:
    """The cancel was meant for no run; the signal is meant for this one, and ends it."""
    server = scripted_server(AGAIN)
    agent, stop = agent_for(server), threading.Event()
    stop.set()
    agent.cancel()
    events = [event async for event in stream_async(agent, "hello", cancel_signal=stop)]
    assert events[-1]["result"].stop_reason == "cancelled"
    assert not texts(events)
