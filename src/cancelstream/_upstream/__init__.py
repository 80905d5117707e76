"""Names that other libraries keep private, touched in this room only: one module for each library.

Each is behind a function whose name says what it is for, and whose docstring says what happens when an upgrade has
removed it: the package then does without, and says so once in its log (`missing()`), or raises when an object is made,
never in the middle of a stream. `tests/test_upstream.py` has a canary for each, which fails on the upgrade itself.

This module imports no library, so that the ground may use the room.
"""

from __future__ import annotations

import logging
from importlib.metadata import PackageNotFoundError, version

__all__ = ("missing",)

_logger = logging.getLogger("cancelstream")
_told: set[tuple[str, str]] = set()


def missing(library: str, name: str, instead: str) -> None:
    """Say, once for each name, that a library has lost a private name, and what is done without it. Never raises.

    Args:
        library: The name of the installed distribution.
        name: The private name.
        instead: What is done, or no longer done, without it; a clause that follows 'so'.
    """
    if (library, name) in _told:
        return
    _told.add((library, name))
    try:
        installed = version(library)
    except PackageNotFoundError:
        installed = "(not installed under that name)"
    _logger.warning(
        "%s %s has no %s any more, so %s: use a version that cancelstream was tested with, or report this",
        library,
        installed,
        name,
        instead,
    )
