"""Interrupting one awaitable, and only that one.

A pull is driven by hand: the driver passes on to the event loop what the source yields, and remembers the future that
it waits on. To interrupt the pull, the driver cancels that future. The task is never cancelled, so the consumer's own
awaits notice nothing, and `task.cancelling()` stays as it was. A chunk needs no lock, no cancel scope and no task.

Rule 1: nothing is thrown at a bare yield (`asyncio.sleep(0)`, anyio's shielded checkpoint). Thrown there, an error
breaks what is shielded: httpcore loses a place in the pool, TLS marks a connection that others share as broken.

- Our interruption waits for the next real wait.
- A `task.cancel()` that lands there is deferred to the next real wait, and thrown there as asyncio would. If the source
  is in the cleanup of another cancellation, it is deferred to the end of the pull.
- A cancellation by an anyio scope is thrown at once, since anyio knows its own shields, unless it lands in a cleanup.

Rule 2: we interrupt once. Cleanup code that runs afterwards is never interrupted again, nor is the cleanup that a
cancellation of the consumer's started. `_table.py` holds the stages.

Rule 3: `_attribution.py` decides whether a `CancelledError` is the consumer's. If there are both, the consumer's wins.

Known limits: a source that spins on bare yields is given a deferred cancellation after `SPINS` of them. A source that
swallows the interruption and goes on is not interrupted again: its owner calls `abandon()` at the deadline.
"""

from __future__ import annotations

import asyncio
import types
from asyncio import CancelledError, Future, current_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, TypeVar, cast

from .._upstream.python import unmark_awaited
from ._attribution import INTERRUPTING, Attribution
from ._letting_go import let_go
from ._table import LOOKS, TRANSITIONS, Request, Stage

__all__ = ("Interrupted", "Pull")

T = TypeVar("T")

SPINS: Final = 1000
"""Bare yields in a row after which a deferred cancellation is thrown all the same, some 20 ms of a busy loop.

A request over HTTP/2 and TLS that never has to wait for its data has 65 and more.
"""


class Interrupted(Exception):
    """The pull ended because `interrupt()` was called, and the consumer did not cancel the task."""


def _find_nothing(_coroutine: Coroutine[Any, Any, Any]) -> None:
    """Look for nothing."""


class Pull:
    """One awaitable at a time, driven in the task that awaits it. On the loop's own thread, `stopping` excepted.

    Args:
        discard: Is called with a value that arrived although its pull has to raise the consumer's cancellation.
        find: Is called with the driven coroutine before a cancellation is thrown into it; `found` keeps its result.
    """

    __slots__ = (
        "_awaited",
        "_cancelling_at_start",
        "_find",
        "_idle",
        "_looks",
        "_proxy",
        "_stage",
        "discard",
        "found",
        "stopping",
        "task",
    )

    def __init__(
        self, discard: Callable[[Any], object], find: Callable[[Coroutine[Any, Any, Any]], Any] = _find_nothing
    ) -> None:
        self.stopping = False
        """Set by the owner, from any thread, before it has the loop call `interrupt()`."""
        self.task: asyncio.Task[Any] | None = None
        """The task whose pull is suspended, `None` while there is none."""
        self.discard = discard
        self.found: Any = None
        """The last result of `find`."""
        self._find = find
        self._stage = Stage.QUIET
        self._looks = False  # the stage is one of LOOKS; kept beside it because it is read at every wait
        self._awaited: Future[Any] | None = None  # the future to cancel in order to interrupt
        self._proxy: Future[Any] | None = None  # the future to cancel in order to let go
        self._cancelling_at_start = 0  # the task's count of cancellations when its pull began
        self._idle: list[Future[None]] = []

    # Stopping -----------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End the suspended pull, at its next real wait if it has none now; idempotent."""
        self._apply(Request.INTERRUPT)
        if self._stage is Stage.PENDING:
            self._send()

    def rearm(self) -> None:
        """Let the next pull go on until its first real wait, and interrupt it there."""
        self._apply(Request.REARM)

    def abandon(self) -> None:
        """Let go of a source that does not end: its pull ends now, and later ones at their first wait."""
        self._apply(Request.ABANDON)
        waits_on = self._proxy or self._awaited
        if self.task is not None and waits_on is not None:
            waits_on.cancel()

    async def idle(self) -> None:
        """Return when no pull is suspended."""
        while self.task is not None:
            turn: Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(turn)
            await turn

    def _apply(self, request: Request) -> None:
        self._stage = TRANSITIONS[self._stage].get(request, self._stage)
        self._looks = self._stage in LOOKS

    def _send(self) -> None:
        awaited, proxy, task = self._awaited, self._proxy, self.task
        # Two cases in which the next wait, if there is one, is the moment: another pull of this task, around this one
        # or inside it, is ending by its own interruption; or the wait is over.
        if awaited is None or task is None or task in INTERRUPTING or (proxy is not None and proxy.done()):
            return
        if awaited.cancel():
            INTERRUPTING[task] = self
            self._apply(Request.SEND)

    # Driving ------------------------------------------------------------------------------------------------

    async def run(self, awaitable: Awaitable[T]) -> T:
        """Await it, under the rules of this module; raises as `drive()` does."""
        coroutine = (
            cast("Coroutine[Any, Any, T]", awaitable) if isinstance(awaitable, Coroutine) else _coroutine(awaitable)
        )
        try:
            waits_on = coroutine.send(None)
        except StopIteration as done:
            value: T = done.value
            return value
        except Exception as error:
            if self.stopping:
                raise Interrupted from error
            raise
        return await self.drive(coroutine, waits_on)

    @types.coroutine
    def drive(self, coroutine: Coroutine[Any, Any, T], waits_on: Future[Any] | None) -> Generator[Any, Any, T]:
        """Run a coroutine, which has just yielded `waits_on`, to its end.

        Raises:
            Interrupted: It ended because of `interrupt()`.
            CancelledError: The task was cancelled by its consumer, or the source itself raised it.
        """
        # Asked for by its loop, for without one Python 3.11 asks the kernel which process this is.
        loop = waits_on.get_loop() if waits_on is not None and waits_on.__class__ is Future else None
        task: Any = current_task(loop) or current_task()
        self.task = task
        self._cancelling_at_start = task.cancelling()
        try:
            while True:
                if self._looks or (waits_on.__class__ is not Future and waits_on is not None):
                    return (yield from self._carefully(coroutine, waits_on))
                self._awaited = waits_on
                try:
                    yield waits_on
                except BaseException as error:  # noqa: BLE001 - thrown into the source
                    return (yield from self._carefully(coroutine, waits_on, error))
                waits_on = coroutine.send(None)
        except StopIteration as done:
            value: T = done.value
            return value
        finally:
            self.task = None
            if self._idle:
                turns, self._idle = self._idle, []
                for turn in turns:
                    if not turn.done():
                        turn.set_result(None)

    def _carefully(
        self,
        coroutine: Coroutine[Any, Any, T],
        waits_on: Future[Any] | None,
        error: BaseException | None = None,
    ) -> Generator[Any, Any, T]:
        """Drive on. Taken when an error was thrown, when the stage asks for a look, or when a task is awaited."""
        attribution = Attribution(cast("asyncio.Task[Any]", self.task), self._cancelling_at_start)
        try:
            while True:
                self._proxy = self._awaited = None
                if error is not None:
                    waits_on = self._throw(coroutine, waits_on, error, attribution)
                    error = None
                waits_on = self._before_waiting(coroutine, waits_on, attribution)
                try:
                    yield from self._wait(waits_on, attribution)
                except BaseException as thrown:  # noqa: BLE001 - thrown into the source
                    error = thrown
                else:
                    waits_on = coroutine.send(None)
        except StopIteration as done:
            cancelled = attribution.to_raise(stopping=self.stopping)
            if cancelled is None:
                value: T = done.value
                return value
            self.discard(done.value)
            raise cancelled from None
        except BaseException as raised:
            instead = self._instead_of(raised, attribution)
            if instead is None:
                raise
            raise instead from None
        finally:
            # An error holds the frames that it passed through. If these frames held the error, too, the stream would
            # stay until the next collection, although a stream that is dropped has to be closed at once.
            error = cancelled = instead = attribution.thrown = attribution.deferred = None
            if INTERRUPTING.get(attribution.task) is self:
                del INTERRUPTING[attribution.task]
            self._proxy = None

    def _instead_of(self, raised: BaseException, attribution: Attribution) -> BaseException | None:
        """The error that the pull raises instead of the one that the source raised, `None` for that one itself."""
        if isinstance(raised, GeneratorExit):
            return None
        cancelled = attribution.to_raise(stopping=self.stopping)
        if cancelled is not None:
            # The consumer's own error, not the one that the source may have passed on: an anyio scope knows only its
            # own.
            return cancelled
        is_ours = attribution.interrupted if isinstance(raised, CancelledError) else isinstance(raised, Exception)
        return Interrupted() if is_ours and self.stopping else None

    def _throw(
        self,
        coroutine: Coroutine[Any, Any, Any],
        waits_on: Future[Any] | None,
        error: BaseException,
        attribution: Attribution,
    ) -> Future[Any] | None:
        """Pass on an error that the loop threw, or defer it; return the future that the source waits on next."""
        if isinstance(error, CancelledError):
            self.found = self._find(coroutine) or self.found
            abandoned = self._stage is Stage.ABANDONED
            interrupted = abandoned or (self._stage is Stage.SENT and not attribution.interrupted)
            if not attribution.record(error, at_bare_yield=waits_on is None, interrupted=interrupted):
                return cast("Future[Any] | None", coroutine.send(None))
            if abandoned:
                let_go(coroutine)
                raise Interrupted
        elif isinstance(error, GeneratorExit):  # our task is being destroyed
            let_go(coroutine)
            raise error
        return cast("Future[Any] | None", coroutine.throw(error))

    def _before_waiting(
        self, coroutine: Coroutine[Any, Any, Any], waits_on: Future[Any] | None, attribution: Attribution
    ) -> Future[Any] | None:
        """Do what the source had to reach a wait for: throw a deferred cancellation, let go, or interrupt."""
        deferred = attribution.deferred if attribution.is_deferred() else None
        if deferred is None:
            attribution.deferred = None
        elif waits_on is None:
            attribution.bare_yields += 1
            if attribution.bare_yields > SPINS:
                self.found = self._find(coroutine) or self.found
                attribution.thrown, attribution.deferred = deferred, None
                waits_on = coroutine.throw(deferred)
        elif not attribution.is_cleaning_up() and waits_on.cancel(*deferred.args[:1]):
            # It comes out of the future that is awaited, as asyncio does it.
            attribution.thrown, attribution.deferred = deferred, None
        if self._stage is Stage.ABANDONED:
            let_go(coroutine)
            raise Interrupted
        if not attribution.is_cleaning_up_for_the_consumer():
            self._awaited = waits_on
            if self._stage is Stage.PENDING:
                self._send()
        return waits_on

    def _wait(self, waits_on: Future[Any] | None, attribution: Attribution) -> Generator[Any, Any, None]:
        """Yield to the loop until `waits_on` is done."""
        if waits_on is None or waits_on.__class__ is Future:
            self._proxy = waits_on
            yield waits_on
            return
        # A task or a gathering ends in its own time after it was cancelled, or never. So that it can be let go, we
        # wait for a future of our own that it releases, and pass a cancellation on as asyncio would.
        unmark_awaited(waits_on)
        while not waits_on.done():
            proxy = self._proxy = asyncio.get_running_loop().create_future()
            release = _Release(proxy)
            waits_on.add_done_callback(release)
            try:
                yield from proxy
            except CancelledError as error:
                if self._stage is Stage.ABANDONED or not waits_on.cancel(*error.args[:1]):
                    raise
                attribution.record(error, at_bare_yield=False, interrupted=False)
            finally:
                waits_on.remove_done_callback(release)
        if self._stage is Stage.SENT and (waits_on.cancelled() or isinstance(waits_on.exception(), CancelledError)):
            attribution.interrupted = True  # not thrown by us: the source finds it in the task that it awaits


class _Release:
    """Releases a future when another one is done; an object, so that it can be removed again."""

    __slots__ = ("_proxy",)

    def __init__(self, proxy: Future[None]) -> None:
        self._proxy = proxy

    def __call__(self, _done: Future[Any]) -> None:
        if not self._proxy.done():
            self._proxy.set_result(None)


async def _coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
