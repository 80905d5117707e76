"""Requests in Anthropic's and Google's own formats as a `Prompt`, for recordings that no library's messages made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cancelstream._counting import Prompt, Tool, Turn
from cancelstream._counting._prompt import Schema, leaf

Body = dict[str, Any]


def from_anthropic(body: Body) -> Prompt:
    unseen = [name for name in ("mcp_servers", "container", "context_management") if body.get(name)]
    turns = [Turn("system", block.get("text") or "") for block in blocks(body.get("system"))]
    for message in body.get("messages") or []:
        turns.extend(anthropic_turns(message, unseen))
    tools = body.get("tools") or []
    functions = [tool for tool in tools if tool.get("type", "custom") in ("custom", None)]
    unseen.extend(tool["type"] for tool in tools if tool not in functions)
    wanted = body.get("output_format") or (body.get("output_config") or {}).get("format")
    thinking = (body.get("thinking") or {}).get("type")
    choice = body.get("tool_choice") or {}
    return Prompt(
        tuple(turns),
        tuple(Tool(tool["name"], tool.get("description") or "", tool.get("input_schema") or {}) for tool in functions),
        Schema("", "", wanted["schema"]) if wanted and wanted.get("schema") else None,
        choice.get("name"),
        body.get("max_tokens"),
        None if thinking is None else thinking != "disabled",
        (),
        tuple(unseen),
    )


def anthropic_turns(message: Body, unseen: list[str]) -> Iterator[Turn]:
    kind = "assistant" if message["role"] == "assistant" else "user"
    for block in blocks(message.get("content")):
        match block.get("type"):
            case "text":
                yield Turn(kind, block["text"])
            case "tool_use":
                yield Turn("call", leaf(block.get("input")), block["name"])
            case "tool_result":
                content = blocks(block.get("content"))
                unseen.extend(part["type"] for part in content if part.get("type") != "text")
                yield Turn("return", "".join(part.get("text") or "" for part in content))
            case other:
                unseen.append(str(other))


def blocks(content: Any) -> list[Body]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return list(content or [])


def from_google(body: Body) -> Prompt:
    unseen = [name for name in ("cachedContent",) if body.get(name)]
    instruction = body.get("systemInstruction") or body.get("system_instruction") or {}
    turns = [Turn("system", part.get("text") or "") for part in listed(instruction.get("parts"))]
    for content in listed(body.get("contents")):
        kind = "assistant" if content.get("role") == "model" else "user"
        turns.extend(turn for part in listed(content.get("parts")) for turn in google_turns(kind, part, unseen))
    tools: list[Tool] = []
    for tool in listed(body.get("tools")):
        for name, value in tool.items():
            if name not in ("functionDeclarations", "function_declarations"):
                unseen.append(name)
                continue
            for one in value:
                schema = one.get("parametersJsonSchema") or one.get("parameters_json_schema") or one.get("parameters")
                tools.append(Tool(one["name"], one.get("description") or "", schema or {}))
    config = body.get("generationConfig") or {}
    schema = config.get("responseJsonSchema") or config.get("responseSchema") or config.get("response_schema")
    budget = (config.get("thinkingConfig") or {}).get("thinkingBudget")
    return Prompt(
        tuple(turns),
        tuple(tools),
        Schema("", "", schema) if schema else None,
        None,
        config.get("maxOutputTokens"),
        None if budget is None else budget != 0,
        (),
        tuple(unseen),
    )


def google_turns(kind: Any, part: Body, unseen: list[str]) -> Iterator[Turn]:
    if isinstance(text := part.get("text"), str):
        yield Turn(kind, text)
    elif call := part.get("functionCall"):
        yield Turn("call", leaf(call.get("args")), call.get("name") or "")
    elif result := part.get("functionResponse"):
        yield Turn("return", leaf(result.get("response")), result.get("name") or "")
    else:
        unseen.extend(part)


def listed(value: Any) -> list[Body]:
    return [value] if isinstance(value, dict) else list(value or [])
