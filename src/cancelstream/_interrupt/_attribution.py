"""Whose cancellation ends a pull: decided from the task's count of cancellations, apart from the driving.

`task.cancelling()` counts the requests to cancel a task that were not withdrawn. A `CancelledError` alone does not say
who sent it: asyncio folds two cancellations of one wait into one error, and a timeout inside the source, which
withdraws its own request afterwards, sends the same error as the consumer. So the count decides:

1. A request of the consumer's is pending if `task.cancelling()` exceeds its value when the pull began.
2. A request that was withdrawn since has lowered the count, and counts no more.
3. An error that was deferred has not reached the source yet, so its request is subtracted from what the source knows.

Known limit: a consumer that reads on in its own cleanup has a request that was never withdrawn. If the future that the
source awaits is then cancelled by itself, that is taken for a cancellation by the consumer: the outer one wins.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from typing import Any, Final

from .._upstream.anyio import is_from_scope

__all__ = ("INTERRUPTING", "Attribution")

INTERRUPTING: Final[dict[asyncio.Task[Any], object]] = {}
"""For each task, the pull that was interrupted and is ending; pulls of one task can lie inside one another."""


class Attribution:
    """The cancellations that reached one pull; decides, and does nothing itself.

    Args:
        task: The task that pulls.
        cancelling_at_start: `task.cancelling()` when the pull began.
    """

    __slots__ = ("_cancelling_at_start", "bare_yields", "deferred", "interrupted", "task", "thrown")

    def __init__(self, task: asyncio.Task[Any], cancelling_at_start: int) -> None:
        self.task = task
        self._cancelling_at_start = cancelling_at_start
        self.interrupted = False
        """Our own interruption was thrown into the source."""
        self.thrown: CancelledError | None = None
        """The consumer's cancellation that was thrown into the source last."""
        self.deferred: CancelledError | None = None
        """The consumer's cancellation that waits for the next real wait, or for the end of the pull."""
        self.bare_yields = 0
        """Bare yields since the cancellation was deferred."""

    def is_deferred(self) -> bool:
        """Whether a cancellation is deferred, and its request was not withdrawn since."""
        return self.deferred is not None and self.task.cancelling() > self._cancelling_at_start

    def is_cleaning_up_for_the_consumer(self) -> bool:
        """Whether the source is in the cleanup that the consumer's cancellation made it do."""
        if self.thrown is None:
            return False
        return self.task.cancelling() - (self.deferred is not None) > self._cancelling_at_start

    def is_cleaning_up(self) -> bool:
        """Whether the source is in the cleanup of any cancellation."""
        return self.interrupted or self.task in INTERRUPTING or self.is_cleaning_up_for_the_consumer()

    def record(self, error: CancelledError, *, at_bare_yield: bool, interrupted: bool) -> bool:
        """Record an error that arrived; say whether it is thrown into the source now.

        Args:
            error: The error that arrived.
            at_bare_yield: The source was at a bare yield.
            interrupted: Our own interruption is in it; a cancellation by the consumer may be, too.
        """
        is_cleaning_up = self.is_cleaning_up()
        # The request behind a deferred error was counted when it arrived.
        count = self.task.cancelling() - (self.deferred is not None)
        if interrupted:
            self.interrupted = True
            if count <= self._cancelling_at_start:
                return True
        elif count == 0:
            # The task was not cancelled: the future it awaits was, by itself or by another pull of this task.
            return True
        elif count <= self._cancelling_at_start:
            self._cancelling_at_start = count - 1  # requested before the pull began, it arrives only now
        if at_bare_yield and (is_cleaning_up or not is_from_scope(error)):
            self.deferred = error
            self.bare_yields = 0
            return False
        self.thrown = error
        return True

    def to_raise(self, *, stopping: bool) -> CancelledError | None:
        """The consumer's cancellation that the pull has to raise, however the source ended.

        A cancellation that the source was given and swallowed is the source's affair, unless the stream is being
        stopped as well: then the end of the loop would hide it.
        """
        if self.is_deferred():
            return self.deferred
        if stopping and self.is_cleaning_up_for_the_consumer():
            return self.thrown
        return None
