"""The fast lane: a stream of openai's read from its response's bytes, for as long as its chunks are plain.

The SDK reads the first event that `_sse.py` does not take, and all that follows, with the error that reading ended in,
if it did: the SDK ends every stream. For that we replace the stream's `response`, before its first iteration, by one
that gives it the bytes that were read and not decoded, and reads on from there.

Known limits: how the SDK makes an object of a chunk is private to it. A stream of a version, a client or an option
that is not known takes no fast lane, and neither does one that a tracing library looks into (`_upstream/openai.py`): it
is slower, and the same otherwise.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, ClassVar, Final, Self

import openai

from .._sse import EventDecoder
from .._upstream.openai import builder_of, reads_as_written

__all__ = ("MORE", "BlockingLane", "FastLane")

MORE: Final[Any] = object()
"""Pulled instead of a chunk: the lane has read something."""


class _Lane:
    """Reads a stream that nothing was read from yet.

    `reads()` is iterated and each read given to `events`, until that has `stopped`; then `hand_over()`, and the SDK
    goes on.

    Args:
        stream: The stream.
        build: Makes the SDK's object of a decoded chunk.
    """

    _kind: ClassVar[type[Any]]

    def __init__(self, stream: Any, build: partial[Any]) -> None:
        self._stream = stream
        self._build = build
        self._reads: Any
        self.events = EventDecoder()
        """The events that were read."""

    @classmethod
    def of(cls, stream: Any) -> Self | None:
        """The fast lane of a stream, `None` if it has to be read by the SDK."""
        if type(stream) is not cls._kind or not reads_as_written(stream) or stream.response.is_closed:
            return None
        build = builder_of(stream)
        return None if build is None else cls(stream, build)

    def build(self, chunk: dict[str, Any]) -> Any:
        """The SDK's object of a decoded chunk."""
        return self._build(data=chunk)

    @property
    def _encoded(self) -> bool:
        # Without an encoding there is nothing to decode, and looking for it takes half of the time.
        return bool(self._stream.response.headers.get("content-encoding", "identity") != "identity")

    def hand_over(self, failure: Exception | None = None) -> None:
        """Leave the rest to the SDK: iterating the stream goes on from there.

        Args:
            failure: What reading ended in, to be raised in the SDK's words.
        """
        self._stream.response = _Remainder(self._stream.response, self.events, self._reads, failure)


class FastLane(_Lane):
    """The fast lane of an `AsyncStream`."""

    _kind = openai.AsyncStream

    def reads(self) -> AsyncIterator[bytes]:
        """The bytes read from the connection, decoded as httpx does."""
        response = self._stream.response
        reads: AsyncIterator[bytes] = response.aiter_bytes() if self._encoded else response.aiter_raw()
        self._reads = reads
        return reads


class BlockingLane(_Lane):
    """The fast lane of a `Stream`."""

    _kind = openai.Stream

    def reads(self) -> Iterator[bytes]:
        """The bytes read from the connection, decoded as httpx does."""
        response = self._stream.response
        reads: Iterator[bytes] = response.iter_bytes() if self._encoded else response.iter_raw()
        self._reads = reads
        return reads


class _Remainder:
    """A response whose bytes begin where the fast lane ended; everything else is the response's own."""

    def __init__(self, response: Any, events: EventDecoder, reads: Any, failure: Exception | None) -> None:
        self._response = response
        self._events = events
        self._reads = reads
        self._failure = failure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # it knows this frame, and its stream, by now

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        yield self._events.flush()
        self._raise_failure()
        async for data in self._reads:
            yield self._events.newlines(data)

    def iter_bytes(self) -> Iterator[bytes]:
        yield self._events.flush()
        self._raise_failure()
        for data in self._reads:
            yield self._events.newlines(data)
