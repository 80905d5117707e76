"""Whether a message was cut, the record we keep on it, and the refusal to send it as a whole one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Literal, TypeAlias, cast

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse

from .._errors import IncompleteHistoryError
from .._record import read_record, with_record

__all__ = (
    "CUT_STATES",
    "HistoryPolicy",
    "check_history",
    "checked",
    "is_incomplete",
    "lacks_results",
    "mark_interrupted",
    "record_of",
    "refusal",
    "refuse_incomplete",
)

HistoryPolicy: TypeAlias = Literal["refuse", "salvage", "allow"]
"""The treatment of a history that holds a cut answer."""

CUT_STATES: Final = frozenset({"interrupted", "incomplete"})


def record_of(message: ModelMessage) -> Mapping[str, Any]:
    """Return our record on a message: empty where there is none, or one of a version that we do not know."""
    return read_record(message.metadata) or {}


def mark_interrupted(
    response: ModelResponse, *, reason: str, usage_record: dict[str, Any] | None = None
) -> ModelResponse:
    """Return a copy of the response that says it was cut, why, and what is known of its usage.

    Args:
        response: What arrived. It is not changed.
        reason: The `cancel_reason`.
        usage_record: The usage record as plain JSON, or `None` to keep the one that is there. It is not copied: a
            message that is made before the usage is settled reads right when it is.
    """
    entries: dict[str, Any] = {"reason": reason}
    if usage_record is not None:
        entries["usage"] = usage_record
    return replace(response, state="interrupted", metadata=with_record(response.metadata, **entries))


def is_incomplete(message: ModelMessage) -> bool:
    """Whether the message was cut short and must not be sent as if it were whole.

    True for a response in state `'interrupted'` or `'incomplete'` and for a request in state `'interrupted'`,
    whatever cut it. False for a message that `salvage` has made usable, though its state still tells; for a
    `'suspended'` response, which its provider goes on with; and for one that ended at its length limit.

    One message does not tell whether its tool calls have results: `check_history` looks at the whole history.
    """
    return message.state in CUT_STATES and not isinstance(record_of(message).get("salvage"), dict)


def lacks_results(history: Sequence[ModelMessage]) -> bool:
    """Whether a history ends in a whole response whose tool calls have no results.

    A `'suspended'` response is not whole yet: its provider goes on with it.
    """
    last = history[-1] if history else None
    return isinstance(last, ModelResponse) and last.state == "complete" and bool(last.tool_calls)


def check_history(messages: Iterable[ModelMessage]) -> None:
    """Raise `IncompleteHistoryError` for a history that must not be sent with a new prompt; changes nothing.

    That is one with a message that `is_incomplete`, and one whose last message is a response with tool calls: their
    results are missing.

    Raises:
        IncompleteHistoryError: With the message's index, state and, where it is known, the reason of the cut.
        TypeError: If this is not a list of pydantic-ai's messages.
    """
    history = checked(messages)
    refuse_incomplete(history)
    if lacks_results(history):
        raise refusal(len(history) - 1, history[-1], results=True)


def refuse_incomplete(messages: Sequence[ModelMessage]) -> None:
    """Raise for the first incomplete message of a history whose type is known to be right."""
    for index, message in enumerate(messages):
        if is_incomplete(message):
            raise refusal(index, message)


def refusal(
    index: int, message: ModelMessage, *, prompt: bool = False, results: bool = False
) -> IncompleteHistoryError:
    """Return the error that names this message.

    Args:
        index: Where it stands.
        message: The message.
        prompt: Whether it may be sent, and the prompt is missing.
        results: Whether it is whole, and the results of its tool calls are missing.
    """
    reason = record_of(message).get("reason")
    return IncompleteHistoryError(index, message.state, reason if isinstance(reason, str) else None, prompt, results)


def checked(messages: Iterable[ModelMessage]) -> list[ModelMessage]:
    """Return the history as a new list, or raise a `TypeError` that says what is wrong with it.

    The annotation promises it all; histories come from databases and browsers all the same.
    """
    source = cast("object", messages)
    kind = type(source).__name__
    if isinstance(source, str | bytes | bytearray | Mapping) or not isinstance(source, Iterable):
        raise TypeError(
            f"a message history must be a list of pydantic-ai's ModelRequest and ModelResponse, not {kind}; "
            "load stored JSON with ModelMessagesTypeAdapter.validate_json(...)"
        )
    history = list(cast("Iterable[object]", source))
    for index, message in enumerate(history):
        if not isinstance(message, ModelRequest | ModelResponse):
            raise TypeError(
                f"message {index} of the history is a {type(message).__name__}, not a ModelRequest or "
                "ModelResponse; load stored messages with ModelMessagesTypeAdapter.validate_python(...)"
            )
    return cast("list[ModelMessage]", history)
