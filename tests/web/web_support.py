"""What the web tests use: a redis-server, an application on uvicorn, a client that leaves as it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Self

import h11
import pytest

LIMIT = 10.0
"""Seconds that a wait takes at most."""

NO_REDIS = "redis-server is missing: `apt-get install redis-server` (or valkey), or set CANCELSTREAM_REDIS_SERVER"


def free_port(*, below: int = 65_536) -> int:
    """A port of the loopback interface that is free now."""
    while True:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            if (port := int(found.getsockname()[1])) < below:
                return port


class RedisServer:
    """A redis-server of the test's own, that keeps nothing on disk and can be killed, frozen and brought back."""

    def __init__(self) -> None:
        program = os.environ.get("CANCELSTREAM_REDIS_SERVER") or shutil.which("redis-server")
        if program is None:
            pytest.skip(NO_REDIS)
        self._program = program
        self._folder = tempfile.TemporaryDirectory(prefix="cancelstream-redis-")
        self.port = free_port()
        self.socket = str(Path(self._folder.name) / "redis.sock")
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[str] | None = None

    def start(self, *settings: str) -> None:
        """Start it, empty, and wait until it listens."""
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--unixsocket", self.socket]
        nothing_kept = ["--save", "", "--appendonly", "no", "--dir", self._folder.name]
        self._run(*where, *nothing_kept, *settings, until="eady to accept connections")

    def start_as_sentinel(self, primary: int) -> None:
        """Start it as a Sentinel that watches the server on this port, under the name `stops`."""
        config = Path(self._folder.name) / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self._folder.name}\nsentinel monitor stops 127.0.0.1 {primary} 1\n"
        )
        self._run(str(config), "--sentinel", until="+monitor")

    def _run(self, *arguments: str, until: str) -> None:
        self._process = subprocess.Popen([self._program, *arguments], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        # Ends with the process too; the test's own timeout is the limit.
        for line in self._process.stdout:
            if until in line:
                return
        raise RuntimeError(f"{self._program} did not start on port {self.port}")

    def kill(self) -> None:
        """End it with SIGKILL, as a crash does; what it held is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def freeze(self) -> None:
        """Stop it from running: connections stay open, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def command(self, *words: str | int | bytes) -> bytes:
        """Send one command on a connection of its own, and return the raw reply."""
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        request = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def cut_all_connections(self) -> None:
        """Close every client's connection."""
        self.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._folder.cleanup()


class AppServer:
    """An ASGI application on uvicorn, in a thread of this process, so that a test can look into it."""

    def __init__(self, app: Any, **settings: Any) -> None:
        import uvicorn

        settings = {"log_level": "warning", "lifespan": "on", "loop": "asyncio", **settings}
        self.server = uvicorn.Server(uvicorn.Config(app, **settings))
        self._listening = socket.socket()
        # The connections have it from this one: a client that does not read is felt soon, not after some megabytes.
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
        self._listening.bind(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uvicorn", daemon=True)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        serving = asyncio.create_task(self.server.serve([self._listening]))
        try:
            while not self.server.started and not serving.done():
                await asyncio.sleep(0.001)
        finally:
            self._started.set()
        await serving

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(10)
        assert self.server.started, "the application did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(10)
        self._listening.close()
        assert not self._thread.is_alive(), "a request did not end, and uvicorn waits for it"


class Client:
    """A client that reads Server-Sent Events, leaves as it is told to, or just stops reading."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self._text = ""
        self.status = 0
        self.headers: dict[str, str] = {}

    @classmethod
    @contextlib.asynccontextmanager
    async def post(
        cls,
        port: int,
        path: str,
        body: bytes = b"",
        *,
        method: str = "POST",
        window: int | None = None,
        limit: float = LIMIT,
        **headers: str,
    ) -> AsyncGenerator[Client]:
        """Send a request and read the head of its response. A small `window` makes a client that stalls soon."""
        raw = socket.socket()
        raw.setblocking(False)
        if window is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        try:
            await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
        except BaseException:
            raw.close()
            raise
        client = cls(*await asyncio.open_connection(sock=raw, limit=window or 65536))
        try:
            await client.send(path, body, method=method, **headers)
            await client.read_head(limit)
            yield client
        finally:
            await client.close()

    async def send(self, path: str, body: bytes = b"", *, method: str = "POST", **headers: str) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = h11.Request(
            method=method,
            target=path,
            headers=[("host", "test"), ("content-length", str(len(body))), *named.items()],
        )
        http = self._http
        self._writer.write((http.send(request) or b"") + (http.send(h11.Data(data=body)) or b""))
        self._writer.write(http.send(h11.EndOfMessage()) or b"")

    async def read_head(self, limit: float = LIMIT) -> None:
        event = await self._next(limit)
        assert isinstance(event, h11.Response)
        self.status = event.status_code
        self.headers = {name.decode(): value.decode() for name, value in event.headers}

    async def _next(self, limit: float = LIMIT) -> Any:
        async with asyncio.timeout(limit):
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(65536))
        return event

    async def body(self) -> bytes:
        """The rest of the body."""
        parts: list[bytes] = []
        while isinstance(event := await self._next(), h11.Data):
            parts.append(bytes(event.data))
        return b"".join(parts)

    async def event(self) -> tuple[str, Any]:
        """The next event: its name, and its data read as JSON; `("", None)` when the body has ended as it should."""
        while "\n\n" not in self._text:
            event = await self._next()
            if isinstance(event, h11.EndOfMessage):
                assert not self._text, "the body ended in the middle of an event"
                return "", None
            assert isinstance(event, h11.Data), event
            self._text += bytes(event.data).decode()
        block, _, self._text = self._text.partition("\n\n")
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        if "" in fields:
            return "comment", fields[""]
        return fields.get("event", "message"), json.loads(fields["data"])

    async def events(self) -> list[tuple[str, Any]]:
        """All that are left."""
        found: list[tuple[str, Any]] = []
        while (event := await self.event()) != ("", None):
            found.append(event)
        return found

    async def close(self) -> None:
        """Leave with FIN."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def reset(self) -> None:
        """Leave with RST."""
        raw = self._writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()
