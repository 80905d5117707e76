"""How long an awaitable that was interrupted may take to end.

A loop that is busy for a second has not given a well-behaved source its turns, and letting go of that source would
break what it is still closing. So the second is waited for in slices, each of which costs the loop a turn at least.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ("DEADLINE", "Deadline")

DEADLINE: Final = 1.0
"""Seconds that an interrupted awaitable has to unwind and close; then it is let go.

Well-behaved sources need a few milliseconds, TLS and HTTP/2 included. A cleanup that takes longer than a second is
stuck, and the consumer waits for it.
"""

SLICES: Final = 25
"""Turns that the loop has had at least. Closing takes about ten, through pydantic-ai, openai and TLS."""


class Deadline:
    """Calls back once, after `DEADLINE` seconds and at least `SLICES` turns of the loop; on that loop.

    Args:
        loop: The loop whose turns count.
        missed: Called when the time is over, unless `cancel()` was called first.
    """

    __slots__ = ("_left", "_loop", "_missed", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, missed: Callable[[], object]) -> None:
        self._loop = loop
        self._missed = missed
        self._left = SLICES
        self._timer = loop.call_later(DEADLINE / SLICES, self._tick)

    def cancel(self) -> None:
        """Stop the clock: it ended in time."""
        self._timer.cancel()

    def _tick(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = self._loop.call_later(DEADLINE / SLICES, self._tick)
        else:
            self._missed()
