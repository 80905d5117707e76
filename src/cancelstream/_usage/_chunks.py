"""Raw OpenAI chunks and Responses events: what of an answer they carry, and what they report.

They may be the SDK's objects or plain `dict`s, of OpenAI or of any host that speaks its formats, so nothing is taken
for granted: a field of another type than expected is a field that is not there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

from .._counting import Delivered
from ._reported import NONE, field_of, from_wire

__all__ = ("Reader",)

_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_FUNCTIONS: Final = frozenset({"function_call", "custom_tool_call"})


class Reader:
    """Reads the chunks of one answer.

    Attributes:
        seen: What arrived.
        reported: The last usage that the provider sent.
        reported_at: How many deltas had arrived by then.
        is_final: Whether it came with the end of the answer or after it.
        finish_reason: Why the provider ended the answer, once it said so.
        model: The model that answers, by its own account.
        thinking: Whether the provider says that the model reasons.
    """

    __slots__ = ("finish_reason", "is_final", "model", "reported", "reported_at", "seen", "thinking")

    def __init__(self, seen: Delivered) -> None:
        self.seen = seen
        self.reported = NONE
        self.reported_at = 0
        self.is_final = False
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.thinking: bool | None = None

    def read(self, chunk: object) -> None:
        """Read one chunk or event; may raise on a strange one, with what was read before it kept."""
        name = field_of(chunk, "type")
        if isinstance(name, str):
            self._read_event(name, chunk)
        else:
            self._read_chunk(chunk)

    def _report(self, usage: object) -> None:
        if usage is not None:
            self.reported = from_wire(usage)
            self.reported_at = self.seen.deltas
            self.is_final = self.finish_reason is not None

    # --- chat completions -------------------------------------------------------------------------------------

    def _read_chunk(self, chunk: object) -> None:
        if self.model is None:
            self.model = _text(field_of(chunk, "model")) or None
        for choice in _items(field_of(chunk, "choices")):
            index = field_of(choice, "index")
            delta = field_of(choice, "delta")
            if delta is None:
                self._say(field_of(choice, "text"), index)  # the older completions API
            else:
                self._read_delta(index if isinstance(index, int) else 0, delta)
            self.finish_reason = _text(field_of(choice, "finish_reason")) or self.finish_reason
        # Groq keeps the usage of a stream in a corner of its own.
        self._report(field_of(chunk, "usage") or field_of(field_of(chunk, "x_groq"), "usage"))

    def _read_delta(self, index: int, delta: object) -> None:
        self._say(field_of(delta, "content"), index)
        self._say(field_of(delta, "refusal"), index)
        if piece := _text(field_of(delta, "reasoning_content")) or _text(field_of(delta, "reasoning")):
            self.seen.thinking.append(piece)
        else:
            self._read_details(field_of(delta, "reasoning_details"))
        for position, call in enumerate(_items(field_of(delta, "tool_calls"))):
            place = field_of(call, "index")
            function = field_of(call, "function") or field_of(call, "custom")
            self._call((index, place if isinstance(place, int) else position), function)
        if legacy := field_of(delta, "function_call"):
            self._call((index, "function_call"), legacy)
        for name in ("audio", "annotations", "executed_tools", "images"):
            if field_of(delta, name):
                self.seen.natives.add(name)

    def _read_details(self, details: object) -> None:
        """Reasoning as OpenRouter sends it: as text, as a summary, or encrypted."""
        for detail in _items(details):
            if piece := _text(field_of(detail, "text")) or _text(field_of(detail, "summary")):
                self.seen.thinking.append(piece)
            elif field_of(detail, "data") and not self.seen.thinking:
                self.seen.sealed = True

    def _call(self, key: tuple[object, ...], function: object) -> None:
        arguments = _text(field_of(function, "arguments")) or _text(field_of(function, "input"))
        self.seen.call(key, field_of(function, "name"), arguments)

    def _say(self, content: object, choice: object = 0) -> None:
        if isinstance(content, str):
            if content:
                # An index that is none of a further choice is the first one's.
                further = choice if isinstance(choice, int) and choice > 0 else None
                (self.seen.text if further is None else self.seen.choices.setdefault(further, [])).append(content)
            return
        # Mistral's models that reason send a list of parts instead.
        for part in _items(content):
            if piece := _text(field_of(part, "text")):
                self.seen.text.append(piece)
            for thought in _items(field_of(part, "thinking")):
                if piece := _text(field_of(thought, "text")):
                    self.seen.thinking.append(piece)

    # --- Responses --------------------------------------------------------------------------------------------

    def _read_event(self, name: str, event: object) -> None:
        place = field_of(event, "output_index")
        if name in _ENDS or name in ("response.created", "response.in_progress"):
            self._read_response(name, field_of(event, "response"))
        elif name in ("response.output_text.delta", "response.refusal.delta"):
            self._say(field_of(event, "delta"))
            self.seen.messages.add(place if isinstance(place, int) else 0)
        elif name == "response.reasoning_text.delta":
            if piece := _text(field_of(event, "delta")):
                self.seen.thinking.append(piece)
                self.seen.sealed = False
        elif name in ("response.function_call_arguments.delta", "response.custom_tool_call_input.delta"):
            self.seen.call(("item", place), None, _text(field_of(event, "delta")))
        elif name == "response.output_item.added":
            self._read_item(("item", place), field_of(event, "item"))

    def _read_item(self, key: tuple[str, object], item: object) -> None:
        kind = _text(field_of(item, "type"))
        if kind in _FUNCTIONS:
            self.seen.call(key, field_of(item, "name"), None)
        elif kind == "reasoning":
            # Until its text arrives, which only open-weight models send.
            self.seen.sealed = True
        elif kind and kind != "message":
            self.seen.natives.add(kind)

    def _read_response(self, name: str, response: object) -> None:
        self.model = self.model or _text(field_of(response, "model")) or None
        effort = field_of(field_of(response, "reasoning"), "effort")
        if isinstance(effort, str):
            self.thinking = effort != "none"
        if name in _ENDS:
            self.finish_reason = name
        self._report(field_of(response, "usage"))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _items(value: object) -> Iterable[object]:
    return cast("Iterable[object]", value) if isinstance(value, list | tuple) else ()
