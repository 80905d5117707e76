"""Bedrock reads in a thread, which nothing can interrupt: what can be stopped is the socket under it.

strands' class looks at `cancel_signal` when its next chunk comes, and boto3 has no way to end a read. urllib3 has:
`HTTPResponse.shutdown()` ends it from any thread, and its reader then closes the connection. The response is found
through boto3's own events: `after-call` hands it out in the thread that made the call, whose context knows the call.

Known limits. Before its headers come a response cannot be stopped, so it is stopped then. With urllib3 below 2.3, or a
client that is not boto3's, nothing is found, and the thread ends with its next chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, Final

__all__ = ("calling", "watch")

_EVENT: Final = "after-call.bedrock-runtime.ConverseStream"

calling: ContextVar[Callable[[Callable[[], None]], None] | None] = ContextVar("cancelstream.strands.call", default=None)
"""Takes the function that hangs up the call that is being made in this context."""


def watch(model: Any) -> None:
    """Have each response of the model's boto3 client, if it has one, known to the call it belongs to; idempotent."""
    with suppress(Exception):  # it has none
        model.client.meta.events.register(_EVENT, _opened, unique_id="cancelstream")


def _opened(http_response: Any = None, **_kwargs: Any) -> None:
    take = calling.get()
    hang_up = getattr(getattr(http_response, "raw", None), "shutdown", None)
    if take is not None and hang_up is not None:
        take(hang_up)
