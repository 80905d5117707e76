"""Letting go of a coroutine that does not end, without the loop: its cleanup runs as far as its next real wait."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from typing import Any, Final

__all__ = ("let_go", "run_to_wait")

LET_GO_THROWS: Final = 8
"""Waits that are torn in one source that is let go: its own, and one in the cleanup of each of a few layers."""

LET_GO_YIELDS: Final = 64
"""Bare yields that a cleanup is run through at a time, without the loop. Closing a connection has a handful."""


class _LetGo(BaseException):
    """Thrown into a source that is let go; only sources ever see it.

    Not `GeneratorExit`: through a chain of asynchronous generators Python passes that on by `close()`, which before
    3.13 does not reach the inner ones and leaves them running for ever.
    """


def let_go(coroutine: Coroutine[Any, Any, Any]) -> None:
    """End a coroutine that does not end, or whose task is gone, as far as that goes without the loop.

    Its cleanup runs through bare yields and is torn at its first wait: left suspended there, it would be finished
    by the garbage collector, outside of any task.
    """
    with suppress(BaseException):
        for _ in range(LET_GO_THROWS):
            _run_through(coroutine, coroutine.throw(_LetGo()))


def run_to_wait(awaitable: Awaitable[Any]) -> None:
    """Run it without a task, through bare yields, and let it go at its first wait; an error of its own is dropped."""
    coroutine = _coroutine(awaitable)
    with suppress(BaseException):
        _run_through(coroutine, coroutine.send(None))
        let_go(coroutine)


def _run_through(coroutine: Coroutine[Any, Any, Any], waits_on: Any) -> None:
    for _ in range(LET_GO_YIELDS):
        if waits_on is not None:
            return
        waits_on = coroutine.send(None)


async def _coroutine(awaitable: Awaitable[Any]) -> Any:
    return await awaitable
