"""Follow the stops that all workers write.

The follower knows its place in the Redis stream and reads on from there; one that connects reads back `ttl` seconds
by the server's clock. Three things make a place wrong without any error, and each is looked for after every read that
brought nothing:

1. The key was lost (eviction, FLUSHDB, a restored dump) while our place was ahead of the server's clock, or the clock
   went back: what is written now has smaller ids. Then nothing stands at our place or after it, and we go back.
2. The server has become a replica: what is behind its address now is asked for anew.
3. The connection is dead: that one is an error, by the client's own time limit.

Without the permission for TIME there is no clock: a worker that connects reads all stops there are.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from ._client import ALLOW, BLOCK, Client, drop_connections, is_replica, longer, refused, server_milliseconds

__all__ = ("Follower",)

logger = logging.getLogger("cancelstream")

AT_ONCE: Final = 128
"""Most entries that one reply may bring."""

BYTES: Final = 1_000_000
"""The bytes that one reply may bring, about, by the size of the entries of the one before: an entry from another
program under our key can have any size, our own have a hundred bytes."""

REPEAT: Final = 30.0
"""Seconds between two log lines of an error that an operator has to mend, while it lasts."""

Place = tuple[int, int]
"""Where an entry stands in the stream: its milliseconds, and its number within them."""

START: Final[Place] = (0, 0)

Fields = Mapping[bytes, bytes]


class Follower:
    """Reads stops in a task, until it is cancelled. For one event loop.

    Args:
        client: Reads from Redis; with a time limit above `BLOCK`, and without retries of its own.
        key: The Redis stream.
        ttl: How far back a follower reads that connects, in seconds.
        take: Called with the fields of each entry, in the order in which they were written.

    Attributes:
        connected: Set while all stops that were written have been read.
        refused: Whether Redis refuses to be read, which does not heal by trying again.
    """

    def __init__(self, client: Client, key: str, ttl: float, take: Callable[[Fields], None]) -> None:
        self.connected = asyncio.Event()
        self.refused = False
        self._client = client
        self._key = key
        self._ttl = ttl
        self._take = take
        self._place: Place | None = None
        self._cut_off = False
        self._on_replica = False
        self._tell_again = 0.0
        self._following: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to follow."""
        self._following = asyncio.create_task(self._follow(), name="cancelstream: follow stops")

    async def stop(self) -> None:
        """Stop following; may be called again."""
        following, self._following = self._following, None
        if following is not None:
            # Again and again: asyncio.wait_for, which redis-py sends with, may lose a cancellation before Python 3.12.
            while not following.done():
                following.cancel()
                await asyncio.wait([following], timeout=0.1)
        self.connected.clear()

    async def _follow(self) -> None:
        """Read stops for ever, whatever becomes of Redis."""
        delay = 0.0
        while True:
            try:
                await self._read()
            # Whatever it is: a follower that ends leaves this process deaf to stops until it is restarted.
            except Exception as error:  # noqa: BLE001
                if self.connected.is_set():
                    self.connected.clear()
                    delay = 0.0
                self._tell(error)
            # By a new connection, which may lead somewhere else: the old one can live on and be of no use.
            await drop_connections(self._client)
            await asyncio.sleep(delay)
            delay = longer(delay)

    async def _read(self) -> None:
        """Read stops until an error, or until the server is a replica: first what was missed, then each as it comes."""
        # From where we were, or from `ttl` ago where that is earlier: at the start, and on a server that took over
        # with another clock, whose new entries could otherwise count as older than what we have read. A stop that is
        # read twice does nothing.
        oldest = await self._oldest()
        self._place = min(self._place or oldest, oldest)
        count, waited = 1, False
        while True:
            waited = self.connected.is_set()
            entries = await self._after(self._place, count, BLOCK if waited else None)
            for place, fields in entries:
                self._place = place
                self._take(fields)
            if len(entries) < count and not waited:
                self._is_connected()
            if waited and not entries:
                if await is_replica(self._client):
                    if not self._on_replica:
                        logger.info("the Redis that stops are read from is a replica now: asking its address again")
                    self._on_replica = True
                    return
                self._on_replica = False
                self._place = await self._confirmed(self._place)
            count = _next_count(count, entries)

    async def _after(self, place: Place, count: int, block: float | None = None) -> list[tuple[Place, Fields]]:
        """At most `count` entries after this place; the first of them is waited for up to `block` seconds."""
        since = {self._key: b"%d-%d" % place}
        milliseconds = None if block is None else int(block * 1000)
        return list(_entries(await self._client.xread(since, count=count, block=milliseconds)))  # type: ignore[arg-type]

    async def _oldest(self) -> Place:
        """The place of a stop that was written `ttl` seconds ago, by the server's clock."""
        now = await server_milliseconds(self._client)
        return START if now is None else (max(0, now - int(self._ttl * 1000)), 0)

    async def _confirmed(self, place: Place) -> Place:
        """Our place if what is written next comes after it, or one that is further back."""
        if place == START or await self._after(_before(place), 1):
            return place
        # Not an entry that we have read: the place of `ttl` ago, at the start, or one whose entry is lost.
        oldest = await self._oldest()
        if oldest >= place:
            return place
        logger.warning(
            "what this worker had read of the stops in Redis is gone from there (a lost key, or a clock that went "
            "back): reading again what was written in the last %s s",
            self._ttl,
        )
        return oldest

    def _is_connected(self) -> None:
        logger.info("following the stops in Redis")
        self.connected.set()
        self.refused = self._cut_off = False
        self._tell_again = 0.0

    def _tell(self, error: Exception) -> None:
        """Log an error: once if Redis may come back, repeatedly if an operator has to act."""
        self.refused = refused(error)
        why = f"{type(error).__name__}: {error}"  # not %r, in which redis-py 8 leaves out what happened
        now = asyncio.get_running_loop().time()
        if self.refused:
            if now >= self._tell_again:
                logger.error(
                    "Redis refuses to tell this worker of stops, and none arrives: %s (%s %r)", why, ALLOW, self._key
                )
                self._tell_again = now + REPEAT
        elif not self._cut_off:
            logger.warning("cut off from the stops in Redis, trying again until it answers: %s", why)
        self._cut_off = True


def _entries(reply: Any) -> Iterator[tuple[Place, Fields]]:
    """The entries in an XREAD reply on one stream, in whichever shape redis-py gives it.

    A list of pairs, or a mapping; and with RESP3 the entries are in a list of their own.
    """
    streams: dict[bytes, Any] = dict(reply or ())
    for entries in streams.values():
        nested = bool(entries) and isinstance(entries[0], list) and not isinstance(entries[0][0], bytes)
        for entry_id, fields in entries[0] if nested else entries:
            if entry_id is not None:  # an entry that was deleted
                yield _place(entry_id), fields


def _place(entry_id: bytes) -> Place:
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)


def _before(place: Place) -> Place:
    """The last place before this one."""
    milliseconds, number = place
    return (milliseconds, number - 1) if number else (milliseconds - 1, 2**64 - 1)


def _next_count(count: int, entries: list[tuple[Place, Fields]]) -> int:
    """How many entries to ask for next: more while there are more, as long as they are small."""
    if len(entries) < count:
        return 1
    largest = max(sum(len(name) + len(value) for name, value in fields.items()) for _, fields in entries)
    return max(1, min(2 * count, AT_ONCE, BYTES // max(largest, 1)))
