"""The counts that a provider reported, told apart from those it left out.

A missing count is not zero, and a zero that was reported is not missing: each count here is the provider's number or
`None`. Numbers that cannot be counts (negative, text, absurdly large) are missing too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, cast

from pydantic_ai.usage import RequestUsage, RunUsage

from .._counting import as_count
from ._record import amounts, as_price

__all__ = ("NONE", "Reported", "counted_beside", "field_of", "from_usage", "from_wire")


@dataclass(frozen=True, slots=True)
class Reported:
    """One response's counts as its provider gave them.

    Attributes:
        input: Tokens of the request.
        output: Tokens of the answer, reasoning included.
        cached: The part of the input that came from the provider's cache.
        reasoning: The part of the output that was reasoning.
        beside: Reasoning that may be a part of the output or beside it: the numbers do not say which.
        others: Whatever else was counted under a name of its own, some of it with a price of its own.
        details: What was counted for `RequestUsage.details`.
        cost: The price that a gateway reported.
    """

    input: int | None = None
    output: int | None = None
    cached: int | None = None
    reasoning: int | None = None
    beside: int = 0
    others: tuple[tuple[str, int | float], ...] = ()
    details: tuple[tuple[str, int], ...] = ()
    cost: Decimal | None = None


NONE: Final = Reported()

_NO_FIELDS: Final[Mapping[str, Any]] = {}

_NAMED: Final = frozenset(
    {"input_tokens", "output_tokens", "cache_read_tokens", "output_reasoning_tokens", "requests", "tool_calls"}
    | {"unmeasured_requests", "details", "cost"}
    | {"estimated_requests", "estimated_input_tokens", "estimated_output_tokens"}
)
"""The parts of a usage that have a field in `Reported`, or do not come from the provider."""


def from_usage(usage: RequestUsage | None) -> Reported:
    """The usage of a pydantic-ai stream, which is nothing but zeros until something is reported.

    pydantic-ai sets on a usage what it was told, and leaves the rest to the class's defaults: that is how an explicit
    zero is told from a missing count.
    """
    if usage is None or usage.unmeasured_requests:
        return NONE
    given = cast("dict[str, object]", usage.__dict__)
    details = usage.details if isinstance(usage.details, dict) else {}  # pyright: ignore[reportUnnecessaryIsInstance]
    # A cancelstream wrapper inside this one estimated these; the provider did not report them.
    output = None if given.get("estimated_output_tokens") else as_count(given.get("output_tokens"))
    reasoning = as_count(given.get("output_reasoning_tokens"))
    return Reported(
        None if given.get("estimated_input_tokens") else as_count(given.get("input_tokens")),
        output,
        as_count(given.get("cache_read_tokens", 0)),
        reasoning,
        # pydantic-ai adds what it knows to be beside, but keeps no total that would show it of an unknown host.
        reasoning if output is not None and reasoning is not None and reasoning > output else 0,
        counted_beside(usage),
        tuple((name, count) for name, value in details.items() if (count := as_count(value)) is not None),
        as_price(usage.cost),
    )


def counted_beside(usage: RequestUsage | RunUsage) -> tuple[tuple[str, int | float], ...]:
    """The counts of a usage beside the main numbers: audio, cache writes, and whatever a provider has names for."""
    given = cast("dict[str, object]", usage.__dict__)
    return amounts((name, value) for name, value in given.items() if name not in _NAMED)


def from_wire(usage: object) -> Reported:
    """The `usage` of a raw OpenAI chunk or response, as the SDK's object or as a `dict`."""
    inputs = field_of(usage, "prompt_tokens_details") or field_of(usage, "input_tokens_details")
    outputs = field_of(usage, "completion_tokens_details") or field_of(usage, "output_tokens_details")
    audio = {"input_audio_tokens": field_of(inputs, "audio_tokens")}
    audio["output_audio_tokens"] = field_of(outputs, "audio_tokens")
    reasoning = as_count(field_of(outputs, "reasoning_tokens"))
    asked = _first(usage, "prompt_tokens", "input_tokens")
    output, beside = _with_reasoning(
        asked, _first(usage, "completion_tokens", "output_tokens"), reasoning, as_count(field_of(usage, "total_tokens"))
    )
    return Reported(
        asked,
        output,
        as_count(field_of(inputs, "cached_tokens")) or _first(usage, "prompt_cache_hit_tokens") or 0,
        reasoning,
        beside,
        amounts(audio.items()),
        () if reasoning is None else (("reasoning_tokens", reasoning),),
    )


def _with_reasoning(
    asked: int | None, output: int | None, reasoning: int | None, total: int | None
) -> tuple[int | None, int]:
    """The output with its reasoning, and the reasoning that may or may not be in it already.

    The total shows it: xAI and some gateways report reasoning beside the answer's tokens, others inside them, and some
    count more of it than of the whole answer.
    """
    if output is None or not reasoning:
        return output, 0
    if total is not None and total == (asked or 0) + output + reasoning:
        return output + reasoning, 0
    inside = reasoning <= output or total == (asked or 0) + output
    return output, 0 if inside else reasoning


def field_of(value: object, name: str) -> Any:
    """A field of an SDK object or of a `dict`; `None` where there is none."""
    if isinstance(value, dict):
        return cast("dict[str, Any]", value).get(name)
    # Not by `getattr`: pydantic takes microseconds to find out that an object has no such field.
    found = getattr(value, "__dict__", _NO_FIELDS).get(name)
    if found is None and (extra := getattr(value, "__pydantic_extra__", None)):
        found = extra.get(name)
    return found


def _first(usage: object, *names: str) -> int | None:
    return next((count for name in names if (count := as_count(field_of(usage, name))) is not None), None)
