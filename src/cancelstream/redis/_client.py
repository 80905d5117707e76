"""The use of redis-py: clients with our own time limits, the server's clock and role, and what an error means."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, TypeAlias, cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    AuthorizationError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

__all__ = (
    "ALLOW",
    "BLOCK",
    "Client",
    "drop_connections",
    "follower_of",
    "is_replica",
    "longer",
    "refused",
    "server_milliseconds",
    "takes_bytes",
    "writer_of",
)

Client: TypeAlias = Redis | RedisCluster

BLOCK: Final = 2.0
"""How long one XREAD waits for news, in seconds."""

READ_TIMEOUT: Final = 5.0
"""How long the follower waits for an answer. More than `BLOCK`, so that a peer that vanished is an error and not
silence; redis-py's own default made listeners of other projects deaf or short-lived."""

WRITERS: Final = 16
"""Most connections that stops are written on: a mass stop must not open a connection for each."""

BACKOFF: Final = (0.02, 0.5)
"""Shortest and longest wait before trying Redis again, in seconds; the first time is at once. Short, because all this
time a stop only waits."""

ALLOW: Final = "its user needs +xadd +xread +time, on the key"
"""The text that an error adds for an operator, who has to mend it."""


def follower_of(url: str, stop_timeout: float) -> Redis:
    """The client that listens: one connection.

    Raises:
        ValueError: The URL is none of Redis.
    """
    return Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
        url, socket_timeout=READ_TIMEOUT, socket_connect_timeout=stop_timeout, max_connections=1, **_settings()
    )


def writer_of(url: str, stop_timeout: float) -> Redis:
    """The client that stops are written with: a pool of connections."""
    pool = BlockingConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]
        url,
        max_connections=WRITERS,
        timeout=stop_timeout,
        socket_timeout=stop_timeout,
        socket_connect_timeout=stop_timeout,
        **_settings(),
    )
    return Redis.from_pool(pool)


def _settings() -> dict[str, Any]:
    # We retry ourselves, within stop_timeout: redis-py 8 would go on for minutes. RESP2 is what every Redis and
    # Valkey speaks, and its replies have one shape in all versions of redis-py.
    return {"retry": Retry(NoBackoff(), 0), "protocol": 2}


def takes_bytes(client: Client) -> bool:
    """Whether replies are bytes, as digests have to be; not so with `decode_responses=True`."""
    return not client.get_encoder().decode_responses


async def server_milliseconds(client: Client) -> int | None:
    """The server's clock, `None` where the user may not ask for it."""
    try:
        time: Any = await client.time()  # pyright: ignore[reportUnknownMemberType]
    except NoPermissionError:
        return None
    # A cluster answers for each node: the clock that is furthest behind makes us read most.
    pairs = cast("dict[str, Any]", time).values() if isinstance(time, dict) else [time]
    return min(int(seconds) * 1000 + int(micros) // 1000 for seconds, micros in pairs)


async def is_replica(client: Client) -> bool:
    """Whether the server at the other end of this connection is a replica, as far as it says.

    HELLO without an argument changes nothing and is allowed to every user. A cluster's client asks the primary of a
    key anyway, and a server or proxy without HELLO counts as a primary.
    """
    if isinstance(client, RedisCluster):
        return False
    try:
        told: Any = await cast("Any", client).execute_command("HELLO")  # redis-py has no method for it
    except ResponseError:
        return False
    # With RESP2 it is a list of names and values in turn.
    words: list[Any] = [*told.keys(), *told.values()] if isinstance(told, dict) else list(told)
    return b"slave" in words or b"replica" in words


async def drop_connections(client: Client, *, idle: bool = False) -> None:
    """Close the connections, or only the idle ones, so that the next command asks the address anew.

    After a fail-over behind one address the old ones still lead to the server that is a replica now. A cluster's
    client moves by itself.
    """
    if isinstance(client, Redis):
        with suppress(RedisError, OSError):
            await client.connection_pool.disconnect(inuse_connections=not idle)


def refused(error: Exception) -> bool:
    """Whether an error stays when tried again: an operator has to change a setting."""
    refusals = (
        NoPermissionError,
        AuthenticationError,
        AuthenticationWrongNumberOfArgsError,
        AuthorizationError,
    )
    if isinstance(error, refusals):
        return True
    return isinstance(error, ResponseError) and str(error).startswith(("WRONGTYPE", "unknown command"))


def longer(delay: float) -> float:
    """The wait after this one."""
    return min(max(2 * delay, BACKOFF[0]), BACKOFF[1])
