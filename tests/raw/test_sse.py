"""Reading chunks from bytes agrees with the SDK, event for event, on every stream and every damage to it."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cancelstream._openai import FastLane
from cancelstream._sse import EventDecoder

from .support import CHATS, CLIENT, FIRST, LAST, RESPONSES, Sent, chat, delta, stream_of

Outcome = tuple[list[Any], str]

pytestmark = pytest.mark.usefixtures("without_debug")


async def by_sdk(reads: Iterable[bytes], **kwargs: Any) -> Outcome:
    """What the SDK makes of these reads: its chunks, and how they end."""
    chunks: list[Any] = []
    try:
        async for chunk in await stream_of(list(reads), **kwargs):
            chunks.append(chunk)  # noqa: PERF401 - what came before an error counts
    except Exception as error:
        return chunks, f"{type(error).__name__}: {error}"
    return chunks, "end"


async def by_lane(reads: Iterable[bytes], **kwargs: Any) -> tuple[Outcome, int]:
    """What the fast lane makes of them, and how many chunks came from it before the SDK took over."""
    chunks: list[Any] = []
    stream = await stream_of(list(reads), **kwargs)
    lane = FastLane.of(stream)
    assert lane is not None
    fast = 0
    failure: Exception | None = None
    try:
        async for data in lane.reads():
            lane.events.feed(data)
            decoded = [lane.build(chunk) for chunk in lane.events.rest()]
            fast += len(decoded)
            chunks += decoded
            if lane.events.stopped:
                break
    except Exception as error:
        failure = error
    lane.hand_over(failure)
    try:
        async for chunk in stream:
            chunks.append(chunk)
    except Exception as error:
        return (chunks, f"{type(error).__name__}: {error}"), fast
    return (chunks, "end"), fast


async def agree(reads: Iterable[bytes], *, objects: bool = False, **kwargs: Any) -> int:
    """Hold the two to the same outcome, and return how many chunks were fast.

    Where `objects` is false both make nothing of the data: which chunks there are, and how they end, is then all that
    is compared, in a fraction of the time.
    """
    reads = list(reads)
    with nullcontext() if objects else patch.object(CLIENT, "_process_response_data", _as_it_is):
        (ours, end), fast = await by_lane(reads, **kwargs)
        theirs, their_end = await by_sdk(reads, **kwargs)
    assert end == their_end
    # By their looks, which show the types as well: a NaN is never equal.
    assert repr(ours) == repr(theirs)
    return fast


def _as_it_is(*, data: object, cast_to: object, response: object) -> object:
    return data


def split_at(data: bytes, *places: int) -> list[bytes]:
    places = tuple(sorted({min(place, len(data)) for place in places}))
    return [data[a:b] for a, b in zip((0, *places), (*places, len(data)), strict=True)]


def cut_at_random(data: bytes, chance: random.Random) -> list[bytes]:
    return split_at(data, *(chance.randrange(len(data) + 1) for _ in range(20)))


def bytewise(data: bytes) -> list[bytes]:
    return [data[n : n + 1] for n in range(len(data))]


# --- whole streams ------------------------------------------------------------------------------------------------


DONE = b"data: [DONE]\n\n"


async def test_every_stream(sent: Sent) -> None:
    """The same objects, and all of them the fast way; whole, byte by byte, cut anywhere, and however it ends."""
    data = sent.sse()
    for done in (b"", DONE):
        fast = await agree([data + done], objects=True, responses=sent.responses)
        assert fast == len(sent.data)
    for done in (b"", DONE, DONE + b"data: {}\n\n", b"data: [DONE] bye"):
        for reads in (bytewise(data + done), *(split_at(data + done, n) for n in range(1, len(data), 61))):
            fast = await agree(reads, responses=sent.responses)
            assert fast == len(sent.data)


@pytest.mark.timeout(600)
async def test_every_recorded_stream(recorded_streams: tuple[Sent, ...]) -> None:
    """The same for what real providers sent, cut at random."""
    chance = random.Random(7)
    for sent in recorded_streams:
        data = sent.sse() + DONE
        for objects, reads in ((True, [data]), (False, cut_at_random(data, chance))):
            fast = await agree(reads, objects=objects, responses=sent.responses)
            assert fast >= len([data for data in sent.data if data.startswith("{") and '"error":{' not in data])


async def test_truncated_at_every_byte() -> None:
    """A stream that ends in the middle of anything ends as it does for the SDK."""
    for sent in (CHATS[0], RESPONSES[0].with_data("[DONE]")):
        data = Sent("short", sent.data[-4:], sent.responses).sse("\r\n")
        for end in range(len(data)):
            await agree([data[:end]], responses=sent.responses)


@pytest.mark.parametrize(
    "failure",
    [
        httpx2.ReadError("reset"),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("incomplete chunked read"),
        RuntimeError("a transport of one's own"),
    ],
    ids=lambda failure: type(failure).__name__,
)
async def test_a_read_that_fails(failure: Exception) -> None:
    """The error is the SDK's own, whatever had been read of an event by then."""
    data = CHATS[0].sse()
    for end in (0, 1, len(data) // 2, len(data)):
        await agree([data[:end]] if end else [], failure=failure)


async def test_compressed() -> None:
    """A response with a content encoding is decoded by httpx first."""
    data = CHATS[0].sse()
    assert await agree([gzip.compress(data)], encoding="gzip") == len(CHATS[0].data)


# --- whole streams, changed ---------------------------------------------------------------------------------------

ERROR = b'data: {"error": {"message": "It broke."}}\n\n'

CHANGES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "CRLF": lambda data, _: data.replace(b"\n", b"\r\n"),
    "CR": lambda data, _: data.replace(b"\n", b"\r"),
    "comments": lambda data, _: b": PROCESSING\n\n" + data.replace(b"\n\n", b"\n\n: PROCESSING\n\n"),
    "comments inside": lambda data, _: data.replace(b"data: ", b":\ndata: "),
    "data in two lines": lambda data, _: data.replace(b"data: {", b"data: {\ndata:"),
    "a byte order mark": lambda data, _: b"\xef\xbb\xbf" + data,
    "unknown fields": lambda data, _: data.replace(b"data: ", b"origin: x\nlone\ndata: "),
    "ids": lambda data, _: data.replace(b"data: ", b"id: 1\ndata: "),
    "an error on the way": lambda data, chance: _put(ERROR, data, chance),
    "the end on the way": lambda data, chance: _put(DONE, data, chance),
    "truncated": lambda data, chance: data[: chance.randrange(len(data))],
    "a byte lost": lambda data, chance: data[: (at := chance.randrange(len(data)))] + data[at + 1 :],
    "a byte changed": lambda data, chance: (
        data[: (at := chance.randrange(len(data)))] + chance.randbytes(1) + data[at + 1 :]
    ),
}


def _put(event: bytes, data: bytes, chance: random.Random) -> bytes:
    events = data.split(b"\n\n")
    at = chance.randrange(len(events))
    return b"\n\n".join([*events[:at], event[:-2], *events[at:]])


async def check_changes(sent: Sent, chance: random.Random) -> None:
    for change in CHANGES.values():
        data = change(sent.sse() + DONE, chance)
        for reads in ([data], cut_at_random(data, chance)):
            await agree(reads, responses=sent.responses)


async def test_every_change(sent: Sent) -> None:
    """However a stream is written, and whatever is broken in it, it is read as the SDK reads it, to the same end."""
    chance = random.Random(sent.name)
    for _ in range(3):
        await check_changes(sent, chance)


@pytest.mark.timeout(600)
async def test_every_change_of_recorded_streams(recorded_streams: tuple[Sent, ...]) -> None:
    """The same for what real providers sent."""
    chance = random.Random(11)
    for sent in recorded_streams:
        await check_changes(sent, chance)


# --- damage -------------------------------------------------------------------------------------------------------

HI = f"data: {chat(delta(content='Hi'))}\n\n".encode()

ODD = {
    "comments": b": OPENROUTER PROCESSING\n\n: and again\n" + HI,
    "a byte order mark": b"\xef\xbb\xbf" + HI + HI,
    "unknown fields": b"foo: bar\nbaz\n" + HI,
    "a field and no colon": b"event\n" + HI,
    "no space": HI.replace(b"data: ", b"data:"),
    "two spaces": HI.replace(b"data: ", b"data:  "),
    "data in two lines": HI.replace(b', "object"', b',\ndata: "object"'),
    "data cut inside a string": HI.replace(b"Hi", b"H\ndata: i"),
    "an empty first line of data": b"data\n" + HI,
    "empty data": b"data:\n\n" + HI,
    "no data": b"event: ping\n\n" + HI,
    "an empty event name": b"event:\n\n" + HI,
    "blank lines": b"\n\n\n" + HI + b"\n\n\n\n" + HI + b"\n",
    "an id": b"id: 7\n" + HI + HI + b"\n\n",
    "an id of its own": b"id: 7\n\n" + HI,
    "an id with a null": b"id: \x00\n\n" + HI,
    "retry": b"retry: 5\n\n" + HI,
    "a bad retry": b"retry: soon\n" + HI,
    "an event of threads": b"event: thread.run.created\n" + HI,
    "an error": HI + b'data: {"error": {"message": "It broke.", "code": 500}}\n\n' + HI,
    "an error without a message": b'data: {"error": {"code": 500}}\n\n',
    "an error in words": b'data: {"error": "It broke."}\n\n',
    "no error at all": b'data: {"error": null, "choices": []}\n\n' + HI,
    "an error event": b'event: error\ndata: {"error": {"message": "It broke."}}\n\n',
    "null": b"data: null\n\n" + HI,
    "a list": b"data: []\n\n" + HI,
    "a string": b'data: "Hi"\n\n' + HI,
    "a number": b"data: 7\n\n" + HI,
    "no JSON": b"data: <html>\n\n" + HI,
    "half of it": b'data: {"id": \n\n' + HI,
    "too much of it": HI.replace(b"}\n\n", b"}}\n\n"),
    "NaN": b'data: {"choices": [], "n": NaN, "i": -Infinity}\n\n' + HI,
    "a lone surrogate": HI.replace(b"Hi", b"\\ud83d") + HI,
    "a pair of them": HI.replace(b"Hi", b"\\ud83d\\ude00") + HI,
    "no UTF-8": HI.replace(b"Hi", b"\xff") + HI,
    "no UTF-8 in a comment": b": \xff\n" + HI,
    "no UTF-8 in a name": b"event: \xff\n" + HI,
    "a control character": HI.replace(b"Hi", b"\t") + HI,
    "the same key twice": b'data: {"id": "a", "choices": [], "id": "b"}\n\n',
    "too deep": b'data: {"choices": [], "x": ' + b"[" * 300 + b"]" * 300 + b"}\n\n" + HI,
    "a large number": b'data: {"choices": [], "created": 123456789012345678901234567890}\n\n' + HI,
    "done at once": b"data: [DONE]\n\n",
    "done, and an event name": b"event: done\ndata: [DONE]\n\n" + HI,
    "nothing": b"",
}


@pytest.mark.parametrize("name", ODD)
async def test_oddities(name: str) -> None:
    """Whatever is odd about a stream, alone and between plain chunks, however it arrives and ends its lines."""
    for before in (b"", HI):
        for newline in (b"\n", b"\r\n", b"\r"):
            data = (before + ODD[name]).replace(b"\n", newline)
            for reads in ([data], bytewise(data), [data, data]):
                await agree(reads)


PIECES = st.sampled_from(
    [
        HI,
        f"data: {FIRST}\n\n".encode(),
        f"data: {LAST}\n\n".encode(),
        b"data: ",
        b"data:",
        b"data: {",
        b'{"choices": []}',
        b'"',
        b"}",
        b"event: x",
        b": a comment",
        b"id: 1",
        b"retry: 1",
        b"\n",
        b"\n\n",
        b"\r",
        b"\r\n",
        b"\r\n\r\n",
        b" ",
        b"\\ud83d",
        b"\xf0\x9f",
        b"\x98\x80",
        b"[DONE]",
        b'{"error": {"message": "no"}}',
        b"null",
    ]
) | st.binary(max_size=6)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(PIECES, max_size=14), cuts=st.lists(st.integers(0, 600), max_size=8))
async def test_anything(pieces: list[bytes], cuts: list[int]) -> None:
    """Streams put together from whatever may be in one, cut anywhere."""
    await agree(split_at(b"".join(pieces), *cuts))


async def test_what_is_long_is_read_in_linear_time() -> None:
    """An event of a megabyte that comes in many reads is not copied with each of them."""
    data = f"data: {chat(delta(content='x' * 1_000_000))}\n\n".encode()
    decoder = EventDecoder()
    for read in split_at(data, *range(0, len(data), 1000)):
        decoder.feed(read)
    assert len(list(decoder.rest())) == 1
    assert decoder.flush() == b""


async def test_nothing_is_decoded_after_it_has_stopped() -> None:
    """From the first event that is not understood on, all is given back as it came."""
    decoder = EventDecoder()
    decoder.feed(HI + b"data: [DONE]\n\n" + HI)
    assert len(list(decoder.rest())) == 1
    assert decoder.stopped
    decoder.feed(HI)
    assert not decoder.more
    assert decoder.flush() == b"data: [DONE]\n\n" + HI + HI


# --- who takes it -------------------------------------------------------------------------------------------------


async def test_a_stream_that_is_not_known_takes_no_fast_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that validates, a decoder of one's own, or an SDK without the parts we know: all left to the SDK."""
    assert FastLane.of(await stream_of(HI)) is not None
    stream = await stream_of(HI)
    monkeypatch.setattr(stream._client, "_strict_response_validation", True)
    assert FastLane.of(stream) is None
    monkeypatch.undo()
    stream = await stream_of(HI)
    monkeypatch.setattr(stream, "_decoder", object())
    assert FastLane.of(stream) is None
    stream = await stream_of(HI)
    monkeypatch.delattr(stream, "_cast_to")
    assert FastLane.of(stream) is None
