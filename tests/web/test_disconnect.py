"""`cancel_on_disconnect`: a handler that does not stream ends when its client leaves, and the model is told."""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from openai import AsyncOpenAI
from pydantic_ai import Agent, RunCancelled
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from web_support import LIMIT, AppServer, Client

from cancelstream.starlette import cancel_on_disconnect
from cancelstream.testing import Answer, ScriptedServer, Silence, Text

Handler = Callable[[Request, Agent[None, str]], Awaitable[Response]]


@contextlib.contextmanager
def application(model: ScriptedServer, handler: Handler, *, middleware: bool = False) -> Any:
    @contextlib.asynccontextmanager
    async def live(app: Any) -> AsyncGenerator[None]:
        nonlocal agent
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            agent = Agent(OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client)))
            yield

    async def route(request: Request) -> Response:
        return await handler(request, agent)

    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            return await call_next(request)

    agent: Any = None
    app = Starlette(
        routes=[Route("/", route, methods=["POST"])],
        lifespan=live,
        middleware=[Middleware(Passing)] if middleware else [],
    )
    with AppServer(app) as server:
        yield server


@pytest.mark.parametrize("middleware", [False, True])
async def test_the_client_leaves(middleware: bool) -> None:
    """The model's server is told at once, what was known of the run can be had, and a save that awaits works."""
    seen: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def handler(request: Request, agent: Agent[None, str]) -> Response:
        try:
            async with cancel_on_disconnect(request):
                try:
                    await agent.run((await request.body()).decode())
                except asyncio.CancelledError as error:
                    await asyncio.sleep(0.01)  # a save
                    seen.put(RunCancelled.from_cancellation(error))
                    raise
        except HTTPException as error:
            seen.put(error.status_code)
            raise
        return PlainTextResponse("never")

    with (
        ScriptedServer(Answer(before_headers=Silence())) as model,
        application(model, handler, middleware=middleware) as server,
    ):
        connection = asyncio.create_task(leave_when(server.port, model.until_request()))
        record = await model.until_request()
        await connection
        await record.until_disconnected()
        cancelled, status = [await asyncio.to_thread(seen.get, timeout=LIMIT) for _ in range(2)]
        assert isinstance(cancelled, RunCancelled)
        assert cancelled.all_messages()[0].parts[0].content == "a prompt"
        assert status == 499


async def leave_when(port: int, moment: Awaitable[object]) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 8\r\n\r\na prompt")
    await moment
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_client_that_stays_gets_its_answer() -> None:
    async def handler(request: Request, agent: Agent[None, str]) -> Response:
        async with cancel_on_disconnect(request):
            result = await agent.run((await request.body()).decode())
        return PlainTextResponse(result.output)

    with ScriptedServer(Answer(Text("Hello"))) as model, application(model, handler) as server:
        async with Client.post(server.port, "/", b"hi") as client:
            assert (client.status, await client.body()) == (200, b"Hello")


# --- who cancelled, by ASGI messages -----------------------------------------------------------------------------


def a_request(gone: asyncio.Event) -> Request:
    # The second is one that a server may send when it is asked again; it says nothing about the client.
    messages: list[Any] = [{"type": "http.request", "body": b"", "more_body": False} for _ in range(2)]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


async def test_somebody_elses_cancellation_flies_on() -> None:
    """In both orders with the client's leaving, and without it."""
    for client_leaves in ("before", "after", "never"):
        gone, inside = asyncio.Event(), asyncio.Event()

        async def handle(gone: asyncio.Event = gone, inside: asyncio.Event = inside) -> None:
            async with cancel_on_disconnect(a_request(gone)):
                inside.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0.02)  # both have come by then

        task = asyncio.create_task(handle())
        await inside.wait()
        if client_leaves == "before":
            gone.set()
            await asyncio.sleep(0.01)
        task.cancel()
        if client_leaves == "after":
            gone.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()


async def test_nothing_is_left_of_a_cancellation_that_the_block_answered_otherwise() -> None:
    """By swallowing it or by an error of its own: the task is not being cancelled any more."""
    task = asyncio.current_task()
    assert task is not None
    for error in (None, LookupError("of its own")):
        gone = asyncio.Event()
        gone.set()
        with contextlib.suppress(LookupError):
            async with cancel_on_disconnect(a_request(gone)):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if error is not None:
                        raise error from None
        assert task.cancelling() == 0


async def test_a_timeout_around_it_stays_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), cancel_on_disconnect(a_request(asyncio.Event())):
            await asyncio.Event().wait()


async def test_it_needs_a_task() -> None:
    """Code that is driven by hand has none."""
    context = cancel_on_disconnect(a_request(asyncio.Event()))
    seen: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    def by_hand() -> None:
        try:
            context.__aenter__().send(None)  # type: ignore[attr-defined]
        except BaseException as error:
            seen.set_result(error)

    asyncio.get_running_loop().call_soon(by_hand)
    assert "needs a task" in str(await seen)
