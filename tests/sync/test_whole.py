"""A blocking stream stopped at every cut: whole once the provider has said how it ended, and then nothing changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from support import ASK, ASK_RESPONSES, FIRST, LAST, USAGE, Sent, by_name, chat, delta

from cancelstream import is_incomplete
from cancelstream._openai import BlockingLane
from cancelstream.sync import CancellableStream

LIMIT = 20
DONE = "[DONE]"
READINGS = ["events", "chunks", "pieces"]

SENT = (
    by_name("usage at the end").with_data(DONE),
    Sent("the end comes with text", (FIRST, chat(delta(content="a")), chat(delta(content="b", finish_reason="stop")))),
    by_name("tool calls").with_data(DONE),
    by_name("a refusal").with_data(DONE),
    Sent("Azure looks on", (FIRST, chat(delta(content="a")), LAST, chat(delta()), USAGE, DONE)),
    by_name("text", responses=True),
    by_name("cut at a limit", responses=True),
)


class Body(httpx2.SyncByteStream):
    """A response's body, event by event, that may wait behind the last one."""

    def __init__(self, sent: Sent, number: int | None = None) -> None:
        self._reads = iter([Sent(sent.name, (data,), sent.responses).sse() for data in sent.data[:number]])
        self._waits = number is not None
        self.waiting, self.go_on = threading.Event(), threading.Event()

    def __iter__(self) -> Iterator[bytes]:
        yield from self._reads
        if self._waits:
            self.waiting.set()
            assert self.go_on.wait(LIMIT)


_bodies: list[Body] = []


def _answer(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=_bodies.pop())


_client = openai.OpenAI(
    base_url="http://provider.example/v1",
    api_key="none",
    max_retries=0,
    http_client=httpx2.Client(transport=httpx2.MockTransport(_answer)),
)


def wrap(sent: Sent, body: Body) -> CancellableStream[Any]:
    _bodies.append(body)
    if sent.responses:
        return CancellableStream(_client.responses.create(**ASK_RESPONSES, stream=True))
    return CancellableStream(_client.chat.completions.create(**ASK, stream=True))


def read(stream: CancellableStream[Any], reading: str) -> Iterator[Any]:
    readings = {"events": lambda: iter(stream), "chunks": stream.chunks}
    return readings.get(reading, lambda: stream.stream_text(delta=True))()


def end_of(sent: Sent) -> int:
    marks = ('"response.completed"', '"response.incomplete"', '"finish_reason": "')
    return next(n for n, data in enumerate(sent.data, 1) if any(mark in data for mark in marks))


def check(stream: CancellableStream[Any], where: object) -> None:
    """All that a stream says about being whole says the same."""
    said = {
        "cancelled": stream.cancelled,
        "reason": stream.cancel_reason is not None,
        "state": stream.get().state == "interrupted",
        "is_incomplete": is_incomplete(stream.get()),
        "usage": not stream.usage.complete,
    }
    assert len(set(said.values())) == 1, (where, said)


@pytest.mark.parametrize("lane", ["fast lane", "SDK"])
@pytest.mark.parametrize("how", ["cancel", "leave"])
@pytest.mark.parametrize("reading", READINGS)
def test_at_every_item(reading: str, how: str, lane: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped when so many items were handed out: whole only if the text that was handed out is the whole text."""
    if lane == "SDK":
        monkeypatch.setattr(BlockingLane, "of", lambda _: None)
    for sent in SENT:
        stopped: list[tuple[bool, str | None]] = []
        ended = False
        while not ended:
            items = 0
            with wrap(sent, Body(sent)) as stream:
                for _ in read(stream, reading):
                    items += 1
                    if items > len(stopped):
                        if how == "cancel":
                            stream.cancel("enough")
                            check(stream, "at once")
                        break
                else:
                    ended = True
            check(stream, (sent.name, items))
            if reading == "chunks" and not ended:
                assert stream.cancelled == (items < end_of(sent)), (sent.name, items)
            stopped.append((not stream.cancelled, stream.get().text))
        assert {text for whole, text in stopped if whole} == {stopped[-1][1]}, sent.name


@pytest.mark.parametrize("reading", READINGS)
def test_while_it_waits_for_each_chunk(reading: str) -> None:
    """Stopped by another thread when so many chunks had come: whole from the one on that says how the answer ended."""
    for sent in SENT:
        for cut in range(1, len(sent.data) + (sent.data[-1] != DONE)):
            body = Body(sent, cut)
            with wrap(sent, body) as stream:
                reader = threading.Thread(target=lambda stream=stream: list(read(stream, reading)))
                reader.start()
                assert body.waiting.wait(LIMIT)
                stream.cancel("enough")
                check(stream, "at once")
                body.go_on.set()
                reader.join(LIMIT)
            check(stream, (sent.name, cut))
            assert stream.cancelled == (cut < end_of(sent)), (sent.name, cut)


def test_usage_that_had_arrived_is_read() -> None:
    """What came behind the end and was not pulled is counted, where it can be had without waiting."""
    sent = by_name("usage at the end")
    for reads, source in (([sent.sse()], "reported"), ([sent.sse()[: sent.sse().rindex(b"data:")]], "estimated")):
        body = Body(sent)
        body._reads = iter(reads)
        with wrap(sent, body) as stream:
            for chunk in stream.chunks():
                if chunk.choices and chunk.choices[0].finish_reason:
                    break
        assert (stream.cancelled, stream.usage.complete, stream.usage.output.source) == (False, True, source)
        assert stream.usage.output.high is not None
