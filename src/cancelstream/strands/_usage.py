"""Counting a strands model call with the same meter as everything else.

The usage that strands reports is final where it came: its `metadata` chunk. Until then the chunks are translated for
the meter as far as they have arrived, and only when `usage` is read.

Known limits. The provider's name, which prices need, is read off strands' own model classes; another class has none.
Providers disagree whether cached tokens are part of `inputTokens`; as strands itself does, the sum tells them apart.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from pydantic_ai.messages import (
    PartDeltaEvent,
    PartStartEvent,
    TextPartDelta,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
)
from pydantic_ai.usage import RequestUsage
from strands.types.content import Message
from strands.types.streaming import StreamEvent

from .._counting import Prompt, Tool, Turn
from .._usage import Meter, ResponseUsage

__all__ = ("CallMeter", "strands_usage")

_PROVIDERS: Final = {
    "strands.models.openai": "openai",
    "strands.models.openai_responses": "openai",
    "strands.models.anthropic": "anthropic",
    "strands.models.bedrock": "aws",
    "strands.models.gemini": "google",
    "strands.models.mistral": "mistral",
}
"""strands' model classes, by module, whose provider is sure, in the words of genai-prices."""


class CallMeter:
    """Counts one model call.

    Args:
        model: The strands model.
        messages: What is sent to it.
        tools: The tools it is offered.
        system: The system prompt.
        chunks: The list that its chunks are appended to.
    """

    def __init__(
        self, model: Any, messages: Sequence[Message], tools: Any, system: Any, chunks: list[StreamEvent]
    ) -> None:
        config = _config(model)
        name = config.get("model_id")
        module = type(model).__module__
        arguments = _mapping(getattr(model, "client_args", None))
        self._meter = Meter(
            model=None if name is None else str(name).rpartition("/")[2],
            provider=_PROVIDERS.get(module),
            provider_url=str(arguments["base_url"]) if arguments.get("base_url") else None,
            read=lambda: _prompt(messages, tools, system, _mapping(config.get("params"))),
            api="openai-chat" if module == "strands.models.openai" else None,
        )
        self._meter.sent()
        self._chunks = chunks
        self._seen = 0
        self._calls = 0
        self._reported: RequestUsage | None = None
        self._is_answer_reported = False
        self._finish: str | None = None
        self._settled = False

    @property
    def usage(self) -> ResponseUsage:
        """The usage so far: one object, final once settled."""
        if not self._settled:
            self._read_on()
            ended = self._finish is not None
            self._meter.observe(reported=self._reported, finish_reason=self._finish, ended=ended)
        return self._meter.usage

    def failed(self, error: BaseException, *, cut: bool) -> None:
        """Note the error that the call ended with: one that came before any chunk says what became of the request.

        Args:
            error: The error.
            cut: Whether the call was cut before.
        """
        if not self._chunks:
            self._meter.failed(error, cut=cut)

    def settle(
        self, *, ended: bool, late: Sequence[StreamEvent], unsaid: Sequence[Mapping[str, Any]], lost: bool
    ) -> None:
        """The call is over. Only the first time counts.

        Args:
            ended: Whether it came to its natural end.
            late: Chunks that were received and not handed out.
            unsaid: Tool uses that the model class had begun to read.
            lost: Whether closing may have lost something.
        """
        if self._settled:
            return
        if self._chunks or late:
            self._meter.opened()
        for chunk in self._chunks[self._seen :]:
            self._note(chunk)
        if not ended or not self._is_answer_reported:
            self._read_on()  # there is something to estimate
        events = [event for chunk in late for event in self._events(chunk)]
        for use in unsaid:
            events.append(self._begun(use))
            events.append(PartDeltaEvent(index=self._calls, delta=ToolCallPartDelta(args_delta=use["input"])))
        self._meter.late(events)
        if lost:
            self._meter.lost()
        self._meter.settle(reported=self._reported, ended=ended, finish_reason=self._finish)
        self._settled = True

    def _read_on(self) -> None:
        """Give the meter what has arrived since."""
        if self._chunks:
            self._meter.opened()
        while self._seen < len(self._chunks):
            chunk = self._chunks[self._seen]
            self._seen += 1
            self._note(chunk)
            for event in self._events(chunk):
                self._meter.feed_event(event)

    def _events(self, chunk: StreamEvent) -> Iterator[PartDeltaEvent | PartStartEvent]:
        """One of strands' chunks in pydantic-ai's words."""
        delta = _mapping(_mapping(chunk.get("contentBlockDelta")).get("delta"))
        if use := _mapping(_mapping(chunk.get("contentBlockStart")).get("start")).get("toolUse"):
            yield self._begun(use)
        if text := delta.get("text"):
            yield PartDeltaEvent(index=0, delta=TextPartDelta(content_delta=text))
        if thought := _mapping(delta.get("reasoningContent")).get("text"):
            yield PartDeltaEvent(index=0, delta=ThinkingPartDelta(content_delta=thought))
        if arguments := _mapping(delta.get("toolUse")).get("input"):
            yield PartDeltaEvent(index=self._calls, delta=ToolCallPartDelta(args_delta=arguments))

    def _note(self, chunk: StreamEvent) -> None:
        """Note what a chunk reports."""
        if "messageStop" in chunk:
            self._finish = _mapping(chunk["messageStop"]).get("stopReason")
        elif "metadata" in chunk and (usage := chunk["metadata"].get("usage")):
            self._reported = _request_usage(cast("Mapping[str, Any]", usage))
            self._is_answer_reported = type(_mapping(usage).get("outputTokens")) is int

    def _begun(self, use: Mapping[str, Any]) -> PartStartEvent:
        self._calls += 1  # text is at 0
        part = ToolCallPart(tool_name=use.get("name") or "", tool_call_id=use.get("toolUseId") or "")
        return PartStartEvent(index=self._calls, part=part)


def strands_usage(usage: ResponseUsage) -> dict[str, int]:
    """A usage as strands has it, with the value where one is honest and the lower bound elsewhere."""
    asked, answered = usage.input_tokens, usage.output_tokens
    return {"inputTokens": asked, "outputTokens": answered, "totalTokens": asked + answered}


def _request_usage(usage: Mapping[str, Any]) -> RequestUsage:
    fields: dict[str, Any] = {}
    asked, answered, total = (usage.get(name) for name in ("inputTokens", "outputTokens", "totalTokens"))
    read, written = usage.get("cacheReadInputTokens"), usage.get("cacheWriteInputTokens")
    if isinstance(asked, int):
        apart = isinstance(answered, int) and isinstance(total, int) and asked + answered != total
        fields["input_tokens"] = asked + ((read or 0) + (written or 0) if apart else 0)
    if isinstance(answered, int):
        fields["output_tokens"] = answered
    if isinstance(read, int):
        fields["cache_read_tokens"] = read
    if isinstance(written, int):
        fields["cache_write_tokens"] = written
    return RequestUsage(**fields)


def _prompt(messages: Sequence[Message], tools: Any, system: Any, params: Mapping[str, Any]) -> Prompt:
    """The prompt that strands is about to send."""
    unseen: list[str] = []
    turns = [Turn("system", str(system))] if system else []
    names: dict[str, str] = {}
    for message in messages:
        turns.extend(_turns(message, names, unseen))
    limit = params.get("max_completion_tokens", params.get("max_tokens"))
    return Prompt(
        tuple(turns),
        tuple(
            Tool(tool["name"], tool.get("description") or "", _mapping(_mapping(tool.get("inputSchema")).get("json")))
            for tool in tools or ()
        ),
        limit=limit if type(limit) is int and limit > 0 else None,
        unseen=tuple(unseen),
    )


def _turns(message: Message, names: dict[str, str], unseen: list[str]) -> Iterator[Turn]:
    for block in message["content"]:
        if "text" in block:
            yield Turn(message["role"], block["text"])
        elif "toolUse" in block:
            use = block["toolUse"]
            names[use["toolUseId"]] = use["name"]
            yield Turn("call", json.dumps(use["input"]), use["name"])
        elif "toolResult" in block:
            result = block["toolResult"]
            texts = [part["text"] if "text" in part else json.dumps(part.get("json")) for part in result["content"]]
            yield Turn("return", "".join(texts), names.get(result["toolUseId"], ""))
        elif "reasoningContent" not in block and "cachePoint" not in block:
            unseen.extend(block)


def _config(model: Any) -> Mapping[str, Any]:
    try:
        return _mapping(model.get_config())
    except Exception:  # noqa: BLE001 - a model of the user's; counting must not end its stream
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
