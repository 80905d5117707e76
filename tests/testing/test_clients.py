"""The real clients run whole streams against the scripted server, and their leaving is seen."""

import contextlib
import gc
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic_ai import Agent, ModelAPIError, ModelHTTPError
from pydantic_ai.messages import ModelResponse, TextPart, ThinkingPart, ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream.testing import (
    Answer,
    Burst,
    Cut,
    ErrorEvent,
    Event,
    Gate,
    HttpError,
    Reasoning,
    Replay,
    ScriptedServer,
    Silence,
    Text,
    ToolCall,
    Usage,
)


@pytest.fixture(params=["httpx2", "httpx"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[ScriptedServer], AsyncOpenAI]]:
    """An `AsyncOpenAI` on openai's own HTTP client, and on the legacy one."""
    opened: list[AsyncOpenAI] = []

    def make(server: ScriptedServer) -> AsyncOpenAI:
        http_client = httpx.AsyncClient() if request.param == "httpx" else None
        opened.append(AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0, http_client=http_client))
        return opened[-1]

    yield make
    for each in opened:
        await each.close()


ASK: Any = {"model": "scripted", "messages": [{"role": "user", "content": "Hi"}]}


# --- openai -------------------------------------------------------------------------------------------------------


async def test_async_openai(client: Callable[[ScriptedServer], AsyncOpenAI]) -> None:
    """Chat completions and Responses, streamed and not, on one connection."""
    turn = Answer(Reasoning("hm"), Text("Hi", " there"), ToolCall("f", '{"a": 1}'), usage=Usage(7, 12))
    with ScriptedServer(turn, repeat=True) as server:
        api = client(server)
        chunks = [chunk async for chunk in await api.chat.completions.create(**ASK, stream=True)]
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hi there"
        assert chunks[-1].usage is not None
        assert (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens) == (7, 12)
        completion = await api.chat.completions.create(**ASK)
        assert completion.choices[0].message.content == "Hi there"
        assert completion.choices[0].finish_reason == "tool_calls"
        events = [event async for event in await api.responses.create(model="scripted", input="Hi", stream=True)]
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "Hi there"
        completed = events[-1]
        assert completed.type == "response.completed"
        response = await api.responses.create(model="scripted", input="Hi")
        assert response.output_text == completed.response.output_text == "Hi there"
        assert response.usage is not None
        assert response.usage.output_tokens == 12
        assert [record.chunks_generated for record in server.records] == [5] * 4
        assert [record.ended_by for record in server.records] == ["complete"] * 4
        assert server.connections == 1


def test_openai() -> None:
    """The blocking client, the same."""
    with (
        ScriptedServer(Answer(Text("Hi", " there")), repeat=True) as server,
        OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as api,
    ):
        chunks = list(api.chat.completions.create(**ASK, stream=True))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hi there"
        assert api.chat.completions.create(**ASK).choices[0].message.content == "Hi there"
        events = list(api.responses.create(model="scripted", input="Hi", stream=True))
        assert events[-1].type == "response.completed"
        assert api.responses.create(model="scripted", input="Hi").output_text == "Hi there"
        assert [record.ended_by for record in server.records] == ["complete"] * 4


async def test_async_openai_over_tls(server_tls: Any, client_tls: Any) -> None:
    """HTTPS, for what only happens over it."""
    async with httpx.AsyncClient(verify=client_tls) as http_client:
        with ScriptedServer(Answer(Text("Hi"), Silence()), ssl_context=server_tls) as server:
            api = AsyncOpenAI(base_url=server.base_url, api_key="none", http_client=http_client)
            stream = await api.chat.completions.create(**ASK, stream=True)
            await anext(stream)
            await stream.close()
            await server.records[0].until_disconnected()


@pytest.mark.parametrize("close", ["close", "break"])
async def test_a_client_that_closes(client: Callable[[ScriptedServer], AsyncOpenAI], close: str) -> None:
    """`close()` is seen at once, and the next request needs a connection of its own."""
    with ScriptedServer(Answer(Text("Hi"), Silence()), Answer(Text("again"))) as server:
        api = client(server)
        async with await api.chat.completions.create(**ASK, stream=True) as stream:
            async for chunk in stream:
                if chunk.choices[0].delta.content == "Hi":
                    break
            if close == "close":
                await stream.close()
        await server.records[0].until_disconnected()
        assert server.records[0].chunks_generated == 1
        completion = await api.chat.completions.create(**ASK)
        assert completion.choices[0].message.content == "again"
        assert server.connections == 2


@pytest.mark.parametrize("api_name", ["chat", "responses"])
@pytest.mark.parametrize(
    ("turn", "error"),
    [
        (HttpError(429, "slow down", headers={"retry-after": "1"}), openai.RateLimitError),
        (HttpError(500), openai.InternalServerError),
        (Answer(before_headers=Cut("reset")), openai.APIConnectionError),
        (Answer(before_headers=Cut("eof")), openai.APIConnectionError),
        (Answer(Text("Hi"), Cut("reset")), openai.APIConnectionError),
        (Answer(Text("Hi"), Cut("eof")), openai.APIConnectionError),
        (Answer(Text("Hi"), Event('{"choices": [')), json.JSONDecodeError),
    ],
)
async def test_errors(
    client: Callable[[ScriptedServer], AsyncOpenAI], turn: Any, error: type[Exception], api_name: str
) -> None:
    """Each kind of failure is what the client takes it for."""
    with ScriptedServer(turn) as server:
        api = client(server)

        async def consume() -> None:
            if api_name == "chat":
                async for _ in await api.chat.completions.create(**ASK, stream=True):
                    pass
            else:
                async for _ in await api.responses.create(model="scripted", input="Hi", stream=True):
                    pass

        with pytest.raises(error):
            await consume()


async def test_an_error_event(client: Callable[[ScriptedServer], AsyncOpenAI]) -> None:
    """The provider's error in the stream: raised in chat completions, an event in Responses."""
    with ScriptedServer(Answer(Text("Hi"), ErrorEvent("broken", code="oops")), repeat=True) as server:
        api = client(server)
        stream = await api.chat.completions.create(**ASK, stream=True)
        with pytest.raises(openai.APIError, match="broken"):
            async for _ in stream:
                pass
        events = [event async for event in await api.responses.create(model="scripted", input="Hi", stream=True)]
        assert events[-1].type == "error"
        assert (events[-1].message, events[-1].code) == ("broken", "oops")


@pytest.mark.parametrize("how", ["end", "truncated"])
async def test_a_stream_that_just_ends(client: Callable[[ScriptedServer], AsyncOpenAI], how: Any) -> None:
    """No finish reason, no usage, no error: what a client takes for an end."""
    with ScriptedServer(Answer(Text("Hi"), Cut(how))) as server:
        stream = await client(server).chat.completions.create(**ASK, stream=True)
        chunks = [chunk async for chunk in stream]
        assert [c.choices[0].finish_reason for c in chunks] == [None, None]


async def test_the_clients_own_retries() -> None:
    """A retry takes a turn."""
    with ScriptedServer(HttpError(500, headers={"retry-after-ms": "1"}), Answer(Text("Hi"))) as server:
        async with AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=1) as api:
            completion = await api.chat.completions.create(**ASK)
        assert completion.choices[0].message.content == "Hi"
        assert [record.ended_by for record in server.records] == ["complete", "complete"]


async def test_a_burst_arrives_together(client: Callable[[ScriptedServer], AsyncOpenAI]) -> None:
    """After the first chunk of a burst the others are in the client already."""
    gate = Gate()
    with ScriptedServer(Answer(Burst(Text("a", "b", "c")), gate)) as server:
        stream = await client(server).chat.completions.create(**ASK, stream=True)
        seen = [(await anext(stream)).choices[0].delta.content for _ in range(4)]
        assert seen == ["", "a", "b", "c"]
        gate.open()
        async for _ in stream:
            pass


# --- pydantic-ai --------------------------------------------------------------------------------------------------


Models = Callable[[Any, ScriptedServer], Model]


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    """Make models for a server, and close their clients when the test has ended."""
    async with contextlib.AsyncExitStack() as clients:

        def make(kind: Any, server: ScriptedServer) -> Model:
            model, close = kind(server)
            clients.push_async_callback(close)
            return model

        yield make


def openai_chat(server: ScriptedServer) -> tuple[Model, Any]:
    client = AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0)
    return OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client)), client.close


def openai_responses(server: ScriptedServer) -> tuple[Model, Any]:
    client = AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0)
    return OpenAIResponsesModel("scripted", provider=OpenAIProvider(openai_client=client)), client.close


KINDS = pytest.mark.parametrize("kind", [openai_chat, openai_responses])


@KINDS
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_tool_loop(models: Models, kind: Any, streamed: bool) -> None:
    """Reasoning, a tool call, its result, the final answer: the parts and usage of each turn arrive."""
    turns = (
        Answer(Reasoning("Let me", " see."), ToolCall("weather", '{"city": ', '"Paris"}'), usage=Usage(20, 8)),
        Answer(Text.words("It is sunny in Paris."), usage=Usage(40, 6, cached_tokens=16)),
    )
    with ScriptedServer(*turns) as server:
        agent = Agent(models(kind, server))
        cities: list[str] = []

        @agent.tool_plain
        def weather(city: str) -> str:
            cities.append(city)
            return "sunny"

        if streamed:
            async with agent.run_stream("How is the weather in Paris?") as result:
                assert await result.get_output() == "It is sunny in Paris."
        else:
            result = await agent.run("How is the weather in Paris?")
            assert result.output == "It is sunny in Paris."
        assert cities == ["Paris"]
        first, second = (m for m in result.all_messages() if isinstance(m, ModelResponse))
        assert [type(part) for part in first.parts] == [ThinkingPart, ToolCallPart]
        assert [part.content for part in second.parts if isinstance(part, TextPart)] == ["It is sunny in Paris."]
        assert (first.usage.input_tokens, first.usage.output_tokens) == (20, 8)
        assert (second.usage.input_tokens, second.usage.output_tokens, second.usage.cache_read_tokens) == (40, 6, 16)
        assert (first.state, second.state) == ("complete", "complete")
        assert "call_0_0" in json.dumps(server.records[1].json)


async def test_usage_on_every_chunk(models: Models) -> None:
    """Live usage, with the setting that says the server has it."""
    gate = Gate()
    with ScriptedServer(Answer(Text("a", "b", gate, "c"), usage=Usage(5, when="every"))) as server:
        agent = Agent(models(openai_chat, server), model_settings={"openai_continuous_usage_stats": True})  # type: ignore[typeddict-unknown-key]
        async with agent.run_stream("Hi") as result:
            texts = result.stream_text(delta=True, debounce_by=None)
            assert await anext(texts) == "a"
            assert await anext(texts) == "b"
            assert (result.usage.input_tokens, result.usage.output_tokens) == (5, 2)
            gate.open()
            assert [text async for text in texts] == ["c"]
            assert result.usage.output_tokens == 3
        assert server.records[0].json["stream_options"]["continuous_usage_stats"] is True


@KINDS
async def test_pydantic_ai_errors(models: Models, kind: Any) -> None:
    """An HTTP error, and an error in the stream."""
    with ScriptedServer(HttpError(400, "no"), Answer(Text("Hi"), ErrorEvent("broken"))) as server:
        agent = Agent(models(kind, server))
        with pytest.raises(ModelHTTPError):
            await agent.run("Hi")

        async def consume() -> None:
            async with agent.run_stream("Hi") as result:
                await result.get_output()

        with pytest.raises(ModelAPIError):
            await consume()


@KINDS
async def test_pydantic_ai_leaves(models: Models, kind: Any) -> None:
    """Leaving the context is seen on a silent server."""
    with ScriptedServer(Answer(Text("Hi"), Silence())) as server:
        async with Agent(models(kind, server)).run_stream("Hi") as result:
            async for text in result.stream_text(debounce_by=None):
                assert text == "Hi"
                break
            await result.cancel()
        await server.records[0].until_disconnected()


# --- other providers ----------------------------------------------------------------------------------------------

ANTHROPIC: Any = [
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-scripted",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 11, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " there"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": 9},
    },
    {"type": "message_stop"},
]


def google_chunk(text: str, **rest: Any) -> Any:
    return {
        "candidates": [{"content": {"parts": [{"text": text}], "role": "model"}, "index": 0, **rest}],
        "usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 9, "totalTokenCount": 20},
        "modelVersion": "gemini-scripted",
    }


GOOGLE: Any = [google_chunk("Hi"), google_chunk(" there", finishReason="STOP")]


def anthropic_model(server: ScriptedServer) -> tuple[Model, Any]:
    pytest.importorskip("anthropic")
    from anthropic import AsyncAnthropic
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    client = AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0)
    return AnthropicModel("claude-scripted", provider=AnthropicProvider(anthropic_client=client)), client.close


def google_model(server: ScriptedServer) -> tuple[Model, Any]:
    pytest.importorskip("google.genai")
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    http_client = httpx2.AsyncClient(timeout=30)
    provider = GoogleProvider(base_url=server.url, api_key="none", http_client=http_client)
    return GoogleModel("gemini-scripted", provider=provider), http_client.aclose


OTHERS = pytest.mark.parametrize(
    ("kind", "payloads", "path", "silent_after"),
    [
        (anthropic_model, ANTHROPIC, "/v1/messages", 3),
        (google_model, GOOGLE, "/v1beta/models/gemini-scripted:streamGenerateContent", 1),
    ],
    ids=["anthropic", "google"],
)


@OTHERS
async def test_other_providers(models: Models, kind: Any, payloads: Any, path: str, silent_after: int) -> None:
    """A whole replayed stream is a whole answer with its usage."""
    with ScriptedServer(Replay(payloads)) as server:
        async with Agent(models(kind, server)).run_stream("Hi") as result:
            assert await result.get_output() == "Hi there"
        assert (result.usage.input_tokens, result.usage.output_tokens) == (11, 9)
        (record,) = server.records
        assert record.path == path
        assert record.chunks_generated == len(payloads)
        await record.until_ended()
        assert record.ended_by == "complete"


@OTHERS
async def test_leaving_other_providers(models: Models, kind: Any, payloads: Any, path: str, silent_after: int) -> None:
    """A replay may fall silent, and the leaving is seen."""
    with ScriptedServer(Replay([*payloads[:silent_after], Silence()])) as server:
        async with Agent(models(kind, server)).run_stream("Hi") as result:
            async for text in result.stream_text(debounce_by=None):
                assert text == "Hi"
                break
            await result.cancel()
        # Google's client closes its connection when its generators are collected, and no sooner.
        gc.collect()
        await server.records[0].until_disconnected()
        assert server.records[0].chunks_generated == silent_after


# --- recorded traffic ---------------------------------------------------------------------------------------------


async def test_recorded_streams() -> None:
    """What providers really sent comes out of openai's client payload by payload."""
    folder = os.environ.get("CANCELSTREAM_RECORDINGS")
    if folder is None:
        pytest.skip("CANCELSTREAM_RECORDINGS names no folder of recordings")
    lines = (Path(folder) / "recorded_streams_dev.jsonl").read_text().splitlines()
    recorded = [line for line in map(json.loads, lines) if line["api"] == "openai-chat" and line["complete"]]
    with ScriptedServer(*[Replay(line["sse"]) for line in recorded]) as server:
        async with AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as api:
            for line in recorded:
                stream = await api.chat.completions.create(**ASK, stream=True)
                got = [chunk async for chunk in stream]
                assert len(got) == sum(payload != "[DONE]" for payload in line["sse"])
        assert [record.chunks_generated for record in server.records] == [len(line["sse"]) for line in recorded]
