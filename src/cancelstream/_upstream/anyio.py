"""anyio: whose cancellation a `CancelledError` is."""

from __future__ import annotations

from asyncio import CancelledError

__all__ = ("is_from_scope",)


def is_from_scope(error: CancelledError) -> bool:
    """Whether an anyio cancel scope sent this error; anyio itself tells them apart by the same words.

    Without those words the error is taken for a `task.cancel()`: at a shielded checkpoint it is then deferred to the
    next real wait instead of being thrown at once. Nothing is lost by it, so there is no warning, only a canary.
    """
    return bool(error.args) and str(error.args[0]).startswith("Cancelled via cancel scope ")
