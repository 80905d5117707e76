"""One client's connection: HTTP/1.1 by h11 on an asyncio protocol.

A protocol, not streams: reading is never paused, so a client's FIN (`eof_received`) or reset (`connection_lost` with
an error) is seen in the loop turn that it arrives in, also while the script is silent. It ends the answer under way
at once: its task is cancelled.

Requests on one connection are answered one after the other, as HTTP/1.1 has it; further bytes wait in h11's buffer.

Known limits: no `HEAD` and no `CONNECT`. A connection that does not speak HTTP is closed without a word.
"""

from __future__ import annotations

import asyncio
import http.client
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import h11

__all__ = ("Answering", "Connection", "Request", "Watcher")


@dataclass(frozen=True)
class Request:
    """A request that has arrived whole."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    connection: int


class Answering(Protocol):
    """Answers one request."""

    async def run(self) -> None:
        """Answer it; cancelled when the client leaves or the server is closed."""
        ...

    def left(self, how: Literal["FIN", "RST"]) -> None:
        """The client has just gone away."""
        ...

    def over(self) -> None:
        """The answer has ended, however it did, or was never begun."""
        ...


class Watcher(Protocol):
    """The part of its server that a connection needs."""

    def opened(self, connection: Connection) -> int:
        """A client connected; returns the connection's number."""
        ...

    def arrived(self, request: Request, connection: Connection) -> Answering:
        """A request has arrived."""
        ...

    def closed(self, connection: Connection) -> None:
        """The connection is gone."""
        ...

    def failed(self, error: BaseException) -> None:
        """The server's own code raised."""
        ...


class Connection(asyncio.Protocol):
    """A client, from accept to close."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._http = h11.Connection(h11.SERVER)
        self._head: h11.Request | None = None
        self._body = bytearray()
        self._answering: Answering | None = None
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._ours = False  # we are the ones who close
        self._number: int
        self._transport: asyncio.Transport

    # --- what the loop calls -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  (what asyncio gives a TCP protocol)
        self._transport = transport
        # No buffer of our own: what was written is with the system, or the script waits for the client. (A TLS
        # transport pauses at its mark, a plain one above it.)
        transport.set_write_buffer_limits(high=0 if transport.get_extra_info("sslcontext") is None else 1, low=0)
        self._number = self._watcher.opened(self)

    def data_received(self, data: bytes) -> None:
        """Feed h11."""
        self._http.receive_data(data)
        self._read()

    def eof_received(self) -> None:
        """The client sent FIN. Returning nothing closes our side as well."""
        self._left("FIN")

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone; an error with no FIN before it is a reset."""
        # EPIPE says that a FIN had come before our write did.
        self._left("RST" if isinstance(exc, OSError) and not isinstance(exc, BrokenPipeError) else "FIN")
        self._watcher.closed(self)

    def pause_writing(self) -> None:
        """The client does not keep up."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It does again."""
        self._writable.set()

    # --- reading -------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Take what h11 has; a whole request starts its answer."""
        try:
            while self._task is None:
                event = self._http.next_event()
                if isinstance(event, h11.Request):
                    if event.method in (b"HEAD", b"CONNECT"):
                        self._transport.close()
                        return
                    self._head = event
                    if self._http.they_are_waiting_for_100_continue:
                        self._put(h11.InformationalResponse(status_code=100, headers=[]))
                elif isinstance(event, h11.Data):
                    self._body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    self._begin()
                else:
                    return  # it needs more
        except h11.RemoteProtocolError:
            self._transport.close()

    def _begin(self) -> None:
        head = self._head
        assert head is not None  # noqa: S101  (h11 gives the request before its end)
        path, _, query = head.target.decode("ascii").partition("?")
        headers: dict[str, str] = {}
        for raw_name, raw_value in head.headers:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        request = Request(head.method.decode("ascii"), path, query, headers, bytes(self._body), self._number)
        self._body.clear()
        self._answering = self._watcher.arrived(request, self)
        self._task = asyncio.get_running_loop().create_task(self._answering.run())
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        """The answer has ended: take the next request, or close."""
        assert self._answering is not None  # noqa: S101  (it was set with the task)
        self._answering.over()
        self._task = self._answering = None
        if task.cancelled():
            self._transport.abort()
        elif (error := task.exception()) is not None:
            self._watcher.failed(error)
            self._transport.abort()
        elif self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
            self._read()
        else:
            self._transport.close()

    def _left(self, how: Literal["FIN", "RST"]) -> None:
        if self._task is not None:
            if not self._ours and self._answering is not None:
                self._answering.left(how)
            self._task.cancel()

    # --- answering -----------------------------------------------------------------------------------------------

    async def head(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the status line and headers."""
        self._put(_head(status, headers))
        await self._taken()

    async def write(self, data: bytes) -> None:
        """Send part of the body in one write, and wait while the client does not keep up."""
        self._put(h11.Data(data=data))
        await self._taken()

    def finish(self, data: bytes = b"") -> None:
        """Send the rest of the body and its end in one write; then await `flushed`."""
        self._put(h11.Data(data=data), h11.EndOfMessage())

    def respond(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a whole response in one write; then await `flushed`."""
        head = _head(status, {**headers, "content-length": str(len(body))})
        self._put(head, h11.Data(data=body), h11.EndOfMessage())

    @property
    def is_flushed(self) -> bool:
        """Whether the system has everything that was written."""
        return self._writable.is_set()

    async def flushed(self) -> None:
        """Wait until it has."""
        await self._writable.wait()

    def reset(self) -> None:
        """Break the connection off with RST: with a linger of zero the system drops what was not sent."""
        self._ours = True
        raw = self._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def hang_up(self) -> None:
        """Close the connection with FIN, after what was written, wherever the body stands."""
        self._ours = True
        self._transport.close()

    def abort(self) -> None:
        """Close at once and end the answer under way: the server is being closed."""
        self._ours = True
        if self._task is not None:
            self._task.cancel()
        self._transport.abort()

    def _put(self, *events: h11.Event) -> None:
        self._transport.write(b"".join(self._http.send(event) or b"" for event in events))

    async def _taken(self) -> None:
        """At least one turn of the loop, so that a client's leaving is seen between any two writes."""
        await asyncio.sleep(0)
        await self.flushed()


def _head(status: int, headers: Mapping[str, str]) -> h11.Response:
    reason = http.client.responses.get(status, "")
    return h11.Response(status_code=status, reason=reason, headers=list(headers.items()))
