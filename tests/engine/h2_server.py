"""A small HTTP/2 provider on a real socket, plain or with TLS, that records what became of each stream.

It speaks the protocol with the `h2` library, on an event loop in a thread of its own. What it answers is said by the
request's `x-play` header:

- `silent:N`: N chunks, then nothing;
- `drip:N`: N chunks, one every 2 ms;
- `flood:N`: N chunks of 16 KB, as fast as flow control allows;
- `whole:N`: N chunks at once, and the end;
- `never`: not even headers.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import h2.exceptions

MAX_STREAMS = 100
FLOOD_SIZE = 16_000


def sse(index: int, size: int = 0) -> bytes:
    chunk = {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": f"{index} ".ljust(size, ".")}, "finish_reason": None}],
    }
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


@dataclass(eq=False)
class Stream:
    """What the server saw of one request."""

    connection: int
    stream_id: int
    play: str
    chunks: int = 0
    reset: int | None = None
    """The error code of the client's RST_STREAM."""
    reset_at: float | None = None
    complete: bool = False
    lost: bool = False
    """Its connection was closed."""
    task: asyncio.Task[None] | None = None
    window: asyncio.Event = field(default_factory=asyncio.Event)


class H2Server:
    def __init__(self, ssl_context: ssl.SSLContext | None = None) -> None:
        self._ssl = ssl_context
        self.streams: list[Stream] = []
        self.connections: list[_Connection] = []
        self.changed = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="h2-server")
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    async def until(self, holds: Any, what: str, limit: float = 5.0) -> None:
        """Wait, in any loop, until something holds of what was recorded."""

        def wait() -> bool:
            with self.changed:
                return self.changed.wait_for(holds, limit)

        if not await asyncio.to_thread(wait):
            raise TimeoutError(f"not within {limit} s: {what}; {self.streams}")

    async def until_stream(self, index: int) -> Stream:
        await self.until(lambda: len(self.streams) > index, f"request {index}")
        return self.streams[index]

    async def until_told(self, index: int) -> Stream:
        """Wait until the client has reset the stream of a request."""
        stream = await self.until_stream(index)
        await self.until(lambda: stream.reset is not None, f"RST_STREAM for request {index}")
        return stream

    def tell(self) -> None:
        with self.changed:
            self.changed.notify_all()

    async def _serve(self) -> None:
        if self._ssl is not None:
            self._ssl.set_alpn_protocols(["h2"])
        self._server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, ssl=self._ssl)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"{'http' if self._ssl is None else 'https'}://localhost:{port}"

    async def _stop(self) -> None:
        self._server.close()
        tasks = [stream.task for stream in self.streams if stream.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for connection in self.connections:
            connection.transport.close()
        await asyncio.sleep(0.02)  # TLS says goodbye


class _Connection(asyncio.Protocol):
    def __init__(self, server: H2Server) -> None:
        self._server = server
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self._index = len(self._server.connections)
        self._server.connections.append(self)
        self._streams: dict[int, Stream] = {}
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS})
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        for stream in self._streams.values():
            stream.lost = stream.lost or not stream.complete
            if stream.task is not None:
                stream.task.cancel()
        self._server.tell()

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                headers = {str(name): str(value) for name, value in event.headers or ()}
                stream = Stream(self._index, event.stream_id or 0, headers.get("x-play", "whole:3"))
                self._streams[stream.stream_id] = stream
                self._server.streams.append(stream)
                stream.task = asyncio.get_running_loop().create_task(self._answer(stream))
            elif isinstance(event, h2.events.DataReceived):
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            elif isinstance(event, h2.events.StreamReset):
                stream = self._streams[event.stream_id or 0]
                stream.reset, stream.reset_at = int(event.error_code or 0), time.monotonic()
                if stream.task is not None:
                    stream.task.cancel()
            elif isinstance(event, h2.events.WindowUpdated):
                for stream in self._streams.values():
                    stream.window.set()
        self._flush()
        self._server.tell()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self.closed:
            self.transport.write(data)

    async def _answer(self, stream: Stream) -> None:
        play, _, number = stream.play.partition(":")
        if play == "never":
            return
        self._h2.send_headers(stream.stream_id, [(":status", "200"), ("content-type", "text/event-stream")])
        self._flush()
        with suppress(h2.exceptions.ProtocolError):  # reset meanwhile
            for index in range(int(number)):
                await self._send(stream, sse(index, FLOOD_SIZE if play == "flood" else 0))
                stream.chunks += 1
                self._server.tell()
                if play == "drip":
                    await asyncio.sleep(0.002)
            if play != "silent":
                await self._send(stream, b"data: [DONE]\n\n")
                self._h2.end_stream(stream.stream_id)
                self._flush()
                stream.complete = True
                self._server.tell()

    async def _send(self, stream: Stream, data: bytes) -> None:
        while data:
            room = min(
                self._h2.local_flow_control_window(stream.stream_id), self._h2.max_outbound_frame_size, len(data)
            )
            if room <= 0:
                stream.window.clear()
                await stream.window.wait()
                continue
            self._h2.send_data(stream.stream_id, data[:room])
            data = data[room:]
            self._flush()
            # One frame a turn, so that a reset is heard between two.
            await asyncio.sleep(0)
