"""The cost of a response, as an interval, with genai-prices.

After a cancel it is unknown which part of the input came from the provider's cache, so the lower bound takes all of it
as cached and the upper bound none. The price is of what was delivered; a provider may bill more.

Known limits: prices come from the data that the installed genai-prices has; nothing is fetched. A model that a gateway
passes on as `maker/model`, without a price list of its own, is priced as its maker would.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal

from genai_prices import calc_price
from pydantic_ai.usage import RequestUsage

from ._record import UsageRecord

__all__ = ("CostRange", "cost_of")


@dataclass(frozen=True, slots=True)
class CostRange:
    """A price in USD with its bounds.

    Attributes:
        value: The price of the counts' values with nothing cached that is not known to be; `None` without values.
        low: A lower bound; 0 where nothing is known.
        high: An upper bound, or `None` where there is none.
        reason: Why there is no value, or no upper bound, for people to read; `None` where there are both.
    """

    value: Decimal | None
    low: Decimal
    high: Decimal | None
    reason: str | None = None


def cost_of(records: Sequence[UsageRecord]) -> CostRange:
    """The sum of what the responses cost; never raises."""
    ranges = [_cost_of_one(record) for record in records]
    values = [one.value for one in ranges if one.value is not None]
    highs = [one.high for one in ranges if one.high is not None]
    reasons = dict.fromkeys(one.reason for one in ranges if one.reason is not None)
    return CostRange(
        sum(values, Decimal(0)) if len(values) == len(ranges) else None,
        sum((one.low for one in ranges), Decimal(0)),
        sum(highs, Decimal(0)) if len(highs) == len(ranges) else None,
        "; ".join(reasons) or None,
    )


def _cost_of_one(record: UsageRecord) -> CostRange:
    if record.cost is not None:
        return CostRange(record.cost, record.cost, record.cost)
    if record.input.high == 0 and record.output.high == 0:
        return CostRange(Decimal(0), Decimal(0), Decimal(0))
    if record.model is None:
        return CostRange(None, Decimal(0), None, "the model is not known")
    cached = record.cached_input
    try:
        least = record.input.low
        low = _price(record, least, least if cached.high is None else min(least, cached.high), record.output.low)
        value = high = None
        if record.input.value is not None and record.output.value is not None:
            value = _price(record, record.input.value, min(cached.plain, record.input.value), record.output.value)
        if record.input.high is not None and record.output.high is not None:
            high = _price(record, record.input.high, min(cached.low, record.input.high), record.output.high)
    except LookupError:
        return CostRange(None, Decimal(0), None, f"no price is known for the model {record.model!r}")
    except Exception as error:  # noqa: BLE001 - pricing is a courtesy, and never an exception out of a usage
        return CostRange(None, Decimal(0), None, f"{record.model!r} could not be priced: {error}")
    reason = None
    if value is None or high is None:
        reason = "hidden reasoning is not counted" if record.hidden_reasoning else "not every count has an upper bound"
    # A larger prompt may fall into a cheaper tier, and cached input may cost more than plain: keep the order.
    low = min(low, value if value is not None else low, high if high is not None else low)
    return CostRange(value, low, high if high is None else max(high, value or low), reason)


def _price(record: UsageRecord, input_tokens: int, cached: int, output_tokens: int) -> Decimal:
    usage = RequestUsage(input_tokens=input_tokens, output_tokens=output_tokens, cache_read_tokens=cached)
    for name, count in record.others:
        setattr(usage, name, count)
    model, at = record.model or "", record.at
    if record.provider_url is not None:
        with suppress(LookupError):
            return calc_price(
                usage, model, provider_api_url=record.provider_url, genai_request_timestamp=at
            ).total_price
    # A gateway's own address is in no price list: its name may be, or else that of the maker, which it passes on.
    maker, _, passed_on = model.rpartition("/")
    try:
        return calc_price(usage, model, provider_id=record.provider, genai_request_timestamp=at).total_price
    except LookupError:
        if not maker:
            raise
    return calc_price(usage, passed_on, genai_request_timestamp=at).total_price
