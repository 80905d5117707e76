"""What the tests of the registry on Redis share: something to stop, two workers, a fence, an address that can move."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cancelstream.redis import RedisStopRegistry

LIMIT = 10.0


class Stream:
    """Something to stop, which notes the reasons it was stopped for."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._stopped = asyncio.Event()

    def cancel(self, reason: str) -> None:
        self.reasons.append(reason)
        self._stopped.set()

    async def until_stopped(self, limit: float = LIMIT) -> None:
        await asyncio.wait_for(self._stopped.wait(), limit)


@asynccontextmanager
async def workers(url: str, *, ttl: float = 60.0, stop_timeout: float = 1.5) -> AsyncIterator[list[RedisStopRegistry]]:
    async with (
        RedisStopRegistry.from_url(url, ttl=ttl, stop_timeout=stop_timeout) as a,
        RedisStopRegistry.from_url(url, ttl=ttl, stop_timeout=stop_timeout) as b,
    ):
        yield [a, b]


async def fence(a: RedisStopRegistry, b: RedisStopRegistry, limit: float = LIMIT) -> None:
    """Return when A has read all that was written before: stops are read in the order they were written."""
    stream = Stream()
    with a.register(None, stream.cancel, owner="fence") as registration:
        while await b.stop(registration.stop_id, owner="fence") == "unavailable":
            pass  # where a test has a short `stop_timeout`, and the machine is slow
        await stream.until_stopped(limit)


class Address:
    """One address, behind which the server can change; connections that are there stay with the old one."""

    def __init__(self, port: int) -> None:
        self.leads_to = port
        self._pipes: set[asyncio.Task[None]] = set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.leads_to)
        for pipe in (self._pipe(reader, there_writer), self._pipe(there_reader, writer)):
            task = asyncio.create_task(pipe)
            self._pipes.add(task)
            task.add_done_callback(self._pipes.discard)

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def __aenter__(self) -> Address:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        if self._pipes:
            await asyncio.wait(self._pipes, timeout=LIMIT)
