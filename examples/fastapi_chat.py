"""A chat backend with a Stop button, on FastAPI.

    python examples/fastapi_chat.py

serves the application for a moment, asks it something, stops the answer, and shows what the client got and what was
saved. It needs no key: the provider is a scripted one on this machine. With a provider of yours, the part between the
two lines is all there is to it: `uvicorn fastapi_chat:app`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import httpx2
import uvicorn
from fastapi import Depends, FastAPI, Header
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from starlette.requests import Request

from cancelstream import MemoryStopRegistry, run_stream_events, salvage
from cancelstream.starlette import CancellableEventResponse, lifespan, stop_endpoint
from cancelstream.testing import Answer, ScriptedServer, Text

# --- the application ------------------------------------------------------------------------------------------------

agent = Agent()
registry = MemoryStopRegistry()  # with several workers: RedisStopRegistry.from_url("redis://...")
app = FastAPI(lifespan=lifespan(registry))
histories: dict[str, list[ModelMessage]] = {}  # in your application: the database


def user_of(request: Request) -> str | None:
    """Who asks. In your application: the session, never something that the client may write as it likes."""
    return request.headers.get("x-user")


def user(x_user: Annotated[str, Header()]) -> str:
    return x_user


class Question(BaseModel):
    prompt: str


@app.post("/chat")
async def chat(question: Question, user: Annotated[str, Depends(user)]) -> CancellableEventResponse:
    history = salvage(histories.get(user, []))  # a cut answer does not go back as a whole one

    async def save(result: Any) -> None:
        histories[user] = result.all_messages()

    return CancellableEventResponse(
        lambda: run_stream_events(agent, question.prompt, message_history=history),
        registry=registry,
        owner=user,
        on_end=save,
    )


app.add_api_route("/stop/{stop_id}", stop_endpoint(registry, owner=user_of), methods=["POST"])

# --- a client, and a provider to try it with ------------------------------------------------------------------------


async def ask_and_stop(url: str) -> None:
    question = {"prompt": "Tell me about rivers."}
    async with (
        httpx2.AsyncClient(base_url=url, headers={"x-user": "ada"}) as client,
        client.stream("POST", "/chat", json=question) as response,
    ):
        deltas = 0
        async for line in response.aiter_lines():
            if line:
                print(line)
            deltas += '"delta"' in line
            if deltas == 5:
                deltas += 1
                stopped = await client.post(f"/stop/{response.headers['x-stop-id']}")
                print(f"-> stop: {stopped.status_code} {stopped.json()}")
    saved = histories["ada"][-1]
    print("saved:", json.dumps({"text": saved.text, "state": saved.state}))


async def main() -> None:
    words = "A river begins as water that has nowhere else to go. " * 20
    with ScriptedServer(Answer(Text.words(words.strip(), gap=0.05))) as provider:
        async with AsyncOpenAI(base_url=provider.base_url, api_key="none") as client:
            agent.model = OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client))
            server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
            serving = asyncio.create_task(server.serve())
            while not (server.started or serving.done()):  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            await ask_and_stop(f"http://127.0.0.1:{port}")
            server.should_exit = True
            await serving


if __name__ == "__main__":
    asyncio.run(main())
