"""A value lies in its bounds, a price in its own, and nothing that is counted is negative."""

from __future__ import annotations

from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai.messages import PartDeltaEvent, TextPartDelta
from pydantic_ai.usage import RequestUsage, RunUsage

from cancelstream import Count, ResponseUsage
from cancelstream._usage import Meter, _cost, combine
from cancelstream._usage._cost import cost_of
from cancelstream._usage._record import UsageRecord

ASKED = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Tell me a story about a frog."}]}
AMOUNTS = st.integers(0, 50)


def in_order(count: Count) -> bool:
    value = count.low if count.value is None else count.value
    return 0 <= count.low <= value <= (value if count.high is None else count.high)


@given(AMOUNTS, AMOUNTS, st.none() | AMOUNTS, AMOUNTS, st.none() | AMOUNTS)
@settings(max_examples=200)
def test_a_count_is_in_order(value: int, low: int, high: int | None, least: int, other: int | None):
    """Whatever it is made of, and whatever is learned of it later."""
    for count in (Count.estimated(value, low, high, "test"), Count.unknown(low, high), Count.reported(value)):
        assert in_order(count)
        more = count.at_least(least, other)
        assert in_order(more)
        assert more.low >= max(count.low, least)
        assert more.value is None or more.value >= max(least, other or 0)
        assert in_order(count + more)


def raw_meter(**fields: Any) -> Meter:
    meter = Meter.for_openai({**ASKED, **fields}, api="openai-chat")
    meter.sent()
    meter.opened()
    return meter


def chunk(text: str, usage: tuple[int, int] | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": text}}]}
    return body if usage is None else {**body, "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}


def test_a_running_total_that_is_behind():
    """A total that came before the last delta is a lower bound, and not the count: on both routes."""
    raw = raw_meter()
    raw.feed_chunk(chunk("Rivers begin", (10, 2)))
    assert (raw.usage.output.value, raw.usage.output.source) == (2, "reported")
    raw.feed_chunk(chunk(" in the mountains, where snow melts"))
    assert raw.usage.output.source == "estimated"
    assert raw.usage.output.low >= 2
    raw.feed_chunk(chunk(" and", (10, 12)))
    assert (raw.usage.output.value, raw.usage.output.source) == (12, "reported")
    meter = raw_meter()
    for number, word in enumerate(("one", " two", " three"), 1):
        meter.feed_event(PartDeltaEvent(index=0, delta=TextPartDelta(word)))
        meter.observe(reported=RequestUsage(input_tokens=10, output_tokens=2))
        assert meter.usage.output.source == ("reported" if number <= 2 else "estimated")
    assert meter.usage.output.low >= 3


@pytest.mark.parametrize("whole", [True, False])
def test_a_reported_price_is_of_both_counts(whole: bool):
    """A gateway's price is the response's only if input and output are reported too; else there is an interval."""
    meter = Meter(model="gpt-4o", provider="openai", provider_url=None)
    meter.sent()
    meter.opened()
    meter.feed_event(PartDeltaEvent(index=0, delta=TextPartDelta("Rivers begin in the mountains, where")))
    fields = {"output_tokens": 7} if whole else {}
    usage: Any = RequestUsage(input_tokens=1000, cost=Decimal(3), **fields)
    meter.settle(reported=usage, ended=False, finish_reason="stop" if whole else None)
    assert (meter.usage.cost_range.value == 3) is whole
    assert meter.usage.cost_range.low <= (meter.usage.cost_range.value or 0)


def test_a_price_that_falls_with_the_size(monkeypatch: pytest.MonkeyPatch):
    """A larger prompt may be cheaper in all, and cached input dearer: the bounds still hold the value."""

    def falling(usage: RequestUsage, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(total_price=Decimal(100 - usage.input_tokens + 10 * usage.cache_read_tokens))

    monkeypatch.setattr(_cost, "calc_price", falling)
    unknown = Count.unknown(0, 5)
    for cached in (Count.reported(0), unknown, Count.unknown()):
        asked, answered = Count.estimated(20, 10, 30, "test"), Count.estimated(5, 5, 6, "test")
        price = cost_of([UsageRecord(asked, answered, cached, unknown, model="gpt-4o")])
        assert price.value is not None
        assert price.high is not None
        assert price.low <= price.value <= price.high


def unmeasured(**fields: Any) -> ResponseUsage:
    meter = Meter(model="gpt-5-mini", provider="openai", provider_url=None)
    meter.sent()
    meter.opened()
    meter.feed_event(PartDeltaEvent(index=0, delta=TextPartDelta("Rivers")))
    meter.settle(ended=False)
    assert meter.usage.unmeasured_requests == 1
    return meter.usage


def test_nothing_is_negative_where_the_sum_lags_behind():
    """pydantic-ai's sum may not have a response yet that is unmeasured already: what is left is not less than none."""
    one = unmeasured()
    total = RunUsage(input_tokens=one.input_tokens + 100, output_tokens=one.output_tokens, requests=2)
    usage = combine(total, [one])
    assert usage.input.low >= 100
    assert usage.output.low == one.output.low
    assert all(value >= 0 for value in usage.__dict__.values() if isinstance(value, int))
    (rest,) = (record for record in usage._known() if record.model is None)
    assert (rest.input.value, rest.input.source) == (100, "reported")
    empty = combine(RunUsage(), [one])
    assert all(value >= 0 for value in empty.__dict__.values() if isinstance(value, int))


def test_what_is_shown_in_place_of_what_is_held_is_not_negative():
    """A message of an answer that nobody reported has nothing of it; the run's own usage has the estimate."""
    meter = raw_meter()
    meter.feed_event(PartDeltaEvent(index=0, delta=TextPartDelta("Rivers begin")))
    in_flight = meter.usage_in_message(RequestUsage())
    assert (in_flight.output_tokens, in_flight.output.source, in_flight.unmeasured_requests) == (0, "unknown", 0)
    assert meter.usage_in_message(RequestUsage()) is not in_flight
    meter.settle(ended=True)
    final = meter.usage_in_message(RequestUsage(unmeasured_requests=1))
    assert meter.usage_in_message(RequestUsage(unmeasured_requests=1)) is final is meter.usage._in_total
    assert (final.output_tokens, final.estimated_output_tokens) == (0, meter.usage.output_tokens)
    assert final.output == meter.usage.output
    behind = combine(RunUsage(), [meter.usage])  # pydantic-ai has not added it yet
    added = combine(RunUsage(requests=1) + final, [meter.usage])
    for usage in (behind, added):
        assert usage.output_tokens == meter.usage.output_tokens == usage.output.value
        assert (usage.input_tokens, usage.unmeasured_requests) == (meter.usage.input.value, 0)
    assert meter.usage_in_message(None) is meter.usage is meter.usage._in_total


def test_numbers_that_are_none():
    """A usage that a model class of somebody's has filled with nonsense is passed on as it is, and bounds nothing."""
    strange: Any = RequestUsage(input_tokens=-3, output_tokens=None)
    strange.details = None
    meter = raw_meter()
    held = meter.usage_in_message(strange)
    assert (held.input_tokens, held.output_tokens, held.details) == (-3, None, {})
    assert held._records[0].input == held._records[0].output == Count.unknown()
