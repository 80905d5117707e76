"""The text of a run out of its events."""

from __future__ import annotations

from pydantic_ai.messages import NativeToolCallPart, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta

from .._final_turn import TextRetracted

__all__ = ("RunningText",)


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
