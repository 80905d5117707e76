"""What a cut run leaves in `agent.messages`: what arrived, flagged, in a form that may be sent again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("strands", reason="needs cancelstream[strands]")

from strands import Agent, tool
from strands.models.bedrock import BedrockModel
from strands.models.model import Model
from strands.session.file_session_manager import FileSessionManager
from strands_support import AGAIN, LIMIT, STUCK, agent_for, check_free, reading, record_of

from cancelstream import ResponseUsage
from cancelstream.strands import stream_async
from cancelstream.strands._messages import partial_message
from cancelstream.testing import Answer, Gate, Reasoning, Silence, Text, ToolCall
from cancelstream.testing._plugin import StartServer

NOTE = "[This answer was interrupted before it was complete.]"


@tool
def book(city: str) -> str:
    """Book a flight."""
    raise AssertionError("nobody asked for this")  # pragma: no cover


async def test_a_cut_tool_call_is_kept_aside(scripted_server: StartServer):
    """Its arguments as far as they came are in the record; no request ever carries it, and nobody runs it."""
    gate = Gate()
    answer = Answer(Text("Let me book."), ToolCall("book", '{"city": "Par', gate, id="call-1"))
    server = scripted_server(answer, AGAIN, AGAIN)
    agent = agent_for(server, tools=[book])
    async with stream_async(agent, "fly") as stream, reading(stream) as reader:
        await gate.until_reached(LIMIT)
        await reader.until_texts(1)
        await _read_all(server.records[0].chunks_generated, stream)
        await stream.cancel("stop")
        await reader.end()
    last = agent.messages[-1]
    assert last["content"] == [{"text": "Let me book."}]
    assert record_of(last)["salvage"] == {
        "dropped": [{"toolUse": {"toolUseId": "call-1", "name": "book", "input": '{"city": "Par'}}]
    }
    assert stream.usage.output.low >= 3
    await agent.invoke_async()  # without a prompt, strands runs the calls of the last message
    sent = server.records[1].json["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant"]
    assert "tool_calls" not in sent[1]
    await check_free(agent)


async def _read_all(chunks: int, stream: Any) -> None:
    """Wait until the client has what the server has sent: strands' OpenAI class shows nothing of a tool call."""
    calls = stream._run.invocation.calls
    async with asyncio.timeout(LIMIT):
        while True:
            frame = calls[0]._source._iterator.ag_frame
            gathered = frame.f_locals.get("tool_calls") if frame is not None else None
            if gathered and len(gathered[0]) == chunks - 1:
                return
            await asyncio.sleep(0)


async def test_a_whole_tool_call_of_a_cut_answer(scripted_server: StartServer):
    """It was never asked for in earnest: kept aside too, with its arguments as they are."""
    model = Chunked(
        [
            *block({"text": "Let me book."}),
            {"contentBlockStart": {"start": {"toolUse": {"toolUseId": "call-1", "name": "book"}}}},
            {"contentBlockDelta": {"delta": {"toolUse": {"input": '{"city": "Paris"}'}}}},
            {"contentBlockStop": {}},
            {"contentBlockDelta": {"delta": {"text": "And"}}},
        ]
    )
    agent = await cut(model, tools=[book])
    assert agent.messages[-1]["content"] == [{"text": "Let me book."}, {"text": "And"}]
    dropped = record_of(agent.messages[-1])["salvage"]["dropped"]
    assert dropped == [{"toolUse": {"toolUseId": "call-1", "name": "book", "input": {"city": "Paris"}}}]


async def test_cut_reasoning_is_kept_aside(scripted_server: StartServer):
    """Reasoning that led to nothing has no signature, and no provider takes it back."""
    server = scripted_server(Answer(Reasoning("Let me", " think", Silence())), AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until(lambda reader: sum("reasoningText" in event for event in reader.events) == 2)
        await stream.cancel()
        await reader.end()
    assert agent.messages[-1]["content"] == [{"text": NOTE}]
    dropped = record_of(agent.messages[-1])["salvage"]["dropped"]
    assert dropped == [{"reasoningContent": {"reasoningText": {"text": "Let me think"}}}]
    assert stream.usage.reasoning.low >= 1
    await check_free(agent)


async def test_the_record_is_plain_json(scripted_server: StartServer):
    """It goes through JSON and back, and says what everything else of ours says."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        await stream.cancel("enough")
        await reader.end()
    record = record_of(json.loads(json.dumps(agent.messages[-1])))
    assert record.keys() == {"v", "reason", "usage", "salvage"}
    (usage,) = [call.meter.usage for call in stream._run.invocation.calls]
    assert isinstance(usage, ResponseUsage)
    assert record["usage"] == usage.record()
    assert agent.messages[-1]["metadata"]["usage"]["outputTokens"] == stream.usage.output_tokens > 0
    assert agent.event_loop_metrics.accumulated_usage["outputTokens"] == stream.usage.output_tokens


@pytest.mark.parametrize("how", ["cancel", "break", "task"])
async def test_a_session_has_it(scripted_server: StartServer, tmp_path: Path, how: str):
    """However a run was cut, a session stores what it left, and an agent that is restored from it goes on."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server, session_manager=FileSessionManager("s-1", storage_dir=str(tmp_path)))

    async def consume() -> None:
        async with stream_async(agent, "count") as stream:
            async for event in stream:
                if event.get("data") != " two":
                    continue
                if how == "cancel":
                    stream.cancel("left")
                elif how == "break":
                    break
                else:
                    stop = asyncio.current_task()
                    assert stop is not None
                    stop.cancel("left")

    await asyncio.wait([asyncio.create_task(consume())])
    restored = agent_for(server, session_manager=FileSessionManager("s-1", storage_dir=str(tmp_path)))
    assert [message["content"] for message in restored.messages] == [[{"text": "count"}], [{"text": "one two"}]]
    assert record_of(restored.messages[-1])["reason"] == ("task_cancelled" if how == "task" else "left")
    await check_free(restored)


async def test_a_model_that_keeps_the_conversation(scripted_server: StartServer):
    """Where the conversation is the provider's, nothing is put into ours."""
    model = Chunked([{"contentBlockDelta": {"delta": {"text": "one"}}}])
    type(model).stateful = property(lambda self: True)  # type: ignore[assignment, method-assign]
    try:
        agent = await cut(model)
        assert agent.messages == []
    finally:
        del type(model).stateful


# --- every point of an answer ----------------------------------------------------------------------------------------


def block(*deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [*({"contentBlockDelta": {"delta": delta}} for delta in deltas), {"contentBlockStop": {}}]


def use(name: str, *pieces: str) -> list[dict[str, Any]]:
    start = {"contentBlockStart": {"start": {"toolUse": {"toolUseId": name, "name": "book"}}}}
    return [start, *block(*({"toolUse": {"input": piece}} for piece in pieces))]


EVERYTHING: list[dict[str, Any]] = [
    {"messageStart": {"role": "assistant"}},
    *block({"reasoningContent": {"text": "Hm"}}, {"reasoningContent": {"signature": "signed"}}),
    *block({"reasoningContent": {"redactedContent": b"secret"}}),
    *block({"text": "one"}, {"text": " two"}, {"citation": {"title": "A book", "location": {}, "sourceContent": []}}),
    *block({"text": " "}),
    *block({"reasoningContent": {"text": "More"}}),
    *use("a", '{"city"', ': "Paris"}'),
    *use("b", '{"city": "Ro', 'me"}'),
    {"messageStop": {"stopReason": "tool_use"}},
    {"metadata": {"usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}, "metrics": {"latencyMs": 1}}},
]


class Chunked(Model):
    """A model that gives these chunks and then waits for ever."""

    def __init__(self, chunks: list[dict[str, Any]]) -> None:
        self.chunks = chunks
        self.waits = asyncio.Event()

    def update_config(self, **config: Any) -> None:
        raise NotImplementedError

    def get_config(self) -> Any:
        raise LookupError("a model need not have one")

    def structured_output(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError

    async def stream(self, *_args: Any, **_kwargs: Any) -> AsyncIterator[Any]:
        for chunk in self.chunks:
            yield chunk
        self.waits.set()
        await asyncio.get_running_loop().create_future()


async def cut(model: Chunked, **kwargs: Any) -> Agent:
    """Run an agent until the model waits, and stop it there."""
    agent = Agent(model=model, callback_handler=None, **kwargs)
    async with stream_async(agent, "go") as stream, reading(stream) as reader:
        await asyncio.wait_for(model.waits.wait(), LIMIT)
        await stream.cancel("stop")
        await reader.end()
    return agent


SAID = next(number for number, chunk in enumerate(EVERYTHING, 1) if "messageStop" in chunk)
"""How many chunks it takes until the model has said how its answer ended."""


@pytest.mark.parametrize("at", range(SAID, len(EVERYTHING) + 1))
async def test_cut_behind_the_end_of_an_answer_that_calls_tools(at: int):
    """The answer is whole and keeps its calls, which are answered: nobody asks for them a second time."""
    agent = await cut(Chunked(EVERYTHING[:at]), tools=[book])
    answer, results = agent.messages[-2:]
    assert "custom" not in answer.get("metadata", {})
    calls = [part["toolUse"]["toolUseId"] for part in answer["content"] if "toolUse" in part]
    answered = [part["toolResult"]["toolUseId"] for part in results["content"]]
    assert calls == answered == ["a", "b"]
    assert record_of(results)["reason"] == "stop"


@pytest.mark.parametrize("at", range(SAID))
async def test_cut_at_every_point(at: int):
    """Nothing that arrived is lost, and what stays can be sent to any provider: no open call, no unsigned thought."""
    agent = await cut(Chunked(EVERYTHING[:at]), tools=[book])
    message = agent.messages[-1]
    content, dropped = message["content"], record_of(message)["salvage"]["dropped"]
    assert content
    assert not [part for part in content if "toolUse" in part]
    assert "reasoningContent" not in content[-1]
    arrived = json.dumps([delta_of(chunk) for chunk in EVERYTHING[:at]], default=str)
    left = json.dumps([content, dropped], default=str)
    for piece in ("one", " two", "A book", "Hm", "signed", "More", "Paris", "Ro", "me"):
        assert (piece in left) == (piece in arrived) or piece == "me" or (piece == "A book" and "one" not in left)
    for name in ("a", "b"):
        assert (f'"toolUseId": "{name}"' in left) == (
            f'"toolUseId": "{name}"' in json.dumps(EVERYTHING[:at], default=str)
        )
    said = BedrockModel(region_name="us-east-1").format_request(agent.messages)["messages"][-1]
    assert said["role"] == "assistant"
    assert said["content"]


def delta_of(chunk: dict[str, Any]) -> Any:
    return chunk.get("contentBlockDelta")


async def test_parts_that_come_in_an_odd_order():
    """A tool use whose name comes late, or that stands inside a text block, as some classes have them."""
    message, dropped = await partial_message(
        [
            {"contentBlockStart": {"start": {}}},
            {"contentBlockDelta": {"delta": {"text": "one"}}},
            {"contentBlockDelta": {"delta": {"toolUse": {"toolUseId": "a", "name": "book", "input": "{"}}}},
        ],
        [{"toolUseId": "b", "name": "book", "input": ""}],
    )
    assert message["content"] == [{"text": "one"}]
    assert dropped == [
        {"toolUse": {"toolUseId": "a", "name": "book", "input": "{"}},
        {"toolUse": {"toolUseId": "b", "name": "book", "input": ""}},
    ]
