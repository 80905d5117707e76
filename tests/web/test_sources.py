"""What can be streamed besides our own runs, and that every one of them ends; without a server, by ASGI messages."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import anyio
import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from openai import AsyncOpenAI
from pydantic_ai import Agent, CancellationToken
from pydantic_ai.models.test import TestModel
from starlette.background import BackgroundTask
from starlette.types import Message

from cancelstream import CancellableStreamedResponse, MemoryStopRegistry
from cancelstream.starlette import CancellableEventResponse
from cancelstream.starlette import _outbox as outbox
from cancelstream.testing import Answer, ScriptedServer, Silence, Text

LIMIT = 10.0


class Source:
    """A source that does as little as it can: it gives its items, and then waits to be cancelled."""

    def __init__(self, *items: Any, forever: bool = True) -> None:
        self.items = items
        self.forever = forever
        self.cancelled_with: list[str | None] = []
        self.entered = self.left = False
        self.error: BaseException | None = None
        self.given = asyncio.Event()
        self._cancelled = asyncio.Event()

    def cancel(self, reason: str | None = None) -> None:
        self.cancelled_with.append(reason)
        self._cancelled.set()

    async def __aenter__(self) -> Any:
        self.entered = True
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, where: object) -> None:
        self.left = True
        self.error = error

    async def __aiter__(self) -> AsyncGenerator[Any]:
        for item in self.items:
            if self._cancelled.is_set():
                return
            yield item
        self.given.set()
        if self.forever:
            await self._cancelled.wait()


class Request:
    """One request by ASGI messages: what was sent, and a client that leaves when it is told to."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.failing: Exception | None = None
        self._sent = asyncio.Condition()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.failing is not None:
            raise self.failing
        async with self._sent:
            self.sent.append(message)
            self._sent.notify_all()

    async def serve(self, response: CancellableEventResponse) -> None:
        async with asyncio.timeout(LIMIT):
            await response({"type": "http"}, self.receive, self.send)

    async def until_sent(self, text: str) -> None:
        async with asyncio.timeout(LIMIT), self._sent:
            await self._sent.wait_for(lambda: text in self.text)

    @property
    def text(self) -> str:
        return b"".join(message.get("body", b"") for message in self.sent).decode()

    @property
    def end(self) -> dict[str, Any]:
        _, _, end = self.text.rpartition("event: end\ndata: ")
        told: dict[str, Any] = json.loads(end)
        return told


async def test_a_source_that_keeps_no_account() -> None:
    """Its text is sent, and its usage is unknown, not zero."""
    request = Request()
    await request.serve(CancellableEventResponse(lambda: Source("a", "b", forever=False), ping=None))
    assert request.text.startswith('event: start\ndata: {"stop_id":null}\n\ndata: {"delta":"a"}\n\n')
    assert request.end == {
        "state": "complete", "reason": None, "usage": None, "provenance": "unknown", "characters": 2,
    }  # fmt: skip
    assert request.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_a_stop_before_it_is_read_and_one_after_its_end() -> None:
    """The first keeps it from giving anything, the second is a no-op."""
    registry = MemoryStopRegistry()
    for early in (True, False):
        source = Source("a", forever=False)
        response = CancellableEventResponse(lambda source=source: source, registry=registry, owner="me", ping=None)
        assert response.stop_id is not None
        if early:
            await registry.stop(response.stop_id, owner="me")
        request = Request()
        await request.serve(response)
        if not early:
            await registry.stop(response.stop_id, owner="me")
        assert request.end["state"] == ("interrupted" if early else "complete")
        assert request.end["reason"] == ("user" if early else None)
        assert source.cancelled_with == (["user"] if early else [])
        assert source.left


async def test_the_first_of_several_reasons_counts() -> None:
    """Stopped by the user, then the client leaves, then the server ends."""
    registry, source, request = MemoryStopRegistry(), Source("a"), Request()
    saving = asyncio.Event()

    async def save(result: Any) -> None:
        request.gone.set()
        registry.drain()
        await asyncio.sleep(0)
        saving.set()

    response = CancellableEventResponse(lambda: source, registry=registry, owner="me", on_end=save, ping=None)
    serving = asyncio.create_task(request.serve(response))
    await request.until_sent('"a"')
    assert response.end is None
    await registry.stop(response.stop_id or "", owner="me")
    await serving
    assert source.cancelled_with == ["user"]
    assert response.end is not None
    assert response.end.reason == "user"
    assert saving.is_set()


@pytest.mark.parametrize("error", [OSError("gone"), anyio.BrokenResourceError(), anyio.ClosedResourceError()])
async def test_a_send_that_raises_is_a_client_that_left(error: Exception) -> None:
    """As servers of ASGI 2.4 and middlewares tell it."""
    source, request = Source("a"), Request()
    serving = asyncio.create_task(request.serve(CancellableEventResponse(lambda: source, ping=0.01)))
    await request.until_sent('"a"')
    request.failing = error
    await serving
    assert source.cancelled_with == ["client_disconnect"]


async def test_a_start_that_cannot_be_sent_stops_it_too() -> None:
    source, request = Source("a"), Request()
    request.failing = OSError("gone")
    await request.serve(CancellableEventResponse(lambda: source))
    assert source.cancelled_with == ["client_disconnect"]
    assert source.left


async def test_what_entering_gives_is_what_is_read_and_stopped() -> None:
    """A context may give something else than itself, and a stop may come before that exists."""

    class Opening:
        def __init__(self) -> None:
            self.inner = Source("a")
            self.asked: list[str] = []
            self.go_on = asyncio.Event()

        def cancel(self, reason: str) -> None:
            self.asked.append(reason)

        async def __aenter__(self) -> Source:
            await self.go_on.wait()
            return self.inner

        async def __aexit__(self, *_: object) -> None:
            await self.inner.__aexit__(*_)

    registry, opening, request = MemoryStopRegistry(), Opening(), Request()
    ended: list[Any] = []
    response = CancellableEventResponse(lambda: opening, registry=registry, owner="me", on_end=ended.append, ping=None)
    serving = asyncio.create_task(request.serve(response))
    await request.until_sent("event: start")
    await registry.stop(response.stop_id or "", owner="me")
    opening.go_on.set()
    await serving
    assert opening.asked == opening.inner.cancelled_with == ["user"]
    assert ended == [opening.inner]
    assert request.end["state"] == "interrupted"


async def test_what_entering_gives_need_not_be_cancellable() -> None:
    class Opening(Source):
        async def __aenter__(self) -> Any:
            return aiter(self)

    registry, source, request = MemoryStopRegistry(), Opening("a"), Request()
    response = CancellableEventResponse(lambda: source, registry=registry, owner="me", ping=None)
    serving = asyncio.create_task(request.serve(response))
    await request.until_sent('"a"')
    await registry.stop(response.stop_id or "", owner="me")
    await serving
    assert request.end["state"] == "interrupted"
    early = Opening("a", forever=False)
    await registry.stop("x", owner="me")
    response = CancellableEventResponse(lambda: early, registry=registry, owner="me", ping=None)
    await registry.stop(response.stop_id or "", owner="me")
    await Request().serve(response)
    assert early.left


async def test_a_cancel_that_is_a_coroutine_function_is_run() -> None:
    class Awaited(Source):
        async def cancel(self, reason: str | None = None) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            super().cancel(reason)

    source, request = Awaited("a"), Request()
    serving = asyncio.create_task(request.serve(CancellableEventResponse(lambda: source, ping=None)))
    await source.given.wait()
    request.gone.set()
    await serving
    assert source.cancelled_with == ["client_disconnect"]


async def test_a_source_that_ignores_its_cancel_is_left_after_the_deadline() -> None:
    """Every stream ends: its reader is cancelled, and so closes it."""

    class Deaf(Source):
        def cancel(self, reason: str | None = None) -> None:
            self.cancelled_with.append(reason)

    source, request = Deaf("a"), Request()
    response = CancellableEventResponse(lambda: source, ping=None, finalize_timeout=0.1)
    serving = asyncio.create_task(request.serve(response))
    await source.given.wait()
    request.gone.set()
    await serving
    assert isinstance(source.error, asyncio.CancelledError)
    assert response.end is not None
    assert (response.end.state, response.end.reason) == ("interrupted", "client_disconnect")


async def test_a_source_whose_cancel_raises_is_left_at_once(caplog: pytest.LogCaptureFixture) -> None:
    class Unstoppable(Source):
        def cancel(self, reason: str | None = None) -> None:
            raise NotImplementedError("cannot be stopped")

    source, request = Unstoppable("a"), Request()
    response = CancellableEventResponse(lambda: source, ping=None, finalize_timeout=60)
    serving = asyncio.create_task(request.serve(response))
    await source.given.wait()
    request.gone.set()
    await serving
    assert isinstance(source.error, asyncio.CancelledError)
    assert "cancel callable raised" in caplog.text


async def test_closing_what_is_read_is_not_torn_by_the_cancellation() -> None:
    """A generator that is left at its `yield`, as a client that does not read leaves it, closes with its `await`s."""
    closed = asyncio.Event()

    class Unstoppable(Source):
        def cancel(self, reason: str | None = None) -> None:
            raise NotImplementedError("cannot be stopped")

        async def __aiter__(self) -> AsyncGenerator[Any]:
            try:
                while True:
                    yield "a"
            finally:
                for _ in range(3):
                    await asyncio.sleep(0)
                closed.set()

    class Stalled(Request):
        async def send(self, message: Message) -> None:
            if b"delta" in message.get("body", b""):
                await asyncio.Event().wait()
            await super().send(message)

    request, response = Stalled(), CancellableEventResponse(Unstoppable, ping=None)
    serving = asyncio.create_task(request.serve(response))
    async with asyncio.timeout(LIMIT):
        while response._stream is None or len(response._stream.outbox._items) < outbox.LIMIT:
            await asyncio.sleep(0)
    request.gone.set()
    await serving
    assert closed.is_set()


async def test_a_source_that_is_a_task_of_its_own_is_not_asked_what_it_does_not_know() -> None:
    """`cancelled` may be a method, as a task's is, and says nothing then."""

    class Foreign(Source):
        def cancelled(self) -> bool:
            raise AssertionError("not for us")

    request = Request()
    await request.serve(CancellableEventResponse(lambda: Foreign("a", forever=False), ping=None))
    assert request.end["state"] == "complete"


async def test_the_task_of_the_request_is_cancelled() -> None:
    """By a server that ends it, even twice: the stream is stopped and saved, and the cancellation flies on."""
    source, request = Source("a"), Request()
    saving, saved = asyncio.Event(), asyncio.Event()

    async def save(result: Any) -> None:
        saving.set()
        await asyncio.sleep(0.05)
        saved.set()

    response = CancellableEventResponse(lambda: source, ping=None, on_end=save)
    serving = asyncio.create_task(request.serve(response))
    await source.given.wait()
    serving.cancel()
    await saving.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert saved.is_set()
    assert source.cancelled_with == ["task_cancelled"]


async def test_the_reader_itself_is_cancelled() -> None:
    """When a loop ends, it cancels every task there is: what arrived is saved, and nothing is taken for whole."""
    source, request, ended = Source("a"), Request(), []
    response = CancellableEventResponse(lambda: source, ping=None, on_end=ended.append)
    serving = asyncio.create_task(request.serve(response))
    await source.given.wait()
    [reader] = [task for task in asyncio.all_tasks() if task.get_name() == "cancelstream: read a stream"]
    reader.cancel()
    await serving
    assert ended == [source]
    assert (request.end["state"], request.end["reason"]) == ("interrupted", "task_cancelled")


async def test_continue_is_ended_by_a_server_that_cannot_wait() -> None:
    source, request = Source("a"), Request()
    response = CancellableEventResponse(lambda: source, ping=None, on_disconnect="continue")
    serving = asyncio.create_task(request.serve(response))
    await source.given.wait()
    request.gone.set()
    done, _ = await asyncio.wait([serving], timeout=0.05)
    assert not done
    assert source.cancelled_with == []
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert source.cancelled_with == ["task_cancelled"]


async def test_a_background_task_runs_after_the_stream() -> None:
    order: list[str] = []
    response = CancellableEventResponse(
        lambda: Source("a", forever=False), ping=None, on_end=lambda result: order.append("saved")
    )
    response.background = BackgroundTask(order.append, "background")
    await Request().serve(response)
    assert order == ["saved", "background"]


async def test_a_response_is_for_one_request() -> None:
    response = CancellableEventResponse(lambda: Source("a", forever=False), ping=None)
    await Request().serve(response)
    with pytest.raises(RuntimeError, match="one for each request"):
        await Request().serve(response)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"registry": MemoryStopRegistry()}, TypeError),
        ({"registry": MemoryStopRegistry(), "owner": ""}, ValueError),
        ({"registry": MemoryStopRegistry(), "owner": 7}, TypeError),
        ({"on_disconnect": "stop"}, ValueError),
    ],
)
def test_mistakes_are_told_in_the_handler_and_not_by_a_stop_that_does_not_work(
    wrong: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        CancellableEventResponse(lambda: Source(), **wrong)


# --- by name -----------------------------------------------------------------------------------------------------


async def test_a_raw_openai_stream() -> None:
    """`CancellableStreamedResponse.from_openai`: the model's server is told, the text is kept."""
    ended: list[Any] = []
    with ScriptedServer(Answer(Text("Hel", "lo"), Silence())) as server:
        async with AsyncOpenAI(base_url=server.base_url, api_key="none") as client:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            request = Request()
            response = CancellableEventResponse(
                lambda: CancellableStreamedResponse.from_openai(stream), on_end=ended.append, ping=None
            )
            serving = asyncio.create_task(request.serve(response))
            await request.until_sent('"lo"')
            request.gone.set()
            await serving
            await (await server.until_request()).until_disconnected()
    assert ended[0].get().parts[0].content == "Hello"
    assert response.end is not None
    assert (response.end.characters, response.end.provenance != "unknown") == (5, True)


async def test_pydantic_ais_own_run_with_its_own_token() -> None:
    """Any context with a `cancel`: here one that is put together by hand."""

    class Own:
        def __init__(self) -> None:
            self.token = CancellationToken()
            self.cancel = self.token.cancel

        @contextlib.asynccontextmanager
        async def run(self) -> AsyncIterator[Any]:
            agent = Agent(TestModel(custom_output_text="one two"))
            async with agent.run_stream_events("hi", cancellation_token=self.token) as events:
                yield events

        async def __aenter__(self) -> Any:
            self._context = self.run()
            return await self._context.__aenter__()

        async def __aexit__(self, *error: Any) -> Any:
            return await self._context.__aexit__(*error)

    request = Request()
    await request.serve(CancellableEventResponse(Own, ping=None))
    assert "".join(json.loads(line[6:])["delta"] for line in request.text.split("\n") if '"delta"' in line) == "one two"
    assert request.end["state"] == "complete"
