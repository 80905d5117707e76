"""pydantic-ai's UI adapters: a stop is told in the protocol's own words, and read back with its own types."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from ag_ui.core import CustomEvent, Event, RunAgentInput, RunFinishedEvent, RunStartedEvent
from openai import AsyncOpenAI
from pydantic import TypeAdapter
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.ui.ag_ui import AGUIAdapter
from pydantic_ai.ui.vercel_ai import VercelAIAdapter, response_types
from pydantic_ai.ui.vercel_ai.request_types import UIMessage
from starlette.requests import Request
from starlette.types import Message

from cancelstream import MemoryStopRegistry, StreamUsage, is_incomplete, run_stream, run_stream_events
from cancelstream.starlette import CancellableEventResponse, EventEncoder, run_adapter
from cancelstream.starlette._adapter import AdapterRun
from cancelstream.testing import Answer, Cut, Gate, ScriptedServer, Silence, Text, ToolCall

LIMIT = 10.0

VERCEL = {
    "trigger": "submit-message",
    "id": "chat-1",
    "messages": [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hello"}]}],
}
AG_UI = {
    "threadId": "t", "runId": "r", "state": {}, "tools": [], "context": [], "forwardedProps": {},
    "messages": [{"id": "m1", "role": "user", "content": "hello"}],
}  # fmt: skip
AG_UI_1_0 = {**AG_UI, "protocolVersion": "1.0"}

ADAPTERS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "vercel": (VercelAIAdapter, VERCEL, {"sdk_version": 6}),
    "ag-ui": (AGUIAdapter, AG_UI, {}),
    "ag-ui 1.0": (AGUIAdapter, AG_UI_1_0, {"include_usage": True}),
}

CHUNKS: Any = TypeAdapter(
    response_types.TextStartChunk | response_types.TextDeltaChunk | response_types.TextEndChunk
    | response_types.ErrorChunk | response_types.ToolInputStartChunk | response_types.ToolInputDeltaChunk
    | response_types.ToolInputAvailableChunk | response_types.ToolOutputErrorChunk
    | response_types.ToolOutputAvailableChunk
    | response_types.StartStepChunk | response_types.FinishStepChunk | response_types.StartChunk
    | response_types.FinishChunk | response_types.AbortChunk | response_types.MessageMetadataChunk
    | response_types.DataChunk
)  # fmt: skip
EVENTS: Any = TypeAdapter(Event)


class Conversation:
    """One request to one adapter, over a scripted model; its client reads with the protocol's own types."""

    def __init__(self, protocol: str, *turns: Any, tools: Any = (), **run: Any) -> None:
        self.protocol = protocol
        self.model = ScriptedServer(*turns)
        self.registry = MemoryStopRegistry()
        self.ended: list[Any] = []
        self.gone = asyncio.Event()
        self.response: CancellableEventResponse
        self._tools = tools
        self._run = run
        self._sent: list[Message] = []
        self._news = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def served(self, factory: Any = None) -> AsyncGenerator[Conversation]:
        kind, asked, settings = ADAPTERS[self.protocol]
        body = [{"type": "http.request", "body": json.dumps(asked).encode(), "more_body": False}]

        async def receive() -> Any:
            if body:
                return body.pop()
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            async with self._news:
                self._sent.append(message)
                self._news.notify_all()

        headers = [(b"content-type", b"application/json")]
        request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
        with self.model:
            async with AsyncOpenAI(base_url=self.model.base_url, api_key="none", max_retries=0) as client:
                model = OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client))
                agent = Agent(model, tools=self._tools)
                adapter = await kind.from_request(request, agent=agent, **settings)
                self.response = CancellableEventResponse(
                    (lambda: factory(agent, adapter)) if factory else (lambda: run_adapter(adapter, **self._run)),
                    encode=adapter,
                    registry=self.registry,
                    owner="me",
                    on_end=self.ended.append,
                    ping=None,
                )
                serving = asyncio.create_task(self.response(request.scope, receive, send))
                try:
                    yield self
                    async with asyncio.timeout(LIMIT):
                        await serving
                finally:
                    serving.cancel()
                    await asyncio.wait([serving])

    async def stop(self) -> None:
        assert await self.registry.stop(self.response.stop_id or "", owner="me") == "stopped"

    async def until_sent(self, text: str) -> None:
        async with asyncio.timeout(LIMIT), self._news:
            await self._news.wait_for(lambda: text in self.text)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self._sent).decode()

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self._sent[0]["headers"]}

    def events(self) -> list[Any]:
        """All that was sent, read with the protocol's own types."""
        blocks = [block.removeprefix("data: ") for block in self.text.split("\n\n") if block]
        if self.protocol == "vercel":
            assert blocks.pop() == "[DONE]"
        return [(CHUNKS if self.protocol == "vercel" else EVENTS).validate_json(block) for block in blocks]


async def test_vercel_ai_whole() -> None:
    conversation = Conversation("vercel", Answer(Text("Hel", "lo")))
    async with conversation.served():
        pass
    events = conversation.events()
    kinds = [event.type for event in events]
    assert kinds[:2] == ["start", "data-cancelstream"]
    assert events[1].data == {"stop_id": conversation.response.stop_id}
    assert events[1].transient is True
    assert kinds[-1] == "finish"
    assert "abort" not in kinds
    metadata = [event.message_metadata for event in events if event.type == "message-metadata"]
    [told] = [each["cancelstream"] for each in metadata if "cancelstream" in each]
    assert (told["state"], told["reason"], told["usage"]["output"]["value"]) == ("complete", None, 2)
    assert conversation.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert conversation.headers["x-stop-id"] == conversation.response.stop_id


async def test_vercel_ai_stopped() -> None:
    """The tail is the one of an aborted run, with our metadata before it, and what is open is closed."""
    conversation = Conversation("vercel", Answer(Text("Hel", "lo"), Silence()))
    async with conversation.served():
        await conversation.until_sent('"lo"')
        await conversation.stop()
        await conversation.model.records[0].until_disconnected()
    events = conversation.events()
    assert [event.type for event in events][-4:] == ["text-end", "message-metadata", "abort", "finish-step"]
    told = events[-3].message_metadata["cancelstream"]
    assert (told["state"], told["reason"], told["characters"], told["v"]) == ("interrupted", "user", 5, 1)
    assert told["usage"]["output"]["source"] == "estimated"
    assert conversation.response.end is not None
    assert told["provenance"] == conversation.response.end.provenance

    # What the message keeps comes back with the client's copy of it.
    [run] = conversation.ended
    assert isinstance(run, AdapterRun)
    assert is_incomplete(run.all_messages()[-1])
    assert not {"model", "provider", "provider_url"} & told["usage"].keys()
    part = {"type": "text", "text": "Hello"}
    copy = {"id": "m2", "role": "assistant", "parts": [part], "metadata": events[-3].message_metadata}
    [loaded] = VercelAIAdapter.load_messages([UIMessage.model_validate(copy)])
    assert isinstance(loaded, ModelResponse)
    assert loaded.metadata is not None
    assert loaded.metadata["cancelstream"]["reason"] == "user"
    assert StreamUsage.of(loaded).output == run.usage.output


@pytest.mark.parametrize("protocol", ["ag-ui", "ag-ui 1.0"])
async def test_ag_ui_whole(protocol: str) -> None:
    conversation = Conversation(protocol, Answer(Text("Hel", "lo")))
    async with conversation.served():
        pass
    events = conversation.events()
    assert isinstance(events[0], RunStartedEvent)
    assert isinstance(events[1], CustomEvent)
    assert (events[1].name, events[1].value) == ("cancelstream.start", {"stop_id": conversation.response.stop_id})
    assert isinstance(events[-1], RunFinishedEvent)
    [told] = [event.value for event in events if isinstance(event, CustomEvent) and event.name == "cancelstream.end"]
    assert (told["state"], told["usage"]["output"]["value"]) == ("complete", 2)


@pytest.mark.parametrize("protocol", ["ag-ui", "ag-ui 1.0"])
async def test_ag_ui_stopped(protocol: str) -> None:
    """A client that knows version 1.0 gets its outcome and usage besides."""
    conversation = Conversation(protocol, Answer(Text("Hel", "lo"), Silence()))
    async with conversation.served():
        await conversation.until_sent('"lo"')
        await conversation.stop()
        await conversation.model.records[0].until_disconnected()
    events = conversation.events()
    assert [event.type.value for event in events][-3:] == ["TEXT_MESSAGE_END", "CUSTOM", "RUN_FINISHED"]
    told = events[-2].value
    assert events[-2].name == "cancelstream.end"
    assert (told["state"], told["reason"], told["characters"]) == ("interrupted", "user", 5)
    assert told["usage"]["output"]["source"] == "estimated"
    if protocol == "ag-ui 1.0":
        assert events[-1].outcome.type == "cancelled"
        assert events[-1].usage
    assert is_incomplete(conversation.ended[0].all_messages()[-1])


@pytest.mark.parametrize("protocol", ADAPTERS)
async def test_a_client_that_leaves(protocol: str) -> None:
    """pydantic-ai's own callbacks are not called then; here the answer is saved."""
    conversation = Conversation(protocol, Answer(Text("Hello"), Silence()))
    async with conversation.served():
        await conversation.until_sent("Hello")
        conversation.gone.set()
        await conversation.model.records[0].until_disconnected()
    [run] = conversation.ended
    assert run.cancel_reason == "client_disconnect"
    assert run.new_messages()[-1].parts[0].content == "Hello"


@pytest.mark.parametrize("protocol", ADAPTERS)
async def test_a_stop_during_a_tool(protocol: str) -> None:
    """The call is closed as interrupted, and no further request is made."""
    started = asyncio.Event()

    async def look() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    conversation = Conversation(protocol, Answer(ToolCall("look", "{}")), Answer(Text("never")), tools=[look])
    async with conversation.served():
        await asyncio.wait_for(started.wait(), LIMIT)
        await conversation.stop()
    kinds = [str(getattr(event.type, "value", event.type)) for event in conversation.events()]
    expected = ["tool-output-available", "tool-output-error"] if protocol == "vercel" else ["TOOL_CALL_RESULT"]
    assert set(kinds) & set(expected)
    assert kinds[-2:] == (["abort", "finish-step"] if protocol == "vercel" else ["CUSTOM", "RUN_FINISHED"])
    assert len(conversation.model.records) == 1


@pytest.mark.parametrize("protocol", ADAPTERS)
async def test_a_stop_before_the_run_has_begun_asks_no_model(protocol: str) -> None:
    conversation = Conversation(protocol, Answer(Text("never")))

    def stopped(agent: Any, adapter: Any) -> Any:
        run = run_adapter(adapter)
        run.cancel("early")
        return run

    async with conversation.served(stopped):
        pass
    kinds = [str(getattr(event.type, "value", event.type)) for event in conversation.events()]
    assert kinds[-1] == ("finish-step" if protocol == "vercel" else "RUN_FINISHED")
    assert ("abort" in kinds) is (protocol == "vercel")
    assert conversation.model.records == ()
    assert conversation.response.end is not None
    assert (conversation.response.end.state, conversation.response.end.reason) == ("interrupted", "early")


@pytest.mark.parametrize("protocol", ADAPTERS)
async def test_a_run_that_fails_ends_as_the_protocol_has_it(protocol: str) -> None:
    conversation = Conversation(protocol, Answer(Text("Hello"), Cut("reset")))
    async with conversation.served():
        pass
    kinds = [str(getattr(event.type, "value", event.type)) for event in conversation.events()]
    assert ("error" if protocol == "vercel" else "RUN_ERROR") in kinds
    assert conversation.response.end is not None
    assert conversation.response.end.state == "failed"


async def test_a_request_that_the_adapter_refuses_is_no_run() -> None:
    """Here it has to go on with a conversation that it cannot find: nothing was run, and nothing is there to save."""
    conversation = Conversation("vercel", Answer(Text("never")), conversation_id="unknown", timeout=-1)
    async with conversation.served():
        pass
    assert conversation.model.records == ()
    assert len(conversation.ended) == 1


async def test_a_run_of_ones_own_is_sent_too() -> None:
    """`run_stream_events` with what the adapter has read from the request."""
    gate = Gate()

    def own(agent: Any, adapter: Any) -> Any:
        return run_stream_events(agent, message_history=adapter.messages)

    conversation = Conversation("vercel", Answer(Text("Hel", gate, "lo")))
    async with conversation.served(own):
        await conversation.until_sent('"Hel"')
        await conversation.stop()
    assert [event.type for event in conversation.events()][-2:] == ["abort", "finish-step"]


async def test_a_run_without_events_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    conversation = Conversation("vercel", Answer(Text("Hello")))
    async with conversation.served(lambda agent, adapter: run_stream(agent, "hi")):
        pass
    assert "needs events" in caplog.text


async def test_an_adapter_that_nobody_knows_gets_nothing_of_ours() -> None:
    """Its own events, its own media type, and the stop id in the header."""
    from pydantic_ai.ui import UIEventStream

    from cancelstream.starlette._adapter import AdapterEncoder

    class Lines(UIEventStream[Any, str, Any, Any]):
        content_type = "text/plain"

        def encode_event(self, event: str) -> str:
            return f"{event}\n"

        async def before_stream(self) -> AsyncGenerator[str]:
            yield "begin"

    class Adapter:
        def build_event_stream(self) -> Lines:
            return Lines()

    encoder = AdapterEncoder(Adapter())  # type: ignore[arg-type]
    assert (encoder.media_type, encoder.headers) == ("text/plain", {})
    from cancelstream.starlette._outbox import Outbox, StreamEnd

    outbox = Outbox()
    outbox.close(StreamEnd("complete", None, None, "unknown", 0))
    assert [frame async for frame in encoder.frames("id", outbox)] == ["begin\n"]


def test_an_encode_that_is_no_format_is_refused() -> None:
    with pytest.raises(TypeError, match="EventEncoder or a pydantic-ai UIAdapter"):
        CancellableEventResponse(lambda: None, encode=json)  # type: ignore[arg-type, return-value]
    CancellableEventResponse(lambda: None, encode=EventEncoder())  # type: ignore[arg-type, return-value]


async def test_a_run_that_was_not_entered_has_nothing_to_give() -> None:
    run = AdapterRun(_an_adapter(), {})
    with pytest.raises(RuntimeError, match="not entered"):
        aiter(run)
    await run.__aexit__()
    assert (run.run, run.cancelled, run.cancel_reason, run.response) == (None, False, None, None)
    assert run.all_messages() == run.new_messages() == []
    assert run.usage.input_tokens == 0


def _an_adapter() -> Any:
    asked = RunAgentInput.model_validate(AG_UI)
    return AGUIAdapter(agent=Agent("test"), run_input=asked)
