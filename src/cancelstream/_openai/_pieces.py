"""Telling the next piece of what is being written from everything else.

An answer streams as a few chunks that say something new, and thousands that only carry on. A chunk carries on if
pydantic-ai's reading of it could do nothing but append: the same kind of part in the same place, and nothing else in
any field that pydantic-ai reads. Such pieces need not be mapped one by one: one chunk with all of them in a row gives
the same message.

A chunk is an SDK object, or the `dict` that one would be made of. Whatever is not certain is not a piece. What
`follows()` returns is the hot path: it runs for every chunk, and knows less than `piece()` in a third of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol

from pydantic_ai.profiles import DEFAULT_THINKING_TAGS

__all__ = ("CHAT", "RESPONSES", "Grammar", "Piece", "fields_of")

_READ: Final = ("content", "refusal", "reasoning", "reasoning_content", "tool_calls", "annotations")
"""The fields of a delta that pydantic-ai reads."""

_NOT_CONTENT: Final = _READ[1:]

_ENDS: Final = ("response.completed", "response.incomplete")
"""The Responses events that say how an answer ended, and that it was no failure."""

_NOTHING: Final[Mapping[str, Any]] = {}


class Piece(NamedTuple):
    """A chunk that may carry on, and does if the one before it was of the same name, place and envelope.

    Attributes:
        name: Where its text is: a field of a chat delta, or the type of a Responses event.
        place: Which one of those: the tool call's index, or the item's id and the index in it.
        envelope: What stands around it and is not to change.
        text: The piece itself; never empty, so that it shows where the pieces that carry on are counted.
    """

    name: str
    place: object
    envelope: tuple[object, ...]
    text: str


class Grammar(Protocol):
    """How one of the two APIs writes its pieces."""

    def piece(self, chunk: object) -> Piece | None:
        """The piece that a chunk may be."""
        ...

    def follows(self, before: Piece, chunk: object) -> Callable[[Any], str | None]:
        """Return a function that finds the text of a chunk that continues `before`, a piece in `chunk`.

        For any other chunk it returns `None`, or raises an `AttributeError`, a `LookupError` or a `TypeError`. Chunks
        that are not of the kind of `chunk`, a `dict` or an SDK object, may be such.
        """
        ...

    def joined(self, chunk: Any, piece: Piece, text: str, last: object) -> Any:
        """A copy of a chunk, an SDK object, with `text` in place of its piece; `last` is the chunk it ends with."""
        ...

    def is_readable(self, chunk: object) -> bool:
        """Whether pydantic-ai could make a message of it; the SDK hands out what no API of this kind sends, too."""
        ...

    def ends(self, chunk: object) -> Iterator[tuple[object, bool | None]]:
        """The choices that a chunk is about, and for each whether the provider says in it how the choice ended.

        `None`: the chunk neither ends the choice nor adds to it.
        """
        ...


def fields_of(node: object) -> Mapping[str, Any]:
    """The declared fields of a node, whichever of the two it is; of what is neither, none."""
    return node if type(node) is dict else getattr(node, "__dict__", _NOTHING)  # pyright: ignore[reportUnknownVariableType]


def _all_fields(node: object) -> Mapping[str, Any]:
    extra: Mapping[str, Any] | None = getattr(node, "__pydantic_extra__", None)
    return {**fields_of(node), **extra} if extra else fields_of(node)


class _Chat:
    def piece(self, chunk: object) -> Piece | None:
        top = fields_of(chunk)
        choice = _only(top.get("choices"))
        if choice is None or not _is_plain(top, fields_of(choice)):
            return None
        delta = _all_fields(fields_of(choice).get("delta"))
        said = [name for name in _READ if delta.get(name)]
        if len(said) != 1:
            return None
        name, place, text = said[0], None, delta[said[0]]
        if name == "tool_calls":
            place, text = _arguments(text)
        if type(text) is not str or not text or name == "annotations" or text in DEFAULT_THINKING_TAGS:
            return None
        return Piece(name, place, _envelope(top, fields_of(choice)), text)

    def follows(self, before: Piece, chunk: object) -> Callable[[Any], str | None]:
        if before.name == "content" and type(chunk) is dict:
            return _text_in_dicts(before.envelope)

        def follows(chunk: object) -> str | None:
            piece = self.piece(chunk)
            return piece.text if piece is not None and piece[:3] == before[:3] else None

        return follows

    def joined(self, chunk: Any, piece: Piece, text: str, last: object) -> Any:
        choice = chunk.choices[0]
        value: Any = text
        if piece.name == "tool_calls":
            call = choice.delta.tool_calls[0]
            function = call.function.model_copy(update={"arguments": text})
            value = [call.model_copy(update={"function": function})]
        delta = choice.delta.model_copy(update={piece.name: value})
        return chunk.model_copy(update={"choices": [choice.model_copy(update={"delta": delta})]})

    def is_readable(self, chunk: object) -> bool:
        return True

    def ends(self, chunk: object) -> Iterator[tuple[object, bool | None]]:
        choices: Any = fields_of(chunk).get("choices")
        for choice in choices if choices.__class__ is list else ():
            if not (fields := fields_of(choice)):
                continue  # what is no object is no choice
            index = fields.get("index") or 0
            index = index if isinstance(index, int) else repr(index)
            delta = _all_fields(fields.get("delta"))
            if fields.get("finish_reason"):
                yield index, True
            else:
                yield index, False if any(map(delta.get, _READ)) else None


def _text_in_dicts(envelope: tuple[object, ...]) -> Callable[[Any], str | None]:
    """Return a function that checks a chunk's text as `piece()` does, in fewer steps; it reads most chunks."""
    index, identity, model, tier = envelope

    def follows(chunk: dict[str, Any]) -> str | None:
        choices: Any = chunk["choices"]
        choice: Any = choices[0]
        delta: Any = choice["delta"]
        text: Any = delta["content"]
        if text.__class__ is not str or not text or text in DEFAULT_THINKING_TAGS or len(choices) != 1:
            return None
        if len(delta) > 1 and any(map(delta.get, _NOT_CONTENT)):
            return None
        field = chunk.get
        if choice.get("finish_reason") or choice.get("logprobs") is not None:
            return None
        if field("usage") is not None or field("moderation") is not None:
            return None
        if (choice.get("index") or 0) != index or field("id") != identity or field("model") != model:
            return None
        return text if field("service_tier") == tier else None

    return follows


def _only(items: Any) -> Any:
    """The only item of a list, `None` if it is no such list."""
    return items[0] if items.__class__ is list and len(items) == 1 else None


def _is_plain(top: Mapping[str, Any], choice: Mapping[str, Any]) -> bool:
    """Whether nothing but the delta can mean anything."""
    return not (
        choice.get("finish_reason") or choice.get("logprobs") or top.get("usage") is not None or top.get("moderation")
    )


def _envelope(top: Mapping[str, Any], choice: Mapping[str, Any]) -> tuple[object, ...]:
    return choice.get("index") or 0, top.get("id"), top.get("model"), top.get("service_tier")


def _arguments(calls: Any) -> tuple[object, str | None]:
    """The index of a tool call and the piece of its arguments, where that is all there is."""
    call = _all_fields(_only(calls))
    function = fields_of(call.get("function"))
    if call.get("id") or call.get("extra_content") or function.get("name"):
        return None, None
    return call.get("index"), function.get("arguments")


class _Responses:
    def piece(self, chunk: object) -> Piece | None:
        event = fields_of(chunk)
        kind, text = event.get("type"), event.get("delta")
        if type(kind) is not str or type(text) is not str or not text or not kind.endswith(".delta"):
            return None
        return Piece(kind, (event.get("item_id"), event.get("content_index"), event.get("summary_index")), (), text)

    def follows(self, before: Piece, chunk: object) -> Callable[[Any], str | None]:
        kind, place = before.name, before.place

        def follows(chunk: object) -> str | None:
            event = fields_of(chunk)
            text: Any = event.get("delta")
            if text.__class__ is not str or event.get("type") != kind:
                return None
            same = (event.get("item_id"), event.get("content_index"), event.get("summary_index")) == place
            return text if same else None

        return follows

    def joined(self, chunk: Any, piece: Piece, text: str, last: object) -> Any:
        # A background response is taken up again after the last number that was seen.
        return chunk.model_copy(update={"delta": text, "sequence_number": fields_of(last).get("sequence_number")})

    def is_readable(self, chunk: object) -> bool:
        # A delta that is no text would be a part of a text.
        return isinstance(fields_of(chunk).get("delta"), str | None)

    def ends(self, chunk: object) -> Iterator[tuple[object, bool | None]]:
        yield 0, True if fields_of(chunk).get("type") in _ENDS else None


CHAT: Final[Grammar] = _Chat()
RESPONSES: Final[Grammar] = _Responses()
