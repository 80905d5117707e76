"""Items of a stream, and then its end, from the task that reads it to the task that sends it.

There are two tasks, because a client that does not read blocks the one that sends to it, and a stop, a save and a
closed connection must not wait for that. The outbox holds `LIMIT` items, or `SIZE_LIMIT` characters, for a slow client;
then the reader waits too, so that the model is not read faster than the client reads. A stop lifts the limit, because a
reader that has been stopped must come to its end; a client that is gone empties it, because it will not have the items.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

__all__ = ("Outbox", "StreamEnd")

LIMIT: Final = 64
"""Items that may wait for the client: a second or so of a model that writes fast."""

SIZE_LIMIT: Final = 16_384
"""Characters of text that may wait: with what is being sent, some 64 KB for a client that does not read."""


@dataclass(frozen=True)
class StreamEnd:
    """How a stream ended; what its last event tells.

    Attributes:
        state: `'complete'`, `'interrupted'` or `'failed'`.
        reason: Why it was interrupted, `None` if it was not.
        usage: Its counts of tokens with their bounds and sources, as JSON; `None` if it keeps no account.
        provenance: Where the counts came from: `'reported'`, `'estimated'`, `'mixed'` or `'unknown'`.
        characters: How many characters of text arrived.
        error: What it failed with. Not sent, unless an encoder of yours does.
    """

    state: Literal["complete", "interrupted", "failed"]
    reason: str | None
    usage: dict[str, Any] | None
    provenance: str
    characters: int
    error: Exception | None = None

    def to_json(self) -> dict[str, Any]:
        """All of it but the error."""
        return {
            "state": self.state,
            "reason": self.reason,
            "usage": self.usage,
            "provenance": self.provenance,
            "characters": self.characters,
        }


class Outbox:
    """Items from one task to another, in batches. In one event loop.

    Attributes:
        end: How the stream ended; not `None` once the iteration is over.
        dropping: Whether the client is gone, and what is put in is forgotten.
    """

    end: StreamEnd | None = None

    def __init__(self) -> None:
        self._items: list[Any] = []
        self._limit: float = LIMIT
        self._size: float = 0
        self._size_limit: float = SIZE_LIMIT
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self.dropping = False

    async def put(self, item: Any) -> None:
        """Hand over an item, and wait while too many, or too long ones, wait for the client."""
        if self.dropping:
            return
        self._items.append(item)
        self._size += len(item) if isinstance(item, str) else 0
        self._news.set()
        while self.is_full:
            self._room.clear()
            await self._room.wait()

    @property
    def is_full(self) -> bool:
        """Whether the client has to take what waits before more is read."""
        return len(self._items) >= self._limit or self._size >= self._size_limit

    def lift(self) -> None:
        """Never let `put` wait any more."""
        self._limit = self._size_limit = float("inf")
        self._room.set()

    def drop(self) -> None:
        """The client is gone: forget the items, and those to come."""
        self.dropping = True
        self._items.clear()
        self._size = 0
        self.lift()

    def close(self, end: StreamEnd) -> None:
        """No item follows."""
        self.end = end
        self._news.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Any]:
        """All items that are there, as soon as there are any; the end when it is closed and all are taken."""
        while not self._items:
            if self.end is not None:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        batch, self._items, self._size = self._items, [], 0
        self._room.set()
        return batch
