"""The error that a request's own context is left with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic_ai import ModelRequest
from pydantic_ai.direct import model_request_stream
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.wrapper import WrapperModel

from cancelstream import CancellableModel


class Broken(Exception):
    """The stream's own error, or one of the consumer's."""


class Watching(WrapperModel):
    """Notes the error that its context is left with."""

    seen: BaseException | None = None
    is_left = False

    @asynccontextmanager
    async def request_stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        async with self.wrapped.request_stream(*args, **kwargs) as stream:
            try:
                yield stream
            except BaseException as error:
                self.seen = error
                raise
            finally:
                self.is_left = True


@pytest.mark.parametrize("whose", ["stream", "consumer"])
async def test_the_requests_context_sees_the_streams_own_error_alone(whose: str) -> None:
    """It may try another request for an error of its stream; one of the consumer's is none of its business."""

    async def answer(_messages: Any, _info: Any) -> AsyncIterator[str]:
        yield "one"
        if whose == "stream":
            raise Broken

    model = Watching(FunctionModel(stream_function=answer))
    request = [ModelRequest.user_text_prompt("Hi")]

    async def consume() -> None:
        async with model_request_stream(CancellableModel(model), request) as response:
            async for _ in response:
                if whose == "consumer":
                    raise Broken

    with pytest.raises(Broken) as raised:
        await consume()
    assert model.seen is (raised.value if whose == "stream" else None)


async def test_a_cancellation_while_it_is_left_does_not_keep_it_open() -> None:
    """A task that is cancelled while it waits for the stream to close still leaves the request's context."""
    closes, may_close = asyncio.Event(), asyncio.Event()

    class Slow(Watching):
        @asynccontextmanager
        async def request_stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
            async with super().request_stream(*args, **kwargs) as stream:
                stream.close_stream = close_slowly
                yield stream

    async def close_slowly() -> None:
        closes.set()
        await may_close.wait()

    async def answer(_messages: Any, _info: Any) -> AsyncIterator[str]:
        yield "one"
        await asyncio.get_running_loop().create_future()

    model = Slow(FunctionModel(stream_function=answer))
    request = [ModelRequest.user_text_prompt("Hi")]

    async def consume() -> None:
        async with model_request_stream(CancellableModel(model), request) as response:
            async for _ in response:
                break

    task = asyncio.create_task(consume())
    await asyncio.wait_for(closes.wait(), 5)
    task.cancel()
    await asyncio.sleep(0)
    may_close.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (model.is_left, model.seen) == (True, None)  # left, and not only dropped
