"""`/responses`: named events, each output item opened and closed; the last one ends it, with no `[DONE]`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from ._rendering import CREATED, Item, Json, Rendering
from ._script import Chunk
from ._steps import ErrorEvent, Event

__all__ = ("Responses",)

_INCOMPLETE: Final = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""The finish reasons that make a response incomplete, in this API's words."""


@dataclass
class Responses(Rendering):
    """An answer as Responses events, or as a response."""

    _sequence: int = field(default=0, init=False)

    def opening(self) -> list[Event]:
        response = self._response("in_progress")
        return [self._say("response.created", response=response), self._say("response.in_progress", response=response)]

    def ending(self) -> list[Event]:
        events = self._closed(self.items[-1]) if self.items else []
        response = self.document()
        return [*events, self._say(f"response.{response['status']}", response=response)]

    def failure(self, error: ErrorEvent) -> list[Event]:
        return [self._say("error", code=error.code, message=error.message, param=None)]

    def document(self) -> Json:
        reason = _INCOMPLETE.get(self.answer.finish)
        return self._response("completed" if reason is None else "incomplete", reason)

    def _opened(self, item: Item) -> list[Event]:
        at = {"output_index": len(self.items) - 1}
        events = [self._say("response.output_item.added", **at, item=self._output(item, "in_progress"))]
        if item.kind == "text":
            events.append(self._part("response.content_part.added", item, content_index=0, part=_text_part("")))
        elif item.kind == "reasoning":
            part = {"type": "summary_text", "text": ""}
            events.append(self._part("response.reasoning_summary_part.added", item, summary_index=0, part=part))
        return events

    def _delta(self, item: Item, chunk: Chunk) -> list[Event]:
        if chunk.piece is None:
            return []  # naming the tool opened the item
        if item.kind == "text":
            at: Json = {"content_index": 0, "logprobs": []}
            return [self._part("response.output_text.delta", item, **at, delta=chunk.piece)]
        if item.kind == "reasoning":
            return [self._part("response.reasoning_summary_text.delta", item, summary_index=0, delta=chunk.piece)]
        return [self._part("response.function_call_arguments.delta", item, delta=chunk.piece)]

    def _closed(self, item: Item) -> list[Event]:
        events: list[Event]
        if item.kind == "text":
            at: Json = {"content_index": 0}
            events = [
                self._part("response.output_text.done", item, **at, text=item.content, logprobs=[]),
                self._part("response.content_part.done", item, **at, part=_text_part(item.content)),
            ]
        elif item.kind == "reasoning":
            part = {"type": "summary_text", "text": item.content}
            events = [
                self._part("response.reasoning_summary_text.done", item, summary_index=0, text=item.content),
                self._part("response.reasoning_summary_part.done", item, summary_index=0, part=part),
            ]
        else:
            done = "response.function_call_arguments.done"
            events = [self._part(done, item, name=item.name, arguments=item.content)]
        at = {"output_index": self.items.index(item)}
        return [*events, self._say("response.output_item.done", **at, item=self._output(item, "completed"))]

    def _part(self, kind: str, item: Item, **rest: Any) -> Event:
        return self._say(kind, item_id=item.id, output_index=self.items.index(item), **rest)

    def _say(self, kind: str, **rest: Any) -> Event:
        event = Event({"type": kind, "sequence_number": self._sequence, **rest}, kind)
        self._sequence += 1
        return event

    def _output(self, item: Item, status: str) -> Json:
        if item.kind == "text":
            content = [] if status == "in_progress" else [_text_part(item.content)]
            return {"type": "message", "id": item.id, "status": status, "role": "assistant", "content": content}
        if item.kind == "reasoning":
            summary = [] if status == "in_progress" else [{"type": "summary_text", "text": item.content}]
            return {"type": "reasoning", "id": item.id, "summary": summary}
        return {
            "type": "function_call",
            "id": item.id,
            "call_id": item.call_id,
            "name": item.name,
            "arguments": item.content,
            "status": status,
        }

    def _response(self, status: str, incomplete: str | None = None) -> Json:
        whole = status != "in_progress"
        return {
            "id": f"resp_{self.number}",
            "object": "response",
            "created_at": CREATED,
            "status": status,
            "error": None,
            "incomplete_details": None if incomplete is None else {"reason": incomplete},
            "instructions": None,
            "metadata": {},
            "model": self.model,
            "output": [self._output(item, "completed") for item in self.items] if whole else [],
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": self.usage("input", "output") if whole else None,
        }


def _text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
