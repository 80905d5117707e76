"""How far the interruption of a pull has come, as one table.

`Pull` (`_driver.py`) asks this table what a request changes, and does what the stage says. Nothing here knows a task,
a future or a loop.

| stage | the pull |
|---|---|
| `QUIET` | runs, and no interruption was asked for |
| `PENDING` | is interrupted at its next real wait |
| `SENT` | was interrupted, once: its cleanup is never interrupted again |
| `ABANDONED` | is let go: it ends now, and every later pull ends at its first wait |
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ("LOOKS", "TRANSITIONS", "Request", "Stage")


class Stage(Enum):
    """How far the interruption has come."""

    QUIET = "quiet"
    PENDING = "pending"
    SENT = "sent"
    ABANDONED = "abandoned"


class Request(Enum):
    """A request that changes the stage."""

    INTERRUPT = "interrupt"
    """The owner wants the pull to end."""
    SEND = "send"
    """The future that the pull waits on was cancelled."""
    REARM = "rearm"
    """The owner pulls once more, and wants that pull to end at its first real wait."""
    ABANDON = "abandon"
    """The owner waits no longer."""


TRANSITIONS: Final[dict[Stage, dict[Request, Stage]]] = {
    Stage.QUIET: {
        Request.INTERRUPT: Stage.PENDING,
        Request.REARM: Stage.PENDING,
        Request.ABANDON: Stage.ABANDONED,
    },
    Stage.PENDING: {Request.SEND: Stage.SENT, Request.ABANDON: Stage.ABANDONED},
    Stage.SENT: {Request.REARM: Stage.PENDING, Request.ABANDON: Stage.ABANDONED},
    Stage.ABANDONED: {},
}
"""From each stage, where each request leads; a request that is not listed changes nothing."""

LOOKS: Final = frozenset({Stage.PENDING, Stage.ABANDONED})
"""The stages in which a pull has to look, before each wait, whether it may wait."""
