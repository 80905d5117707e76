"""The thread that the scripted server runs in: its loop, its connections, its records.

It runs an event loop of its own, so the server goes on while the code under test blocks or is stuck, and sees its
client leave at once. It shares the interpreter with that code: while another thread computes without a pause, Python
hands over every few milliseconds only (`sys.getswitchinterval`), and times taken here are late by as much.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from typing import Any, Final, Literal

from ._connection import Connection, Request
from ._play import Player
from ._record import KeptRecord, Record
from ._script import HttpError, Turn
from ._waiting import Watched

__all__ = ("Serving",)

_START_AND_STOP: Final = 10.0
"""Seconds that starting and stopping may take. Both take milliseconds; a machine that is stuck gets an error."""


class Serving(Watched):
    """The inside of a `ScriptedServer`: it answers request k with turn k. Any thread may call every method.

    Attributes:
        url: Where it listens, `None` while it does not.
        accepted: How many connections were made so far.
        connections: Those that are open.
        records: The requests so far.
    """

    def __init__(self, turns: tuple[Turn, ...], repeat: bool, ssl_context: ssl.SSLContext | None) -> None:
        super().__init__()
        self.url: str | None = None
        self.accepted = 0
        self.connections: set[Connection] = set()
        self.records: list[Record] = []
        self._turns = turns
        self._repeat = repeat
        self._ssl = ssl_context
        self._failures: list[BaseException] = []
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    def start(self) -> None:
        """Listen; returns when clients can connect."""
        if self._thread is not None:
            raise RuntimeError("a ScriptedServer runs once: make a new one")
        self._thread = threading.Thread(target=self._run, name="ScriptedServer", daemon=True)
        self._thread.start()
        self._wait(self._started, _START_AND_STOP, lambda: "the server to start")

    def close(self) -> None:
        """Close every connection and end the thread."""
        if self._thread is None:
            return
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_START_AND_STOP)
        if self._thread.is_alive():
            raise TimeoutError(f"the server's thread did not end within {_START_AND_STOP} s")
        self.url = None
        failures, self._failures = self._failures, []
        if failures:
            raise BaseExceptionGroup("the scripted server failed", failures)

    def _started(self) -> Literal[True] | None:
        if self._failures:
            raise self._failures.pop()
        return None if self.url is None else True

    def _run(self) -> None:
        """The thread."""
        try:
            # Not the process's own choice of loop: what a reset looks like is known of this one.
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(self._serve())
        except BaseException as error:  # noqa: BLE001  (it is raised in the thread that waits)
            self.failed(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(self._unhandled)
        server = await self._loop.create_server(lambda: Connection(self), "127.0.0.1", 0, ssl=self._ssl)
        port = server.sockets[0].getsockname()[1]
        with self._changing():
            self.url = f"{'http' if self._ssl is None else 'https'}://127.0.0.1:{port}"
        await self._stop.wait()
        # A connection that asyncio has accepted and not yet handed over (a TLS handshake) is a task of its own, and
        # asyncio loses the socket of one that has not begun when its server is closed, or itself cancelled. So accept
        # no more, let them begin, and close only then.
        self._loop.remove_reader(server.sockets[0].fileno())
        await asyncio.sleep(0)
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        for connection in tuple(self.connections):
            connection.abort()
        await self._until(lambda: None if self.connections else True, None, str)
        await server.wait_closed()

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep an error that asyncio would only log: a broken connection is the client's affair, others are bugs."""
        error = context.get("exception") or RuntimeError(context["message"])
        # (asyncio's debug mode tells here of the handshakes that closing cancels, too.)
        if not isinstance(error, OSError | asyncio.CancelledError):
            self.failed(error)

    # --- waiting -------------------------------------------------------------------------------------------------

    def wait_request(self, index: int, timeout: float) -> Record:
        """Block this thread until request `index` has arrived."""
        return self._wait(lambda: self._record(index), timeout, lambda: self._told(index))

    async def until_request(self, index: int, timeout: float) -> Record:  # noqa: ASYNC109  (as everywhere here)
        """The same for a coroutine."""
        return await self._until(lambda: self._record(index), timeout, lambda: self._told(index))

    def _record(self, index: int) -> Record | None:
        if index < 0:
            raise ValueError(f"request {index}: the first is 0; the last so far is records[-1]")
        return self.records[index] if index < len(self.records) else None

    def _told(self, index: int) -> str:
        return f"request {index}: {len(self.records)} have arrived"

    # --- what its connections tell it ----------------------------------------------------------------------------

    def opened(self, connection: Connection) -> int:
        """A client connected; returns the connection's number."""
        with self._changing():
            self.connections.add(connection)
            self.accepted += 1
            return self.accepted - 1

    def closed(self, connection: Connection) -> None:
        """A connection is gone."""
        with self._changing():
            self.connections.discard(connection)

    def failed(self, error: BaseException) -> None:
        """The server's own code raised."""
        with self._changing():
            self._failures.append(error)

    def arrived(self, request: Request, connection: Connection) -> Player:
        """A request has arrived whole: record it, and answer it with its turn."""
        with self._changing():
            record = KeptRecord(
                index=len(self.records),
                method=request.method,
                path=request.path,
                query=request.query,
                headers=request.headers,
                body=request.body,
                connection=request.connection,
            )
            self.records.append(record)
        return Player(self._turn(record.index), record, connection)

    def _turn(self, index: int) -> Turn:
        count = len(self._turns)
        if index < count or self._repeat:
            return self._turns[index % count]
        why = f"this is request {index + 1}, and the script has {count} turn(s): add one, or pass repeat=True"
        return HttpError(400, why)
