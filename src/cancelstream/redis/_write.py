"""Write a stop for all workers, within a time that is the caller's."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any, Final

from redis.exceptions import ReadOnlyError, RedisError

from ._client import ALLOW, Client, drop_connections, longer, refused

__all__ = ("write",)

logger = logging.getLogger("cancelstream")

KEPT: Final = 100_000
"""How many stops the Redis stream holds, about: some 10 MB there at most, whatever is asked of it."""


async def write(client: Client, key: str, entry: Any, limit: float) -> bool:
    """Append a stop, and say whether Redis is known to have taken it.

    Args:
        client: Writes to Redis; without retries of its own.
        key: The Redis stream.
        entry: The fields.
        limit: How long to try, in seconds.
    """
    delay, now = 0.0, asyncio.get_running_loop().time
    deadline = now() + limit
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout_at(deadline):
            # Not `while True`: the timeout fires once, and redis-py may lose it before Python 3.12.
            while now() < deadline:
                # The first try often meets a pooled connection that died meanwhile.
                try:
                    await client.xadd(key, entry, maxlen=KEPT, approximate=True)
                except (RedisError, OSError) as error:
                    if refused(error):
                        why = f"{type(error).__name__}: {error}"
                        logger.error("Redis refuses to take a stop: %s (%s %r)", why, ALLOW, key)
                        return False
                    if isinstance(error, ReadOnlyError):
                        # The others in the pool lead to the same replica.
                        await drop_connections(client, idle=True)
                    logger.debug("a stop could not be written to Redis yet: %s", error)
                else:
                    return True
                await asyncio.sleep(delay)
                delay = longer(delay)
    logger.warning("a stop could not be written to Redis within %s s, or not for certain", limit)
    return False
