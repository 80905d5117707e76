"""strands' model classes, each over a socket: a cancel is seen by the provider at once, silent or not."""

from __future__ import annotations

import asyncio
import json
import struct
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

pytest.importorskip("strands", reason="needs cancelstream[strands]")

from strands import Agent
from strands.models.model import Model
from strands_support import LIMIT, STUCK, model_for, reading, record_of

from cancelstream.strands import stream_async
from cancelstream.testing import Answer, Replay, ScriptedServer, Silence
from cancelstream.testing._plugin import StartServer

CLAUDE: list[Any] = [
    {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": "claude-scripted",
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 10, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "one"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " two"}},
    {"type": "content_block_stop", "index": 0},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "t", "name": "book", "input": {}},
    },
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"city": "Par'}},
]


def anthropic_model(server: ScriptedServer) -> Model:
    from strands.models.anthropic import AnthropicModel

    arguments = {"api_key": "not-a-key", "base_url": server.url, "max_retries": 0}
    return AnthropicModel(client_args=arguments, model_id="claude-scripted", max_tokens=100)


def litellm_model(server: ScriptedServer) -> Model:
    litellm = pytest.importorskip("strands.models.litellm", reason="needs litellm")
    arguments = {"api_key": "not-a-key", "api_base": server.base_url, "max_retries": 0}
    return litellm.LiteLLMModel(client_args=arguments, model_id="openai/gpt-4o")


def responses_model(server: ScriptedServer) -> Model:
    from strands.models.openai_responses import OpenAIResponsesModel

    arguments = {"api_key": "not-a-key", "base_url": server.base_url, "max_retries": 0}
    return OpenAIResponsesModel(client_args=arguments, model_id="gpt-4o")


def routed_model(server: ScriptedServer) -> Model:
    from strands.models.routing import ModelRouter

    return cast("Model", ModelRouter(models=[model_for(server)]))


MODELS: dict[str, tuple[Callable[[ScriptedServer], Model], Answer | Replay]] = {
    "openai": (model_for, STUCK),
    "anthropic": (anthropic_model, Replay([*CLAUDE[:4], Silence()])),
    "litellm": (litellm_model, STUCK),
    "responses": (responses_model, STUCK),
    "routed": (routed_model, STUCK),
}


@pytest.mark.parametrize("paused", [False, True], ids=["silent", "paused"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")  # litellm's own
async def test_the_provider_sees_it_at_once(scripted_server: StartServer, name: str, paused: bool):
    """While it is silent, and while the consumer is busy with an event; and what arrived is kept."""
    make, turn = MODELS[name]
    server = scripted_server(turn)
    agent = Agent(model=make(server), callback_handler=None)
    go_on = asyncio.Event()
    stream = stream_async(agent, "count")

    async def consume() -> AsyncIterator[dict[str, Any]]:
        async for event in stream:
            yield event
            if paused and event.get("data") == " two":
                await go_on.wait()

    async with stream, reading(consume()) as reader:
        await reader.until_texts(2)
        await stream.cancel("enough")
        # Awaiting the cancel, the connection is closed: the server only has to notice.
        assert await server.records[0].until_disconnected(LIMIT)
        go_on.set()
        await reader.end()
    assert agent.messages[-1]["content"] == [{"text": "one two"}]
    assert record_of(agent.messages[-1])["reason"] == "enough"
    assert stream.usage.output.low >= 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")  # litellm's own
async def test_before_the_headers(scripted_server: StartServer, name: str):
    """A request that waits for its headers is closed as well."""
    make, _ = MODELS[name]
    server = scripted_server(Answer(before_headers=Silence()))
    agent = Agent(model=make(server), callback_handler=None)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await server.until_request()
        await stream.cancel()
        assert await server.records[0].until_disconnected(LIMIT)
        assert reader.texts == []


async def test_a_cut_tool_use_of_anthropics(scripted_server: StartServer):
    """That class hands tool uses out as they come: what came is kept aside."""
    server = scripted_server(Replay([*CLAUDE, Silence()]))
    agent = Agent(model=anthropic_model(server), callback_handler=None)
    async with stream_async(agent, "fly") as stream, reading(stream) as reader:
        await reader.until(lambda reader: '"Par' in str(reader.events[-1:]))
        await stream.cancel()
        await reader.end()
    assert agent.messages[-1]["content"] == [{"text": "one two"}]
    dropped = record_of(agent.messages[-1])["salvage"]["dropped"]
    assert dropped == [{"toolUse": {"toolUseId": "t", "name": "book", "input": '{"city": "Par'}}]


@pytest.mark.filterwarnings("ignore")  # litellm's own
async def test_a_cut_tool_use_that_the_class_keeps_to_itself(scripted_server: StartServer):
    """LiteLLM's class, like OpenAI's, gathers a tool use to the end: what it had is found."""
    from cancelstream.testing import Burst, Text, ToolCall

    answer = Answer(Burst(Text("one"), ToolCall("book", '{"city": "Par', id="t"), Text(" two")), Text(Silence()))
    server = scripted_server(answer)
    agent = Agent(model=litellm_model(server), callback_handler=None)
    async with stream_async(agent, "fly") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        await stream.cancel()
        await reader.end()
    dropped = record_of(agent.messages[-1])["salvage"]["dropped"]
    assert dropped == [{"toolUse": {"toolUseId": "t", "name": "book", "input": '{"city": "Par'}}]


@pytest.mark.parametrize("play", ["silent:2", "paused", "never"])
async def test_http2(play: str):
    """With a client of the user's own that speaks HTTP/2, the request is reset and the connection stays."""
    import httpx2
    import openai
    from h2_server import H2Server
    from strands.models.openai import OpenAIModel

    with H2Server() as server:
        async with openai.AsyncOpenAI(
            api_key="not-a-key",
            base_url=server.base_url,
            default_headers={"x-play": "silent:2" if play == "paused" else play},
            http_client=httpx2.AsyncClient(http1=False, http2=True),
        ) as client:
            agent = Agent(model=OpenAIModel(client=client, model_id="gpt-4o"), callback_handler=None)
            go_on = asyncio.Event()
            stream = stream_async(agent, "count")

            async def consume() -> AsyncIterator[dict[str, Any]]:
                async for event in stream:
                    yield event
                    if play == "paused" and "data" in event:
                        await go_on.wait()

            async with stream, reading(consume()) as reader:
                await server.until_stream(0)
                await reader.until_texts({"silent:2": 2, "paused": 1, "never": 0}[play])
                await stream.cancel()
                seen = await server.until_told(0)
                assert seen.reset == 8  # CANCEL
                assert not seen.lost
                go_on.set()
                await reader.end()


# --- classes that speak no server-sent events -------------------------------------------------------------------------


class Left:
    """How far a provider on a socket is."""

    def __init__(self) -> None:
        self.port = 0
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()
        self.gone = asyncio.Event()


@asynccontextmanager
async def provider(
    kind: str, pieces: Sequence[bytes], *, at_once: bool = True, ends: bool = False
) -> AsyncIterator[Left]:
    """Answer a request with these pieces, in chunks of HTTP, and end it or wait for the client to leave."""
    left = Left()
    if at_once:
        left.answers.set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            left.asked.set()
            await left.answers.wait()
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
            for piece in pieces:
                writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            if ends:
                writer.write(b"0\r\n\r\n")
                return
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
        finally:
            left.gone.set()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    left.port = server.sockets[0].getsockname()[1]
    async with server:
        yield left


@pytest.mark.parametrize("paused", [False, True], ids=["silent", "paused"])
async def test_ollama(paused: bool):
    """Lines of JSON over HTTP: seen at once."""
    ollama = pytest.importorskip("strands.models.ollama", reason="needs ollama")
    said = {"model": "llama", "created_at": "2026-01-01T00:00:00Z", "done": False}
    lines = [json.dumps({**said, "message": {"role": "assistant", "content": text}}) + "\n" for text in ("one", " two")]
    async with provider("application/x-ndjson", [line.encode() for line in lines]) as left:
        agent = Agent(
            model=ollama.OllamaModel(f"http://127.0.0.1:{left.port}", model_id="llama"), callback_handler=None
        )
        go_on = asyncio.Event()
        stream = stream_async(agent, "count")

        async def consume() -> AsyncIterator[dict[str, Any]]:
            async for event in stream:
                yield event
                if paused and event.get("data") == " two":
                    await go_on.wait()

        async with stream, reading(consume()) as reader:
            await reader.until_texts(2)
            await stream.cancel()
            await asyncio.wait_for(left.gone.wait(), LIMIT)
            go_on.set()
            await reader.end()
    assert agent.messages[-1]["content"] == [{"text": "one two"}]


def amazon(kind: str, payload: dict[str, Any]) -> bytes:
    """A message of Amazon's event stream encoding: lengths, their checksum, headers, JSON, a checksum of it all."""
    headers = b""
    for name, value in ((":message-type", "event"), (":event-type", kind), (":content-type", "application/json")):
        headers += bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
    body = json.dumps(payload).encode()
    prelude = struct.pack(">II", len(headers) + len(body) + 16, len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + body
    return message + struct.pack(">I", zlib.crc32(message))


BEDROCK = [
    amazon("messageStart", {"role": "assistant"}),
    amazon("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "one"}}),
    amazon("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": " two"}}),
]


def bedrock_agent(port: int) -> Agent:
    import boto3
    from strands.models.bedrock import BedrockModel

    session = boto3.Session(aws_access_key_id="none", aws_secret_access_key="none", region_name="us-east-1")
    model = BedrockModel(boto_session=session, endpoint_url=f"http://127.0.0.1:{port}", model_id="anthropic.claude-v2")
    return Agent(model=model, callback_handler=None)


async def test_bedrock():
    """Its thread waits in a read that nothing of boto3's ends: the socket under it is stopped, and it ends."""
    async with provider("application/vnd.amazon.eventstream", BEDROCK) as left:
        agent = bedrock_agent(left.port)
        async with stream_async(agent, "count") as stream, reading(stream) as reader:
            await reader.until_texts(2)
            await stream.cancel("enough")
            await asyncio.wait_for(left.gone.wait(), LIMIT)
            await reader.end()
    assert agent.messages[-1]["content"] == [{"text": "one two"}]
    assert record_of(agent.messages[-1])["reason"] == "enough"
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_bedrock_before_its_headers():
    """There is no socket to be had yet: the run ends at once, and the request is stopped when its headers come.

    What the provider does until then nobody knows, and the usage says so.
    """
    async with provider("application/vnd.amazon.eventstream", BEDROCK[:1], at_once=False) as left:
        agent = bedrock_agent(left.port)
        async with stream_async(agent, "count") as stream, reading(stream) as reader:
            await asyncio.wait_for(left.asked.wait(), LIMIT)
            await stream.cancel()
            await reader.end()
        assert not left.gone.is_set()
        assert stream.usage.output.high is None
        assert not stream.usage.complete
        left.answers.set()
        await asyncio.wait_for(left.gone.wait(), LIMIT)
    await asyncio.get_running_loop().shutdown_default_executor()


async def test_bedrock_without_us():
    """What is hooked into its client does nothing in a run that is not ours."""
    end = [amazon("contentBlockStop", {"contentBlockIndex": 0}), amazon("messageStop", {"stopReason": "end_turn"})]
    async with provider("application/vnd.amazon.eventstream", [*BEDROCK, *end], ends=True) as left:
        agent = bedrock_agent(left.port)
        async with stream_async(agent, "count") as stream:
            async for _ in stream:
                pass
        assert agent.messages[-1]["content"] == [{"text": "one two"}]
        assert str(await agent.invoke_async("again")).strip() == "one two"


# --- classes of the user's own ---------------------------------------------------------------------------------------


class Own(Model):
    """A model of the user's own: what it streams is given."""

    def __init__(self, chunks: Callable[[Any], Any]) -> None:
        self.chunks = chunks

    def update_config(self, **config: Any) -> None:
        raise NotImplementedError

    def get_config(self) -> Any:
        return {}

    def structured_output(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError

    def stream(self, *_args: Any, **kwargs: Any) -> Any:
        return self.chunks(kwargs.get("cancel_signal"))


def text(piece: str) -> dict[str, Any]:
    return {"contentBlockDelta": {"delta": {"text": piece}}}


async def test_a_model_that_never_waits():
    """It computes in this thread: between two chunks it can be closed, and it is."""
    made = 0
    closed = False

    async def chunks(_: Any) -> AsyncIterator[Any]:
        nonlocal made, closed
        try:
            while True:
                made += 1
                yield text("x")
        finally:
            closed = True

    agent = Agent(model=Own(chunks), callback_handler=None)
    async with stream_async(agent, "count") as stream:
        async for event in stream:
            if "data" in event:
                break
    assert closed
    assert made > 1
    assert agent.messages[-1]["content"] == [{"text": "x"}]
    # What was drained after the close is counted as far as the deadline of the closing lets it be.
    assert 1 <= stream.usage.output.low <= made


async def test_an_iterator_that_cannot_be_closed():
    """A model may stream anything that can be iterated."""

    class Pieces:
        def __init__(self, _: Any) -> None:
            self.left = ["one", " two"]

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> Any:
            if not self.left:
                await asyncio.get_running_loop().create_future()
            return text(self.left.pop(0))

    agent = Agent(model=Own(Pieces), callback_handler=None)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        await stream.cancel()
        await reader.end()
    assert agent.messages[-1]["content"] == [{"text": "one two"}]


async def test_the_signal_that_a_model_is_given():
    """It is set when the call is stopped, and stays so; and a model may set it, as in strands."""
    signals: list[Any] = []

    async def chunks(signal: Any) -> AsyncIterator[Any]:
        signals.append(signal)
        yield text("one")
        if len(signals) == 1:
            await asyncio.get_running_loop().create_future()
        signal.set()
        yield text(" two")

    agent = Agent(model=Own(chunks), callback_handler=None)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(1)
        assert not signals[0].is_set()
        await stream.cancel()
        await reader.end()
    assert signals[0].is_set()
    assert not agent.cancel_signal.is_set()
    events = [event async for event in stream_async(agent, "again")]
    assert events[-1]["result"].stop_reason == "cancelled"


async def test_gathered_in_another_way():
    """What stands in a variable of that name, in another version of a class, is looked at softly."""
    from cancelstream._upstream.strands import gathered_calls

    space: dict[str, Any] = {"__name__": "strands.models.newer"}
    exec("def read():\n    tool_calls = {0: ['something else']}\n    raise LookupError", space)
    with pytest.raises(LookupError) as raised:
        space["read"]()
    assert gathered_calls(raised.value.__traceback__) == []
