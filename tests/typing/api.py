"""Never run: what the type checkers must see of the public names."""

from __future__ import annotations

from typing import assert_type

import openai
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse

from cancelstream import (
    CancellableRun,
    Count,
    PeekableAsyncStream,
    StreamUsage,
    is_incomplete,
    run_stream,
    salvage,
    sync,
)


class City(BaseModel):
    name: str


async def runs(text: Agent[None, str], city: Agent[None, City]) -> None:
    async with run_stream(text, "prompt") as result:
        assert_type(result, CancellableRun[str])
        assert_type(await result.get_output(), str)
        assert_type(result.usage, StreamUsage)
        assert_type(result.usage(), StreamUsage)
        assert_type(result.usage.output, Count)
        assert_type(result.usage.output.value, int | None)
        assert_type(result.cancel_reason, str | None)
        assert_type(await result.cancel("enough"), None)
        assert_type(result.response, ModelResponse)
        assert_type(result.all_messages(), list[ModelMessage])
        async for piece in result.stream_text(delta=True):
            assert_type(piece, str)
    async with run_stream(city, "prompt") as structured:
        async for output in structured.stream_output():
            assert_type(output, City)
    assert_type(run_stream(text, "prompt", output_type=City), CancellableRun[City])


async def streams(source: PeekableAsyncStream[int]) -> None:
    assert_type(await source.peek(), int)
    async for number in source:
        assert_type(number, int)


def histories(messages: list[ModelMessage]) -> None:
    assert_type(salvage(messages), list[ModelMessage])
    assert_type(is_incomplete(messages[0]), bool)


def blocking(text: Agent[None, str], city: Agent[None, City], raw: openai.Stream[ChatCompletionChunk]) -> None:
    with sync.CancellableStream(raw) as stream:
        for chunk in stream.chunks():
            assert_type(chunk, ChatCompletionChunk)
        assert_type(stream.get(), ModelResponse)
        assert_type(stream.usage().output, Count)
    with sync.run_stream(text, "prompt") as result:
        assert_type(result.get_output(), str)
        assert_type(result.usage, StreamUsage)
        assert_type(result.all_messages(), list[ModelMessage])
    with sync.run_stream(city, "prompt") as structured:
        for output in structured.stream_output():
            assert_type(output, City)
    assert_type(sync.run_stream(text, "prompt", output_type=City).get_output(), City)
