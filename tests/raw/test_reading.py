"""The three readings of a raw stream, events, chunks and text, and the message that all of them leave behind."""

from __future__ import annotations

import asyncio
import functools
import itertools
import re
import warnings
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import openai
import pytest
from pydantic_ai import ModelAPIError
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage

from cancelstream._openai import FastLane, text_of
from cancelstream._response import CancellableStreamedResponse

from .support import CLIENT, FIRST, LAST, Sent, by_name, chat, client_of, delta, stream_of

ASKED: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("Hi")])]
DONE = b"data: [DONE]\n\n"

pytestmark = pytest.mark.usefixtures("without_debug")

PYDANTIC_DIFFERS = {
    "several choices": "it reads the first choice of every chunk, whichever it is",
    "usage in every chunk": "it adds up what are totals",
    "a longer text in the background": "as the next",
    "in the background": "its model marks what is resumable before the first event",
    "malformed chunks": "it fails on choices that are none",
}


def seen(thing: Any) -> str:
    """How it looks, without when it was made, and where a function in it happens to be."""
    looks = re.sub(r"timestamp=datetime\.datetime\(.*?=datetime\.timezone\.utc\)", "timestamp", repr(thing))
    return re.sub(" at 0x[0-9a-f]+>", ">", looks)


def has_several_choices(sent: Sent) -> bool:
    return any('"index": 1' in data.replace('":1', '": 1') and '"choices"' in data for data in sent.data)


def plain(message: ModelResponse) -> str:
    """How a message looks, its usage apart, in which we differ from pydantic-ai by design."""
    details = {k: v for k, v in (message.provider_details or {}).items() if k != "timestamp"}
    return seen(replace(message, usage=RequestUsage(), provider_details=details))


async def wrap(sent: Sent, reads: Any = None) -> CancellableStreamedResponse:
    data = sent.sse() + DONE
    return CancellableStreamedResponse.from_openai(await stream_of(reads or data, responses=sent.responses))


async def by_pydantic_ai(sent: Sent) -> tuple[list[str], ModelResponse | None, str]:
    """The events and the message that pydantic-ai's own model makes of the same bytes, and how they end."""
    client = client_of(sent.sse() + DONE)
    provider = OpenAIProvider(openai_client=client)
    kind: Callable[..., Model] = OpenAIResponsesModel if sent.responses else OpenAIChatModel
    events: list[str] = []
    stream: StreamedResponse | None = None
    try:
        async with kind("gpt-4o", provider=provider).request_stream(ASKED, None, ModelRequestParameters()) as stream:
            async for event in stream:
                events.append(seen(event))  # noqa: PERF401 - what came before an error counts
    except Exception as error:
        return events, None if stream is None else stream.get(), f"{type(error).__name__}: {error}"
    return events, stream.get(), "end"


def answer_in(message: ModelResponse) -> str:
    return "".join(part.content for part in message.parts if isinstance(part, TextPart))


def usage_of(response: CancellableStreamedResponse) -> dict[str, Any]:
    return response.usage.record()


async def by_events(response: CancellableStreamedResponse) -> AsyncIterator[str]:
    async for event in response:
        yield seen(event)


async def outcome(reading: AsyncIterator[Any]) -> tuple[list[Any], str]:
    read: list[Any] = []
    try:
        async for each in reading:
            read.append(each)  # noqa: PERF401 - what came before an error counts
    except Exception as error:
        return read, f"{type(error).__name__}: {error}"
    return read, "end"


async def check_events(sent: Sent) -> None:
    """Hold our events and message to pydantic-ai's."""
    theirs, their_message, their_end = await by_pydantic_ai(sent)
    async with await wrap(sent) as response:
        ours, end = await outcome(by_events(response))
    # An error of openai's comes as it is, where pydantic-ai's model gives it another type.
    assert (ours, end.replace("APIError", "ModelAPIError", 1) if end.startswith("APIError") else end) == (
        theirs,
        their_end,
    )
    if their_message is not None:
        assert plain(response.get()) == plain(their_message)


async def test_events_are_pydantic_ais(sent: Sent) -> None:
    """The events and the message are those that pydantic-ai's own model makes of the same stream."""
    if sent.name in PYDANTIC_DIFFERS:
        pytest.skip(PYDANTIC_DIFFERS[sent.name])
    await check_events(sent)


@pytest.mark.timeout(600)
async def test_events_of_recorded_streams_are_pydantic_ais(recorded_streams: tuple[Sent, ...]) -> None:
    """The same for what real providers sent."""
    for sent in recorded_streams:
        if has_several_choices(sent):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # pydantic-ai knows some events only to say so
            await check_events(sent)


# --- the three readings -------------------------------------------------------------------------------------------


async def check_readings(sent: Sent, reads: Any = None) -> None:
    """Hold text and chunks to the events, and what is left behind by each to that of the others."""
    async with await wrap(sent, reads) as by_event:
        pieces: list[str] = []
        end = "end"
        try:
            async for event in by_event:
                pieces += [text_of(event)] if text_of(event) else []
        except Exception as error:
            end = f"{type(error).__name__}: {error}"

    async with await wrap(sent, reads) as by_piece:
        assert await outcome(by_piece.stream_text(delta=True)) == (pieces, end)
    async with await wrap(sent, reads) as by_text:
        whole = ["".join(pieces[: n + 1]) for n in range(len(pieces))]
        assert await outcome(by_text.stream_text()) == (whole, end)

    chunks, sdk_end = await outcome(await stream_of(reads or sent.sse() + DONE, responses=sent.responses))
    async with await wrap(sent, reads) as by_chunk:
        assert await outcome(by_chunk.chunks()) == (chunks, sdk_end)
    # What the SDK hands out as a chunk, and not as an error, fails only the readings that say what it means.
    assert sdk_end == end or end.startswith("Model")

    for response in (by_piece, by_text, by_chunk):
        assert plain(response.get()) == plain(by_event.get())
        if sdk_end == end:
            assert usage_of(response) == usage_of(by_event)


async def test_every_reading_leaves_the_same_behind(sent: Sent) -> None:
    """Text, chunks and events agree, and so do the message and the usage after each."""
    await check_readings(sent)
    data = sent.sse("\r\n") + DONE
    await check_readings(sent, [data[n : n + 50] for n in range(0, len(data), 50)])


async def test_every_reading_without_the_fast_lane(sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same of a stream that only the SDK can read."""
    monkeypatch.setattr(FastLane, "of", lambda _: None)
    await check_readings(sent)


@pytest.mark.timeout(600)
async def test_readings_of_recorded_streams(recorded_streams: tuple[Sent, ...]) -> None:
    """The same for what real providers sent."""
    for sent in recorded_streams:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            await check_readings(sent)


READINGS = ("events", "chunks", "text")


async def read_some(response: CancellableStreamedResponse, reading: str, number: int) -> None:
    """Read a few of whatever it is."""
    match reading:
        case "events":
            source: AsyncIterator[Any] = aiter(response)
        case "chunks":
            source = response.chunks()
        case _:
            source = response.stream_text(delta=True)
    for _ in range(number):
        try:
            await anext(source)
        except StopAsyncIteration:
            return


async def read_all(response: CancellableStreamedResponse, reading: str) -> None:
    await read_some(response, reading, 1000)


async def test_one_reading_goes_on_where_another_stopped(sent: Sent) -> None:
    """Whichever way a stream is read, and changed between, nothing is read twice and nothing is left out."""
    if sent.name in ("failed", "an error event"):
        pytest.skip("its end is an error")
    async with await wrap(sent) as whole:
        await read_some(whole, "events", 1000)
    for first, then, number in itertools.product(READINGS, READINGS, (1, 2, 5)):
        async with await wrap(sent) as response:
            await read_some(response, first, number)
            await read_some(response, then, number)
            await read_some(response, first, 1000)
        assert plain(response.get()) == plain(whole.get()), (first, then, number)
        assert usage_of(response) == usage_of(whole), (first, then, number)


async def test_the_message_is_there_at_any_time(sent: Sent) -> None:
    """Between any two chunks `get()` has what arrived by then, as if each had been mapped by itself."""
    chunks = [chunk async for chunk in await stream_of(sent.sse(), responses=sent.responses)]
    async with await wrap(sent) as response, await wrap(sent) as one_by_one:
        mine, theirs = response.chunks(), one_by_one.chunks()
        for _ in chunks:
            await anext(mine)
            await anext(theirs)
            one_by_one._feed.transcript.flush()
            assert plain(response.get()) == plain(one_by_one.get())


async def test_the_message_is_there_after_any_text(sent: Sent) -> None:
    """After each piece of text `get()` has all that came up to its chunk, and no more."""
    if sent.name in ("failed", "an error event"):
        pytest.skip("its end is an error")
    async with await wrap(sent) as response, await wrap(sent) as by_chunk:
        chunks, text = by_chunk.chunks(), ""
        async for piece in response.stream_text(delta=True):
            text += piece
            while answer_in(by_chunk.get()) != text:
                await anext(chunks)
            assert plain(response.get()) == plain(by_chunk.get())


# --- where we go our own way --------------------------------------------------------------------------------------


async def test_a_message_holds_the_choice_that_came_first() -> None:
    """Of several choices the message holds one; the others are handed out as chunks, and counted."""
    sent = by_name("several choices")
    async with await wrap(sent) as response:
        assert [text async for text in response.stream_text(delta=True)] == ["0 ", "2 ", "4 ", "6 ", "both"]
    assert response.get().text == "0 2 4 6 both"
    assert response.get().finish_reason == "stop"
    assert response.usage.output.value == 4
    # Without the provider's own number, both are counted.
    async with await wrap(Sent("no usage", sent.data[:-1])) as both, await wrap(by_name("text")) as one:
        [_ async for _ in both.chunks()]
        [_ async for _ in one.chunks()]
    assert both.usage.output.low >= 8 > one.usage.output.low


async def test_usage_in_every_chunk_is_a_total() -> None:
    """A provider that reports with every chunk reports totals; at any time the last one counts."""
    async with await wrap(by_name("usage in every chunk")) as response:
        numbers = [response.usage.output.value async for _ in response.chunks()]
    assert numbers == [1, 2, 3]
    assert (response.usage.input_tokens, response.usage.output_tokens) == (9, 3)
    assert response.usage.provenance == "reported"


async def test_malformed_chunks_end_nothing() -> None:
    """Chunks whose choices are none are handed out, and say nothing."""
    async with await wrap(by_name("malformed chunks")) as response:
        assert [event async for event in response] == []
    assert response.get().parts == []


@pytest.mark.parametrize("odd", ["null", "[]", "7", '"Hi"'])
async def test_what_is_no_object_says_nothing(odd: str) -> None:
    """The SDK hands it out, and so do we; the answer goes on."""
    sent = Sent("odd", (FIRST, chat(delta(content="a")), odd, chat(delta(content="b")), LAST))
    assert len((await outcome(await stream_of(sent.sse())))[0]) == 5
    for reading in READINGS:
        async with await wrap(sent) as response:
            await read_all(response, reading)
        assert (response.get().text, response.get().state) == ("ab", "complete")
    async with await wrap(sent) as response:
        assert len([chunk async for chunk in response.chunks()]) == 5


async def test_a_chunk_that_the_sdk_cannot_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the SDK's own error, of the chunk it belongs to; the answer has failed, and all is closed."""
    build = CLIENT._process_response_data

    def failing(*, data: Any, **kwargs: Any) -> Any:
        if "wörld" in repr(data):
            raise openai.APIResponseValidationError(kwargs["response"], data)
        return build(data=data, **kwargs)

    async with await wrap(by_name("text")) as response:
        monkeypatch.setattr(
            response._feed._lane, "_build", functools.partial(failing, **response._feed._lane._build.keywords)
        )
        chunks = response.chunks()
        assert [(await anext(chunks)).choices[0].delta.content for _ in range(2)] == ["", "Hello"]
        with pytest.raises(openai.APIResponseValidationError):
            await anext(chunks)
        await asyncio.wait_for(response._pull._closed.wait(), 5)
        assert response._feed.http.is_closed
        assert [chunk async for chunk in chunks] == []
    assert (response.get().text, response.get().state) == ("Hello", "incomplete")
    assert not response.cancelled


async def test_a_refusal_is_kept_when_it_is_cut() -> None:
    """What a model had refused with by the time of a cancel is in the message, where a whole one has it."""
    for sent in (by_name("a refusal"), by_name("a refusal", responses=True)):
        async with await wrap(sent) as response:
            async for chunk in response.chunks():
                if "can't" in repr(chunk):
                    response.cancel()
        message = response.get()
        assert message.state == "interrupted"
        assert message.provider_details is not None
        assert message.provider_details["refusal"] == "I can't"


async def test_log_probabilities_are_kept_when_they_are_cut() -> None:
    """As with a refusal."""
    async with await wrap(by_name("log probabilities")) as response:
        async for _ in response.chunks():
            response.cancel()
    details = response.get().provider_details
    assert details is not None
    assert [each["token"] for each in details["logprobs"]] == ["one"]


async def test_a_stream_that_ends_without_its_end_is_incomplete() -> None:
    """A Responses stream without a terminal event cannot pass for whole; one in the background can be taken up."""
    async with await wrap(by_name("no end", responses=True)) as response:
        [_ async for _ in response.stream_text()]
    assert response.get().state == "incomplete"
    async with await wrap(by_name("in the background", responses=True)) as background:
        [_ async for _ in background.stream_text()]
    message = background.get()
    assert message.state == "suspended"
    assert message.provider_details is not None
    assert message.provider_details["last_sequence_number"] == 5


@pytest.mark.parametrize("reading", READINGS)
async def test_an_error_in_the_stream(reading: str) -> None:
    """An error that the SDK raises comes as it is, whatever is read; what came before it is kept, and is not whole."""
    error = '{"error": {"message": "It broke.", "code": "server_error"}}'
    async with await wrap(by_name("text").with_data(error)) as response:
        with pytest.raises(openai.APIError, match="It broke"):
            await read_all(response, reading)
    assert response.get().text == "Hello wörld!\n"
    assert response.get().state == "incomplete"
    assert not response.cancelled


@pytest.mark.parametrize("name", ["failed", "an error event"])
async def test_a_response_that_failed(name: str) -> None:
    """What the SDK hands out as an event is an error to the readings that say what it means; then all is closed."""
    sent = by_name(name, responses=True)
    for reading in ("events", "text"):
        async with await wrap(sent) as response:
            with pytest.raises(ModelAPIError, match="It broke"):
                await read_all(response, reading)
            await asyncio.wait_for(response._pull._closed.wait(), 5)
            assert response._feed.http.is_closed
        assert response.get().state == "incomplete"
    async with await wrap(sent) as response:
        await read_all(response, "chunks")
    assert response.get().text == "Hello"
    assert response.get().state == "incomplete"
