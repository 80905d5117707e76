"""A stream's life, as one table.

Rule 1: what a stream may become is decided here and nowhere else. This module does no I/O, reads no clock and
knows no library.

Rule 2: a life ends once. `END`, `CANCEL` and `ERROR` may race from different threads; the first one to be
applied wins, and the others change nothing. That is held without a lock, because a signal handler runs in the
middle of its own thread and would wait for itself: `dict.setdefault` is atomic, so the end is claimed with it.

`LEAVE` (the context was left, or the stream closed, before its end) is not an end: a `cancel()` may still follow
and give the reason. An error that arrives after `CANCEL` comes from our own cancellation and changes nothing.

Rule 3: a stop changes nothing once the answer is whole. An answer is whole when the provider has said how it ended and
all of its text was handed out; the caller knows, and a `CANCEL` or `LEAVE` is an `END` then (`stop()`).
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from ._errors import named

__all__ = ("ENDED", "REASON_LIMIT", "TRANSITIONS", "Event", "Life", "State", "checked_reason")

REASON_LIMIT: Final = 200
"""Most characters a reason may have: it is stored with every message it cut, and may come from a stranger."""


def checked_reason(reason: str | None) -> str:
    """The reason that a cancel is recorded with; `None` and an empty one are recorded as `'cancelled'`.

    Raises:
        TypeError: If the reason is not a string.
        ValueError: If it is longer than `REASON_LIMIT` characters.
    """
    if reason is None:
        return "cancelled"
    # A caller without a type checker may pass anything, often the exception or the request at hand.
    if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"cancel() was given {named(reason)} as its reason: pass a string, or nothing at all")
    if len(reason) > REASON_LIMIT:
        raise ValueError(
            f"cancel() was given a reason of {len(reason)} characters: pass at most {REASON_LIMIT}, "
            "and keep the rest in your own log"
        )
    return reason or "cancelled"


class State(Enum):
    """Where a stream stands."""

    LIVE = "live"
    LEFT = "left"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


class Event(Enum):
    """The events of a stream's life."""

    END = "end"
    CANCEL = "cancel"
    LEAVE = "leave"
    ERROR = "error"


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.LIVE: {
        Event.END: State.COMPLETE,
        Event.CANCEL: State.INTERRUPTED,
        Event.LEAVE: State.LEFT,
        Event.ERROR: State.FAILED,
    },
    State.LEFT: {Event.CANCEL: State.INTERRUPTED},
    State.COMPLETE: {},
    State.INTERRUPTED: {},
    State.FAILED: {},
}
"""From each state, what each event leads to; an event that is not listed changes nothing."""

ENDED: Final = frozenset({State.COMPLETE, State.INTERRUPTED, State.FAILED})
"""The states that nothing leaves."""


class Life:
    """One stream's state and the reason it was stopped for; any thread may apply an event."""

    __slots__ = ("_end", "_left")

    def __init__(self) -> None:
        self._left: str | None = None
        # At most one entry: the state that ended this life, and why. See Rule 2.
        self._end: dict[str, tuple[State, str | None]] = {}

    @property
    def state(self) -> State:
        """The state now."""
        end = self._end.get("end")
        if end is not None:
            return end[0]
        return State.LIVE if self._left is None else State.LEFT

    @property
    def is_cut(self) -> bool:
        """Whether it was stopped, or left before its end."""
        return self.state in (State.INTERRUPTED, State.LEFT)

    @property
    def reason(self) -> str | None:
        """Why the stream was stopped or left, `None` while it lives and after a whole answer."""
        end = self._end.get("end")
        return self._left if end is None else end[1]

    def apply(self, event: Event, reason: str | None = None) -> bool:
        """Apply an event and say whether it changed the state."""
        target = TRANSITIONS[self.state].get(event)
        if target is None:
            return False
        if target is State.LEFT:
            self._left = reason or "left"
            return True
        claim = (target, reason)
        # Identity, not equality: of two racing cancels with one reason only the first changed anything.
        return self._end.setdefault("end", claim) is claim

    def stop(self, event: Event, reason: str, *, whole: bool) -> bool:
        """Apply `CANCEL` or `LEAVE`, or `END` if the answer is `whole` (Rule 3); say whether that changed the state."""
        return (whole and self.apply(Event.END)) or self.apply(event, reason)
