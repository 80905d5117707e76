"""Stops that came before their stream.

Kept in two levels, owners and their stops, both in the order of the last stop. So what has expired is always in front,
every operation takes constant time, and a flood of one owner's pushes out only that owner's.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

__all__ = ("EarlyStops",)

EARLY_PER_OWNER: Final = 64
"""How many stops that came before their stream are kept for one owner: more streams than a person starts at once."""

EARLY_IN_ALL: Final = 16_384
"""How many are kept for all owners together: at most 12 MB, measured as 691 bytes each when every owner has one."""


class EarlyStops:
    """Stops by owner and key, for `ttl` seconds; of too many the oldest go first."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._owners: OrderedDict[bytes, OrderedDict[bytes, tuple[float, str]]] = OrderedDict()
        self._count = 0

    def add(self, owner_key: bytes, key: bytes, reason: str) -> None:
        now = time.monotonic()
        stops = self._owners.setdefault(owner_key, OrderedDict())
        self._owners.move_to_end(owner_key)
        if stops.pop(key, None) is None:
            self._count += 1
        stops[key] = (now + self._ttl, reason)
        if len(stops) > EARLY_PER_OWNER:
            stops.popitem(last=False)
            self._count -= 1
        while self._count > EARLY_IN_ALL or self._first_is_old(now):
            self._count -= len(self._owners.popitem(last=False)[1])

    def take(self, owner_key: bytes, key: bytes) -> str | None:
        stops = self._owners.get(owner_key)
        if stops is None or (stop := stops.pop(key, None)) is None:
            return None
        self._count -= 1
        if not stops:
            del self._owners[owner_key]
        expires, reason = stop
        return reason if time.monotonic() < expires else None

    def _first_is_old(self, now: float) -> bool:
        """Whether all stops of the owner who has been quiet for longest have expired."""
        stops = next(iter(self._owners.values()))
        return next(reversed(stops.values()))[0] <= now
