"""uvicorn: the connection behind a request, and whether the server has stopped serving. Found without importing it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

__all__ = ("abort_connection", "server_stopping")


def abort_connection(receive: Callable[..., Any]) -> bool:
    """Close the HTTP/1.1 connection of a request at once, without sending what still waits in it.

    ASGI has no message for it, and `transport.close()`, which uvicorn does for a response that was broken off, waits
    for a client that does not read. Looks through what Starlette's middlewares put around `receive`.

    Args:
        receive: The request's own, as the server or a middleware gave it.

    Returns:
        `False` if there is no such connection to be found: another server, another middleware, or a uvicorn that has
        changed. Then the connection stays open until the client or the system closes it.
    """
    for _ in range(100):
        owner: Any = getattr(receive, "__self__", None)
        transport = getattr(owner, "transport", None)
        if transport is not None and hasattr(owner, "response_complete") and hasattr(transport, "abort"):
            transport.abort()
            return True
        around = getattr(owner, "_receive", None) or _closed_over(receive)
        if around is None:
            return False
        receive = around
    return False


def _closed_over(function: Any) -> Any:
    """The `receive` that a middleware's own was made around."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        if name.endswith("receive"):
            with suppress(ValueError):  # it has none yet
                return cell.cell_contents
    return None


def server_stopping(handler: object) -> Callable[[], bool] | None:
    """A function that tells whether the server has stopped serving, found by its own signal handler.

    A server that recycles its process (`--limit-max-requests`), or whose `should_exit` is set, gets no signal: its
    listening sockets are closed then, and its requests go on.

    Args:
        handler: What the server installed with `signal.signal`.

    Returns:
        `None` if the handler is not uvicorn's, or uvicorn has changed: then only signals are heard.
    """
    server: Any = getattr(handler, "__self__", None)
    if not hasattr(server, "should_exit") or not hasattr(server, "started"):
        return None

    def stopping() -> bool:
        listening = getattr(server, "servers", ())
        return bool(server.should_exit or (server.started and not any(each.is_serving() for each in listening)))

    return stopping
