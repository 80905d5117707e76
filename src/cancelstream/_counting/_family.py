"""How a maker's models count, as far as it is known: the terms that the table in `_makers.py` is written in.

A `Family` says which vocabulary to count a text with, how the maker's own counts relate to that, and what an answer
leaves unsaid. It holds no figures: those are in the table, each row with where it was seen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import sqrt
from statistics import stdev
from typing import Final, Literal

from .. import _tokens

__all__ = ("NO_TOKENS", "Calls", "Family", "Opening", "Tokens", "sampled")

_LINES: Final = re.compile(r"\n+")
_SYMBOLS: Final = re.compile(r"[^\x00-\x7f\w\s]")
"""Signs outside of ASCII that are no letters: dashes, arrows, emoji."""

_PIECE: Final = 2_000
"""Characters that are counted at once where a text is counted in pieces; a seam is worth less than a token."""

_SHORT: Final = 10_000
"""Characters that any tokenizer counts in no time, whatever they are."""

Opening = Literal["count", "plain", "bound", "nothing"]
"""The meaning of an input count that comes before the answer's end.

`"count"`: the whole input. `"plain"`: the whole input of a request that holds text and functions alone, else a lower
bound. `"bound"`: a lower bound. `"nothing"`: neither, since it may still go down.
"""


@dataclass(slots=True)
class Tokens:
    """A number of tokens as it was counted, with bounds, before it is anybody's `Count`.

    Attributes:
        value: The number.
        low: A lower bound.
        high: An upper bound.
        method: How it was counted.
        exact: Whether it was counted with the model's own vocabulary.
    """

    value: float
    low: float
    high: float
    method: str
    exact: bool

    def __add__(self, other: Tokens) -> Tokens:
        if other is NO_TOKENS:
            return self
        return Tokens(
            self.value + other.value,
            self.low + other.low,
            self.high + other.high,
            self.method or other.method,
            self.exact and other.exact,
        )


NO_TOKENS: Final = Tokens(0, 0, 0, "", True)


@dataclass(frozen=True, slots=True)
class Calls:
    """Tokens around the function calls of an answer, beside their names and arguments.

    Attributes:
        each: Around each call.
        first: Around all of an answer's calls together.
        parallel: More of the same, where there are several.
        argument: Around each argument, where they are not written as JSON.
        closing: How many of these come after the arguments: a call that was cut has not got them yet.
        forced: Around a call that the request left no choice but, whose name is then not counted; `None` where such a
            call is like any other.
        room: How many more there may be around each call.
    """

    each: float = 15
    first: float = 0
    parallel: float = 0
    argument: float = 0
    closing: float = 2
    forced: float | None = None
    room: float = 30


@dataclass(frozen=True, slots=True)
class Family:
    """The facts about one maker's models.

    Attributes:
        name: The family's name.
        source: How much recorded traffic the row rests on, and how far off it is there.
        vocabulary: The vocabulary to count with.
        own: Whether that is the models' own, or only the nearest at hand.
        scale: What a token of that vocabulary is worth: the value, and its bounds.
        lines: Tokens to add for each run of line breaks.
        symbols: Tokens to add for each sign that is neither ASCII nor a letter.
        thinking: Whether reasoning that streams is what was billed, or a summary of it.
        hides: Whether these models may reason unseen by the client, unless they are told not to.
        citation: Tokens of a part of the text that cites something, beside its text.
        ending: Tokens that end an answer, and are counted when it came to its end.
        unseen: Tokens that an answer of these models may have beside what arrives, at the most.
        turn: Tokens around each message of a prompt.
        own_turn: More of the same around each earlier answer of the model's own.
        system: More of the same where there is a system message.
        shares: Whether calls that were made in parallel have the tokens around a message once when they are sent back.
        opening: Tokens around a whole prompt.
        slack: Tokens that the maker may add to a prompt.
        hosts: Where the maker serves these models itself; any other host may add a prompt of its own.
        tool: What a token of a function's JSON is worth in a prompt, and the tokens around all functions.
        schema: The same of a response schema.
        calls: Tokens around the calls of an answer.
        opens: What an input count says that comes before the end.
        limited: Whether an answer keeps to the limit that its request sets.
    """

    name: str
    source: str = ""
    vocabulary: str = _tokens.STAND_IN
    own: bool = True
    scale: tuple[float, float, float] = (1.0, 0.97, 1.03)
    lines: float = 0
    symbols: float = 0
    thinking: Literal["counted", "summary"] = "counted"
    hides: bool = False
    citation: float = 0
    ending: int = 1
    unseen: int = 0
    turn: float = 4
    own_turn: float = 0
    system: float = 0
    shares: bool = True
    opening: float = 3
    slack: int = 0
    hosts: tuple[str, ...] = ()
    tool: tuple[float, float] = (1, 100)
    schema: tuple[float, float] = (1, 0)
    calls: Calls = Calls()
    opens: Opening = "count"
    limited: bool = True

    @property
    def is_openai(self) -> bool:
        """Whether these are OpenAI's hosted models."""
        return self.name.startswith("openai")

    @property
    def is_claude(self) -> bool:
        """Whether these are Anthropic's models."""
        return self.name.startswith("claude")

    def count(self, text: str) -> Tokens:
        """How many of this family's tokens a text is; never waits for a tokenizer, nor long for what it counts.

        Of a text that would take longer than an event loop can spare, evenly spaced pieces are counted.
        """
        if not text:
            return NO_TOKENS
        if len(text) <= _SHORT or len(text) <= (most := _tokens.most_at_once(self.vocabulary)):
            return self._counted(text)
        pieces = sampled(text, most)
        counts = [self._counted(piece) for piece in pieces]
        times = len(text) / sum(map(len, pieces))
        values = [count.value * times for count in counts]
        value = sum(values)
        # Pieces that differ much from each other say little about those between them.
        room = min(0.5, 0.02 + 3 * stdev(values) * sqrt(len(values)) / value) if value else 0.5
        low, high = sum(count.low for count in counts) * times, sum(count.high for count in counts) * times
        return Tokens(value, low * (1 - room), high * (1 + room), f"sample:{counts[0].method}", False)

    def _counted(self, text: str) -> Tokens:
        count = _tokens.tokenizer(self.vocabulary)
        if count is not None:
            number = count(text) if len(text) <= _SHORT else _number(count, text)
            return self._scaled(text, number, f"bpe:{self.vocabulary}" if self.own else f"ratio:{self.name}", self.own)
        # Without the right vocabulary: by another one, or by no vocabulary at all.
        count = _tokens.tokenizer(_tokens.STAND_IN)
        if count is None:
            number, least, most = _tokens.approximate(text)
            value, low, high = self.scale
            return Tokens(number * value, least * low, most * high, "words", False)
        guess = self._scaled(text, _number(count, text), f"ratio:{self.name}", False)
        return Tokens(guess.value * 1.05, guess.low * 0.7, guess.high * 1.5, guess.method, False)

    def _scaled(self, text: str, number: int, method: str, exact: bool) -> Tokens:
        value, low, high = self.scale
        if not (self.lines or self.symbols):
            return Tokens(number * value, number * low, number * high, method, exact)
        more = self.lines * len(_LINES.findall(text)) + self.symbols * len(_SYMBOLS.findall(text))
        return Tokens(number * value + more, number * low, number * high + 2 * more, method, exact)


def sampled(text: str, most: int) -> list[str]:
    """Evenly spaced pieces of a long text, together about `most` characters of it."""
    number = max(2, most // _PIECE)
    step = (len(text) - _PIECE) / (number - 1)
    return [text[start : start + _PIECE] for start in (round(place * step) for place in range(number))]


def _number(count: _tokens.Tokenizer, text: str) -> int:
    """The tokens of a text: in one pass, or in pieces where it has next to no spaces, which gets a tokenizer stuck."""
    if 20 * (text.count(" ") + text.count("\n")) > len(text):
        return count(text)
    return sum(count(text[start : start + _PIECE]) for start in range(0, len(text), _PIECE))
