"""Interrupting one awaitable, and only that one.

A pull is driven by hand: we pass what it yields on to the event loop and remember the future it waits on. To
interrupt it we cancel that future. The task is never cancelled, so nothing of ours can reach the consumer's own
awaits, and `task.cancelling()` stays what it was. No lock, no cancel scope and no task is needed for a chunk.

Rule 1: at a bare yield (`asyncio.sleep(0)`, what anyio calls a shielded checkpoint) nothing is thrown. Ours waits
for the next real wait. A `task.cancel()` of somebody else's that lands there is held until the next real wait, and
given to it as asyncio would; if another cancellation is being unwound just then it is held to the end of the pull.
Thrown at that yield it would break what is shielded there: httpcore loses a pool slot, TLS marks a connection that
others share as broken. A cancellation by an anyio scope goes through, since anyio knows its own shields, unless it
lands in the middle of an unwinding.

Rule 2: ours is one shot: it never strikes the clean-up that follows it, nor that of somebody else's.

Rule 3: whose a `CancelledError` is, is read from `task.cancelling()`. A request counts as long as nobody has
withdrawn it, so a timeout inside the source, which withdraws its own, is not taken for the consumer's. When both
are there, the outer one wins.

Known limits: a source that spins on bare yields is given a held cancellation after `SPINS` of them. A source that
swallows ours and goes on is not struck again, it is let go by `abandon()`, which the owner calls at its deadline.
"""

from __future__ import annotations

import asyncio
import types
from asyncio import CancelledError, Future, current_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

from ._claims import STRIKING, Claims

__all__ = ("Interrupted", "Pull", "run_to_wait")

T = TypeVar("T")

LET_GO_THROWS: Final = 8
"""Waits that are torn in one source that is let go: its own, and one in the clean-up of each of a few layers."""

LET_GO_YIELDS: Final = 64
"""Bare yields that a clean-up is run through at a time, without the loop. Closing a connection has a handful."""

SPINS: Final = 1000
"""Bare yields in a row after which a held cancellation is thrown all the same, some 20 ms of a busy loop.

A request over HTTP/2 and TLS that never has to wait for its data has 65 and more.
"""


class Interrupted(Exception):
    """The pull ended because `interrupt()` was called; nobody else wants the task to stop."""


def _nothing(_coroutine: Coroutine[Any, Any, Any]) -> None:
    """Look for nothing."""


class Pull:
    """One awaitable at a time, driven in the task that awaits it. On the loop's own thread, `stopping` excepted.

    Args:
        discard: Is given a value that came although its pull has to end in somebody else's cancellation.
        find: Is given what is driven before a cancellation is thrown into it, and may find something there.
    """

    __slots__ = (
        "_abandoned",
        "_alert",
        "_find",
        "_floor",
        "_gate",
        "_idle",
        "_struck",
        "_target",
        "discard",
        "found",
        "stopping",
        "task",
    )

    def __init__(
        self, discard: Callable[[Any], object], find: Callable[[Coroutine[Any, Any, Any]], Any] = _nothing
    ) -> None:
        self.stopping = False
        """Set by the owner, from any thread, before it has the loop call `interrupt()`."""
        self.task: asyncio.Task[Any] | None = None
        """The task whose pull is suspended, `None` while there is none."""
        self.discard = discard
        self.found: Any = None
        """What `find` returned for the last cancellation."""
        self._find = find
        self._target: Future[Any] | None = None  # what to cancel in order to interrupt
        self._gate: Future[Any] | None = None  # what to cancel in order to let go
        self._alert = False  # interrupt() has not struck yet, or abandon() was called
        self._floor = 0  # the task's cancellations when its pull began
        self._struck = False
        self._abandoned = False
        self._idle: list[Future[None]] = []

    # Stopping -----------------------------------------------------------------------------------------------

    def interrupt(self) -> None:
        """End the suspended pull, at its next real wait if it has none now; idempotent."""
        if not self._struck:
            self._alert = True
            self._strike()

    def rearm(self) -> None:
        """Let the next pull go on until its first real wait, and interrupt it there."""
        self._struck = False
        self._alert = True

    def abandon(self) -> None:
        """Let go of what does not end: its pull ends now, and later ones at their first wait."""
        self._abandoned = self._alert = True
        waits_on = self._gate or self._target
        if self.task is not None and waits_on is not None:
            waits_on.cancel()

    async def idle(self) -> None:
        """Return when no pull is suspended."""
        while self.task is not None:
            turn: Future[None] = asyncio.get_running_loop().create_future()
            self._idle.append(turn)
            await turn

    def _strike(self) -> None:
        target, gate, task = self._target, self._gate, self.task
        # Not while another pull of this task, around this one or inside it, is ended by its own strike, and not where
        # the wait is over: both times the next wait, if there is one, is the moment.
        if target is None or task is None or task in STRIKING or (gate is not None and gate.done()):
            return
        if target.cancel():
            STRIKING[task] = self
            self._struck = True
            self._alert = self._abandoned

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
            CancelledError: Somebody else cancelled the task, or the source itself raised it.
        """
        # Asked for by its loop, for without one Python 3.11 asks the kernel which process this is.
        loop = waits_on.get_loop() if waits_on is not None and waits_on.__class__ is Future else None
        task: Any = current_task(loop) or current_task()
        self.task = task
        self._floor = task.cancelling()
        try:
            while True:
                if self._alert or (waits_on.__class__ is not Future and waits_on is not None):
                    return (yield from self._carefully(coroutine, waits_on))
                self._target = waits_on
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
        """Drive on when something was thrown, when something is to be interrupted, or what is awaited is a task."""
        claims = Claims(cast("asyncio.Task[Any]", self.task), self._floor)
        try:
            while True:
                self._gate = self._target = None
                if error is not None:
                    waits_on = self._throw(coroutine, waits_on, error, claims)
                    error = None
                waits_on = self._before_waiting(coroutine, waits_on, claims)
                try:
                    yield from self._wait(waits_on, claims)
                except BaseException as thrown:  # noqa: BLE001 - thrown into the source
                    error = thrown
                else:
                    waits_on = coroutine.send(None)
        except StopIteration as done:
            theirs = claims.outcome(stopping=self.stopping)
            if theirs is None:
                value: T = done.value
                return value
            self.discard(done.value)
            raise theirs from None
        except BaseException as raised:
            instead = self._instead_of(raised, claims)
            if instead is None:
                raise
            raise instead from None
        finally:
            # An error knows the frames it came through: that they know it, too, would keep the stream until the next
            # collection, where it should be closed as soon as it is dropped.
            error = theirs = instead = claims.given = claims.held = None
            if STRIKING.get(claims.task) is self:
                del STRIKING[claims.task]
            self._gate = None

    def _instead_of(self, raised: BaseException, claims: Claims) -> BaseException | None:
        """What comes out of the pull instead of what was raised in it, if not that itself."""
        if isinstance(raised, GeneratorExit):
            return None
        theirs = claims.outcome(stopping=self.stopping)
        if theirs is not None:
            # Theirs, not the one of ours that the source may have passed on: an anyio scope knows only its own.
            return theirs
        ours = claims.ours if isinstance(raised, CancelledError) else isinstance(raised, Exception)
        return Interrupted() if ours and self.stopping else None

    def _throw(
        self,
        coroutine: Coroutine[Any, Any, Any],
        waits_on: Future[Any] | None,
        error: BaseException,
        claims: Claims,
    ) -> Future[Any] | None:
        """Pass on what the loop threw at us, or hold it; return what the source waits on next."""
        if isinstance(error, CancelledError):
            self.found = self._find(coroutine) or self.found
            ours = self._abandoned or (self._struck and not claims.ours)
            if not claims.take(error, at_bare_yield=waits_on is None, ours=ours):
                return cast("Future[Any] | None", coroutine.send(None))
            if self._abandoned:
                _let_go(coroutine)
                raise Interrupted
        elif isinstance(error, GeneratorExit):  # our task is being destroyed
            _let_go(coroutine)
            raise error
        return cast("Future[Any] | None", coroutine.throw(error))

    def _before_waiting(
        self, coroutine: Coroutine[Any, Any, Any], waits_on: Future[Any] | None, claims: Claims
    ) -> Future[Any] | None:
        """Do what has waited for the source to wait: give it a cancellation that was held, let go, or strike."""
        held = claims.held if claims.held_stands() else None
        if held is None:
            claims.held = None
        elif waits_on is None:
            claims.spins += 1
            if claims.spins > SPINS:
                self.found = self._find(coroutine) or self.found
                claims.given, claims.held = held, None
                waits_on = coroutine.throw(held)
        elif not claims.unwinding() and waits_on.cancel(*held.args[:1]):
            claims.given, claims.held = held, None  # it comes out of what is awaited, as asyncio does it
        if self._abandoned:
            _let_go(coroutine)
            raise Interrupted
        if not claims.unwinding_theirs():
            self._target = waits_on
            if self._alert:
                self._strike()
        return waits_on

    def _wait(self, waits_on: Future[Any] | None, claims: Claims) -> Generator[Any, Any, None]:
        """Yield to the loop until `waits_on` is done."""
        if waits_on is None or waits_on.__class__ is Future:
            self._gate = waits_on
            yield waits_on
            return
        # A task or a gathering ends in its own time after it was cancelled, or never. So that it can be let go we
        # wait for it by way of a future of our own, and pass a cancellation on as asyncio would.
        waits_on._asyncio_future_blocking = False  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        while not waits_on.done():
            gate = self._gate = asyncio.get_running_loop().create_future()
            opener = _Opener(gate)
            waits_on.add_done_callback(opener)
            try:
                yield from gate
            except CancelledError as error:
                if self._abandoned or not waits_on.cancel(*error.args[:1]):
                    raise
                claims.take(error, at_bare_yield=False, ours=False)
            finally:
                waits_on.remove_done_callback(opener)
        if self._struck and (waits_on.cancelled() or isinstance(waits_on.exception(), CancelledError)):
            claims.ours = True  # not thrown by us: the source finds it in what it awaits


class _Opener:
    """Releases a future when another one is done; an object, so that it can be taken back."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Future[None]) -> None:
        self._gate = gate

    def __call__(self, _done: Future[Any]) -> None:
        if not self._gate.done():
            self._gate.set_result(None)


class _LetGo(BaseException):
    """Thrown into a source that is let go; only sources ever see it.

    Not `GeneratorExit`: through a chain of asynchronous generators Python passes that on by `close()`, which before
    3.13 does not reach the inner ones and leaves them running for ever.
    """


def _let_go(coroutine: Coroutine[Any, Any, Any]) -> None:
    """End what does not end, or whose task is gone, as far as that goes without the loop.

    Its clean-up runs through bare yields and is torn at its first wait: left suspended there, it would be finished
    by the garbage collector, outside of any task.
    """
    with suppress(BaseException):
        for _ in range(LET_GO_THROWS):
            _run_through(coroutine, coroutine.throw(_LetGo()))


def run_to_wait(awaitable: Awaitable[Any]) -> None:
    """Run it without a task, through bare yields, and let it go at its first wait; what it raises is dropped."""
    coroutine = _coroutine(awaitable)
    with suppress(BaseException):
        _run_through(coroutine, coroutine.send(None))
        _let_go(coroutine)


def _run_through(coroutine: Coroutine[Any, Any, Any], waits_on: Any) -> None:
    for _ in range(LET_GO_YIELDS):
        if waits_on is not None:
            return
        waits_on = coroutine.send(None)


async def _coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable
