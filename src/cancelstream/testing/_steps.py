"""The steps of a script, as plain values: what the model generates, and what comes between.

Everything is checked when it is built: a step that makes no sense raises `TypeError` or `ValueError` on the line
that wrote it, not in the server's thread.
"""

# ruff: noqa: ASYNC109  (a wait for another thread has its limit as an argument, awaited or not)

from __future__ import annotations

import json
import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, TypeAlias

from ._waiting import LIMIT, Watched

__all__ = (
    "Burst",
    "Cut",
    "ErrorEvent",
    "Event",
    "Gap",
    "Gate",
    "Pause",
    "Piece",
    "Reasoning",
    "Silence",
    "Step",
    "Text",
    "ToolCall",
    "check_seconds",
)


# --- waiting and breaking off -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """Nothing is sent for this many seconds."""

    seconds: float

    def __post_init__(self) -> None:
        check_seconds(self.seconds, "Gap(seconds)")
        if self.seconds == 0:
            raise ValueError("Gap(0) waits for nothing: leave it out, or use a Gate to wait for the test")


@dataclass(frozen=True)
class Silence:
    """Nothing more is ever sent: the request stays open until the client leaves or the server is closed."""


class Gate(Watched):
    """The script waits here until `open()` is called: a test decides when, and needs no sleep.

    Once open it stays open, for every request that comes by. Any thread may call every method.
    """

    def __init__(self) -> None:
        super().__init__()
        self._reached = False
        self._open = False

    def __repr__(self) -> str:
        return f"<Gate {'open' if self._open else 'reached' if self._reached else 'closed'}>"

    def open(self) -> None:
        """Let the script go on, now and whenever it comes here again."""
        with self._changing():
            self._open = True

    def wait_reached(self, timeout: float = LIMIT) -> None:
        """Block this thread until the script stands at the gate, or has passed it.

        Raises:
            TimeoutError: It did not within `timeout` seconds.
        """
        self._wait(self._was_reached, timeout, lambda: "the script to reach a gate")

    async def until_reached(self, timeout: float = LIMIT) -> None:
        """`wait_reached` for a coroutine."""
        await self._until(self._was_reached, timeout, lambda: "the script to reach a gate")

    def _was_reached(self) -> Literal[True] | None:
        return True if self._reached else None

    async def pass_through(self) -> None:
        """The action of the server at this step."""
        with self._changing():
            self._reached = True
        await self._until(lambda: True if self._open else None, None, lambda: "a gate to open")


@dataclass(frozen=True)
class Cut:
    """The server breaks the answer off, and nothing follows.

    `how`:

    - `'reset'`: the connection is reset (RST).
    - `'eof'`: the connection is closed (FIN) in the middle of the HTTP body.
    - `'end'`: the HTTP body ends as it should, but without finish reason, usage or `[DONE]`.
    - `'truncated'`: the same after half an event.
    """

    how: Literal["reset", "eof", "end", "truncated"]

    def __post_init__(self) -> None:
        if self.how not in ("reset", "eof", "end", "truncated"):
            raise ValueError(f"Cut(how) is 'reset', 'eof', 'end' or 'truncated', not {self.how!r}")


@dataclass(frozen=True)
class ErrorEvent:
    """The provider reports an error in the stream, as an SSE event of its API, and ends it."""

    message: str = "The server had an error while processing your request."
    _: KW_ONLY
    code: str = "server_error"


Pause: TypeAlias = Gap | Gate | Silence
Piece: TypeAlias = str | Pause | Cut
"""The steps that a text, reasoning and a tool's arguments may hold."""


# --- what the model generates -------------------------------------------------------------------------------------


@dataclass(frozen=True, init=False)
class _Generated:
    """Pieces that the model generates, with pauses between them."""

    pieces: tuple[Piece, ...]
    gap: float

    def __init__(self, *pieces: Piece, gap: float = 0.0) -> None:
        name = type(self).__name__
        for piece in pieces:
            if not isinstance(piece, str | Gap | Gate | Silence | Cut):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"{name} takes strings, Gap, Gate, Silence and Cut, not {piece!r}")
            if piece == "":
                raise ValueError(f"{name} got an empty chunk: leave it out, or send it with Event")
        check_seconds(gap, f"{name}(gap)")
        object.__setattr__(self, "pieces", pieces)
        object.__setattr__(self, "gap", gap)


@dataclass(frozen=True, init=False)
class Text(_Generated):
    """Answer text: each string is one chunk.

    Args:
        pieces: Strings, with `Gap`, `Gate`, `Silence` or `Cut` between them where wanted.
        gap: Seconds before each chunk.
    """

    def __init__(self, *pieces: Piece, gap: float = 0.0) -> None:
        if not pieces:
            raise ValueError("Text() has nothing to say: give it a string for each chunk")
        super().__init__(*pieces, gap=gap)

    @classmethod
    def words(cls, text: str, *, gap: float = 0.0) -> Text:
        """`text` cut into a chunk for each word, the space before a word being part of its chunk."""
        first, *rest = text.split(" ")
        return cls(*(word for word in (first, *(f" {word}" for word in rest)) if word), gap=gap)


@dataclass(frozen=True, init=False)
class Reasoning(_Generated):
    """Reasoning that the provider shows: `reasoning_content` in chat completions, a summary in Responses.

    Args:
        pieces: As for `Text`.
        gap: Seconds before each chunk.
    """

    def __init__(self, *pieces: Piece, gap: float = 0.0) -> None:
        if not pieces:
            raise ValueError("Reasoning() has nothing to say: give it a string for each chunk")
        super().__init__(*pieces, gap=gap)


@dataclass(frozen=True, init=False)
class ToolCall(_Generated):
    """A tool call: the model names the tool (one chunk), then writes the arguments.

    Args:
        name: The tool.
        pieces: The JSON of the arguments, cut as it is to arrive; pauses as for `Text`.
        id: The call's id, by default one that no other call to this server has.
        gap: Seconds before each chunk.
    """

    name: str
    id: str | None

    def __init__(self, name: str, *pieces: Piece, id: str | None = None, gap: float = 0.0) -> None:  # noqa: A002
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"ToolCall(name) is the name of a tool, not {name!r}")
        super().__init__(*pieces, gap=gap)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "id", id)


@dataclass(frozen=True)
class Event:
    """One SSE event exactly as given, for what the other steps cannot say: malformed JSON, a vendor's extension.

    It counts as a chunk. An answer that is not streamed leaves it out.

    Args:
        data: The payload: a string goes out as it is, anything else as JSON.
        name: The event's name; `None` writes no `event:` line.
    """

    data: Any
    name: str | None = None
    payload: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.name is not None and (not self.name or "\n" in self.name or "\r" in self.name):
            raise ValueError(f"Event(name) is one line of text, not {self.name!r}")
        try:
            payload = self.data if isinstance(self.data, str) else json.dumps(self.data)
        except (TypeError, ValueError) as error:
            raise TypeError(f"Event(data) is a string or JSON, not {self.data!r}: {error}") from None
        object.__setattr__(self, "payload", payload)


@dataclass(frozen=True, init=False)
class Burst:
    """Steps whose events all go out in one write, so that a client finds them in its buffer together."""

    steps: tuple[Text | Reasoning | ToolCall | Event, ...]

    def __init__(self, *steps: Text | Reasoning | ToolCall | Event) -> None:
        if not steps:
            raise ValueError("Burst() sends nothing: give it the steps that go out in one write")
        for step in steps:
            if not isinstance(step, Text | Reasoning | ToolCall | Event):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(
                    f"Burst takes Text, Reasoning, ToolCall and Event, not {step!r}: one write cannot wait or break off"
                )
            if not isinstance(step, Event) and (step.gap or any(not isinstance(p, str) for p in step.pieces)):
                raise ValueError(f"a Burst goes out in one write, so nothing in it can wait or break off: {step!r}")
        object.__setattr__(self, "steps", steps)


Step: TypeAlias = Text | Reasoning | ToolCall | Event | Burst | Pause | Cut | ErrorEvent


def check_seconds(seconds: object, where: str) -> None:
    """Refuse what is no length of time."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
        raise ValueError(f"{where} is a number of seconds, not {seconds!r}; Silence() waits for ever")
