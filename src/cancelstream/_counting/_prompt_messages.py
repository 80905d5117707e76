"""A pydantic-ai request as a `Prompt`.

Known limits: pydantic-ai translates a request for each provider in its own way, and adds a word here and there (the
fences around retries, notes on a changed set of tools); what it adds is a few tokens of the bounds, not of the value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from pydantic_ai.messages import (
    CachePoint,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition

from ._prompt import Prompt, Schema, Turn, at_most, leaf
from ._schema import Tool

__all__ = ("from_messages",)

_UNSEEN_SETTINGS: Final = (
    "anthropic_container",
    "anthropic_context_management",
    "google_cached_content",
    "openai_context_management",
    "openai_conversation_id",
    "openai_native_tools",
    "openai_prediction",
    "openai_previous_response_id",
)
"""Settings by which a request has more in it than its messages and tools."""


def from_messages(
    messages: Sequence[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
) -> Prompt:
    """The request that pydantic-ai is about to send, as it is passed to a model's `request_stream()`."""
    natives = [tool.kind for tool in parameters.native_tools]
    mapping = cast("Mapping[str, Any]", settings or {})
    unseen = [name for name in _UNSEEN_SETTINGS if mapping.get(name)]
    if mapping.get("openai_reasoning_mode") == "pro":
        unseen.append("openai_reasoning_mode")
    turns: list[Turn] = []
    sealed: list[int] = []
    for message in at_most(messages, unseen):
        if isinstance(message, ModelRequest):
            for part in message.parts:
                turns.extend(_request_turns(part, unseen))
            if any(isinstance(part, UserPromptPart) for part in message.parts):
                sealed.clear()  # the reasoning behind an answer is dropped once the user has gone on
        else:
            turns.extend(_response_turns(message, unseen))
            thoughts = (part for part in message.parts if isinstance(part, ThinkingPart))
            sealed.extend(len(thought.signature) for thought in thoughts if thought.signature)
    tools = [*parameters.function_tools, *(parameters.output_tools if _answers_by_tool(parameters) else ())]
    choice: object = mapping.get("tool_choice")
    wanted = parameters.output_object if parameters.output_mode == "native" else None
    return Prompt(
        (*_instructions(messages, parameters), *turns),
        tuple(_tool(tool) for tool in tools),
        None if wanted is None else Schema(wanted.name or "", wanted.description or "", wanted.json_schema),
        _only(choice),
        limit if type(limit := mapping.get("max_tokens")) is int and limit > 0 else None,
        _thinking(mapping, parameters),
        tuple(sealed),
        (*natives, *unseen),
        bool(natives),
        choice == "required" or not (parameters.allow_text_output or parameters.allow_image_output),
    )


def _instructions(messages: Sequence[ModelMessage], parameters: ModelRequestParameters) -> Iterator[Turn]:
    if parameters.instruction_parts:
        yield from (Turn("system", part.content) for part in parameters.instruction_parts)
    else:
        requests = (message for message in reversed(messages) if isinstance(message, ModelRequest))
        if (last := next(requests, None)) is not None and last.instructions:
            yield Turn("system", last.instructions)
    if parameters.output_mode == "prompted" and (wanted := parameters.prompted_output_instructions):
        yield Turn("system", wanted)


def _request_turns(part: ModelRequestPart, unseen: list[str]) -> Iterator[Turn]:
    if isinstance(part, SystemPromptPart):
        yield Turn("system", part.content)
    elif isinstance(part, UserPromptPart):
        yield Turn("user", _user_text(part, unseen))
    elif isinstance(part, ToolReturnPart):
        if part.files:
            unseen.append("file")
        yield Turn("return", part.model_response_str(), part.tool_name)
    elif callable(render := getattr(part, "model_response", None)):
        # A request for a retry: of one call, or of the whole answer.
        name = getattr(part, "tool_name", None)
        yield Turn("user" if name is None else "return", leaf(render()), leaf(name))


def _user_text(part: UserPromptPart, unseen: list[str]) -> str:
    if isinstance(part.content, str):
        return part.content
    texts: list[str] = []
    for item in part.content:
        if isinstance(item, str):
            texts.append(item)
        elif isinstance(item, TextContent):
            texts.append(item.content)
        elif not isinstance(item, CachePoint):
            unseen.append(item.kind)
    return "".join(texts)


def _response_turns(message: ModelResponse, unseen: list[str]) -> Iterator[Turn]:
    text = "".join(part.content for part in message.parts if isinstance(part, TextPart))
    calls = [part for part in message.parts if isinstance(part, ToolCallPart)]
    unseen.extend(
        part.tool_name for part in message.parts if isinstance(part, NativeToolCallPart | NativeToolReturnPart)
    )
    if text:
        yield Turn("assistant", text)
    for call in calls:
        yield Turn("call", call.args_as_json_str(), call.tool_name)


def _only(choice: object) -> str | None:
    """The one function that may be called, where the `tool_choice` of the settings names it."""
    names = cast("list[object]", choice) if isinstance(choice, list) else []
    return leaf(names[0]) if len(names) == 1 else None


def _answers_by_tool(parameters: ModelRequestParameters) -> bool:
    return parameters.output_mode in ("tool", "auto")


def _tool(tool: ToolDefinition) -> Tool:
    return Tool(tool.name, tool.description or "", tool.parameters_json_schema)


def _thinking(settings: Mapping[str, Any], parameters: ModelRequestParameters) -> bool | None:
    effort = settings.get("openai_reasoning_effort")
    if isinstance(effort, str):
        return effort != "none"
    thinking = settings.get("thinking", parameters.thinking)
    if thinking is not None:
        return thinking is not False
    asked = settings.get("anthropic_thinking")
    if isinstance(asked, Mapping):
        return cast("Mapping[str, Any]", asked).get("type") != "disabled"
    return None
