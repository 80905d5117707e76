"""The errors that cancelstream raises itself.

Errors of openai, pydantic-ai and the transports pass through unchanged, and our own cancel never raises::

    CancelStreamError
    ├── IncompleteHistoryError       a cut answer was about to be sent as history (also a ValueError)
    ├── IncompleteOutputError        an output was asked of a stream that was cut
    └── CancellationUnsupported      this stream cannot be stopped (also a NotImplementedError)

A wrong argument is the caller's mistake and raises a plain `TypeError` or `ValueError`.
"""

from __future__ import annotations

from typing import Final

__all__ = (
    "CancelStreamError",
    "CancellationUnsupported",
    "IncompleteHistoryError",
    "IncompleteOutputError",
    "named",
)

_LONGEST_WORD: Final = 20
"""Characters of a word that may have been meant for one of an option's; a longer one may be a secret."""


class CancelStreamError(Exception):
    """The base of every error that cancelstream raises itself."""


class IncompleteHistoryError(CancelStreamError, ValueError):
    """A message history holds an answer that was cut, and would have been sent as if it were whole.

    Raised before any request is made. `salvage(messages)` makes such a history usable, together with a prompt.

    Attributes:
        index: Where the incomplete message stands in the history.
        state: Its state, `'interrupted'` or `'incomplete'`; another one if only its tool calls have no results.
        reason: Why it was cut, where that is known; it may come from a stranger.
    """

    def __init__(
        self, index: int, state: str, reason: str | None, lacks_prompt: bool = False, lacks_results: bool = False
    ) -> None:
        self.index = index
        self.state = state
        self.reason = reason
        self._lacks_prompt = lacks_prompt  # it may be sent, and there is nothing to send it with
        self._lacks_results = lacks_results  # it is whole, and its tool calls have no results
        because = "" if reason is None else f" (reason {reason!r})"
        if lacks_prompt:
            message = (
                f"message {index}, the last of the history, is {state!r}{because}, and there is no prompt: the cut "
                "text would be returned as the run's output. Pass a prompt, such as one that asks to go on where it "
                "stopped."
            )
        elif lacks_results:
            message = (
                f"message {index}, the last of the history, calls tools, and no results follow: the run was stopped "
                "before it had them, or they are still to come. Pass `deferred_tool_results=` if they have come, pass "
                "no prompt to have pydantic-ai run the tools, or pass `salvage(messages)` to go on without them."
            )
        else:
            message = (
                f"message {index} of the history is {state!r}{because}: it was cut short, by a cancel, a `break`, "
                "a timeout, a crash or a usage limit, and must not be sent as a whole answer. Pass "
                "`salvage(messages)` instead, drop the message, or set `Cancellable(history='salvage')`."
            )
        super().__init__(message)

    def __reduce__(self) -> tuple[type[IncompleteHistoryError], tuple[int, str, str | None, bool, bool]]:
        return type(self), (self.index, self.state, self.reason, self._lacks_prompt, self._lacks_results)


class IncompleteOutputError(CancelStreamError):
    """An output was asked of a run that was cut before it had one.

    Attributes:
        reason: Why the run was cut: its `cancel_reason`.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"the run was cut before it had an output (reason {reason!r}). The part that arrived is in `response` and "
            "`all_messages()`; `salvage(all_messages())` makes it usable as history."
        )

    def __reduce__(self) -> tuple[type[IncompleteOutputError], tuple[str]]:
        return type(self), (self.reason,)


class CancellationUnsupported(CancelStreamError, NotImplementedError):
    """This stream cannot be stopped: nothing was changed, and it goes on."""


def named(value: object) -> str:
    """Return how an error names a wrong argument, in at most 80 characters and without a prompt or an answer.

    A number, `None` and a short word are shown; of everything else the type is, and of a function its name. A wrong
    argument is often the right one of another parameter, and errors end in logs.
    """
    if value is None or isinstance(value, bool | float | complex):
        return repr(value)
    if isinstance(value, int) and abs(value) < 10**20:
        return repr(value)
    if isinstance(value, str):
        is_word = len(value) <= _LONGEST_WORD and value.isascii() and value.isidentifier()
        return repr(value) if is_word else f"a str of {len(value)} characters"
    if isinstance(value, type):
        return f"the class {value.__name__[:60]}"
    if isinstance(name := getattr(value, "__qualname__", None), str):
        return f"the function {name[:60]}"
    kind = type(value).__name__[:60]
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"
