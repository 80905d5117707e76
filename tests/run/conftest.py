"""Agents over a scripted server, on both of the HTTP clients that openai runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream.testing import ScriptedServer

MakeModel = Callable[[ScriptedServer], OpenAIChatModel]
MakeAgent = Callable[..., Agent[None, Any]]


@pytest.fixture(params=["httpx2", "httpx"])
def http(request: pytest.FixtureRequest) -> str:
    """The HTTP library: openai's default, and the one that openai 3 still supports."""
    return request.param


@pytest_asyncio.fixture
async def make_model(http: str) -> AsyncIterator[MakeModel]:
    """Make a real OpenAI chat model for a server; its client is closed after the test."""
    clients: list[AsyncOpenAI] = []

    def make(server: ScriptedServer) -> OpenAIChatModel:
        client = AsyncOpenAI(
            base_url=server.base_url,
            api_key="not-a-key",
            max_retries=0,
            http_client=httpx.AsyncClient() if http == "httpx" else None,
        )
        clients.append(client)
        return OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client))

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
def make_agent(make_model: MakeModel) -> MakeAgent:
    """Make an agent for a server, with whatever else `Agent` takes."""

    def make(server: ScriptedServer, **kwargs: Any) -> Agent[None, Any]:
        return Agent(make_model(server), **kwargs)

    return make


@pytest.fixture
def own_loop() -> Iterator[None]:
    """An event loop of this thread, on which blocking runs go, and which is closed after the test."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()
