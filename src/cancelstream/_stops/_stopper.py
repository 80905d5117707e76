"""Call a stream's cancel callable, of whichever kind it is."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from .._errors import named

__all__ = ("Stopper",)

logger = logging.getLogger("cancelstream")


class Stopper:
    """Calls a stream's cancel callable, once, in the way that it can be called.

    Args:
        cancel: Called with `reason=` if it takes an argument of that name, and without arguments otherwise. A
            coroutine that it returns is run in a task.

    Raises:
        TypeError: It can be called neither way.
    """

    __slots__ = ("_asked", "_cancel", "_takes_reason")

    def __init__(self, cancel: Callable[..., object]) -> None:
        self._cancel = cancel
        self._takes_reason = _takes_reason(cancel)
        self._asked = False

    def stop(self, reason: str) -> bool:
        """Stop the stream, and say whether it was told to.

        Once: `task.cancel` called twice would cancel the cleanup too. An exception from `cancel` is logged, because
        a user who stops a stream by its id is not the one to be told of it.
        """
        if self._asked:
            return True
        try:
            outcome = self._cancel(reason=reason) if self._takes_reason else self._cancel()
        except Exception:
            logger.exception("a stream's cancel callable raised, and the stream may go on")
            return False
        self._asked = True
        if inspect.iscoroutine(outcome):
            task = asyncio.get_running_loop().create_task(_log_failure(outcome))
            _cancelling.add(task)
            task.add_done_callback(_cancelling.discard)
        return True


_cancelling: Final[set[asyncio.Task[None]]] = set()
"""The loop keeps no reference to a task that waits, so that it would be collected."""


def _takes_reason(cancel: Callable[..., object]) -> bool:
    """Whether `cancel` is to be called with `reason=`; TypeError when it can be called neither way.

    Asked when the stream registers, because when the stop comes it is too late to say that it cannot be made.
    """
    if not callable(cancel):
        raise TypeError(f"cancel is a function that stops the stream, such as `run.cancel`, not {named(cancel)}")
    try:
        signature = inspect.signature(cancel)
    except ValueError:  # a builtin that does not tell its arguments
        return False
    for arguments in ({"reason": ""}, {}):
        if "reason" in arguments and "reason" not in signature.parameters:
            continue  # not into **kwargs: who does not name it does not expect it
        try:
            signature.bind(**arguments)
        except TypeError:
            continue
        return bool(arguments)
    raise TypeError(f"{named(cancel)} can be called neither without arguments nor with reason=")


async def _log_failure(cancelling: Coroutine[Any, Any, object]) -> None:
    try:
        await cancelling
    except Exception:
        logger.exception("a stream's cancel coroutine raised, and the stream may go on")
