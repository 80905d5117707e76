"""Text that a run shows and takes back reaches the client as an event of its own."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")
pytest.importorskip("uvicorn", reason="needs cancelstream[serve]")

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route
from web_support import AppServer, Client

from cancelstream import CancellableRunEvents, run_stream_events
from cancelstream.starlette import CancellableEventResponse
from cancelstream.testing import Answer, ScriptedServer, Text, ToolCall


class Report(BaseModel):
    degrees: int


def weather(city: str) -> str:
    return f"22 degrees in {city}"


LOOK = Answer(Text("Let me", " look."), ToolCall("weather", '{"city":"Paris"}'))

CASES = pytest.mark.parametrize(
    ("output_type", "last", "shown"),
    [
        (str, Answer(Text("It is", " warm.")), [{"delta": "It is"}, {"delta": " warm."}]),
        (Report, Answer(ToolCall("final_result", '{"degrees":22}')), [{"output": {"degrees": 22}}]),
    ],
)


@CASES
async def test_a_preamble_is_taken_back(output_type: Any, last: Answer, shown: list[Any]) -> None:
    """Over a real server: the client is told what is left of the text, in the place where it was taken back."""
    ended: list[CancellableRunEvents[Any]] = []
    with ScriptedServer(LOOK, last) as model:

        async def chat(request: Request) -> CancellableEventResponse:
            client = AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0)
            made = OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client))
            agent: Agent[None, Any] = Agent(made, tools=[weather], output_type=output_type)

            async def keep(run: CancellableRunEvents[Any]) -> None:
                ended.append(run)
                await client.close()

            return CancellableEventResponse(
                lambda: run_stream_events(agent, "hi", final_turn_only="retract"), on_end=keep, ping=None
            )

        with AppServer(Starlette(routes=[Route("/", chat, methods=["POST"])])) as server:
            async with Client.post(server.port, "/") as client:
                events = await client.events()
    [(_, _), *told, (end, how)] = events
    assert end == "end"
    assert how["state"] == "complete"
    assert [item for _, item in told] == [{"delta": "Let me"}, {"delta": " look."}, {"text": ""}, *shown]
    assert not ended[0].cancelled
