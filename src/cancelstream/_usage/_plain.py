"""Usage without a record: what pydantic-ai's plain numbers say on their own, and many records as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from pydantic_ai.usage import RequestUsage, RunUsage

from .._counting import NOTHING, Count, as_count, join
from ._record import UsageRecord, as_price
from ._reported import counted_beside

__all__ = ("joined", "record_of_plain")


def record_of_plain(usage: RequestUsage | RunUsage) -> UsageRecord:
    """Read the plain fields on their own, with the extras that say which part of them is an estimate."""
    if isinstance(usage, RunUsage) and usage.requests == 0 and not usage.has_values():
        return UsageRecord(NOTHING, NOTHING, NOTHING, NOTHING, complete=True)
    unmeasured = bool(usage.unmeasured_requests) or not usage.has_values()
    tokens_in, tokens_out = (_count_of_plain(usage, name, unmeasured) for name in ("input_tokens", "output_tokens"))
    whole = tokens_in.source == tokens_out.source == "reported"
    cached, reasoning = as_count(usage.cache_read_tokens), as_count(usage.output_reasoning_tokens)
    return UsageRecord(
        tokens_in,
        tokens_out,
        Count.reported(cached) if whole and cached is not None else Count.unknown(),
        Count.reported(reasoning) if whole and reasoning is not None else Count.unknown(),
        complete=whole,
        others=tuple((name, amount) for name, amount in counted_beside(usage) if amount),
        cost=as_price(usage.cost) if whole else None,
    )


def _count_of_plain(usage: RequestUsage | RunUsage, name: str, unmeasured: bool) -> Count:
    value, estimated = as_count(getattr(usage, name)), as_count(getattr(usage, f"estimated_{name}", 0))
    if value is None or estimated is None:
        return Count.unknown()
    if estimated > value and isinstance(usage, RequestUsage):
        # pydantic-ai's numbers of a whole answer have nothing for what was not reported. A sum may have both kinds.
        return Count.estimated(value + estimated, value, None, "sum")
    reported = max(0, value - estimated)
    if unmeasured:
        return Count.unknown(reported)
    return Count.estimated(value, reported, None, "sum") if estimated else Count.reported(value)


def joined(records: Sequence[UsageRecord]) -> UsageRecord:
    """Several records as one."""
    if len(records) == 1:
        return records[0]
    others: dict[str, int | float] = {}
    for record in records:
        for name, amount in record.others:
            others[name] = others.get(name, 0) + amount
    costs = [record.cost for record in records if record.cost is not None]
    return UsageRecord(
        join(record.input for record in records),
        join(record.output for record in records),
        join(record.cached_input for record in records),
        join(record.reasoning for record in records),
        complete=all(record.complete for record in records),
        hidden_reasoning=any(record.hidden_reasoning for record in records),
        model=_same(record.model for record in records),
        provider=_same(record.provider for record in records),
        provider_url=_same(record.provider_url for record in records),
        others=tuple(others.items()),
        cost=sum(costs, Decimal(0)) if costs and len(costs) == len(records) else None,
    )


def _same(names: Iterable[str | None]) -> str | None:
    found = set(names)
    return found.pop() if len(found) == 1 else None
