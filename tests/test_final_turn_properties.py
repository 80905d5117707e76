"""The final-turn filter over any sequence of turns, of pydantic-ai's events and of strands'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai.messages import (
    FinalResultEvent,
    FunctionToolCallEvent,
    FunctionToolResultEvent,
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

from cancelstream._final_turn import FinalTurnFilter, TextRetracted

Mode = Literal[True, "retract"]
MODES: list[Mode] = [True, "retract"]


@dataclass(frozen=True)
class Turn:
    """What a model did in one turn: parts in order, a list of pieces for each text or reasoning, a name for a tool."""

    parts: list[tuple[str, list[str]]]


pieces = st.lists(st.text(alphabet="ab ", max_size=3), min_size=1, max_size=3)
part = st.tuples(st.sampled_from(["text", "thinking", "tool"]), pieces)
turns = st.lists(st.builds(Turn, st.lists(part, min_size=1, max_size=4)), min_size=1, max_size=4)


# --- the events of a turn, as either framework gives them --------------------------------------------------------


def pydantic_ai_events(turn: Turn) -> list[Any]:
    events: list[Any] = []
    tools: list[Any] = []
    final = False
    before: Any = None
    for index, (kind, (first, *rest)) in enumerate(turn.parts):
        whole = "".join([first, *rest])
        if kind == "tool":
            call = ToolCallPart("tool", "{}", f"call_{index}")
            events += [PartStartEvent(index=index, part=call, previous_part_kind=before)]
            events += [PartEndEvent(index=index, part=call)]
            tools += [
                FunctionToolCallEvent(call),
                FunctionToolResultEvent(ToolReturnPart("tool", "", call.tool_call_id)),
            ]
            before = "tool-call"
        elif kind == "text":
            events.append(PartStartEvent(index=index, part=TextPart(first), previous_part_kind=before))
            if not final:
                events.append(FinalResultEvent(tool_name=None, tool_call_id=None))
                final = True
            events += [PartDeltaEvent(index=index, delta=TextPartDelta(piece)) for piece in rest]
            events.append(PartEndEvent(index=index, part=TextPart(whole)))
            before = "text"
        else:
            events.append(PartStartEvent(index=index, part=ThinkingPart(first), previous_part_kind=before))
            events += [PartDeltaEvent(index=index, delta=ThinkingPartDelta(content_delta=piece)) for piece in rest]
            events.append(PartEndEvent(index=index, part=ThinkingPart(whole)))
            before = "thinking"
    return events + tools


def strands_events(turn: Turn) -> list[Any]:
    """What strands 1.62 yields for a turn; its dictionaries also carry the caller's `invocation_state`."""
    state = {"data_source": "mine"}
    events: list[Any] = [
        {"start": True},
        {"start_event_loop": True},
        {"event": {"messageStart": {"role": "assistant"}}},
    ]
    stop = "end_turn"
    for kind, words in turn.parts:
        for word in words:
            if kind == "text":
                delta: dict[str, Any] = {"text": word}
                event = {"data": word, "delta": delta, **state}
            elif kind == "thinking":
                delta = {"reasoningContent": {"text": word}}
                event = {"reasoningText": word, "delta": delta, "reasoning": True, **state}
            else:
                stop = "tool_use"
                delta = {"toolUse": {"input": word}}
                event = {"type": "tool_use_stream", "delta": delta, "current_tool_use": {"input": word}, **state}
            events += [{"event": {"contentBlockDelta": {"delta": delta}}}, event]
        events.append({"event": {"contentBlockStop": {}}})
    events += [{"event": {"messageStop": {"stopReason": stop}}}, {"event": {"metadata": {}}}]
    events.append({"message": {"role": "assistant", "content": []}})
    if stop == "tool_use":
        events += [{"type": "tool_stream", "tool_stream_event": {"data": "x"}}, {"message": {"role": "user"}}]
    return events


def is_text(event: Any, before: Any) -> bool:
    """Whether an event shares the fate of the text."""
    if isinstance(event, dict):
        return "data" in event
    if isinstance(event, FinalResultEvent):
        return isinstance(before, PartStartEvent) and isinstance(before.part, TextPart)
    part = getattr(event, "part", None) or getattr(event, "delta", None)
    return not isinstance(event, FunctionToolCallEvent) and isinstance(part, TextPart | TextPartDelta)


def text(events: list[Any]) -> str:
    said = ""
    for event in events:
        match event:
            case {"data": str(piece)} | PartDeltaEvent(delta=TextPartDelta(content_delta=piece)):
                said += piece
            case PartStartEvent(part=TextPart(content=piece)):
                said += piece
            case TextRetracted(characters=characters):
                said = said[: len(said) - characters]
            case _:
                pass
    return said


FRAMEWORKS = {"pydantic-ai": pydantic_ai_events, "strands": strands_events}


each_framework = pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)


def run(mode: Mode, events: list[Any], reason: str) -> list[Any]:
    filter_ = FinalTurnFilter(mode)
    out = [passed for event in events for passed in filter_.feed(event)]
    out += filter_.flush(reason)
    assert filter_.flush(reason) == [], "something was still held"
    return out


def others(events: list[Any]) -> list[Any]:
    return [
        event
        for before, event in zip([None, *events], events, strict=False)
        if not is_text(event, before) and not isinstance(event, TextRetracted)
    ]


def only_text(events: list[Any]) -> list[Any]:
    return [event for before, event in zip([None, *events], events, strict=False) if is_text(event, before)]


@each_framework
@pytest.mark.parametrize("mode", MODES)
@given(turns=turns, data=st.data())
def test_wherever_it_stops(framework: Any, mode: Mode, turns: list[Turn], data: st.DataObject) -> None:
    """Cut at any point, the text shown is that of the turn in flight, and all else is what it would be without."""
    each = [framework(turn) for turn in turns]
    events = [event for turn in each for event in turn]
    at = data.draw(st.integers(0, len(events)), label="cut at")
    begun = [turn for index, turn in enumerate(each) if sum(map(len, each[:index])) < at] or [[]]
    earlier = sum(map(len, each[: len(begun) - 1]))
    in_flight = begun[-1][: at - earlier]
    started = [e for e in in_flight if not isinstance(e, dict) or "start_event_loop" in e]
    shown = in_flight if started or len(begun) == 1 else [*begun[-2], *in_flight]

    out = run(mode, events[:at], "cancelled")
    assert text(out) == text(shown)
    assert others(out) == others(events[:at])
    if mode is True:
        assert only_text(out) == only_text(shown)
        assert not any(isinstance(event, TextRetracted) for event in out)


@each_framework
@given(turns=turns)
def test_retract_minus_retractions_is_hold(framework: Any, turns: list[Turn]) -> None:
    """At the end both modes have said the same, and each retraction names what it takes back."""
    each = [framework(turn) for turn in turns]
    events = [event for turn in each for event in turn]
    retracted, held = run("retract", events, "stop"), run(True, events, "stop")
    assert text(retracted) == text(held) == text(each[-1])
    assert only_text(held) == only_text(each[-1])
    back = [event for event in retracted if isinstance(event, TextRetracted)]
    expected = [(number, len(text(turn))) for number, turn in enumerate(each[:-1], start=1) if only_text(turn)]
    assert [(event.turn, event.characters) for event in back] == expected


@each_framework
@given(turns=turns)
def test_memory_is_bounded_by_one_turn(framework: Any, turns: list[Turn]) -> None:
    """Never more is held than the text events of one turn."""
    filter_ = FinalTurnFilter()
    for turn in turns:
        events = framework(turn)
        for event in events:
            filter_.feed(event)
        assert len(filter_._held) <= len(only_text(events))


@given(turns=turns, data=st.data())
def test_told_turns_agree_with_seen_ones(turns: list[Turn], data: st.DataObject) -> None:
    """`begin_turn` before each turn changes nothing that the events do not say by themselves."""
    mode = data.draw(st.sampled_from(MODES))
    told = FinalTurnFilter(mode)
    each = [pydantic_ai_events(turn) for turn in turns]
    out: list[Any] = []
    for events in each:
        out += told.begin_turn()
        out += [passed for event in events for passed in told.feed(event)]
    out += told.flush()
    assert out == run(mode, [event for events in each for event in events], "stop")
