"""What is refused is closed: nobody else has a handle to it, and it would hold its connection, generating, for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, OpenAI

from cancelstream import CancellableStreamedResponse, open_stream
from cancelstream.sync import CancellableStream
from cancelstream.testing import Answer, ScriptedServer, Silence, StartServer, Text

from .support import ASK, stream_of

from_openai = CancellableStreamedResponse.from_openai

ASK_STREAM: Any = {**ASK, "stream": True}
NOT_STREAMED: Any = {**ASK, "extra_body": {"stream": False}}  # the server answers with JSON
SILENT = Answer(Text("0 ", "1 ", Silence()))
WHOLE = Answer(Text("Hi"))


class Narrow:
    """A client with room for one connection, and its server."""

    def __init__(self, client: AsyncOpenAI, server: ScriptedServer) -> None:
        self.client = client
        self.server = server

    async def serves(self) -> None:
        """The next request is served, on the one connection there is room for."""
        async with open_stream(self.client.chat.completions.create, **ASK) as response:
            assert [text async for text in response.stream_text()] == ["Hi"]


@pytest_asyncio.fixture
async def narrow(scripted_server: StartServer) -> AsyncIterator[Callable[..., Narrow]]:
    clients: list[AsyncOpenAI] = []

    def make(*answers: Answer) -> Narrow:
        server = scripted_server(*answers)
        http = httpx2.AsyncClient(limits=httpx2.Limits(max_connections=1), timeout=httpx2.Timeout(30, pool=5))
        clients.append(AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0, http_client=http))
        return Narrow(clients[-1], server)

    yield make
    for client in clients:
        await client.close()


async def test_a_whole_answer_instead_of_a_stream(narrow: Callable[..., Narrow]) -> None:
    """A server or a proxy that ignores `stream=True`: the next request goes out, through either door."""
    wire = narrow(WHOLE, WHOLE, WHOLE, WHOLE)
    async with open_stream(wire.client.chat.completions.create, **NOT_STREAMED) as response:
        with pytest.raises(ValueError, match="no event stream"):
            await anext(response.stream_text())
    await wire.serves()
    with pytest.raises(ValueError, match="no event stream"):
        from_openai(await wire.client.chat.completions.create(**{**NOT_STREAMED, "stream": True}))
    await wire.serves()


async def test_another_api(narrow: Callable[..., Narrow]) -> None:
    wire = narrow(SILENT, WHOLE)
    stream: Any = await wire.client.chat.completions.create(**ASK_STREAM)
    stream.response.request.url = stream.response.request.url.copy_with(path="/v1/elsewhere")
    with pytest.raises(TypeError, match="only chat completions and Responses are understood"):
        from_openai(stream)
    await wire.server.records[0].until_disconnected()
    await wire.serves()


async def test_a_stream_that_was_read_from(narrow: Callable[..., Narrow]) -> None:
    wire = narrow(SILENT, WHOLE)
    stream = await wire.client.chat.completions.create(**ASK_STREAM)
    await anext(stream)
    with pytest.raises(ValueError, match="read from before"):
        from_openai(stream)
    await wire.server.records[0].until_disconnected()
    await wire.serves()


class Traced:
    """As LangSmith's: a wrapper that has a stream, and closes nothing before it was read."""

    def __init__(self, stream: Any) -> None:
        self._inside = (chunk async for chunk in stream)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._inside

    async def __anext__(self) -> Any:
        return await anext(self._inside)


def around(create: Callable[..., Awaitable[Any]], wrap: Callable[[Any], Any]) -> Callable[..., Any]:
    """A wrapped client's `create`."""

    async def wrapped(**kwargs: Any) -> Any:
        return wrap(await create(**kwargs))

    return wrapped


async def chunks_of(stream: Any) -> AsyncIterator[Any]:
    async for chunk in stream:
        yield chunk


def closure_of(stream: Any) -> AsyncIterator[Any]:
    async def chunks() -> AsyncIterator[Any]:
        async for chunk in stream:
            yield chunk

    return chunks()


@pytest.mark.parametrize("wrap", [Traced, chunks_of, closure_of, lambda stream: [stream]])
async def test_a_wrapped_client(narrow: Callable[..., Narrow], wrap: Callable[[Any], Any]) -> None:
    """A function that returns something around the stream: the provider is told, and the next request goes out."""
    wire = narrow(SILENT, WHOLE)
    async with open_stream(around(wire.client.chat.completions.create, wrap), **ASK) as response:
        with pytest.raises(TypeError, match="expected openai's AsyncStream"):
            await anext(response.stream_text())
        await wire.server.records[0].until_disconnected()
        await wire.serves()
    assert response.usage.output.value == 0


async def test_a_raw_response(narrow: Callable[..., Narrow]) -> None:
    """The error says what to leave out."""
    wire = narrow(SILENT, WHOLE)
    async with open_stream(wire.client.chat.completions.with_raw_response.create, **ASK) as response:
        with pytest.raises(TypeError, match="leave out `with_raw_response`"):
            await anext(response.stream_text())
    await wire.server.records[0].until_disconnected()
    await wire.serves()


async def test_a_context_manager_around_a_request(narrow: Callable[..., Narrow]) -> None:
    """The request that it would have made is not made, and no coroutine is left that nobody awaits."""
    wire = narrow(WHOLE)
    async with open_stream(wire.client.chat.completions.with_streaming_response.create, **ASK) as response:
        with pytest.raises(TypeError, match="not a context manager around it"):
            await anext(response.stream_text())
    await wire.serves()


async def test_the_sdks_helper() -> None:
    """`client.chat.completions.stream` makes no request by itself: the error names the method that does."""
    async with AsyncOpenAI(api_key="none") as client:
        for helper in (client.chat.completions.stream, client.responses.stream):
            with pytest.raises(TypeError, match=r"pass `client\.chat\.completions\.create`"):
                open_stream(helper, **ASK)


async def test_a_task_or_coroutine(narrow: Callable[..., Narrow]) -> None:
    """Its request is not made, or ended."""
    wire = narrow(Answer(before_headers=Silence()), WHOLE)
    task = asyncio.create_task(wire.client.chat.completions.create(**ASK_STREAM))
    record = await wire.server.until_request(0)
    with pytest.raises(TypeError, match="has to be awaited first"):
        from_openai(task)  # type: ignore[arg-type, unused-ignore]
    await record.until_disconnected()
    with pytest.raises(TypeError, match="has to be awaited first"):
        from_openai(wire.client.chat.completions.create(**ASK_STREAM))  # type: ignore[arg-type, unused-ignore]
    await wire.serves()


async def test_a_blocking_clients_stream(scripted_server: StartServer) -> None:
    """Is closed in the call that refuses it."""
    server = scripted_server(SILENT)
    with OpenAI(base_url=server.base_url, api_key="none") as client:
        stream: Any = client.chat.completions.create(**ASK_STREAM)
        with pytest.raises(TypeError, match="belongs to a blocking client"):
            from_openai(stream)
        assert stream.response.is_closed
        await server.records[0].until_disconnected()


async def test_an_asynchronous_stream_in_a_blocking_wrapper(narrow: Callable[..., Narrow]) -> None:
    """On its loop it is closed; in another thread its socket is shut."""
    wire = narrow(SILENT, SILENT, WHOLE)
    for elsewhere in (False, True):
        stream: Any = await wire.client.chat.completions.create(**ASK_STREAM)
        with pytest.raises(TypeError, match="belongs to an asynchronous client"):
            await asyncio.to_thread(CancellableStream, stream) if elsewhere else CancellableStream(stream)
        await wire.server.records[int(elsewhere)].until_disconnected()
        await stream.close()
    await wire.serves()


async def test_what_is_no_stream_is_left_alone(narrow: Callable[..., Narrow]) -> None:
    """A client that is passed by mistake still works, and so does another stream of it."""
    wire = narrow(SILENT, WHOLE)
    async with from_openai(await wire.client.chat.completions.create(**ASK_STREAM)) as response:
        assert await anext(response.stream_text(delta=True)) == "0 "
        for mistake in (wire.client, wire.client.chat.completions, response, [response]):
            with pytest.raises(TypeError, match="expected openai's AsyncStream"):
                from_openai(mistake)  # type: ignore[arg-type, unused-ignore]
        assert await anext(response.stream_text(delta=True)) == "1 "
    await wire.serves()


async def test_a_wrapper_around_two_streams() -> None:
    """Which of them it reads cannot be known: both are left to it."""
    streams = [await stream_of(b""), await stream_of(b"")]
    with pytest.raises(TypeError, match="expected openai's AsyncStream"):
        from_openai(streams)  # type: ignore[arg-type, unused-ignore]
    assert not any(stream.response.is_closed for stream in streams)
    for stream in streams:
        await stream.close()
