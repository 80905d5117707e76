"""An application for servers in processes of their own: `uvicorn web_app:app`, set up by environment variables.

MODEL is the base URL of a scripted server, SAVED a file that gets a line of JSON for each end, REDIS a URL if stops
are to cross processes, GRACE how long answers may go on when the server is told to end. The header `user` says who is
there: an application of yours asks its session.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from cancelstream import CancellableRun, MemoryStopRegistry, StopRegistry, run_stream
from cancelstream.starlette import CancellableEventResponse, cancel_on_disconnect, lifespan, stop_endpoint

registry: StopRegistry = MemoryStopRegistry()
if redis := os.environ.get("REDIS"):
    from cancelstream.redis import RedisStopRegistry

    registry = RedisStopRegistry.from_url(redis)


def save(result: CancellableRun[Any]) -> None:
    line = json.dumps({"text": result.response.text, "state": result.response.state, "reason": result.cancel_reason})
    with Path(os.environ["SAVED"]).open("a") as saved:
        saved.write(f"{line}\n")


async def chat(request: Request) -> Response:
    prompt = (await request.body()).decode() or "hello"
    return CancellableEventResponse(
        lambda: run_stream(request.app.state.agent, prompt),
        registry=registry,
        owner=request.headers["user"],
        on_end=save,
    )


async def answer(request: Request) -> Response:
    async with cancel_on_disconnect(request):
        result = await request.app.state.agent.run("hello")
    return JSONResponse({"answer": result.output})


async def worker(request: Request) -> Response:
    return JSONResponse({"pid": os.getpid()})


@asynccontextmanager
async def whole_life(app: Starlette) -> AsyncGenerator[None]:
    async with (
        AsyncOpenAI(base_url=os.environ["MODEL"], api_key="none", max_retries=0) as client,
        lifespan(registry, grace=float(os.environ.get("GRACE", "0")))(app),
    ):
        app.state.agent = Agent(OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client)))
        yield


app = Starlette(
    routes=[
        Route("/chat", chat, methods=["POST"]),
        Route("/answer", answer, methods=["POST"]),
        Route("/worker", worker),
        Route(
            "/stop/{stop_id}",
            stop_endpoint(registry, owner=lambda request: request.headers.get("user")),
            methods=["POST"],
        ),
    ],
    lifespan=whole_life,
)

outer = Starlette(routes=[Mount("/inner", app)], lifespan=lambda _: whole_life(app))
"""Another application around it, whose lifespan is the one that runs."""
