"""The transcript of one openai stream so far: its events, text, message and count, all from the same chunks.

Sans-IO, so that the async and the blocking stream share it: each chunk that is handed out is taken, by `text()` or by
`events()`, and message and count are made when they are asked for. Chunks that only carry on (`_pieces.py`) are kept as
the strings they bring, everything else is mapped at once (`_mapping.py`); so taking a chunk costs little, keeping it
costs no more than its text, and the message is there whenever it is asked for.

Known limits: a message holds one choice, the one that came first; the others are handed out and counted. An answer
with log probabilities has something to say in every chunk, so each is mapped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import compress
from typing import Any, Final, cast

from pydantic_ai.messages import ModelResponseStreamEvent, PartDeltaEvent, PartStartEvent, TextPart, TextPartDelta
from pydantic_ai.profiles import DEFAULT_THINKING_TAGS

from .._sse import EventDecoder, decoded
from .._usage import Meter
from ._alike import Known, recogniser
from ._mapping import Mapping
from ._pieces import Grammar, Piece, fields_of

__all__ = ("Ahead", "Transcript", "text_of")

TRIES: Final = 8
"""Times that what has to be parsed in one run is looked at for a likeness; each takes as long as parsing ten events."""


class Transcript:
    """Takes the chunks of one stream, each an SDK object or the `dict` that one would be made of.

    Args:
        mapping: pydantic-ai's reading of this stream.
        grammar: How this stream's API writes its pieces.
        meter: Counts what is taken.
        build: Makes the SDK object of a `dict`.
        choices: How many choices were asked for.
    """

    def __init__(
        self, mapping: Mapping, grammar: Grammar, meter: Meter, build: Callable[[Any], Any], choices: int = 1
    ) -> None:
        self._mapping = mapping
        self._grammar = grammar
        self._meter = meter
        self._build = build
        self._choice: object = None
        self._choices = choices
        self._ended: dict[object, bool] = {}
        """For each choice that has begun, whether the provider has said how it ended."""
        # The run of pieces that is going on: how it began, what has come since, and the chunk it came last in, or the
        # block and the place in it where that is.
        self._run: Piece | None = None
        self._template: Any = None
        self._pieces: list[str] = []
        self._last: Any = None
        self._next: Callable[[Any], str | None] = _nothing
        self._known: Known = _nothing
        self._event: bytes | None = None
        self._tries = TRIES
        self._count: Callable[[str], object] = len
        self._is_text = False

    @property
    def is_all_said(self) -> bool:
        """Whether the provider has said how the answer ended, all of its choices, in the chunks that were taken."""
        ended = self._ended
        return len(ended) >= self._choices and all(ended.values())

    @property
    def has_failed(self) -> bool:
        """Whether a chunk that was taken says that the answer failed."""
        return self._mapping.error is not None

    def says_end(self, chunk: Any) -> bool:
        """Whether a chunk says how a choice ended."""
        return any(ends for _, ends in self._grammar.ends(chunk))

    @property
    def response(self) -> Any:
        """pydantic-ai's response; it holds what was mapped, and all that was taken after `flush()`."""
        return self._mapping.response

    def known(self, events: EventDecoder) -> str | None:
        """Take the next event if it needs no decoding, being like others that carried on; return what `text()` does."""
        at = events.at
        text = self._known(events)
        if text is None:
            return None
        self._count(text)
        self._pieces.append(text)
        self._last = (events.block, at)
        return text if self._is_text else ""

    def text(self, chunk: Any, event: bytes | None = None) -> str | None:
        """Take a chunk if all it does is to carry on, and return the answer's text in it, which may be empty.

        `None`: it is not taken. `events()` takes it.

        Args:
            chunk: The chunk.
            event: What it was decoded from, if more of the kind are asked for by `known()`.
        """
        try:
            text = self._next(chunk)
        except (AttributeError, LookupError, TypeError):
            return None
        if text is None:
            return None
        if text:
            self._count(text)
        self._pieces.append(text)
        self._last = chunk
        if event is not None and self._tries and b"\\" not in event:
            before, self._event = self._event, event
            if before is not None:
                self._tries -= 1
                self._known = recogniser(before, event, text, decoded, self._next) or self._known
        return text if self._is_text else ""

    def events(self, chunk: Any, own: Any = None) -> Iterator[ModelResponseStreamEvent]:
        """Take a chunk, and map it event by event as they are asked for.

        Args:
            chunk: The chunk.
            own: The SDK's own object of it, if that is built already.

        Raises:
            Exception: The provider reports an error in it; in pydantic-ai's words.
        """
        if chunk.__class__ is not dict and not hasattr(chunk, "__dict__"):
            return  # `null`, or a list: the SDK hands it out, and it says nothing
        for choice, ends in self._grammar.ends(chunk):
            self._ended[choice] = self._ended.get(choice, False) if ends is None else ends
        mine = self._mine(chunk)
        if mine and not any(mine) and fields_of(chunk).get("usage") is None:
            self._meter.feed_chunk(chunk)
            return
        if not self._grammar.is_readable(chunk):
            self._meter.lost()  # something came, and there is no saying how much it was
            return
        count = self._meter.feed_first(chunk)
        own = self.built(chunk) if own is None else own
        if not all(mine):
            own = own.model_copy(update={"choices": [*compress(own.choices, mine)]})
        self.flush()
        self._run, self._count = self._grammar.piece(own), count
        self._next = _nothing if self._run is None else self._grammar.follows(self._run, chunk)
        self._known, self._event, self._tries = _nothing, None, TRIES
        self._template = own
        self._is_text = False
        self._mapping.feed(own)
        for event in self._mapping.events():
            self._is_text = self._is_text or bool(text_of(event))
            yield event

    def own(self, chunk: Any) -> Any:
        """Take a chunk, and return the SDK's own object; the caller reads an error that it reports.

        Raises:
            Exception: The SDK cannot make one of it.
        """
        own = self.built(chunk)
        if self.text(chunk) is None:
            self._drain(self.events(chunk, own))
        return own

    def end(self) -> Iterator[ModelResponseStreamEvent]:
        """The stream came to its natural end; the events that follow from that."""
        self.flush()
        self._mapping.end()
        return self._mapping.events()

    def finish(self) -> None:
        """The answer is whole, and no further chunk is taken: bring `response` to its end."""
        self._drain(self.end())

    def flush(self) -> None:
        """Bring `response` up to date."""
        pieces, run = self._pieces, self._run
        if run is None or not pieces:
            return
        self._pieces = []
        text = "".join(pieces)
        last = self._last
        if isinstance(last, tuple):
            block, at = cast("tuple[bytes, int]", last)
            last = decoded(block[at : block.index(b"\n\n", at)])
        # Pieces that are no tag may make one in a row, and would then be taken for it.
        for part in [pieces[0], text[len(pieces[0]) :]] if text in DEFAULT_THINKING_TAGS else [text]:
            self._mapping.feed(self._grammar.joined(self._template, run, part, last))
            self._drain(self._mapping.events())

    def close(self, *, whole: bool) -> None:
        """Nothing further is taken: bring `response` up to date for good, and if the answer is `whole`, to its end."""
        if whole:
            self.finish()
        else:
            self.flush()
        self._mapping.close()

    def built(self, chunk: Any) -> Any:
        """The chunk as the SDK's own object."""
        return self._build(chunk) if type(chunk) is dict else chunk

    def _mine(self, chunk: Any) -> list[bool]:
        """For each choice that a chat chunk holds a part of, whether it is the one that came first."""
        choices: Any = fields_of(chunk).get("choices")
        if choices.__class__ is not list:
            return []
        # A provider that leaves the index out has one choice; what is no object is none.
        indexes = [(fields.get("index") or 0) if (fields := fields_of(choice)) else None for choice in choices]
        if self._choice is None:
            self._choice = next((index for index in indexes if index is not None), None)
        return [index is not None and index == self._choice for index in indexes]

    def _drain(self, events: Iterator[ModelResponseStreamEvent]) -> None:
        try:
            for _ in events:
                pass
        except Exception:  # noqa: BLE001 - kept by the mapping
            return


class Ahead:
    """The events of a chunk, made as they are asked for; but all at once where the chunk says the end.

    So it is known at any moment, in any thread, whether something of an answer that has ended is still to be handed
    out.
    """

    __slots__ = ("_made",)

    def __init__(self) -> None:
        self._made: deque[ModelResponseStreamEvent] | None = deque()  # `None` while they are made

    @property
    def brings(self) -> bool:
        """Whether something of the answer is still to come of a chunk that says the end."""
        made = self._made
        return made is None or any(isinstance(event, PartStartEvent | PartDeltaEvent) for event in tuple(made))

    def events(
        self, events: Iterator[ModelResponseStreamEvent], *, says_end: bool
    ) -> Iterator[ModelResponseStreamEvent]:
        """The events of one chunk, to be handed out one by one.

        Args:
            events: The chunk's events; the chunk is taken when the first one is asked for.
            says_end: Whether the chunk says the end.
        """
        if not says_end:
            yield from events
            return
        self._made = None
        made = self._made = deque(events)
        while made:
            yield made.popleft()


def _nothing(_chunk: Any) -> None:
    """Nothing carries on, or is known, yet."""


def text_of(event: object) -> str:
    """The answer's text that an event carries; empty for every other event."""
    if isinstance(event, PartDeltaEvent):
        return event.delta.content_delta if isinstance(event.delta, TextPartDelta) else ""
    return event.part.content if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart) else ""
