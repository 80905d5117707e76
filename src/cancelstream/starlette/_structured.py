"""Output that is not text: each partial output of a run, to be sent as JSON.

`run_stream` has pydantic-ai's own `stream_output`, whose partial outputs are validated. The events of a run have
none: there the arguments of the output's tool call, or the JSON text of a native output, are read as far as they have
come, and only the last output, which the run itself gives, is validated.

Known limits. A native output that is no object is sent as the model writes it, under a name of pydantic-ai's, until it
is whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic_ai import (
    AgentRunResultEvent,
    DeferredToolRequests,
    FinalResultEvent,
    NativeOutput,
    PartDeltaEvent,
    PartStartEvent,
    PromptedOutput,
    TextOutput,
)
from pydantic_ai.messages import TextPart, TextPartDelta, ToolCallPart, ToolCallPartDelta
from pydantic_core import from_json

from .._run import CancellableRun, CancellableRunEvents, RunningText, TextSoFar

__all__ = ("Output", "is_structured", "outputs_of")

GROUPED: Final = 0.1
"""Seconds over which partial outputs are grouped, as pydantic-ai's `stream_output` does: each is sent whole."""


@dataclass(frozen=True)
class Output:
    """An output so far, and at last the whole one."""

    value: Any


def is_structured(result: object) -> bool:
    """Whether this is a run whose output is not only text."""
    if not isinstance(result, CancellableRun | CancellableRunEvents):
        return False
    return not all(kind is str or isinstance(kind, TextOutput) for kind in _kinds(result._output_type))


def outputs_of(run: CancellableRun[Any] | CancellableRunEvents[Any]) -> AsyncIterator[Output | str | TextSoFar]:
    """The partial outputs of a structured run, and pieces of the text that it says besides."""
    if isinstance(run, CancellableRun):
        return _validated(run)
    is_json = all(isinstance(kind, NativeOutput | PromptedOutput) for kind in _kinds(run._output_type))
    return _of_events(run, text_is_json=is_json)


def _kinds(output_type: object) -> list[Any]:
    several = isinstance(output_type, Sequence) and not isinstance(output_type, str)
    kinds: Sequence[Any] = cast("Sequence[Any]", output_type) if several else [output_type]
    # A run that may end by asking for approvals streams its text as any other one.
    return [kind for kind in kinds if kind is not DeferredToolRequests]


async def _validated(run: CancellableRun[Any]) -> AsyncIterator[Output]:
    outputs: AsyncIterator[Any] = run.stream_output(debounce_by=GROUPED)
    async for output in outputs:
        yield Output(output)


async def _of_events(
    events: CancellableRunEvents[Any], *, text_is_json: bool
) -> AsyncIterator[Output | str | TextSoFar]:
    partial, running = _Partial(events, text_is_json=text_is_json), RunningText()
    async with aclosing(_with_ticks(events, partial.due)) as ticking:
        async for event in ticking:
            if event is None:
                for output in partial.take():
                    yield output
            elif isinstance(event, AgentRunResultEvent):
                whole = cast("Any", event).result.output
                if text_is_json or not isinstance(whole, str):
                    yield Output(whole)
                return
            else:
                if not text_is_json and (text := running.feed(event)) != "":
                    yield TextSoFar(running.text) if text is None else text
                partial.feed(event)
    for output in partial.take():  # it was cut
        yield output


async def _with_ticks(events: AsyncIterator[Any], due: Callable[[], float | None]) -> AsyncGenerator[Any]:
    """The events, and `None` whenever the seconds that `due` tells have passed without one."""
    pull: asyncio.Future[Any] | None = None
    try:
        while True:
            # In a task of its own, so that what has come is sent in time although the model says nothing more.
            pull = pull or asyncio.ensure_future(anext(events, _OVER))
            wait = due()
            if wait is None or wait > 0:
                await asyncio.wait([pull], timeout=wait)
            if not pull.done():
                yield None
                continue
            event, pull = pull.result(), None
            if event is _OVER:
                return
            yield event
    finally:
        if pull is not None:
            pull.cancel()
            await asyncio.wait([pull])


_OVER: Final = object()


class _Partial:
    """The output as far as the events of a run have brought it."""

    def __init__(self, run: CancellableRunEvents[Any], *, text_is_json: bool) -> None:
        self._run = run
        self._now = asyncio.get_running_loop().time
        self._has_grown = False
        self._taken_at = 0.0
        self._text_is_json = text_is_json
        self._json: dict[int, str] = {}
        self._calls: dict[str, int] = {}
        self._at: int | None = None
        self._key: str | None = None
        self._last: Any = None

    def feed(self, event: object) -> None:
        """Take the next event."""
        match event:
            case PartStartEvent(index=index, part=part):
                if index == 0:  # another turn
                    self._json, self._calls, self._at = {}, {}, None
                if isinstance(part, ToolCallPart):
                    self._calls[part.tool_call_id] = index
                    self._json[index] = part.args_as_json_str() if part.args else ""
                elif isinstance(part, TextPart) and self._text_is_json:
                    self._json[index] = part.content
                    self._at = index
            case FinalResultEvent(tool_name=str(name), tool_call_id=str(call)):
                self._at, self._key = self._calls.get(call), self._run._output_key(name)
            case PartDeltaEvent(index=index, delta=ToolCallPartDelta(args_delta=str(more))):
                self._json[index] = self._json.get(index, "") + more
            case PartDeltaEvent(index=index, delta=TextPartDelta(content_delta=more)) if self._text_is_json:
                self._json[index] = self._json.get(index, "") + more
            case _:
                return
        self._has_grown = self._at is not None

    def due(self) -> float | None:
        """In how many seconds `take()` is to be called; `None` for not before it has grown."""
        return self._taken_at + GROUPED - self._now() if self._has_grown else None

    def take(self) -> list[Output]:
        """The output so far, if it is another one than last time."""
        self._has_grown, self._taken_at = False, self._now()
        try:
            value: Any = None if self._at is None else from_json(self._json[self._at], allow_partial="trailing-strings")
        except ValueError:
            return []  # nothing of it yet, or no JSON at all
        if self._key is not None:
            value = cast("dict[str, Any]", value).get(self._key) if isinstance(value, dict) else None
        if value is None or value == self._last:
            return []
        self._last = value
        return [Output(value)]
