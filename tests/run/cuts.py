"""Scripted runs of several turns, and the ways to cut them: what a property about every cut walks through."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, DeferredToolRequests, ModelMessage, ModelRetry, RunContext
from pydantic_ai.exceptions import CallDeferred
from pydantic_ai.messages import (
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolReturnPart,
)
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel

from cancelstream import Cancellable, check_history, is_incomplete, salvage

NEXT = "next"


class River(BaseModel):
    name: str
    length: int = 0


class Boom(Exception):
    """An error of the consumer's own."""


def think(text: str) -> dict[int, DeltaThinkingPart]:
    return {0: DeltaThinkingPart(content=text)}


def call(index: int, name: str, args: str = "{}") -> dict[int, DeltaToolCall]:
    return {index: DeltaToolCall(name=name, json_args=args, tool_call_id=f"{name}-{index}")}


def more(index: int, args: str) -> dict[int, DeltaToolCall]:
    return {index: DeltaToolCall(json_args=args)}


TOOLS = [think("hm"), call(1, "quick"), call(2, "slow")]
ANSWER = ["It", " is", " warm."]
RIVER = [think("hm"), call(1, "final_result", '{"name": "Rhi'), more(1, 'ne", "len'), more(1, 'gth": 12}')]


@dataclass(frozen=True)
class Script:
    """What the model says in each turn, and what the agent is."""

    name: str
    turns: list[list[Any]]
    output_type: Any = str
    end_strategy: Literal["early", "graceful", "exhaustive"] = "early"


SCRIPTS = [
    Script("text", [ANSWER]),
    Script("tools", [TOOLS, ANSWER]),
    Script("text and tools", [["Let me see.", *TOOLS[1:]], ANSWER], end_strategy="exhaustive"),
    Script("retry", [[call(1, "unsure")], [call(3, "unsure")], ANSWER]),
    Script("output", [TOOLS, RIVER], output_type=River),
    Script("output and tools", [[*RIVER, call(2, "quick")]], output_type=River, end_strategy="graceful"),
    Script("deferred", [[*TOOLS, call(3, "later")]], output_type=[str, DeferredToolRequests]),
    Script("deferred alone", [[call(3, "later")]], output_type=[str, DeferredToolRequests]),
]


@dataclass
class World:
    """One run of a script: its agent, and what happened."""

    script: Script
    ran: Counter[str] = field(default_factory=Counter[str])
    """How often each tool call was executed."""
    requests: int = 0
    goes_on: bool = False
    """The run is over, and the model is asked for the next turn."""

    def agent(self) -> Agent[None, Any]:
        async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
            turn = [NEXT] if self.goes_on else self.script.turns[self.requests]
            self.requests += 1
            for chunk in turn:
                await asyncio.sleep(0)
                yield chunk

        async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            assert self.goes_on
            return ModelResponse(parts=[TextPart(NEXT)])

        agent: Agent[None, Any] = Agent(
            FunctionModel(answer, stream_function=stream),
            output_type=self.script.output_type,
            end_strategy=self.script.end_strategy,
            capabilities=[Cancellable()],
        )

        @agent.tool
        async def quick(ctx: RunContext[Any]) -> str:
            self.ran[str(ctx.tool_call_id)] += 1
            await asyncio.sleep(0)
            return "22 degrees"

        @agent.tool
        async def slow(ctx: RunContext[Any]) -> str:
            self.ran[str(ctx.tool_call_id)] += 1
            for _ in range(3):
                await asyncio.sleep(0)
            return "sunny"

        @agent.tool
        async def unsure(ctx: RunContext[Any]) -> str:
            self.ran[str(ctx.tool_call_id)] += 1
            if ctx.retry == 0:
                raise ModelRetry("once more")
            return "sure"

        @agent.tool
        async def later(ctx: RunContext[Any]) -> str:
            self.ran[str(ctx.tool_call_id)] += 1
            raise CallDeferred

        return agent

    async def check(self, agent: Agent[None, Any], messages: list[ModelMessage], seen: str) -> None:
        """Hold the promise: no text is lost, and the next turn works after at most one `salvage()`."""
        text = "".join(part.content for m in messages for part in m.parts if isinstance(part, TextPart))
        assert text.startswith(seen)
        history = salvage(messages)
        check_history(history)
        assert salvage(history) == history
        before = Counter(self.ran)
        self.goes_on = True
        result = await agent.run("and?", message_history=history, output_type=str)
        assert result.output == NEXT
        assert self.ran == before
        assert set(self.ran.values()) <= {1}
        answered = [p.tool_call_id for m in result.all_messages() for p in m.parts if isinstance(p, ToolReturnPart)]
        assert len(answered) == len(set(answered))


def agrees(run: Any) -> None:
    """Hold the one truth: everything that says whether a run was cut says the same, once it has begun to answer."""
    if not run.new_messages():
        assert run.cancelled
        return
    cut = run.cancelled
    assert is_incomplete(run.all_messages()[-1]) == cut
    assert (run.response.state == "interrupted") == cut
    assert run.usage.complete == (not cut)
    assert (run.cancel_reason is not None) == cut


def text_of_event(event: Any) -> str:
    """The text that an event adds."""
    match event:
        case PartStartEvent(part=TextPart(content=text)) | PartDeltaEvent(delta=TextPartDelta(content_delta=text)):
            return text
        case _:
            return ""


Act = Literal["cancel", "break", "error"]
"""What a consumer does in its loop."""

Blow = Literal["cancel", "task", "timeout"]
"""What another task does to it."""


async def in_the_loop(run: Any, read: Callable[[Any], AsyncIterator[Any]], act: Act, at: int) -> tuple[list[Any], bool]:
    """Read a run and act at an item; return what was seen, and whether there was such an item."""
    seen: list[Any] = []
    try:
        async with run as result:
            async for item in read(result):
                seen.append(item)
                if len(seen) == at:
                    if act == "break":
                        break
                    if act == "error":
                        raise Boom
                    await result.cancel("pressed")
    except Boom:
        pass
    return seen, len(seen) >= at


async def from_outside(
    run: Any, read: Callable[[Any], AsyncIterator[Any]], blow: Blow, turns: int
) -> tuple[list[Any], bool]:
    """Read a run in a task that is struck after so many turns of the loop; return what it saw, and if it was struck."""
    seen: list[Any] = []
    limit = asyncio.timeout(None)

    async def reading() -> None:
        async with limit, run as result:
            async for item in read(result):
                seen.append(item)  # noqa: PERF401 - as it comes: the task may be cancelled

    task = asyncio.create_task(reading())
    for _ in range(turns):
        await asyncio.sleep(0)
    struck = not task.done()
    if struck:
        match blow:
            case "cancel":
                run.cancel("pressed")
            case "task":
                task.cancel()
            case "timeout":
                if turns == 0:
                    await asyncio.sleep(0)  # the timeout begins with the task
                limit.reschedule(asyncio.get_running_loop().time())
    await asyncio.wait([task], timeout=20)
    assert task.done()
    if not task.cancelled():
        error = task.exception()
        assert error is None or (blow == "timeout" and isinstance(error, TimeoutError)), repr(error)
    return seen, struck
