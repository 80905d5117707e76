"""A `CancellableRun` for threads: one task of its loop enters and leaves it, and each stream is read in one task.

Tasks, because pydantic-ai's cancel scopes and OpenTelemetry's spans have to be left in the task that entered them,
whichever thread asks for the next item. The tasks have the context variables of the thread that entered the run, or
began the stream, as pydantic-ai's `run_stream_sync` has it.

The loop reads one item for each pull of a thread and no further, because an answer whose end has been read is whole,
and `cancel()` could no longer cut it while its last texts are still on their way to the thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Final, Generic, TypeVar, cast

from .._run import CancellableRun, shut_socket_now
from ._loops import MainLoop, Reply, is_async, place_for_this_thread

__all__ = ("END", "Session", "Stream")

T = TypeVar("T")
OutputT = TypeVar("OutputT")

ExitInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

END: Final[Any] = object()
"""The item that a stream gives after its last one."""

LEAVE_TIMEOUT: Final = 10.0
"""Seconds that leaving waits for a pull that was stopped: anyio's guide names this for cleaning up under a shield."""


class Session(Generic[OutputT]):
    """A run that was entered, from the thread that enters it until it is left.

    Every method but those that say so may be called from any thread, one at a time.

    Args:
        run: The run; nothing else enters it.
    """

    def __init__(self, run: CancellableRun[OutputT]) -> None:
        self._run = run
        self._place = place_for_this_thread()
        self._pid = os.getpid()
        self._caller_context = copy_context()
        self._run_context = self._caller_context
        self._leaving: asyncio.Future[ExitInfo] | None = self._place.loop.create_future()
        self._left: Reply[None] = Reply(self._place)
        self._task: asyncio.Task[None] | None = None
        self._streams: set[Stream[Any]] = set()
        self._calls: dict[object, asyncio.Task[None]] = {}
        self.is_over = False
        self._is_left = False

    # --- entering and leaving ---------------------------------------------------------------------------------

    def enter(self) -> None:
        """Enter the run, or raise what entering it raises."""
        entered: Reply[None] = Reply(self._place)

        def start() -> None:
            self._place.leave[self] = self._leave
            self._task = self._place.loop.create_task(self._hold(entered))

        try:
            entered.ask(start, self._caller_context)
        except BaseException as error:
            # Ctrl-C came while we waited. Stopped first, so that the connection is closed gently.
            if not self.is_over:
                self._run.cancel("left")
                self.leave((type(error), error, error.__traceback__))
            raise

    async def _hold(self, entered: Reply[None]) -> None:
        leaving = cast("asyncio.Future[ExitInfo]", self._leaving)
        try:
            await self._run.__aenter__()
        except BaseException as error:  # noqa: BLE001 - it is raised where it belongs, in the thread that waits
            self._let_go()
            entered.fail(error)
            self._left.set(None)
            return
        self._run_context = copy_context()
        entered.set(None)
        exit_info = await leaving
        try:
            # A stream between two pulls is closed in its own task; a pull that is going on ends as the run does.
            await _ended([task for stream in self._streams if (task := stream.close_idle()) is not None])
            await self._run.__aexit__(*exit_info)
            pulls = [task for stream in self._streams if (task := stream.task) is not None]
            await _ended([*self._calls.values(), *pulls])
        except BaseException as error:  # noqa: BLE001 - as above
            self._let_go()
            self._left.fail(error)
        else:
            self._let_go()
            self._left.set(None)

    def _let_go(self) -> None:
        """The run is over. Nothing is left to the loop here: the main thread's may not go on for long."""
        self.is_over = True
        self._place.leave.pop(self, None)
        self._leaving = None  # it may hold an error, and with it the frames of the thread that left

    def leave(self, exit_info: ExitInfo) -> None:
        """Leave the run and wait until it is closed; where an event loop runs in this thread, do not wait.

        A host drops a generator wherever it stands, in its event loop, too: there the waiting would stop everything.
        """
        self._is_left = True
        if self.is_over or self._pid != os.getpid():
            return  # the loop has ended and has left it, or the run and its connection are the parent's
        if is_async():
            self.leave_soon()
        elif self._place.loop.is_closed():
            self._run.cancel("left")
            self.tell()
        else:
            self._left.ask(lambda: self._leave(exit_info))

    def was_forgotten(self) -> bool:
        """Whether the run is still open, and nothing has asked to leave it."""
        return not self._is_left and not self.is_over and self._pid == os.getpid()

    def leave_soon(self) -> None:
        """Have the loop leave the run, and return at once."""
        self._soon(self._leave)

    def _leave(self, exit_info: ExitInfo = (None, None, None)) -> asyncio.Task[None] | None:
        if self._leaving is None:
            self._left.set(None)
        elif not self._leaving.done():
            self._leaving.set_result(exit_info)
        return self._task

    # --- reading ----------------------------------------------------------------------------------------------

    def stream(self, start: Callable[[CancellableRun[OutputT]], AsyncIterator[T]]) -> Stream[T]:
        """Return a stream of the run, which is started by its first pull."""
        self._check()
        return Stream(self, lambda: start(self._run))

    def call(self, function: Callable[[CancellableRun[OutputT]], Awaitable[T]]) -> T:
        """Await on the loop what `function` returns, and return what came of it."""
        self._check()
        reply: Reply[T] = Reply(self._place)

        async def call() -> None:
            try:
                reply.set(await function(self._run))
            except BaseException as error:  # noqa: BLE001 - it is raised where it belongs, in the thread that waits
                reply.fail(error)
            finally:
                self._calls.pop(reply, None)

        def start() -> None:
            self._calls[reply] = self._place.loop.create_task(call())

        return reply.ask(start, self.context())

    def look(self, function: Callable[[CancellableRun[OutputT]], T]) -> T:
        """Return what `function` finds, while nothing else changes the run; on any thread, inside the run too."""
        stands_still = isinstance(self._place, MainLoop) or self.is_over or self._pid != os.getpid()
        if stands_still or self._place.is_here():
            return function(self._run)
        reply: Reply[T] = Reply(self._place)

        def look() -> None:
            try:
                reply.set(function(self._run))
            except Exception as error:  # noqa: BLE001 - it is raised where it belongs, in the thread that waits
                reply.fail(error)

        return reply.ask(look)

    def context(self) -> Context:
        """The context variables of this thread, with those that entering the run has changed."""
        context = copy_context()
        for variable, value in self._run_context.items():
            if variable not in self._caller_context or self._caller_context[variable] is not value:
                context.run(variable.set, value)
        return context

    @property
    def is_cut(self) -> bool:
        """Whether the run was stopped before its end."""
        return self._run.cancelled

    def tell(self) -> None:
        """Tell the server of a run that was cut while its loop stands still; safe in a signal handler.

        Only the main thread's loop ever does. Without this the server would hear of it in the next pull.
        """
        if self._run.cancelled and isinstance(self._place, MainLoop):
            self._place.tell(lambda: shut_socket_now(self._run))

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise RuntimeError("this run was entered before the process was forked: it belongs to the parent process")
        if is_async():
            raise RuntimeError(
                "an event loop is running in this thread, and waiting for a blocking run would stop it: read the run "
                "in another thread (`asyncio.to_thread`), or use `async with cancelstream.run_stream(...)`"
            )
        if self.is_over and not self._run.cancelled:
            raise RuntimeError("this run was left: read it inside its `with` block")

    def _soon(self, function: Callable[[], object]) -> None:
        try:
            self._place.loop.call_soon_threadsafe(function)
        except RuntimeError:  # that loop is closed: nothing of this run can be open
            if not self.is_over:
                self._run.cancel("left")


class Stream(Generic[T]):
    """One loop over a run. It is pulled by any thread, and read by one task, which waits between two pulls."""

    def __init__(self, session: Session[Any], start: Callable[[], AsyncIterator[T]]) -> None:
        self._session = session
        self._start = start
        self._reply: Reply[T] = Reply(session._place)
        self._wanted: asyncio.Future[bool] | None = None
        self.task: asyncio.Task[None] | None = None

    def pull(self) -> T:
        """Return the next item, or `END`."""
        session = self._session
        session._check()
        return self._reply.ask(self._want) if self.task else self._reply.ask(self._begin, session.context())

    def close(self) -> None:
        """Have its task close what it reads; does not wait, and may be called where an event loop runs."""
        if self.task is not None and self._session._pid == os.getpid():
            self._session._soon(self.close_idle)

    def close_idle(self) -> asyncio.Task[None] | None:
        """Let the task end that waits for the next pull, and return it; `None` while a pull is going on."""
        wanted = self._wanted
        if wanted is None:
            return None
        if not wanted.done():
            wanted.set_result(False)
        return self.task

    @property
    def closing(self) -> asyncio.Task[None] | None:
        """The task, while it closes what it read because nothing more is wanted."""
        return self.task if self._wanted is not None and self._wanted.done() and not self._wanted.result() else None

    def _begin(self) -> None:
        if self._session.is_over:
            self._reply.set(END)
            return
        before = [task for stream in self._session._streams if (task := stream.closing) is not None]
        self._session._streams.add(self)
        self.task = self._session._place.loop.create_task(self._read(before))

    def _want(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(True)
        elif self._wanted is not None or self.task is None or self.task.done():
            self._reply.set(END)

    async def _read(self, before: list[asyncio.Task[None]]) -> None:
        try:
            # A stream that was left by `break` is closed before the next one reads on.
            await _ended(before)
            source = self._start()
            try:
                async for item in source:
                    self._wanted = self._session._place.loop.create_future()
                    self._reply.set(item)
                    if not await self._wanted:
                        break
                    self._wanted = None
            finally:
                close = getattr(source, "aclose", None)
                if close is not None:
                    await close()
        except BaseException as error:  # noqa: BLE001 - it is raised where it belongs, in the thread that waits
            if isinstance(error, asyncio.CancelledError) and self._session.is_cut:
                self._reply.set(END)  # the stop of a pull that would not end
            else:
                self._reply.fail(error)
        else:
            self._reply.set(END)
        finally:
            self._session._streams.discard(self)


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    """Wait until these tasks have ended, and cancel those that do not."""
    if tasks:
        _, slow = await asyncio.wait(tasks, timeout=LEAVE_TIMEOUT)
        for task in slow:
            task.cancel()
