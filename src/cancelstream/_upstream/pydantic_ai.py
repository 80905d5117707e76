"""Names that pydantic-ai keeps private."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import missing

if TYPE_CHECKING:
    from pydantic_ai import CallToolsNode, RunContext
    from pydantic_ai.messages import ModelRequest

__all__ = ("next_request_of", "was_cancelled_by_its_own_handle")

_GONE: Any = object()


def next_request_of(node: CallToolsNode[Any, Any]) -> ModelRequest | None:
    """The request with the tool results that a finished step has made, before pydantic-ai records it.

    Without `_next_node` there is none: a run that is stopped just then keeps no results, and its calls are closed as
    interrupted ones.
    """
    following = getattr(node, "_next_node", _GONE)
    if following is _GONE:
        missing("pydantic-ai-slim", "CallToolsNode._next_node", "tool results are not kept if a run is stopped then")
        return None
    return getattr(following, "request", None)


def was_cancelled_by_its_own_handle(context: RunContext[Any] | None) -> bool:
    """Whether a token, `AgentRun.cancel()` or `RunContext.cancel()` asked for the cancellation of a run.

    Without `_cancellation` it reads as no, and the reason is that of a task's cancellation.
    """
    if context is None:
        return False
    cancellation = getattr(context, "_cancellation", _GONE)
    if cancellation is _GONE:
        missing("pydantic-ai-slim", "RunContext._cancellation", "a run's own cancel reads as one of its task")
        return False
    return bool(getattr(cancellation, "cancel_requested", False))
