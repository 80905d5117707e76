"""What `CancellableStream` refuses is closed: the next request goes out, on the one connection there is room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cancelstream.sync import CancellableStream

from .conftest import ASK, SILENT, WHOLE, Wire

MakeWire = Callable[..., Wire]


def chunks_of(stream: Any) -> Iterator[Any]:
    yield from stream


@pytest.mark.parametrize("name", ["httpx2", "httpx"])
def test_a_whole_answer_instead_of_a_stream(name: str, make_wire: MakeWire) -> None:
    """Written in one line, as the guide has it, there is no other handle to it."""
    wire = make_wire(name, WHOLE, WHOLE)
    with (
        pytest.raises(ValueError, match="no event stream"),
        CancellableStream(wire.client.chat.completions.create(**ASK, extra_body={"stream": False})),
    ):
        pass
    wire.serves()


@pytest.mark.parametrize("wrap", [chunks_of, lambda stream: [stream]])
def test_a_wrapped_client(wrap: Callable[[Any], Any], make_wire: MakeWire) -> None:
    """Something around the stream: the provider is told."""
    wire = make_wire("httpx2", SILENT, WHOLE)
    with pytest.raises(TypeError, match="expected openai's Stream"):
        CancellableStream(wrap(wire.client.chat.completions.create(**ASK)))
    wire.server.records[0].wait_disconnected()
    wire.serves()


def test_a_raw_response(make_wire: MakeWire) -> None:
    """The error says what to leave out."""
    wire = make_wire("httpx2", SILENT, WHOLE)
    with pytest.raises(TypeError, match="leave out `with_raw_response`"):
        CancellableStream(wire.client.chat.completions.with_raw_response.create(**ASK))  # type: ignore[arg-type]
    wire.server.records[0].wait_disconnected()
    wire.serves()


def test_over_http2(make_wire: MakeWire) -> None:
    """There the provider gets a reset."""
    wire = make_wire("httpx2-h2")
    stream = wire.client.chat.completions.create(**ASK, extra_headers={"x-play": "silent:3"})
    next(iter(stream))
    with pytest.raises(ValueError, match="read from before"):
        CancellableStream(stream)
    wire.serves()
    assert wire.server.streams[0].reset == 8


def test_a_stream_that_was_wrapped_before(make_wire: MakeWire) -> None:
    """Its first wrapper goes on."""
    wire = make_wire("httpx2", WHOLE)
    stream = wire.client.chat.completions.create(**ASK)
    with CancellableStream(stream) as first:
        with pytest.raises(ValueError, match="wrapped before"):
            CancellableStream(stream)
        assert [*first.stream_text(delta=True)] == ["0 ", "1 ", "2 "]
