"""What else runs below: Anthropic's and Google's models, mocks, usage on every chunk, models that cannot be stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest
import respx
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.messages import ModelRequest, ModelResponse, ModelResponseStreamEvent, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.google import GoogleModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.google import GoogleProvider
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import (
    CancellableModel,
    CancellableStreamedResponse,
    CancellationUnsupported,
    ResponseUsage,
    run_stream,
)
from cancelstream._upstream import pydantic_ai_streams
from cancelstream.testing import Answer, Gate, Replay, Silence, Text, Usage
from cancelstream.testing._plugin import StartServer

from .conftest import MakeModel

LIMIT = 20
PROMPT = [ModelRequest(parts=[UserPromptPart("count")])]


def anthropic_text(*pieces: str) -> list[dict[str, Any]]:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-6",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 1},
    }
    return [
        {"type": "message_start", "message": message},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
            for piece in pieces
        ),
    ]


def google_text(*pieces: str) -> list[str]:
    return [
        json.dumps(
            {
                "candidates": [{"content": {"role": "model", "parts": [{"text": piece}]}, "index": 0}],
                "modelVersion": "gemini-2.5-flash",
                "usageMetadata": {
                    "promptTokenCount": 9,
                    "candidatesTokenCount": number,
                    "totalTokenCount": 9 + number,
                },
            }
        )
        for number, piece in enumerate(pieces, 1)
    ]


@asynccontextmanager
async def anthropic_model(url: str) -> AsyncIterator[Model]:
    async with AsyncAnthropic(api_key="not-a-key", base_url=url, max_retries=0) as client:
        yield AnthropicModel("claude-sonnet-4-6", provider=AnthropicProvider(anthropic_client=client))


@asynccontextmanager
async def google_model(url: str) -> AsyncIterator[Model]:
    # pydantic-ai's own HTTP client, not the aiohttp session that Google's SDK prefers where aiohttp is installed:
    # that one closes nothing before it is garbage collected, whoever stops it.
    async with httpx2.AsyncClient(timeout=30) as http:
        yield GoogleModel(
            "gemini-2.5-flash", provider=GoogleProvider(api_key="not-a-key", base_url=url, http_client=http)
        )


OTHERS = {
    "anthropic": (anthropic_model, anthropic_text("one", " two", " three")),
    "google": (google_model, google_text("one", " two", " three")),
}


@pytest.mark.parametrize("provider", OTHERS)
async def test_other_providers_mid_text(scripted_server: StartServer, provider: str):
    """The same promises hold for any model of pydantic-ai that can be closed."""
    open_model, payloads = OTHERS[provider]
    server = scripted_server(Replay([*payloads, Silence()]))
    async with open_model(server.url) as model, run_stream(Agent(model), "count") as result:
        taken: list[str] = []
        async for piece in result.stream_text(delta=True, debounce_by=None):
            taken.append(piece)
            if len(taken) == 2:
                result.cancel("enough")
    assert taken == ["one", " two"]
    assert await server.records[0].until_disconnected(LIMIT)
    response = result.all_messages()[-1]
    assert isinstance(response, ModelResponse)
    assert (response.state, response.text) == ("interrupted", "one two")
    # Both report the input before the first token; Anthropic's opening output count is only a placeholder.
    assert result.usage.input.source == "reported"
    assert result.usage.input.value == {"anthropic": 12, "google": 9}[provider]
    assert result.usage.output.low >= 2


@pytest.mark.parametrize("provider", OTHERS)
async def test_other_providers_on_a_silent_server(scripted_server: StartServer, provider: str):
    """A read that waits for a silent server ends there too."""
    open_model, payloads = OTHERS[provider]
    server = scripted_server(Replay([*payloads, Silence()]))
    async with open_model(server.url) as model, run_stream(Agent(model), "count") as result:
        reading = asyncio.create_task(collect(result.stream_text(delta=True, debounce_by=None)))
        await server.records[0].until_chunks(len(payloads), LIMIT)
        while result.response.text != "one two three":
            await asyncio.sleep(0)
        await result.cancel("enough")
        assert await asyncio.wait_for(reading, LIMIT) == "one two three"
        assert await server.records[0].until_disconnected(LIMIT)
    assert result.response.state == "interrupted"


async def collect(pieces: AsyncIterator[str]) -> str:
    return "".join([piece async for piece in pieces])


async def test_responses_api(scripted_server: StartServer):
    """OpenAI's Responses API, cancelled in the middle of its text."""
    server = scripted_server(Answer(Text("one", " two", " three", Silence())))
    async with AsyncOpenAI(base_url=server.base_url, api_key="not-a-key", max_retries=0) as client:
        agent = Agent(OpenAIResponsesModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
        async with run_stream(agent, "count") as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                result.cancel("enough")
        assert await server.records[0].until_disconnected(LIMIT)
    assert (result.response.state, result.response.text) == ("interrupted", "one")
    assert result.usage.output.low >= 1


async def test_usage_of_the_chunk_in_flight(scripted_server: StartServer, make_model: MakeModel):
    """Pulled but not handed out, chunk k+1 is counted: its usage is the usage of the cancelled response."""
    usage = Usage(7, when="every")
    server = scripted_server(Answer(Text("one", " two", " three", Silence()), usage=usage))
    model = CancellableModel(make_model(server))
    settings: Any = {"openai_continuous_usage_stats": True}
    async with model.request_stream(PROMPT, settings, ModelRequestParameters()) as response:
        assert isinstance(response, CancellableStreamedResponse)
        texts: list[str] = []
        while len(texts) < 2:
            event = await anext(aiter(response))
            texts.extend(text for text in [text_in(event)] if text)
        assert response.usage.output_tokens == 2
        assert text_in(await response._pull.peek()) == " three"
        response.cancel("enough")
        assert [event async for event in response] == []
        assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 3)
    assert isinstance(response.usage, ResponseUsage)
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 3)
    assert response.usage.output.source == "reported"
    assert response.get().state == "interrupted"


def text_in(event: ModelResponseStreamEvent) -> str:
    part = getattr(event, "part", None) or getattr(event, "delta", None)
    return getattr(part, "content_delta", None) or (
        getattr(part, "content", "") if event.event_kind != "part_end" else ""
    )


async def test_a_direct_call_of_a_model(scripted_server: StartServer, make_model: MakeModel):
    """Without an agent: the stream of a `CancellableModel` opens lazily, and can be stopped from its birth."""
    gate = Gate()
    server = scripted_server(Answer(Text("one", gate, " two")))
    async with CancellableModel(make_model(server)).request_stream(PROMPT, None, ModelRequestParameters()) as response:
        assert isinstance(response, CancellableStreamedResponse)
        assert response.model_name == "gpt-4o"
        assert response.get().parts == []
        assert server.records == ()
        async for _ in response:
            response.cancel()
        assert (response.cancelled, response.cancel_reason) == (True, "cancelled")
    assert await server.records[0].until_disconnected(LIMIT)
    assert response.get().text == "one"


async def test_chunks_are_pulled_directly(scripted_server: StartServer, make_model: MakeModel):
    """pydantic-ai's scope and lock around every pull are left out; fails when an upgrade has moved what is private."""
    server = scripted_server(Answer(Text("one", " two", " three")))
    async with CancellableModel(make_model(server)).request_stream(PROMPT, None, ModelRequestParameters()) as response:
        assert isinstance(response, CancellableStreamedResponse)
        texts = [text async for text in response.stream_text(delta=True)]
        wrapped: Any = getattr(response._inner, "_response", None)
        assert isinstance(wrapped, pydantic_ai_streams._Direct)
        assert not wrapped._pull_scopes
    assert texts == ["one", " two", " three"]
    assert response.get().state == "complete"


async def test_a_stream_of_another_build_is_left_as_it_is():
    """What does not look like pydantic-ai's own wrapper is not touched."""
    for wrapped in (object(), None, "text"):
        inner: Any = SimpleNamespace(_response=wrapped)
        pydantic_ai_streams.read_directly(inner)
        assert inner._response is wrapped


async def test_wrapping_an_open_stream(scripted_server: StartServer, make_model: MakeModel):
    """Any open pydantic-ai stream can be wrapped and stopped."""
    server = scripted_server(Answer(Text("one", " two", Silence())))
    async with make_model(server).request_stream(PROMPT, None, ModelRequestParameters()) as inner:
        async with CancellableStreamedResponse(inner) as response:
            texts = []
            async for text in response.stream_text():
                texts.append(text)
                if len(texts) == 2:
                    await response.cancel("enough")
        assert await server.records[0].until_disconnected(LIMIT)
    assert texts == ["one", "one two"]
    assert response.get().state == "interrupted"


def test_what_is_no_stream():
    """The error names the ways for the other kinds of stream."""
    with pytest.raises(TypeError, match="from_openai"):
        CancellableStreamedResponse(iter("abc"))  # type: ignore[arg-type]


class Unstoppable(StreamedResponse):
    """A third party's stream that has nothing to close."""

    model_name = "third-party"  # type: ignore[assignment]
    provider_name = provider_url = None  # type: ignore[assignment]
    timestamp = datetime(2026, 1, 1, tzinfo=UTC)  # type: ignore[assignment]

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        for word in ("one", " two"):
            for event in self._parts_manager.handle_text_delta(vendor_part_id="0", content=word):
                yield event


async def test_a_stream_that_cannot_be_stopped():
    """Wrapping it does not raise; cancelling it does, changes nothing, and the stream goes on."""
    inner = Unstoppable(model_request_parameters=ModelRequestParameters())
    async with CancellableStreamedResponse(inner) as response:
        texts = []
        async for text in response.stream_text(delta=True):
            texts.append(text)
            with pytest.raises(CancellationUnsupported, match=r"no close_stream\(\).*CancellableModel"):
                response.cancel()
    assert texts == ["one", " two"]
    assert not response.cancelled
    assert response.get().state == "complete"


class UnstoppableModel(FunctionModel):
    """A third party's model, whose stream ends when its context is left."""

    left = False

    @asynccontextmanager
    async def request_stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[StreamedResponse]:  # type: ignore[override]
        try:
            yield Unstoppable(model_request_parameters=ModelRequestParameters())
        finally:
            self.left = True


async def test_a_model_whose_stream_cannot_be_closed_is_left():
    """Opened by us, such a stream is stopped all the same: the pull is interrupted and the context left."""
    model = UnstoppableModel(stream_function=lambda *_: None)  # type: ignore[arg-type, return-value]
    async with CancellableModel(model).request_stream(PROMPT, None, ModelRequestParameters()) as response:
        texts = []
        async for text in response.stream_text(delta=True):  # type: ignore[attr-defined]
            texts.append(text)
            response.cancel()
    assert texts == ["one"]
    assert model.left
    assert response.get().state == "interrupted"


class Body(httpx.AsyncByteStream):
    """A mocked body: some chunks, and then nothing for as long as anyone waits."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.closed = 0
        self.silent = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for word in self.words:
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o"}
            yield f"data: {json.dumps({**chunk, 'choices': [{'index': 0, 'delta': {'content': word}}]})}\n\n".encode()
        self.silent.set()
        await asyncio.Event().wait()

    async def aclose(self) -> None:
        self.closed += 1


@pytest.mark.parametrize("moment", ["mid text", "silent"])
async def test_through_respx(moment: str):
    """What a mock can show on the legacy client: the loop ends, and the body is closed."""
    body = Body("one", " two")
    with respx.mock(base_url="http://mocked/v1") as mocked:
        mocked.post("/chat/completions").mock(
            return_value=httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=body)
        )
        async with httpx.AsyncClient() as http:
            client = AsyncOpenAI(base_url="http://mocked/v1", api_key="k", http_client=http, max_retries=0)
            agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
            async with run_stream(agent, "count") as result:
                if moment == "mid text":
                    async for _ in result.stream_text(delta=True, debounce_by=None):
                        await result.cancel()
                else:
                    reading = asyncio.create_task(collect(result.stream_text(delta=True, debounce_by=None)))
                    await asyncio.wait_for(body.silent.wait(), LIMIT)
                    await result.cancel()
                    assert await asyncio.wait_for(reading, LIMIT) == "one two"
    assert body.closed >= 1
    assert result.response.state == "interrupted"
    assert result.response.text == ("one" if moment == "mid text" else "one two")
