"""One request, as the server saw it.

Written by the server's thread, read and waited for by any other. All times are `time.monotonic()`, which on one
machine is one clock for every thread and process.

Known limits: an answer that was handed to the operating system whole counts as sent whole, whether or not the
client read it. A client that only stops sending (a half-close) counts as gone, as it does for most servers.
"""

# ruff: noqa: ASYNC109  (a wait for another thread has its limit as an argument, awaited or not)

from __future__ import annotations

import bisect
import json
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from ._waiting import LIMIT, Watched

__all__ = ("KeptRecord", "Record")


@dataclass(frozen=True)
class _End:
    by: Literal["complete", "client", "script", "server"]
    at: float
    disconnect: Literal["FIN", "RST"] | None


class Record(Watched):
    """One request and how it went.

    Attributes:
        index: 0 for the server's first request; the turn that answers it has the same index.
        method: The HTTP method.
        path: The path, without the query.
        query: What follows the `?`.
        headers: The headers, names in lower case.
        body: The body as it came.
        connection: The number of the connection that it came on, from 0: equal numbers, a reused connection.
        started_at: When the request had arrived whole.
    """

    def __init__(
        self, *, index: int, method: str, path: str, query: str, headers: dict[str, str], body: bytes, connection: int
    ) -> None:
        super().__init__()
        self.index = index
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.connection = connection
        self.started_at = time.monotonic()
        self._chunk_times: list[float] = []
        self._end: _End | None = None

    def __repr__(self) -> str:
        return f"<Record {self._told()}>"

    @property
    def json(self) -> Any:
        """The body as JSON; `ValueError` if it is none."""
        return json.loads(self.body)

    @property
    def chunks_generated(self) -> int:
        """How many chunks the server has generated: pieces of text, reasoning and arguments, names of tools, events."""
        return len(self._chunk_times)

    def chunks_after(self, moment: float) -> int:
        """How many of them were generated after `moment`, a `time.monotonic()` value."""
        with self._condition:
            return len(self._chunk_times) - bisect.bisect_right(self._chunk_times, moment)

    @property
    def ended_by(self) -> Literal["complete", "client", "script", "server"] | None:
        """How the answer ended, `None` while it goes on.

        `'complete'`: it was sent whole. `'client'`: the client went away. `'script'`: a `Cut` or `ErrorEvent`.
        `'server'`: the server was closed.
        """
        with self._condition:
            return None if self._end is None else self._end.by

    @property
    def ended_at(self) -> float | None:
        """When the answer ended, `None` while it goes on."""
        with self._condition:
            return None if self._end is None else self._end.at

    @property
    def disconnect(self) -> Literal["FIN", "RST"] | None:
        """How the client went away before the answer was whole, `None` if it did not.

        A client that closes a connection with unread data in its buffer sends RST: the operating system decides.
        """
        with self._condition:
            return None if self._end is None else self._end.disconnect

    @property
    def disconnected_at(self) -> float | None:
        """When the server saw the client go away, `None` if it did not."""
        with self._condition:
            return None if self._end is None or self._end.disconnect is None else self._end.at

    # --- waiting -------------------------------------------------------------------------------------------------

    def wait_chunks(self, number: int, timeout: float = LIMIT) -> None:
        """Block this thread until `number` chunks were generated.

        Raises:
            TimeoutError: They were not within `timeout` seconds.
            RuntimeError: The answer ended before.
        """
        self._wait(lambda: self._reached(number), timeout, lambda: f"chunk {number} of {self._told()}")

    async def until_chunks(self, number: int, timeout: float = LIMIT) -> None:
        """`wait_chunks` for a coroutine."""
        await self._until(lambda: self._reached(number), timeout, lambda: f"chunk {number} of {self._told()}")

    def wait_disconnected(self, timeout: float = LIMIT) -> float:
        """Block this thread until the client has gone away, and return when that was.

        Raises:
            TimeoutError: It did not within `timeout` seconds.
            RuntimeError: The answer ended otherwise.
        """
        return self._wait(self._left, timeout, lambda: f"the client to leave {self._told()}")

    async def until_disconnected(self, timeout: float = LIMIT) -> float:
        """`wait_disconnected` for a coroutine."""
        return await self._until(self._left, timeout, lambda: f"the client to leave {self._told()}")

    def wait_ended(self, timeout: float = LIMIT) -> float:
        """Block this thread until the answer has ended, however it did, and return when that was.

        Raises:
            TimeoutError: It did not within `timeout` seconds.
        """
        return self._wait(lambda: self.ended_at, timeout, lambda: f"the end of {self._told()}")

    async def until_ended(self, timeout: float = LIMIT) -> float:
        """`wait_ended` for a coroutine."""
        return await self._until(lambda: self.ended_at, timeout, lambda: f"the end of {self._told()}")

    def _reached(self, number: int) -> Literal[True] | None:
        if self.chunks_generated >= number:
            return True
        if self._end is not None:
            raise RuntimeError(f"chunk {number} was never generated: {self._told()}")
        return None

    def _left(self) -> float | None:
        if self._end is not None and self._end.disconnect is None:
            raise RuntimeError(f"the client did not leave before the end: {self._told()}")
        return self.disconnected_at

    def _told(self) -> str:
        so_far = "still running" if self.ended_by is None else f"ended by {self.ended_by!r}"
        return f"request {self.index} ({self.path}), {self.chunks_generated} chunks generated, {so_far}"


class KeptRecord(Record):
    """A record as the server keeps it."""

    def held(self) -> AbstractContextManager[object]:
        """Inside this block, every caller that asks how the answer ended waits."""
        return self._condition

    def add_chunk(self) -> None:
        """A chunk was generated."""
        with self._changing():
            self._chunk_times.append(time.monotonic())

    def end(
        self,
        by: Literal["complete", "client", "script", "server"],
        *,
        disconnect: Literal["FIN", "RST"] | None = None,
    ) -> None:
        """The answer ended; only the first end counts."""
        end = _End(by, time.monotonic(), disconnect)
        with self._changing():
            self._end = self._end or end
