"""Cutting a socket that another thread reads, and never one that its pool has taken back.

Between the look ("has this response ended?") and the act (`shutdown`) the reader may reach the end, and the connection
may serve another request by then. So both sides take one lock: `cut()` holds it while it looks and acts, and the reader
takes it before it lets go of the connection, which it does in one place, `response.close()`.

`cut()` only tries the lock, and gives up if it is taken: then the response is being closed, or cut, already. So a
signal handler, which runs in the middle of its own thread, never waits for itself. The reader, which needs the result
of the
cut, waits (`wait=True`).
"""

from __future__ import annotations

import os
import threading
from typing import Any, Final

from .._upstream import http

__all__ = ("Grip",)

PATIENCE: Final = 1.0
"""Seconds that the reader waits for a cut, which takes microseconds: an exception in a signal handler may have ended it
between taking the lock and giving it back."""


class Grip:
    """The right to cut one response's connection, until the response is closed.

    Args:
        response: The HTTP response of a blocking client; its `close()` is replaced by one that lets go first.
    """

    __slots__ = ("_free", "_lock", "_pid", "_response", "was_cut")

    def __init__(self, response: Any) -> None:
        self.was_cut = False
        """Whether the socket was shut: reading it does not wait any more."""
        self._response = response
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._free = response.is_closed
        # Every end of a response passes here: its last byte, an error, the SDK, a call of `close()`.
        response.close = self._close

    @property
    def is_forked(self) -> bool:
        """Whether this process was forked from the one that opened the connection."""
        return os.getpid() != self._pid

    def cut(self, *, wait: bool = False) -> None:
        """Shut the socket, if the response has not ended and is not HTTP/2; any thread, any signal handler.

        In a process that was forked since nothing is shut: the connection is its parent's.

        Args:
            wait: Whether to wait for a cut that is under way, and so to know what came of it.
        """
        if not self.is_forked and self._lock.acquire(timeout=PATIENCE if wait else 0):
            try:
                if not self._free:
                    self.was_cut = http.shut_socket(self._response) or self.was_cut
            finally:
                self._lock.release()

    def _close(self) -> None:
        held = self._lock.acquire(timeout=PATIENCE)
        self._free = True
        if held:
            self._lock.release()
        if self.was_cut:
            http.discard_from_pool(self._response)
        self._response.__dict__.pop("close", None)
        self._response.close()
