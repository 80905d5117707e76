"""`CancellableEventResponse`: a streamed response that tells the model at once when its client is gone.

A raw ASGI response with three parts: the reader of the stream (`_stream.py`), the task of the request, which sends,
and a listener for `http.disconnect`. It listens whatever ASGI version the server claims, because a server that claims
2.4 is expected to raise from `send` when the client is gone, and uvicorn's `send` does not. No generator is left at a
`yield` when the client goes, so none waits for the garbage collector with its connection open.

Known limits. A client that vanishes without a word (no FIN, no RST) is noticed when a ping or an event can no longer
be sent, after `send_timeout`; one that stays connected and does not read, likewise: under uvicorn its connection is
then aborted, where another server leaves it to the system. Behind a proxy, "the client" is
the proxy. Servers that end a request by cancelling its task are taken at their word: the stream is stopped.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, nullcontext
from typing import TYPE_CHECKING, Any, Literal, cast

import anyio
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .._errors import named
from .._response import CancellableStreamedResponse
from .._stops import StopRegistry, keys
from .._upstream.uvicorn import abort_connection
from ._encode import EventEncoder
from ._outbox import StreamEnd
from ._stream import OnEnd, Source, Stream, kind_of, what_to_write

if TYPE_CHECKING:
    from pydantic_ai.ui import UIAdapter

__all__ = ("CancellableEventResponse",)

DISCONNECTED = "client_disconnect"


class _ClientGoneError(Exception):
    """Nothing can be sent any more."""


class CancellableEventResponse(Response):
    """Streams a run to a client as Server-Sent Events, and stops it when the client leaves or Stop is pressed.

    Return it from a Starlette or FastAPI handler. For one request, in its event loop.

    The client gets a start with the stop id, which is in the header `X-Stop-Id` too, the deltas, and an end that says
    `{state, reason, usage, provenance, characters}`, also when the stream was stopped or failed. When the end comes,
    `on_end` is done.

    Args:
        factory: Makes what is streamed: `run_stream(...)`, `run_stream_events(...)`, `open_stream(...)`, or any async
            context manager that has a `cancel()` and gives something to iterate. Called when the response starts;
            what it makes is entered then, so the request to the model starts inside the response.
        registry: Where the stream can be found and stopped, as by `stop_endpoint`. Without one only the client's
            leaving stops it.
        owner: Who may stop it: the authenticated user's id. Required with a registry.
        on_end: Called with the result once, for every end there is, whether or not the client is still there; may be
            a coroutine function. An exception that it raises is logged.
        on_disconnect: `'cancel'` stops the stream when the client leaves; `'continue'` reads it to its end for
            `on_end`, or until it is stopped.
        ping: After how many seconds without an event a comment is sent, so that proxies keep the connection and a
            client that vanished is noticed; `None` for never.
        send_timeout: How many seconds the client may take to accept what is sent; then it counts as gone, and uvicorn's
            connection to it is closed.
        finalize_timeout: How many seconds closing the stream, and `on_end`, may each take.
        encode: The format, plain Server-Sent Events unless given. A pydantic-ai `UIAdapter` speaks its own protocol;
            `factory` has to make a run of events then, best by `run_adapter`.

    Attributes:
        stop_id: 144 random bits; `None` without a registry.

    Raises:
        TypeError: A `factory` that is no function but a run, a registry without an owner, an owner that is no string,
            or an `encode` that is no format.
        ValueError: An owner that is empty, or an unknown `on_disconnect`.
    """

    def __init__(
        self,
        factory: Callable[[], Source],
        *,
        registry: StopRegistry | None = None,
        owner: str | None = None,
        on_end: OnEnd | None = None,
        on_disconnect: Literal["cancel", "continue"] = "cancel",
        ping: float | None = 15.0,
        send_timeout: float = 30.0,
        finalize_timeout: float = 10.0,
        encode: EventEncoder | UIAdapter[Any, Any, Any, Any, Any] | None = None,
    ) -> None:
        _check_factory(factory)
        if on_disconnect not in ("cancel", "continue"):
            raise ValueError(f"on_disconnect is 'cancel' or 'continue', not {named(on_disconnect)}")
        self.stop_id: str | None = None
        if registry is not None:
            self.stop_id = secrets.token_urlsafe(18)
            # A handler that has no user must hear of it when it is written, not when a Stop does not work.
            keys(self.stop_id, cast("str", owner))
        self._factory = factory
        self._registry = registry
        self._owner = owner
        self._on_end = on_end
        self._on_disconnect = on_disconnect
        self._ping = ping
        self._send_timeout = send_timeout
        self._finalize_timeout = finalize_timeout
        self._encoder = _encoder(encode)
        self._stream: Stream | None = None
        self.status_code = 200
        self.background: BackgroundTask | None = None
        self.media_type = self._encoder.media_type
        self.init_headers(
            {
                "cache-control": "no-store",
                "x-accel-buffering": "no",  # nginx holds events back otherwise
                **({"x-stop-id": self.stop_id} if self.stop_id else {}),
                **self._encoder.headers,
            }
        )

    @property
    def end(self) -> StreamEnd | None:
        """How the stream ended, `None` while it goes on; `on_end` may ask."""
        return None if self._stream is None else self._stream.end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request: called by the framework.

        Raises:
            TypeError: `factory` made something that cannot be streamed.
            RuntimeError: It was called before; a response is for one request.
        """
        if self._stream is not None:
            raise RuntimeError("this response has been sent: make one for each request")
        encoder = self._encoder
        self._stream = stream = Stream(
            self._factory(), encoder.read, encoder.pack, self._on_end, self._finalize_timeout
        )
        with self._registered(stream):
            reader = asyncio.create_task(stream.run(), name="cancelstream: read a stream")
            try:
                await self._deliver(stream, scope, receive, send)
            except BaseException:
                self._lost(stream, "task_cancelled")
                raise
            finally:
                await _until_done(reader, stream)
        if self.background is not None:
            await self.background()

    def _registered(self, stream: Stream) -> AbstractContextManager[object]:
        if self._registry is None or self._owner is None:
            return nullcontext()
        return self._registry.register(self.stop_id, stream.stop, owner=self._owner)

    def _lost(self, stream: Stream, reason: str) -> None:
        """No client is there to send to any more."""
        stream.outbox.drop()
        if reason != DISCONNECTED or self._on_disconnect == "cancel":
            stream.stop(reason)

    async def _deliver(self, stream: Stream, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end or until the client is gone."""
        client = _Client(scope, receive, send, self._send_timeout)
        with anyio.CancelScope() as sending:

            def gone() -> None:
                # At once, and not when the sending task has found out: it may be stuck in the middle of a send.
                self._lost(stream, DISCONNECTED)
                sending.cancel()

            helpers = [asyncio.create_task(client.listen(gone), name="cancelstream: listen for the client's leaving")]
            try:
                await client.start(self.status_code, self.raw_headers)
                if self._ping is not None and self._encoder.media_type == EventEncoder.media_type:
                    helpers.append(asyncio.create_task(client.ping(self._ping, gone), name="cancelstream: ping"))
                async with aclosing(self._encoder.frames(self.stop_id, stream.outbox)) as frames:
                    async for frame in frames:
                        await client.send(frame.encode())
                await client.send(b"", more=False)
            except _ClientGoneError:
                gone()
            finally:
                for helper in helpers:
                    helper.cancel()
                with anyio.CancelScope(shield=True):
                    await asyncio.wait(helpers)


def _check_factory(factory: object) -> None:
    # pydantic-ai's own context managers can be called, as decorators.
    is_run = isinstance(factory, AbstractAsyncContextManager)
    if callable(factory) and not is_run:
        return
    if isinstance(factory, CancellableStreamedResponse):
        factory.cancel()  # the one that is open before it is entered
    raise TypeError(
        f"factory is a function that makes the run inside the response, not {kind_of(factory)} that is there already: "
        f"{what_to_write(factory)}"
    )


def _encoder(encode: EventEncoder | UIAdapter[Any, Any, Any, Any, Any] | None) -> EventEncoder:
    if encode is None:
        return EventEncoder()
    if isinstance(encode, EventEncoder):
        return encode
    if not hasattr(encode, "build_event_stream"):
        raise TypeError(f"encode= is an EventEncoder or a pydantic-ai UIAdapter, not {named(encode)}")
    from ._adapter import AdapterEncoder  # most applications never need what it imports

    return AdapterEncoder(encode)


class _Client:
    """The other side of a request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, timeout: float) -> None:
        # Over HTTP/2 other requests have the same connection.
        self._has_connection = str(scope.get("http_version", "")).startswith("1")
        self._receive = receive
        self._send = send
        self._timeout = timeout
        self._sending = asyncio.Lock()
        self._last_sent = 0.0

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._give({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, body: bytes, *, more: bool = True) -> None:
        await self._give({"type": "http.response.body", "body": body, "more_body": more})

    async def _give(self, message: Message) -> None:
        async with self._sending:
            try:
                with anyio.fail_after(self._timeout):
                    await self._send(message)
            # Servers and middlewares raise these when the client has gone; TimeoutError is an OSError too.
            except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
                if isinstance(error, TimeoutError) and self._has_connection and abort_connection(self._receive):
                    await asyncio.sleep(0)  # the server is told of it
                raise _ClientGoneError from None
            self._last_sent = asyncio.get_running_loop().time()

    async def listen(self, gone: Callable[[], None]) -> None:
        """Wait until it leaves."""
        while (await self._receive())["type"] != "http.disconnect":
            pass
        gone()

    async def ping(self, interval: float, gone: Callable[[], None]) -> None:
        """Send a comment whenever nothing else was sent for `interval` seconds."""
        now = asyncio.get_running_loop().time
        while True:
            wait = self._last_sent + interval - now()
            try:
                await (asyncio.sleep(wait) if wait > 0 else self.send(b": ping\n\n"))
            except _ClientGoneError:
                gone()
                return


async def _until_done(reader: asyncio.Task[None], stream: Stream) -> None:
    """Wait for the reader's end, however often this task is cancelled meanwhile: a stop bounds it."""
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not reader.done():
            try:
                await asyncio.wait([reader])
            except asyncio.CancelledError as error:
                stream.stop("task_cancelled")
                cancelled = error
    if cancelled is not None:
        raise cancelled
    if not reader.cancelled():
        reader.result()
