"""The error that a request's own context is left with."""

from __future__ import annotations

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

    @asynccontextmanager
    async def request_stream(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        async with self.wrapped.request_stream(*args, **kwargs) as stream:
            try:
                yield stream
            except BaseException as error:
                self.seen = error
                raise


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
