"""The life of one request, as its meter sees it: one table, and a function that reads an error.

A request that was refused, or that never reached a server, counts nothing. A connection that broke after the request
went out and before a status came leaves nothing but unknowns: the provider may have answered, and billed. Until a
status came, the request may still be refused, so its lower bound is zero.

The errors of a dozen SDKs and HTTP libraries come by here, most of them wrapped in one another, and none of those
libraries need be installed. They are told apart by what they have in common: a `status_code`, the `phase` that
pydantic-ai gives a connection error, and the class names that the HTTP libraries share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, Final, cast

__all__ = ("STEPS", "Stage", "Step", "step_of")


class Stage(Enum):
    """Where a request stands."""

    UNSENT = "unsent"
    SENT = "sent"
    """It went out, or is about to: no status came yet."""
    OPEN = "open"
    """The provider accepted it."""
    ENDED = "ended"
    """The answer came to its natural end."""
    REFUSED = "refused"
    """An HTTP error status came, or there never was a connection: it counts nothing."""
    LOST = "lost"
    """The connection broke before a status came: nothing is known."""


class Step(Enum):
    """The events of a request."""

    SEND = "send"
    OPEN = "open"
    END = "end"
    REFUSE = "refuse"
    LOSE = "lose"


STEPS: Final[dict[Stage, dict[Step, Stage]]] = {
    Stage.UNSENT: {Step.SEND: Stage.SENT},
    Stage.SENT: {
        Step.OPEN: Stage.OPEN,
        Step.END: Stage.ENDED,
        Step.REFUSE: Stage.REFUSED,
        Step.LOSE: Stage.LOST,
    },
    Stage.OPEN: {Step.END: Stage.ENDED},
    Stage.ENDED: {},
    Stage.REFUSED: {},
    Stage.LOST: {},
}
"""From each stage, what each step leads to; a step that is not listed changes nothing."""

_UNCONNECTED: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol", "LocalProtocolError"}
    | {"ClientConnectorError", "ConnectionTimeoutError"}
    | {"EndpointConnectionError", "ConnectTimeoutError", "ProxyConnectionError", "SSLError"}
)
"""The errors of a request that never went out: httpx's and httpx2's, aiohttp's, botocore's."""


def step_of(error: BaseException) -> Step:
    """Return what an error that came instead of an answer says of the request: `REFUSE` or `LOSE`."""
    if isinstance(error, BaseExceptionGroup):
        # All the models of a fallback failed: one that may have answered is enough for doubt.
        group = cast("BaseExceptionGroup[BaseException]", error)
        lost = any(step_of(one) is Step.LOSE for one in group.exceptions)
        return Step.LOSE if lost else Step.REFUSE
    errors = list(_chain(error))
    # pydantic-ai gives an error inside an open stream the status that it would have had before the stream.
    in_stream = any(getattr(one, "in_stream", False) for one in errors)
    return Step.REFUSE if not in_stream and any(map(_is_refusal, errors)) else Step.LOSE


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, outermost first."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def _is_refusal(error: BaseException) -> bool:
    if getattr(error, "phase", None) in ("pool", "connect"):
        return True
    if not _UNCONNECTED.isdisjoint(kind.__name__ for kind in type(error).__mro__):
        return True
    return any(type(status) is int and 400 <= status < 600 for status in _statuses(error))


def _statuses(error: BaseException) -> Iterator[object]:
    """Values that may be an HTTP status: of openai, anthropic and pydantic-ai, of google, of httpx, of botocore."""
    yield getattr(error, "status_code", None)
    yield getattr(error, "code", None)
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):
        response = cast("Mapping[str, Any]", response)
        about = response.get("ResponseMetadata")
        yield cast("Mapping[str, Any]", about).get("HTTPStatusCode") if isinstance(about, Mapping) else None
    else:
        yield getattr(response, "status_code", None)
