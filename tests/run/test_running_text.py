"""The text of a run, joined out of its events."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai.messages import (
    NativeToolCallPart,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ThinkingPart,
)

from cancelstream._final_turn import TextRetracted
from cancelstream._run._text import RunningText


def start(index: int, part: Any, before: Any = None) -> PartStartEvent:
    return PartStartEvent(index=index, part=part, previous_part_kind=before)


def delta(text: str) -> PartDeltaEvent:
    return PartDeltaEvent(index=0, delta=TextPartDelta(text))


SEARCH = NativeToolCallPart("web_search", {})


A = start(0, TextPart("a"))


@pytest.mark.parametrize(
    ("events", "pieces"),
    [
        ([A, delta("b"), PartEndEvent(index=0, part=TextPart("ab"))], ["a", "b", ""]),
        ([A, start(0, TextPart("b"))], ["a", "\n\nb"]),
        ([A, start(1, TextPart("b"), "text")], ["a", "b"]),
        ([A, start(1, ThinkingPart("x"), "text"), start(2, TextPart("b"), "thinking")], ["a", "", "b"]),
        ([A, start(1, SEARCH, "text"), start(2, TextPart("b"), "builtin-tool-call")], ["a", "", "\n\nb"]),
        ([start(0, SEARCH), start(1, TextPart("")), delta("b")], ["", "", "b"]),
        ([start(0, ThinkingPart("x")), delta("b")], ["", "b"]),
    ],
)
def test_pieces(events: list[Any], pieces: list[str]) -> None:
    """Another turn, or a server-side tool in between, parts two texts by a blank line; nothing else does."""
    running = RunningText()
    assert [running.feed(event) for event in events] == pieces
    assert running.text == "".join(pieces)


def test_taken_back() -> None:
    """A retraction takes back what its turn had said, the blank line before it included."""
    running = RunningText()
    for event in (start(0, TextPart("a")), start(0, TextPart("b")), delta("c")):
        running.feed(event)
    assert running.text == "a\n\nbc"
    assert running.feed(TextRetracted(turn=2, parts=(0,), characters=2)) is None
    assert running.text == "a"
    assert running.feed(start(0, TextPart("d"))) == "\n\nd"
