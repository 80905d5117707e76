"""From a response's bytes to chunks, without building an SDK object for each.

Sans-IO: `feed()` takes bytes as they come; `next()` makes a chunk of the next event that is whole, when its turn comes,
and `flush()` gives back what is not an event yet. An event stream is lines, and blank lines between events; a chunk is
the JSON of an event's data, read with `jiter` into plain values.

Rule: it never guesses. The SDK decides what a stream means, and this module reads only what it is sure to read alike:
events whose data is one JSON object that reports no error. At the first event that is anything else (`[DONE]`, an
error, malformed JSON, an `id:` or `retry:` line, which the SDK remembers) it stops for good. From there on `flush()`
and whatever follows belong to the SDK, which then says what it always says, errors included. It stops between two
events, where the SDK's own decoder has nothing in mind, so handing over loses nothing.

Known limits: what is not in the current event is not looked at, so a stream that turns out broken later has had its
first events handed out, as the SDK does too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from jiter import from_json

__all__ = ("EventDecoder", "decoded")

# As numbers: `in` finds a byte in bytes several times faster so.
_CR: Final = 13
_LF: Final = 10


class _NotOurs(ValueError):
    """An event that is left to the SDK."""


class EventDecoder:
    """Bytes in, events and chunks out, until it meets something that it leaves to the SDK.

    Attributes:
        block: What was fed last. Nothing is done with it until `take()` looks for an event in it.
        at: Where in it the next event begins. A caller that knows that event by other means may step over it.
        stopped: Whether it met what it leaves: nothing further is decoded, and `flush()` begins with it.
    """

    __slots__ = ("_is_raw", "_skip_newline", "_tail", "at", "block", "stopped")

    def __init__(self) -> None:
        self._tail = bytearray()
        """The input that is no whole event yet, or is left to the SDK."""
        self._skip_newline = False
        self._is_raw = False
        self.block: bytes = b""
        self.at: int = 0
        self.stopped = False

    @property
    def more(self) -> bool:
        """Whether there is something in which no event was looked for."""
        return self.at < len(self.block)

    def feed(self, data: bytes) -> None:
        """Take the next bytes, wherever they were cut."""
        if self.stopped:
            self._tail += self.newlines(data)
        elif self.at < len(self.block) or self._tail or self._skip_newline:
            self._sift()
            self.block, self.at = self.block[self.at :] + self._whole_events(data), 0
        else:
            self.block, self.at, self._is_raw = data, 0, True

    def take(self) -> bytes | None:
        """The next event, without its blank line; `None` if there is none."""
        self._sift()
        block, start = self.block, self.at
        # To look for one newline, and what follows it, is several times faster than to look for two.
        end = block.find(b"\n", start)
        while end >= 0 and not block.startswith(b"\n", end + 1):
            end = block.find(b"\n", end + 1)
        if end < 0:
            self.at = len(block)  # one more newline after a blank line
            return None
        self.at = end + 2
        return block[start:end]

    def decode(self, event: bytes) -> dict[str, Any] | None:
        """The chunk of the event that was just taken; `None` if it has none, or if this is where it stops."""
        try:
            return decoded(event)
        except ValueError:
            self.stopped = True
            self._tail[:0] = self.block[self.at - len(event) - 2 :]
            self.block, self.at = b"", 0
            return None

    def next(self) -> dict[str, Any] | None:
        """The chunk of the next event; `None` if there is no further event, or if it has none, or if it stops there."""
        event = self.take()
        return None if event is None else self.decode(event)

    def rest(self) -> Iterator[dict[str, Any]]:
        """The chunks of all events that are left."""
        while self.more:
            if (chunk := self.next()) is not None:
                yield chunk

    def flush(self) -> bytes:
        """The input that is not in `block`, from the beginning of an event on."""
        return bytes(self._tail)

    def newlines(self, data: bytes) -> bytes:
        """The bytes with every CR and CRLF turned into LF, also where the two were cut apart."""
        if self._skip_newline and data:
            self._skip_newline = False
            if data.startswith(b"\n"):
                data = data[1:]
        if _CR in data:
            self._skip_newline = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _sift(self) -> None:
        """Leave whole events in the block."""
        if self._is_raw:
            self._is_raw = False
            self.block, self.at = self._whole_events(self.block[self.at :]), 0

    def _whole_events(self, data: bytes) -> bytes:
        """Return the events that these bytes complete; keep the rest for the next call."""
        data = self.newlines(data)
        tail = self._tail
        if not tail and data.endswith(b"\n\n"):
            return data
        searched = max(0, len(tail) - 1)
        tail += data
        end = tail.rfind(b"\n\n", searched) + 2
        if end == 1:
            return b""
        whole = bytes(tail[:end])
        del tail[:end]
        return whole


def decoded(event: bytes) -> dict[str, Any] | None:
    """The chunk of an event, `None` if it has none.

    Raises:
        ValueError: The SDK has to say what it is.
    """
    if _LF not in event and event.startswith(b"data: {"):
        chunk: Any = from_json(event[6:])
    elif (data := _data(event.split(b"\n"))) is not None:
        chunk = from_json(data)
    else:
        return None
    # The SDK raises for `error`, whatever else the object holds.
    if chunk.__class__ is not dict or chunk.get("error"):
        raise _NotOurs
    return cast("dict[str, Any]", chunk)


def _data(lines: Iterable[bytes]) -> bytes | None:
    """The data of an event's lines, `None` where the lines say nothing.

    Raises:
        _NotOurs: The SDK has to say what it is.
        UnicodeDecodeError: What is to be ignored is not text.
    """
    found: list[bytes] = []
    named = False
    for line in lines:
        name, _, value = line.partition(b":")
        if name == b"data":
            found.append(value.removeprefix(b" "))
        elif name == b"event":
            # The Assistants API puts its `thread.` events into an envelope.
            if value.removeprefix(b" ").startswith(b"thread."):
                raise _NotOurs
            line.decode()
            named = True
        elif name in (b"id", b"retry"):
            raise _NotOurs
        else:
            line.decode()  # ignored, but the SDK raises if it is not text
    if not found and named:
        raise _NotOurs  # an event without data is an event, and an empty one is not JSON
    return b"\n".join(found) if found else None
