"""The functions that a run and a model call on a response, and its users need not know of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters

from .._usage import Meter
from ._feed_agent import Opener
from ._response import CancellableStreamedResponse

__all__ = (
    "cancelled_job",
    "has_failed",
    "has_made",
    "is_all_said",
    "is_job",
    "is_whole",
    "leave",
    "on_cut",
    "open_lazily",
    "shut_socket_now",
)


def open_lazily(
    opener: Opener, *, model: Model, meter: Meter, parameters: ModelRequestParameters, in_run: bool
) -> CancellableStreamedResponse:
    """A response whose request is sent on the first pull; `leave` has to be awaited in the end.

    Args:
        opener: Makes the request's context.
        model: The model that is asked.
        meter: Counts the request and the answer.
        parameters: The parameters of the request.
        in_run: Whether an agent's run reads it: only the run knows then why a pull was given up.
    """
    return CancellableStreamedResponse._opening(opener, model=model, meter=meter, parameters=parameters, in_run=in_run)


async def leave(stream: CancellableStreamedResponse, reason: str, error: BaseException | None = None) -> None:
    """Close everything that is open, within `LEAVE_TIMEOUT`, and settle the usage; for the holder of the context.

    Args:
        stream: The response.
        reason: Why it was left, if it had not ended.
        error: The error that the context is left with, for the request's own context.
    """
    await stream._leave(reason, error)


def on_cut(stream: CancellableStreamedResponse, settle: Callable[[], Awaitable[None]]) -> None:
    """Have the pull that finds the stream cut await `settle`, before its iteration ends."""
    stream._on_cut = settle


def shut_socket_now(stream: CancellableStreamedResponse) -> None:
    """Tell the server of a cancelled stream, for a caller that keeps the stream's loop from running meanwhile."""
    stream._shut_socket_now()


def is_whole(stream: CancellableStreamedResponse) -> bool:
    """Whether the stream came to its natural end, or was stopped when the answer was whole."""
    return stream._is_whole


def is_all_said(stream: CancellableStreamedResponse) -> bool:
    """Whether a stop changes nothing: the provider has said how the answer ended, and all of it was handed out.

    Any thread may call it.
    """
    return stream._is_all_said()


def has_failed(stream: CancellableStreamedResponse) -> bool:
    """Whether the stream ended in an error."""
    return stream._has_failed


def is_job(stream: CancellableStreamedResponse) -> bool:
    """Whether the answer is a job that the provider works on without this stream, and has not ended."""
    return stream._is_job


def cancelled_job(stream: CancellableStreamedResponse) -> ModelResponse | None:
    """The message of a stream that was cancelled: with it its model cancels a job on the server, if it is one."""
    return stream._cancelled_job()


def has_made(stream: CancellableStreamedResponse, message: ModelMessage) -> bool:
    """Whether this message is the one that pydantic-ai has recorded of this response."""
    return stream._has_made(message)
