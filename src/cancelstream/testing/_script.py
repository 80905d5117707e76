"""A turn: what answers one request. A script is a turn for each request.

A turn is an `Answer` (rendered for whichever OpenAI API was asked), a `Replay` of recorded payloads, or an
`HttpError`. As with its steps, one that makes no sense raises where it is built.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final, Literal, TypeAlias

import h11

from ._steps import (
    Burst,
    Cut,
    ErrorEvent,
    Event,
    Gap,
    Gate,
    Pause,
    Reasoning,
    Silence,
    Step,
    Text,
    ToolCall,
    check_seconds,
)

__all__ = ("Answer", "Chunk", "HttpError", "Part", "Replay", "Turn", "Usage", "Write", "check_turn", "parts")

_STEPS: Final = (Text, Reasoning, ToolCall, Event, Burst, Gap, Gate, Silence, Cut, ErrorEvent)
_LAST: Final = (Silence, Cut, ErrorEvent)
_FINISHES: Final = ("stop", "length", "tool_calls", "content_filter")


@dataclass(frozen=True)
class Usage:
    """The usage that the provider reports, whether or not the request asked for it.

    Args:
        input_tokens: Tokens of the prompt.
        output_tokens: Tokens of the answer, reasoning included; `None` reports one for each chunk of text,
            reasoning or tool call.
        cached_tokens: How many of the input tokens came from a cache.
        reasoning_tokens: How many of the output tokens were reasoning.
        when: `'end'`: once, at the end. `'every'`: with each chunk what it has cost so far, one output token a
            chunk, and at the end the whole (chat completions; Responses has no such thing and reports at the end).
            An answer without usage is `Answer(usage=None)`.
    """

    input_tokens: int = 10
    output_tokens: int | None = None
    _: KW_ONLY
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    when: Literal["end", "every"] = "end"

    def __post_init__(self) -> None:
        if self.when not in ("end", "every"):
            raise ValueError(f"Usage(when) is 'end' or 'every', not {self.when!r}; Answer(usage=None) reports none")
        for name in ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens"):
            count = getattr(self, name)
            if name == "output_tokens" and count is None:
                continue
            if not isinstance(count, int) or count < 0:
                raise ValueError(f"Usage({name}) is a number of tokens, not {count!r}")
        if self.cached_tokens > self.input_tokens:
            raise ValueError(f"cached tokens are part of the input: {self.cached_tokens} of {self.input_tokens}")


@dataclass(frozen=True, init=False)
class Answer:
    """A model's answer, rendered for `/chat/completions` or `/responses`, streamed or not, as the request asks.

    Not streamed, the steps are played just so, and the document is sent when they are done.

    Args:
        steps: What is generated, in order.
        usage: What is reported; `None` reports nothing, ever.
        finish: The finish reason in the words of chat completions; by default `'tool_calls'` if there are any,
            else `'stop'`.
        before_headers: What comes before the response's headers: a `Gap` or `Gate` makes them slow; after a
            `Silence`, `Cut('reset')` or `Cut('eof')` there are none, and no steps.

    Raises:
        TypeError, ValueError: The answer makes no sense; the message says what to do instead.
    """

    steps: tuple[Step, ...]
    usage: Usage | None
    finish: str
    before_headers: Pause | Cut | None

    def __init__(
        self,
        *steps: Step,
        usage: Usage | None = Usage(),
        finish: Literal["stop", "length", "tool_calls", "content_filter"] | None = None,
        before_headers: Pause | Cut | None = None,
    ) -> None:
        for step in steps:
            _check_step(step)
        if usage is not None and not isinstance(usage, Usage):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"Answer(usage) is a Usage or None, not {usage!r}")
        if finish is not None and finish not in _FINISHES:
            raise ValueError(f"Answer(finish) is one of {_FINISHES}, not {finish!r}")
        if before_headers is not None and not isinstance(before_headers, Gap | Gate | Silence | Cut):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"before_headers is a Gap, Gate, Silence or Cut, not {before_headers!r}")
        if isinstance(before_headers, Cut) and before_headers.how not in ("reset", "eof"):
            raise ValueError(f"before the headers there is no body to cut: 'reset' or 'eof', not {before_headers!r}")
        if isinstance(before_headers, _LAST) and steps:
            raise ValueError(f"{steps[0]!r} can never be sent: {before_headers!r} is the last thing that happens")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "usage", usage)
        object.__setattr__(self, "before_headers", before_headers)
        chunks = _check_order(self)
        _check_usage(usage, len(chunks))
        called = any(isinstance(chunk.step, ToolCall) for chunk in chunks)
        object.__setattr__(self, "finish", finish or ("tool_calls" if called else "stop"))


@dataclass(frozen=True, init=False)
class Replay:
    """Recorded SSE payloads, sent as they are, on any path: nothing is added at the end, not even `[DONE]`.

    Args:
        payloads: Strings or JSON objects, each one event and one chunk. An object's own `type` is the event's name,
            as Anthropic's and OpenAI's Responses APIs have it; an `Event` gives another. `Gap`, `Gate`, `Silence`
            and `Cut` may stand between them.
        gap: Seconds before each event.
        before_headers: A `Gap` or `Gate` makes the response's headers slow.

    Raises:
        TypeError, ValueError: The replay makes no sense; the message says what to do instead.
    """

    steps: tuple[Event | Pause | Cut, ...]
    gap: float
    before_headers: Gap | Gate | None

    def __init__(
        self,
        payloads: Iterable[str | Mapping[str, Any] | Event | Pause | Cut],
        *,
        gap: float = 0.0,
        before_headers: Gap | Gate | None = None,
    ) -> None:
        if isinstance(payloads, str | bytes | Mapping):
            raise TypeError(f"Replay takes a list of payloads, not one: Replay([{payloads!r}])")
        check_seconds(gap, "Replay(gap)")
        _check_slow_headers(before_headers)
        steps = tuple(_recorded(payload) for payload in payloads)
        if not steps:
            raise ValueError("Replay([]) sends nothing: give it the payloads of the stream")
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "gap", gap)
        object.__setattr__(self, "before_headers", before_headers)
        _check_order(self)


@dataclass(frozen=True)
class HttpError:
    """An error before any stream: an HTTP status with OpenAI's error body.

    The openai clients ask again after 408, 409, 429 and 5xx, and each time take a turn: give the client
    `max_retries=0` unless that is what is tested.

    Args:
        status: 400 to 599.
        message: The error's message.
        code: The error's code.
        headers: Further response headers, such as `{'retry-after': '1'}`.
        before_headers: A `Gap` or `Gate` makes the response slow.
    """

    status: int
    message: str = "The scripted server refuses this request."
    _: KW_ONLY
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    before_headers: Gap | Gate | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.status, int) or not 400 <= self.status <= 599:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"HttpError(status) is 400 to 599, not {self.status!r}")
        _check_slow_headers(self.before_headers)
        if {"content-length", "transfer-encoding"} & {name.lower() for name in self.headers}:
            raise ValueError("HttpError(headers): the length of the body is the server's to say")
        try:
            h11.Response(status_code=self.status, headers=list(self.headers.items()))
        except (h11.LocalProtocolError, TypeError, ValueError) as error:
            raise ValueError(f"HttpError(headers) cannot be sent: {dict(self.headers)!r}: {error}") from None


Turn: TypeAlias = Answer | Replay | HttpError


def check_turn(turn: object) -> Turn:
    """`turn` itself, or an error that says what a turn is."""
    if isinstance(turn, Answer | Replay | HttpError):
        return turn
    hint = f": say Answer({turn!r})" if isinstance(turn, _STEPS) else ""
    hint = f": say Answer(Text({turn!r}))" if isinstance(turn, str) else hint
    raise TypeError(f"ScriptedServer takes turns, each an Answer, Replay or HttpError, not {turn!r}{hint}")


# --- reading a turn -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """One thing that the model generated: a piece of `step`, or, where `piece` is `None`, the name of a tool."""

    step: Text | Reasoning | ToolCall
    piece: str | None


Write: TypeAlias = tuple[Chunk | Event, ...]
"""The bytes of one write."""

Part: TypeAlias = Write | Pause | Cut | ErrorEvent


def parts(turn: Answer | Replay) -> Iterator[Part]:
    """The steps of a turn, in order."""
    for step in turn.steps:
        if isinstance(step, Burst):
            inner = [piece for each in step.steps for piece in _pieces(each)]
            yield tuple(piece for piece in inner if isinstance(piece, Chunk | Event))
            continue
        gap: float = turn.gap if isinstance(turn, Replay) else getattr(step, "gap", 0.0)
        for piece in _pieces(step):
            if not isinstance(piece, Chunk | Event):
                yield piece
                continue
            if gap:
                yield Gap(gap)
            yield (piece,)


def _pieces(
    step: Text | Reasoning | ToolCall | Event | Pause | Cut | ErrorEvent,
) -> Iterator[Chunk | Event | Pause | Cut | ErrorEvent]:
    """A step's chunks and what stands between them."""
    if not isinstance(step, Text | Reasoning | ToolCall):
        yield step
        return
    if isinstance(step, ToolCall):
        yield Chunk(step, None)
    for piece in step.pieces:
        yield Chunk(step, piece) if isinstance(piece, str) else piece


def _recorded(payload: object) -> Event | Pause | Cut:
    if isinstance(payload, Event | Gap | Gate | Silence | Cut):
        return payload
    if not isinstance(payload, str | Mapping):
        raise TypeError(f"Replay takes strings, JSON objects, Event, Gap, Gate, Silence and Cut, not {payload!r}")
    return Event(payload, _type_of(payload))


def _type_of(payload: Any) -> str | None:
    """A payload's own type: providers whose payloads have one name their events after it."""
    try:
        kind = (json.loads(payload) if isinstance(payload, str) else payload)["type"]
    except (ValueError, KeyError, TypeError):
        return None  # `[DONE]`, malformed on purpose, or an API without names
    return kind if isinstance(kind, str) else None


# --- checks -------------------------------------------------------------------------------------------------------


def _check_step(step: object) -> None:
    if not isinstance(step, _STEPS):
        hint = f": say Text({step!r})" if isinstance(step, str) else ""
        raise TypeError(f"Answer takes steps such as Text('Hello'), Gap(0.1) or Silence(), not {step!r}{hint}")


def _check_slow_headers(step: object) -> None:
    if step is not None and not isinstance(step, Gap | Gate):
        hint = "; for a response that never comes, say Answer(before_headers=Silence())"
        raise TypeError(f"before_headers is a Gap or a Gate here, not {step!r}{hint}")


def _check_order(turn: Answer | Replay) -> list[Chunk]:
    """Refuse what stands after the last thing that can happen; returns the chunks."""
    last: Part | None = None
    chunks: list[Chunk] = []
    for part in parts(turn):
        if last is not None:
            raise ValueError(f"{part!r} can never be sent: {last!r} is the last thing that happens")
        if isinstance(part, _LAST):
            last = part
        elif isinstance(part, tuple):
            chunks += [each for each in part if isinstance(each, Chunk)]
    return chunks


def _check_usage(usage: Usage | None, chunks: int) -> None:
    if usage is None:
        return
    output = chunks if usage.output_tokens is None else usage.output_tokens
    if usage.reasoning_tokens > output:
        raise ValueError(f"reasoning tokens are part of the output: {usage.reasoning_tokens} of {output}")
    if usage.when == "every" and output < chunks:
        raise ValueError(
            f"usage on every chunk counts one token a chunk, {chunks} in all, and cannot end at {output}: "
            "leave output_tokens out, or report at the end"
        )
