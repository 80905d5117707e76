"""One number of tokens: its value, its bounds, where it came from.

A `Count` never turns an unknown into a zero: `value` is `None` where no honest value exists, `low` is then still a
bound that holds, and `high` is `None` where nothing bounds it from above.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final, Literal, get_args

__all__ = ("MOST", "NOTHING", "SOURCES", "Count", "Source", "as_count", "join")

Source = Literal["reported", "estimated", "unknown"]
"""Where a count came from: the provider's own number, our estimate, or neither."""

SOURCES: Final[tuple[Source, ...]] = get_args(Source)
"""From the most certain to the least."""

MOST: Final = 2**53
"""Larger numbers are taken for garbage: JSON itself is only exact up to here."""


@dataclass(frozen=True, slots=True)
class Count:
    """A number of tokens with its bounds and its source.

    Attributes:
        value: The number, or `None` where no honest one exists.
        low: A lower bound; 0 where nothing is known.
        high: An upper bound, or `None` where there is none.
        source: `'reported'` by the provider, `'estimated'` here, or `'unknown'`.
        method: How it was found, such as `'usage_event'`, `'deltas'` or `'bpe:o200k_base'`; for people to read.
    """

    value: int | None
    low: int
    high: int | None
    source: Source
    method: str

    @classmethod
    def reported(cls, value: int, method: str = "usage_event") -> Count:
        """The provider's own number."""
        return cls(value, value, value, "reported", method)

    @classmethod
    def estimated(cls, value: int, low: int, high: int | None, method: str) -> Count:
        """An estimate; the bounds are widened to hold the value if they do not."""
        return cls(value, min(low, value), None if high is None else max(high, value), "estimated", method)

    @classmethod
    def unknown(cls, low: int = 0, high: int | None = None, method: str = "unknown") -> Count:
        """No honest value, only bounds."""
        return cls(None, low, high if high is None else max(low, high), "unknown", method)

    def at_least(self, low: int, value: int | None = None) -> Count:
        """The same count where more is known of it: a lower bound, and perhaps a value that it may not fall below."""
        low = max(self.low, low)
        high = self.high if self.high is None else max(self.high, low, value or 0)
        if self.value is None:
            return replace(self, low=low, high=high)
        return replace(self, value=max(self.value, low, value or 0), low=low, high=high)

    @property
    def plain(self) -> int:
        """The one number to show where only one fits: the value, else the lower bound."""
        return self.low if self.value is None else self.value

    def __add__(self, other: Count) -> Count:
        """The sum, with the bounds of both; as uncertain as the less certain of the two."""
        if not isinstance(other, Count):  # pyright: ignore[reportUnnecessaryIsInstance]
            return NotImplemented
        if self is NOTHING:
            return other
        if other is NOTHING:
            return self
        return Count(
            None if self.value is None or other.value is None else self.value + other.value,
            self.low + other.low,
            None if self.high is None or other.high is None else self.high + other.high,
            SOURCES[max(SOURCES.index(self.source), SOURCES.index(other.source))],
            self.method if self.method == other.method else "sum",
        )


NOTHING: Final = Count(0, 0, 0, "estimated", "nothing_sent")
"""The count of a request that was never sent, or was refused: nothing, for certain."""


def join(counts: Iterable[Count]) -> Count:
    """The sum of counts; nothing at all sums to a certain zero."""
    return reduce(Count.__add__, counts, NOTHING)


def as_count(value: object) -> int | None:
    """A provider's number of tokens, or `None` where it is missing or cannot be one (negative, text, absurd)."""
    if type(value) is float and value.is_integer():
        value = int(value)
    # `bool` is an `int`, and never a count.
    return value if type(value) is int and 0 <= value <= MOST else None
