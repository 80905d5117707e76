"""An application's life with a registry in it: listen for stops, and end all streams when the server is told to end.

ASGI tells an application of the server's end only when its requests have ended, which for a stream may be minutes
later. So the signal itself is listened to. The server's own handler for it (uvicorn installs one with
`signal.signal` before the application starts) is put behind one that drains the registry first: every stream is
stopped, sends its last event and saves, and the server finds its requests ended.

Known limits. Only in the main thread, where Python has its signal handlers, and only if the server has installed one
by then. It is written for uvicorn, with one process or with workers; hypercorn without workers does the same. A server
that is ended otherwise (`server.should_exit = True`, other servers' worker processes) leaves the drain to you: call
`registry.drain()`.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from types import FrameType
from typing import Any, Final

from .._stops import StopRegistry

__all__ = ("lifespan",)

Handler = Callable[[int, FrameType | None], Any]

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""What servers are ended with: by a supervisor, and by Ctrl-C."""


def lifespan(registry: StopRegistry) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """The `lifespan=` of an application whose streams are in this registry.

    The registry is entered, so that it hears of stops. When uvicorn is told to end, by SIGTERM or Ctrl-C, every
    stream is stopped with the reason `'server_shutdown'`, sends its last event and is saved before the server ends.

    An application with a lifespan of its own enters this one in it: `async with lifespan(registry)(app): ...`.
    """

    @asynccontextmanager
    async def live(app: Any) -> AsyncGenerator[None]:  # noqa: ARG001
        async with registry:
            with _drained_by_signals(registry):
                yield

    return live


@contextmanager
def _drained_by_signals(registry: StopRegistry) -> Generator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    replaced: dict[signal.Signals, tuple[Handler, Handler]] = {}
    for number in SIGNALS:
        handler = signal.getsignal(number)
        # Without one, or with SIG_DFL, the process ends at once and there is nothing to drain for.
        if callable(handler):
            ours = _before(handler, loop, registry)
            signal.signal(number, ours)
            replaced[number] = (ours, handler)
    try:
        yield
    finally:
        for number, (ours, handler) in replaced.items():
            if signal.getsignal(number) is ours:
                signal.signal(number, handler)


def _before(handler: Handler, loop: asyncio.AbstractEventLoop, registry: StopRegistry) -> Handler:
    def drain(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(registry.drain)
        handler(number, frame)

    return drain
