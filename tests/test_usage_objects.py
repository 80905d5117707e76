"""The usage objects: pydantic-ai's own in everything it does with them, and still sure of what they know."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import TypeAdapter
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models._continuation import usage_beyond
from pydantic_ai.usage import RequestUsage, RunUsage, UsageLimits
from pydantic_core import to_json

from cancelstream import CostRange, Count, ResponseUsage, StreamUsage
from cancelstream._counting import NOTHING
from cancelstream._usage import combine
from cancelstream._usage._objects import fill
from cancelstream._usage._record import UsageRecord
from cancelstream._usage._reported import NONE, Reported

ESTIMATED = UsageRecord(
    Count.estimated(14, 13, 15, "bpe:o200k_base"),
    Count.estimated(9, 8, 10, "deltas"),
    Count.unknown(0, 15),
    Count.estimated(2, 1, 3, "deltas"),
    model="gpt-4o",
    provider="openai",
)
WHOLE = UsageRecord(
    Count.reported(100),
    Count.reported(50),
    Count.reported(20),
    Count.reported(0),
    complete=True,
    model="gpt-4o",
    provider="openai",
)
HIDDEN = UsageRecord(
    Count.reported(30),
    Count.unknown(8),
    Count.reported(0),
    Count.unknown(),
    hidden_reasoning=True,
    model="gpt-5-mini",
    provider="openai",
)


def usage_of(record: UsageRecord, *, sent: bool = True, reported: Reported = NONE) -> ResponseUsage:
    usage = ResponseUsage()
    fill(usage, record, reported, sent=sent)
    return usage


def response_of(record: UsageRecord, *, state: Any = "interrupted", metadata: Any = ...) -> ModelResponse:
    usage = usage_of(record)
    if metadata is ...:
        metadata = {"cancelstream": {"v": 1, "usage": usage.record()}}
    return ModelResponse(
        parts=[TextPart("Hello")], usage=usage, model_name=record.model, provider_name="openai", state=state,
        metadata=metadata,
    )  # fmt: skip


def stored(*messages: ModelMessage) -> list[ModelMessage]:
    """The messages as somebody reads them who has kept them in a database."""
    return ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json(list(messages)))


# --- what they say --------------------------------------------------------------------------------------------


def test_an_estimate():
    """The plain fields hold the value, and the extras say which part of them nobody reported."""
    usage = usage_of(ESTIMATED)
    assert (usage.input, usage.output) == (ESTIMATED.input, ESTIMATED.output)
    assert (usage.cached_input, usage.reasoning) == (ESTIMATED.cached_input, ESTIMATED.reasoning)
    assert (usage.input_tokens, usage.output_tokens, usage.output_reasoning_tokens) == (14, 9, 2)
    assert (usage.estimated_requests, usage.estimated_input_tokens, usage.estimated_output_tokens) == (1, 14, 9)
    assert usage.provenance == "estimated"
    assert usage.unmeasured_requests == 0
    assert not usage.complete
    assert not usage.hidden_reasoning


def test_what_a_provider_reported():
    """Reported usage is what pydantic-ai's would be, and has no extras."""
    usage = usage_of(WHOLE)
    assert (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens) == (100, 50, 20)
    assert (usage.estimated_requests, usage.estimated_input_tokens, usage.estimated_output_tokens) == (0, 0, 0)
    assert not any(name.startswith("estimated") for name in usage.__dict__)
    assert usage.provenance == "reported"
    assert usage.complete


def test_no_honest_value():
    """Where there is none, the plain fields hold the lower bound, and pydantic-ai is told that they do."""
    usage = usage_of(HIDDEN)
    assert (usage.input_tokens, usage.output_tokens) == (30, 8)
    assert usage.unmeasured_requests == 1
    assert (usage.estimated_input_tokens, usage.estimated_output_tokens) == (0, 8)
    assert usage.provenance == "mixed"
    assert usage.hidden_reasoning


def test_nothing_was_sent():
    """A request that never went out counts nothing, and is no estimate."""
    usage = usage_of(UsageRecord(NOTHING, NOTHING, NOTHING, NOTHING), sent=False)
    assert not usage.has_values()
    assert (usage.estimated_requests, usage.unmeasured_requests) == (0, 0)
    assert usage.cost_range == CostRange(Decimal(0), Decimal(0), Decimal(0))


def test_it_turns_from_an_estimate_to_what_was_reported():
    """The one object of a response follows what is known, and sheds the extras when all is reported."""
    usage = usage_of(ESTIMATED)
    assert usage.cost_range.value is not None
    before = usage.cost_range
    fill(usage, WHOLE, Reported(details=(("reasoning_tokens", 0),), others=(("input_audio_tokens", 4),)), sent=True)
    assert not any(name.startswith("estimated") for name in usage.__dict__)
    assert usage.details == {"reasoning_tokens": 0}
    assert usage.input_audio_tokens == 4
    assert usage.cost_range != before


@pytest.mark.parametrize("usage", [usage_of(ESTIMATED), StreamUsage.of(response_of(ESTIMATED))])
def test_calling_it(usage: ResponseUsage | StreamUsage):
    """`usage()` is `usage`, without a deprecation warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert usage() is usage


def test_no_other_attributes():
    """A misspelt name is an error as on any object."""
    with pytest.raises(AttributeError, match="'ResponseUsage' object has no attribute 'inputs'"):
        _ = ResponseUsage().inputs  # type: ignore[attr-defined]


@pytest.mark.parametrize("empty", [ResponseUsage(), StreamUsage()])
def test_an_empty_one(empty: ResponseUsage | StreamUsage):
    """A usage of nothing is no silent zero for a response, and a certain one for a run without requests."""
    if isinstance(empty, StreamUsage):
        assert empty.output == NOTHING
    else:
        assert empty.output == Count.unknown()
        assert empty.provenance == "unknown"


# --- what pydantic-ai does with them --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [copy.copy, copy.deepcopy, lambda usage: pickle.loads(pickle.dumps(usage))],
    ids=["copy", "deepcopy", "pickle"],
)
@pytest.mark.parametrize(
    "usage", [usage_of(ESTIMATED, reported=Reported(details=(("a", 1),))), StreamUsage.of(response_of(ESTIMATED))]
)
def test_copies(usage: ResponseUsage | StreamUsage, make: Any):
    """pydantic-ai copies usages at every turn: a copy knows what the original does, and is its own."""
    twin = make(usage)
    assert type(twin) is type(usage)
    assert twin == usage
    assert twin.input == usage.input
    assert twin.provenance == usage.provenance
    twin.details["b"] = 2
    twin.input_tokens += 1
    assert "b" not in usage.details
    assert usage.input == ESTIMATED.input


def test_they_equal_plain_ones():
    """Code that compares usages need not know that one of them is ours."""
    plain = RequestUsage(input_tokens=100, output_tokens=50, cache_read_tokens=20)
    assert usage_of(WHOLE) == plain
    assert plain == usage_of(WHOLE)
    assert usage_of(ESTIMATED) != RequestUsage(input_tokens=14, output_tokens=9, output_reasoning_tokens=2)
    assert plain != usage_of(ESTIMATED)
    assert StreamUsage.of(response_of(WHOLE)) == RunUsage(requests=1) + plain
    assert usage_of(WHOLE) != StreamUsage.of(response_of(WHOLE))
    assert usage_of(WHOLE) != 5
    with pytest.raises(TypeError, match="unhashable"):
        hash(usage_of(WHOLE))


def test_a_plain_sum_keeps_the_extras():
    """pydantic-ai's own sums are plain, and still say how much of them is an estimate."""
    total = RunUsage() + usage_of(ESTIMATED) + usage_of(WHOLE) + usage_of(HIDDEN)
    assert type(total) is RunUsage
    assert (total.input_tokens, total.output_tokens) == (144, 67)
    extras = {name: value for name, value in total.__dict__.items() if name.startswith("estimated")}
    assert extras == {"estimated_requests": 2, "estimated_input_tokens": 14, "estimated_output_tokens": 17}
    assert total.unmeasured_requests == 1


def test_our_sums_keep_the_bounds():
    """Ours know the bounds of a sum, of responses and of runs, also with what pydantic-ai counted."""
    both = usage_of(ESTIMATED) + usage_of(WHOLE)
    assert type(both) is ResponseUsage
    assert both.output == Count(59, 58, 60, "estimated", "sum")
    assert both.provenance == "mixed"
    run = StreamUsage() + both + RequestUsage(input_tokens=5, output_tokens=6)
    assert run.output == Count(65, 64, 66, "estimated", "sum")
    run += usage_of(HIDDEN)
    assert run.output == Count(None, 72, None, "unknown", "sum")
    assert (run.input_tokens, run.output_tokens) == (149, 73)
    assert run.hidden_reasoning
    assert not run.complete


def test_the_record_of_a_sum():
    """A response of several parts, such as one that was resumed, has one record of them all."""
    priced = UsageRecord(
        WHOLE.input, WHOLE.output, WHOLE.cached_input, WHOLE.reasoning, others=(("cache_write_tokens", 3),),
        cost=Decimal("0.5"), model="gpt-4o",
    )  # fmt: skip
    record = UsageRecord.from_json((usage_of(priced) + usage_of(priced)).record())
    assert record is not None
    assert (record.others, record.cost, record.model) == ((("cache_write_tokens", 6),), Decimal(1), "gpt-4o")
    mixed = UsageRecord.from_json((usage_of(priced) + usage_of(HIDDEN)).record())
    assert mixed is not None
    assert (mixed.cost, mixed.model, mixed.hidden_reasoning, mixed.complete) == (None, None, True, False)
    assert mixed.output == priced.output + HIDDEN.output


def test_a_sum_in_place():
    """`incr()` is the same sum, in place."""
    usage = usage_of(ESTIMATED)
    usage.incr(usage_of(WHOLE))
    assert usage.output == Count(59, 58, 60, "estimated", "sum")
    run = StreamUsage()
    run.incr(usage)
    run.incr(RunUsage(requests=2, tool_calls=1, input_tokens=1, output_tokens=1))
    assert run.output == Count(60, 59, 61, "estimated", "sum")
    assert (run.requests, run.tool_calls) == (2, 1)


def test_what_was_changed_in_place_is_not_passed_off():
    """pydantic-ai changes the numbers of a usage in place now and then: our record is then not shown for them."""
    usage = usage_of(WHOLE)
    usage.output_tokens = 70
    assert usage.output == Count.reported(70)
    usage = usage_of(ESTIMATED)
    usage.output_tokens = 70
    assert usage.output.source == "estimated"
    assert usage.output.value == 70
    assert usage.output.high is None
    assert usage.cost_range.high is None


def test_the_rest_of_a_resumed_response():
    """What pydantic-ai says was billed beyond a suspended response is not shown with the bounds of the whole."""
    beyond = usage_beyond(usage_of(WHOLE), RequestUsage(input_tokens=40, output_tokens=10))
    assert isinstance(beyond, ResponseUsage)
    assert (beyond.input, beyond.output) == (Count.reported(60), Count.reported(40))


def test_a_difference():
    """What a run used since then is a difference of plain numbers."""
    run = StreamUsage() + usage_of(WHOLE)
    since = run - RunUsage(input_tokens=40, output_tokens=50)
    assert (since.input_tokens, since.output_tokens) == (60, 0)
    negative = StreamUsage() - RunUsage(input_tokens=40, output_tokens=50)
    assert isinstance(negative, StreamUsage)
    assert negative.input == Count.unknown()


@pytest.mark.parametrize("limit", [{"output_tokens_limit": 8}, {"input_tokens_limit": 13}, {"total_tokens_limit": 22}])
def test_an_estimate_counts_against_the_limits(limit: dict[str, int]):
    """pydantic-ai's limits see an estimate as they see what was reported, and complain of nothing."""
    run = RunUsage() + usage_of(ESTIMATED)
    with pytest.raises(UsageLimitExceeded):
        UsageLimits(**limit).check_tokens(run)
    UsageLimits(output_tokens_limit=9).check_tokens(run)


def test_otel_attributes_are_the_plain_numbers():
    """The span gets each number once, and none of ours beside it that a backend would add."""
    attributes = usage_of(ESTIMATED).opentelemetry_attributes()
    assert attributes["gen_ai.usage.input_tokens"] == 14
    assert attributes["gen_ai.usage.output_tokens"] == 9
    assert not any("estimated" in name for name in attributes)


# --- stored messages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [ESTIMATED, WHOLE, HIDDEN])
def test_everything_survives_a_database(record: UsageRecord):
    """Value, bounds and source of every count come back from a message's JSON."""
    message = response_of(record)
    (back,) = stored(message)
    usage = StreamUsage.of(back)
    assert type(back.usage) is RequestUsage  # type: ignore[union-attr]
    assert (usage.input, usage.output) == (record.input, record.output)
    assert (usage.cached_input, usage.reasoning) == (record.cached_input, record.reasoning)
    assert usage.provenance == record.provenance
    assert (usage.complete, usage.hidden_reasoning) == (record.complete, record.hidden_reasoning)
    assert usage.cost_range == StreamUsage.of(message).cost_range
    assert usage.requests == 1


@pytest.mark.parametrize("cls", [ResponseUsage, RequestUsage])
def test_the_json_of_a_usage(cls: type):
    """A usage dumps as pydantic-ai's does, extras included and nothing else of ours."""
    usage = usage_of(ESTIMATED)
    dumped = TypeAdapter(cls).dump_python(usage)
    assert dumped["estimated_output_tokens"] == 9
    assert not [name for name in dumped if name.startswith("_")]
    assert json.loads(to_json(usage))["estimated_requests"] == 1


def test_a_run_from_its_messages():
    """`of()` sums a conversation: requests, calls that succeeded, and every bound."""
    messages: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart("weather?")]),
        response_of(WHOLE, state="complete"),
        ModelRequest(parts=[ToolReturnPart("weather", "sunny"), ToolReturnPart("weather", "no", outcome="failed")]),
        response_of(ESTIMATED),
    ]
    for conversation in (messages, stored(*messages), tuple(messages), iter(messages)):
        usage = StreamUsage.of(conversation)
        assert (usage.requests, usage.tool_calls) == (2, 1)
        assert usage.output == Count(59, 58, 60, "estimated", "sum")
        assert usage.provenance == "mixed"
        assert not usage.complete
    assert StreamUsage.of(messages[2]).tool_calls == 1


@pytest.mark.parametrize(
    ("metadata", "source"),
    [
        ({"cancelstream": {"v": 2, "usage": usage_of(ESTIMATED).record()}}, "unknown"),
        ({"cancelstream": {"v": 1, "usage": {"input": 5}}}, "unknown"),
        ({"cancelstream": {"v": 1, "usage": None}}, "unknown"),
        ({"cancelstream": {"v": 1}}, "estimated"),
        ({"cancelstream": "mine"}, "estimated"),
        ({"theirs": 1}, "estimated"),
        (None, "estimated"),
    ],
)
def test_strange_metadata(metadata: dict[str, Any] | None, source: str):
    """A newer record, or none that we wrote, reads as unknown; without one the extras still say what is estimated."""
    (message,) = stored(response_of(ESTIMATED, state="complete", metadata=metadata))
    usage = StreamUsage.of(message)
    assert usage.output.source == source
    assert usage.output.low == 0
    assert usage.output.high is None
    assert usage.output_tokens == 9


@pytest.mark.parametrize("state", ["interrupted", "incomplete"])
def test_a_response_that_others_cut(state: Any):
    """pydantic-ai's own numbers of a cut response are zeros or placeholders: they are no more than what is known."""
    message = ModelResponse(
        parts=[TextPart("Hello")], usage=RequestUsage(input_tokens=78, output_tokens=1), state=state
    )
    usage = StreamUsage.of(message)
    assert usage.provenance == "unknown"
    assert (usage.input, usage.output) == (Count.unknown(78), Count.unknown())
    assert not usage.complete


def test_a_response_of_others():
    """What pydantic-ai counted of a whole response was reported, and what it did not count is unknown."""
    whole = StreamUsage.of(ModelResponse(parts=[], usage=RequestUsage(input_tokens=78, output_tokens=1)))
    assert whole.provenance == "reported"
    assert whole.complete
    unmeasured = RequestUsage(unmeasured_requests=1)
    assert StreamUsage.of(ModelResponse(parts=[], usage=unmeasured)).provenance == "unknown"
    assert StreamUsage.of(ModelResponse(parts=[], usage=RequestUsage())).provenance == "unknown"


@pytest.mark.parametrize("bad", [-5, "many", None, 10**30, 2.5, True])
def test_a_bad_usage_object(bad: Any):
    """A usage with nonsense in it is unknown, not an error and not a label of ours."""
    usage = RequestUsage(input_tokens=bad, output_tokens=7)
    read = combine(RunUsage() + usage, [usage])
    assert read.input == Count.unknown()
    assert read.output == Count.reported(7)
    assert read.cost_range.value is None


# --- a run in flight ------------------------------------------------------------------------------------------


def test_a_run_in_flight():
    """The plain numbers are pydantic-ai's sum, and the records those of the responses it sums."""
    first, live = response_of(WHOLE, state="complete"), usage_of(ESTIMATED)
    total = RunUsage(requests=1, tool_calls=2) + first.usage + live
    usage = combine(total, [first, live])
    assert (usage.requests, usage.tool_calls, usage.output_tokens) == (1, 2, 59)
    assert usage.output == Count(59, 58, 60, "estimated", "sum")

    fill(live, WHOLE, NONE, sent=True)
    again = combine(RunUsage(requests=2) + first.usage + live, [first, live], into=usage)
    assert again is usage
    assert usage.provenance == "reported"
    assert usage.estimated_requests == 0
    assert usage.requests == 2


def test_a_run_that_did_not_begin_at_nothing():
    """What a run was given as `usage=` has no response of its own, and counts as what its numbers say."""
    before = RunUsage(requests=3, input_tokens=1000, output_tokens=500)
    usage = combine(before + usage_of(ESTIMATED), [usage_of(ESTIMATED)])
    assert usage.output == Count(509, 508, 510, "estimated", "sum")
    assert usage.input.low == 1013


# --- cost -----------------------------------------------------------------------------------------------------


def test_the_cost_of_what_was_reported():
    """All counts known: one price, the same as pydantic-ai's."""
    message = response_of(WHOLE, state="complete")
    cost = StreamUsage.of(message).cost_range
    assert cost.value == cost.low == cost.high == message.cost().total_price
    assert cost.reason is None


def test_the_cost_of_what_has_a_price_of_its_own():
    """Writes to the cache are priced as such."""
    record = UsageRecord(
        WHOLE.input, WHOLE.output, WHOLE.cached_input, WHOLE.reasoning, complete=True, model="claude-sonnet-4-5",
        provider="anthropic", others=(("cache_write_tokens", 60),),
    )  # fmt: skip
    message = response_of(record, state="complete")
    message.provider_name = "anthropic"
    fill(message.usage, record, Reported(others=record.others), sent=True)  # type: ignore[arg-type]
    assert usage_of(record).cost_range.value == message.cost().total_price
    without = replace(record, others=())
    assert usage_of(record).cost_range.low > usage_of(without).cost_range.low


def test_the_cost_of_a_cut_answer_is_an_interval():
    """Nobody knows what of the input was cached, so the price lies between all of it and none."""
    usage = usage_of(ESTIMATED)
    cost = usage.cost_range
    assert cost.high is not None
    assert cost.value is not None
    assert cost.low < cost.value < cost.high
    rates = (Decimal("2.5"), Decimal("1.25"), Decimal(10))
    plain, cached, out = (rate / 1_000_000 for rate in rates)
    assert cost == CostRange(14 * plain + 9 * out, 13 * cached + 8 * out, 15 * plain + 10 * out)
    assert usage.cost_range is cost
    fill(usage, ESTIMATED, NONE, sent=True)
    assert usage.cost_range is cost


def test_the_cost_of_reasoning_that_nobody_saw():
    """Only a lower bound, and a reason."""
    cost = usage_of(HIDDEN).cost_range
    assert cost.value is None
    assert cost.high is None
    assert cost.low > 0
    assert cost.reason == "hidden reasoning is not counted"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (UsageRecord(WHOLE.input, WHOLE.output, WHOLE.cached_input, WHOLE.reasoning), "the model is not known"),
        (
            UsageRecord(WHOLE.input, WHOLE.output, WHOLE.cached_input, WHOLE.reasoning, model="mine"),
            "no price is known for the model 'mine'",
        ),
        (
            UsageRecord(WHOLE.input, Count.unknown(), WHOLE.cached_input, WHOLE.reasoning, model="gpt-4o"),
            "not every count has an upper bound",
        ),
    ],
)
def test_no_cost(record: UsageRecord, reason: str):
    """What cannot be priced says why."""
    cost = usage_of(record).cost_range
    assert cost.value is None
    assert cost.reason == reason


def test_the_cost_of_a_gateway():
    """A price that was reported is the price."""
    record = UsageRecord(WHOLE.input, WHOLE.output, WHOLE.cached_input, WHOLE.reasoning, cost=Decimal("0.25"))
    usage = usage_of(record, reported=Reported(cost=Decimal("0.25")))
    assert usage.cost_range == CostRange(Decimal("0.25"), Decimal("0.25"), Decimal("0.25"))
    assert usage.cost == Decimal("0.25")


def test_pricing_that_fails(monkeypatch: pytest.MonkeyPatch):
    """Whatever goes wrong in the price list: no exception, and a reason."""

    def broken(*arguments: object, **options: object) -> None:
        raise ValueError("negative remainder")

    monkeypatch.setattr("cancelstream._usage._cost.calc_price", broken)
    assert usage_of(WHOLE).cost_range.reason == "'gpt-4o' could not be priced: negative remainder"


def test_prices_by_address_then_by_name():
    """A gateway's own address is in no price list; the provider behind it is."""
    by_name = usage_of(WHOLE).cost_range
    record = UsageRecord(
        WHOLE.input, WHOLE.output, WHOLE.cached_input, WHOLE.reasoning, model="gpt-4o", provider="openai",
        provider_url="https://gateway.example/v1", at=datetime.now(UTC),
    )  # fmt: skip
    assert usage_of(record).cost_range == by_name
    assert StreamUsage.of([response_of(WHOLE), response_of(HIDDEN)]).cost_range.low > by_name.low


def test_the_cost_of_a_run():
    """A run costs what its responses do; one that cannot be priced leaves a lower bound and says so."""
    twice = StreamUsage.of([response_of(WHOLE), response_of(WHOLE)]).cost_range
    assert twice.value == 2 * (usage_of(WHOLE).cost_range.value or 0)
    mine = UsageRecord(WHOLE.input, WHOLE.output, WHOLE.cached_input, WHOLE.reasoning, model="mine")
    mixed = StreamUsage.of([response_of(WHOLE), response_of(mine), response_of(mine)]).cost_range
    assert mixed.value is None
    assert mixed.low == usage_of(WHOLE).cost_range.low
    assert mixed.reason == "no price is known for the model 'mine'"


def test_nothing_of_the_conversation_is_in_the_record():
    """The record holds numbers and names, no word of what was said."""
    message = response_of(ESTIMATED)
    message.parts = [TextPart("secret answer"), ToolCallPart("tool", {"secret": 1})]
    assert "secret" not in json.dumps(message.metadata)
