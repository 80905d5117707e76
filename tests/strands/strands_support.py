"""Agents over a scripted server, and a reader that says how far it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from strands import Agent
from strands.models.openai import OpenAIModel

from cancelstream.testing import Answer, Gate, Record, ScriptedServer, Silence, Text

LIMIT = 10
"""Seconds that anything may take here."""

STUCK = Answer(Text("one", " two", Silence()))
AGAIN = Answer(Text("Here", " I am."))


def model_for(server: ScriptedServer, **kwargs: Any) -> OpenAIModel:
    """Make strands' OpenAI model for a server."""
    arguments = {"api_key": "not-a-key", "base_url": server.base_url, "max_retries": 0}
    return OpenAIModel(client_args=arguments, model_id="gpt-4o", **kwargs)


def agent_for(server: ScriptedServer, **kwargs: Any) -> Agent:
    """Make an agent for a server, with whatever else `Agent` takes; it prints nothing."""
    return Agent(**{"model": model_for(server), "callback_handler": None, **kwargs})


def texts(events: list[dict[str, Any]]) -> list[str]:
    """The pieces of text among these events."""
    return [event["data"] for event in events if "data" in event]


async def collect(stream: Any) -> tuple[list[dict[str, Any]], Exception | None]:
    """All events, and the error they ended with, if they did."""
    events: list[dict[str, Any]] = []
    try:
        async for event in stream:
            events.append(event)  # noqa: PERF401  (those before the error count)
    except Exception as error:
        return events, error
    return events, None


class Reading:
    """Reads a stream in a task of its own."""

    def __init__(self, stream: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._read(stream))

    async def _read(self, stream: Any) -> None:
        try:
            async for event in stream:
                self.events.append(event)
                self._changed.set()
        finally:
            self._changed.set()

    @property
    def texts(self) -> list[str]:
        """The pieces of text so far."""
        return texts(self.events)

    async def until(self, reached: Callable[[Reading], bool]) -> None:
        """Return when this is so."""
        async with asyncio.timeout(LIMIT):
            while not reached(self):
                assert not self.task.done(), f"ended with {self.events[-3:]}"
                self._changed.clear()
                await self._changed.wait()

    async def until_texts(self, number: int) -> None:
        """Return when this many pieces of text were read."""
        await self.until(lambda reading: len(reading.texts) >= number)

    async def end(self) -> list[dict[str, Any]]:
        """Wait for the end of the loop, and return all events."""
        async with asyncio.timeout(LIMIT):
            await self.task
        return self.events


@asynccontextmanager
async def reading(stream: Any) -> AsyncIterator[Reading]:
    """Read a stream while the block runs, and leave no task behind."""
    reader = Reading(stream)
    try:
        yield reader
    finally:
        reader.task.cancel()
        await asyncio.wait([reader.task])


async def left_at(record: Record) -> float:
    """Wait until the client of this request has left, and say when."""
    return await record.until_disconnected(LIMIT)


async def check_free(agent: Agent) -> None:
    """The agent can be called at once, and its history is accepted."""
    answer = await agent.invoke_async("and now?")
    assert answer.stop_reason == "end_turn"
    assert str(answer).strip() == "Here I am."


def record_of(message: Any) -> dict[str, Any]:
    """What is recorded with a message."""
    return message["metadata"]["custom"]["cancelstream"]


def gated(*pieces: str) -> tuple[Answer, Gate]:
    """An answer that waits at a gate after these pieces, and then says one more."""
    gate = Gate()
    return Answer(Text(*pieces, gate, " end")), gate
