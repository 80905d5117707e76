"""`cancelstream usage FILE`: what recorded messages took, in tokens and dollars, and how sure each number is."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from decimal import Decimal
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelResponse

from .._usage import CostRange, Count, StreamUsage

__all__ = ("print_usage", "usage_table")

_HEAD = ("", "model", "state", "input", "output", "cost in USD", "source")
_One: TypeAdapter[ModelMessage] = TypeAdapter(ModelMessage)


def print_usage(path: Path | str) -> int:
    """Print the table of a file of messages.

    Args:
        path: Messages as JSON: what `all_messages_json()` gives, or a single message. `-` is the standard input.

    Returns:
        The command's exit status: 0, or 2 for a file that cannot be read or holds no messages.
    """
    try:
        messages = _read(sys.stdin.buffer.read() if str(path) == "-" else Path(path).read_bytes())
    except OSError as error:
        print(f"cancelstream usage: cannot read {str(path)!r}: {error.strerror or error}", file=sys.stderr)
        return 2
    except ValidationError as error:
        print(
            f"cancelstream usage: {str(path)!r} does not hold messages as `all_messages_json()` gives them "
            f"({error.error_count()} errors, the first: {error.errors()[0]['msg']})",
            file=sys.stderr,
        )
        return 2
    print(usage_table(messages))
    return 0


def usage_table(messages: Iterable[ModelMessage]) -> str:
    """The messages' responses as a table, a line each and their sum, with a word on how to read it."""
    responses = [message for message in messages if isinstance(message, ModelResponse)]
    if not responses:
        return "no responses in these messages"
    lines = [
        _line(str(number), response.model_name or "?", response.state, StreamUsage.of(response))
        for number, response in enumerate(responses, 1)
    ]
    total = StreamUsage.of(responses)
    sums = _line("sum", "", "", total)
    notes = ["counts of what was delivered; a provider may bill more of an answer that was cut"]
    if total.hidden_reasoning:
        notes.append("a model may have reasoned unseen: that is counted neither in tokens nor in dollars")
    elif (reason := total.cost_range.reason) is not None:
        notes.append(f"cost: {reason}")
    return "\n".join([*_aligned([_HEAD, *lines, sums]), "", *notes])


def _read(data: bytes) -> list[ModelMessage]:
    try:
        return ModelMessagesTypeAdapter.validate_json(data)
    except ValidationError as error:
        try:
            return [_One.validate_json(data)]
        except ValidationError:
            raise error from None


def _line(number: str, model: str, state: str, usage: StreamUsage) -> tuple[str, ...]:
    counts = (_count(usage.input), _count(usage.output))
    return (number, model, state, *counts, _cost(usage.cost_range), usage.provenance)


def _count(count: Count) -> str:
    """The value, with its bounds where they say more."""
    if count.low == count.high:
        return f"{count.low:,}"
    value = "?" if count.value is None else f"{count.value:,}"
    return f"{value} ({count.low:,}..{'' if count.high is None else f'{count.high:,}'})"


def _cost(cost: CostRange) -> str:
    if cost.low == cost.high:
        return _dollars(cost.low)
    value = "?" if cost.value is None else _dollars(cost.value)
    return f"{value} ({_dollars(cost.low)}..{'' if cost.high is None else _dollars(cost.high)})"


def _dollars(amount: Decimal) -> str:
    return f"{amount:.6f}".rstrip("0").rstrip(".")


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
