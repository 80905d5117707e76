"""What metering costs, for `usage_accuracy.py`: a delta as it comes, and the count when a stream is cut."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from openai.types.chat import ChatCompletionChunk
from pydantic_ai.messages import PartDeltaEvent, TextPart, TextPartDelta
from pydantic_ai.usage import RequestUsage

from cancelstream import _tokens
from cancelstream._counting import family_of
from cancelstream._counting._delivered import Delivered
from cancelstream._counting._output import count_answer
from cancelstream._usage import Meter


class Appends:
    """What metering is measured against: a method that appends a delta."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def delta(self, piece: str) -> None:
        self.kept.append(piece)


def costs(text: str) -> Iterator[str]:
    """A line for each price, of an answer of this text; the best of many runs, taken side by side."""
    pieces = re.findall(r"\s?\S{1,6}|\s+", text)[:1000]
    events = [PartDeltaEvent(index=0, delta=TextPartDelta(piece)) for piece in pieces]
    chunks = [chat_chunk(piece) for piece in pieces]
    for name, feed, items, goal in (
        ("a pydantic-ai event", lambda: meter().feed_event, events, 2.0),
        ("a raw chunk of text, after the first", lambda: meter().feed_first(chunks[0]), pieces, 2.0),
        ("a raw chunk that carries more than text", lambda: meter().feed_chunk, chunks, None),
    ):
        appended, fed = fastest(lambda: each(Appends().delta, pieces), partial(feed_all, feed, items))
        yield compared(f"{name} / a method that appends", fed, appended, len(pieces), goal)
    if (count := _tokens.load("o200k_base")) is not None:
        for length in (1_800, len(text)):
            yield from at_a_cancel(text[:length], count)


def at_a_cancel(text: str, count: _tokens.Tokenizer) -> Iterator[str]:
    tokens, family, deltas = count(text), family_of("gpt-4o"), re.findall(r"\s?\S{1,6}|\s+", text)
    whole, in_deltas = Delivered(), Delivered()
    whole.text.append(text)
    in_deltas.text.extend(deltas)

    def settled() -> None:
        answer = meter()
        answer.sent()
        answer._seen.text.extend(("x",) * tokens)
        answer.settle(parts=[TextPart(text)], reported=RequestUsage(input_tokens=10), ended=False)

    one, output, everything = fastest(
        partial(count, text), partial(count_answer, whole, deltas=tokens, family=family), settled
    )
    joined, of_deltas = fastest(
        lambda: count("".join(deltas)), partial(count_answer, in_deltas, deltas=tokens, family=family)
    )
    yield compared(f"at a cancel, the output count / one tokenizer pass ({tokens} tokens)", output, one, 1, 1.3)
    yield compared("    of a raw stream / joining its deltas and one tokenizer pass", of_deltas, joined, 1, 1.3)
    yield compared("    and all of settling it, record and usage object included", everything, one, 1, None)


def meter() -> Meter:
    return Meter(model="gpt-4o", provider="openai", provider_url=None)


def chat_chunk(piece: str) -> ChatCompletionChunk:
    choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
    return ChatCompletionChunk.model_validate(
        {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": [choice]}
    )


def feed_all(start: Callable[[], Callable[[Any], object]], items: list[Any]) -> None:
    each(start(), items)


def each(feed: Callable[[Any], object], items: list[Any]) -> None:
    for item in items:
        feed(item)


def fastest(*actions: Callable[[], object]) -> list[float]:
    """The best time of each action, taken in turns so that a busy moment hits them all."""
    times = [float("inf")] * len(actions)
    for _ in range(300):
        for place, action in enumerate(actions):
            start = time.perf_counter()
            action()
            times[place] = min(times[place], time.perf_counter() - start)
    return times


def compared(name: str, ours: float, base: float, number: int, goal: float | None) -> str:
    ratio = ours / base
    verdict = "" if goal is None else f"<= {goal:.1f}x  {'ok' if ratio <= goal else 'MISSED'}"
    return f"{name:<72} {ratio:6.2f}x {ours / number * 1e9:>9,.0f} ns / {base / number * 1e9:,.0f} ns  {verdict}"
