"""`ScriptedServer`: a provider that does what the script says, on a real socket, in a thread of its own.

Known limits: HTTP/1.1 only. Every request takes a turn, whatever its method. The server shares the interpreter with
the code under test: see `_serving.py` for what that means for its times.
"""

# ruff: noqa: ASYNC109  (a wait for another thread has its limit as an argument, awaited or not)

from __future__ import annotations

import ssl
from types import TracebackType
from typing import Protocol, Self

from ._record import Record
from ._script import Turn, check_turn
from ._serving import Serving
from ._waiting import LIMIT

__all__ = ("ScriptedServer", "StartServer")


class ScriptedServer:
    """An OpenAI-compatible server on loopback that answers request k with turn k, and records what it sees.

    A context manager, for `def` and `async def` tests alike::

        with ScriptedServer(Answer(Text("Hello", " world"), Silence())) as server:
            client = AsyncOpenAI(base_url=server.base_url, api_key="none")

    Leaving it closes every connection and waits until the server's thread has ended, whatever clients and
    scripts are waiting for. Any thread may call every method.

    Args:
        turns: What answers each request: `Answer`, `Replay` or `HttpError`.
        repeat: Begin again with the first turn after the last. Without it a request too many gets status 400.
        ssl_context: Serve HTTPS with this.

    Raises:
        TypeError: A turn is no turn, or the context none.
        ValueError: There is no turn.
    """

    def __init__(self, *turns: Turn, repeat: bool = False, ssl_context: ssl.SSLContext | None = None) -> None:
        if not turns:
            raise ValueError("ScriptedServer() has nothing to answer: give it a turn, such as Answer(Text('Hello'))")
        if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"ScriptedServer(ssl_context) is an ssl.SSLContext, not {ssl_context!r}")
        self._serving = Serving(tuple(check_turn(turn) for turn in turns), repeat, ssl_context)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # --- what it saw ---------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where it listens, without a path: the base URL of Anthropic's and Google's clients."""
        if self._serving.url is None:
            raise RuntimeError("the server is not running: use `with ScriptedServer(...) as server:`")
        return self._serving.url

    @property
    def base_url(self) -> str:
        """The base URL of OpenAI's clients."""
        return f"{self.url}/v1"

    @property
    def records(self) -> tuple[Record, ...]:
        """The requests so far, in the order of their arrival."""
        return tuple(self._serving.records)

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        return self._serving.accepted

    @property
    def open_connections(self) -> int:
        """How many of them are open now."""
        return len(self._serving.connections)

    def wait_request(self, index: int = 0, timeout: float = LIMIT) -> Record:
        """Block this thread until request `index` (the first is 0) has arrived, and return its record.

        Raises:
            TimeoutError: It did not within `timeout` seconds.
        """
        return self._serving.wait_request(index, timeout)

    async def until_request(self, index: int = 0, timeout: float = LIMIT) -> Record:
        """`wait_request` for a coroutine."""
        return await self._serving.until_request(index, timeout)

    # --- its life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen. Returns when clients can connect; `with` does this.

        Raises:
            RuntimeError: It was started before: a server runs once.
        """
        self._serving.start()

    def close(self) -> None:
        """Close every connection and end the thread; `with` does this. Once closed, it does nothing.

        Raises:
            ExceptionGroup: The server's own code raised while it ran: a bug of this package's.
        """
        self._serving.close()


class StartServer(Protocol):
    """The type of the pytest fixture `scripted_server`."""

    def __call__(self, *turns: Turn, repeat: bool = False, ssl_context: ssl.SSLContext | None = None) -> ScriptedServer:
        """Start a `ScriptedServer`; it is closed when the test has ended."""
        ...
