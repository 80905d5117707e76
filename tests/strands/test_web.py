"""A strands agent behind a web application: the client that leaves, and the example."""

from __future__ import annotations

import asyncio
import json
import runpy
from pathlib import Path

import pytest

pytest.importorskip("strands", reason="needs cancelstream[strands]")
pytest.importorskip("starlette", reason="needs cancelstream[starlette]")
pytest.importorskip("uvicorn", reason="needs cancelstream[serve]")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from strands import tool
from strands_support import AGAIN, LIMIT, STUCK, agent_for, check_free, record_of
from web_support import AppServer, Client

from cancelstream.starlette import CancellableEventResponse
from cancelstream.strands import CancellableAgentStream, stream_async
from cancelstream.testing import Answer, Text, ToolCall
from cancelstream.testing._plugin import StartServer

EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_a_client_that_leaves(scripted_server: StartServer):
    """The provider is told, what the client was sent is kept, and the agent answers the next question."""
    model = scripted_server(STUCK, AGAIN)
    agent = agent_for(model)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    results: list[CancellableAgentStream] = []

    def on_end(result: CancellableAgentStream) -> None:
        results.append(result)
        loop.call_soon_threadsafe(ended.set)

    async def chat(request: Request) -> CancellableEventResponse:
        return CancellableEventResponse(lambda: stream_async(agent, "count"), on_end=on_end)

    with AppServer(Starlette(routes=[Route("/", chat, methods=["POST"])])) as server:
        async with Client.post(server.port, "/") as client:
            assert await client.event() == ("start", {"stop_id": None})
            assert [await client.event(), await client.event()] == [
                ("message", {"delta": "one"}),
                ("message", {"delta": " two"}),
            ]
        assert await model.records[0].until_disconnected(LIMIT)
        await asyncio.wait_for(ended.wait(), LIMIT)
    assert results[0].cancel_reason == "client_disconnect"
    assert agent.messages[-1]["content"] == [{"text": "one two"}]
    assert record_of(agent.messages[-1])["reason"] == "client_disconnect"
    await check_free(agent)


async def test_text_that_is_taken_back(scripted_server: StartServer):
    """The client is told what is left of the text, in the place where it was taken back."""

    @tool
    def clock() -> str:
        """Tell the time."""
        return "noon"

    model = scripted_server(Answer(Text("Let me", " look."), ToolCall("clock", "{}")), Answer(Text("Noon.")))
    agent = agent_for(model, tools=[clock])

    async def chat(request: Request) -> CancellableEventResponse:
        return CancellableEventResponse(lambda: stream_async(agent, "when?", final_turn_only="retract"), ping=None)

    with AppServer(Starlette(routes=[Route("/", chat, methods=["POST"])])) as server:
        async with Client.post(server.port, "/") as client:
            events = await client.events()
    told = [{"delta": "Let me"}, {"delta": " look."}, {"text": ""}, {"delta": "Noon."}]
    assert [data for name, data in events if name == "message"] == told
    assert events[-1][1]["state"] == "complete"


def test_the_example(capsys: pytest.CaptureFixture[str]):
    """It answers, is stopped, and answers again; what was shown is what was kept."""
    pytest.importorskip("fastapi", reason="needs fastapi")
    runpy.run_path(str(EXAMPLES / "strands_fastapi.py"), run_name="__main__")
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    ends = [json.loads(lines[at + 1].removeprefix("data: ")) for at, line in enumerate(lines) if line == "event: end"]
    assert [(end["state"], end["reason"]) for end in ends] == [
        ("complete", None),
        ("interrupted", "user"),
        ("complete", None),
    ]
    assert "-> stop: 202 {'status': 'accepted'}" in lines
    assert lines[-2] == "the provider saw the client leave: FIN"
    kept = json.loads(lines[-1].removeprefix("kept: "))
    assert kept["reason"] == "user"
    assert kept["content"][0]["text"].startswith("A river begins")
