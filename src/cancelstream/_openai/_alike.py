"""Knowing an event that is like the one before it, without parsing it.

While a model writes, its events differ in the piece of text that they bring, and otherwise only in a number that
counts them or tells the time, and in a random string that OpenAI pads them with. Two events in a row that are alike in
this way make a recogniser, which takes further ones by comparing bytes. It is the cheapest way to read a text, and it
guesses nothing:

- What may differ is digits, and what stands between the quotes of JSON strings that are values and is nothing that a
  JSON string has to escape. So an event that is taken parses as those two do, with other values in these places.
- Before it is used, we parse an event with probe values in all these places, and it has to continue with the probe
  text. So one place is the text's, and what is in the others makes no difference to that.

Known limits: a text that needs an escape, such as a line break, is parsed, and so is every event that differs in more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from pydantic_ai.profiles import DEFAULT_THINKING_TAGS

from .._sse import EventDecoder

__all__ = ("Known", "recogniser")

Accepts = Callable[[bytes], bool]
Known = Callable[[EventDecoder], str | None]

_TOKENS: Final = re.compile(rb'"[^"]*"|\d+|[^"\d]+')
"""Of JSON without a backslash: its strings, the digits of its numbers, and all that is in between."""

# A probe's values in the places that may differ; no provider sends them.
_TEXT: Final = "cancelstream"
_PADDING: Final = b'"probe"'
_NUMBER: Final = b"987654321987"


def recogniser(
    before: bytes, event: bytes, text: str, decode: Callable[[bytes], Any], follows: Callable[[Any], str | None]
) -> Known | None:
    """Return a function that finds and steps over the text of a next event like these two; `None` if they differ.

    It returns `None`, and takes no step, for every event that it does not know.

    Args:
        before: An event without a backslash.
        event: A later one; both carry on the same piece.
        text: Its text.
        decode: Makes a chunk of an event.
        follows: Finds the text of a chunk that carries on, too (`Grammar.follows`).
    """
    olds, news = _TOKENS.findall(before), _TOKENS.findall(event)
    differing = [place for place, (old, new) in enumerate(zip(olds, news, strict=False)) if old != new]
    its = next((place for place in differing if news[place] == b'"%s"' % text.encode()), None)
    if its is None:
        return None
    probe, literals, places = [*news], [b""], list[Accepts | None]()
    for place, token in enumerate(news):
        if place not in differing:
            literals[-1] += token
        elif _is_key(news, place):
            return None  # another key has another meaning, whatever its value is
        elif token.isdigit():
            probe[place] = _NUMBER
            places.append(_is_number)
            literals.append(b"")
        elif place == its or (token.startswith(b'"') and token[1:-1].isalnum()):
            probe[place] = b'"%s"' % _TEXT.encode() if place == its else _PADDING
            places.append(None if place == its else bytes.isalnum)
            literals[-1] += b'"'
            literals.append(b'"')
        else:
            return None
    is_sure = follows(decode(b"".join(probe))) == _TEXT
    return _comparing(literals, places) if is_sure else None


def _is_key(tokens: Sequence[bytes], place: int) -> bool:
    """Whether a token is a key of an object: a colon follows."""
    return tokens[place].startswith(b'"') and b"".join(tokens[place + 1 : place + 2]).lstrip().startswith(b":")


def _comparing(literals: Sequence[bytes], places: Sequence[Accepts | None]) -> Known:
    """Return a function that takes an event of these literals; `places` accept what is between, `None` is the text."""
    lead = literals[0]
    start = len(lead)
    ends = [*literals[1:-1], literals[-1] + b"\n\n"]
    # A place accepts no first byte of the literal after it, so that byte ends the place.
    following = [(accepts, then[:1], then, len(then)) for accepts, then in zip(places, ends, strict=True)]

    def text_of(events: EventDecoder) -> str | None:
        block, at = events.block, events.at
        if not block.startswith(lead, at):
            return None
        at += start
        words = b""
        for accepts, stop, then, length in following:
            end = block.find(stop, at)
            if end < 0 or not block.startswith(then, end):
                return None
            if accepts is None:
                words = block[at:end]
            elif not accepts(block[at:end]):
                return None
            at = end + length
        try:
            text = words.decode()
        except UnicodeDecodeError:
            return None
        if not text or not text.isprintable() or "\\" in text or text in DEFAULT_THINKING_TAGS:
            return None
        events.at = at
        return text

    return text_of


def _is_number(value: bytes) -> bool:
    # Thousands of digits are an error in the SDK.
    return value.isdigit() and not value.startswith(b"0") and len(value) < 20
