"""All that is known of one response's usage, as one frozen value, and its JSON.

`UsageRecord` puts the four counts of a response together with what is needed to price them. Its JSON form holds
numbers and names only, never prompt or answer text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

from .._counting import MOST, NOTHING, SOURCES, Count, as_count

__all__ = ("Provenance", "UsageRecord", "amounts", "as_price", "bare_url")

Provenance = Literal["reported", "estimated", "mixed", "unknown"]
"""Where a whole usage came from; `'mixed'` when its counts differ in that."""

_COUNTS: Final = ("input", "output", "cached_input", "reasoning")
_NAMES: Final = ("model", "provider", "provider_url")


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """All that is known of one response's usage.

    Attributes:
        input: Tokens of the request.
        output: Tokens of what was delivered, reasoning included.
        cached_input: The part of `input` that the provider read from its cache.
        reasoning: The part of `output` that was reasoning.
        complete: Whether the response came to its natural end.
        hidden_reasoning: Whether the model may have reasoned unseen by the client, so that `output` has no value.
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
    def counts(self) -> bool:
        """Whether there is anything to count: a request that was never sent, or was refused, is nothing."""
        return not self.input == self.output == NOTHING

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


def amounts(items: Iterable[tuple[object, object]]) -> tuple[tuple[str, int | float], ...]:
    """The named numbers among these that a provider may have counted; a duration need not be whole."""
    found: list[tuple[str, int | float]] = []
    for name, value in items:
        amount = value if type(value) is float and 0 <= value <= MOST else as_count(value)
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
    if low is None or not isinstance(source, str) or source not in SOURCES or not isinstance(method, str):
        return None
    value, high = data.get("value"), data.get("high")
    if (value is None) != (source == "unknown") or (high is not None and as_count(high) is None):
        return None
    if value is not None and (as_count(value) is None or not low <= value <= (value if high is None else high)):
        return None
    return Count(value, low, high, source, method)
