"""What is read from the HTTP libraries' insides is still there, and nothing breaks where it is not.

A failure here after an upgrade means: HTTP/2 streams are no longer reset, or what closing loses is no longer known.
Mend the paths in `_upstream/http.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import httpx2
import pytest

from cancelstream import PeekableAsyncStream
from cancelstream._upstream import http
from cancelstream.testing import Answer, Burst, Gate, Text

from .conftest import H1, H2, LIMIT, SILENT, Wire

MakeWire = Callable[..., Wire]


class TestCanaries:
    """Each asserts a path into a library, on a live connection."""

    @pytest.mark.parametrize("name", H2)
    async def test_the_way_to_an_http2_connection(self, name: str, make_wire: MakeWire) -> None:
        wire = make_wire(name)
        stream = await wire.open("silent:1")
        exchange = http._http2(stream.response)
        assert exchange is not None, "httpx's streams no longer lead to httpcore's connection"
        connection, stream_id, request = exchange
        assert stream_id == 1
        assert connection._events[stream_id] == [] or connection._events[stream_id][0].stream_id == stream_id
        assert callable(connection._h2_state.reset_stream)
        assert callable(connection._h2_state.acknowledge_received_data)
        assert asyncio.iscoroutinefunction(connection._write_outgoing_data)
        assert isinstance(request.extensions, dict)
        await http.reset_http2_stream(stream.response)
        await wire.until_told()
        await stream.close()

    @pytest.mark.parametrize("name", H2)
    async def test_the_way_to_a_request_without_a_response(self, name: str, make_wire: MakeWire) -> None:
        wire = make_wire(name)
        opening = asyncio.create_task(wire.open("never"))
        await wire.until_requested(0)
        for _ in range(50):
            await asyncio.sleep(0)
        exchange = http.find_http2_exchange(opening.get_coro())
        assert exchange is not None, "httpcore's handle_async_request no longer has what it had"
        assert exchange.stream_id == 1
        await http.reset_http2_stream(exchange)
        await wire.until_told()
        opening.cancel()
        await asyncio.wait([opening])

    @pytest.mark.parametrize("name", [name for name in H1 if "aiohttp" not in name])
    async def test_the_way_to_what_anyio_has_queued(self, name: str, make_wire: MakeWire) -> None:
        wire = make_wire(name, SILENT)
        stream = await wire.open()
        assert http._queued(stream.response) is False
        assert http._socket(stream.response).fileno() >= 0
        await stream.close()

    @pytest.mark.parametrize("name", [name for name in H1 if "aiohttp" in name])
    async def test_the_way_to_aiohttps_response(self, name: str, make_wire: MakeWire) -> None:
        wire = make_wire(name, SILENT)
        stream = await wire.open()
        response = http._aiohttp(stream.response)
        assert response is not None, "openai's aiohttp transport no longer keeps aiohttp's response"
        assert len(response.content._buffer) >= 0
        await stream.close()


class TestTell:
    async def test_a_finished_stream_is_not_reset(self, make_wire: MakeWire) -> None:
        """Telling about a stream that has ended changes nothing for the connection."""
        wire = make_wire("httpx2-h2")
        stream = await wire.open("whole:2")
        async for _ in stream:
            pass
        seen = await wire.server.until_stream(0)
        await http.reset_http2_stream(stream.response)
        await wire.serves()
        assert seen.complete
        assert len(wire.server.connections) == 1

    @pytest.mark.parametrize(
        "response",
        [
            None,
            object(),
            SimpleNamespace(extensions={}),
            SimpleNamespace(extensions={"stream_id": 1}, stream=None),
            httpx.Response(200),
            httpx2.Response(200),
        ],
    )
    async def test_whatever_is_no_http2_response_is_left_alone(self, response: Any) -> None:
        """A mock, another client's response, none at all: nothing happens, nothing is raised."""
        await http.reset_http2_stream(response)
        assert http.shut_socket(response) is False
        http.abort(response)
        assert http.has_unread(response) is False

    async def test_a_moved_attribute_falls_back_to_closing(self, make_wire: MakeWire) -> None:
        """When an upgrade has moved what `tell()` needs, the stream still ends and is closed."""
        wire = make_wire("httpx2-h2")
        source = await wire.open("silent:1")
        exchange = http._http2(source.response)
        assert exchange is not None
        exchange.connection._events = None
        stream = PeekableAsyncStream(source)
        await asyncio.wait_for(stream.cancel(), LIMIT)
        assert stream.cancelled
        assert source.response.is_closed
        assert stream._lost, "what cannot be known is assumed"


class TestShutdown:
    @pytest.mark.parametrize("name", ["httpx2", "httpx", "httpx2-tls", "httpx-tls"])
    async def test_the_server_sees_the_end(self, name: str, make_wire: MakeWire) -> None:
        """The socket of an unfinished response is shut down; the client's own handle stays usable for closing."""
        wire = make_wire(name, SILENT)
        stream = await wire.open()
        assert http.shut_socket(stream.response) is True
        await wire.until_told()
        await stream.close()
        assert http.shut_socket(stream.response) is False

    async def test_never_a_connection_that_serves_others(self, make_wire: MakeWire) -> None:
        """A finished response, whose connection is pooled, and an HTTP/2 one are refused."""
        wire = make_wire("httpx2", Answer(Text("0 ")), Answer(Text("0 ")))
        stream = await wire.open()
        async for _ in stream:
            pass
        assert http.shut_socket(stream.response) is False
        assert wire.server.connections == 1

        two = make_wire("httpx2-h2")
        stream = await two.open("silent:1")
        assert http.shut_socket(stream.response) is False
        await stream.close()


class TestUnread:
    @pytest.mark.parametrize("name", ["httpx2", "httpx", "httpx2-tls", "httpx-tls", "aiohttp", "aiohttp-tls"])
    async def test_what_waits_in_the_socket_is_seen(self, name: str, make_wire: MakeWire) -> None:
        """Bytes that arrived and that nobody has read would be lost by closing; without them nothing would be."""
        gate = Gate()
        wire = make_wire(name, Answer(Text("0 ", gate, "1 "), Burst(Text(*["more "] * 3000)), Text(Gate())))
        stream = await wire.open()
        chunks = aiter(stream)
        while not (await anext(chunks)).choices[0].delta.content:
            pass
        assert http.has_unread(stream.response) is False
        gate.open()
        record = await wire.server.until_request(0, LIMIT)
        await record.until_chunks(3002, LIMIT)
        await anext(chunks)
        deadline = asyncio.get_running_loop().time() + LIMIT
        while not http.has_unread(stream.response):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0)
        await stream.close()
        assert http.has_unread(stream.response) is False
