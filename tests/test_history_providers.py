"""What `salvage` returns is accepted by every provider, wherever a stream was cut.

Streams of four APIs are read by pydantic-ai's own models, and what they hold after every single event is taken for a
cut answer. The salvaged histories go back through pydantic-ai's own message mapping, and each request body is
checked against the pairing rules of its API. No network: the transport is a function.

Beside the streams written here, those recorded from real providers are read if `CANCELSTREAM_RECORDINGS` names
their file (JSON lines with `api` and `sse`).
"""

from __future__ import annotations

import itertools
import json
import os
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError
from pydantic_ai.exceptions import ModelAPIError, UnexpectedModelBehavior
from pydantic_ai.messages import (
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.native_tools import CodeExecutionTool, WebFetchTool, WebSearchTool
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream._history import INTERRUPTED_NOTE, check_history, salvage

OPTIONS: list[dict[str, Any]] = [
    {"text": text, "tool_calls": calls}
    for text, calls in itertools.product(("keep", "drop", "mark"), ("drop", "close"))
]
APIS = ("openai-chat", "openai-responses", "anthropic", "google")

Check = Callable[[dict[str, Any]], None]


# --- the rules of the APIs, as their references state them ------------------------------------------------------


def check_chat(body: dict[str, Any]) -> None:
    """Every tool call is answered by the tool messages right after it, every tool message answers one."""
    pending: list[str] = []
    for message in body["messages"]:
        if message["role"] == "tool":
            pending.remove(message["tool_call_id"])
            continue
        assert not pending, f"unanswered before a {message['role']} message: {pending}"
        calls = message.get("tool_calls", [])
        assert message.get("content") or calls, f"empty message: {message}"
        for call in calls:
            assert call["function"]["name"]
            assert isinstance(json.loads(call["function"]["arguments"]), dict)
        pending = [call["id"] for call in calls]
    assert not pending


def check_responses(body: dict[str, Any]) -> None:
    """Calls and outputs pair, and reasoning is followed by what it led to."""
    assert "previous_response_id" not in body
    assert "conversation" not in body
    pending: list[str] = []
    items = body["input"]
    for item, following in zip(items, [*items[1:], {}], strict=True):
        kind = item.get("type", "message")
        if kind == "function_call":
            assert isinstance(json.loads(item["arguments"]), dict)
            pending.append(item["call_id"])
        elif kind == "function_call_output":
            pending.remove(item["call_id"])
        elif kind == "message":
            assert item["content"], "empty message"
            assert not (item["role"] == "user" and pending), f"unanswered before a user message: {pending}"
        if kind == "reasoning":
            assert following, "reasoning leads to nothing"
            assert following.get("role", "assistant") == "assistant", "reasoning leads to nothing"
    assert not pending


def check_anthropic(body: dict[str, Any]) -> None:
    """Tool results come first in the message after their calls, server tools pair, and no turn ends in thinking."""
    pending: list[str] = []
    for message in body["messages"]:
        blocks = message["content"]
        assert blocks, "empty message"
        kinds = [block["type"] for block in blocks]
        assert all(block["text"].strip() for block in blocks if block["type"] == "text"), "blank text"
        if message["role"] == "user":
            results = [block["tool_use_id"] for block in blocks if block["type"] == "tool_result"]
            assert sorted(results) == sorted(pending), f"calls {pending}, results {results}"
            assert kinds[: len(results)] == ["tool_result"] * len(results), "a result after something else"
            pending = []
            continue
        assert not pending, f"unanswered before an assistant message: {pending}"
        pending = [block["id"] for block in blocks if block["type"] == "tool_use"]
        assert len(set(pending)) == len(pending)
        assert all(isinstance(block["input"], dict) for block in blocks if block["type"] == "tool_use")
        assert all(block["signature"] for block in blocks if block["type"] == "thinking")
        assert kinds[-1] not in ("thinking", "redacted_thinking"), "a turn that ends in thinking"
        asked = [block["id"] for block in blocks if block["type"] in ("server_tool_use", "mcp_tool_use")]
        got = [block["tool_use_id"] for block in blocks if block["type"].endswith("_tool_result")]
        assert sorted(asked) == sorted(got), f"server tools {asked}, results {got}"
    assert not pending
    assert body["messages"][0]["role"] == "user"


def check_google(body: dict[str, Any]) -> None:
    """A turn of function calls is followed by a turn with as many responses, of the same names."""
    pending: list[str] = []
    for content in body["contents"]:
        parts = content["parts"]
        assert parts, "empty content"
        assert all(part["text"] for part in parts if "text" in part), "empty text"
        answered = [part["functionResponse"]["name"] for part in parts if "functionResponse" in part]
        assert sorted(answered) == sorted(pending), f"calls {pending}, responses {answered}"
        pending = [part["functionCall"]["name"] for part in parts if "functionCall" in part]
        assert not (pending and content["role"] == "user")
    assert not pending
    assert body["contents"][0]["role"] == "user"


CHECKS: dict[str, Check] = dict(zip(APIS, (check_chat, check_responses, check_anthropic, check_google), strict=True))


# --- pydantic-ai's models on a transport that is a function -----------------------------------------------------

ANSWERS: dict[str, list[dict[str, Any]]] = {
    "openai-chat": [
        {
            "id": "c",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}],
        }
    ],
    "openai-responses": [
        {
            "id": "resp_0",
            "object": "response",
            "created_at": 0,
            "model": "m",
            "status": "completed",
            "output": [],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }
    ],
    "anthropic": [
        {
            "type": "message_start",
            "message": {
                "id": "m",
                "type": "message",
                "role": "assistant",
                "model": "m",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 1, "output_tokens": 1},
            },
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "ok"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 1}},
        {"type": "message_stop"},
    ],
    "google": [{"candidates": [{"content": {"role": "model", "parts": [{"text": "ok"}]}, "finishReason": "STOP"}]}],
}


def sse(payloads: list[Any]) -> bytes:
    events: list[str] = []
    for payload in payloads:
        data = payload if isinstance(payload, str) else json.dumps(payload)
        kind = None if data == "[DONE]" else json.loads(data).get("type")
        events.append((f"event: {kind}\n" if kind else "") + f"data: {data}\n\n")
    return "".join(events).encode()


class Providers:
    """The four models. `read` gives what a model holds after each event of a stream, `body` what it would send."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._payloads: list[Any] = []
        self._streams = False
        self._sent: dict[str, Any] = {}
        openai = OpenAIProvider(api_key="key", http_client=client)
        self.models: dict[str, Model] = {
            "openai-chat": OpenAIChatModel("gpt-5.4", provider=openai),
            "openai-responses": OpenAIResponsesModel("gpt-5.4", provider=openai),
            "anthropic": AnthropicModel(
                "claude-sonnet-5", provider=AnthropicProvider(api_key="key", http_client=client)
            ),
            "google": GoogleModel("gemini-3-pro", provider=GoogleProvider(api_key="key", http_client=client)),
        }
        tools = {
            "openai-responses": [WebSearchTool()],
            "anthropic": [WebSearchTool(), WebFetchTool(), CodeExecutionTool()],
        }
        self._parameters = {api: ModelRequestParameters(native_tools=tools.get(api, [])) for api in APIS}

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        self._sent = json.loads(request.content)
        if not self._streams:
            return httpx2.Response(200, json=self._payloads[0])
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=sse(self._payloads))

    async def read(self, api: str, payloads: list[Any], *, broken: bool = False) -> list[ModelResponse]:
        """Return what the response was before the stream, and after each event that changed it.

        Some recorded streams are `broken`: they end in an error, or data was elided from them.
        """
        self._payloads, self._streams = payloads, True
        seen: list[ModelResponse] = []
        model = self.models[api]
        with suppress(ModelAPIError, UnexpectedModelBehavior, ValidationError) if broken else nullcontext():
            async with model.request_stream([user("hi")], None, self._parameters[api]) as stream:
                seen.append(stream.get())
                async for _ in stream:
                    now = stream.get()
                    if now.parts != seen[-1].parts:
                        seen.append(deepcopy(now))
        return seen

    async def body(self, api: str, messages: list[ModelMessage]) -> dict[str, Any]:
        self._payloads, self._streams = ANSWERS[api], api == "anthropic"
        await self.models[api].request(messages, None, self._parameters[api])
        return self._sent


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    handlers: list[Providers] = []
    transport = httpx2.MockTransport(lambda request: handlers[0].handle(request))
    async with httpx2.AsyncClient(transport=transport, timeout=600) as client:
        handlers.append(Providers(client))
        yield handlers[0]


# --- what is held of every salvaged history ----------------------------------------------------------------------


def user(text: str) -> ModelRequest:
    return ModelRequest(parts=[UserPromptPart(text)])


def texts(messages: list[ModelMessage]) -> list[str]:
    return [
        part.content.removesuffix(f"\n\n{INTERRUPTED_NOTE}")
        for message in messages
        for part in message.parts
        if isinstance(part, TextPart) and part.content.strip()
    ]


def prompts(messages: list[ModelMessage]) -> list[Any]:
    return [part.content for message in messages for part in message.parts if isinstance(part, UserPromptPart)]


async def holds(providers: Providers, history: list[ModelMessage], options: dict[str, Any], apis: Any = APIS) -> None:
    """The promises of `salvage` for one history, and the pairing rules of the APIs for what becomes of it."""
    before = deepcopy(history)
    salvaged = salvage(history, **options)
    assert history == before, "the input was changed"
    check_history(salvaged)
    assert salvage(salvaged, **options) == salvaged, "not idempotent"
    assert prompts(salvaged) == prompts(history), "the user's words were changed"
    cut = [m for m in history if isinstance(m, ModelResponse) and m.state != "complete"]
    whole = [m for m in history if isinstance(m, ModelResponse) and m.state == "complete"]
    assert [m for m in salvaged if isinstance(m, ModelResponse) and m.state == "complete"] == whole
    assert texts(salvaged) == (texts(history) if options["text"] != "drop" else texts([*whole]))
    kept = [m for m in salvaged if isinstance(m, ModelResponse) and m.state != "complete"]
    assert len(kept) <= len(cut)
    for message in kept:
        assert message.parts
        assert message.state == "interrupted"
        assert message.metadata is not None
        json.dumps(message.metadata["cancelstream"]["salvage"])
    for api in apis:
        body = await providers.body(api, salvaged)
        CHECKS[api](body)
        if api == "openai-responses" and not whole:
            assert not [item for item in body["input"] if "id" in item], "cut answers were never stored"


def conversation(cuts: list[ModelResponse]) -> list[ModelMessage]:
    """One conversation in which every cut was made, one after the other."""
    return [user("start"), *itertools.chain.from_iterable((cut, user(f"turn {i}")) for i, cut in enumerate(cuts))]


def shape(response: ModelResponse) -> list[Any]:
    """What makes one cut different from another for an API that did not send it: not how long its texts are."""
    return [(part.part_kind, getattr(part, "args", None)) for part in response.parts]


def as_cut(response: ModelResponse, state: Any = "interrupted") -> ModelResponse:
    return replace(deepcopy(response), state=state)


def repaired_by_pydantic_ai(response: ModelResponse) -> list[ModelMessage]:
    """What pydantic-ai alone makes of a cut response when the next prompt comes."""
    returns = [
        ToolReturnPart(call.tool_name, "The tool call was interrupted.", call.tool_call_id, outcome="interrupted")
        for call in response.tool_calls
    ]
    return [user("start"), response, ModelRequest(parts=[*returns, UserPromptPart("next")])]


def stopped_tools(response: ModelResponse) -> Iterator[list[ModelMessage]]:
    """A whole response whose tools were stopped when none, some or all had finished."""
    # pydantic-ai drops server-side calls that were not offered in the request, as here, but not their results.
    asked = {part.tool_call_id for part in response.parts if isinstance(part, NativeToolCallPart)}
    parts = [p for p in response.parts if not isinstance(p, NativeToolReturnPart) or p.tool_call_id in asked]
    whole = replace(response, state="complete", parts=parts)
    calls = whole.tool_calls
    for done in range(len(calls) + 1):
        returns = [ToolReturnPart(call.tool_name, "done", call.tool_call_id) for call in calls[:done]]
        yield [user("start"), whole, ModelRequest(parts=returns, state="interrupted"), user("next")]


# --- streams written by hand ------------------------------------------------------------------------------------

ARGS = ['{"ci', 'ty": "Par', 'is", "n": 1}']


def chat_stream() -> list[Any]:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}

    def call(index: int, **fields: Any) -> dict[str, Any]:
        return chunk({"tool_calls": [{"index": index, **fields}]})

    return [
        chunk({"role": "assistant", "content": ""}),
        *(chunk({"reasoning_content": text}) for text in ("I ", "should ", "look.")),
        *(chunk({"content": text}) for text in ("\n", "Let me ", "look.")),
        call(0, id="call_a", type="function", function={"name": "weather", "arguments": ""}),
        *(call(0, function={"arguments": args}) for args in ARGS),
        call(1, id="call_b", type="function", function={"name": "traffic", "arguments": ""}),
        *(call(1, function={"arguments": args}) for args in ARGS),
        chunk({}, "tool_calls"),
        "[DONE]",
    ]


def responses_stream() -> list[Any]:
    numbers = itertools.count()
    response = {**ANSWERS["openai-responses"][0], "id": "resp_1", "status": "in_progress"}

    def event(kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": f"response.{kind}", "sequence_number": next(numbers), **fields}

    def item(index: int, kind: str, **fields: Any) -> dict[str, Any]:
        return event(f"output_item.{kind}", output_index=index, item=fields)

    events = [event("created", response={**response, "conversation": {"id": "conv_1"}})]
    at: dict[str, Any] = {"item_id": "rs_1", "output_index": 0, "summary_index": 0}
    events += [
        item(0, "added", id="rs_1", type="reasoning", summary=[]),
        event("reasoning_summary_part.added", part={"type": "summary_text", "text": ""}, **at),
        *(event("reasoning_summary_text.delta", delta=text, **at) for text in ("I ", "look.")),
        item(
            0,
            "done",
            id="rs_1",
            type="reasoning",
            encrypted_content="secret",
            summary=[{"type": "summary_text", "text": "I look."}],
        ),
    ]
    search = {"id": "ws_1", "type": "web_search_call", "action": {"type": "search", "query": "paris"}}
    events += [
        item(1, "added", **search, status="in_progress"),
        item(1, "done", **search, status="completed"),
    ]
    at = {"item_id": "msg_1", "output_index": 2, "content_index": 0}
    message = {"id": "msg_1", "type": "message", "role": "assistant"}
    part = {"type": "output_text", "text": "", "annotations": []}
    events += [
        item(2, "added", **message, status="in_progress", content=[]),
        event("content_part.added", part=part, **at),
        *(event("output_text.delta", delta=text, logprobs=[], **at) for text in ("Let me ", "look.")),
        item(2, "done", **message, status="completed", content=[{**part, "text": "Let me look."}]),
    ]
    for index, (call, name) in enumerate((("call_a", "weather"), ("call_b", "traffic")), start=3):
        function = {"id": f"fc_{index}", "type": "function_call", "call_id": call, "name": name}
        at = {"item_id": f"fc_{index}", "output_index": index}
        events += [
            item(index, "added", **function, arguments="", status="in_progress"),
            *(event("function_call_arguments.delta", delta=args, **at) for args in ARGS),
            item(index, "done", **function, arguments="".join(ARGS), status="completed"),
        ]
    return [*events, event("completed", response={**response, "status": "completed"})]


def anthropic_stream() -> list[Any]:
    def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"type": "content_block_start", "index": index, "content_block": start},
            *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
            {"type": "content_block_stop", "index": index},
        ]

    def text(*pieces: str) -> list[dict[str, Any]]:
        return [{"type": "text_delta", "text": piece} for piece in pieces]

    def args(*pieces: str) -> list[dict[str, Any]]:
        return [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]

    found = {
        "type": "web_search_result",
        "title": "Paris",
        "url": "https://paris.example",
        "encrypted_content": "secret",
        "page_age": None,
    }
    return [
        ANSWERS["anthropic"][0],
        *block(
            0,
            {"type": "thinking", "thinking": "", "signature": ""},
            {"type": "thinking_delta", "thinking": "I should "},
            {"type": "thinking_delta", "thinking": "look."},
            {"type": "signature_delta", "signature": "c2lnbmVk"},
        ),
        *block(1, {"type": "text", "text": ""}, *text("\n\n", "Let me ", "look.")),
        *block(
            2,
            {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
            *args('{"query": "pa', 'ris"}'),
        ),
        *block(3, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [found]}),
        *block(4, {"type": "redacted_thinking", "data": "c2VjcmV0"}),
        *block(5, {"type": "tool_use", "id": "toolu_a", "name": "weather", "input": {}}, *args(*ARGS)),
        *block(6, {"type": "tool_use", "id": "toolu_b", "name": "traffic", "input": {}}, *args(*ARGS)),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]


def google_stream() -> list[Any]:
    def chunk(*parts: dict[str, Any], **fields: Any) -> dict[str, Any]:
        candidate = {"content": {"role": "model", "parts": list(parts)}, **fields}
        return {"candidates": [candidate], "responseId": "r", "modelVersion": "m"}

    def call(name: str, **fields: Any) -> dict[str, Any]:
        return {"functionCall": {"name": name, "args": {"city": "Paris"}, "id": f"call_{name}"}, **fields}

    return [
        chunk({"text": "I should ", "thought": True}),
        chunk({"text": "look.", "thought": True}),
        chunk({"text": "Let me "}),
        chunk({"text": "look."}),
        chunk(call("weather", thoughtSignature="c2lnbmVk"), call("traffic"), finishReason="STOP"),
    ]


WRITTEN: dict[str, Callable[[], list[Any]]] = dict(
    zip(APIS, (chat_stream, responses_stream, anthropic_stream, google_stream), strict=True)
)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: f"{o['text']}-{o['tool_calls']}")
@pytest.mark.parametrize("api", APIS)
async def test_written_streams(providers: Providers, api: str, options: dict[str, Any]) -> None:
    """Cut after any event, alone, in a conversation of such cuts, loaded from JSON, or repaired by pydantic-ai.

    Alone, a cut goes back to the API that it came from; the conversations of all cuts go to every API.
    """
    seen = await providers.read(api, WRITTEN[api]())
    kinds = {part.part_kind for part in seen[-1].parts}
    assert kinds >= {"thinking", "text", "tool-call"}, kinds
    assert [call.tool_name for call in seen[-1].tool_calls] == ["weather", "traffic"]
    cuts = [as_cut(response) for response in seen]
    for cut in cuts:
        await holds(providers, [user("start"), cut, user("next")], options, apis=[api])
        await holds(providers, repaired_by_pydantic_ai(cut), options, apis=[api])
        await holds(providers, [user("start"), cut], options, apis=())
    await holds(providers, conversation(cuts), options)
    repaired = list(itertools.chain.from_iterable(repaired_by_pydantic_ai(cut) for cut in cuts))
    await holds(providers, repaired, options)
    stored = ModelMessagesTypeAdapter.dump_json(conversation([as_cut(cut, "incomplete") for cut in cuts]))
    await holds(providers, ModelMessagesTypeAdapter.validate_json(stored), options)
    for history in stopped_tools(seen[-1]):
        await holds(providers, history, options)


@pytest.mark.parametrize("api", APIS)
async def test_the_checks_can_fail(providers: Providers, api: str) -> None:
    """Not salvaged, the same cuts break at least one rule of the API that sent them."""
    broken = 0
    for response in await providers.read(api, WRITTEN[api]()):
        try:
            CHECKS[api](await providers.body(api, [user("start"), as_cut(response), user("next")]))
        except (AssertionError, ValueError):
            broken += 1
    assert broken


async def test_signed_thinking_stays_with_what_it_led_to(providers: Providers) -> None:
    """Thinking that is whole and led to something is kept, signature and all; cut thinking goes."""
    seen = await providers.read("anthropic", anthropic_stream())
    for response in seen:
        (kept,) = [m for m in salvage([user("hi"), as_cut(response)]) if isinstance(m, ModelResponse)] or [None]
        texts_seen = [part for part in response.parts if isinstance(part, TextPart) and part.content.strip()]
        if not texts_seen:
            assert kept is None, "thinking alone is nothing to go on from"
        else:
            assert kept is not None
            assert kept.parts[0] == response.parts[0]
            assert kept.parts[0].part_kind == "thinking"
            assert kept.parts[-1].part_kind != "thinking"


async def test_cut_arguments_are_closed_as_they_are(providers: Providers) -> None:
    """A closed call keeps what arrived of its arguments: no reader is told of a call with other ones."""
    seen = await providers.read("openai-chat", chat_stream())
    open_calls = [r.tool_calls[-1].args for r in seen if r.tool_calls]
    assert '{"city": "Par' in open_calls
    for response in seen:
        closed = salvage([user("hi"), as_cut(response)], tool_calls="close")
        calls = [part for m in closed for part in m.parts if isinstance(part, ToolCallPart)]
        assert [call.args for call in calls] == [call.args for call in response.tool_calls]
        returns = [part for m in closed for part in m.parts if isinstance(part, ToolReturnPart)]
        assert [part.outcome for part in returns] == ["interrupted"] * len(calls)


# --- recorded streams -------------------------------------------------------------------------------------------


def recordings() -> list[Any]:
    path = os.environ.get("CANCELSTREAM_RECORDINGS")
    if not path:
        return [pytest.param(None, marks=pytest.mark.skip("CANCELSTREAM_RECORDINGS is not set"), id="unset")]
    with Path(path).open() as lines:
        loaded = [json.loads(line) for line in lines]
    return [
        pytest.param(stream, id=f"{stream['api']}-{stream['id']}")
        for stream in loaded
        if stream["api"] in APIS and not stream.get("suspect")
    ]


@pytest.mark.timeout(3600)  # the longest is cut at more than a thousand points, and a machine may be busy
@pytest.mark.parametrize("stream", recordings())
async def test_recorded_streams(providers: Providers, stream: dict[str, Any]) -> None:
    """Cut after any event of a real stream, the answer can be salvaged for each of the four APIs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # items that pydantic-ai has no part for
        seen = await providers.read(stream["api"], stream["sse"], broken=True)
    if not seen:
        pytest.skip("data was elided from its first chunk")
    cuts = [as_cut(response) for response in seen]
    shapes = [list(same)[-1] for _, same in itertools.groupby(cuts, key=shape)]
    others = [api for api in APIS if api != stream["api"]]
    for options in OPTIONS:
        for some in range(0, len(cuts), 50):
            await holds(providers, conversation(cuts[some : some + 50]), options, apis=[stream["api"]])
        await holds(providers, conversation(shapes), options, apis=others)
        for history in stopped_tools(seen[-1]):
            await holds(providers, history, options)
