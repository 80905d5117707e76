"""The part of an answer that has arrived, kept as it came.

Feeding is the hot path: a delta's text is appended to the list of its kind, and that is all. A non-empty delta is at
least one token, so the lengths of the lists are a lower bound for the answer before anything is counted.

Known limits: the deltas' texts are kept until the answer is settled, which is about what the answer itself takes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence

from pydantic_ai.messages import (
    BaseToolCallPart,
    FilePart,
    ModelResponsePart,
    NativeToolCallPart,
    NativeToolReturnPart,
    TextPart,
    ThinkingPart,
)

from ._prompt import leaf

__all__ = ("Delivered",)


class Delivered:
    """The pieces of one answer, by kind.

    Attributes:
        text: The answer's text, and a refusal's.
        thinking: The reasoning that streamed, or its summary.
        calls: For each function call, its name and then the pieces of its arguments.
        natives: Tools of the provider's own that it used: they have tokens of which nothing arrives.
        sealed: Whether there was reasoning that came encrypted, or not at all.
        messages: The messages that the text is in, where that shows.
        choices: The text of further choices, where several were asked for.
        cited: The parts of the text that cite something.
    """

    __slots__ = ("_strange", "calls", "choices", "cited", "messages", "natives", "sealed", "text", "thinking")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.thinking: list[str] = []
        self.calls: dict[Hashable, list[str]] = {}
        self.natives: set[str] = set()
        self.messages: set[Hashable] = set()
        self.choices: dict[Hashable, list[str]] = {}
        self.cited: set[Hashable] = set()
        self._strange: set[Hashable] = set()
        self.sealed = False

    @property
    def deltas(self) -> int:
        """How many pieces arrived: of text, of reasoning, of arguments."""
        number = len(self.text) + len(self.thinking)
        if self.calls:
            number += sum(len(call) - 1 for call in self.calls.values())
        if self.choices:
            number += sum(map(len, self.choices.values()))
        return number

    def sizes(self) -> dict[int, int]:
        """How many pieces each list of text holds, by the list's identity."""
        return {id(pieces): len(pieces) for pieces, _ in self._lists()}

    def grown(self, before: dict[int, int]) -> Callable[[str], object]:
        """Return the `append` of the list that grew since `sizes()` was `before`, else a no-op."""
        for pieces, least in self._lists():
            if len(pieces) > before.get(id(pieces), least):
                return pieces.append
        return _ignore

    def _lists(self) -> Iterator[tuple[list[str], int]]:
        """The lists of pieces, each with the length that it begins with."""
        yield self.text, 0
        yield self.thinking, 0
        yield from ((call, 1) for call in self.calls.values())
        yield from ((choice, 0) for choice in self.choices.values())

    def call(self, key: Hashable, name: object, arguments: object) -> None:
        """Add to a function call: its name, when that comes, or a piece of its arguments."""
        if key in self._strange:
            return
        call = self.calls.setdefault(key, [""])
        if isinstance(name, str):
            call[0] += name
        if piece := leaf(arguments):
            call.append(piece)

    def part(self, key: Hashable, part: ModelResponsePart) -> None:
        """Add a part that comes in one piece, or the beginning of one."""
        if isinstance(part, TextPart):
            if part.content:
                self.text.append(part.content)
            self.messages.add(key)
        elif isinstance(part, ThinkingPart):
            if part.content:
                self.thinking.append(part.content)
            elif part.signature:
                self.sealed = True
        elif isinstance(part, NativeToolCallPart | NativeToolReturnPart):
            self.natives.add(part.tool_name)
            self._strange.add(key)  # its arguments are no call's
        elif isinstance(part, FilePart):
            self.natives.add("file")
        elif isinstance(part, BaseToolCallPart):
            self.call(key, part.tool_name, part.args)

    def in_whole_parts(self, parts: Sequence[ModelResponsePart]) -> Delivered:
        """The same answer, its text as pydantic-ai has put it together: less to join than the deltas."""
        same = Delivered.__new__(Delivered)
        for name in Delivered.__slots__:
            setattr(same, name, getattr(self, name))
        same.text = [part.content for part in parts if isinstance(part, TextPart)]
        return same


def _ignore(_text: str) -> None:
    """Nothing of this kind is counted."""
