"""The parts of a cut response that may be sent, one by one.

The rules are those of the APIs, each as strict as the strictest of them:

- A turn must not end in thinking (Anthropic), and reasoning must be followed by what it led to (OpenAI Responses). So
  thinking goes with the part after it; that also leaves out thinking whose signature had not fully arrived, for the
  signature is the last thing to come.
- A text must not be blank (Anthropic).
- A server-side call needs its result, and a result its call (Anthropic).
- OpenAI's Responses API looks an answer and its items up by id, and it never stored an answer that was cut. With
  their ids, text and calls are not found, and reasoning is little more than such an id. Text and calls are sent
  without ids, reasoning is left out. The result of a server-side tool is only kept if it is known to be in the message
  itself, as with Anthropic and Google.
- A compaction replaces all that was said before it, so one that may be cut must not be sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias

from pydantic_ai.messages import (
    CompactionPart,
    ModelResponse,
    ModelResponsePart,
    NativeToolCallPart,
    NativeToolReturnPart,
    SpeechPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
)

__all__ = ("INTERRUPTED_NOTE", "TextFate", "repair")

TextFate: TypeAlias = Literal["keep", "drop", "mark"]

INTERRUPTED_NOTE: Final = "[This answer was interrupted before it was complete.]"
"""The line that `salvage(text='mark')` writes under a cut text. Fixed: a cancel reason may come from a stranger."""

_INLINE: Final = ("anthropic", "google")
"""How the names of the providers begin whose server-side tools put all they found into the message."""


def repair(
    response: ModelResponse, *, text: TextFate, without: Sequence[ToolCallPart]
) -> tuple[ModelResponse, dict[str, Any]]:
    """Return a copy of a cut response that may be sent, perhaps with no parts, and a record of what was done.

    Args:
        response: The cut response.
        text: What becomes of its text.
        without: The calls of it, the very objects, that are left out.
    """
    by_id = _is_kept_by_id(response)
    parts = _sendable(response, text=text, without={id(call) for call in without}, by_id=by_id)
    done: dict[str, Any] = {}
    dropped = Counter(part.part_kind for part in response.parts)
    dropped.subtract(part.part_kind for part in parts)
    if any(dropped.values()):
        done["dropped"] = {kind: count for kind, count in dropped.items() if count}
    if text == "mark" and _add_note(parts):
        done["marked"] = True
    if response.state != "interrupted":
        done["state"] = response.state
    # A digest is of the parts as they were; nothing is there to go on from in any case.
    repaired = replace(response, parts=parts, state="interrupted", history_digest=None)
    if by_id:
        done["response_id"] = response.provider_response_id
        # The conversation holds this answer no more than the store does.
        details = {k: v for k, v in (response.provider_details or {}).items() if k != "conversation_id"}
        repaired = replace(repaired, provider_response_id=None, provider_details=details or None)
    return repaired, done


def _sendable(
    response: ModelResponse, *, text: TextFate, without: Collection[int], by_id: bool
) -> list[ModelResponsePart]:
    """Return the parts that may be sent, in order."""
    paired = _ran_on_the_server(response)
    kept: list[ModelResponsePart] = []
    goes_on = False  # whether what this part led to is kept; read backwards for that
    for part in reversed(response.parts):
        match part:
            case ThinkingPart():
                # An empty signature is one that was announced and never came.
                keep = goes_on and not by_id and part.signature != ""
            case CompactionPart():
                keep = goes_on
            case TextPart() | SpeechPart():
                goes_on = keep = text != "drop" and _says_something(part)
            case ToolCallPart():
                goes_on = keep = id(part) not in without
            case NativeToolCallPart() | NativeToolReturnPart():
                goes_on = keep = part.tool_call_id in paired
            case _:
                goes_on = keep = True
        if keep:
            kept.append(_without_id(part) if by_id else part)
    kept.reverse()
    return kept


def _ran_on_the_server(response: ModelResponse) -> set[str]:
    """Return the ids of the server-side calls that have a result, where both carry what they hold themselves."""
    inline = [
        part
        for part in response.parts
        if isinstance(part, NativeToolCallPart | NativeToolReturnPart)
        and (part.provider_name or response.provider_name or "").startswith(_INLINE)
    ]
    called = {part.tool_call_id for part in inline if isinstance(part, NativeToolCallPart)}
    return called & {part.tool_call_id for part in inline if isinstance(part, NativeToolReturnPart)}


def _is_kept_by_id(response: ModelResponse) -> bool:
    """Whether the API that sent the response looks answers up by id, as OpenAI's Responses API does."""
    return str(response.provider_response_id).startswith("resp") or any(
        part.id for part in response.parts if isinstance(part, TextPart | ToolCallPart)
    )


def _without_id(part: ModelResponsePart) -> ModelResponsePart:
    return replace(part, id=None) if isinstance(part, TextPart | ToolCallPart) and part.id else part


def _says_something(part: TextPart | SpeechPart) -> bool:
    return bool(part.content.strip()) or (isinstance(part, SpeechPart) and part.audio is not None)


def _add_note(parts: list[ModelResponsePart]) -> bool:
    """Put the note under the last text, and say whether there was any."""
    for index in reversed(range(len(parts))):
        part = parts[index]
        if isinstance(part, TextPart):
            parts[index] = replace(part, content=f"{part.content}\n\n{INTERRUPTED_NOTE}")
            return True
        if isinstance(part, SpeechPart):
            parts.insert(index + 1, TextPart(INTERRUPTED_NOTE))
            return True
    return False
