"""Names that pydantic-ai keeps private."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_ai.models import _continuation

from . import missing

if TYPE_CHECKING:
    from pydantic_ai import CallToolsNode, RunContext
    from pydantic_ai._instructions import AgentInstructions as AgentInstructions  # only checkers read it
    from pydantic_ai.messages import ModelRequest, ModelResponse
    from pydantic_ai.models import StreamedResponse
    from pydantic_ai.usage import RequestUsage

__all__ = (
    "continued",
    "durable_engine",
    "keep_last_total",
    "may_have_output_validators",
    "next_request_of",
    "was_cancelled_by_its_own_handle",
)

_GONE: Any = object()

_ENGINES = {"dbos": "DBOS", "prefect": "Prefect", "temporal": "Temporal"}
"""Names of engines, by the folder of pydantic-ai's `durable_exec` that is for them."""


def continued(earlier: ModelResponse, response: ModelResponse) -> ModelResponse:
    """A response in several parts: the earlier ones and the latest, merged as pydantic-ai merges them.

    Without `merge_responses` it is the latest part alone.
    """
    merge = getattr(_continuation, "merge_responses", None)
    if merge is None:
        missing("pydantic-ai-slim", "merge_responses", "an answer in parts is kept without its earlier parts when cut")
        return response
    merged: ModelResponse = merge(earlier, response)
    return merged


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


def may_have_output_validators(agent: object) -> bool:
    """Whether an answer of the agent may be checked by a function of the user's, and asked for again.

    Without `_output_validators`, as of an agent of another class, the answer is yes: text is held until it is known to
    be the last.
    """
    return bool(getattr(agent, "_output_validators", True))


def durable_engine(wrapper: object) -> str | None:
    """The engine of a wrapper of an agent or a model that runs in steps of a durable engine, such as `'DBOS'`.

    `DBOSAgent`, `PrefectAgent` and `TemporalAgent`, and the models that they put in an agent's place, are known by
    the module of their class, because importing them needs the engine. Where pydantic-ai moves them it is `None`, and
    what they say of a capability that wraps the model is pydantic-ai's own.
    """
    for each in type(wrapper).__mro__:
        package, _, engine = each.__module__.partition("pydantic_ai.durable_exec.")
        if not package and (name := engine.partition(".")[0]) in _ENGINES:
            return _ENGINES[name]
    return None


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


def keep_last_total(stream: StreamedResponse) -> None:
    """Have a stream that was just opened keep the last usage of a server that sends a running total with every chunk.

    pydantic-ai adds up what the chunks report, unless a setting says that they are totals. A report that has a prompt
    again, which some servers first count too high, and no less of the answer than the one before, is a total. One that
    has less is added, as there.

    Without `_add_usage`, `_usage` or `_usage_received` every report is added.
    """
    if not all(hasattr(stream, name) for name in ("_add_usage", "_usage", "_usage_received")):
        missing("pydantic-ai-slim", "StreamedResponse._add_usage", "a running total is added up like separate reports")
        return
    # Where a fallback has read on to the first event, totals may have been added up already.
    known = None if stream._usage_received else stream._usage
    # The stream does not hold itself: nothing that is done with stays until a collection.
    adder = partial(_add_usage, weakref.ref(stream), [known])
    stream._add_usage = adder  # type: ignore[method-assign]


def _add_usage(
    of: weakref.ref[StreamedResponse],
    last: list[RequestUsage | None],
    usage: RequestUsage,
    *,
    reported: bool,
    cumulative: bool = False,
) -> None:
    stream = of()
    if stream is None:  # pragma: no cover - it is the stream itself that calls
        return
    if reported:
        before, last[0] = last[0], usage
        cumulative = cumulative or _repeats(before, usage)
    type(stream)._add_usage(stream, usage, reported=reported, cumulative=cumulative)


def _repeats(before: RequestUsage | None, usage: RequestUsage) -> bool:
    return usage.input_tokens > 0 and usage.output_tokens >= (0 if before is None else before.output_tokens)
