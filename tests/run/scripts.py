"""Runs to compare: what their models say, what their agents have, and how they are called."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, DeferredToolRequests, ModelMessage, ModelRetry, NativeOutput, TextOutput, UsageLimits
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.profiles import ModelProfile


class City(BaseModel):
    name: str
    people: int = 0


Deltas = dict[int, DeltaToolCall] | dict[int, DeltaThinkingPart] | str


def call(index: int, tool: str, *arguments: str) -> Iterator[Deltas]:
    """A tool call whose arguments come in pieces."""
    yield {index: DeltaToolCall(tool, "", tool_call_id=f"call-{tool}-{index}")}
    for piece in arguments:
        yield {index: DeltaToolCall(json_args=piece)}


def scripted(*turns: list[Deltas] | Exception) -> FunctionModel:
    """A model that says the same in each run: one list of deltas a turn."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        turn = turns[sum(isinstance(message, ModelResponse) for message in messages)]
        if isinstance(turn, Exception):
            raise turn
        for delta in turn:
            yield delta

    return FunctionModel(stream_function=stream, profile=ModelProfile(supports_json_schema_output=True))


WORDS: list[Deltas] = ["The ", "cat ", "", "sat."]
LOOK: list[Deltas] = [*call(0, "look", '{"x"', ': "a"}'), *call(1, "look", '{"x": "b"}')]
THINK: list[Deltas] = [
    {0: DeltaThinkingPart(content="Let me")},
    {0: DeltaThinkingPart(content=" think.", signature="s")},
    "Done.",
]
CITY: list[Deltas] = [*call(0, "final_result", '{"name": "Par', 'is", "people"', ": 2}")]


@dataclass
class Script:
    """A run: its model, its agent, and the call."""

    model: Callable[[], Model]
    agent: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    tools: bool = False
    prepare: Callable[[Agent[None, Any]], None] = lambda agent: None

    def make(self, *capabilities: Any) -> Agent[None, Any]:
        agent = Agent(self.model(), name="agent", capabilities=capabilities, **self.agent)
        if self.tools:

            @agent.tool_plain
            async def look(x: str) -> str:
                if x == "b" and "retry" in self.options.get("conversation_id", ""):
                    raise ModelRetry("not b")
                return f"{x} apple"

            @agent.tool_plain
            async def fail(x: str) -> str:
                raise ValueError(f"no {x}")

        self.prepare(agent)
        return agent

    @property
    def kwargs(self) -> dict[str, Any]:
        return {"run_id": "run-1", "conversation_id": "conversation-1", **self.options}


def upper(text: str) -> str:
    return text.upper()


def ask(x: int) -> int:
    return x


def refuse_paris(agent: Agent[None, Any]) -> None:
    """An output that has to be asked for twice."""

    @agent.output_validator
    def check(city: City) -> City:
        if city.name == "Paris":
            raise ModelRetry("another one")
        return city


BUSY = ModelHTTPError(503, "model", "busy")
ROME: list[Deltas] = [*call(0, "final_result", '{"name": "Rome"', "}")]
HISTORY: list[ModelMessage] = [ModelRequest.user_text_prompt("before")]

SCRIPTS: dict[str, Script] = {
    "text": Script(lambda: scripted(WORDS)),
    "text of a test model": Script(lambda: TestModel(custom_output_text="The cat sat on the mat.")),
    "thinking": Script(lambda: scripted(THINK)),
    "history": Script(lambda: scripted(WORDS), options={"message_history": HISTORY}),
    "tools": Script(lambda: scripted(LOOK, WORDS), tools=True),
    "tools of a test model": Script(TestModel, {"output_type": City}, tools=True),
    "text before a tool": Script(lambda: scripted(["I look. ", *LOOK], WORDS), tools=True),
    "a tool that asks again": Script(
        lambda: scripted(LOOK, [*call(0, "look", '{"x": "c"}')], WORDS),
        tools=True,
        options={"conversation_id": "retry"},
    ),
    "a tool that fails": Script(lambda: scripted([*call(0, "fail", '{"x": "a"}')]), tools=True),
    "a tool that is unknown": Script(lambda: scripted([*call(0, "other", "{}")], WORDS), tools=True),
    "output tool": Script(lambda: scripted(CITY), {"output_type": City}),
    "output tool beside a tool, early": Script(
        lambda: scripted([*CITY, *call(1, "look", '{"x": "a"}')]),
        {"output_type": City, "end_strategy": "early"},
        tools=True,
    ),
    "output tool beside a tool, exhaustive": Script(
        lambda: scripted([*CITY, *call(1, "look", '{"x": "a"}')]),
        {"output_type": City, "end_strategy": "exhaustive"},
        tools=True,
    ),
    "native output": Script(lambda: scripted(['{"name": "Ro', 'me"}']), {"output_type": NativeOutput(City)}),
    "text output": Script(lambda: scripted(WORDS), {"output_type": TextOutput(upper)}),
    "an output that is refused once": Script(lambda: scripted(CITY, ROME), {"output_type": City}, prepare=refuse_paris),
    "an output that is refused for good": Script(
        lambda: scripted(CITY, CITY, CITY), {"output_type": City, "retries": 1}, prepare=refuse_paris
    ),
    "an output that is none": Script(
        lambda: scripted([*call(0, "final_result", "{}")] * 1), {"output_type": City, "retries": 0}
    ),
    "deferred": Script(
        lambda: scripted([*call(0, "ask", '{"x": 1}')]),
        {"output_type": [str, DeferredToolRequests]},
        prepare=lambda agent: agent.tool_plain(requires_approval=True)(ask) and None,
    ),
    "no answer": Script(lambda: scripted([], WORDS)),
    "an HTTP error": Script(lambda: scripted(BUSY)),
    "an HTTP error in the second turn": Script(lambda: scripted(LOOK, BUSY), tools=True),
    "an error of the model's own": Script(lambda: scripted(RuntimeError("broken"))),
    "a limit on requests": Script(
        lambda: scripted(LOOK, WORDS), tools=True, options={"usage_limits": UsageLimits(request_limit=1)}
    ),
    "a limit on tokens": Script(lambda: scripted(WORDS), options={"usage_limits": UsageLimits(output_tokens_limit=2)}),
    "limits that are kept": Script(
        lambda: scripted(LOOK, WORDS),
        tools=True,
        options={"usage_limits": UsageLimits(output_tokens_limit=40, total_tokens_limit=400, tool_calls_limit=2)},
    ),
}
