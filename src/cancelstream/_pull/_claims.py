"""Who wants a pull to end: decided from the task's count of cancellations, apart from the driving.

`task.cancelling()` counts the requests to cancel a task that nobody has withdrawn. A `CancelledError` alone does not
say whose it is: asyncio folds two cancellations of one wait into one error, and a timeout inside the source, which
withdraws its own afterwards, sends the same as the consumer. So what stands is the count above what it was when the
pull began. What has been withdrawn is something that the source was given; what is held nobody knows of yet.

Known limit: a consumer that reads on in its own clean-up has a count that was never withdrawn. If what the source
awaits is then cancelled by itself, that is taken for a cancellation of the consumer: the outer one wins.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError
from typing import Any, Final

__all__ = ("STRIKING", "Claims")

STRIKING: Final[dict[asyncio.Task[Any], object]] = {}
"""For each task, the pull that has struck and is ending; pulls of one task can lie inside one another."""


class Claims:
    """The claims on one pull; decides, and does nothing itself.

    Args:
        task: The task that pulls.
        floor: Its count of cancellations when the pull began.
    """

    __slots__ = ("_floor", "given", "held", "ours", "spins", "task")

    def __init__(self, task: asyncio.Task[Any], floor: int) -> None:
        self.task = task
        self._floor = floor
        self.ours = False
        """Ours was thrown into the source."""
        self.given: CancelledError | None = None
        """Somebody else's was, the last one."""
        self.held: CancelledError | None = None
        """Somebody else's waits for the next real wait, or for the end."""
        self.spins = 0
        """Bare yields since it is held."""

    def held_stands(self) -> bool:
        """Whether the one that is held has not been withdrawn since."""
        return self.held is not None and self.task.cancelling() > self._floor

    def unwinding_theirs(self) -> bool:
        """Whether the source is at the clean-up that somebody else's made it do."""
        if self.given is None:
            return False
        return self.task.cancelling() - (self.held is not None) > self._floor

    def unwinding(self) -> bool:
        """Whether the source is at the clean-up of any cancellation."""
        return self.ours or self.task in STRIKING or self.unwinding_theirs()

    def take(self, error: CancelledError, *, at_bare_yield: bool, ours: bool) -> bool:
        """Account for one that arrived; say whether it is thrown into the source now.

        Args:
            error: What arrived.
            at_bare_yield: The source was at a bare yield.
            ours: Ours is in it; somebody else's may be, too.
        """
        unwinding = self.unwinding()
        # The one that is held is known already.
        count = self.task.cancelling() - (self.held is not None)
        if ours:
            self.ours = True
            if count <= self._floor:
                return True
        elif count == 0:
            # Nobody has cancelled the task: what the source awaits was, by itself or by another pull of this task.
            return True
        elif count <= self._floor:
            self._floor = count - 1  # asked for before the pull began, it arrives only now
        if at_bare_yield and (unwinding or not _is_anyio(error)):
            self.held = error
            self.spins = 0
            return False
        self.given = error
        return True

    def outcome(self, *, stopping: bool) -> CancelledError | None:
        """Somebody else's that has to come out of the pull, whatever the source made of it.

        One that the source was given and swallowed is the source's affair, unless we stop it as well: then the
        end of the loop would hide it.
        """
        if self.held_stands():
            return self.held
        if stopping and self.unwinding_theirs():
            return self.given
        return None


def _is_anyio(error: CancelledError) -> bool:
    """Whether an anyio cancel scope sent it; anyio tells them apart by the same words."""
    return bool(error.args) and str(error.args[0]).startswith("Cancelled via cancel scope ")
