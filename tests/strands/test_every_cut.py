"""Runs of several turns with tools, stopped at every event in every way: the conversation goes on, and nothing is lost.

The model is in this process, and lets go of the loop between two chunks, as one that reads a connection does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from strands import Agent, tool
from strands.models import Model
from strands_support import LIMIT

from cancelstream.strands import CancellableAgentStream, stream_async


def said(*words: str) -> list[dict[str, Any]]:
    return [*({"contentBlockDelta": {"delta": {"text": word}}} for word in words), {"contentBlockStop": {}}]


def called(tool_use_id: str, name: str) -> list[dict[str, Any]]:
    return [
        {"contentBlockStart": {"start": {"toolUse": {"toolUseId": tool_use_id, "name": name}}}},
        {"contentBlockDelta": {"delta": {"toolUse": {"input": '{"city": '}}}},
        {"contentBlockDelta": {"delta": {"toolUse": {"input": f'"{tool_use_id}"}}'}}}},
        {"contentBlockStop": {}},
    ]


def answer(stop_reason: str, *blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    usage = {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}
    return [
        {"messageStart": {"role": "assistant"}},
        *(chunk for block in blocks for chunk in block),
        {"messageStop": {"stopReason": stop_reason}},
        {"metadata": {"usage": usage, "metrics": {"latencyMs": 1}}},
    ]


TURNS = (
    answer("tool_use", said("Let", " me", " look."), called("Paris", "slow"), called("Rome", "quick")),
    answer("tool_use", called("Oslo", "plain")),
    answer("end_turn", said("Take", " an", " umbrella.")),
)
LAST = "Take an umbrella."


class Scripted(Model):
    """A model that gives one answer after the other, and a short one to every prompt that comes behind them."""

    def __init__(self) -> None:
        self.turns = list(TURNS)
        self.seen: list[Any] = []

    def update_config(self, **config: Any) -> None:
        raise NotImplementedError

    def get_config(self) -> Any:
        return {}

    def structured_output(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError

    async def stream(self, messages: Any, *_args: Any, **_kwargs: Any) -> AsyncIterator[Any]:
        self.seen = [*messages]
        for chunk in self.turns.pop(0) if self.turns else answer("end_turn", said("Fine.")):
            await asyncio.sleep(0)
            yield chunk


class Run:
    """One run, stopped at an event."""

    def __init__(self) -> None:
        self.model = Scripted()
        self.ran: list[str] = []

        @tool
        async def slow(city: str) -> str:
            """Look out of the window."""
            self.ran.append(city)
            await asyncio.sleep(0)
            return f"{city}: rain"

        @tool
        async def quick(city: str) -> str:
            """Look at once."""
            self.ran.append(city)
            return f"{city}: sun"

        @tool
        def plain(city: str) -> str:
            """Look from a thread."""
            self.ran.append(city)
            return f"{city}: snow"

        self.agent = Agent(model=self.model, callback_handler=None, tools=[slow, quick, plain])
        self.stream = stream_async(self.agent, "Do I need an umbrella?")
        self.text = ""
        self.events = 0

    def take(self, event: dict[str, Any]) -> None:
        self.events += 1
        self.text += event.get("data", "")

    async def check(self) -> None:
        """Hold it to the promises, and go on with the conversation."""
        agent, stream, where = self.agent, self.stream, self.events
        # One truth.
        flagged = [m for m in agent.messages if "custom" in m.get("metadata", {})]
        assert stream.cancelled == (stream.cancel_reason is not None) == (not stream.usage.complete), where
        assert len(flagged) <= int(stream.cancelled), where
        if not stream.cancelled:
            assert agent.messages[-1]["content"] == [{"text": LAST}], where
            assert self.text.endswith(LAST), where
        # Nothing is lost, and nothing is open.
        blocks = [block for message in agent.messages for block in message["content"]]
        assert self.text in "".join(block.get("text", "") for block in blocks), where
        calls = [block["toolUse"]["toolUseId"] for block in blocks if "toolUse" in block]
        results = [block["toolResult"]["toolUseId"] for block in blocks if "toolResult" in block]
        assert sorted(calls) == sorted(results), where
        # It goes on.
        self.model.turns.clear()
        result = await asyncio.wait_for(agent.invoke_async("And now?"), LIMIT)
        assert str(result).strip() == "Fine.", where
        assert len(self.ran) == len(set(self.ran)), where
        roles = [message["role"] for message in self.model.seen]
        assert roles[-1] == "user", where


async def by_cancel(run: Run, cut: int) -> None:
    async with run.stream as stream:
        async for event in stream:
            run.take(event)
            if run.events == cut:
                stream.cancel("enough")
                assert stream.cancelled == (stream.cancel_reason is not None) == (not stream.usage.complete)


async def by_break(run: Run, cut: int) -> None:
    async with run.stream as stream:
        async for event in stream:
            run.take(event)
            if run.events == cut:
                break


async def _soon(stop: Callable[[], object], turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    stop()


def by_another_task(turns: int) -> Any:
    async def cut_by_another_task(run: Run, cut: int) -> None:
        tasks: list[asyncio.Task[None]] = []
        async with run.stream as stream:
            async for event in stream:
                run.take(event)
                if run.events == cut:
                    tasks.append(asyncio.create_task(_soon(lambda: stream.cancel("enough"), turns)))
        await asyncio.gather(*tasks)

    return cut_by_another_task


def by_its_task(turns: int) -> Any:
    async def cut_by_its_task(run: Run, cut: int) -> None:
        async def read() -> None:
            async with run.stream as stream:
                async for event in stream:
                    run.take(event)
                    if run.events == cut:
                        stoppers.append(asyncio.create_task(_soon(reader.cancel, turns)))

        stoppers: list[asyncio.Task[None]] = []
        reader = asyncio.create_task(read())
        await asyncio.wait([reader])
        await asyncio.gather(*stoppers)

    return cut_by_its_task


WAYS = {
    "cancel": by_cancel,
    "break": by_break,
    **{f"another task, {turns} turns later": by_another_task(turns) for turns in (0, 1, 3)},
    **{f"task cancelled, {turns} turns later": by_its_task(turns) for turns in (0, 1, 3)},
}


@pytest.mark.parametrize("way", WAYS)
async def test_stopped_at_every_event(way: str) -> None:
    """The next turn works without a repair, no tool runs twice, no text is lost, and all that tells of it agrees."""
    asyncio.get_running_loop().set_debug(False)
    whole: list[bool] = []
    for cut in range(1, 100):
        run = Run()
        async with asyncio.timeout(LIMIT):
            await WAYS[way](run, cut)
        reached = run.events >= cut
        whole.append(not run.stream.cancelled)
        await run.check()
        if not reached:
            break
    assert not reached
    # It is whole from one event on: the one that says how the answer ended.
    assert whole == sorted(whole)
    assert whole.count(True) >= 4  # behind the end come the usage, the message and the result


async def test_whole_from_the_event_that_says_the_end() -> None:
    """`messageStop` of the last turn, with what it was to be followed by left unseen; its usage is estimated then."""
    run = Run()
    stops = 0
    async with run.stream as stream:
        async for event in stream:
            run.take(event)
            stops += "messageStop" in event.get("event", {})
            if stops == len(TURNS):
                stream.cancel("enough")
    assert (stream.cancelled, stream.cancel_reason, stream.usage.complete) == (False, None, True)
    assert stream.usage.provenance in ("estimated", "mixed")
    assert run.agent.messages[-1]["metadata"]["usage"]["outputTokens"] > 0
    await run.check()


async def test_an_output_that_is_still_to_come() -> None:
    """A run that ends in a structured output is not whole with its text."""
    from pydantic import BaseModel

    class Weather(BaseModel):
        sky: str

    run = Run()
    run.model.turns = [TURNS[-1]]
    stream: CancellableAgentStream = stream_async(run.agent, "How is it?", structured_output_model=Weather)
    async with stream:
        async for event in stream:
            if "messageStop" in event.get("event", {}):
                stream.cancel("enough")
    assert stream.cancelled
