"""An answer is whole when its provider has said how it ended and all of it was handed out; then a stop changes nothing.

Every cut of scripted streams, through every raw door and reading: whatever the moment, all that a response says about
being whole says the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic_ai.messages import ModelRequest
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import CancellableModel, CancellableStreamedResponse, is_incomplete, open_stream
from cancelstream._openai import FastLane
from cancelstream._response import is_whole

from .support import ASK, ASK_RESPONSES, FIRST, LAST, USAGE, Body, Sent, by_name, call, chat, client_of, delta

LIMIT = 20
DONE = "[DONE]"

SENT = (
    by_name("usage at the end").with_data(DONE),
    Sent("the end comes with text", (FIRST, chat(delta(content="a")), chat(delta(content="b", finish_reason="stop")))),
    Sent(
        "the end comes with text and a call",
        (
            FIRST,
            chat(delta(content="a", tool_calls=[call(0, "{}", id="c", name="f")], finish_reason="tool_calls")),
            USAGE,
            DONE,
        ),
    ),
    by_name("tool calls").with_data(DONE),
    by_name("a refusal").with_data(DONE),
    by_name("reasoning").with_data(USAGE, DONE),
    by_name("several choices").with_data(DONE),
    by_name("no index").with_data(DONE),
    Sent("Azure looks on", (FIRST, chat(delta(content="a")), LAST, chat(delta()), USAGE, DONE)),
    by_name("text", responses=True),
    by_name("reasoning", responses=True),
    by_name("a function call", responses=True),
    by_name("cut at a limit", responses=True),
    by_name("in the background", responses=True),
    by_name("no end", responses=True),
)


def end_of(sent: Sent) -> int:
    """How many events it takes until the provider has said how the answer ended, all of its choices."""
    marks = ('"response.completed"', '"response.incomplete"', '"finish_reason": "')
    said = [n for n, data in enumerate(sent.data, 1) if any(mark in data for mark in marks)]
    return said[-1] if said else 10_000


def reads_of(sent: Sent) -> list[bytes]:
    return [Sent(sent.name, (data,), sent.responses).sse() for data in sent.data]


def open_raw(sent: Sent, body: Body) -> CancellableStreamedResponse:
    client: Any = client_of(body)
    several = {"n": 2} if sent.name == "several choices" else {}
    if sent.responses:
        return open_stream(client.responses.create, **ASK_RESPONSES)
    return open_stream(client.chat.completions.create, **ASK, **several)


def open_model(sent: Sent, body: Body) -> Any:
    kind: Any = OpenAIResponsesModel if sent.responses else OpenAIChatModel
    model = CancellableModel(kind("gpt-4o", provider=OpenAIProvider(openai_client=client_of(body))))
    return model.request_stream([ModelRequest.user_text_prompt("Hi")], None, ModelRequestParameters())


Open = Callable[[Sent, Body], Any]
Read = Callable[[Any], AsyncIterator[Any]]
DOORS: dict[str, tuple[Open, Read]] = {
    "text": (open_raw, lambda response: response.stream_text(delta=True)),
    "chunks": (open_raw, lambda response: response.chunks()),
    "events": (open_raw, aiter),
    "a model's events": (open_model, aiter),
}


def check(response: CancellableStreamedResponse, where: object) -> None:
    """All that a response says about being whole says the same."""
    message = response.get()
    if message.state == "incomplete":  # nobody stopped it; it ended, and pydantic-ai knows that this was too early
        assert (response.cancelled, is_incomplete(message), response.usage.complete) == (False, True, False), where
        return
    said = {
        "cancelled": response.cancelled,
        "reason": response.cancel_reason is not None,
        "state": message.state == "interrupted",
        "is_incomplete": is_incomplete(message),
        "usage": not response.usage.complete,
        "is_whole": not is_whole(response),
    }
    assert len(set(said.values())) == 1, (where, message.state, said)


@pytest.mark.parametrize("how", ["cancel", "leave"])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.usefixtures("without_debug")
async def test_at_every_item(door: str, how: str) -> None:
    """Stopped when so many items were handed out: whole only if the text that was handed out is the whole text."""
    for sent in SENT:
        await _at_every_item(sent, door, how)


@pytest.mark.parametrize("door", ["text", "chunks", "events"])
@pytest.mark.usefixtures("without_debug")
async def test_at_every_item_that_the_sdk_reads(door: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the fast lane."""
    monkeypatch.setattr(FastLane, "of", lambda _: None)
    for sent in SENT[::3]:
        await _at_every_item(sent, door, "cancel")


async def _at_every_item(sent: Sent, door: str, how: str) -> None:
    if sent.name == "in the background" and how == "leave":
        return  # it goes on without us, and can be resumed
    enter, read = DOORS[door]
    ended = False
    stopped: list[tuple[bool, str | None]] = []
    while not ended:
        items = 0
        async with enter(sent, Body(reads_of(sent))) as response:
            async for _ in read(response):
                items += 1
                if items > len(stopped):
                    if how == "cancel":
                        response.cancel("enough")
                        check(response, "at once")
                    break
            else:
                ended = True
        where = (sent.name, door, items)
        check(response, where)
        if door == "chunks" and not ended:
            assert is_whole(response) == (items >= end_of(sent)), where
        stopped.append((is_whole(response), response.get().text))
    assert stopped[-1][0] or sent.name in ("in the background", "no end"), sent.name
    assert sent.name == "no end" or {text for whole, text in stopped if whole} <= {stopped[-1][1]}, sent.name


@pytest.mark.parametrize("how", ["cancel", "task_cancelled"])
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.usefixtures("without_debug")
async def test_while_it_waits_for_each_chunk(door: str, how: str) -> None:
    """Stopped by another task when so many chunks had come: whole from the one on that says how the answer ended."""
    enter, read = DOORS[door]
    for sent in SENT:
        if sent.name == "in the background" and how == "task_cancelled":
            continue
        reads = reads_of(sent)
        for cut in range(1, len(reads) + (sent.data[-1] != DONE)):
            waits = asyncio.Event()
            async with enter(sent, Body(reads[:cut], waits=waits)) as response:
                items: list[Any] = []
                task = asyncio.create_task(_all(read(response), items))
                await asyncio.wait_for(waits.wait(), LIMIT)
                await asyncio.sleep(0)  # the reader waits, too
                if how == "cancel":
                    response.cancel("enough")
                    check(response, "at once")
                    await asyncio.wait_for(task, LIMIT)
                else:
                    task.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await task
            where = (sent.name, door, cut)
            check(response, where)
            known = door != "a model's events" or sent.name not in ("a refusal", "several choices")
            if known:  # pydantic-ai tells of a refusal, and of one choice
                assert is_whole(response) == (cut >= end_of(sent)), where


async def _all(source: AsyncIterator[Any], items: list[Any]) -> None:
    async for item in source:
        items.append(item)  # noqa: PERF401 - what came before a cut counts


async def test_what_it_cost_when_the_usage_did_not_come_any_more() -> None:
    """Stopped between the end and the usage: complete, with an estimate; stopped behind it, as reported."""
    sent = by_name("usage at the end")
    for cut, source in ((len(sent.data) - 1, "estimated"), (len(sent.data), "reported")):
        waits = asyncio.Event()
        async with open_raw(sent, Body(reads_of(sent)[:cut], waits=waits)) as response:
            task = asyncio.create_task(_all(response.stream_text(), []))
            await asyncio.wait_for(waits.wait(), LIMIT)
            response.cancel()
            await asyncio.wait_for(task, LIMIT)
        assert response.usage.complete
        assert response.usage.output.source == source
        assert response.usage.output.high is not None
    assert response.usage.output.value == 4


async def test_usage_that_had_arrived_is_read() -> None:
    """What came with the end in one read is counted, though nobody pulled it."""
    sent = by_name("usage at the end")
    async with open_raw(sent, Body([sent.sse()])) as response:
        async for chunk in response.chunks():
            if chunk.choices and chunk.choices[0].finish_reason:
                break
    assert (response.cancelled, response.usage.provenance, response.usage.output_tokens) == (False, "reported", 4)


async def test_what_the_sdk_had_read_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that had arrived and were not handed out are counted on the SDK's own lane, as on the fast one."""
    monkeypatch.setattr(FastLane, "of", lambda _: None)
    sent = by_name("a longer text")
    async with open_raw(sent, Body([sent.sse()])) as response:
        async for _ in response.stream_text():
            response.cancel()
    assert response.get().text == "I"
    assert response.usage.output.low > 5
