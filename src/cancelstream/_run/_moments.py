"""Where a stop may find a run of an agent, and what it does there: one table.

`cancel()` first claims the end of the run, and stops the open stream, if there is one, within the call. The rest is
done on the run's loop, and depends on the moment. The messages that are kept are the same everywhere, made by
`RunState.with_ending()`: all that arrived, the results of the tools that ended, and a last message that says that the
run was cut.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

__all__ = ("STOPS", "Action", "Moment", "moment_of")


class Moment(Enum):
    """Where a stop may find a run."""

    NEW = "it was not entered"
    BEGINNING = "it is entered, and not begun: it queues for a slot, or another capability holds it up"
    BETWEEN = "no stream is open: before a request, between a response and its tools, in a tool, after the tools"
    STREAMING = "a stream is open, and waits for the headers, for a token, or for the reader"
    ANSWERING = "the same, and the answer is being handed out by `run_stream()`"
    BEHIND = "the answer is whole, and a pull of `run_stream()` does the work behind it: a validator, a tool"
    OVER = "nothing is left that a stop could change: the answer is whole and handed out, or the run failed"


class Action(Enum):
    """The action of a stop on the run's loop."""

    NOTHING = "nothing: nothing of it runs"
    CANCEL_TASK = "cancel the task that drives the run, and withdraw that afterwards: pydantic-ai has no handle yet"
    CANCEL_RUN = "cancel the run by pydantic-ai's own handle"
    CLOSE_AND_CANCEL_RUN = "the same, when the stream is closed: a read that is torn may damage its connection"
    RECORD = "have pydantic-ai record the response; the pull that found its stream cut waits for that"
    RECORD_AND_INTERRUPT = "the same, and interrupt the pull"


STOPS: Final[dict[Moment, Action]] = {
    Moment.NEW: Action.NOTHING,
    Moment.BEGINNING: Action.CANCEL_TASK,
    Moment.BETWEEN: Action.CANCEL_RUN,
    Moment.STREAMING: Action.CLOSE_AND_CANCEL_RUN,
    Moment.ANSWERING: Action.RECORD,
    Moment.BEHIND: Action.RECORD_AND_INTERRUPT,
    Moment.OVER: Action.NOTHING,
}


def moment_of(*, entered: bool, over: bool, answering: bool, begun: bool, streaming: bool) -> Moment:
    """Where a run stands.

    Args:
        entered: Its context was entered.
        over: A stop changes nothing any more.
        answering: The answer is being handed out by `run_stream()`.
        begun: pydantic-ai has begun it: it can be cancelled by its own handle.
        streaming: A stream of it was made, and has not come to its own end.
    """
    if over:
        return Moment.OVER
    if not entered:
        return Moment.NEW
    if answering:
        return Moment.ANSWERING if streaming else Moment.BEHIND
    if not begun:
        return Moment.BEGINNING
    return Moment.STREAMING if streaming else Moment.BETWEEN
