"""The message that a cut answer leaves in the conversation, in a form that strands and every provider accept.

The text that arrived stays. Parts that no provider takes back are left out of the content and kept in the record beside
it: a tool call that gets no answer, whether cut or whole (strands runs the calls of a last message when it is called
without a prompt), and reasoning that led to nothing, whose signature never came. The record is in
``message['metadata']['custom']['cancelstream']``, which strands stores with the message and never sends.

The blocks are put together by strands' own `process_stream`, so citations and redactions come out as they always do.

Known limit: where nothing of a content is left, a fixed sentence stands in, for strands keeps no empty message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, cast

from strands.event_loop.streaming import process_stream
from strands.types.content import ContentBlock, Message
from strands.types.streaming import StreamEvent
from strands.types.tools import ToolResult

from .._history import INTERRUPTED_NOTE, INTERRUPTED_TOOL_RESULT
from .._record import read_record, with_record

__all__ = ("Partial", "flag", "interrupted_result", "is_flagged", "partial_message", "unanswered", "whole_message")

Partial = tuple[Message, list[dict[str, Any]]]
"""A message, and the blocks that were left out of it."""


async def partial_message(chunks: Iterable[StreamEvent], unsaid: Sequence[Mapping[str, Any]] = ()) -> Partial:
    """The message that these chunks of a cut answer make; awaits nothing but strands' own generator.

    Args:
        chunks: What arrived, in order.
        unsaid: Tool uses that the model class had begun to read and had not handed out.
    """
    kept, calls = _closed(chunks)
    content = await _content_of(kept)
    calls[:0] = [cast("dict[str, Any]", block) for block in content if "toolUse" in block]
    said = [block for block in content if "toolUse" not in block and not _is_blank(block)]
    thoughts: list[dict[str, Any]] = []
    while said and "reasoningContent" in said[-1]:
        thought = cast("dict[str, Any]", said.pop())
        if "redactedContent" not in thought["reasoningContent"]:  # encrypted, and no JSON
            thoughts.insert(0, thought)
    calls.extend({"toolUse": dict(use)} for use in unsaid)
    message: Message = {"role": "assistant", "content": said or [{"text": INTERRUPTED_NOTE}]}
    return message, [*thoughts, *calls]


async def whole_message(chunks: Sequence[StreamEvent]) -> Message:
    """The message that the chunks of a whole answer make, as strands makes it."""
    return {"role": "assistant", "content": await _content_of(chunks)}


async def _content_of(chunks: Sequence[StreamEvent]) -> list[ContentBlock]:
    async def replay() -> AsyncIterator[StreamEvent]:
        for chunk in chunks:
            yield chunk

    last: Any = None
    async for event in process_stream(replay()):
        last = event
    return list(cast("Message", last["stop"][1])["content"])


def _closed(chunks: Iterable[StreamEvent]) -> tuple[list[StreamEvent], list[dict[str, Any]]]:
    """The chunks with their last block closed, and the tool use that was cut, which is taken out of them."""
    kept: list[StreamEvent] = []
    use: dict[str, Any] | None = None
    of_use: list[StreamEvent] = []
    is_open = False
    for chunk in chunks:
        start = cast("Mapping[str, Any]", (chunk.get("contentBlockStart") or {}).get("start") or {})
        delta = cast("Mapping[str, Any]", (chunk.get("contentBlockDelta") or {}).get("delta") or {})
        if (told := start.get("toolUse") or delta.get("toolUse")) is not None:
            use = use or {"toolUseId": "", "name": "", "input": ""}
            use.update({name: told[name] for name in ("toolUseId", "name") if told.get(name)})
            use["input"] += told.get("input") or ""
            of_use.append(chunk)
        elif "contentBlockStop" in chunk:
            kept += [*of_use, chunk]
            use, of_use, is_open = None, [], False
        else:
            kept.append(chunk)
            is_open = is_open or bool(delta)
    if is_open:
        kept.append({"contentBlockStop": {}})
    return kept, [] if use is None else [{"toolUse": use}]


def _is_blank(block: ContentBlock) -> bool:
    return "text" in block and not block["text"].strip()


def flag(message: Message, *, reason: str, usage: Mapping[str, Any] | None, dropped: Sequence[Any] | None) -> None:
    """Put our record on the message.

    Args:
        message: Changed in place.
        reason: Why it was cut.
        usage: The usage record of the response, if it is one.
        dropped: The blocks that were left out of its content, if it was repaired.
    """
    record: dict[str, Any] = {"reason": reason}
    if usage is not None:
        record["usage"] = dict(usage)
    if dropped is not None:
        record["salvage"] = {"dropped": list(dropped)}
    metadata = cast("dict[str, Any]", message.setdefault("metadata", {}))
    metadata["custom"] = with_record(metadata.get("custom"), **record)


def is_flagged(message: Message) -> bool:
    """Whether our record is on the message."""
    return read_record(cast("dict[str, Any]", message.get("metadata", {})).get("custom")) is not None


def interrupted_result(tool_use_id: str) -> ToolResult:
    """The result of a tool call that was stopped."""
    return {"toolUseId": tool_use_id, "status": "error", "content": [{"text": INTERRUPTED_TOOL_RESULT}]}


def unanswered(messages: Sequence[Message]) -> list[str]:
    """The ids of the tool calls that the conversation ends with, and that nothing follows."""
    if not messages:
        return []
    return [block["toolUse"]["toolUseId"] for block in messages[-1]["content"] if "toolUse" in block]
