"""An `Answer` being told in the words of one of OpenAI's APIs, streamed or whole.

A rendering is fed one chunk at a time and says which events that makes; it does no I/O and does not know how
the events are sent. It keeps what was generated, for the documents in which the APIs repeat it: the Responses
API's `...done` events and `response.completed`, and the body of a request that did not ask for a stream.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from ._script import Answer, Chunk
from ._steps import ErrorEvent, Event, Reasoning, ToolCall

__all__ = ("CREATED", "Item", "Json", "Rendering", "error_body", "sse")

CREATED: Final = 1_760_000_000
"""When every answer was created: a fixed moment, so that the same script renders the same bytes."""

Json: TypeAlias = dict[str, Any]

_LINE_END: Final = re.compile("\r\n|\r|\n")  # what ends a line in SSE: fewer than `str.splitlines` knows


def sse(event: Event) -> bytes:
    """One event as it stands on the wire."""
    name = "" if event.name is None else f"event: {event.name}\n"
    lines = "".join(f"data: {line}\n" for line in _LINE_END.split(event.payload))
    return f"{name}{lines}\n".encode()


def error_body(message: str, code: str | None = None) -> bytes:
    """OpenAI's body of an HTTP error."""
    error = {"message": message, "type": code or "invalid_request_error", "param": None, "code": code}
    return json.dumps({"error": error}).encode()


@dataclass
class Item:
    """A run of chunks of one kind."""

    kind: Literal["text", "reasoning", "call"]
    id: str
    content: str = ""
    name: str = ""
    call_id: str = ""


@dataclass
class Rendering(ABC):
    """One answer being told in one API."""

    answer: Answer
    model: str
    number: int
    generated: int = field(default=0, init=False)
    items: list[Item] = field(default_factory=list[Item], init=False)

    @abstractmethod
    def opening(self) -> list[Event]:
        """The bytes that are sent together with the headers."""

    def chunk(self, chunk: Chunk) -> list[Event]:
        """The bytes of one generated chunk."""
        events: list[Event] = []
        item = self._item_of(chunk, events)
        self.generated += 1
        item.content += chunk.piece or ""
        return [*events, *self._delta(item, chunk)]

    @abstractmethod
    def ending(self) -> list[Event]:
        """The bytes that end a whole answer."""

    @abstractmethod
    def failure(self, error: ErrorEvent) -> list[Event]:
        """How this API reports an error in a stream."""

    @abstractmethod
    def document(self) -> Json:
        """The whole answer, for a request that did not ask for a stream."""

    @abstractmethod
    def _opened(self, item: Item) -> list[Event]: ...

    @abstractmethod
    def _closed(self, item: Item) -> list[Event]: ...

    @abstractmethod
    def _delta(self, item: Item, chunk: Chunk) -> list[Event]: ...

    def _item_of(self, chunk: Chunk, events: list[Event]) -> Item:
        """The item that a chunk belongs to; a new one where the kind changes or a tool is named."""
        step = chunk.step
        kind: Literal["text", "reasoning", "call"] = "text"
        if isinstance(step, ToolCall):
            kind = "call"
        elif isinstance(step, Reasoning):
            kind = "reasoning"
        last = self.items[-1] if self.items else None
        if last is not None and last.kind == kind and not (kind == "call" and chunk.piece is None):
            return last
        if last is not None:
            events += self._closed(last)
        item = Item(kind, f"{kind}_{self.number}_{len(self.items)}")
        if isinstance(step, ToolCall):
            item.name = step.name
            item.call_id = step.id or f"call_{self.number}_{len(self.calls())}"
        self.items.append(item)
        events += self._opened(item)
        return item

    def calls(self) -> list[Item]:
        """The tool calls so far."""
        return [item for item in self.items if item.kind == "call"]

    def joined(self, kind: Literal["text", "reasoning"]) -> str | None:
        """All that was generated of one kind, `None` if nothing was."""
        return "".join(item.content for item in self.items if item.kind == kind) or None

    def usage(self, input_name: str, output_name: str, *, so_far: bool = False) -> Json | None:
        """The reported usage, under the names of one API: of the whole answer, or of the part generated `so_far`."""
        usage = self.answer.usage
        if usage is None:
            return None
        output = self.generated if so_far or usage.output_tokens is None else usage.output_tokens
        return {
            f"{input_name}_tokens": usage.input_tokens,
            f"{output_name}_tokens": output,
            "total_tokens": usage.input_tokens + output,
            f"{input_name}_tokens_details": {"cached_tokens": usage.cached_tokens},
            f"{output_name}_tokens_details": {"reasoning_tokens": min(usage.reasoning_tokens, output)},
        }
