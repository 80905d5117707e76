"""A text that grows piece by piece, whole each time, at the cost of the piece.

`text + piece` copies the text, so an answer that is read whole after every chunk costs the square of its length. But
CPython appends in place to a string without other references, and a loop that reads `text` holds the latest string
only. So two strings grow in turn: it is always the one before that is appended to, by the two pieces it lacks.

Known limits: who keeps the texts has them copied, as without it; so has another Python.
"""

from __future__ import annotations

__all__ = ("Growing",)


class Growing:
    """Joins pieces; `add()` returns the whole text so far."""

    __slots__ = ("_before", "_latest", "_piece")

    def __init__(self) -> None:
        self._before = ""
        self._latest = ""
        self._piece = ""
        """The end of `_latest` that the string before it lacks."""

    def add(self, piece: str) -> str:
        """Add a piece."""
        text, self._before = self._before, self._latest  # from here on `text` is the only reference
        text += self._piece + piece
        self._latest, self._piece = text, piece
        return text
