"""The three readings of a blocking stream say what those of the asynchronous one say, and leave the same behind."""

from __future__ import annotations

import functools
import gc
import gzip
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import httpx2
import openai
import pytest
from pydantic_ai import ModelAPIError
from pydantic_ai.messages import ModelResponse
from support import ASK, ASK_RESPONSES, FIRST, LAST, Sent, by_name, chat, delta, stream_of

from cancelstream import CancellableStreamedResponse
from cancelstream._openai import BlockingLane
from cancelstream.sync import CancellableStream

DONE = b"data: [DONE]\n\n"

# What a chunk means is the asynchronous class's to test, which reads them all; the code for it is the same.
CHATS = ("text", "tool calls", "thinking tags", "several choices")
RESPONSES = ("reasoning", "failed", "an error event")
SENT = [by_name(name) for name in CHATS] + [by_name(name, responses=True) for name in RESPONSES]


class Body(httpx2.SyncByteStream):
    """A response's body, read by read."""

    def __init__(self, reads: Iterable[bytes]) -> None:
        self._reads = iter(reads)  # a connection is read once

    def __iter__(self) -> Iterator[bytes]:
        yield from self._reads


_answers: list[httpx2.Response] = []
_client = openai.OpenAI(
    base_url="http://provider.example/v1",
    api_key="none",
    max_retries=0,
    http_client=httpx2.Client(transport=httpx2.MockTransport(lambda _: _answers.pop())),
)


def wrap(sent: Sent) -> CancellableStream[Any]:
    """A stream over these bytes, which come in pieces."""
    data = sent.sse() + DONE
    reads = [data[n : n + 100] for n in range(0, len(data), 100)]
    _answers.append(httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(reads)))
    if sent.responses:
        return CancellableStream(_client.responses.create(**ASK_RESPONSES, stream=True))
    return CancellableStream(_client.chat.completions.create(**ASK, stream=True))


def read(stream: CancellableStream[Any], reading: str) -> Iterator[Any]:
    match reading:
        case "events":
            return iter(stream)
        case "chunks":
            return stream.chunks()
        case _:
            return stream.stream_text(delta=reading == "pieces")


def outcome(items: Iterator[Any]) -> tuple[list[str], str]:
    """What was read, and how it ended."""
    seen: list[str] = []
    try:
        for item in items:
            seen.append(re.sub(" at 0x[0-9a-f]+", "", repr(item)))  # noqa: PERF401 - what came before an error counts
    except Exception as error:
        return seen, f"{type(error).__name__}: {error}"
    return seen, "end"


async def theirs(sent: Sent, reading: str) -> tuple[tuple[list[str], str], CancellableStreamedResponse]:
    """What the asynchronous class makes of the same bytes."""
    stream = await stream_of(sent.sse() + DONE, responses=sent.responses)
    read_: list[Any] = []
    failure: Exception | None = None
    async with CancellableStreamedResponse.from_openai(stream) as response:
        source: Any = {"events": response, "chunks": response.chunks()}.get(reading) or response.stream_text(
            delta=reading == "pieces"
        )
        try:
            async for item in source:
                read_.append(item)  # noqa: PERF401 - what came before an error counts
        except Exception as error:
            failure = error
    seen, _ = outcome(iter(read_))
    return (seen, "end" if failure is None else f"{type(failure).__name__}: {failure}"), response


def plain(message: ModelResponse, usage: Any) -> str:
    """How a message looks, without when it was made."""
    return repr(replace(message, usage=usage.record(), timestamp=None, provider_details=None))


@pytest.mark.parametrize("reading", ["events", "chunks", "pieces", "text"])
async def test_readings_are_those_of_the_asynchronous_class(reading: str) -> None:
    """The same items, the same end, the same message and the same usage."""
    for sent in SENT:
        expected, other = await theirs(sent, reading)
        with wrap(sent) as stream:
            assert outcome(read(stream, reading)) == expected, sent.name
        assert plain(stream.get(), stream.usage) == plain(other.get(), other.usage), sent.name
        assert stream.cancelled is other.cancelled is False


@pytest.mark.parametrize("encoding", ["identity", "gzip"])
def test_what_the_fast_way_does_not_know_is_the_sdks(encoding: str) -> None:
    """From the first event on that has a line of its own kind the SDK reads, and nothing is lost or read twice."""
    sent = by_name("text")
    data = sent.sse().replace(b'data: {"id": "chatcmpl-1"', b'id: 7\ndata: {"id": "chatcmpl-1"', 3)
    data = sent.sse() + data + DONE
    data = gzip.compress(data) if encoding == "gzip" else data
    reads = [data[n : n + 100] for n in range(0, len(data), 100)]
    headers = {"content-type": "text/event-stream", "content-encoding": encoding}
    _answers.append(httpx2.Response(200, headers=headers, stream=Body(reads)))
    with CancellableStream(_client.chat.completions.create(**ASK, stream=True)) as stream:
        assert "".join(stream.stream_text(delta=True)) == "Hello wörld!\n" * 2
    assert stream.get().state == "complete"


def test_what_is_no_object_says_nothing() -> None:
    """The SDK hands out `null` as a chunk that is `None`, and so do we; the answer goes on."""
    sent = Sent("odd", (FIRST, chat(delta(content="a")), "null", chat(delta(content="b")), LAST))
    for reading in ("events", "chunks", "pieces"):
        with wrap(sent) as stream:
            seen = [*read(stream, reading)]
        assert (stream.get().text, stream.get().state) == ("ab", "complete")
        assert reading != "chunks" or (len(seen) == 5 and seen[2] is None)


def test_every_reading_without_the_fast_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that only the SDK can read says the same."""
    expected = {reading: outcome(read(wrap(by_name("text")), reading)) for reading in ("events", "chunks", "pieces")}
    monkeypatch.setattr(BlockingLane, "of", lambda _: None)
    for reading, seen in expected.items():
        with wrap(by_name("text")) as stream:
            assert outcome(read(stream, reading)) == seen
        assert stream.get().text == "Hello wörld!\n"


def test_a_chunk_that_the_sdk_cannot_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the SDK's own error; the answer has failed, and all is closed."""

    def failing(**kwargs: Any) -> Any:
        raise openai.APIResponseValidationError(kwargs["response"], kwargs["data"])

    with wrap(by_name("text")) as stream:
        chunks = stream.chunks()
        next(chunks)
        keywords = stream._lane._build.keywords
        monkeypatch.setattr(stream._lane, "_build", functools.partial(failing, **keywords))
        with pytest.raises(openai.APIResponseValidationError):
            next(chunks)
        assert stream._response.is_closed
        assert [*stream.chunks()] == []
    assert stream.get().state == "incomplete"


@pytest.mark.parametrize("then", ["events", "chunks", "pieces"])
def test_one_reading_goes_on_where_another_stopped(then: str) -> None:
    """Whichever way a stream is read, and changed between, nothing is read twice and nothing is left out."""
    for sent in SENT[:5]:
        with wrap(sent) as whole:
            outcome(iter(whole))
        for first in ("events", "chunks", "pieces"):
            with wrap(sent) as stream:
                for reading in (first, then):
                    for _ in zip(range(2), read(stream, reading), strict=False):
                        pass
                outcome(read(stream, first))
            assert plain(stream.get(), stream.usage) == plain(whole.get(), whole.usage), (sent.name, first)


def test_a_chunk_of_several_events() -> None:
    """Cancelled between two events of one chunk, the second is not handed out."""
    sent = by_name("tool calls")
    with wrap(sent) as stream:
        whole = [*stream]
    for number in range(1, len(whole)):
        with wrap(sent) as stream:
            events = iter(stream)
            for _ in range(number):
                next(events)
            stream.cancel()
            assert [*events] == []
        assert stream.get().state == "interrupted"


@pytest.mark.parametrize("name", ["failed", "an error event"])
def test_a_response_that_failed(name: str) -> None:
    """What the SDK hands out as an event is an error to the readings that say what it means; then all is closed."""
    for reading in ("events", "pieces"):
        stream = wrap(by_name(name, responses=True))
        with pytest.raises(ModelAPIError, match="It broke"):
            list(read(stream, reading))
        assert stream._response.is_closed
        assert stream.get().state == "incomplete"


@pytest.mark.parametrize(("name", "reason"), [("text", None), ("thinking tags", "just before")])
def test_a_cancel_that_overtakes_the_end(monkeypatch: pytest.MonkeyPatch, name: str, reason: str | None) -> None:
    """The end was found, and the cancel came before it was said: then nothing that follows from it is handed out.

    It was a cut only if the provider had not said how the answer ended.
    """
    with wrap(by_name(name)) as stream:
        end = stream._transcript.end

        def cancelled_first() -> Any:
            rest = [*end()]
            stream.cancel("just before")
            return rest

        monkeypatch.setattr(stream._transcript, "end", cancelled_first)
        events = [*stream]
    assert stream.cancel_reason == reason
    assert type(events[-1]).__name__ != "PartEndEvent"


def test_an_end_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the end of a stream means may be an error, too."""

    def fail() -> Any:
        raise ModelAPIError("m", "It broke.")

    with wrap(by_name("text")) as stream:
        monkeypatch.setattr(stream._transcript, "end", fail)
        with pytest.raises(ModelAPIError):
            list(stream)
    assert not stream.cancelled
    assert stream.get().state == "incomplete"


class TestBackground:
    """A response that its provider goes on with, whoever listens."""

    SENT = by_name("in the background", responses=True)

    def stream(
        self,
        told: threading.Event,
        cancelled: list[str],
        fails: bool = False,
        wait: Callable[[], object] = lambda: None,
    ) -> CancellableStream[Any]:
        def answer(request: httpx2.Request) -> httpx2.Response:
            if request.url.path.endswith("/cancel"):
                wait()
                cancelled.append(request.url.path)
                told.set()
                return httpx2.Response(500 if fails else 200, json={})
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body([self.SENT.sse()]))

        http = httpx2.Client(transport=httpx2.MockTransport(answer))
        client = openai.OpenAI(base_url="http://provider.example/v1", api_key="none", max_retries=0, http_client=http)
        return CancellableStream(client.responses.create(**ASK_RESPONSES, background=True, stream=True))

    @pytest.mark.parametrize("fails", [False, True])
    def test_a_cancelled_one_is_cancelled_on_the_server(self, fails: bool) -> None:
        """Leaving waits until the provider has confirmed it, or has not; either way nothing is raised."""
        told, cancelled = threading.Event(), list[str]()
        with self.stream(told, cancelled, fails) as stream:
            for _ in stream.stream_text():
                stream.cancel()
        assert told.is_set()
        assert cancelled == ["/v1/responses/resp_1/cancel"]
        assert stream.get().state == "interrupted"

    def test_one_that_was_left_goes_on(self) -> None:
        """Leaving is not cancelling: what runs on the server can be taken up again."""
        told, cancelled = threading.Event(), list[str]()
        with self.stream(told, cancelled) as stream:
            next(stream.stream_text())
        assert cancelled == []
        assert stream.get().state == "suspended"

    def test_one_that_is_dropped_waits_for_nobody(self) -> None:
        """Whoever drops a cancelled stream goes on at once; the provider is told all the same."""
        told, dropped, cancelled, overtaken = threading.Event(), threading.Event(), list[str](), list[bool]()
        stream = self.stream(told, cancelled, wait=lambda: overtaken.append(dropped.wait(5)))
        texts = stream.stream_text()
        next(texts)
        stream.cancel()
        del texts, stream
        gc.collect()
        dropped.set()
        assert told.wait(5)
        assert overtaken == [True]

    def test_a_stream_that_is_taken_up_again(self) -> None:
        """Its id is known from what was asked."""
        _answers.append(httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body([])))
        with CancellableStream(_client.responses.retrieve("resp_9", stream=True)) as stream:
            assert stream.get().provider_response_id == "resp_9"
