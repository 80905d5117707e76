"""A client with nothing in between: plain bytes on a plain socket."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import struct
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from cancelstream.testing import ScriptedServer

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"


def request(path: str, body: Any, *, method: str = "POST", extra: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{extra}content-length: {len(data)}\r\n\r\n".encode() + data


@contextlib.contextmanager
def connected(server: ScriptedServer, context: ssl.SSLContext | None = None) -> Iterator[socket.socket]:
    url = urlsplit(server.url)
    assert url.hostname is not None
    with socket.create_connection((url.hostname, url.port), timeout=5) as plain:
        if context is None:
            yield plain
        else:
            with context.wrap_socket(plain, server_hostname=url.hostname) as wrapped:
                yield wrapped


def read_until(sock: socket.socket, wanted: bytes) -> bytes:
    """Everything up to and including what came with `wanted`."""
    got = b""
    while wanted not in got:
        more = sock.recv(65536)
        assert more, f"closed after {got!r}"
        got += more
    return got


def read_to_end(sock: socket.socket) -> bytes:
    got = b""
    while more := sock.recv(65536):
        got += more
    return got


def close_with_reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def stream(path: str = CHAT, **rest: Any) -> bytes:
    return request(path, {"model": "m", "messages": [], "stream": True, **rest})


def payloads(body: bytes) -> list[Any]:
    """The `data:` payloads of an SSE body, as JSON where they are."""
    found: list[Any] = []
    for line in body.split(b"\n"):
        if line.startswith(b"data: "):
            text = line[len(b"data: ") :].decode()
            try:
                found.append(json.loads(text))
            except ValueError:
                found.append(text)
    return found
