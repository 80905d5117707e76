"""`CancellableStream`: one stream of a blocking openai client that any thread, or a signal handler, can stop.

Mechanism. `cancel()` claims the end of the stream's life (`_state.py`) and shuts the socket (`_grip.py`), which ends a
read that waits on it. The reader does the rest: in its next pull, or the one that was ended, it counts what had
arrived and was not handed out, closes the response, and lets the loop end. Reading a socket that was shut never waits,
so all that had arrived is counted. Every chunk handed out goes through the stream's `Transcript`, as in the
asynchronous class, so events, chunks and text are three readings of one stream, all of them on the fast lane. And as
there, a stop changes nothing once the provider has said how the answer ended and all of it was handed out.

Two locks. The thread that reads or closes holds `_turn`; `close()` only tries it, and leaves the closing to a reader
that has it. The reader holds `_account` while it takes a chunk into the message, so that `get()` may be called from
any thread. `cancel()` takes neither.

Known limits. HTTP/2 shares its socket with other requests, and a transport that is not httpx's own shows none: there
the reader sees a cancel when its read comes back, with the next chunk or by the client's read timeout, and HTTP/2's
server is told then. While `create()` waits for headers there is no stream yet that could be cancelled.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

import openai
from pydantic_ai.messages import ModelResponse, ModelResponseStreamEvent

from .. import _openai
from .._history import mark_interrupted
from .._openai import MORE, Ahead, BlockingLane, Growing, Transcript, text_of
from .._sse import EventDecoder
from .._state import Event, Life, State, checked_reason
from .._upstream import http
from .._upstream.openai import client_of, iteration_of
from .._usage import Meter, ResponseUsage
from ._grip import Grip

__all__ = ("CancellableStream",)

ChunkT = TypeVar("ChunkT")

LATE_LIMIT: Final = 500
"""Chunks that are read after a cut, to be counted: one read of 64 KB holds about 440, at 0.1 ms each."""

LEAVE_TIMEOUT: Final = 10.0
"""Seconds that closing may wait for the provider to confirm a cancelled background response."""

_END: Final[Any] = object()
"""There is no further chunk."""

_logger = logging.getLogger("cancelstream")


class CancellableStream(Generic[ChunkT]):
    """A stream of `openai.OpenAI`, chat completion chunks or events of the Responses API, with a `cancel()`.

    Iterates pydantic-ai's events of it; `chunks()` has the SDK's own objects, `stream_text()` the text, which is read
    without building any. Once it is cancelled the iteration just ends. Use it as
    `with CancellableStream(stream) as stream:`, so that leaving the block closes it. One thread reads; any may cancel,
    and look.

    Args:
        stream: The stream, which nothing was read from yet.
        request: The arguments of `create()`, to count the request by; by default they are read from what was sent.

    Raises:
        TypeError: `stream` is not one of these: it is an asynchronous client's, or another library's.
        ValueError: It was read, wrapped or closed before, or its response is no event stream.

    A refused stream is closed, unless it has a wrapper already.
    """

    _is_over = True  # nothing to close until we are sure of the stream

    def __init__(self, stream: openai.Stream[ChunkT], request: Mapping[str, Any] | None = None) -> None:
        try:
            _openai.check_stream(stream, openai.Stream)
            asked = _openai.asked_of(stream, request)
        except Exception:
            _openai.discard(stream)
            raise
        _openai.adopt(stream)
        self._stream = stream
        self._response = stream.response
        self._meter = Meter.for_openai(asked.request, api=asked.api, model=asked.model or None, url=asked.url)
        self._meter.sent()
        self._meter.opened()
        responses_api = asked.api == "openai-responses"
        mapping = _openai.Mapping(
            responses_api=responses_api,
            resumed=asked.resumed is not None,
            model=asked.model,
            provider_url=asked.url,
        )
        mapping.response.provider_response_id = asked.resumed
        grammar = _openai.RESPONSES if responses_api else _openai.CHAT
        self._lane = BlockingLane.of(stream)
        build = self._lane.build if self._lane is not None else dict  # not asked: no chunk is a `dict` then
        self._transcript = Transcript(mapping, grammar, self._meter, build, asked.choices)
        self._life = Life()
        self._account = threading.RLock()
        self._source: Iterator[Any] = (
            iter(stream) if self._lane is None else _in_lane(self._lane, stream, self._life, self._account)
        )
        self._events = EventDecoder() if self._lane is None else self._lane.events
        """The events that were read on the fast lane."""
        self._turn = threading.Lock()
        self._rest: deque[ModelResponseStreamEvent] = deque()
        """The events that follow from the end of the stream."""
        self._mapped: Iterator[ModelResponseStreamEvent] = iter(())
        self._ahead = Ahead()
        self._is_read_out = False
        self._record: dict[str, Any] = {}
        self._cancelling_job: threading.Thread | None = None
        self._grip = Grip(self._response)
        self._is_over = False

    # --- reading ----------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[ModelResponseStreamEvent]:
        """The one iteration of this stream: a second loop goes on where the first one stopped."""
        while True:
            if self._life.state is State.LIVE and (event := self._map(self._mapped)) is not None:
                yield event
                continue
            chunk = self._next_chunk()
            if chunk is _END:
                break
            says_end = self._transcript.says_end(chunk)
            self._mapped = self._ahead.events(self._transcript.events(chunk), says_end=says_end)
        while self._rest:
            yield self._rest.popleft()

    def chunks(self) -> Iterator[ChunkT]:
        """The SDK's own objects, unchanged; ends without an error when the stream is cancelled."""
        while (chunk := self._next_chunk()) is not _END:
            try:
                with self._account:
                    own = self._transcript.own(chunk)
            except Exception:
                self._fail()
                raise
            yield own

    def stream_text(self, *, delta: bool = False) -> Iterator[str]:
        """The response's text as it arrives; ends without an error when the stream is cancelled.

        Args:
            delta: Whether to yield each piece by itself, or the whole text so far (the default).
        """
        growing = Growing()
        while (chunk := self._next()) is not _END:
            if piece := self._text_in_lane() if chunk is MORE else self._text(chunk):
                yield piece if delta else growing.add(piece)

    def _text_in_lane(self) -> str:
        """The answer's text in the next event of the fast lane."""
        with self._account:
            if (text := self._transcript.known(self._events)) is not None:
                return text
            event = self._events.take()
            chunk = None if event is None else self._events.decode(event)
            return "" if chunk is None else self._text(chunk, event)

    def _text(self, chunk: Any, event: bytes | None = None) -> str:
        """The answer's text in a chunk that is handed out."""
        with self._account:
            text = self._transcript.text(chunk, event)
        if text is None:
            text = ""
            events = self._transcript.events(chunk)
            while (mapped := self._map(events)) is not None:
                text += text_of(mapped)
        return text

    def _map(self, events: Iterator[ModelResponseStreamEvent]) -> ModelResponseStreamEvent | None:
        """The next event of a chunk that is handed out."""
        try:
            with self._account:
                return next(events, None)
        except Exception:
            self._fail()
            raise

    def _fail(self) -> None:
        """A chunk said that the answer failed: nothing of use can follow."""
        self._life.apply(Event.ERROR)
        self._finish_unless_read()

    def _next_chunk(self) -> Any:
        """The next chunk: decoded on the fast lane, or as the SDK has it; `_END` at the end, whichever end it is."""
        while (chunk := self._next()) is MORE:
            with self._account:
                decoded = self._events.next()
            if decoded is not None:
                return decoded
        return chunk

    def _next(self) -> Any:
        """The SDK's next chunk, or `MORE` if the fast lane has events; `_END` at the end, whichever end it is.

        Raises:
            RuntimeError: Another thread is reading.
        """
        if self._events.more and self._life.state is State.LIVE:
            return MORE
        if self._is_over:
            return _END
        if not self._turn.acquire(blocking=False):
            raise RuntimeError("another thread is reading this stream, or closing it: one reads, any may cancel")
        try:
            return self._read() if self._life.state is State.LIVE else _END
        finally:
            self._turn.release()
            # Stopped during the read: the stopping thread found `_turn` taken, and left the closing to this one.
            if self._life.state is not State.LIVE:
                self._finish_unless_read()

    def _read(self) -> Any:
        try:
            chunk = next(self._source)
        except StopIteration:
            self._found_end()
            return _END
        except Exception:
            if self._life.apply(Event.ERROR):
                raise
            return _END  # what our cutting made of it
        except BaseException:
            # The chunk being read is lost with it, so whatever follows is no natural end.
            self._stop(Event.LEAVE, "left")
            raise
        if self._life.state is State.LIVE:
            return chunk
        if chunk is not MORE:
            self._meter.late([chunk])
        return _END

    def _found_end(self) -> None:
        if self._life.state is not State.LIVE:
            return
        try:
            with self._account:
                self._rest.extend(self._transcript.end())
        except Exception:
            self._life.apply(Event.ERROR)
            raise
        self._is_read_out = True
        if not self._life.apply(Event.END):
            self._rest.clear()

    # --- stopping ---------------------------------------------------------------------------------------------

    def cancel(self, reason: str | None = None) -> None:
        """Stop this response: nothing is handed out any more, and the provider is told at once.

        Idempotent, and a no-op once the stream has ended. Safe from any thread or signal handler; a read that waits
        in another thread ends, and so does that thread's loop. If the answer is whole already, its state, message and
        usage stay those of a whole answer.

        Args:
            reason: Why, in at most 200 characters; it is kept as `cancel_reason` and in the message.

        Raises:
            TypeError: If the reason is not a string.
            ValueError: If it is too long.
        """
        self._stop(Event.CANCEL, checked_reason(reason))

    def _stop(self, event: Event, reason: str) -> None:
        """Apply a stop, and shut the socket if there was something to stop."""
        if self._life.stop(event, reason, whole=self._transcript.is_all_said and not self._ahead.brings):
            self._grip.cut()

    def close(self) -> None:
        """Close the stream, whether or not it has ended, and settle the usage; what leaving its context does.

        While another thread reads, that thread closes it, at once.
        """
        self._leave()
        if self._cancelling_job is not None:
            self._cancelling_job.join(LEAVE_TIMEOUT)

    def _leave(self) -> None:
        self._stop(Event.LEAVE, "left")
        self._finish_unless_read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the stream, whether or not it has ended, and settle the usage."""
        self.close()

    def __del__(self) -> None:
        if self._is_over or self._grip.is_forked:
            return
        if self._life.state is State.LIVE:
            warnings.warn(
                "a stream was dropped without being closed: use `with CancellableStream(...) as stream:`, or "
                "`stream.close()`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
        self._leave()  # a dropped stream does not wait for a background job

    def _finish_unless_read(self) -> None:
        if not self._turn.acquire(blocking=False):
            return
        try:
            if not self._is_over:
                self._finish()
        finally:
            self._turn.release()

    def _finish(self) -> None:
        """Count what had arrived, close, and settle; once, in the thread that holds `_turn`."""
        self._is_over = True
        state = self._life.state
        if not self._is_read_out and state is not State.FAILED:
            self._count_late(whole=state is State.COMPLETE)
        # Closing is best effort: the connection is let go of whatever it raises.
        with suppress(Exception):
            self._stream.close()
        with suppress(Exception):
            iteration_of(self._stream).close()
        response = self._transcript.response
        with self._account:
            self._transcript.close(whole=state is State.COMPLETE)
            self._meter.settle(ended=self._has_ended(), finish_reason=response.finish_reason)
            self._record.update(self._meter.usage.record())
        details: dict[str, Any] = response.provider_details or {}
        if self._grip.is_forked or state is not State.INTERRUPTED:
            return
        if details.get("background") and response.provider_response_id:
            self._cancelling_job = threading.Thread(
                target=self._cancel_job, args=(response.provider_response_id,), name="cancelstream-job", daemon=True
            )
            self._cancelling_job.start()

    def _count_late(self, *, whole: bool) -> None:
        """Count what had arrived and was not handed out; of an answer that is `whole` nothing can be missing."""
        if not self._grip.was_cut:
            self._grip.cut(wait=True)  # the cancelling thread may be in the middle of it
        with self._account:
            late, lost = [*self._events.rest()], False
            if self._grip.is_forked:
                lost = True  # the rest is its parent's
            elif not self._grip.was_cut and not self._response.is_closed:
                # To read on would be to wait.
                http.reset_http2_stream_blocking(self._response)
                lost = True
            else:
                try:
                    while len(late) < LATE_LIMIT:
                        chunk = next(self._source)
                        late += self._events.rest() if chunk is MORE else [chunk]
                    lost = True
                except (StopIteration, Exception) as end:  # noqa: BLE001
                    _logger.debug("%d chunks had arrived: %s", len(late), type(end).__name__)
            self._meter.late(late)
            if lost and not whole:
                self._meter.lost()

    def _cancel_job(self, response_id: str) -> None:
        client = client_of(self._stream)
        try:
            client.responses.cancel(response_id, timeout=LEAVE_TIMEOUT)
        except Exception as error:  # noqa: BLE001 - it may have ended meanwhile
            _logger.debug("cancelling the background response %s raised %s", response_id, type(error).__name__)

    # --- what it was ------------------------------------------------------------------------------------------

    @property
    def cancelled(self) -> bool:
        """Whether the answer was cut: by `cancel()`, or because the stream was left before the answer was whole."""
        return self._life.is_cut

    @property
    def cancel_reason(self) -> str | None:
        """Why it was stopped, `None` if it was not."""
        return self._life.reason

    @property
    def usage(self) -> ResponseUsage:
        """The tokens that arrived so far, with bounds; one object, final once the stream has ended.

        Calling it, `usage()`, returns it too.
        """
        with self._account:
            finish_reason = self._transcript.response.finish_reason
            self._meter.observe(reported=None, finish_reason=finish_reason, ended=self._has_ended())
            return self._meter.usage

    def _has_ended(self) -> bool:
        """Whether the answer is whole; not so where the stream ended and pydantic-ai knows that it was too early."""
        transcript = self._transcript
        return (
            self._life.state is State.COMPLETE
            and not transcript.has_failed
            and transcript.response.state != "incomplete"
        )

    def get(self) -> ModelResponse:
        """The answer so far as a `ModelResponse`: `state='interrupted'`, with the reason, once it was cut."""
        usage = self.usage
        state = self._life.state
        with self._account:
            if state is State.COMPLETE:
                self._transcript.finish()
            else:
                self._transcript.flush()
            arrived: ModelResponse = self._transcript.response.get()
        response = replace(arrived, usage=copy(usage) if state is State.LIVE else usage)
        # A server-side job that was only left goes on, and can be resumed; one that was cancelled cannot.
        if state is State.INTERRUPTED or (state is State.LEFT and response.state != "suspended"):
            self._record.update(usage.record())
            return mark_interrupted(response, reason=self._life.reason or "cancelled", usage_record=self._record)
        return response


def _in_lane(lane: BlockingLane, stream: Iterator[Any], life: Life, account: threading.RLock) -> Iterator[Any]:
    """`MORE` for each read, and then what the SDK makes of the rest."""
    events, failure = lane.events, None
    try:
        for data in lane.reads():
            with account:
                events.feed(data)
            yield MORE
            if events.stopped:
                break
    except Exception as error:  # noqa: BLE001 - the SDK raises it again, in its own words
        if life.state is not State.LIVE:
            return  # what our cutting made of it
        failure = error
    lane.hand_over(failure)
    yield from stream
