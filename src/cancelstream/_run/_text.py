"""The text of a run out of its events."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic_ai.messages import NativeToolCallPart, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta

from .._final_turn import FinalTurnOnly, TextRetracted

__all__ = ("RunningText", "TextSoFar", "pieces_of", "texts_of")


class Running(Protocol):
    """Joins a run's text, whichever library the events are of."""

    text: str

    def feed(self, event: Any) -> str | None:
        """Take the next event and return what it added to the text; `None` if it took text back."""
        ...


@dataclass(frozen=True)
class TextSoFar:
    """The whole text of a run when some of it was taken back: what is shown now, in place of all pieces before."""

    text: str


async def pieces_of(events: AsyncIterable[Any], running: Running) -> AsyncIterator[str | TextSoFar]:
    """The text of a run in pieces as its events bring it, and what is left of it wherever some was taken back."""
    async for event in events:
        piece = running.feed(event)
        if piece is None:
            yield TextSoFar(running.text)
        elif piece:
            yield piece


def texts_of(
    events: AsyncIterable[Any], running: Running, *, delta: bool, final_turn_only: FinalTurnOnly
) -> AsyncIterator[str]:
    """The text of a run as its events bring it: each piece by itself, or the whole text so far.

    Raises:
        ValueError: If pieces are asked for together with `'retract'`.
    """
    if delta and final_turn_only == "retract":
        raise ValueError("stream_text(delta=True) cannot take text back: use delta=False, or final_turn_only=True")
    return _texts(events, running, delta=delta)


async def _texts(events: AsyncIterable[Any], running: Running, *, delta: bool) -> AsyncIterator[str]:
    async for event in events:
        piece = running.feed(event)
        if piece is None or (piece and not delta):
            yield running.text
        elif piece:
            yield piece


class RunningText:
    """Joins the text of all turns; what was said before a tool call and after it stand apart by a blank line."""

    def __init__(self) -> None:
        self.text = ""
        self._apart = False
        self._turn_at = 0

    def feed(self, event: object) -> str | None:
        """Take the next event and return what it added to the text; `None` if it took text back."""
        match event:
            case TextRetracted():
                self.text = self.text[: self._turn_at]
                return None
            case PartStartEvent(index=0, previous_part_kind=None, part=part):
                self._apart = True
                self._turn_at = len(self.text)
                return self._add(part.content) if isinstance(part, TextPart) else ""
            case PartStartEvent(part=TextPart(content=piece)):
                return self._add(piece)
            case PartStartEvent(part=NativeToolCallPart()):
                # pydantic-ai's own `stream_text` parts the texts around a server-side tool the same way.
                self._apart = True
            case PartDeltaEvent(delta=TextPartDelta(content_delta=piece)):
                return self._add(piece)
            case _:
                pass
        return ""

    def _add(self, piece: str) -> str:
        if piece:
            if self._apart and self.text:
                piece = f"\n\n{piece}"
            self._apart = False
            self.text += piece
        return piece
