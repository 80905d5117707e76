"""Which event loop a stream belongs to: the asyncio loop that it was made in, or first used in."""

from __future__ import annotations

import asyncio
import sys

__all__ = ("ELSEWHERE", "MisplacedPull", "require_loop", "running_loop")

ELSEWHERE = "this stream belongs to another event loop: read it there. `cancel()` works from anywhere"


class MisplacedPull(RuntimeError):
    """A pull was begun where it must not be; nothing was changed, and the stream's own reader goes on."""


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The asyncio loop that runs in this thread, `None` if none does.

    Raises:
        RuntimeError: Trio runs here.
    """
    trio = sys.modules.get("trio")
    if trio is not None and trio.lowlevel.in_trio_task():
        raise RuntimeError(
            "cancelstream runs on asyncio, and this is trio: use `trio.CancelScope` to stop a stream there"
        )
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def require_loop() -> asyncio.AbstractEventLoop:
    """The asyncio loop that runs in this thread.

    Raises:
        MisplacedPull: None does; the caller is a coroutine of another library's, such as curio's.
        RuntimeError: Trio runs here.
    """
    loop = running_loop()
    if loop is None:
        raise MisplacedPull("cancelstream runs on asyncio, and no event loop of asyncio's runs here")
    return loop
