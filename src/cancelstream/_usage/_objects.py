"""`ResponseUsage`: the usage of one response, as it is shown, and as pydantic-ai is given it in a message.

The two are one while nothing differs, and for a response that was cut. In a message that was not cut pydantic-ai finds
its own numbers, which are nothing where nothing was reported: so its limits and sums are what they are without this
package. `StreamUsage` puts the one in place of the other when it shows a run's sum.
"""

from __future__ import annotations

from typing import Any, cast

from pydantic_ai.usage import RequestUsage

from ._plain import joined
from ._record import UsageRecord
from ._recorded import EXTRAS, Recorded, records_of
from ._reported import Reported

__all__ = ("ResponseUsage", "fill")


class ResponseUsage(Recorded, RequestUsage):
    """The usage of one response, whole or cut: pydantic-ai's `RequestUsage` that knows how sure each number is.

    The plain fields of a response that was cut hold the value where one is honest, else the lower bound. Those of a
    message that was not cut are pydantic-ai's own, which has none for what was not reported: its limits and its sums
    are the same with this package as without it.
    """

    __slots__ = ("_cost_range", "_held", "_is_final", "_records", "_stamp")

    @property
    def _in_total(self) -> ResponseUsage:
        """The part of pydantic-ai's sum that is this response: the usage of the message that it was last given."""
        return self._held or self

    def _for_message(self, plain: RequestUsage | None, record: UsageRecord | None = None) -> ResponseUsage:
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
            held.__dict__.update({**plain.__dict__, "details": dict(plain.details or {})})
            if record is None and (self.estimated_input_tokens or self.estimated_output_tokens):
                held.__dict__.update({name: self.__dict__[name] for name in EXTRAS & self.__dict__.keys()})
            held._remember(self._records if record is None else (record,))
            self._is_final = record is None
        return self._held

    def incr(self, incr_usage: RequestUsage) -> None:
        """Add another usage to this one, in place, bounds and all."""
        records = (*self._known(), *records_of(incr_usage))
        super().incr(incr_usage)
        self._remember(records)

    def __add__(self, other: RequestUsage) -> ResponseUsage:
        return cast("ResponseUsage", super().__add__(other))

    @property
    def _counts(self) -> bool:
        """Whether there is a request to count: one that was not sent yet, or was refused, is none."""
        return any(record.counts for record in self._known())

    def record(self) -> dict[str, Any]:
        """The record as plain JSON, for `metadata['cancelstream']['usage']`: no prompt and no answer in it."""
        return joined(self._known()).to_json()


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
    usage._remember((record,))
