"""`RedisStopRegistry`: streams of this process, stops of all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Self

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisError

from .._state import REASON_LIMIT, checked_reason
from .._stops import MemoryStopRegistry, Registration, StopOutcome, checked_seconds, keys
from ._client import Client, follower_of, takes_bytes, writer_of
from ._follow import Follower
from ._write import write

__all__ = ("RedisStopRegistry",)


class RedisStopRegistry(MemoryStopRegistry):
    """Stops streams of all processes that share a Redis, by id and owner.

    Enter it before streams register: `async with registry`, or `lifespan(registry)`. It may be made at import time
    and before a worker forks, since nothing connects until then. It may be entered again when it was left, in another
    event loop too, as test suites do; its methods are for the loop that it was entered in.

    `from_url()` is what most applications need. The constructor is for clients that are made otherwise: of Sentinel,
    of a cluster. It takes each as a client, or as a function that makes one, which is called whenever the registry is
    entered; a client that is given is for one event loop. Either is closed when the registry is left.

    Args:
        follower: The client that listens, with a `socket_timeout` above 2 seconds, and without retries of its own.
        writer: The client that stops are written with.
        prefix: The Redis key is `<prefix>:stops:v1`.
        ttl: How long a stop that came before its stream is remembered, in seconds; a worker that starts reads back
            as far.
        stop_timeout: How long `stop()` tries to reach Redis, in seconds.

    Raises:
        ValueError: A time is not above 0, or a client decodes its replies.
    """

    def __init__(
        self,
        follower: Client | Callable[[], Client],
        writer: Client | Callable[[], Client],
        *,
        prefix: str = "cancelstream",
        ttl: float = 60.0,
        stop_timeout: float = 1.5,
    ) -> None:
        super().__init__(ttl=ttl)
        self._make_follower = _maker(follower)
        self._make_writer = _maker(writer)
        self._key = f"{prefix}:stops:v1"
        self._stop_timeout = checked_seconds("stop_timeout", stop_timeout)
        self._clients: list[Client] = []
        self._follower: Follower | None = None
        self._writer: tuple[asyncio.AbstractEventLoop, Client] | None = None

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
            ValueError: The URL is none of these or asks for decoded replies, or a time is not above 0.
        """
        follower, writer = partial(follower_of, url, stop_timeout), partial(writer_of, url, stop_timeout)
        registry = cls(follower, writer, prefix=prefix, ttl=ttl, stop_timeout=stop_timeout)
        _checked(follower())  # here, and not when the application has started
        return registry

    def register(self, stop_id: str | None, cancel: Callable[..., object], *, owner: str) -> Registration:
        """As `MemoryStopRegistry.register`.

        Raises:
            RuntimeError: The registry was not entered, so it would not hear of stops.
            TypeError: As there.
            ValueError: As there.
        """
        if self._follower is None:
            raise RuntimeError(
                "this RedisStopRegistry was not entered, so it would not hear of stops: use `async with registry`, or "
                "`lifespan=lifespan(registry)` in the application; in a blocking worker, such as Celery's, give the "
                "task a coroutine that does so: `asyncio.run(answer(...))`, as the guide's page on hosts has it"
            )
        return super().register(stop_id, cancel, owner=owner)

    async def stop(self, stop_id: str, *, owner: str, reason: str = "user") -> StopOutcome:
        """Stop the stream of this id if it is `owner`'s, wherever it runs.

        As `MemoryStopRegistry.stop`, and if the stream is not in this process it tells the others through Redis. Need
        not be entered for that. Never raises for an error of Redis.

        Returns:
            `'stopped'`: it was in this process. `'requested'`: Redis has taken the stop. `'unavailable'`: within
            `stop_timeout` Redis did not answer, and may have taken it or not; or it refuses to let this worker, and
            so the others, hear of stops. Asking again is safe.

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
        entry = {"o": owner_key, "k": key, "r": reason.encode(errors="replace")}
        taken = await write(self._writing(), self._key, entry, self._stop_timeout)
        deaf = self._follower is not None and self._follower.refused
        return "requested" if taken and not deaf else "unavailable"

    async def __aenter__(self) -> Self:
        """Start to follow the stops; waits for Redis up to `stop_timeout`, and goes on without it."""
        if self._follower is not None:
            raise RuntimeError("this RedisStopRegistry has been entered already")
        await super().__aenter__()
        client = _checked(self._make_follower())
        self._clients.append(client)
        self._follower = Follower(client, self._key, self._ttl, self._take)
        self._follower.start()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._stop_timeout):
                    await self._follower.connected.wait()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None, /
    ) -> None:
        await self._leave()

    async def _leave(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            await follower.stop()
        clients, self._clients, self._writer = self._clients, [], None
        for client in clients:
            # A peer that vanished must not hold up the end of the application.
            with contextlib.suppress(RedisError, OSError):
                async with asyncio.timeout(self._stop_timeout):
                    await client.aclose()

    def _writing(self) -> Client:
        """The client of this loop that stops are written with."""
        loop = asyncio.get_running_loop()
        if self._writer is None or self._writer[0] is not loop:
            self._writer = loop, _checked(self._make_writer())
            self._clients.append(self._writer[1])
        return self._writer[1]

    def _take(self, fields: Mapping[bytes, bytes]) -> None:
        """Keep a stop that was written by some worker."""
        try:
            owner_key, key, reason = fields[b"o"], fields[b"k"], fields[b"r"]
        except KeyError:
            return  # not written by us
        self._deliver(owner_key, key, reason.decode(errors="replace")[:REASON_LIMIT])


def _maker(client: Client | Callable[[], Client]) -> Callable[[], Client]:
    if isinstance(client, Redis | RedisCluster):
        given = _checked(client)
        return lambda: given
    return client


def _checked(client: Client) -> Client:
    if not takes_bytes(client):
        raise ValueError("this client decodes its replies, and digests are bytes: leave out decode_responses=True")
    return client
