"""The usage objects: pydantic-ai's own, with a record of where each number came from.

pydantic-ai sums, dumps and copies whatever it finds in a usage object's `__dict__`. So what may be summed lives
there: the plain fields, and three numeric extras (`estimated_requests`, `estimated_input_tokens`,
`estimated_output_tokens`) that add up through pydantic-ai's own sums and its JSON. The records themselves sit in a
slot, where none of that reaches them; beside them are the plain numbers they were made for, and when somebody has
changed those in place since (pydantic-ai's own sums do), the records no longer describe them and are not shown.

Known limits: a plain `RunUsage` that pydantic-ai summed has the extras but no bounds; `StreamUsage.of(messages)`
rebuilds them from the messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy, deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self, cast

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolReturnPart
from pydantic_ai.usage import RequestUsage, RunUsage

from .._counting import NOTHING, Count, join
from .._record import read_record
from ._cost import CostRange, cost_of
from ._plain import joined, record_of_plain
from ._record import Provenance, UsageRecord
from ._reported import Reported

__all__ = ("ResponseUsage", "StreamUsage", "fill", "record_of_message")

EXTRAS: Final = frozenset({"estimated_requests", "estimated_input_tokens", "estimated_output_tokens"})

_UNSET: Final[dict[str, Any]] = {
    **dict.fromkeys(EXTRAS, 0),
    **dict.fromkeys(("_stamp", "_cost_range", "_held")),
    "_records": (),
    "_is_final": False,
}
"""What an attribute that was never set reads as: the extras where all is reported, and the slots of a new object."""


_SHOWN: Final = ("input_tokens", "output_tokens", "unmeasured_requests")
_ESTIMATED: Final = (*_SHOWN, "cache_read_tokens", "output_reasoning_tokens", *sorted(EXTRAS))
"""The fields of a response in which an estimate may stand where pydantic-ai has nothing."""


class _Recorded:
    """What both usage objects show of their records."""

    if TYPE_CHECKING:
        input_tokens: int
        output_tokens: int
        estimated_requests: int
        """The responses among these whose numbers are not all the provider's."""
        estimated_input_tokens: int
        """The part of `input_tokens` that the provider did not report."""
        estimated_output_tokens: int
        """The part of `output_tokens` that the provider did not report."""
        _records: tuple[UsageRecord, ...]
        _stamp: tuple[int, int] | None
        _cost_range: CostRange | None
    else:

        def __getattr__(self, name: str) -> Any:
            # Not class attributes: pydantic-ai keeps out of its JSON whatever `dir()` lists of the class.
            try:
                return _UNSET[name]
            except KeyError:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}") from None

    def _known(self) -> tuple[UsageRecord, ...]:
        """The records, or what the plain numbers alone say where those were changed in place."""
        if self._stamp == (self.input_tokens, self.output_tokens):
            return self._records
        return (record_of_plain(cast("RequestUsage | RunUsage", self)),)

    def _remember(self, records: tuple[UsageRecord, ...]) -> None:
        stamp = (self.input_tokens, self.output_tokens)
        if records != self._records or stamp != self._stamp:
            self._records, self._stamp, self._cost_range = records, stamp, None

    def __eq__(self, other: object) -> bool:
        # As pydantic-ai compares usages, but with its plain ones too: what they count is the same.
        if not isinstance(other, RequestUsage if isinstance(self, RequestUsage) else RunUsage):
            return NotImplemented
        names = self.__dict__.keys() | other.__dict__.keys()
        return all(getattr(self, name, _UNSET) == getattr(other, name, _UNSET) for name in names)

    def __copy__(self) -> Self:
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new.__dict__["details"] = dict(self.__dict__.get("details") or {})
        new._records, new._stamp, new._cost_range = self._records, self._stamp, self._cost_range
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = copy(self)
        new.__dict__.update(deepcopy(self.__dict__, memo))
        return new

    @property
    def input(self) -> Count:
        """Tokens of the requests."""
        return join(record.input for record in self._known())

    @property
    def output(self) -> Count:
        """Tokens of what was delivered, reasoning included; a provider may have generated, and bill, more."""
        return join(record.output for record in self._known())

    @property
    def cached_input(self) -> Count:
        """The part of `input` that came from the provider's cache; unknown after a cancel."""
        return join(record.cached_input for record in self._known())

    @property
    def reasoning(self) -> Count:
        """The part of `output` that was reasoning."""
        return join(record.reasoning for record in self._known())

    @property
    def provenance(self) -> Provenance:
        """Where the numbers came from: `'mixed'` as soon as they differ in that, within a response or between them."""
        found: set[Provenance] = {record.provenance for record in self._known()}
        return found.pop() if len(found) == 1 else "mixed"

    @property
    def complete(self) -> bool:
        """Whether every response counted here came to its natural end."""
        return all(record.complete for record in self._known())

    @property
    def hidden_reasoning(self) -> bool:
        """Whether a model may have reasoned where nobody sees it: `output` then has no value, only bounds."""
        return any(record.hidden_reasoning for record in self._known())

    @property
    def cost_range(self) -> CostRange:
        """What this costs in USD, with bounds: computed once, on first access, and never raising.

        `cost` is pydantic-ai's, the price of the plain fields.
        """
        if self._stamp != (self.input_tokens, self.output_tokens):
            return cost_of(self._known())
        if self._cost_range is None:
            self._cost_range = cost_of(self._records)
        return self._cost_range

    def __call__(self) -> Self:
        """This usage: `result.usage` is a value, and `result.usage()` works too."""
        return self


class ResponseUsage(_Recorded, RequestUsage):
    """The usage of one response, whole or cut: pydantic-ai's `RequestUsage` that knows how sure each number is.

    The plain fields of a response that was cut hold the value where one is honest, else the lower bound. Those of a
    message that was not cut are pydantic-ai's own, which has none for what was not reported: its limits and its sums
    are the same with this package as without it.
    """

    __slots__ = ("_cost_range", "_held", "_is_final", "_records", "_stamp")

    @property
    def held(self) -> ResponseUsage:
        """What pydantic-ai's sum holds of this response: the usage of the message that it was last given."""
        return self._held or self

    def for_message(self, plain: RequestUsage | None, record: UsageRecord | None = None) -> ResponseUsage:
        """The usage for a message of this response: one for each message while it streams, and one when it is over.

        Args:
            plain: pydantic-ai's own usage of a response that was not cut; `None` for one that was, whose usage is
                this one: every message of it reads right once it is settled.
            record: What is known while the response streams; `None` once it is over, when this usage knows all.
        """
        if plain is None:
            self._held = None
            return self
        if self._held is None or not self._is_final:
            held = self._held = ResponseUsage()
            held.__dict__.update({**plain.__dict__, "details": dict(plain.details)})
            if record is None and (self.estimated_input_tokens or self.estimated_output_tokens):
                held.__dict__.update({name: self.__dict__[name] for name in EXTRAS & self.__dict__.keys()})
            held._remember(self._records if record is None else (record,))
            self._is_final = record is None
        return self._held

    def incr(self, incr_usage: RequestUsage) -> None:
        """Add another usage to this one, in place, bounds and all."""
        records = (*self._known(), *_records_of(incr_usage))
        super().incr(incr_usage)
        self._remember(records)

    def __add__(self, other: RequestUsage) -> ResponseUsage:
        return cast("ResponseUsage", super().__add__(other))

    @property
    def counts(self) -> bool:
        """Whether there is a request to count: one that was not sent yet, or was refused, is none."""
        return any(record.counts for record in self._known())

    def record(self) -> dict[str, Any]:
        """The record as plain JSON, for `metadata['cancelstream']['usage']`: no prompt and no answer in it."""
        return joined(self._known()).to_json()


class StreamUsage(_Recorded, RunUsage):
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

    @classmethod
    def combine(
        cls,
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
        usage = cls() if into is None else into
        fields = {**total.__dict__, "details": dict(total.details)}
        records: list[UsageRecord] = []
        rest = copy(total)
        for response in responses:
            one = response.usage if isinstance(response, ModelResponse) else response
            held = one.held if isinstance(one, ResponseUsage) else one
            rest -= RunUsage() + held
            if held is not one:
                _exchange(fields, held, one)
            records.extend([record_of_message(response)] if isinstance(response, ModelResponse) else _records_of(one))
        if rest.input_tokens > 0 or rest.output_tokens > 0:
            # What the run was given as `usage=`, or spent on responses that nobody kept. A response may be
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

    def incr(self, incr_usage: RunUsage | RequestUsage) -> None:
        """Add another usage to this one, in place, bounds and all."""
        records = (*(self._known() if self._has_anything() else ()), *_records_of(incr_usage))
        super().incr(incr_usage)
        self._remember(records)

    def __add__(self, other: RunUsage | RequestUsage) -> StreamUsage:
        return cast("StreamUsage", super().__add__(other))

    def _has_anything(self) -> bool:
        return bool(self._records) or self.requests > 0 or self.has_values()


def fill(usage: ResponseUsage, record: UsageRecord, reported: Reported, *, sent: bool) -> None:
    """Bring a response's one usage object up to date with its record.

    Args:
        usage: The object, changed in place.
        record: What is known now.
        reported: What the provider reported, for the fields that only it has.
        sent: Whether the request went out; without it there is nothing to estimate.
    """
    fields = usage.__dict__
    fields["input_tokens"] = tokens_in = record.input.plain
    fields["output_tokens"] = tokens_out = record.output.plain
    fields["cache_read_tokens"] = min(record.cached_input.plain, tokens_in)
    fields["output_reasoning_tokens"] = min(record.reasoning.plain, tokens_out)
    # Some adapters repeat the counts among the details, placeholders included.
    repeated = {f"{name}_tokens" for name in ("input", "output") if getattr(record, name).source != "reported"}
    fields["details"] = {name: count for name, count in reported.details if name not in repeated}
    fields.update(reported.others)
    if reported.cost is not None:
        fields["cost"] = reported.cost
    fields["unmeasured_requests"] = int(sent and (record.input.value is None or record.output.value is None))
    if sent and record.provenance != "reported":
        fields["estimated_requests"] = 1
        fields["estimated_input_tokens"] = 0 if record.input.source == "reported" else tokens_in
        fields["estimated_output_tokens"] = 0 if record.output.source == "reported" else tokens_out
    else:
        for name in EXTRAS:
            fields.pop(name, None)
    usage._remember((record,))  # pyright: ignore[reportPrivateUsage]


def _exchange(
    fields: dict[str, Any], held: RequestUsage, shown: RequestUsage, names: Iterable[str] = _ESTIMATED
) -> None:
    """Put what we show of a response into a sum, in place of what pydantic-ai's sum holds of it."""
    for name in names:
        if difference := getattr(shown, name, 0) - getattr(held, name, 0):
            fields[name] = max(fields.get(name, 0) + difference, 0)


def record_of_message(message: ModelResponse) -> UsageRecord:
    """What is known of a stored response's usage; never raises on whatever its metadata holds."""
    record = _stored(message)
    if record is None:
        known = _records_of(message.usage)
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
    ours = read_record(message.metadata)
    if ours is None or (ours and "usage" not in ours):
        return None
    record = UsageRecord.from_json(ours.get("usage"))
    unknown = Count.unknown()
    return record or UsageRecord(unknown, unknown, unknown, unknown)


def _records_of(usage: RequestUsage | RunUsage) -> tuple[UsageRecord, ...]:
    if isinstance(usage, _Recorded):
        return usage._known()  # pyright: ignore[reportPrivateUsage]
    return (record_of_plain(usage),)
