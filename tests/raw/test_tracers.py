"""Tracing libraries that look into a stream see what they would see without a wrapper of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import wraps
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from cancelstream import CancellableStreamedResponse
from cancelstream._openai import BlockingLane, FastLane
from cancelstream.sync import CancellableStream
from cancelstream.testing import Answer, Gate, StartServer, Text

from .support import ASK

ANSWER = Answer(Text("Hello", " you"))

Traced = list[Any]


def replaced_iterator(stream: Any, seen: Traced, _: pytest.MonkeyPatch) -> Any:
    """Sentry, Langfuse, MLflow."""
    inside = stream._iterator

    async def chunks() -> AsyncIterator[Any]:
        try:
            async for chunk in inside:
                seen.append(chunk)
                yield chunk
        finally:
            seen.append("end")

    def blocking_chunks() -> Iterator[Any]:
        try:
            for chunk in inside:
                seen.append(chunk)
                yield chunk
        finally:
            seen.append("end")

    stream._iterator = chunks() if isinstance(stream, openai.AsyncStream) else blocking_chunks()
    return stream


def patched_events(stream: Any, seen: Traced, patch: pytest.MonkeyPatch) -> Any:
    """New Relic."""
    kind = openai.AsyncStream if isinstance(stream, openai.AsyncStream) else openai.Stream
    own: Any = kind._iter_events

    @wraps(own)
    def blocking_events(self: Any) -> Iterator[Any]:
        for event in own(self):
            seen.append(event)
            yield event

    @wraps(own)
    async def events(self: Any) -> AsyncIterator[Any]:
        async for event in own(self):
            seen.append(event)
            yield event

    patch.setattr(kind, "_iter_events", events if kind is openai.AsyncStream else blocking_events)
    return stream


def patched_method(stream: Any, seen: Traced, _: pytest.MonkeyPatch) -> Any:
    """On the stream alone."""
    own = stream._iter_events

    async def events() -> AsyncIterator[Any]:
        async for event in own():
            seen.append(event)
            yield event

    def blocking_events() -> Iterator[Any]:
        for event in own():
            seen.append(event)
            yield event

    stream._iter_events = events if isinstance(stream, openai.AsyncStream) else blocking_events
    return stream


class AsyncTraced(openai.AsyncStream[Any]):
    seen: Traced

    async def __aiter__(self) -> AsyncIterator[Any]:
        async for chunk in self._iterator:
            self.seen.append(chunk)
            yield chunk


class BlockingTraced(openai.Stream[Any]):
    seen: Traced

    def __iter__(self) -> Iterator[Any]:
        for chunk in self._iterator:
            self.seen.append(chunk)
            yield chunk


def subclass(stream: Any, seen: Traced, _: pytest.MonkeyPatch) -> Any:
    stream.__class__ = AsyncTraced if isinstance(stream, openai.AsyncStream) else BlockingTraced
    stream.seen = seen
    return stream


class Proxy:
    """Passes for what it wraps, as wrapt's do."""

    def __init__(self, wrapped: Any, seen: Traced) -> None:
        self._wrapped = wrapped
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    @property
    def __class__(self) -> Any:
        return type(self._wrapped)


class AsyncProxy(Proxy):
    async def __aiter__(self) -> AsyncIterator[Any]:
        async for chunk in self._wrapped:
            self._seen.append(chunk)
            yield chunk


class BlockingProxy(Proxy):
    def __iter__(self) -> Iterator[Any]:
        for chunk in self._wrapped:
            self._seen.append(chunk)
            yield chunk


def proxy(stream: Any, seen: Traced, _: pytest.MonkeyPatch) -> Any:
    """OpenLLMetry, OpenInference."""
    return (AsyncProxy if isinstance(stream, openai.AsyncStream) else BlockingProxy)(stream, seen)


def read_bytes(stream: Any, seen: Traced, _: pytest.MonkeyPatch) -> Any:
    """A look at the bytes."""
    response = stream.response
    own = response.aiter_bytes if isinstance(stream, openai.AsyncStream) else response.iter_bytes

    async def chunks() -> AsyncIterator[bytes]:
        async for data in own():
            seen.append(data)
            yield data

    def blocking_chunks() -> Iterator[bytes]:
        for data in own():
            seen.append(data)
            yield data

    if isinstance(stream, openai.AsyncStream):
        response.aiter_bytes = chunks
    else:
        response.iter_bytes = blocking_chunks
    return stream


TRACERS = [replaced_iterator, patched_events, patched_method, subclass, proxy, read_bytes]
Tracer = Callable[[Any, Traced, pytest.MonkeyPatch], Any]


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("reading", ["events", "stream_text", "chunks"])
async def test_a_tracer_sees_the_stream(
    tracer: Tracer, reading: str, scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way our wrapper is read, the tracer sees as much as if the SDK's stream were read by itself."""
    server = scripted_server(ANSWER, ANSWER)
    async with AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
        plain: Traced = []
        with monkeypatch.context() as patch:
            stream: Any = tracer(await client.chat.completions.create(**ASK, stream=True), plain, patch)
            chunks = [chunk async for chunk in stream]
        seen: Traced = []
        with monkeypatch.context() as patch:
            stream = tracer(await client.chat.completions.create(**ASK, stream=True), seen, patch)
            async with CancellableStreamedResponse.from_openai(stream) as response:
                got = [item async for item in (response if reading == "events" else getattr(response, reading)())]
    assert len(seen) == len(plain) > 0
    assert got
    if reading == "chunks":
        assert len(got) == len(chunks)


@pytest.mark.parametrize("tracer", TRACERS)
@pytest.mark.parametrize("reading", ["events", "stream_text", "chunks"])
def test_a_tracer_sees_a_blocking_stream(
    tracer: Tracer, reading: str, scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alike."""
    server = scripted_server(ANSWER, ANSWER)
    with OpenAI(base_url=server.base_url, api_key="none") as client:
        plain: Traced = []
        with monkeypatch.context() as patch:
            stream: Any = tracer(client.chat.completions.create(**ASK, stream=True), plain, patch)
            chunks = [*stream]
        seen: Traced = []
        with monkeypatch.context() as patch:
            stream = tracer(client.chat.completions.create(**ASK, stream=True), seen, patch)
            with CancellableStream[Any](stream) as response:
                got: list[Any] = [*(response if reading == "events" else getattr(response, reading)())]
    assert len(seen) == len(plain) > 0
    assert got
    if reading == "chunks":
        assert len(got) == len(chunks)


async def test_a_span_ends_with_the_stream(scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tracer whose iterator is around the SDK's knows of the end as soon as a cut stream is closed."""
    gate = Gate()
    server = scripted_server(Answer(Text("Hello", gate, " you")), repeat=True)
    seen: Traced = []
    async with AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
        stream: Any = await client.chat.completions.create(**ASK, stream=True)
        replaced_iterator(stream, seen, monkeypatch)
        async with CancellableStreamedResponse.from_openai(stream) as response:
            assert await anext(response.stream_text()) == "Hello"
        assert seen[-1] == "end"
    with OpenAI(base_url=server.base_url, api_key="none") as blocking:
        stream = blocking.chat.completions.create(**ASK, stream=True)
        seen.clear()
        replaced_iterator(stream, seen, monkeypatch)
        with CancellableStream[Any](stream) as reader:
            assert next(reader.stream_text()) == "Hello"
        assert seen[-1] == "end"


async def test_without_a_tracer(scripted_server: StartServer) -> None:
    """The SDK's own streams take the fast lane: nothing of the above is there by itself."""
    server = scripted_server(ANSWER, ANSWER)
    async with AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        assert FastLane.of(stream) is not None
        await anext(stream)
        assert FastLane.of(stream) is None, "it has begun"
        await stream.close()
    with OpenAI(base_url=server.base_url, api_key="none") as blocking:
        plain = blocking.chat.completions.create(**ASK, stream=True)
        assert BlockingLane.of(plain) is not None
        next(plain)
        assert BlockingLane.of(plain) is None
        plain.close()
