"""`StreamUsage`: the usage of a run, made of pydantic-ai's sum and of the records of its responses."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import replace
from typing import Any, Final, cast

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolReturnPart
from pydantic_ai.usage import RequestUsage, RunUsage

from .._counting import NOTHING, Count
from .._record import read_record
from ._objects import ResponseUsage
from ._plain import joined, record_of_plain
from ._record import UsageRecord
from ._recorded import EXTRAS, Recorded, records_of

__all__ = ("StreamUsage", "combine", "record_of_message", "usage_to_json")

_SHOWN: Final = ("input_tokens", "output_tokens", "unmeasured_requests")
_ESTIMATED: Final = (*_SHOWN, "cache_read_tokens", "output_reasoning_tokens", *sorted(EXTRAS))
"""The fields of a response in which an estimate may stand where pydantic-ai has nothing."""


class StreamUsage(Recorded, RunUsage):
    """The usage of a run: pydantic-ai's `RunUsage` that knows how sure each number is.

    The plain fields hold the values where those are honest, else the lower bounds.
    """

    __slots__ = ("_cost_range", "_records", "_stamp")

    @classmethod
    def of(cls, messages: ModelMessage | Iterable[ModelMessage]) -> StreamUsage:
        """The full usage of stored messages, with every bound and source that was recorded in them.

        Messages of other programs count too: a whole answer as reported, a cut one as unknown. No model and no
        network is asked. Records of a newer version of this package read as unknown.

        Args:
            messages: One message or any number of them.
        """
        if isinstance(messages, ModelRequest | ModelResponse):
            messages = (messages,)
        usage = cls()
        records: list[UsageRecord] = []
        for message in messages:
            if isinstance(message, ModelResponse):
                RunUsage.incr(usage, message.usage)
                usage.requests += 1
                record = record_of_message(message)
                if message.usage.unmeasured_requests and None not in (record.input.value, record.output.value):
                    shown = RequestUsage(input_tokens=record.input.plain, output_tokens=record.output.plain)
                    _exchange(usage.__dict__, message.usage, shown, _SHOWN)
                records.append(record)
            else:
                usage.tool_calls += sum(
                    isinstance(part, ToolReturnPart) and part.outcome == "success" for part in message.parts
                )
        usage._remember(tuple(records))
        return usage

    def incr(self, incr_usage: RunUsage | RequestUsage) -> None:
        """Add another usage to this one, in place, bounds and all."""
        records = (*(self._known() if self._has_anything() else ()), *records_of(incr_usage))
        super().incr(incr_usage)
        self._remember(records)

    def __add__(self, other: RunUsage | RequestUsage) -> StreamUsage:
        return cast("StreamUsage", super().__add__(other))

    def _has_anything(self) -> bool:
        return bool(self._records) or self.requests > 0 or self.has_values()


def combine(
    total: RunUsage,
    responses: Iterable[ModelResponse | RequestUsage],
    *,
    into: StreamUsage | None = None,
    cut: bool = False,
) -> StreamUsage:
    """The usage of a run in flight: its total as pydantic-ai has it, with the records of its responses.

    Args:
        total: pydantic-ai's own sum, the response in flight included; gives every plain field.
        responses: The responses (or their usages) that `total` is the sum of.
        into: The object to update and return, so that a run has one usage object for its whole life.
        cut: Whether the run was cut: it is not complete then, even if each of its responses is.
    """
    usage = StreamUsage() if into is None else into
    fields = {**total.__dict__, "details": dict(total.details)}
    records: list[UsageRecord] = []
    rest = copy(total)
    for response in responses:
        one = response.usage if isinstance(response, ModelResponse) else response
        held = one._in_total if isinstance(one, ResponseUsage) else one
        rest -= RunUsage() + held
        if held is not one:
            _exchange(fields, held, one)
        records.extend([record_of_message(response)] if isinstance(response, ModelResponse) else records_of(one))
    if rest.input_tokens > 0 or rest.output_tokens > 0:
        # The run's `usage=`, or tokens of responses that no message keeps. A response may be
        # unmeasured before the total says so, which leaves less than none.
        rest.unmeasured_requests = max(rest.unmeasured_requests, 0)
        records.append(record_of_plain(rest))
    usage.__dict__.update(fields)
    for name in usage.__dict__.keys() - fields.keys():
        usage.__dict__.pop(name, None)
    # A request that counts nothing says nothing of the others, unless there are none.
    records = [record for record in records if record.counts] or records
    if cut and all(record.complete for record in records):
        *records, last = records or [UsageRecord(NOTHING, NOTHING, NOTHING, NOTHING)]
        records.append(replace(last, complete=False))
    usage._remember(tuple(records))
    return usage


def _exchange(
    fields: dict[str, Any], held: RequestUsage, shown: RequestUsage, names: Iterable[str] = _ESTIMATED
) -> None:
    """Put what we show of a response into a sum, in place of what pydantic-ai's sum holds of it."""
    for name in names:
        if difference := getattr(shown, name, 0) - getattr(held, name, 0):
            fields[name] = max(fields.get(name, 0) + difference, 0)


def record_of_message(message: ModelResponse) -> UsageRecord:
    """Return the known usage of a stored response; never raises, whatever its metadata holds."""
    record = _stored(message)
    if record is None:
        known = records_of(message.usage)
        record = joined(known)
        if message.state in ("interrupted", "incomplete") and not isinstance(message.usage, ResponseUsage):
            # Cut without us: pydantic-ai's numbers are then zeros, placeholders or the part that had come.
            record = replace(
                record,
                input=Count.unknown(record.input.low),
                output=Count.unknown(),
                cached_input=Count.unknown(),
                reasoning=Count.unknown(),
                complete=False,
            )
        elif message.state == "complete":
            record = replace(record, complete=True)
    return replace(
        record,
        model=record.model or message.model_name,
        provider=record.provider or message.provider_name,
        provider_url=record.provider_url or message.provider_url,
        at=message.timestamp,
    )


def _stored(message: ModelResponse) -> UsageRecord | None:
    stored = read_record(message.metadata)
    if stored is None or (stored and "usage" not in stored):
        return None
    record = UsageRecord.from_json(stored.get("usage"))
    unknown = Count.unknown()
    return record or UsageRecord(unknown, unknown, unknown, unknown)


def usage_to_json(usage: ResponseUsage | StreamUsage) -> dict[str, Any]:
    """The counts of a usage, without what would tell a client of models and providers."""
    return {
        name: {"value": count.value, "low": count.low, "high": count.high, "source": count.source}
        for name in ("input", "output", "cached_input", "reasoning")
        for count in [getattr(usage, name)]
    }
