"""A chat backend with a Stop button for a strands agent, on FastAPI.

    pip install 'cancelstream[strands,starlette]' fastapi uvicorn
    python examples/strands_fastapi.py

serves the application for a moment, asks it something, stops the answer, and asks again. It needs no key: the provider
is a scripted one on this machine. With a provider of yours, the part between the two lines is all there is to it:
`uvicorn strands_fastapi:app`.

(Plain `strands-agents`: its own `[openai]` extra pins an older openai, and cannot be installed beside cancelstream.)
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated

import httpx2
import uvicorn
from fastapi import Depends, FastAPI, Header
from pydantic import BaseModel
from starlette.requests import Request
from strands import Agent, tool
from strands.models.model import Model
from strands.models.openai import OpenAIModel

from cancelstream import MemoryStopRegistry
from cancelstream.starlette import CancellableEventResponse, lifespan, stop_endpoint
from cancelstream.strands import stream_async
from cancelstream.testing import Answer, ScriptedServer, Text, ToolCall

# --- the application ------------------------------------------------------------------------------------------------


@tool
async def weather(city: str) -> str:
    """Say what the weather is like.

    Args:
        city: Where.
    """
    return f"It rains in {city}."


model: Model = OpenAIModel(model_id="gpt-5-mini")
registry = MemoryStopRegistry()  # with several workers: RedisStopRegistry.from_url("redis://...")
app = FastAPI(lifespan=lifespan(registry))
agents: dict[str, Agent] = {}  # in your application: an agent with a session manager, made for each request


def user_of(request: Request) -> str | None:
    """Who asks. In your application: the session, never something that the client may write as it likes."""
    return request.headers.get("x-user")


def agent_of(x_user: Annotated[str, Header()]) -> Agent:
    """The user's own agent: strands keeps the conversation in it, and answers one question at a time."""
    return agents.setdefault(x_user, Agent(model=model, tools=[weather], callback_handler=None))


class Question(BaseModel):
    prompt: str


@app.post("/chat")
async def chat(
    question: Question, agent: Annotated[Agent, Depends(agent_of)], x_user: Annotated[str, Header()]
) -> CancellableEventResponse:
    # A client that leaves stops the model, like the Stop button; what arrived is in `agent.messages`, and may be sent
    # again as it is. With `final_turn_only=True` only the last turn's text is sent, when it is known to be the last.
    return CancellableEventResponse(lambda: stream_async(agent, question.prompt), registry=registry, owner=x_user)


app.add_api_route("/stop/{stop_id}", stop_endpoint(registry, owner=user_of), methods=["POST"])

# --- a client, and a provider to try it with ------------------------------------------------------------------------


async def ask(client: httpx2.AsyncClient, prompt: str, *, stop_after: int | None = None) -> None:
    print(f"> {prompt}")
    async with client.stream("POST", "/chat", json={"prompt": prompt}) as response:
        deltas = 0
        async for line in response.aiter_lines():
            if line:
                print(line)
            deltas += '"delta"' in line
            if deltas == stop_after:
                deltas += 1
                stopped = await client.post(f"/stop/{response.headers['x-stop-id']}")
                print(f"-> stop: {stopped.status_code} {stopped.json()}")


async def main() -> None:
    global model
    rivers = Text.words("A river begins as water that has nowhere else to go. " * 20, gap=0.05)
    turns = (
        Answer(Text("Let me see."), ToolCall("weather", '{"city": "Turin"}')),
        Answer(Text("Take", " an umbrella.")),
        Answer(rivers),
        Answer(Text("You", " are welcome.")),
    )
    with ScriptedServer(*turns) as provider:
        model = OpenAIModel(client_args={"base_url": provider.base_url, "api_key": "none"}, model_id="gpt-4o")
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
        serving = asyncio.create_task(server.serve())
        while not (server.started or serving.done()):  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        # The provider generates slowly; whatever it does, the client has limits.
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers={"x-user": "ada"}) as client:
            await ask(client, "Do I need an umbrella in Turin?")
            await ask(client, "Tell me about rivers.", stop_after=3)
            await ask(client, "Thank you.")
        server.should_exit = True
        await serving
        print("the provider saw the client leave:", provider.records[2].disconnect)
    cut = next(message for message in agents["ada"].messages if "custom" in message.get("metadata", {}))
    record = cut["metadata"]["custom"]["cancelstream"]
    print("kept:", json.dumps({"content": cut["content"], "reason": record["reason"]}))


if __name__ == "__main__":
    asyncio.run(main())
