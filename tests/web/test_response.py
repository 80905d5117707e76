"""`CancellableEventResponse` under uvicorn: what its client gets, what the model's server sees, what is saved."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncGenerator, Callable
from typing import Any, Literal

import h11
import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from web_support import LIMIT, AppServer, Client

from cancelstream import MemoryStopRegistry, is_incomplete, run_stream
from cancelstream.starlette import CancellableEventResponse, EventEncoder, StreamEnd, lifespan, stop_endpoint
from cancelstream.testing import Answer, Cut, Gap, Gate, HttpError, ScriptedServer, Silence, Text

SLOWLY = Text(*(f"word{number} " for number in range(10_000)), gap=0.002)
"""Goes on for 20 seconds: a test that waited for its end would be seen."""

MUCH = Text(*(["x" * 4096] * 300))
"""More than what is between the model and the client can hold: sockets, uvicorn's buffer, two batches in the outbox."""


class Chat:
    """An application with one streaming route, on uvicorn, over a scripted model."""

    def __init__(
        self, *turns: Any, factory: Callable[[Chat], Any] | None = None, wrap: Any = None, **response: Any
    ) -> None:
        self.model = ScriptedServer(*turns)
        self.registry = MemoryStopRegistry()
        self.ends: queue.SimpleQueue[tuple[Any, StreamEnd]] = queue.SimpleQueue()
        self.responses: list[CancellableEventResponse] = []
        self.middleware: list[Middleware] = []
        self.settings: dict[str, Any] = {}
        self._factory = factory or (lambda chat: run_stream(chat.agent, "hello"))
        self._wrap = wrap or (lambda app: app)
        self._response = {"registry": self.registry, "owner": "me", "on_end": self.save, **response}

    def save(self, result: Any) -> None:
        end = self.responses[-1].end
        assert end is not None
        self.ends.put((result, end))

    async def chat(self, request: Request) -> Response:
        response = CancellableEventResponse(lambda: self._factory(self), **self._response)
        self.responses.append(response)
        return response

    async def _route(self, request: Request) -> Response:
        return await self.chat(request)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncGenerator[None]:
        self._loop = asyncio.get_running_loop()
        async with AsyncOpenAI(base_url=self.model.base_url, api_key="none", max_retries=0) as self.client:
            self.agent = Agent(OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=self.client)))
            async with lifespan(self.registry)(app):
                yield

    def __enter__(self) -> Chat:
        stop = stop_endpoint(self.registry, owner=lambda request: request.headers.get("user"))
        app = Starlette(
            routes=[
                Route("/chat", self._route, methods=["POST"]),
                Route("/stop/{stop_id}", stop, methods=["POST"]),
            ],
            middleware=self.middleware,
            lifespan=self._lifespan,
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.model)
            self.server = stack.enter_context(AppServer(self._wrap(app), **self.settings))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        # A test that failed must not wait for what it left running.
        self._loop.call_soon_threadsafe(self.registry.drain)
        self._stack.close()
        assert self.ends.empty(), "on_end was called more often than the test looked"

    def post(self, path: str = "/chat", **more: Any) -> contextlib.AbstractAsyncContextManager[Client]:
        return Client.post(self.server.port, path, **more)

    async def stop(self, stop_id: str, user: str = "me") -> tuple[int, bytes]:
        async with self.post(f"/stop/{stop_id}", user=user) as client:
            return client.status, await client.body()

    async def end(self) -> tuple[Any, StreamEnd]:
        """What `on_end` was called with, and how the stream had ended then."""
        return await asyncio.to_thread(self.ends.get, timeout=LIMIT)

    async def until_stalled(self) -> None:
        """Return when the client's not reading holds up the reader of the stream."""
        async with asyncio.timeout(LIMIT):
            while True:
                stream = self.responses[-1]._stream if self.responses else None
                if stream is not None and stream.outbox.is_full:
                    return
                await asyncio.sleep(0.01)


# --- the way it goes --------------------------------------------------------------------------------------------


async def test_a_whole_answer() -> None:
    """Start, deltas and end, and `on_end` with the finished run."""
    with Chat(Answer(Text("Hel", "lo", " wörld\n"))) as chat:
        async with chat.post() as client:
            events = await client.events()
        result, end = await chat.end()
        assert client.status == 200
        assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert client.headers["cache-control"] == "no-store"
        assert client.headers["x-accel-buffering"] == "no"
        stop_id = client.headers["x-stop-id"]
        assert len(stop_id) == 24  # 144 bits
        assert events[:-1] == [
            ("start", {"stop_id": stop_id}),
            ("message", {"delta": "Hel"}),
            ("message", {"delta": "lo"}),
            ("message", {"delta": " wörld\n"}),
        ]
        reported = {"value": 3, "low": 3, "high": 3, "source": "reported"}
        name, told = events[-1]
        assert name == "end"
        assert (told["state"], told["reason"], told["provenance"], told["characters"]) == (
            "complete", None, "reported", 12,
        )  # fmt: skip
        assert told["usage"]["output"] == reported
        assert end.to_json() == told
        assert result.response.text == "Hello wörld\n"
        assert not result.cancelled


async def test_the_stop_button() -> None:
    """The client gets the end of a cut stream, the model's server is told, and what had arrived is saved as cut."""
    gate = Gate()
    with Chat(Answer(Text("Hel", "lo", gate, " world"))) as chat, contextlib.closing(chat.model):
        async with chat.post() as client:
            assert [await client.event() for _ in range(3)][1:] == [
                ("message", {"delta": "Hel"}),
                ("message", {"delta": "lo"}),
            ]
            assert await chat.stop(client.headers["x-stop-id"]) == (202, b'{"status":"accepted"}')
            name, told = await client.event()
            assert await client.events() == []
        result, _ = await chat.end()
        assert (name, told["state"], told["reason"], told["characters"]) == ("end", "interrupted", "user", 5)
        assert told["usage"]["output"]["source"] == "estimated"
        assert told["usage"]["output"]["low"] >= 1
        await (await chat.model.until_request()).until_disconnected()
        assert is_incomplete(result.all_messages()[-1])
        assert result.all_messages()[-1].parts[0].content == "Hello"


async def test_a_stop_while_the_model_has_not_answered_yet() -> None:
    """The client has its stop id before the model has sent a header, and Stop works."""
    with Chat(Answer(before_headers=Silence())) as chat:
        async with chat.post() as client:
            record = await chat.model.until_request()
            assert await client.event() == ("start", {"stop_id": client.headers["x-stop-id"]})
            await chat.stop(client.headers["x-stop-id"])
            [(_, told)] = await client.events()
        await record.until_disconnected()
        await chat.end()
        assert (told["state"], told["reason"], told["characters"]) == ("interrupted", "user", 0)


async def test_a_stop_that_comes_before_the_stream_keeps_it_from_asking_the_model() -> None:
    with Chat(Answer(Text("Hello"))) as chat:
        unstopped = chat.chat

        async def stopped_already(request: Request) -> Response:
            response = await unstopped(request)
            assert isinstance(response, CancellableEventResponse)
            assert response.stop_id is not None
            assert await chat.registry.stop(response.stop_id, owner="me") == "requested"
            return response

        chat.chat = stopped_already  # type: ignore[method-assign]
        async with chat.post() as client:
            events = await client.events()
        await chat.end()
        assert [name for name, _ in events] == ["start", "end"]
        assert (events[1][1]["state"], events[1][1]["reason"]) == ("interrupted", "user")
        assert chat.model.records == ()


async def test_somebody_else_cannot_stop_it_and_learns_nothing() -> None:
    gate = Gate()
    with Chat(Answer(Text("Hel", gate, "lo"))) as chat:
        async with chat.post() as client:
            await gate.until_reached()
            stop_id = client.headers["x-stop-id"]
            answers = {
                await chat.stop(stop_id, user="her"),
                await chat.stop("unknown"),
                await chat.stop("unknown", "her"),
            }
            gate.open()
            events = await client.events()
            answers |= {await chat.stop(stop_id)}  # ended
        assert answers == {(202, b'{"status":"accepted"}')}
        assert events[-1][1]["state"] == "complete"
        await chat.end()


async def test_without_a_registry_there_is_no_stop_id() -> None:
    with Chat(Answer(Text("Hello")), registry=None, owner=None) as chat:
        async with chat.post() as client:
            events = await client.events()
        assert "x-stop-id" not in client.headers
        assert events[0] == ("start", {"stop_id": None})
        assert events[-1][1]["state"] == "complete"
        await chat.end()


# --- the client leaves ------------------------------------------------------------------------------------------


def claims_asgi_2_4(app: ASGIApp) -> ASGIApp:
    """A server that promises to raise from `send` when the client is gone, and, like uvicorn, does not."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "asgi": {"version": "3.0", "spec_version": "2.4"}}
        await app(scope, receive, send)

    return wrapped


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        return await call_next(request)


AROUND: dict[str, Callable[[Chat], None]] = {
    "plain": lambda chat: None,
    "BaseHTTPMiddleware": lambda chat: chat.middleware.extend([Middleware(Passing), Middleware(Passing)]),
    "gzip": lambda chat: chat.middleware.append(Middleware(GZipMiddleware, minimum_size=1)),
    "ASGI 2.4": lambda chat: setattr(chat, "_wrap", claims_asgi_2_4),
    "ASGI 2.4 and BaseHTTPMiddleware": lambda chat: (
        chat.middleware.append(Middleware(Passing)),
        setattr(chat, "_wrap", claims_asgi_2_4),
    ),
}

UPSTREAM = {
    "emitting": Answer(SLOWLY),
    "silent": Answer(Text("Hello"), Silence()),
    "no headers": Answer(before_headers=Silence()),
    "stalled client": Answer(MUCH, Silence()),
}


@pytest.mark.parametrize("upstream", UPSTREAM)
@pytest.mark.parametrize(("around", "how"), [*((around, "FIN") for around in AROUND), ("plain", "RST")])
async def test_the_client_leaves(upstream: str, around: str, how: Literal["FIN", "RST"]) -> None:
    """The model's server is told, whatever is between, and what arrived is saved, once, with the reason."""
    chat = Chat(UPSTREAM[upstream])
    AROUND[around](chat)
    with chat:
        async with chat.post(window=4096) as client:
            record = await chat.model.until_request()
            assert (await client.event())[0] == "start"
            if upstream == "stalled client":
                await chat.until_stalled()
            elif upstream != "no headers":
                assert (await client.event())[0] == "message"
            await (client.close() if how == "FIN" else client.reset())
        await record.until_disconnected()
        result, end = await chat.end()
        assert (end.state, end.reason) == ("interrupted", "client_disconnect")
        assert (end.characters > 0) is (upstream != "no headers")
        last = result.all_messages()[-1] if end.characters else None
        assert last is None or is_incomplete(last)


async def test_a_save_that_awaits_is_not_cut_off_when_the_client_leaves() -> None:
    """The task of the request is cancelled then, at every `await` again; the save is not part of it."""
    saved: queue.SimpleQueue[str] = queue.SimpleQueue()

    async def save(result: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(0.01)
        saved.put(result.response.text)

    with Chat(Answer(Text("Hello"), Silence()), on_end=save) as chat:
        chat.middleware.append(Middleware(Passing))
        async with chat.post() as client:
            await client.event()
            await client.event()
        assert await asyncio.to_thread(saved.get, timeout=LIMIT) == "Hello"


@pytest.mark.parametrize("around", ["plain", "BaseHTTPMiddleware", "gzip"])
async def test_a_client_that_only_stalls_counts_as_gone_after_send_timeout(around: str) -> None:
    """Its connection is closed as well, and uvicorn, which waits for connections, ends while it is still there."""
    chat = Chat(Answer(MUCH, Silence()), send_timeout=0.2)
    AROUND[around](chat)
    async with contextlib.AsyncExitStack() as clients:
        with chat:
            client = await clients.enter_async_context(chat.post(window=4096))
            await (await chat.model.until_request()).until_disconnected()
            _, end = await chat.end()
            assert (end.state, end.reason) == ("interrupted", "client_disconnect")
        with pytest.raises((OSError, h11.RemoteProtocolError)):
            await client.body()


async def test_a_stop_does_not_wait_for_a_client_that_does_not_read() -> None:
    """The model's server is told and the answer is saved; when the client reads again, it gets the rest and the end."""
    with Chat(Answer(MUCH, Silence())) as chat:
        async with chat.post(window=4096) as client:
            await chat.until_stalled()
            await chat.stop(client.headers["x-stop-id"])
            await (await chat.model.until_request()).until_disconnected()
            _, end = await chat.end()
            assert (end.state, end.reason) == ("interrupted", "user")
            events = await client.events()
        assert sum(len(data["delta"]) for name, data in events if name == "message") == end.characters
        assert events[-1] == ("end", end.to_json())


async def test_a_slow_client_slows_the_reading_down() -> None:
    """Only so much is read ahead of it; everything arrives in the end."""
    with Chat(Answer(MUCH)) as chat:
        async with chat.post(window=4096) as client:
            await chat.until_stalled()
            stream = chat.responses[0]._stream
            assert stream is not None
            assert stream._characters < 300 * 4096
            events = await client.events()
        assert events[-1][1]["state"] == "complete"
        assert events[-1][1]["characters"] == 300 * 4096
        await chat.end()


async def test_continue_reads_to_the_end_without_the_client() -> None:
    gate = Gate()
    with Chat(Answer(Text("Hel", gate, "lo")), on_disconnect="continue") as chat:
        async with chat.post() as client:
            await client.event()
            await client.event()
        await until(lambda: chat.responses[0]._stream.outbox.dropping)  # type: ignore[union-attr]
        gate.open()
        result, end = await chat.end()
        assert (end.state, end.characters) == ("complete", 5)
        assert result.response.text == "Hello"
        assert chat.model.records[0].ended_by == "complete"


async def test_continue_can_still_be_stopped_without_the_client() -> None:
    """From another tab, say, and it does not stall for want of a client."""
    with Chat(Answer(MUCH, Silence()), on_disconnect="continue") as chat:
        async with chat.post(window=4096) as client:
            stop_id = client.headers["x-stop-id"]
        await (await chat.model.until_request()).until_chunks(300)
        assert await chat.stop(stop_id) == (202, b'{"status":"accepted"}')
        await chat.model.records[0].until_disconnected()
        _, end = await chat.end()
        assert (end.state, end.reason) == ("interrupted", "user")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.01)


async def test_pings_come_while_nothing_else_does() -> None:
    with Chat(Answer(Text("Hel", "lo"), Silence()), ping=0.05) as chat:
        async with chat.post() as client:
            said = [await client.event() for _ in range(3)]
            while len([name for name, _ in said if name == "message"]) < 2:  # on a slow machine a ping comes before
                said.append(await client.event())
            assert [await client.event() for _ in range(2)] == [("comment", "ping")] * 2
        assert said[0][0] == "start"
        await chat.end()


async def test_no_ping_is_sent_where_none_is_wanted_or_none_can_be() -> None:
    class Lines(EventEncoder):
        media_type = "application/x-ndjson"

    for unpinged in ({"ping": None}, {"ping": 0.01, "encode": Lines()}):
        gate = Gate()
        with Chat(Answer(Text("Hel", Gap(0.2), "lo")), **unpinged) as chat:
            async with chat.post() as client:
                gate.open()
                events = await client.events()
            await chat.end()
        assert "comment" not in [name for name, _ in events]


# --- failures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", [HttpError(500, "secret detail"), Answer(Text("Hel"), Cut("reset"))])
async def test_a_stream_that_fails_ends_too_and_tells_no_secret(turn: Any, caplog: pytest.LogCaptureFixture) -> None:
    with Chat(turn) as chat:
        async with chat.post() as client:
            events = await client.events()
        _, end = await chat.end()
    assert (events[-1][0], events[-1][1]["state"], events[-1][1]["reason"]) == ("end", "failed", None)
    assert "secret" not in str(events)
    assert end.error is not None
    assert "a stream failed" in caplog.text


async def test_a_run_that_times_out_is_interrupted_and_not_failed() -> None:
    def factory(chat: Chat) -> Any:
        return run_stream(chat.agent, "hello", timeout=0.1)

    with Chat(Answer(Text("Hello"), Silence()), factory=factory) as chat:
        async with chat.post() as client:
            events = await client.events()
        await chat.end()
        assert (events[-1][1]["state"], events[-1][1]["reason"]) == ("interrupted", "timeout")
        for record in chat.model.records:  # none, if the machine was too slow to ask in time
            await record.until_disconnected()


@pytest.mark.parametrize("factory", [lambda chat: 1 / 0, lambda chat: "text", lambda chat: contextlib.nullcontext()])
async def test_a_factory_that_gives_no_stream_is_an_error_of_the_server(
    factory: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with Chat(Answer(Text("Hello")), factory=factory) as chat:
        async with chat.post() as client:
            assert client.status == 500
        assert chat.ends.empty()


async def test_a_save_that_fails_is_logged_and_the_client_gets_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def save(result: Any) -> None:
        raise OSError("the database is away")

    with Chat(Answer(Text("Hello")), on_end=save) as chat:
        async with chat.post() as client:
            assert (await client.events())[-1][1]["state"] == "complete"
    assert "the database is away" in caplog.text


async def test_a_save_that_hangs_is_ended_after_finalize_timeout(caplog: pytest.LogCaptureFixture) -> None:
    ended: queue.SimpleQueue[type[BaseException]] = queue.SimpleQueue()

    async def save(result: Any) -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            ended.put(type(error))
            raise

    with Chat(Answer(Text("Hello")), on_end=save, finalize_timeout=0.1) as chat:
        async with chat.post() as client:
            assert (await client.events())[-1][1]["state"] == "complete"
    assert ended.get_nowait() is asyncio.CancelledError
    assert "on_end had not ended" in caplog.text


async def test_the_client_hears_of_the_end_when_it_is_saved() -> None:
    """So what it asks for next finds what was saved."""
    saving, saved = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    release: queue.SimpleQueue[None] = queue.SimpleQueue()

    async def save(result: Any) -> None:
        loop.call_soon_threadsafe(saving.set)
        await asyncio.to_thread(release.get)
        loop.call_soon_threadsafe(saved.set)

    with Chat(Answer(Text("Hello")), on_end=save) as chat:
        async with chat.post() as client:
            assert [name for name, _ in [await client.event(), await client.event()]] == ["start", "message"]
            await asyncio.wait_for(saving.wait(), LIMIT)
            end = asyncio.create_task(client.event())
            done, _ = await asyncio.wait([end], timeout=0.1)
            assert not done
            release.put(None)
            assert (await end)[0] == "end"
            await asyncio.wait_for(saved.wait(), LIMIT)


# --- the format --------------------------------------------------------------------------------------------------


async def test_usage_is_left_out_where_it_is_nobodys_business() -> None:
    with Chat(Answer(Text("Hello")), encode=EventEncoder(usage=False)) as chat:
        async with chat.post() as client:
            events = await client.events()
        await chat.end()
    assert events[-1] == ("end", {"state": "complete", "reason": None, "characters": 5})


async def test_an_encoder_of_ones_own() -> None:
    """What its methods return is sent as it is, and it may tell the error, if it wants to."""

    class Lines(EventEncoder):
        media_type = "text/plain"

        def __init__(self) -> None:
            self.headers = {"x-format": "lines"}

        def start(self, stop_id: str | None) -> str:
            return ""

        def item(self, item: Any) -> str:
            return f"{item}\n"

        def end(self, end: StreamEnd) -> str:
            return f"{end.state}: {type(end.error).__name__}\n"

    with Chat(Answer(Text("Hel", "lo"), Cut("reset")), encode=Lines()) as chat:
        async with chat.post() as client:
            assert client.headers["content-type"] == "text/plain; charset=utf-8"
            assert client.headers["x-format"] == "lines"
            assert await client.body() == b"Hel\nlo\nfailed: ModelConnectionError\n"
        await chat.end()


async def test_a_character_that_the_model_cut_in_two_arrives_whole() -> None:
    """Each half is escaped, and the client's own strings put them together."""
    encoder = EventEncoder()
    halves = [encoder.item(half) for half in ("\ud83d", "\ude00")]
    assert halves == ['data: {"delta":"\\ud83d"}\n\n', 'data: {"delta":"\\ude00"}\n\n']
    assert encoder.item("ü\r\n\n") == 'data: {"delta":"ü\\r\\n\\n"}\n\n'


def test_an_item_that_is_no_text_needs_an_encoder_of_its_own() -> None:
    with pytest.raises(TypeError, match="encode="):
        EventEncoder().item({"any": "thing"})
