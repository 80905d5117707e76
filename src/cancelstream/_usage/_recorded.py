"""The common part of both usage objects: pydantic-ai's fields, and a record of where each number came from.

pydantic-ai sums, dumps and copies whatever it finds in a usage object's `__dict__`. So what may be summed lives
there: the plain fields, and three numeric extras (`estimated_requests`, `estimated_input_tokens`,
`estimated_output_tokens`) that add up through pydantic-ai's own sums and its JSON. The records themselves sit in a
slot, where none of that reaches them; beside them are the plain numbers they were made for, and when somebody has
changed those in place since (pydantic-ai's own sums do), the records no longer describe them and are not shown.

Known limits: a plain `RunUsage` that pydantic-ai summed has the extras but no bounds; `StreamUsage.of(messages)`
rebuilds them from the messages.
"""

from __future__ import annotations

from copy import copy, deepcopy
from typing import TYPE_CHECKING, Any, Final, Self, cast

from pydantic_ai.usage import RequestUsage, RunUsage

from .._counting import Count, join
from ._cost import CostRange, cost_of
from ._plain import record_of_plain
from ._record import Provenance, UsageRecord

__all__ = ("EXTRAS", "Recorded", "records_of")

EXTRAS: Final = frozenset({"estimated_requests", "estimated_input_tokens", "estimated_output_tokens"})

_UNSET: Final[dict[str, Any]] = {
    **dict.fromkeys(EXTRAS, 0),
    **dict.fromkeys(("_stamp", "_cost_range", "_held")),
    "_records": (),
    "_is_final": False,
}
"""The value of an attribute that was never set: the extras where all is reported, and the slots of a new object."""


class Recorded:
    """The properties of both usage objects that read their records."""

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
        """Whether a model may have reasoned unseen by the client: `output` then has no value, only bounds."""
        return any(record.hidden_reasoning for record in self._known())

    @property
    def cost_range(self) -> CostRange:
        """The cost in USD, with bounds: computed once, on first access, and never raising.

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


def records_of(usage: RequestUsage | RunUsage) -> tuple[UsageRecord, ...]:
    if isinstance(usage, Recorded):
        return usage._known()
    return (record_of_plain(usage),)
