"""A request, told apart from the wire format it was written in.

Whatever a request was made of (pydantic-ai's messages, a chat-completions body, a Responses body), counting needs the
same few things of it: what was said by whom, which functions it offers, what it asks of the answer, and what is in it
that cannot be counted from here. `Prompt` holds those; the builders for raw OpenAI bodies are here, the one for
pydantic-ai is in `_prompt_messages.py`. Builders never fail on a strange body: what they do not know is `unseen`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, cast

from pydantic import BaseModel

from ._schema import Tool, compact

__all__ = ("Api", "Kind", "Prompt", "Schema", "Turn", "at_most", "from_chat", "from_responses", "leaf")

Api = Literal["openai-chat", "openai-responses"]

Kind = Literal["system", "user", "assistant", "call", "return"]
"""Who said it: a `call` is the model's call of a function, a `return` what came of it."""

_MOST: Final = 2_000
"""Messages that take about 10 ms to read and to count."""

_Message = TypeVar("_Message")

_ROLES: Final[dict[object, Kind]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "return",
    "function": "return",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing that was said.

    Attributes:
        kind: By whom.
        text: The text, the arguments of a call, or what a function returned.
        name: The function's name, or the name a user goes by.
    """

    kind: Kind
    text: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Schema:
    """The JSON schema that an answer has to follow."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    """The parts of a request that determine its size and that of the answer.

    Attributes:
        turns: The turns, in order.
        tools: The functions it offers.
        schema: The schema that the answer has to follow.
        forced: The one function that the model has to call, by name.
        required: Whether it has to call one, whichever.
        limit: The most output tokens it allows.
        thinking: Whether it asks for reasoning (`True`), switches it off (`False`), or leaves it open.
        sealed: The length of each piece of encrypted reasoning that it sends back.
        unseen: What else is in it and cannot be counted from here, by name.
        native: Whether tools of the provider's own may take part in the answer.
    """

    turns: tuple[Turn, ...]
    tools: tuple[Tool, ...] = ()
    schema: Schema | None = None
    forced: str | None = None
    limit: int | None = None
    thinking: bool | None = None
    sealed: tuple[int, ...] = ()
    unseen: tuple[str, ...] = ()
    native: bool = False
    required: bool = False

    def only_call(self, api: Api | None) -> str | None:
        """The one function that the model can but call: in Responses, that is also the only one of a request.

        The chat API treats a request with one function that has to be called like any other.
        """
        if self.forced is None and self.required and api == "openai-responses" and len(self.tools) == 1:
            return self.tools[0].name
        return self.forced


def from_chat(body: Mapping[str, Any]) -> Prompt:
    """The body of a chat-completions request."""
    unseen: list[str] = []
    turns: list[Turn] = []
    names: dict[object, str] = {}
    for message in at_most(_mappings(body.get("messages")), unseen):
        turns.extend(_chat_turns(message, names, unseen))
    functions, natives = _told_apart(body.get("tools"), unseen)
    functions = [_mapping(tool.get("function")) for tool in functions]
    functions.extend(_mappings(body.get("functions")))
    natives.extend(name for name in ("web_search_options", "plugins") if body.get(name) is not None)
    choice = _mapping(body.get("tool_choice") or body.get("function_call"))
    wanted = _mapping(body.get("response_format"))
    unseen.extend(name for name in ("audio", "prediction") if body.get(name))
    answers = body.get("n")
    limit = _limit(body, "max_completion_tokens", "max_tokens")
    return Prompt(
        tuple(turns),
        tuple(_tool(function) for function in functions),
        _schema(_mapping(wanted.get("json_schema"))) if wanted.get("type") == "json_schema" else None,
        _text(_mapping(choice.get("function") or choice).get("name")) or None,
        limit * answers if limit is not None and type(answers) is int and answers > 1 else limit,
        _thinking(body.get("reasoning_effort")),
        (),
        (*unseen, *natives),
        bool(natives),
        body.get("tool_choice") == "required",
    )


def from_responses(body: Mapping[str, Any]) -> Prompt:
    """The body of a Responses request."""
    unseen = [name for name in ("previous_response_id", "conversation", "prompt") if body.get(name)]
    reasoning = _mapping(body.get("reasoning"))
    if reasoning.get("mode") == "pro":
        unseen.append("reasoning.mode")  # several answers are made of which one is seen, each with its own input
    turns: list[Turn] = []
    if instructions := _text(body.get("instructions")):
        turns.append(Turn("system", instructions))
    sealed: list[int] = []
    given = body.get("input")
    if isinstance(given, str):
        turns.append(Turn("user", given))
    else:
        names: dict[object, str] = {}
        for item in at_most(_mappings(given), unseen):
            if item.get("type") == "reasoning":
                sealed.append(len(_text(item.get("encrypted_content"))))
                continue
            turns.extend(_responses_turns(item, names, unseen))
            if item.get("role") == "user":
                sealed.clear()  # the reasoning behind an answer is dropped once the user has gone on
    wanted = _mapping(_mapping(body.get("text")).get("format"))
    functions, natives = _told_apart(body.get("tools"), unseen)
    choice = body.get("tool_choice")
    return Prompt(
        tuple(turns),
        tuple(_tool(tool) for tool in functions),
        _schema(wanted) if wanted.get("type") == "json_schema" else None,
        _text(_mapping(choice).get("name")) or None,
        _limit(body, "max_output_tokens"),
        _thinking(reasoning.get("effort")),
        tuple(sealed),
        (*unseen, *natives),
        bool(natives),
        choice == "required",
    )


def at_most(messages: Sequence[_Message], unseen: list[str]) -> Sequence[_Message]:
    """The messages, or as many of them as an event loop has the time to read."""
    if len(messages) > _MOST:
        unseen.append("messages")
        return messages[:_MOST]
    return messages


def leaf(value: object) -> str:
    """A value inside a prompt as the text a model would read."""
    return value if isinstance(value, str) else "" if value is None else compact(value)


def _chat_turns(message: Mapping[str, Any], names: dict[object, str], unseen: list[str]) -> Iterator[Turn]:
    kind = _ROLES.get(message.get("role"), "user")
    text = _content(message.get("content"), unseen)
    calls = [_mapping(call.get("function") or call.get("custom")) for call in _mappings(message.get("tool_calls"))]
    if legacy := _mapping(message.get("function_call")):
        calls.append(legacy)
    for call, wire in zip(calls, _mappings(message.get("tool_calls")), strict=False):
        names[wire.get("id")] = _text(call.get("name"))
    if text or not calls:
        name = _text(message.get("name")) or names.get(message.get("tool_call_id"), "")
        yield Turn(kind, text, name)
    for call in calls:
        yield Turn("call", leaf(call.get("arguments") or call.get("input")), _text(call.get("name")))


def _responses_turns(item: Mapping[str, Any], names: dict[object, str], unseen: list[str]) -> Iterator[Turn]:
    kind = item.get("type") or "message"
    if kind == "message":
        yield Turn(_ROLES.get(item.get("role"), "user"), _content(item.get("content"), unseen))
    elif kind in ("function_call", "custom_tool_call"):
        name = _text(item.get("name"))
        names[item.get("call_id")] = name
        yield Turn("call", leaf(item.get("arguments") or item.get("input")), name)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        yield Turn("return", _content(item.get("output"), unseen), names.get(item.get("call_id"), ""))
    else:
        # A reference to something stored, a file, what a tool of the provider's did: it has tokens we cannot see.
        unseen.append(_text(kind) or "item")


def _content(content: object, unseen: list[str]) -> str:
    """The text of a message; whatever else is in it is noted as unseen."""
    if isinstance(content, Mapping | str) or content is None:
        return leaf(cast("object", content))
    texts: list[str] = []
    for part in _items(content):
        part = {"type": "text", "text": part} if isinstance(part, str) else _mapping(part)
        if isinstance(text := part.get("text") or part.get("refusal"), str):
            texts.append(text)
        elif part.get("type") not in ("text", "input_text", "output_text", "refusal"):
            unseen.append(_text(part.get("type")) or "part")
    return "".join(texts)


def _told_apart(tools: object, unseen: list[str]) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The caller's own functions, and the names of the provider's tools, whose prompts cannot be seen."""
    functions: list[Mapping[str, Any]] = []
    natives: list[str] = []
    for tool in _mappings(tools):
        kind = tool.get("type", "function")
        if kind == "function":
            functions.append(tool)
        elif kind == "custom":
            unseen.append(kind)  # the caller's own, but with a grammar that may be shown in any way
        else:
            natives.append(_text(kind) or "tool")
    return functions, natives


def _tool(function: Mapping[str, Any]) -> Tool:
    return Tool(_text(function.get("name")), _text(function.get("description")), _mapping(function.get("parameters")))


def _schema(wanted: Mapping[str, Any]) -> Schema:
    return Schema(_text(wanted.get("name")), _text(wanted.get("description")), _mapping(wanted.get("schema")))


def _limit(body: Mapping[str, Any], *names: str) -> int | None:
    limits = (body.get(name) for name in names)
    return next((limit for limit in limits if type(limit) is int and limit > 0), None)


def _thinking(effort: object) -> bool | None:
    return None if not isinstance(effort, str) else effort != "none"


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, also where the caller passed one of the SDK's models for it."""
    if isinstance(value, BaseModel):
        return value.model_dump(exclude_none=True)
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}


def _items(value: object) -> Iterable[object]:
    return cast("Iterable[object]", value) if isinstance(value, list | tuple) else ()


def _mappings(value: object) -> list[Mapping[str, Any]]:
    return [mapping for item in _items(value) if (mapping := _mapping(item))]
