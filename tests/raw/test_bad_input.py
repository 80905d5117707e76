"""What is no stream to read is refused where it is wrapped, with an error that says what to do instead."""

from __future__ import annotations

import contextlib
from typing import Any

import httpx2
import pytest
from openai import AsyncAzureOpenAI, AsyncOpenAI, OpenAI

from cancelstream import CancellableStreamedResponse, open_stream
from cancelstream.testing import Answer, StartServer, Text

from .support import ASK, LAST, Sent, chat, delta, stream_of

from_openai = CancellableStreamedResponse.from_openai
HI = Sent("short", (chat(delta(content="Hi")), LAST)).sse()


async def test_a_stream_that_was_read_from() -> None:
    """Its beginning is gone, so the message and the count would be wrong."""
    stream = await stream_of(HI)
    await anext(stream)
    with pytest.raises(ValueError, match="read from before: wrap it first"):
        from_openai(stream)
    await stream.close()


async def test_a_stream_that_was_read_to_its_end() -> None:
    stream = await stream_of(HI)
    assert len([chunk async for chunk in stream]) == 2
    with pytest.raises(ValueError, match="read from before"):
        from_openai(stream)


async def test_a_stream_whose_response_is_in_memory() -> None:
    """As a mock's is: it can be read, by the SDK, and when it was read it is refused like any other."""
    request = (await stream_of(HI)).response.request
    for times in (1, 2):
        stream = await stream_of(HI, request=request)
        stream.response = httpx2.Response(
            200, headers={"content-type": "text/event-stream"}, content=HI, request=request
        )
        if times == 1:
            async with from_openai(stream) as response:
                assert [text async for text in response.stream_text()] == ["Hi"]
        else:
            assert len([chunk async for chunk in stream]) == 2
            with pytest.raises(ValueError, match="read from before"):
                from_openai(stream)


async def test_a_stream_that_was_closed() -> None:
    stream = await stream_of(HI)
    await stream.close()
    with pytest.raises(ValueError, match="closed before: create another one"):
        from_openai(stream)


async def test_a_stream_that_was_wrapped_before() -> None:
    """Two wrappers would share one connection: the second one is refused, and the first one goes on."""
    stream = await stream_of(HI)
    async with from_openai(stream) as response:
        for _ in range(2):
            with pytest.raises(ValueError, match="wrapped before: read the wrapper that it has"):
                from_openai(stream)
            assert [text async for text in response.stream_text()] in (["Hi"], [])
    assert not response.cancelled


async def test_a_stream_of_a_blocking_client(scripted_server: StartServer) -> None:
    server = scripted_server(Answer(Text("Hi")))
    with OpenAI(base_url=server.base_url, api_key="none") as client:
        stream: Any = client.chat.completions.create(**ASK, stream=True)
        with pytest.raises(TypeError, match=r"blocking client: use `cancelstream\.sync\.CancellableStream"):
            from_openai(stream)
        stream.close()


async def test_a_coroutine_that_was_not_awaited(scripted_server: StartServer) -> None:
    server = scripted_server(Answer(Text("Hi")))
    async with AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
        coroutine: Any = client.chat.completions.create(**ASK, stream=True)
        with pytest.raises(TypeError, match="has to be awaited first"):
            from_openai(coroutine)
        coroutine.close()


async def test_another_librarys_stream() -> None:
    async def words() -> Any:
        yield "Hi"

    async with contextlib.aclosing(words()) as source:
        for other in (source, [1, 2], None, "text"):
            with pytest.raises(
                TypeError, match=r"expected openai's AsyncStream.*`PeekableAsyncStream` wraps any other"
            ):
                from_openai(other)  # type: ignore[arg-type, unused-ignore]


@pytest.mark.parametrize("media", ["application/json", "text/html; charset=utf-8", "Application/JSON"])
async def test_a_response_that_is_no_event_stream(media: str) -> None:
    """A server that does not stream answers with JSON, a proxy in between with a page."""
    stream = await stream_of(HI, media=media)
    with pytest.raises(ValueError, match=f"'{media.partition(';')[0].lower()}' and no event stream"):
        from_openai(stream)
    await stream.close()


@pytest.mark.parametrize("media", ["text/event-stream; charset=utf-8", "text/plain", None])
async def test_a_server_that_says_nothing_in_particular(media: str | None) -> None:
    """Is taken at its word."""
    async with from_openai(await stream_of(HI, media=media)) as response:
        assert [text async for text in response.stream_text()] == ["Hi"]


async def test_a_whole_answer_to_a_request_for_a_stream() -> None:
    """Through `open_stream` the same is found when it is opened."""
    answer = httpx2.Response(200, json={"id": "c", "object": "chat.completion", "choices": []})
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: answer))
    async with (
        AsyncOpenAI(base_url="http://provider.example/v1", api_key="none", http_client=http) as client,
        open_stream(client.chat.completions.create, **ASK) as response,
    ):
        with pytest.raises(ValueError, match="'application/json' and no event stream"):
            await anext(response.stream_text())


async def test_another_api() -> None:
    request = httpx2.Request("POST", "http://provider.example/v1/completions", json={"model": "m"})
    stream = await stream_of(HI, request=request)
    with pytest.raises(TypeError, match="answers '/v1/completions': only chat completions and Responses"):
        from_openai(stream)
    await stream.close()


async def test_a_request_that_is_none() -> None:
    stream = await stream_of(HI)
    with pytest.raises(TypeError, match="request is the mapping of what `create\\(\\)` was given"):
        from_openai(stream, "gpt-4o")  # type: ignore[arg-type, unused-ignore]
    await stream.close()


async def test_open_stream_takes_the_method() -> None:
    """Not its result, not a blocking client's, and nothing that does not stream."""
    stream = await stream_of(HI)
    with pytest.raises(TypeError, match="takes the method itself"):
        open_stream(stream)  # type: ignore[arg-type, unused-ignore]
    await stream.close()
    blocking = pytest.raises(TypeError, match=r"needs a method of `AsyncOpenAI`.*cancelstream\.sync")
    with OpenAI(api_key="none") as client, blocking:
        open_stream(client.chat.completions.create, **ASK)
    async with AsyncOpenAI(api_key="none") as client:
        with pytest.raises(ValueError, match="always streams, and was given stream=False: leave it out"):
            open_stream(client.chat.completions.create, **ASK, stream=False)


async def test_chunks_of_a_response_that_has_none() -> None:
    """A response that wraps a pydantic-ai stream has no chunks of the SDK's, and says who has."""
    from pydantic_ai.models.test import TestModel

    from cancelstream import CancellableModel

    from .test_reading import ASKED, ModelRequestParameters

    async with CancellableModel(TestModel()).request_stream(ASKED, None, ModelRequestParameters()) as response:
        assert isinstance(response, CancellableStreamedResponse)
        with pytest.raises(TypeError, match=r"from_openai\(stream\)"):
            response.chunks()


async def test_azures_client(scripted_server: StartServer) -> None:
    """Its URLs name a deployment; the provider's base URL is what it would be without."""
    server = scripted_server(Answer(Text("Hi")))
    async with (
        AsyncAzureOpenAI(azure_endpoint=server.url, api_key="none", api_version="2025-01-01") as client,
        open_stream(client.chat.completions.create, **ASK) as response,
    ):
        assert [text async for text in response.stream_text()] == ["Hi"]
    assert server.records[0].path == "/openai/deployments/gpt-4o/chat/completions"
    assert response.provider_url == f"{server.url}/openai/"
