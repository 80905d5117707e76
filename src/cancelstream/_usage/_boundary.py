"""The boundary between the account and a stream's reader: a fault in counting never ends the stream.

A provider may send anything: half a character, a list where a text belongs, arguments nested thousands deep. The SDK
hands it out. All that the account makes of it goes through `attempt()`, so an error of the account's is an unknown
count, and never an error of the reader's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

__all__ = ("attempt", "harmless")

T = TypeVar("T")
D = TypeVar("D")
P = ParamSpec("P")

_logger = logging.getLogger("cancelstream")


def attempt(work: Callable[[], T], otherwise: D) -> T | D:
    """Return what `work` returns, or `otherwise` if it raises."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001 - see above
        # The error may hold what was said: its class is enough.
        _logger.debug("something could not be counted: %s", type(error).__name__)
        return otherwise


def harmless(note: Callable[P, None]) -> Callable[P, None]:
    """Make a function that only notes something one that never raises."""

    @wraps(note)
    def noted(*args: P.args, **kwargs: P.kwargs) -> None:
        attempt(lambda: note(*args, **kwargs), None)

    return noted
