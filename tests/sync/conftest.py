"""Every way in which openai's blocking client can reach a server, and an event loop for each test."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from cancelstream import _tokens
from cancelstream.sync import CancellableStream
from cancelstream.testing import Answer, Record, ScriptedServer, Silence, Text

# The server for HTTP/2 is the engine tests', the streams to read are the raw tests'.
TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "engine"), str(TESTS / "raw")]

LIMIT = 10.0
"""Seconds that anything may take here."""

H1 = ("httpx2", "httpx", "httpx2-tls", "httpx-tls")
SILENT = Answer(Text("0 ", "1 ", "2 ", Silence()))
WHOLE = Answer(Text("0 ", "1 ", "2 "))

ASK: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}], "stream": True}


@pytest.fixture(scope="session", autouse=True)
def vocabulary() -> None:
    """What counts tokens is loaded before the first test: in the middle of one, an estimate would change."""
    _tokens.load("o200k_base")


class Wire:
    """A blocking client with room for one connection, and the server it talks to."""

    def __init__(self, client: openai.OpenAI, server: Any) -> None:
        self.client = client
        self.server = server

    def open(self, play: str = "silent:3", **request: Any) -> CancellableStream[Any]:
        """Ask for a stream; an HTTP/2 server plays what `play` says."""
        stream = self.client.chat.completions.create(**{**ASK, **request}, extra_headers={"x-play": play})
        return CancellableStream(stream)

    @property
    def record(self) -> Record:
        """The latest request."""
        record: Record = self.server.records[-1]
        return record

    def serves(self) -> None:
        """The next request is served at once, on the one connection there is room for."""
        with self.open("whole:3") as stream:
            assert len([*stream.stream_text()]) == 3


@pytest.fixture
def make_wire(certificates: Any) -> Iterator[Callable[..., Wire]]:
    server_context, client_context = certificates
    with ExitStack() as stack:

        def make(name: str, *answers: Answer, repeat: bool = False, read: float = 30) -> Wire:
            library: Any = httpx if name.split("-")[0] == "httpx" else httpx2
            tls = name.endswith("-tls")
            http = library.Client(
                http2="-h2" in name,
                http1="-h2" not in name,
                verify=client_context,
                limits=library.Limits(max_connections=1),
                timeout=library.Timeout(read, pool=2.0),
            )
            context = server_context() if tls else None
            if "-h2" in name:
                from h2_server import H2Server

                server: Any = stack.enter_context(H2Server(context))
            else:
                server = stack.enter_context(ScriptedServer(*answers, repeat=repeat, ssl_context=context))
            client = openai.OpenAI(api_key="none", base_url=server.base_url, http_client=http, max_retries=0)
            stack.callback(client.close)
            return Wire(client, server)

        yield make


@pytest.fixture
def wire(request: pytest.FixtureRequest, make_wire: Callable[..., Wire]) -> Wire:
    """A server that falls silent after three words, and answers the next request whole."""
    return make_wire(getattr(request, "param", "httpx2"), SILENT, WHOLE)


@pytest.fixture
def thread_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The loop of this thread, which blocking runs are driven on; closed after the test."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    asyncio.set_event_loop(None)
    loop.close()
