"""`/chat/completions`: one list of chunks, then `[DONE]`."""

from __future__ import annotations

from ._rendering import CREATED, Item, Json, Rendering
from ._script import Chunk
from ._steps import ErrorEvent, Event

__all__ = ("ChatCompletions",)


class ChatCompletions(Rendering):
    """An answer as chat completion chunks, or as a chat completion."""

    def opening(self) -> list[Event]:
        return []  # the role comes with the first token, as at OpenAI

    def ending(self) -> list[Event]:
        events = [] if self.items else [self._role()]
        events.append(self._say({}, self.answer.finish))
        if (usage := self.usage("prompt", "completion")) is not None:
            events.append(Event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage}))
        return [*events, Event("[DONE]")]

    def failure(self, error: ErrorEvent) -> list[Event]:
        return [Event({"error": {"message": error.message, "type": error.code, "param": None, "code": error.code}})]

    def document(self) -> Json:
        message: Json = {"role": "assistant", "content": self.joined("text"), "refusal": None}
        if (reasoning := self.joined("reasoning")) is not None:
            message["reasoning_content"] = reasoning
        if calls := self.calls():
            message["tool_calls"] = [
                {"id": c.call_id, "type": "function", "function": {"name": c.name, "arguments": c.content}}
                for c in calls
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.answer.finish}
        document: Json = {**self._head("chat.completion"), "choices": [choice]}
        if (usage := self.usage("prompt", "completion")) is not None:
            document["usage"] = usage
        return document

    def _opened(self, item: Item) -> list[Event]:
        return [self._role()] if len(self.items) == 1 else []

    def _closed(self, item: Item) -> list[Event]:
        return []

    def _delta(self, item: Item, chunk: Chunk) -> list[Event]:
        if item.kind != "call":
            return [self._say({"content" if item.kind == "text" else "reasoning_content": chunk.piece})]
        call: Json = {"index": len(self.calls()) - 1}
        if chunk.piece is None:
            call |= {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": ""}}
        else:
            call |= {"function": {"arguments": chunk.piece}}
        return [self._say({"tool_calls": [call]})]

    def _role(self) -> Event:
        return self._say({"role": "assistant", "content": ""})

    def _say(self, delta: Json, finish: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        data: Json = {**self._head("chat.completion.chunk"), "choices": [choice]}
        if self.answer.usage is not None and self.answer.usage.when == "every":
            data["usage"] = self.usage("prompt", "completion", so_far=True)
        return Event(data)

    def _head(self, kind: str) -> Json:
        return {"id": f"chatcmpl-{self.number}", "object": kind, "created": CREATED, "model": self.model}
