"""Histories that end in tool calls without results: refused, repaired, or passed to pydantic-ai to go on with."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, ModelMessage
from pydantic_ai.exceptions import CallDeferred
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel

from cancelstream import Cancellable, IncompleteHistoryError, check_history, is_incomplete, run_stream, salvage
from cancelstream._history import INTERRUPTED_TOOL_RESULT, apply_policy

WHEN = datetime(2026, 1, 1, tzinfo=UTC)


def user(text: str = "hi") -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(text)])


def calls(*names: str, **fields: Any) -> ModelResponse:
    return ModelResponse(parts=[ToolCallPart(name, "{}", name) for name in names], timestamp=WHEN, **fields)


class TestGuardAndRepair:
    @pytest.mark.parametrize("strange", ["yes", ["closed"], 1, None, True])
    def test_a_forged_record(self, strange: Any) -> None:
        """Only a record as `salvage` writes it lets a cut message pass."""
        cut = ModelResponse(parts=[], state="interrupted", metadata={"cancelstream": {"v": 1, "salvage": strange}})
        assert is_incomplete(cut)

    def test_refused_with_what_to_do(self) -> None:
        """The error names the message, says what is missing and what to do, and goes through a pickle."""
        with pytest.raises(
            IncompleteHistoryError, match=r"message 1, .*no results follow.*deferred_tool_results"
        ) as it:
            check_history([user(), calls("a")])
        assert (it.value.index, it.value.state, it.value.reason) == (1, "complete", None)
        again = pickle.loads(pickle.dumps(it.value))
        assert str(again) == str(it.value)

    @pytest.mark.parametrize(
        "history",
        [
            [user(), calls("a"), ModelRequest(parts=[ToolReturnPart("a", "sunny", "a")])],
            [user(), calls("a", "b"), ModelRequest(parts=[ToolReturnPart("a", "sunny", "a")])],
            [user(), calls("a", state="suspended")],
            [user(), ModelResponse(parts=[TextPart("whole")])],
            [],
        ],
        ids=["answered", "deferred in part", "suspended", "no calls", "empty"],
    )
    def test_what_passes(self, history: list[ModelMessage]) -> None:
        """Calls with results, results that may still be given, and what its provider goes on with."""
        check_history(history)
        assert salvage(history) == history

    def test_closed(self) -> None:
        """`salvage` answers each call with the placeholder: at the response's time, so that it reads no clock."""
        history: list[ModelMessage] = [user(), calls("a", "b", run_id="run", conversation_id="talk")]
        salvaged = salvage(history)
        assert salvaged[:2] == history
        request = salvaged[2]
        assert isinstance(request, ModelRequest)
        assert (request.run_id, request.conversation_id, request.timestamp) == ("run", "talk", WHEN)
        for part, name in zip(request.parts, "ab", strict=True):
            assert isinstance(part, ToolReturnPart)
            assert (part.tool_call_id, part.content, part.outcome) == (name, INTERRUPTED_TOOL_RESULT, "interrupted")
            assert part.timestamp == WHEN
        check_history(salvaged)
        assert salvage(salvaged) == salvaged

    def test_only_at_the_end(self) -> None:
        """A call in the middle is pydantic-ai's affair, which closes it as it sends the history."""
        history: list[ModelMessage] = [user(), calls("a"), user("and?")]
        check_history(history)
        assert salvage(history) == history

    @pytest.mark.parametrize("tool_calls", ["drop", "close"])
    def test_a_call_without_a_name_is_dropped(self, tool_calls: Any) -> None:
        """No API takes a call whose name had not arrived."""
        cut = ModelResponse(parts=[TextPart("x"), ToolCallPart("", "", "a"), ToolCallPart("b", "{", "b")])
        salvaged = salvage([user(), ModelResponse(parts=cut.parts, state="interrupted")], tool_calls=tool_calls)
        names = [part.tool_name for part in salvaged[1].parts if isinstance(part, ToolCallPart)]
        assert names == ([] if tool_calls == "drop" else ["b"])
        assert "" not in [getattr(part, "tool_name", None) for message in salvaged for part in message.parts]
        check_history(salvaged)

    def test_the_policy(self) -> None:
        """Refused or repaired where a prompt follows; passed where pydantic-ai runs the calls, or has their results."""
        history: list[ModelMessage] = [user(), calls("a")]
        with pytest.raises(IncompleteHistoryError):
            apply_policy(history, "refuse")
        assert apply_policy(history, "salvage") == salvage(history)
        assert apply_policy(history, "allow") == history
        assert apply_policy(history, "refuse", has_prompt=False) == history
        for policy in ("refuse", "salvage"):
            assert apply_policy(history, policy, awaits_results=True) == history


class TestRuns:
    """Through an agent with the capability, and through `run_stream`, which adds it."""

    def agent(self, ran: list[str], history: Any = "refuse", *, defers: bool = False) -> Agent[None, Any]:
        async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            last = messages[-1]
            assert isinstance(last, ModelRequest)
            wanted = any(isinstance(part, UserPromptPart) and part.content == "call" for part in last.parts)
            return calls("book") if wanted else ModelResponse(parts=[TextPart("done")])

        async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
            yield (await answer(messages, info)).text or ""

        agent = Agent(
            FunctionModel(answer, stream_function=stream),
            output_type=[str, DeferredToolRequests],
            capabilities=[Cancellable(history=history)],
        )

        @agent.tool_plain
        async def book() -> str:
            if defers:
                raise CallDeferred
            ran.append("book")
            return "booked"

        return agent

    async def test_with_a_prompt(self) -> None:
        """A new prompt on such a history is refused before anything is sent, and the next turn works once salvaged."""
        ran: list[str] = []
        agent = self.agent(ran)
        with pytest.raises(IncompleteHistoryError):
            await agent.run("and?", message_history=[user(), calls("book")])
        with pytest.raises(IncompleteHistoryError):
            async with run_stream(agent, "and?", message_history=[user(), calls("book")]):
                pass
        result = await agent.run("and?", message_history=salvage([user(), calls("book")]))
        assert (result.output, ran) == ("done", [])

    async def test_the_policy_salvage(self) -> None:
        """`history='salvage'` repairs it on the way, and leaves the caller's list alone."""
        ran: list[str] = []
        history: list[ModelMessage] = [user(), calls("book")]
        async with run_stream(self.agent(ran, "salvage"), "and?", message_history=history) as result:
            assert await result.get_output() == "done"
        assert (len(history), ran) == (2, [])

    async def test_without_a_prompt(self) -> None:
        """pydantic-ai runs calls that a history ends in, once."""
        ran: list[str] = []
        result = await self.agent(ran).run(message_history=[user(), calls("book")])
        assert (result.output, ran) == ("done", ["book"])

    @pytest.mark.parametrize("history", ["refuse", "salvage"])
    @pytest.mark.parametrize("prompt", ["and?", None])
    async def test_deferred_results(self, history: Any, prompt: str | None) -> None:
        """A run that ended in deferred calls goes on with their results, with a prompt and without one."""
        ran: list[str] = []
        agent = self.agent(ran, history, defers=True)
        first = await agent.run("call")
        assert isinstance(first.output, DeferredToolRequests)
        given = DeferredToolResults(calls={call.tool_call_id: "booked" for call in first.output.calls})
        async with run_stream(
            agent, prompt, message_history=first.all_messages(), deferred_tool_results=given
        ) as second:
            assert await second.get_output() == "done"
        returned = [part for m in second.all_messages() for part in m.parts if isinstance(part, ToolReturnPart)]
        assert [part.content for part in returned] == ["booked"]
