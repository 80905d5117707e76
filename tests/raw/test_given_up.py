"""`asyncio.wait_for` around the next item runs out: the answer was cut there, and everything says so at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic_ai import ModelRequest
from pydantic_ai.direct import model_request_stream
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import CancellableModel, CancellableStreamedResponse, open_stream
from cancelstream.testing import Answer, ScriptedServer, Silence, Text

LIMIT = 20.0
ASK: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
Door = Callable[[AsyncOpenAI], AbstractAsyncContextManager[Any]]


def opened(client: AsyncOpenAI) -> AbstractAsyncContextManager[Any]:
    return open_stream(client.chat.completions.create, **ASK)


class Wrapped:
    """A stream of the SDK's that was open before."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self._client = client

    async def __aenter__(self) -> Any:
        stream = await self._client.chat.completions.create(**ASK, stream=True)
        self._response = CancellableStreamedResponse.from_openai(stream)
        return self._response

    async def __aexit__(self, *error: Any) -> None:
        await self._response.__aexit__(*error)


def modelled(client: AsyncOpenAI) -> AbstractAsyncContextManager[Any]:
    model = CancellableModel(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
    return model_request_stream(model, [ModelRequest.user_text_prompt("Hi")])


def says_cut(response: Any, *, reason: str) -> None:
    """Every statement about the answer is that it was cut, for this reason."""
    message = response.get()
    assert (response.cancelled, response.cancel_reason) == (True, reason)
    assert message.state == "interrupted"
    assert message.metadata["cancelstream"]["reason"] == reason
    assert not response.usage.complete
    assert not message.usage.complete


async def wait_too_long(items: AsyncIterator[Any]) -> None:
    """Pull until a pull runs out: events that follow the last text come at once."""
    while True:
        await asyncio.wait_for(anext(items), 0.1)


@pytest.mark.parametrize("reading", ["text", "events"])
@pytest.mark.parametrize("pieces", [0, 2])
@pytest.mark.parametrize("door", [opened, Wrapped, modelled])
async def test_a_timeout_around_the_next_item(door: Door, pieces: int, reading: str) -> None:
    """Inside the block already `cancelled`, the reason, the message's state and the usage agree."""
    words = ["one", " two"][:pieces]
    with ScriptedServer(Answer(Text(*words, Silence())) if words else Answer(Silence())) as server:
        async with (
            AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client,
            door(client) as response,
        ):
            items: AsyncIterator[Any] = response.stream_text(delta=True) if reading == "text" else aiter(response)
            while "".join(getattr(part, "content", "") for part in response.get().parts) != "".join(words):
                await asyncio.wait_for(anext(items), LIMIT)
            with pytest.raises(TimeoutError):
                await wait_too_long(items)
            says_cut(response, reason="task_cancelled")
            assert [item async for item in items] == []
            says_cut(response, reason="task_cancelled")
        says_cut(response, reason="task_cancelled")


@pytest.mark.parametrize("first", ["cancel", "task"])
@pytest.mark.parametrize("door", [opened, modelled])
async def test_a_cancel_beside_it(door: Door, first: str) -> None:
    """Our own cancel and the task's, in both orders: the reason of `cancel()` is the one that is told."""
    with ScriptedServer(Answer(Text("one", Silence()))) as server:
        async with (
            AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client,
            door(client) as response,
        ):
            texts = response.stream_text(delta=True)
            assert await asyncio.wait_for(anext(texts), LIMIT) == "one"
            task = asyncio.ensure_future(anext(texts, None))
            await asyncio.sleep(0)
            if first == "cancel":
                response.cancel("Stop")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            if first == "task":
                says_cut(response, reason="task_cancelled")
                response.cancel("Stop")
            says_cut(response, reason="Stop")
