"""Stop a stream from another worker or machine, on Redis or Valkey.

Needs the extra `cancelstream[redis]`.

One Redis Stream carries all stops: `stop()` appends to it (`_write.py`: XADD), and every worker follows it
(`_follow.py`: XREAD BLOCK) on one connection and keeps what is for its own streams. A stream rather than
publish/subscribe, because a worker that was away reads on from where it was, and one that starts reads the last `ttl`
seconds: a stop is delivered at least once, early or late, and no second mechanism is needed for the gap. An
entry holds a digest of owner and id, one of the owner, and the reason.

Redis never touches a running stream. Registering does no I/O, a stop of a stream in this process needs no Redis,
and an error of Redis is seen only by the `stop()` that had to write, which answers `'unavailable'`: it is then not
known whether Redis took the write (one that was frozen may take it when it thaws), and asking again is safe, because
a stop given twice is a stop.

Known limits: Redis keeps what it accepted as well as it is set up to. A stop that Redis took and lost by dying before
a worker that had been cut off from it came back is lost (workers that are connected have it within a millisecond);
so is one whose primary died before its replica had it. The Redis stream holds the last 100,000 stops or so: more
than that within a worker's absence push out the oldest. The digests have no key: a person who can read the Redis
stream can test whether an owner, whose id they know, has asked for a stop.
"""

from ._registry import RedisStopRegistry as RedisStopRegistry

__all__ = ("RedisStopRegistry",)
