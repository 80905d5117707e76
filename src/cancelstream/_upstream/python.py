"""CPython: the frames of the calls that are under way, and the mark of a future that a task awaits."""

from __future__ import annotations

import sys
import typing
from asyncio import Future
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Final

__all__ = ("caller", "line_outside", "unmark_awaited")

_INSIDE: Final = (str(Path(__file__).parents[1]), str(typing.__file__))
"""Files whose frames are no line of the user's: this package's, and `typing.py`, which calls `Class[int]()`."""


def caller(depth: int) -> FrameType | None:
    """The frame that called the function that calls this one, for `depth` 1; its caller, for 2; and so on.

    An interpreter other than CPython may have no `sys._getframe`: then it is `None`, which costs the line that a
    warning names, and the name of an agent that has none.
    """
    get: Any = getattr(sys, "_getframe", None)
    if get is None:
        return None
    frame: FrameType = get(depth + 1)
    return frame


def line_outside() -> str:
    """The line outside this package that led to this call, for a warning; `'an unknown line'` without frames."""
    frame = caller(0)
    if frame is None:
        return "an unknown line"
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}, in {frame.f_code.co_name}"


def unmark_awaited(future: Future[Any]) -> None:
    """Take back that a future was yielded to the task that awaits it, so that it can be waited for by a callback.

    Without `_asyncio_future_blocking` nothing is done. The mark only lets asyncio find a bare `yield` of a future.
    """
    marked: Any = future
    with suppress(AttributeError):
        marked._asyncio_future_blocking = False
