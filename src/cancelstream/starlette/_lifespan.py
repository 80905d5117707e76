"""An application's life with a registry in it: listen for stops, and end all streams when the server is told to end.

ASGI tells an application of the server's end only when its requests have ended, which for a stream may be minutes
later. So the end is noticed in two other ways.

1. The signal itself is listened to. The server's own handler for it (uvicorn installs one with `signal.signal` before
   the application starts) is put behind one that begins the end first.
2. A uvicorn that stops serving without a signal, because its process is recycled after so many requests, is seen to
   have closed its listening sockets.

Then the registry is drained: every stream is stopped, sends its last event and saves, and the server finds its
requests ended. With a `grace`, answers may go on for so long before.

Known limits. Only in the main thread, where Python has its signal handlers, and only if the server has installed one
by then. It is written for uvicorn, with one process, with workers and under gunicorn; hypercorn without workers does
the same. Any other server that ends without a signal to this process leaves the drain to you: call `registry.drain()`.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from types import FrameType
from typing import Any, Final

from .._stops import StopRegistry
from .._upstream.uvicorn import server_stopping

__all__ = ("lifespan",)

Handler = Callable[[int, FrameType | None], Any]

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, *([signal.SIGQUIT] if hasattr(signal, "SIGQUIT") else []))
"""The signals that end a server: by a supervisor, by Ctrl-C, and by a gunicorn that is in a hurry."""

LOOK: Final = 0.1
"""How often it is looked whether the server still serves, in seconds; uvicorn itself looks as often."""


def lifespan(registry: StopRegistry, *, grace: float = 0.0) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """The `lifespan=` of an application whose streams are in this registry.

    The registry is entered, so that it hears of stops. When uvicorn is told to end, by SIGTERM or Ctrl-C, or ends
    its process after so many requests, every stream is stopped with the reason `'server_shutdown'`, sends its last
    event and is saved before the server ends.

    An application with a lifespan of its own enters this one in it: `async with lifespan(registry)(app): ...`.

    Args:
        registry: Where the streams are.
        grace: How many seconds answers may go on after that before they are stopped. A second signal stops them at
            once. Give the server more time than this: uvicorn's `--timeout-graceful-shutdown`, gunicorn's
            `--graceful-timeout`, your supervisor's.

    Raises:
        ValueError: `grace` is below 0.
    """
    if grace < 0:
        raise ValueError(f"grace is a time in seconds, 0 or more, not {grace!r}")

    @asynccontextmanager
    async def live(app: Any) -> AsyncGenerator[None]:  # noqa: ARG001
        async with registry:
            end = _End(registry, grace)
            try:
                with ExitStack() as signals:
                    end.listen(signals)
                    yield
            finally:
                await end.close()

    return live


class _End:
    """The end of the server, from when it is noticed. For one event loop."""

    def __init__(self, registry: StopRegistry, grace: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._registry = registry
        self._grace = grace
        self._signalled = False
        self._drain: asyncio.TimerHandle | None = None
        self._watch: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Stop all streams when the grace is over; may be called again."""
        if self._drain is None:
            self._drain = self._loop.call_later(self._grace, self._registry.drain)

    def hurry(self) -> None:
        """Stop all streams at once."""
        self.begin()
        self._registry.drain()

    def listen(self, until: ExitStack) -> None:
        """Notice the end, until this stack is left."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            handler = signal.getsignal(number)
            # Without one, or with SIG_DFL, the process ends at once and there is nothing to drain for.
            if not callable(handler):
                continue
            wrapped = self._before(handler)
            signal.signal(number, wrapped)
            until.callback(_put_back, number, wrapped, handler)
            stopping = server_stopping(handler)
            if self._watch is None and stopping is not None:
                self._watch = self._loop.create_task(self._until(stopping), name="cancelstream: watch the server")

    def _before(self, handler: Handler) -> Handler:
        def end(number: int, frame: FrameType | None) -> None:
            self._loop.call_soon_threadsafe(self.hurry if self._signalled or not self._grace else self.begin)
            self._signalled = True
            handler(number, frame)

        return end

    async def _until(self, stopping: Callable[[], bool]) -> None:
        while not stopping():  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(LOOK)
        self.begin()

    async def close(self) -> None:
        """Nothing of it is left running."""
        if self._drain is not None:
            self._drain.cancel()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])


def _put_back(number: signal.Signals, wrapped: Handler, handler: Handler) -> None:
    if signal.getsignal(number) is wrapped:
        signal.signal(number, handler)
