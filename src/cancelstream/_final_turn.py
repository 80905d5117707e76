"""Only the text of the final turn: hold what a model says before it calls a tool, or show it and take it back.

No event says that a turn was the last one. A turn is known to have been intermediate when another one begins, and
to have been final when the run ends, so that is when its text is dropped or released. Until then it is held; or, with
`'retract'`, it is shown and a `TextRetracted` event takes it back. Nothing else is ever held: tool, lifecycle and
reasoning events pass at once and in order, and so a released text comes after the tool events of its turn.

It understands two kinds of events by their shape: pydantic-ai's, and the dictionaries of strands' `stream_async`.

Known limits. Reasoning of earlier turns still shows. Events that carry the text a second time pass unchanged: the
messages in pydantic-ai's result, the raw `event` and `message` dictionaries of strands. In pydantic-ai's events a turn
is known by its first part; one without any part is not seen to begin unless `begin_turn` tells.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast

from pydantic_ai.messages import (
    FinalResultEvent,
    ModelResponse,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
)
from pydantic_ai.run import AgentRunResult

from ._errors import named

__all__ = ("FinalTurnFilter", "FinalTurnOnly", "TextRetracted")

FinalTurnOnly: TypeAlias = Literal[False, True, "retract"]
"""The text to show: every turn's, the last turn's only, or each turn's until it is taken back."""

_WENT_ON: Final = frozenset({"tool_use", "tool_call", "tool_calls", "retry"})
"""The finish reasons after which there is another turn: strands', pydantic-ai's, OpenAI's and our own for a retry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRetracted:
    """The text shown of a turn was not part of the final answer: take it back.

    Attributes:
        turn: Which turn of the run said it, from 1.
        parts: The indexes of its text parts, as in the events that showed them.
        characters: How many characters of text were shown.
        event_kind: What tells this event from the others, as on pydantic-ai's events.
    """

    turn: int
    parts: tuple[int, ...]
    characters: int
    event_kind: Literal["text_retracted"] = "text_retracted"


class FinalTurnFilter:
    """Lets through the text of the final turn only; of any other turn, everything but the text.

    Text alone is held: the reasoning of earlier turns still shows.

    Feed it every event of one run, in order, and hand on what it returns. When the events end, by themselves, by a
    cancel or by an error, hand on what `flush` returns. It waits for nothing and starts nothing; memory is bounded by
    the text of one turn. Use it from one thread at a time.

    Args:
        mode: `True` to hold the text of a turn until it is known to be the last; `'retract'` to let it through at
            once and to add a `TextRetracted` event when it turns out not to have been.

    Raises:
        ValueError: If the mode is neither of the two.
    """

    def __init__(self, mode: Literal[True, "retract"] = True) -> None:
        if mode is not True and mode != "retract":
            raise ValueError(f"mode must be True or 'retract', not {named(mode)}")
        self._retracting = mode == "retract"
        self._turn = 0
        self._in_turn = False  # whether anything of the turn has come
        self._held: list[tuple[int, Any]] = []  # events with the index of the text part they belong to
        self._shown: dict[int, int] = {}  # characters let through of each text part, as long as they may go back
        self._holding = not self._retracting
        self._final_result_of: int | None = None  # the text part that the next `FinalResultEvent` is due to
        self._blocks = 0  # strands numbers no parts: the content blocks that have ended

    @property
    def holds(self) -> bool:
        """Whether text is held that is not known to be final."""
        return bool(self._held)

    def feed(self, event: Any) -> list[Any]:
        """Take the next event and return what may be handed on now, in order; perhaps nothing, perhaps more."""
        if isinstance(event, Mapping):
            return self._feed_strands(cast("Mapping[str, Any]", event))
        due, self._final_result_of = self._final_result_of, None
        match event:
            case PartStartEvent():
                return self._start_part(event)
            case PartDeltaEvent(index=index, delta=TextPartDelta(content_delta=text)):
                return self._text(event, index, len(text))
            case PartEndEvent(index=index, part=TextPart()):
                return self._text(event, index, 0)
            case FinalResultEvent() if due is not None:
                return self._text(event, due, 0)
            case _:
                if getattr(event, "event_kind", None) == "agent_run_result":
                    return [*self._end(went_on=_says_nothing(event.result)), event]
                return [event]

    def begin_turn(self, *, may_continue: bool = True) -> list[Any]:
        """Say that the next event belongs to a new turn; the text of the one before it is dropped or retracted.

        Optional: without it, turns are told apart by their events.

        Args:
            may_continue: Whether this turn may turn out to be intermediate. If it cannot, its text is not held. Should
                it be after all, it is retracted, also where text is otherwise held.

        Returns:
            The events to hand on for the turn before: nothing, or one `TextRetracted`.
        """
        retracted = self._end(went_on=True)
        self._holding = may_continue and not self._retracting
        return retracted

    def flush(self, reason: str = "stop") -> list[Any]:
        """End the turn without another event of it, and return what is still to be handed on.

        Args:
            reason: How the turn ended. After a tool call or a retry (`'tool_use'`, `'tool_call'`, `'tool_calls'`,
                `'retry'`) its text is dropped or retracted. For every other end it is released: `'stop'`, `'length'`,
                `'content_filter'`, `'cancelled'`, `'error'`. This is not the place for a user's cancel reason.
        """
        return self._end(went_on=reason in _WENT_ON)

    def _end(self, *, went_on: bool) -> list[Any]:
        """End the turn and return its text, or its retraction if the run went on after it."""
        held, shown, turn = self._held, self._shown, self._turn
        self._held, self._shown = [], {}
        self._in_turn, self._final_result_of, self._blocks = False, None, 0
        self._holding = not self._retracting
        if not went_on:
            return [event for _, event in held]
        if not shown:
            return []
        return [TextRetracted(turn=turn, parts=tuple(sorted(shown)), characters=sum(shown.values()))]

    def _enter(self) -> None:
        """Count the turn when the first thing of it comes."""
        if not self._in_turn:
            self._in_turn = True
            self._turn += 1

    def _text(self, event: Any, index: int, characters: int) -> list[Any]:
        """Hold an event of a text part, or let it through and note what may have to go back."""
        self._enter()
        if self._holding:
            self._held.append((index, event))
            return []
        self._shown[index] = self._shown.get(index, 0) + characters
        return [event]

    # --- pydantic-ai

    def _start_part(self, event: PartStartEvent) -> list[Any]:
        # The first part of a response follows no other. A part that replaces one (same index) does.
        begins = event.index == 0 and event.previous_part_kind is None
        before = self._end(went_on=True) if begins and self._in_turn else []
        self._enter()
        if replaced := [held for held in self._held if held[0] == event.index]:
            # "The new one should fully replace the old one"; released later, the old one would replace the new.
            self._held = [held for held in self._held if held not in replaced]
        if not isinstance(event.part, TextPart):
            return [*before, event]
        self._shown.pop(event.index, None)
        self._final_result_of = event.index
        return [*before, *self._text(event, event.index, len(event.part.content))]

    # --- strands

    def _feed_strands(self, event: Mapping[str, Any]) -> list[Any]:
        # Strands adds the caller's `invocation_state` to its dictionaries, whose keys may be any.
        if "data" in event and "text" in _mapping(event.get("delta")):
            return self._text(event, self._blocks, len(str(event["data"])))
        if "result" in event or "force_stop" in event:
            return [*self._end(went_on=False), event]
        chunk = _mapping(event.get("event"))
        if "contentBlockStop" in chunk:
            self._blocks += 1
        # A message that starts when something was said is a model request tried again.
        if "start_event_loop" in event or ("messageStart" in chunk and (self._held or self._shown)):
            before = self._end(went_on=True)
            self._enter()
            return [*before, event]
        return [event]


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _says_nothing(result: AgentRunResult[Any]) -> bool:
    """Whether the last response is known to have no text, so that what is held must be of one before it."""
    for message in reversed(result.all_messages()):
        if isinstance(message, ModelResponse):
            return not any(isinstance(part, TextPart) and part.content for part in message.parts)
    return False
