"""What is known about one number of tokens: its value, its bounds, where it came from.

A `Count` never turns an unknown into a zero: `value` is `None` where no honest value exists, `low` is then still a
bound that holds, and `high` is `None` where nothing bounds it from above. `UsageRecord` puts the four counts of one
response together with what is needed to price them; it is frozen, and its JSON form holds numbers and names only,
never prompt or answer text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import reduce
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

__all__ = (
    "NOTHING",
    "Count",
    "Provenance",
    "Source",
    "UsageRecord",
    "amounts",
    "as_count",
    "as_price",
    "bare_url",
    "join",
)

Source = Literal["reported", "estimated", "unknown"]
"""Where a count came from: the provider's own number, our estimate, or neither."""

Provenance = Literal["reported", "estimated", "mixed", "unknown"]
"""Where a whole usage came from; `'mixed'` when its counts differ in that."""

_MOST: Final = 2**53
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
            max(self.source, other.source, key=_UNCERTAINTY.__getitem__),
            self.method if self.method == other.method else "sum",
        )


_COUNTS: Final = ("input", "output", "cached_input", "reasoning")
_NAMES: Final = ("model", "provider", "provider_url")

_UNCERTAINTY: Final[dict[Source, int]] = {"reported": 0, "estimated": 1, "unknown": 2}

NOTHING: Final = Count(0, 0, 0, "estimated", "nothing_sent")
"""The count of a request that was never sent: nothing, for certain."""


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """All that is known of one response's usage.

    Attributes:
        input: Tokens of the request.
        output: Tokens of what was delivered, reasoning included.
        cached_input: The part of `input` that the provider read from its cache.
        reasoning: The part of `output` that was reasoning.
        complete: Whether the response came to its natural end.
        hidden_reasoning: Whether the model may have reasoned where nobody sees it, so that `output` has no value.
        model: The model's name, to price it.
        provider: The provider's name, to price it.
        provider_url: The provider's base URL, without credentials or query.
        others: What else the provider counted: some of it has a price of its own (cache writes, audio, searches).
        cost: The price that a gateway reported, in USD.
        at: When the response was made, where that is known: prices change. Not part of the JSON.
    """

    input: Count
    output: Count
    cached_input: Count
    reasoning: Count
    complete: bool = False
    hidden_reasoning: bool = False
    model: str | None = None
    provider: str | None = None
    provider_url: str | None = None
    others: tuple[tuple[str, int | float], ...] = ()
    cost: Decimal | None = None
    at: datetime | None = None

    @property
    def provenance(self) -> Provenance:
        """Where the two main counts came from."""
        return self.input.source if self.input.source == self.output.source else "mixed"

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON."""
        record: dict[str, Any] = {name: _count_to_json(getattr(self, name)) for name in _COUNTS}
        record["complete"] = self.complete
        record["hidden_reasoning"] = self.hidden_reasoning
        for name in _NAMES:
            if (value := getattr(self, name)) is not None:
                record[name] = value
        if self.others:
            record["others"] = dict(self.others)
        if self.cost is not None:
            record["cost"] = str(self.cost)
        return record

    @classmethod
    def from_json(cls, data: object) -> UsageRecord | None:
        """The record that `to_json` made, or `None` where this is not one."""
        if not isinstance(data, Mapping):
            return None
        data = cast("Mapping[str, Any]", data)
        counts = tuple(_count_from_json(data.get(name)) for name in _COUNTS)
        if any(count is None for count in counts):
            return None
        tokens_in, tokens_out, cached_input, reasoning = cast("tuple[Count, Count, Count, Count]", counts)
        return cls(
            tokens_in,
            tokens_out,
            cached_input,
            reasoning,
            complete=data.get("complete") is True,
            hidden_reasoning=data.get("hidden_reasoning") is True,
            model=_name_from_json(data.get("model")),
            provider=_name_from_json(data.get("provider")),
            provider_url=_name_from_json(data.get("provider_url")),
            others=_others_from_json(data.get("others")),
            cost=as_price(data.get("cost")),
        )


def join(counts: Iterable[Count]) -> Count:
    """The sum of counts; nothing at all sums to a certain zero."""
    return reduce(Count.__add__, counts, NOTHING)


def as_count(value: object) -> int | None:
    """A provider's number of tokens, or `None` where it is missing or cannot be one (negative, text, absurd)."""
    if type(value) is float and value.is_integer():
        value = int(value)
    # `bool` is an `int`, and never a count.
    return value if type(value) is int and 0 <= value <= _MOST else None


def amounts(items: Iterable[tuple[object, object]]) -> tuple[tuple[str, int | float], ...]:
    """The named numbers among these that a provider may have counted; a duration need not be whole."""
    found: list[tuple[str, int | float]] = []
    for name, value in items:
        amount = value if type(value) is float and 0 <= value <= _MOST else as_count(value)
        if isinstance(name, str) and amount is not None:
            found.append((name, amount))
    return tuple(found)


def as_price(value: object) -> Decimal | None:
    """A price in USD, or `None` where it is missing or cannot be one."""
    if isinstance(value, bool) or not isinstance(value, Decimal | int | float | str):
        return None
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        return None
    return price if price.is_finite() and price >= 0 else None


def bare_url(url: str | None) -> str | None:
    """A base URL without the credentials or the query that some people put there: a record is kept and passed on."""
    try:
        parts = urlsplit(url or "")
    except ValueError:
        return None
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme and host else None


def _name_from_json(data: object) -> str | None:
    return data if isinstance(data, str) else None


def _others_from_json(data: object) -> tuple[tuple[str, int | float], ...]:
    return amounts(cast("Mapping[object, object]", data).items()) if isinstance(data, Mapping) else ()


def _count_to_json(count: Count) -> dict[str, Any]:
    return {
        "value": count.value,
        "low": count.low,
        "high": count.high,
        "source": count.source,
        "method": count.method,
    }


def _count_from_json(data: object) -> Count | None:
    if not isinstance(data, Mapping):
        return None
    data = cast("Mapping[str, Any]", data)
    low, source, method = as_count(data.get("low")), data.get("source"), data.get("method")
    if low is None or not isinstance(source, str) or source not in _UNCERTAINTY or not isinstance(method, str):
        return None
    value, high = data.get("value"), data.get("high")
    if (value is None) != (source == "unknown") or (high is not None and as_count(high) is None):
        return None
    if value is not None and (as_count(value) is None or not low <= value <= (value if high is None else high)):
        return None
    return Count(value, low, high, source, method)
