"""Stop a stream from another worker or machine, on Redis or Valkey.

Needs the extra `cancelstream[redis]`.

One Redis Stream carries all stops: `stop()` appends to it (XADD), and every worker follows it (XREAD BLOCK) on one
connection and keeps what is for its own streams. A stream rather than publish/subscribe, because a worker that was
away reads on from where it was, and one that starts reads the last `ttl` seconds: a stop is delivered at least once,
early or late, and no second mechanism is needed for the gap. What is written is a digest of owner and id, and the
reason.

Redis never touches a running stream. Registering does no I/O, a stop of a stream in this process needs no Redis,
and an error of Redis is seen only by the `stop()` that had to write, which answers `'unavailable'`: it is then not
known whether Redis took the write (one that was frozen may take it when it thaws), and asking again is safe, because
a stop given twice is a stop.

Known limits: Redis keeps what it accepted as well as it is set up to. A stop that Redis took and lost by dying before
a worker that had been cut off from it came back is lost (workers that are connected have it within a millisecond);
so is one whose primary died before its replica had it. The Redis stream holds the last 100,000 stops or so: more
than that within a worker's absence push out the oldest. Redis Cluster and Sentinel are not tested.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Final, Self

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ._state import REASON_LIMIT, checked_reason
from ._stops import MemoryStopRegistry, Registration, StopOutcome, keys

__all__ = ("RedisStopRegistry",)

logger = logging.getLogger("cancelstream")

BLOCK: Final = 2.0
"""How long one XREAD waits for news, in seconds."""

READ_TIMEOUT: Final = 5.0
"""How long the follower waits for an answer. More than `BLOCK`, so that a peer that vanished is an error and not
silence; redis-py's own default made listeners of other projects deaf or short-lived."""

BACKOFF: Final = (0.02, 0.5)
"""Shortest and longest wait before trying Redis again, in seconds; the first time is at once. Short, because all this
time a stop only waits."""

WRITERS: Final = 16
"""Most connections that stops are written on: a mass stop must not open a connection for each."""

KEPT: Final = 100_000
"""How many stops the Redis stream holds, about: some 10 MB there at most, whatever is asked of it."""


class RedisStopRegistry(MemoryStopRegistry):
    """Stops streams of all processes that share a Redis, by id and owner.

    Enter it before streams register: `async with registry`, or `lifespan(registry)`. It may be made at import time
    and before a worker forks, since nothing connects until then. For one event loop.

    Args:
        follower: The client that listens, with a socket timeout above `BLOCK` and without retries of its own.
        writer: The client that stops are written with.
        prefix: The Redis key is `<prefix>:stops:v1`.
        ttl: How long a stop that came before its stream is remembered, in seconds; a worker that starts reads back
            as far.
        stop_timeout: How long `stop()` tries to reach Redis, in seconds.
    """

    def __init__(
        self,
        follower: Redis,
        writer: Redis,
        *,
        prefix: str = "cancelstream",
        ttl: float = 60.0,
        stop_timeout: float = 1.5,
    ) -> None:
        super().__init__(ttl=ttl)
        if stop_timeout <= 0:
            raise ValueError(f"stop_timeout is a time in seconds above 0, not {stop_timeout!r}")
        self._follower = follower
        self._writer = writer
        self._key = f"{prefix}:stops:v1"
        self._stop_timeout = stop_timeout
        self._position: bytes | None = None
        self._connected = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    @classmethod
    def from_url(
        cls, url: str, *, prefix: str = "cancelstream", ttl: float = 60.0, stop_timeout: float = 1.5
    ) -> RedisStopRegistry:
        """A registry on the Redis of this URL, as `redis.asyncio.Redis.from_url` reads it; connects when entered.

        Args:
            url: `redis://`, `rediss://` or `unix://`, with user, password and database.
            prefix: As in the class.
            ttl: As in the class.
            stop_timeout: As in the class.

        Raises:
            ValueError: The URL is none of these, or a time is not above 0.
        """
        # We retry ourselves, within stop_timeout: redis-py 8 would go on for minutes. RESP2 is what every Redis and
        # Valkey speaks, and its replies have one shape in all versions of redis-py.
        settings: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "protocol": 2}
        follower = Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            url, socket_timeout=READ_TIMEOUT, socket_connect_timeout=stop_timeout, max_connections=1, **settings
        )
        pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
            url,
            max_connections=WRITERS,
            timeout=stop_timeout,
            socket_timeout=stop_timeout,
            socket_connect_timeout=stop_timeout,
            **settings,
        )
        return cls(follower, Redis.from_pool(pool), prefix=prefix, ttl=ttl, stop_timeout=stop_timeout)

    def register(self, stop_id: str | None, cancel: Callable[..., object], *, owner: str) -> Registration:
        """As `MemoryStopRegistry.register`.

        Raises:
            RuntimeError: The registry was not entered, so it would not hear of stops.
            TypeError: As there.
            ValueError: As there.
        """
        if self._following is None:
            raise RuntimeError(
                "this RedisStopRegistry was not entered, so it would not hear of stops: use `async with registry`, or "
                "`lifespan=lifespan(registry)` in the application"
            )
        return super().register(stop_id, cancel, owner=owner)

    async def stop(self, stop_id: str, *, owner: str, reason: str = "user") -> StopOutcome:
        """Stop the stream of this id if it is `owner`'s, wherever it runs.

        As `MemoryStopRegistry.stop`, and if the stream is not in this process it tells the others through Redis. Need
        not be entered for that. Never raises for an error of Redis.

        Returns:
            `'stopped'`: it was in this process. `'requested'`: Redis has taken the stop. `'unavailable'`: within
            `stop_timeout` Redis did not answer, and may have taken it or not; asking again is safe.

        Raises:
            TypeError: `owner` is not a string.
            ValueError: `owner` is empty or `reason` is too long.
        """
        owner_key, key = keys(stop_id, owner)
        reason = checked_reason(reason)
        lives_here = key in self._live
        outcome = self._deliver(owner_key, key, reason)
        if lives_here:
            return outcome
        return "requested" if await self._write(owner_key, key, reason) else "unavailable"

    async def __aenter__(self) -> Self:
        """Start to follow the stops; waits for Redis up to `stop_timeout`, and goes on without it."""
        if self._following is not None:
            raise RuntimeError("this RedisStopRegistry has been entered already")
        await super().__aenter__()
        self._following = asyncio.create_task(self._follow(), name="cancelstream: follow stops")
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._stop_timeout):
                    await self._connected.wait()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None, /
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        following, self._following = self._following, None
        if following is not None:
            # Again and again: asyncio.wait_for, which redis-py sends with, may lose a cancellation before Python 3.12.
            while not following.done():
                following.cancel()
                await asyncio.wait([following], timeout=0.1)
        self._connected.clear()
        for client in (self._follower, self._writer):
            # A peer that vanished must not hold up the end of the application.
            with contextlib.suppress(RedisError, OSError):
                async with asyncio.timeout(self._stop_timeout):
                    await client.aclose()

    async def _write(self, owner_key: bytes, key: bytes, reason: str) -> bool:
        """Append a stop, and say whether Redis is known to have taken it."""
        entry: Any = {"o": owner_key, "k": key, "r": reason.encode(errors="replace")}
        delay, now = 0.0, asyncio.get_running_loop().time
        deadline = now() + self._stop_timeout
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                # Not `while True`: the timeout fires once, and redis-py may lose it (see `_leave`).
                while now() < deadline:
                    # The first try often meets a pooled connection that died meanwhile.
                    try:
                        await self._writer.xadd(self._key, entry, maxlen=KEPT, approximate=True)
                    except (RedisError, OSError) as error:
                        logger.debug("a stop could not be written to Redis yet: %s", error)
                    else:
                        return True
                    await asyncio.sleep(delay)
                    delay = _longer(delay)
        logger.warning("a stop could not be written to Redis within %s s, or not for certain", self._stop_timeout)
        return False

    async def _follow(self) -> None:
        """Read stops for ever, whatever becomes of Redis."""
        delay, cut_off = 0.0, False
        while True:
            try:
                await self._read()
            # Whatever it is: a follower that ends leaves this process deaf to stops until it is restarted.
            except Exception as error:  # noqa: BLE001
                if self._connected.is_set():
                    self._connected.clear()
                    delay, cut_off = 0.0, False
                if not cut_off:
                    # Not %r, in which redis-py 8 leaves out what happened.
                    why = f"{type(error).__name__}: {error}"
                    logger.warning("cut off from the stops in Redis, trying again until it answers: %s", why)
                    cut_off = True
            await asyncio.sleep(delay)
            delay = _longer(delay)

    async def _read(self) -> None:
        """Read stops until an error: first what was missed, then each as it comes."""
        seconds, _ = await self._follower.time()  # pyright: ignore[reportUnknownMemberType]
        # From where we were, or from `ttl` ago where that is earlier: at the start, and on a server that took over
        # with another clock, whose new entries could otherwise count as older than what we have read. A stop that is
        # read twice does nothing.
        since = b"%d-0" % max(0, int((seconds - self._ttl) * 1000))
        self._position = min(self._position or since, since, key=_place)
        block: int | None = None
        while True:
            reply = await self._follower.xread({self._key: self._position}, count=500, block=block)
            for entry_id, fields in _entries(reply):
                self._position = entry_id
                self._take(fields)
            if not self._connected.is_set():
                logger.info("following the stops in Redis")
                self._connected.set()
            block = int(BLOCK * 1000)

    def _take(self, fields: Mapping[bytes, bytes]) -> None:
        try:
            owner_key, key, reason = fields[b"o"], fields[b"k"], fields[b"r"]
        except KeyError:
            return  # not written by us
        self._deliver(owner_key, key, reason.decode(errors="replace")[:REASON_LIMIT])


def _entries(reply: Any) -> Iterator[tuple[bytes, Mapping[bytes, bytes]]]:
    """The entries in an XREAD reply on one stream: a list of pairs, or in newer shapes of redis-py a mapping."""
    streams: dict[bytes, Any] = dict(reply or ())
    for entries in streams.values():
        for entry_id, fields in entries:
            if entry_id is not None:  # an entry that was deleted
                yield entry_id, fields


def _longer(delay: float) -> float:
    """The wait after this one."""
    return min(max(2 * delay, BACKOFF[0]), BACKOFF[1])


def _place(entry_id: bytes) -> tuple[int, int]:
    """Where an entry stands in the stream: its milliseconds, and its number within them."""
    milliseconds, _, number = entry_id.partition(b"-")
    return int(milliseconds), int(number)
