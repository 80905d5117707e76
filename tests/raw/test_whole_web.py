"""The end event says what the stream says: whole once the provider has said how the answer ended, at every cut."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from starlette.types import Message

from cancelstream import CancellableStreamedResponse, MemoryStopRegistry, is_incomplete, open_stream
from cancelstream.starlette import CancellableEventResponse

from .support import ASK, Body, Sent, by_name, client_of

LIMIT = 20
SENT = by_name("usage at the end")
SAID = next(number for number, data in enumerate(SENT.data, 1) if '"finish_reason": "' in data)


async def stopped_at(cut: int, how: str) -> tuple[dict[str, Any], CancellableStreamedResponse]:
    """The end event, and the stream, of an answer that is stopped when so many chunks had come."""
    waits, gone = asyncio.Event(), asyncio.Event()
    reads = [Sent(SENT.name, (data,)).sse() for data in SENT.data[:cut]]
    client: Any = client_of(Body(reads, waits=waits))
    stream = open_stream(client.chat.completions.create, **ASK)
    registry = MemoryStopRegistry()
    ends: list[Any] = []
    response = CancellableEventResponse(
        lambda: stream, registry=registry, owner="me", ping=None, on_end=lambda result: ends.append(result)
    )
    sent: list[Message] = []

    async def receive() -> Message:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    serving = asyncio.create_task(response({"type": "http"}, receive, send))
    async with asyncio.timeout(LIMIT):
        await waits.wait()
        await asyncio.sleep(0)  # the reader waits, too
        if how == "stop":
            assert response.stop_id is not None
            await registry.stop(response.stop_id, owner="me")
        else:
            gone.set()
        await serving
    assert ends == [stream]
    text = b"".join(message.get("body", b"") for message in sent).decode()
    _, _, end = text.rpartition("event: end\ndata: ")
    return json.loads(end) if how == "stop" else {}, stream


@pytest.mark.parametrize("how", ["stop", "disconnect"])
async def test_at_every_chunk(how: str) -> None:
    """State and reason of the end event, the message, the usage and `cancelled` agree, for a client that left, too."""
    for cut in range(1, len(SENT.data) + 1):
        end, stream = await stopped_at(cut, how)
        whole = cut >= SAID
        assert stream.cancelled == is_incomplete(stream.get()) == (not stream.usage.complete) == (not whole), cut
        if how == "stop":
            assert (end["state"], end["reason"]) == (("complete", None) if whole else ("interrupted", "user")), cut
