"""The meaning of a reported count: the final number, a bound, or nothing.

A provider's number is final once its model has said how the answer ended. Before that it may be a running total, a
first guess that grows with every tool the provider runs, or a placeholder. Each of those looks like a count. There are
four rules:

1. A count that came with the end, or after it, is final.
2. An input count that came before is final only for makers whose recorded traffic shows that these counts do not move
   (`Family.opens`), and a zero never is.
3. An output count that came before is a running total if it covers all that has visibly come; a zero never does.
4. Anything else is a lower bound, or nothing at all where it may still go down.
"""

from __future__ import annotations

from collections.abc import Callable

from .._counting import Count, Family, Prompt
from ._reported import Reported

__all__ = ("input_count", "output_count", "reasoning_count", "settles_input")


def settles_input(reported: Reported, *, family: Family, prompt: Callable[[], Prompt | None], final: bool) -> bool:
    """Whether the reported input is the whole input.

    Args:
        reported: What the provider reported last.
        family: Whose models answer.
        prompt: Reads what was asked, where that is known.
        final: Whether it came with the end of the answer or after it.
    """
    if reported.input is None or final or not reported.input:
        return final and reported.input is not None
    if family.opens == "plain":
        asked = prompt()
        return asked is not None and not asked.unseen
    return family.opens == "count"


def input_count(reported: Reported, estimate: Callable[[], Count], *, family: Family, settled: bool) -> Count:
    """The tokens of the request, by the provider's count as far as it goes, else by an estimate."""
    if reported.input is not None and settled:
        return Count.reported(reported.input)
    if not reported.input or family.opens == "nothing":
        return estimate()
    return estimate().at_least(reported.input)


def output_count(reported: Reported, estimate: Callable[[], Count], *, final: bool, covers: bool) -> Count:
    """The tokens of the answer, by the provider's count as far as it goes, else by an estimate.

    Args:
        reported: What the provider reported last.
        estimate: Makes the estimate of what arrived.
        final: Whether it came with the end of the answer or after it.
        covers: Whether nothing has come since that it cannot know of.
    """
    number = reported.output
    if number is None:
        return estimate()
    if final:
        if reported.beside:
            return Count.estimated(number, number, number + reported.beside, "usage_event")
        return Count.reported(number)
    estimated = estimate()
    if covers and number >= max(1, estimated.low):
        return Count.reported(number, "continuous")
    return estimated.at_least(number)


def reasoning_count(reported: Reported, output: Count, *, shown: bool) -> Count:
    """The reasoning in an output that was reported; without a number of its own it is none, unless some was shown."""
    if reported.reasoning is None and shown:
        return Count.unknown(0, output.high)
    return Count.reported(reported.reasoning or 0, output.method)
