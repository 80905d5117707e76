"""The text of a run out of strands' event dictionaries."""

from __future__ import annotations

from typing import Any

__all__ = ("RunningText",)


class RunningText:
    """Joins the text of all turns; the texts of two turns stand apart by a blank line."""

    def __init__(self) -> None:
        self.text = ""
        self._turn_at = 0
        self._is_apart = False

    def feed(self, event: dict[str, Any]) -> str | None:
        """Take the next event and return what it added to the text; `None` if it took text back."""
        if "text_retracted" in event:
            self.text = self.text[: self._turn_at]
            return None
        if "start_event_loop" in event:
            self._is_apart = True
            self._turn_at = len(self.text)
        if "data" not in event or not (piece := str(event["data"])):
            return ""
        if self._is_apart and self.text:
            piece = f"\n\n{piece}"
        self._is_apart = False
        self.text += piece
        return piece
