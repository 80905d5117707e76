"""The final-turn filter, event by event."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai.messages import (
    FinalResultEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.run import AgentRunResult, AgentRunResultEvent

from cancelstream._final_turn import FinalTurnFilter, TextRetracted

START = PartStartEvent(index=0, part=TextPart("Let me "))
PREAMBLE = [
    START,
    FinalResultEvent(tool_name=None, tool_call_id=None),
    PartDeltaEvent(index=0, delta=TextPartDelta("look.")),
    PartEndEvent(index=0, part=TextPart("Let me look."), next_part_kind="tool-call"),
]
CALL = ToolCallPart("weather", "{}", "c1")
TOOL = [
    PartStartEvent(index=1, part=CALL, previous_part_kind="text"),
    PartEndEvent(index=1, part=CALL),
    FunctionToolCallEvent(CALL),
    FunctionToolResultEvent(ToolReturnPart("weather", "sunny", "c1")),
]
ANSWER = [
    PartStartEvent(index=0, part=TextPart("Sun")),
    FinalResultEvent(tool_name=None, tool_call_id=None),
    PartDeltaEvent(index=0, delta=TextPartDelta("ny.")),
    PartEndEvent(index=0, part=TextPart("Sunny.")),
]
RESULT = AgentRunResultEvent(AgentRunResult("Sunny."))


def feed(filter_: FinalTurnFilter, events: Any) -> list[Any]:
    return [out for event in events for out in filter_.feed(event)]


def test_holds_and_drops() -> None:
    """A preamble is dropped with its `FinalResultEvent`; the answer comes before the result, tools at once."""
    held = FinalTurnFilter()
    assert feed(held, PREAMBLE) == []
    assert feed(held, TOOL) == TOOL
    assert feed(held, ANSWER) == []
    assert held.feed(RESULT) == [*ANSWER, RESULT]
    assert held.flush("cancelled") == []


def test_retracts() -> None:
    """With 'retract' everything passes at once and the preamble is taken back when the next turn begins."""
    retracting = FinalTurnFilter("retract")
    assert feed(retracting, [*PREAMBLE, *TOOL]) == [*PREAMBLE, *TOOL]
    back = TextRetracted(turn=1, parts=(0,), characters=len("Let me look."))
    assert feed(retracting, [*ANSWER, RESULT]) == [back, *ANSWER, RESULT]
    assert retracting.flush("cancelled") == []


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "cancelled", "error"])
def test_flush_releases(reason: str) -> None:
    """Every end but a tool call or a retry releases the text, also after the turn had begun a tool call."""
    held = FinalTurnFilter()
    assert feed(held, [*PREAMBLE, *TOOL]) == TOOL
    assert held.flush(reason) == PREAMBLE
    assert held.flush(reason) == []
    retracting = FinalTurnFilter("retract")
    feed(retracting, PREAMBLE)
    assert retracting.flush(reason) == []
    assert feed(retracting, ANSWER) == ANSWER


@pytest.mark.parametrize("reason", ["tool_use", "tool_call", "tool_calls", "retry"])
def test_flush_drops(reason: str) -> None:
    held = FinalTurnFilter()
    feed(held, PREAMBLE)
    assert held.flush(reason) == []
    retracting = FinalTurnFilter("retract")
    feed(retracting, PREAMBLE)
    assert retracting.flush(reason) == [TextRetracted(turn=1, parts=(0,), characters=12)]


def test_other_final_results_pass() -> None:
    """Only the `FinalResultEvent` that a text caused shares its fate."""
    output = FinalResultEvent(tool_name="final_result", tool_call_id="c1")
    deferred = FinalResultEvent(tool_name=None, tool_call_id=None)
    held = FinalTurnFilter()
    assert feed(held, [START, TOOL[0], output]) == [TOOL[0], output]
    assert feed(held, [TOOL[0], deferred]) == [TOOL[0], deferred]


def test_reasoning_passes() -> None:
    events = [
        PartStartEvent(index=0, part=ThinkingPart("h")),
        PartDeltaEvent(index=0, delta=ThinkingPartDelta(content_delta="m")),
        PartEndEvent(index=0, part=ThinkingPart("hm")),
    ]
    assert feed(FinalTurnFilter(), events) == events


def test_turn_that_cannot_go_on() -> None:
    """A turn said to be the last is not held; should it be wrong, its text is retracted all the same."""
    held = FinalTurnFilter()
    assert held.begin_turn(may_continue=False) == []
    assert feed(held, ANSWER) == ANSWER
    assert held.begin_turn() == [TextRetracted(turn=1, parts=(0,), characters=6)]
    assert feed(held, ANSWER) == []
    assert held.flush() == ANSWER


def test_turn_without_events() -> None:
    """A last turn without text leaves nothing: what is held belongs to the one before."""
    held = FinalTurnFilter()
    feed(held, PREAMBLE)
    assert held.begin_turn() == []
    assert held.flush() == []
    result = AgentRunResult(None)
    result._state.message_history.append(ModelResponse(parts=[]))
    result._state.message_history.append(ModelRequest(parts=[]))
    feed(held, PREAMBLE)
    assert held.feed(AgentRunResultEvent(result)) == [AgentRunResultEvent(result)]


def test_replaced_part() -> None:
    """A part that replaces a text also replaces what is held of it, and what is to be retracted."""
    again = PartStartEvent(index=0, part=TextPart("New"), previous_part_kind="text")
    thinking = PartStartEvent(index=0, part=ThinkingPart("Let me"), previous_part_kind="text")
    held = FinalTurnFilter()
    assert feed(held, [*PREAMBLE, again]) == []
    assert held.flush() == [again]
    assert feed(held, [*PREAMBLE, thinking]) == [thinking]
    assert held.flush() == []
    retracting = FinalTurnFilter("retract")
    feed(retracting, [*PREAMBLE, again])
    assert retracting.begin_turn() == [TextRetracted(turn=1, parts=(0,), characters=3)]


@pytest.mark.parametrize("mode", [False, None, "hold", 1])
def test_unknown_mode(mode: Any) -> None:
    with pytest.raises(ValueError, match="True or 'retract'"):
        FinalTurnFilter(mode)


# --- strands ----------------------------------------------------------------------------------------------------


def strands(*words: str, reason: str = "end_turn") -> list[Any]:
    return [
        {"start_event_loop": True},
        {"event": {"messageStart": {"role": "assistant"}}},
        *({"data": word, "delta": {"text": word}} for word in words),
        {"event": {"contentBlockStop": {}}},
        {"event": {"messageStop": {"stopReason": reason}}},
    ]


RESULT_OF_STRANDS: dict[str, Any] = {"result": object()}


@pytest.mark.parametrize(
    "reason", ["end_turn", "max_tokens", "cancelled", "content_filtered", "guardrail_intervened", "stop_sequence"]
)
def test_strands_releases(reason: str) -> None:
    """The last turn's text comes before the result, whatever it ended in."""
    held = FinalTurnFilter()
    tool = {"type": "tool_use_stream", "delta": {"toolUse": {"input": "{}"}}, "data": "the caller's"}
    turns = [*strands("Let me ", "look.", reason="tool_use"), tool, *strands("Sun", "ny.", reason=reason)]
    out = feed(held, [{"init_event_loop": True, "data": "the caller's"}, *turns])
    assert [event for event in out if "delta" in event] == [tool]
    assert held.feed(RESULT_OF_STRANDS) == [*strands("Sun", "ny.")[2:4], RESULT_OF_STRANDS]


def test_strands_force_stop() -> None:
    """An error releases the text before it is told."""
    held = FinalTurnFilter()
    feed(held, strands("Sun"))
    stopped = {"force_stop": True, "force_stop_reason": "boom"}
    assert held.feed(stopped) == [strands("Sun")[2], stopped]


def test_strands_retracts() -> None:
    """Content blocks number the parts; a request that is tried again counts as another turn."""
    retracting = FinalTurnFilter("retract")
    first, again = strands("one ", "two"), strands("three")
    blocks = [*first[:5], *first[2:5]]
    assert feed(retracting, blocks) == blocks
    out = feed(retracting, again[1:])
    assert out == [TextRetracted(turn=1, parts=(0, 1), characters=14), *again[1:]]
    out = feed(retracting, strands("four"))
    assert out[0] == TextRetracted(turn=2, parts=(0,), characters=5)


def test_strands_agents_inside_agents_pass() -> None:
    """What a tool or a node of a graph streams is inside another dictionary, and no text of this agent."""
    inner = {"data": "x", "delta": {"text": "x"}}
    events = [
        {"type": "tool_stream", "tool_stream_event": {"tool_use": {}, "data": inner}},
        {"type": "multiagent_node_stream", "node_id": "a", "event": inner},
    ]
    assert feed(FinalTurnFilter(), events) == events
