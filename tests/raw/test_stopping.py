"""Raw streams over a real connection: stopped at every moment, and what is left of them then."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic_ai.messages import ModelResponse

from cancelstream import CancellableStreamedResponse, is_incomplete, open_stream
from cancelstream.testing import (
    Answer,
    Burst,
    Cut,
    ErrorEvent,
    HttpError,
    Reasoning,
    Replay,
    ScriptedServer,
    Silence,
    StartServer,
    Text,
    ToolCall,
    Usage,
)

from .support import created, texts

MESSAGES: Any = [{"role": "user", "content": "Hi"}]
LIMIT = 20
READINGS = ["text", "chunks", "events"]

_clients: list[AsyncOpenAI] = []


@pytest_asyncio.fixture(autouse=True)
async def closed_clients() -> AsyncIterator[None]:
    yield
    while _clients:
        await _clients.pop().close()


def client_of(server: ScriptedServer, **kwargs: Any) -> AsyncOpenAI:
    client = AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0, **kwargs)
    _clients.append(client)
    return client


def chat(server: ScriptedServer, **kwargs: Any) -> CancellableStreamedResponse:
    return open_stream(client_of(server).chat.completions.create, model="gpt-4o", messages=MESSAGES, **kwargs)


def background(server: ScriptedServer) -> CancellableStreamedResponse:
    return open_stream(client_of(server).responses.create, model="gpt-4o", input="Hi", background=True)


class Reader:
    """Reads in a task of its own; `has(text)` returns when that has arrived and the reader waits for more."""

    def __init__(self, response: CancellableStreamedResponse, how: str) -> None:
        self.response = response
        self.items: list[Any] = []
        self._more = asyncio.Event()
        self.task = asyncio.create_task(self._read(reading(response, how)))

    async def _read(self, source: AsyncIterator[Any]) -> None:
        async for item in source:
            self.items.append(item)
            self._more.set()

    async def has(self, look: Callable[[ModelResponse], bool]) -> None:
        async with asyncio.timeout(LIMIT):
            while not look(self.response.get()):
                self._more.clear()
                await self._more.wait()

    async def ended(self) -> None:
        await asyncio.wait_for(self.task, LIMIT)


def says_hello(message: ModelResponse) -> bool:
    return message.text == "Hello"


def reading(response: CancellableStreamedResponse, how: str) -> AsyncIterator[Any]:
    match how:
        case "text":
            return response.stream_text(delta=True)
        case "chunks":
            return response.chunks()
        case _:
            return aiter(response)


# --- from before the request to after the end ---------------------------------------------------------------------


@pytest.mark.parametrize("how", READINGS)
async def test_before_the_request(scripted_server: StartServer, how: str) -> None:
    """Cancelled before it was sent, nothing is sent, and the usage is a true zero."""
    server = scripted_server(Answer(Text("Hi")))
    async with chat(server) as response:
        response.cancel("early")
        assert [each async for each in reading(response, how)] == []
    assert server.records == ()
    assert (response.cancelled, response.cancel_reason) == (True, "early")
    assert (response.usage.input.high, response.usage.output.high) == (0, 0)
    assert is_incomplete(response.get())


@pytest.mark.parametrize("how", READINGS)
async def test_before_the_headers(scripted_server: StartServer, how: str) -> None:
    """A request that waits for its headers ends at once, from another task; the server sees it."""
    server = scripted_server(Answer(before_headers=Silence()))
    async with chat(server) as response:
        pulling = asyncio.ensure_future(anext(reading(response, how), None))
        record = await server.until_request(0)
        await asyncio.wait_for(response.cancel(), LIMIT)
        assert await asyncio.wait_for(pulling, LIMIT) is None
        await record.until_disconnected()
    assert response.get().state == "interrupted"
    # The provider may have taken it or refused it.
    asked = response.usage.input
    assert asked.low == 0 < (asked.value or 0) <= (asked.high or 0)


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("by_thread", [False, True], ids=["a task", "a thread"])
async def test_while_the_server_is_silent(scripted_server: StartServer, how: str, by_thread: bool) -> None:
    """A pull that waits ends without an error; what arrived is kept, and counted."""
    server = scripted_server(Answer(Text("Hel", "lo"), Silence()))
    async with chat(server) as response:
        reader = Reader(response, how)
        await reader.has(says_hello)
        if by_thread:
            thread = threading.Thread(target=response.cancel)
            thread.start()
            thread.join()
        else:
            response.cancel()
        await reader.ended()
        await server.records[0].until_disconnected()
        assert [each async for each in reading(response, how)] == []
    assert response.get().text == "Hello"
    assert response.get().state == "interrupted"
    assert response.usage.output.low >= 2
    assert response.usage.provenance == "estimated"
    assert not response.usage.complete


@pytest.mark.parametrize("how", READINGS)
async def test_from_the_loop_itself(scripted_server: StartServer, how: str) -> None:
    """Of what came in one read nothing more is handed out after `cancel()`; it arrived, so it is counted."""
    server = scripted_server(Answer(Burst(Text(*["word "] * 50)), Silence()))
    async with chat(server) as response:
        number = 0
        async for _ in reading(response, how):
            number += 1
            if number == 10:
                response.cancel()
        assert number == 10
    assert 8 <= response.get().text.count("word") <= 10
    assert response.usage.output.low > 10


@pytest.mark.parametrize("how", READINGS)
async def test_left_early(scripted_server: StartServer, how: str) -> None:
    """`break` and leaving the context stop it too; another request goes out on the same client."""
    server = scripted_server(Answer(Text("Hel", "lo"), Silence()), Answer(Text("again")))
    client = client_of(server)
    create = client.chat.completions.create
    async with open_stream(create, model="gpt-4o", messages=MESSAGES) as response:
        async for _ in reading(response, how):
            break
    await server.records[0].until_disconnected()
    assert (response.cancelled, response.cancel_reason) == (True, "left")
    assert response.get().state == "interrupted"
    async with open_stream(create, model="gpt-4o", messages=MESSAGES) as second:
        assert [piece async for piece in second.stream_text(delta=True)] == ["again"]


@pytest.mark.parametrize("how", READINGS)
async def test_after_the_end(scripted_server: StartServer, how: str) -> None:
    """A whole answer stays whole, with the provider's own count; its connection is used again."""
    server = scripted_server(Answer(Text("Hel", "lo"), usage=Usage(9, 4)), Answer(Text("again")))
    client = client_of(server)
    stream = await client.chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
    async with CancellableStreamedResponse.from_openai(stream) as response:
        async for _ in reading(response, how):
            pass
        response.cancel("late")
        await response.cancel()
    assert not response.cancelled
    message = response.get()
    assert (message.text, message.state, message.finish_reason) == ("Hello", "complete", "stop")
    assert (response.usage.input_tokens, response.usage.output_tokens) == (9, 4)
    assert (response.usage.provenance, response.usage.complete) == ("reported", True)
    await client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert [record.connection for record in server.records] == [0, 0]


@pytest.mark.parametrize("how", READINGS)
async def test_a_task_that_is_cancelled(scripted_server: StartServer, how: str) -> None:
    """A cancellation that is not ours is raised, and what arrived is kept all the same."""
    server = scripted_server(Answer(Text("Hel", "lo"), Silence()))
    async with chat(server) as response:
        reader = Reader(response, how)
        await reader.has(says_hello)
        reader.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader.ended()
    await server.records[0].until_disconnected()
    assert (response.get().text, response.get().state) == ("Hello", "interrupted")


# --- what an answer may hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("api", ["chat", "responses"])
@pytest.mark.parametrize("how", ["chunks", "events"])
async def test_a_tool_call_that_is_cut(scripted_server: StartServer, api: str, how: str) -> None:
    """Reasoning, text and a tool call that is stopped amid its arguments: all of it is kept as it came."""
    call = ToolCall("weather", '{"city": ', '"Par', Silence())
    server = scripted_server(Answer(Reasoning("Let me", " see"), Text("One", " moment."), call))
    client = client_of(server)
    if api == "chat":
        response = open_stream(client.chat.completions.create, model="gpt-4o", messages=MESSAGES)
    else:
        response = open_stream(client.responses.create, model="gpt-4o", input="Hi")
    async with response:
        reader = Reader(response, how)
        await reader.has(lambda message: any(call.args == '{"city": "Par' for call in message.tool_calls))
        response.cancel()
        await reader.ended()
    kinds = [(part.part_kind, getattr(part, "content", None) or part.args) for part in response.get().parts]
    assert kinds == [("thinking", "Let me see"), ("text", "One moment."), ("tool-call", '{"city": "Par')]
    assert response.get().state == "interrupted"


async def _to_the_end(source: AsyncIterator[Any]) -> None:
    async for _ in source:
        pass


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize(
    ("end", "error"),
    [
        (ErrorEvent("overloaded"), openai.APIError),
        (Cut("reset"), openai.APIConnectionError),
        (Cut("eof"), openai.APIConnectionError),
    ],
    ids=["an error event", "reset", "eof"],
)
async def test_an_answer_that_breaks(scripted_server: StartServer, how: str, end: Any, error: Any) -> None:
    """The SDK's own error comes out of every reading; what came before it is kept, and is no cancel."""
    server = scripted_server(Answer(Text("Hel", "lo"), end))
    async with chat(server) as response:
        with pytest.raises(error):
            await _to_the_end(reading(response, how))
    assert not response.cancelled
    assert response.get().state == "incomplete"
    assert is_incomplete(response.get())


@pytest.mark.parametrize("how", READINGS)
@pytest.mark.parametrize("end", ["end", "truncated"])
async def test_a_stream_without_its_end(scripted_server: StartServer, how: str, end: Any) -> None:
    """Without `[DONE]` a stream ends where its bytes end, as for the SDK: half an event is none."""
    server = scripted_server(Answer(Text("Hel", "lo"), Cut(end)))
    async with chat(server) as response:
        await _to_the_end(reading(response, how))
    assert response.get().text == "Hello"


@pytest.mark.parametrize("how", READINGS)
async def test_create_raises(scripted_server: StartServer, how: str) -> None:
    """What `create()` raises is raised by the first read, as it is."""
    server = scripted_server(HttpError(429, "slow down"))
    async with chat(server) as response:
        with pytest.raises(openai.RateLimitError, match="slow down"):
            await anext(reading(response, how))


async def test_on_a_legacy_client(scripted_server: StartServer) -> None:
    """With `httpx.AsyncClient`, which openai 3 supports too: the fast lane, and the cancel, are the same."""
    server = scripted_server(Answer(Text("Hel", "lo")), Answer(Text("Hel", "lo"), Silence()))
    client = client_of(server, http_client=httpx.AsyncClient())
    create = client.chat.completions.create
    async with open_stream(create, model="gpt-4o", messages=MESSAGES) as response:
        assert [text async for text in response.stream_text()] == ["Hel", "Hello"]
    async with open_stream(create, model="gpt-4o", messages=MESSAGES) as response:
        async for text in response.stream_text():
            if text == "Hello":
                response.cancel()
    await server.records[1].until_disconnected()
    assert response.get().text == "Hello"


# --- background responses -----------------------------------------------------------------------------------------

JOB = (*created(background=True), *texts("Hel", "lo"))
"""The beginning of a response that the server goes on with when nobody listens."""


@pytest.mark.parametrize("how", READINGS)
async def test_a_background_response_is_cancelled_on_the_server(scripted_server: StartServer, how: str) -> None:
    """Hanging up does not stop a background response, so `cancel()` asks the server to; leaving waits for that."""
    server = scripted_server(Replay([*JOB, Silence()]), Answer(Text("Hello")))
    async with background(server) as response:
        async for _ in reading(response, how):
            if response.get().text == "Hello":
                assert response.cancel("stop") is not None  # plain: nothing is awaited
    assert [(record.method, record.path) for record in server.records] == [
        ("POST", "/v1/responses"),
        ("POST", "/v1/responses/resp_1/cancel"),
    ]
    await server.records[0].until_disconnected()
    message = response.get()
    assert (message.text, message.state, response.cancel_reason) == ("Hello", "interrupted", "stop")


async def test_a_background_response_of_an_open_stream(scripted_server: StartServer) -> None:
    """The same for a stream that was opened before, and awaiting the cancel waits for the server's word."""
    server = scripted_server(Replay([*JOB, Silence()]), Answer(Text("Hello")))
    client = client_of(server)
    stream = await client.responses.create(model="gpt-4o", input="Hi", background=True, stream=True)
    async with CancellableStreamedResponse.from_openai(stream) as response:
        await anext(response.stream_text())
        await response.cancel()
        assert server.records[1].path == "/v1/responses/resp_1/cancel"
        assert server.records[1].headers["authorization"] == "Bearer none"


@pytest.mark.parametrize("refusal", [HttpError(409, "it has ended"), HttpError(500), Answer(before_headers=Cut("eof"))])
async def test_a_server_that_does_not_cancel_it(scripted_server: StartServer, refusal: Any) -> None:
    """Whatever becomes of that request, nothing is raised: the answer may have ended meanwhile."""
    server = scripted_server(Replay([*JOB, Silence()]), refusal)
    async with background(server) as response:
        async for _ in response.stream_text():
            response.cancel()
        await response.cancel()
    assert len(server.records) == 2
    assert response.get().state == "interrupted"


async def test_a_client_that_is_closed_meanwhile(scripted_server: StartServer) -> None:
    """Nor if the client cannot send it any more."""
    server = scripted_server(Replay([*JOB, Silence()]))
    response = background(server)
    await anext(response.stream_text())
    await _clients[0].close()
    await response.cancel()
    await response.close()
    assert len(server.records) == 1


async def test_a_background_response_that_is_only_left_goes_on(scripted_server: StartServer) -> None:
    """It is what background is for: the message says where it can be taken up, and nothing is cancelled."""
    server = scripted_server(Replay([*JOB, Silence()]))
    async with background(server) as response:
        await anext(response.stream_text())
    assert len(server.records) == 1
    message = response.get()
    assert (message.state, message.provider_response_id) == ("suspended", "resp_1")


async def test_one_that_is_taken_up_again_is_cancelled_too(scripted_server: StartServer) -> None:
    """Its beginning does not come again, but what was asked for says which one it is."""
    server = scripted_server(Replay([*texts("lo", start=5), Silence()]), Answer(Text("Hello")))
    client = client_of(server)
    async with open_stream(client.responses.retrieve, response_id="resp_1", starting_after=4) as response:
        async for text in response.stream_text():
            assert text == "lo"
            response.cancel()
    assert [record.path for record in server.records] == ["/v1/responses/resp_1", "/v1/responses/resp_1/cancel"]


async def test_a_whole_background_response_is_left_alone(scripted_server: StartServer) -> None:
    """After its end there is nothing to cancel; and a response that is in no background ends with its connection."""
    server = scripted_server(Answer(Text("Hel", "lo")), Answer(Text("Hel", "lo"), Silence()))
    async with background(server) as response:
        [_ async for _ in response.stream_text()]
        await response.cancel()
    async with open_stream(client_of(server).responses.create, model="gpt-4o", input="Hi") as response:
        async for _ in response.stream_text():
            response.cancel()
    assert len(server.records) == 2
