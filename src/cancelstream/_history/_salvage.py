"""Repair a history turn by turn: a response and the requests up to the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias, TypeGuard, get_args

from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
)

from .._errors import named
from .._record import with_record
from ._guard import (
    CUT_STATES,
    HistoryPolicy,
    checked,
    is_incomplete,
    lacks_results,
    record_of,
    refusal,
    refuse_incomplete,
)
from ._parts import TextFate, repair

__all__ = ("INTERRUPTED_TOOL_RESULT", "CallFate", "apply_policy", "salvage")

CallFate: TypeAlias = Literal["drop", "close"]

INTERRUPTED_TOOL_RESULT: Final = "The tool call was interrupted before a result was produced."
"""The result given to a closed call: pydantic-ai's own sentence, for a model sees both."""


def apply_policy(
    messages: Iterable[ModelMessage], policy: HistoryPolicy, *, has_prompt: bool = True, awaits_results: bool = False
) -> list[ModelMessage]:
    """Apply a `history=` policy and return the history that may be sent, as a new list.

    Args:
        messages: The history.
        policy: `'refuse'` raises for a cut message, `'salvage'` repairs it, `'allow'` lets it pass as it is.
        has_prompt: Whether anything follows the history. If nothing does, a history that ends in a cut answer is
            refused even when that was salvaged: pydantic-ai would return the cut text as the run's output. One that
            ends in whole tool calls passes: pydantic-ai runs them.
        awaits_results: Whether the results of the last response's tool calls may still be given, or are.

    Raises:
        ValueError: If the policy is none of the three.
        TypeError: If this is not a list of pydantic-ai's messages.
        IncompleteHistoryError: If the history is refused.
    """
    if policy not in get_args(HistoryPolicy):
        raise ValueError(f"history must be 'refuse', 'salvage' or 'allow', not {named(policy)}")
    history = checked(messages)
    if policy == "allow":
        return history
    if policy == "salvage":
        history = _salvaged(history, "keep", "drop", close_last=not awaits_results)
    refuse_incomplete(history)
    if has_prompt and not awaits_results and lacks_results(history):
        raise refusal(len(history) - 1, history[-1], results=True)
    if not has_prompt and history:
        last = history[-1]
        if isinstance(last, ModelResponse) and last.state in CUT_STATES:
            raise refusal(len(history) - 1, last, prompt=True)
    return history


def salvage(
    messages: Iterable[ModelMessage], *, text: TextFate = "keep", tool_calls: CallFate = "drop"
) -> list[ModelMessage]:
    """Return a new history that every provider accepts and that no reader takes for whole.

    Only incomplete messages, and the results that belong to them, are changed, in copies. Their state stays, and
    what was done is in ``metadata['cancelstream']['salvage']``; the record of a response that nothing was left of is
    on the message before it. A history that ends in a whole response with tool calls gets a request that closes them.
    So don't salvage one that waits for deferred tool results, unless it is to go on without them. Salvaging again
    changes nothing.

    A cut response keeps what the model had finished: calls that have results, thinking with what it led to,
    server-side tools that returned.

    Args:
        messages: The history. Neither the list nor its messages are changed.
        text: What becomes of the text of a cut response: `'keep'` it, `'drop'` it, or `'mark'` it, which keeps it
            with the fixed sentence `INTERRUPTED_NOTE` under it. Blank text is dropped in any case.
        tool_calls: What becomes of the calls of a cut response that have no result: `'drop'` them, or `'close'`
            them with a result that says they were interrupted. A call whose name had not arrived is dropped in any
            case. The calls of a whole response whose tools were stopped are always closed: a tool may have done
            something by then, and the model has to know.

    Raises:
        ValueError: If `text` or `tool_calls` is not one of its values.
        TypeError: If this is not a list of pydantic-ai's messages.
    """
    if text not in get_args(TextFate):
        raise ValueError(f"text must be 'keep', 'drop' or 'mark', not {named(text)}")
    if tool_calls not in get_args(CallFate):
        raise ValueError(f"tool_calls must be 'drop' or 'close', not {named(tool_calls)}")
    return _salvaged(checked(messages), text, tool_calls, close_last=True)


def _salvaged(
    history: list[ModelMessage], text: TextFate, tool_calls: CallFate, *, close_last: bool
) -> list[ModelMessage]:
    """Salvage a history whose type is known to be right; `close_last`: also whole calls that it ends in."""
    salvaged: list[ModelMessage] = []
    for response, requests in _turns(history):
        if response is None:
            salvaged.extend(_recorded(request, {}) if is_incomplete(request) else request for request in requests)
        elif is_incomplete(response):
            _salvage_cut(response, requests, salvaged, text, tool_calls)
        elif any(is_incomplete(request) for request in requests) or (
            close_last and response is history[-1] and lacks_results(history)
        ):
            salvaged.append(response)
            salvaged.extend(_closed(response, requests, _unanswered(response, requests)))
        else:
            salvaged.append(response)
            salvaged.extend(requests)
    return salvaged


def _turns(history: Sequence[ModelMessage]) -> Iterator[tuple[ModelResponse | None, list[ModelRequest]]]:
    """Split a history into responses and the requests that follow each; what stands before the first has none."""
    response: ModelResponse | None = None
    requests: list[ModelRequest] = []
    for message in history:
        if isinstance(message, ModelRequest):
            requests.append(message)
        else:
            yield response, requests
            response, requests = message, []
    yield response, requests


def _salvage_cut(
    response: ModelResponse,
    requests: list[ModelRequest],
    salvaged: list[ModelMessage],
    text: TextFate,
    tool_calls: CallFate,
) -> None:
    """Add a cut response and its requests to what is salvaged so far."""
    unanswered = _unanswered(response, requests)
    # No API takes a call without a name, so one whose name had not arrived cannot be closed.
    dropped = [call for call in unanswered if tool_calls == "drop" or not call.tool_name]
    unanswered = [call for call in unanswered if tool_calls != "drop" and call.tool_name]
    requests = _without_results(requests, dropped)
    repaired, done = repair(response, text=text, without=dropped)
    if unanswered:
        done["closed"] = len(unanswered)
    if repaired.parts:
        salvaged.append(_recorded(repaired, done))
    elif salvaged:
        lost = {"state": response.state}
        if reason := record_of(response).get("reason"):
            lost["reason"] = reason
        before = salvaged[-1]
        salvaged[-1] = _recorded(before, {**record_of(before).get("salvage", {}), "lost_after": lost})
    salvaged.extend(_closed(response, requests, unanswered))


def _recorded(message: ModelMessage, done: Mapping[str, Any]) -> ModelMessage:
    """Return the message with a record of what was done, which also makes it one that may be sent."""
    return replace(message, metadata=with_record(message.metadata, salvage=dict(done)))


def _is_result(part: ModelRequestPart) -> bool:
    """Whether the part answers a call; the retry prompt of older histories does if it names a tool."""
    return isinstance(part, ToolReturnPart) or (
        part.part_kind == "retry-prompt" and getattr(part, "tool_name", None) is not None
    )


def _says_interrupted(part: ModelRequestPart) -> TypeGuard[ToolReturnPart]:
    """Whether the part is a placeholder that says there is no result, from cancelstream or pydantic-ai."""
    return isinstance(part, ToolReturnPart) and part.outcome == "interrupted"


def _ids(parts: Iterable[ModelRequestPart]) -> Counter[str]:
    return Counter(str(getattr(part, "tool_call_id", "")) for part in parts)


def _unanswered(response: ModelResponse, requests: Sequence[ModelRequest]) -> list[ToolCallPart]:
    """Return the calls that no tool has answered; one result answers one call, as ids may repeat in a response."""
    answers = _ids(
        part for request in requests for part in request.parts if _is_result(part) and not _says_interrupted(part)
    )
    unanswered: list[ToolCallPart] = []
    for call in response.parts:
        if isinstance(call, ToolCallPart):
            if answers[call.tool_call_id]:
                answers[call.tool_call_id] -= 1
            else:
                unanswered.append(call)
    return unanswered


def _without_results(requests: Sequence[ModelRequest], calls: Sequence[ToolCallPart]) -> list[ModelRequest]:
    """Drop the placeholder results of these calls, and the requests that become empty."""
    gone = {call.tool_call_id for call in calls}
    kept: list[ModelRequest] = []
    for request in requests:
        parts = [p for p in request.parts if not (_says_interrupted(p) and p.tool_call_id in gone)]
        if len(parts) == len(request.parts) and (parts or not is_incomplete(request)):
            kept.append(request)
        elif parts:
            kept.append(replace(request, parts=parts))
    return kept


def _closed(
    response: ModelResponse, requests: Sequence[ModelRequest], unanswered: Sequence[ToolCallPart]
) -> list[ModelMessage]:
    """Return the requests with these calls closed, unless they are already, and with those that were cut settled."""
    said = _ids(part for request in requests for part in request.parts if _says_interrupted(part))
    missing: list[ModelRequestPart] = []
    for call in unanswered:
        if said[call.tool_call_id]:
            said[call.tool_call_id] -= 1
        else:
            missing.append(_interrupted_result(call, response))
    closed = list(requests)
    if missing and closed:
        # After the results that are there and before the user's words: where the APIs want them.
        first = closed[0]
        at = max((i + 1 for i, part in enumerate(first.parts) if _is_result(part)), default=0)
        closed[0] = replace(first, parts=[*first.parts[:at], *missing, *first.parts[at:]])
    elif missing:
        closed.append(
            ModelRequest(
                parts=missing,
                timestamp=response.timestamp,
                run_id=response.run_id,
                conversation_id=response.conversation_id,
            )
        )
    done = {"closed": len(missing)} if missing else {}
    return [_recorded(request, done) if is_incomplete(request) else request for request in closed]


def _interrupted_result(call: ToolCallPart, response: ModelResponse) -> ToolReturnPart:
    """Return a result that says there is none; it reads no clock, so that salvaging again gives the same history."""
    return ToolReturnPart(
        tool_name=call.tool_name,
        content=INTERRUPTED_TOOL_RESULT,
        tool_call_id=call.tool_call_id,
        tool_kind=call.tool_kind,
        timestamp=response.timestamp,
        outcome="interrupted",
    )
