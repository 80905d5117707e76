"""The HTTP libraries below a client: httpcore, httpx and httpx2, anyio's sockets, aiohttp.

Closing an HTTP/1.1 response closes its socket, and the server sees it. On HTTP/2 httpcore 1 and 2 only free their own
bookkeeping, with three consequences: no RST_STREAM is sent, so the server generates to the end; the connection
refuses its 101st stream; and the bytes that the server still sends are never acknowledged, until siblings starve.
`reset_http2_stream()` mends all three through httpcore's own h2 state.

A request that still waits for its headers has no response yet, and a source may keep its response to itself.
`find_http2_exchange()` finds the stream in the coroutine that waits for it, the way a debugger would: one of the calls
that the coroutine is suspended in is a method of httpcore's connection.

A response may be of any kind: mocks and other clients have none of these attributes and are left alone. Where an
upgrade has moved a private name, the response is only closed, as without this package; `missing()` says so once.

Known limits: `shut_socket()` and `abort()` act on a socket, so they are for HTTP/1.1, and never for a response that
has ended, whose connection may serve another request by now. The check and the act are two steps: a caller on another
thread than the reader's needs its own lock around both.
"""

from __future__ import annotations

import gc
import os
import select
import socket
from contextlib import suppress
from types import AsyncGeneratorType, CoroutineType, FrameType
from typing import Any, Final, NamedTuple

from . import missing

__all__ = (
    "Exchange",
    "abort",
    "discard_from_pool",
    "find_http2_exchange",
    "has_unread",
    "reset_http2_stream",
    "reset_http2_stream_blocking",
    "shut_and_report_loss",
    "shut_socket",
)

CANCEL: Final = 0x8
"""The error code "stream no longer needed". RFC 9113, section 7."""

DEPTH: Final = 200
"""How deep `find_http2_exchange()` looks; a request of openai's waits about 30 calls deep."""


class Exchange(NamedTuple):
    """One request on an HTTP/2 connection of httpcore's."""

    connection: Any
    stream_id: int
    request: Any


async def reset_http2_stream(response: Any) -> None:
    """Send RST_STREAM if the response is an unfinished HTTP/2 stream; never raises an `Exception`.

    To be called before the response is closed, on its loop: what has arrived and was not read is acknowledged to
    the connection, so that siblings keep their window.

    Args:
        response: A response, or the result of `find_http2_exchange()`.
    """
    exchange = response if isinstance(response, Exchange) else _http2(response)
    if exchange is None:
        return
    # The stream may have ended meanwhile: closing is then all that can be done.
    with suppress(Exception):
        _reset(exchange)
        await exchange.connection._write_outgoing_data(exchange.request)


def reset_http2_stream_blocking(response: Any) -> None:
    """`reset_http2_stream()` for a blocking client's response; in the thread that reads it, before it is closed."""
    exchange = _http2(response)
    if exchange is not None:
        with suppress(Exception):
            _reset(exchange)
            exchange.connection._write_outgoing_data(exchange.request)


def _reset(exchange: Exchange) -> None:
    """Have the connection's state write the reset, and the acknowledgement of what was not read; nothing is sent."""
    connection, stream_id, _ = exchange
    events = connection._events.get(stream_id, [])
    size = sum(getattr(event, "flow_controlled_length", None) or 0 for event in events)
    events.clear()
    if size:
        connection._h2_state.acknowledge_received_data(size, stream_id)
    with suppress(Exception):
        connection._h2_state.reset_stream(stream_id, CANCEL)


def find_http2_exchange(waiting: Any) -> Exchange | None:
    """The HTTP/2 request that a suspended coroutine or asynchronous generator waits for, if it waits for one."""
    with suppress(Exception):
        for _ in range(DEPTH):
            frame: FrameType | None = None
            inner: Any = None
            for kind, awaits in (("cr", "cr_await"), ("ag", "ag_await"), ("gi", "gi_yieldfrom")):
                if hasattr(waiting, awaits):
                    frame, inner = getattr(waiting, f"{kind}_frame"), getattr(waiting, awaits)
            if frame is not None and "stream_id" in frame.f_code.co_varnames:
                found = frame.f_locals
                if "stream_id" in found and hasattr(found["self"], "_h2_state"):
                    return Exchange(found["self"], found["stream_id"], found["request"])
            if inner is None:
                # Only the garbage collector sees what the objects that `__anext__` and `__await__` return drive.
                behind: list[Any] = gc.get_referents(waiting)
                inner = next((each for each in behind if type(each) in (AsyncGeneratorType, CoroutineType)), None)
            if inner is None:
                return None
            waiting = inner
    return None


def has_unread(response: Any) -> bool:
    """Whether bytes have arrived that closing the response now would lose; true if that cannot be known."""
    if getattr(response, "is_closed", True):
        return False
    try:
        exchange = _http2(response)
        if exchange is not None:
            events = exchange.connection._events.get(exchange.stream_id, [])
            return any(getattr(event, "data", None) for event in events) or _readable(_socket(response))
        client_response = _aiohttp(response)
        if client_response is not None:
            return bool(client_response.content._buffer)
        if "network_stream" not in response.extensions:
            return False  # a mock, or a client we do not know
        return _queued(response) or _readable(_socket(response))
    except Exception:  # noqa: BLE001 - a private attribute has moved
        missing("httpx2", "path to the bytes that were not read", "what a stop loses is not known, so bounds are wider")
        return True


def shut_and_report_loss(response: Any) -> bool:
    """Shut the socket of an HTTP/1.1 response, so that the server knows; say whether bytes that had arrived are lost.

    For the reader's own thread: there the response cannot end between the look and the act.
    """
    lost = has_unread(response)
    shut_socket(response)
    return lost


def shut_socket(response: Any) -> bool:
    """Shut the socket of an unfinished HTTP/1.1 response, from any thread; say whether that was done.

    The peer sees the end at once, and a reader blocked in `recv` wakes. The caller closes the response as well.
    """
    try:
        if response.is_closed or "stream_id" in response.extensions:
            return False
        sock = _socket(response)
        fileno = sock.fileno()
        if fileno < 0:
            return False
        # A duplicate, closed at once: uvloop's sockets refuse shutdown(), and an open one keeps the connection.
        with socket.socket(fileno=os.dup(fileno)) as duplicate:
            # Closed by another thread in between, its number may be another connection's by now.
            if sock.fileno() != fileno:
                return False
            duplicate.shutdown(socket.SHUT_RDWR)
    except Exception:  # noqa: BLE001 - not a socket, or gone already
        return False
    return True


def discard_from_pool(response: Any) -> None:
    """Have the pool drop an HTTP/1.1 connection whose socket was shut, although its response seems to end well.

    A pool looks at an idle connection's socket before it is used again, but between threads it may look before the
    connection is idle, and hand out a dead one. In the thread that reads, before the response is closed.
    """
    with suppress(Exception):  # then the pool's own look is all there is
        _stream_of(response)._connection._h11_state.send_failed()


def abort(response: Any) -> None:
    """Cut a connection that did not close by itself, without waiting; on the response's loop; raises no `Exception`."""
    with suppress(Exception):
        client_response = _aiohttp(response)
        if client_response is not None:
            client_response.close()
            return
    shut_socket(response)


def _http2(response: Any) -> Exchange | None:
    """The exchange behind an HTTP/2 response, `None` if it is none or was not found."""
    try:
        stream_id = response.extensions["stream_id"]
    except (AttributeError, KeyError, TypeError):
        return None
    try:
        return Exchange(_stream_of(response)._connection, stream_id, response.request)
    except AttributeError:
        missing("httpx2", "path from a response to its HTTP/2 connection", "a stopped HTTP/2 stream is not reset")
        return None


def _stream_of(response: Any) -> Any:
    """The connection's own stream, below httpx's, the transport's and the pool's: the same path in httpx and httpx2."""
    return response.stream._stream._httpcore_stream._stream


def _aiohttp(response: Any) -> Any:
    """The `aiohttp.ClientResponse` below openai's aiohttp transport, `None` if there is none."""
    stream = getattr(response, "stream", None)
    for _ in range(2):
        found = getattr(stream, "_aiohttp_response", None)
        if found is not None:
            return found
        stream = getattr(stream, "_stream", None)
    return None


def _socket(response: Any) -> Any:
    return response.extensions["network_stream"].get_extra_info("socket")


def _readable(sock: Any) -> bool:
    """Whether the kernel holds something to read."""
    fileno = sock.fileno()
    if fileno < 0:
        return False
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))


def _queued(response: Any) -> bool:
    """Whether anyio has read bytes from the kernel that httpcore has not asked for yet."""
    stream = response.extensions["network_stream"]._stream
    below = getattr(stream, "transport_stream", stream)  # below TLS
    return bool(below._protocol.read_queue)
