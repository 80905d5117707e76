"""Every way in which openai's asynchronous client can reach a server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from typing import Any

import httpx
import httpx2
import pytest_asyncio
from openai import AsyncOpenAI, DefaultAioHttpClient

from cancelstream.testing import Answer, ScriptedServer, Silence, Text

from .h2_server import H2Server

LIMIT = 20.0

H1 = ("httpx2", "httpx", "aiohttp", "httpx2-tls", "httpx-tls", "aiohttp-tls")
H2 = ("httpx2-h2", "httpx-h2", "httpx2-h2-tls", "httpx-h2-tls")


class Wire:
    """A client with room for one connection, the server it talks to, and what the server saw."""

    def __init__(self, name: str, client: AsyncOpenAI, server: Callable[..., Any]) -> None:
        self.name = name
        self.client = client
        self._start = server
        self.server: Any = None

    @property
    def is_http2(self) -> bool:
        return "h2" in self.name

    def play(self, *answers: Answer, repeat: bool = False) -> None:
        """Start the server. An HTTP/2 one answers what each request's `x-play` header says."""
        self.server = self._start(*answers, repeat=repeat)
        self.client.base_url = self.server.base_url

    async def open(self, play: str = "silent:3") -> Any:
        """Ask for a stream."""
        return await self.client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True, extra_headers={"x-play": play}
        )

    async def until_requested(self, index: int) -> None:
        if self.is_http2:
            await self.server.until_stream(index)
        else:
            await self.server.until_request(index, LIMIT)

    async def until_told(self, index: int = 0) -> float:
        """Wait until the server knows that nobody listens to a request any more; return when it knew."""
        if self.is_http2:
            stream = await self.server.until_told(index)
            assert stream.reset == 8, "CANCEL, nothing else"
            return float(stream.reset_at)
        record = await self.server.until_request(index, LIMIT)
        return float(await record.until_disconnected(LIMIT))

    async def serves(self) -> None:
        """The next request is served at once, on the one connection there is room for."""
        started = time.monotonic()
        stream = await self.open("whole:3")
        got = [chunk async for chunk in stream]
        assert len(got) >= 3
        assert time.monotonic() - started < LIMIT


SILENT = Answer(Text("0 ", "1 ", "2 ", Silence()))
WHOLE = Answer(Text("0 ", "1 ", "2 "))
DRIP = Answer(Text(*(f"{i} " for i in range(400)), gap=0.002))
SLOW_HEADERS = Answer(before_headers=Silence())


@pytest_asyncio.fixture
async def make_wire(certificates: Any) -> AsyncIterator[Callable[..., Wire]]:
    server_context, client_context = certificates
    clients: list[AsyncOpenAI] = []
    with ExitStack() as servers:

        def make(name: str, *answers: Answer, connections: int = 1, timeout: float = 2.0, repeat: bool = False) -> Wire:
            tls = name.endswith("-tls")
            two = "-h2" in name
            options: dict[str, Any] = {"verify": client_context if tls else True}
            if name.startswith("httpx-") or name == "httpx":
                http: Any = httpx.AsyncClient(
                    http1=not two,
                    http2=two,
                    limits=httpx.Limits(max_connections=connections),
                    timeout=httpx.Timeout(30, pool=timeout),
                    **options,
                )
            elif name.startswith("httpx2"):
                http = httpx2.AsyncClient(
                    http1=not two,
                    http2=two,
                    limits=httpx2.Limits(max_connections=connections),
                    timeout=httpx2.Timeout(30, pool=timeout),
                    **options,
                )
            else:
                http = DefaultAioHttpClient(
                    limits=httpx2.Limits(max_connections=connections),
                    timeout=httpx2.Timeout(30, pool=timeout),
                    **options,
                )
            client = AsyncOpenAI(api_key="none", base_url="http://nowhere", http_client=http, max_retries=0)
            clients.append(client)

            def start(*played: Answer, repeat: bool) -> Any:
                context = server_context() if tls else None
                if two:
                    return servers.enter_context(H2Server(context))
                return servers.enter_context(ScriptedServer(*played, repeat=repeat, ssl_context=context))

            wire = Wire(name, client, start)
            if two or answers:
                wire.play(*answers, repeat=repeat)
            return wire

        yield make
        for client in clients:
            await client.close()
