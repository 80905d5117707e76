"""What is known of a number of tokens: values, bounds, sources, their sums and their JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cancelstream import Count
from cancelstream._counting import NOTHING, as_count, join
from cancelstream._usage._record import UsageRecord, as_price

REPORTED = Count.reported(7)
ESTIMATED = Count.estimated(10, 8, 12, "deltas")
UNKNOWN = Count.unknown(5)


def counts() -> st.SearchStrategy[Count]:
    number = st.integers(0, 1000)
    return st.one_of(
        number.map(Count.reported),
        st.tuples(number, number, st.none() | number).map(lambda n: Count.estimated(*n, "deltas")),
        st.tuples(number, st.none() | number).map(lambda n: Count.unknown(*n)),
    )


@given(counts())
def test_a_count_is_in_order(count: Count):
    """low <= value <= high, whatever it was made of; a count without a value is `unknown`, and no other is."""
    assert (count.value is None) == (count.source == "unknown")
    assert count.low <= count.plain
    assert count.high is None or count.plain <= count.high


@given(st.lists(counts(), max_size=5))
def test_sums(several: list[Count]):
    """A sum has the bounds of all, no value if one has none, and is as uncertain as the least certain."""
    total = join(several)
    assert total.low == sum(count.low for count in several)
    unbounded = any(count.high is None for count in several)
    assert total.high == (None if unbounded else sum(count.high or 0 for count in several))
    sources = {count.source for count in several}
    worst = next((source for source in ("unknown", "estimated", "reported") if source in sources), "estimated")
    assert total.source == worst
    if "unknown" in sources:
        assert total.value is None
    else:
        assert total.value == sum(count.value or 0 for count in several)


def test_sums_of_one_kind():
    """What was counted in one way keeps saying so."""
    assert (ESTIMATED + ESTIMATED).method == "deltas"
    assert (ESTIMATED + REPORTED).method == "sum"
    assert NOTHING + REPORTED is REPORTED
    assert REPORTED + NOTHING is REPORTED
    with pytest.raises(TypeError):
        _ = REPORTED + 1  # type: ignore[operator]


@pytest.mark.parametrize(
    ("count", "low", "value", "expected"),
    [
        (ESTIMATED, 9, None, Count.estimated(10, 9, 12, "deltas")),
        (ESTIMATED, 2, 11, Count.estimated(11, 8, 12, "deltas")),
        (ESTIMATED, 20, None, Count.estimated(20, 20, 20, "deltas")),
        (UNKNOWN, 9, 11, Count.unknown(9)),
        (Count.unknown(5, 8), 9, None, Count.unknown(9, 9)),
    ],
)
def test_more_is_known(count: Count, low: int, value: int | None, expected: Count):
    """A later bound narrows a count, and never turns it round."""
    assert count.at_least(low, value) == expected


def test_a_count_is_frozen():
    """Nobody edits a count that was handed out."""
    with pytest.raises(AttributeError):
        REPORTED.value = 8  # type: ignore[misc]


# --- what providers send --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "count"),
    [
        *[(0, 0), (5, 5), (5.0, 5), (2**53, 2**53), (2**53 + 1, None), (10**40, None), (-1, None), (5.5, None)],
        *[(float("nan"), None), (float("inf"), None), ("5", None), (True, None), (None, None), ([5], None)],
    ],
)
def test_what_a_count_can_be(value: object, count: int | None):
    """A number of tokens is a whole number, not negative and not absurd; anything else is missing."""
    assert as_count(value) == count


@pytest.mark.parametrize(
    ("value", "price"),
    [
        *[("0.0038", Decimal("0.0038")), (0, Decimal(0)), (0.5, Decimal("0.5")), (Decimal(1), Decimal(1))],
        *[(None, None), ("free", None), ("NaN", None), (-1, None), (True, None), ("Infinity", None), ([], None)],
    ],
)
def test_what_a_price_can_be(value: object, price: Decimal | None):
    """A price is a number of dollars that is not negative; anything else is missing."""
    assert as_price(value) == price


# --- records --------------------------------------------------------------------------------------------------


RECORD = UsageRecord(
    REPORTED,
    ESTIMATED,
    Count.unknown(0, 7),
    UNKNOWN,
    complete=True,
    hidden_reasoning=True,
    model="gpt-4o",
    provider="openai",
    provider_url="https://api.openai.com/v1",
    others=(("cache_write_tokens", 3),),
    cost=Decimal("0.0038"),
)


@pytest.mark.parametrize("record", [RECORD, UsageRecord(NOTHING, NOTHING, NOTHING, NOTHING)])
def test_a_record_survives_json(record: UsageRecord):
    """A record is the same after its JSON was stored and read."""
    assert UsageRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_the_time_is_not_in_the_json():
    """The message beside the record says when it was made."""
    record = UsageRecord(REPORTED, REPORTED, REPORTED, REPORTED, at=datetime.now(UTC))
    read = UsageRecord.from_json(record.to_json())
    assert read is not None
    assert read.at is None


def test_where_a_record_came_from():
    """Input and output say where a usage came from, and `mixed` where they differ."""
    assert RECORD.provenance == "mixed"
    assert UsageRecord(UNKNOWN, UNKNOWN, REPORTED, REPORTED).provenance == "unknown"


def changed(name: str, **fields: Any) -> dict[str, Any]:
    record = RECORD.to_json()
    record[name] = {**record[name], **fields}
    return record


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "text",
        {},
        {**RECORD.to_json(), "input": None},
        changed("input", low=-1),
        changed("input", low="7"),
        changed("input", value=None),
        changed("input", value=6),
        changed("input", value=8),
        changed("input", value="7"),
        changed("input", high="7"),
        changed("input", source="guessed"),
        changed("input", source=["reported"]),
        changed("input", source={}),
        changed("input", method=None),
        changed("reasoning", value=5),
    ],
)
def test_what_is_no_record(data: object):
    """JSON that nobody of ours wrote is no record, and no error."""
    assert UsageRecord.from_json(data) is None


def test_a_record_of_strange_names():
    """What is beside the counts is taken only where it is what it should be."""
    data = {
        **RECORD.to_json(),
        "model": 5,
        "others": {"cache_write_tokens": "3", "x": 2},
        "cost": "free",
        "complete": 1,
    }
    record = UsageRecord.from_json(data)
    assert record is not None
    assert (record.model, record.others, record.cost, record.complete) == (None, (("x", 2),), None, False)
    record = UsageRecord.from_json({**RECORD.to_json(), "others": 5})
    assert record is not None
    assert record.others == ()
