"""Servers and examples in processes of their own, which cost a fork each.

An application's imports take seconds of a processor, so that they, and not what is tested, would be most of the tests'
time. They are made once, by multiprocessing's fork server; what it forks is a process like any other, with its own
main thread, which can be ended by a signal. What such a process starts itself (uvicorn and hypercorn their workers) is
forked as well, where it would be spawned.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing import context, forkserver
from pathlib import Path
from typing import Any, Self

from web_support import LIMIT, Client, free_port

LONG = 40.0
"""Seconds that a process may take to start: the first waits for the imports, on a machine that may be busy."""

_PROCESSES = multiprocessing.get_context("forkserver")


def prepare() -> None:
    """Let the imports begin; what is not installed is passed over."""
    ours = ["cancelstream.starlette", "cancelstream.redis", "cancelstream.testing"]
    theirs = ["fastapi", "openai.resources.chat", "pydantic_ai.models.openai", "uvicorn", "websockets"]
    _PROCESSES.set_forkserver_preload([*ours, *theirs])
    forkserver.ensure_running()


class Forked:
    """One process, that calls a function of an importable module and writes what it says to a file."""

    def __init__(self, output: Path, call: Callable[..., object], *arguments: Any, **environment: str) -> None:
        self.output = output
        self.process = _PROCESSES.Process(target=_call, args=(output, environment, call, arguments))
        self.process.start()

    def end(self, number: signal.Signals) -> None:
        """Send a signal, and wait until the process has ended."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        self.wait(LIMIT)

    def wait(self, limit: float) -> None:
        """Wait until it has ended by itself."""
        self.process.join(limit)
        assert self.process.exitcode is not None, f"it did not end: {self.said()}"

    def said(self) -> str:
        """What it has written, to either stream."""
        return self.output.read_text()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # With what it has started itself.
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid or 0, number)
                self.process.join(LIMIT)


def _call(output: Path, environment: dict[str, str], call: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    os.setsid()
    os.environ.update(environment)
    context.SpawnProcess._Popen = staticmethod(context.ForkProcess._Popen)  # type: ignore[attr-defined]
    sys.stdin = None  # type: ignore[assignment]  # uvicorn's workers would look for it
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    call(*arguments)


# --- a server with `web_app` -------------------------------------------------------------------------------------


class ServerProcess(Forked):
    """A server with `web_app`. It listens from the start, so that a client need not wait for it."""

    def __init__(
        self,
        model: str,
        saved: Path,
        *,
        redis: str = "",
        server: Callable[..., object] | None = None,
        **environment: str,
    ) -> None:
        self.saved = saved
        saved.touch()
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.port = int(listening.getsockname()[1])
            log = saved.with_suffix(".log")
            environment = {"MODEL": model, "SAVED": str(saved), "REDIS": redis, **environment}
            super().__init__(log, server or on_uvicorn, listening, **environment)

    def saves(self) -> list[dict[str, Any]]:
        """What was saved."""
        return [json.loads(line) for line in self.saved.read_text().splitlines()]

    async def until_saved(self, number: int) -> list[dict[str, Any]]:
        """What was saved, once so many were."""
        async with asyncio.timeout(LIMIT):
            while len(saves := self.saves()) < number:
                await asyncio.sleep(0.01)
        return saves

    def post(self, path: str, body: bytes = b"", **headers: str) -> contextlib.AbstractAsyncContextManager[Client]:
        return Client.post(self.port, path, body, limit=LONG, **{"user": "me", **headers})


def on_uvicorn(listening: socket.socket) -> None:
    import uvicorn

    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(uvicorn.Config("web_app:app", log_level="warning")).run([listening])


def on_uvicorn_mounted(listening: socket.socket) -> None:
    """Under `/inner` of another application."""
    import uvicorn

    uvicorn.Server(uvicorn.Config("web_app:outer", log_level="warning")).run([listening])


def on_uvicorn_with_workers(listening: socket.socket) -> None:
    import uvicorn

    uvicorn.run("web_app:app", fd=listening.fileno(), workers=2, log_level="warning")


def on_uvicorn_for_two_requests(listening: socket.socket) -> None:
    import uvicorn

    uvicorn.Server(uvicorn.Config("web_app:app", log_level="warning", limit_max_requests=2)).run([listening])


def on_uvicorn_with_workers_for_two_requests(listening: socket.socket) -> None:
    import uvicorn

    uvicorn.run("web_app:app", fd=listening.fileno(), workers=2, log_level="warning", limit_max_requests=2)


def on_gunicorn(listening: socket.socket) -> None:
    """With uvicorn in its worker."""
    _gunicorn(listening, "uvicorn_worker.UvicornWorker")


def on_gunicorn_for_two_requests(listening: socket.socket) -> None:
    _gunicorn(listening, "uvicorn_worker.UvicornWorker", "--max-requests", "2")


def on_gunicorn_alone(listening: socket.socket) -> None:
    """With a worker of its own that speaks ASGI."""
    _gunicorn(listening, "asgi")


def _gunicorn(listening: socket.socket, worker: str, *more: str) -> None:
    from gunicorn.app.wsgiapp import run

    bound = ["--bind", f"fd://{listening.fileno()}", "--graceful-timeout", "1", "--no-control-socket"]
    sys.argv[:] = ["gunicorn", "--worker-class", worker, *bound, "--log-level", "error", *more, "web_app:app"]
    sys.exit(run())


def on_granian(listening: socket.socket) -> None:
    """It binds a socket of its own, to the same port."""
    from granian.server import Server

    port = listening.getsockname()[1]
    listening.close()
    Server("web_app:app", interface="asgi", address="127.0.0.1", port=port, log_enabled=False).serve()


def on_hypercorn(listening: socket.socket) -> None:
    """Without worker processes, which would hear of no signal."""
    from hypercorn.__main__ import main

    sys.exit(main(["--workers", "0", "--bind", f"fd://{listening.fileno()}", "web_app:app"]))


# --- the command, and examples -----------------------------------------------------------------------------------


class Page(Forked):
    """`cancelstream serve`."""

    def __init__(self, output: Path, model: str, *more: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        arguments = ["serve", "--port", str(self.port), "--model", "scripted", "--base-url", model, *more]
        super().__init__(output, _command, arguments)

    def __enter__(self) -> Self:
        deadline = time.monotonic() + LONG
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                if self.process.exitcode is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise RuntimeError(f"the page is not served: {self.said()}") from None
                time.sleep(0.02)
            else:
                return self


def _command(arguments: list[str]) -> None:
    from cancelstream.__main__ import main

    sys.exit(main(arguments))


class Script(Forked):
    """A script, with its arguments, for which warnings are errors."""

    def __init__(self, output: Path, script: Path, *arguments: str) -> None:
        super().__init__(output, _script, script, arguments)


def _script(script: Path, arguments: tuple[str, ...]) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", r"websockets\..* is deprecated", DeprecationWarning)  # an older uvicorn's own
    sys.argv[:] = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
