"""Knowing an event that is like the one before it, without parsing it.

While a model writes, its events differ in the piece of text that they bring and in nothing else, except that OpenAI
pads them with a random string. Two events in a row that are alike in this way make a recogniser, which takes further
ones by comparing bytes. It is the cheapest way to read a text, and it guesses nothing:

- What may differ lies between the quotes of two JSON strings, and holds nothing that a JSON string has to escape. So
  an event that is taken parses as the others do, with other words in these two places.
- Before it is used, an event with a word of ours in both places is parsed, and has to carry on with that word. So one
  of the places is the text, and nobody asks for what is in the other.

Known limits: a text that needs an escape, such as a line break, is parsed, and so is a Responses event, which has a
number of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from jiter import from_json
from pydantic_ai.profiles import DEFAULT_THINKING_TAGS

__all__ = ("recogniser",)

_START: Final = b"data: "
_WORD: Final = "cancelstream"
"""Stands for any text, and for any padding; nothing that a provider sends."""


def recogniser(
    before: bytes, event: bytes, name: str, text: str, follows: Callable[[Any], str | None]
) -> Callable[[bytes], str | None] | None:
    """What finds the text of further events that are like these two, `None` if the two are not alike.

    It returns `None` for every event that it does not know.

    Args:
        before: An event.
        event: The next one; both carry on the same piece.
        name: The field of its delta that has the text.
        text: Its text.
        follows: Finds the text of a decoded chunk that carries on, too (`Grammar.follows`).
    """
    key = re.search(rb'"%s": ?"' % re.escape(name.encode()), event)
    if key is None or not _needs_no_escape(text):
        return None
    lead = event[: key.end()]
    raw = text.encode()
    if not (event.startswith(raw, len(lead)) and before.startswith(lead) and lead.startswith(_START)):
        return None
    around = _around(before[before.find(b'"', len(lead)) :], event[len(lead) + len(raw) :])
    if around is None:
        return None
    word = _WORD.encode()
    probe = b"".join((lead, word, around.middle, word if around.padded else b"", around.end))
    is_sure = follows(from_json(probe.removeprefix(_START))) == _WORD
    return _comparing(lead, *around) if is_sure else None


def _comparing(lead: bytes, middle: bytes, end: bytes, padded: bool) -> Callable[[bytes], str | None]:
    start, stop = len(lead), len(end)

    def text_of(event: bytes) -> str | None:
        head, _, tail = event.partition(middle)
        if not head.startswith(lead):
            return None
        if tail != end and not (padded and tail.endswith(end) and tail[: len(tail) - stop].isalnum()):
            return None
        try:
            text = head[start:].decode()
        except UnicodeDecodeError:
            return None
        return text if text and _needs_no_escape(text) and text not in DEFAULT_THINKING_TAGS else None

    return text_of


def _needs_no_escape(text: str) -> bool:
    return text.isprintable() and '"' not in text and "\\" not in text


class _Around(NamedTuple):
    """What follows the text: up to the padding, and after it; without one, all is in `middle`."""

    middle: bytes
    end: bytes
    padded: bool


def _around(before: bytes, after: bytes) -> _Around | None:
    """What two events have in common after their text, if one string of letters and digits is all that differs."""
    if before == after:
        return _Around(after, b"", padded=False)
    middle = after[: after.rfind(b'"', 0, _alike(before, after)) + 1]
    end = after[after.find(b'"', len(after) - _alike(before[::-1], after[::-1])) :]
    paddings = [each[len(middle) : len(each) - len(end)] for each in (before, after)]
    is_padding = middle and all(middle + each + end in (before, after) and each.isalnum() for each in paddings)
    return _Around(middle, end, padded=True) if is_padding else None


def _alike(one: bytes, other: bytes) -> int:
    """How many bytes two different ones begin with in common."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )
