"""Plain Server-Sent Events, the format a stream has unless it is given another.

::

    event: start
    data: {"stop_id": "x2kd…"}

    data: {"delta": "Hel"}

    data: {"delta": "lo"}

    event: end
    data: {"state": "interrupted", "reason": "user", "usage": {…}, "provenance": "estimated", "characters": 5}

A structured output is sent as it grows, each time the whole of it so far: `data: {"output": {…}}`. Where a run takes
text back (`final_turn_only='retract'`), what is left is sent in place of all before: `data: {"text": ""}`.

Everything is JSON, so no line break in a text can break an event. No text of an exception is ever sent: a provider's
error may hold what is not the client's business. Items are encoded where they are read, so that one that cannot be
is a stream that failed.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from traceback import extract_tb
from typing import Any, Final, cast

from pydantic_core import to_jsonable_python

from .._response import text_of
from .._run import CancellableRun, TextSoFar
from ._outbox import Outbox, StreamEnd
from ._structured import Output, is_structured, outputs_of

__all__ = ("EventEncoder",)

_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class EventEncoder:
    """Plain Server-Sent Events; the `encode=` of a response. Subclass it to send something else.

    Its methods are called in the event loop, while the stream runs, and must not wait.

    Args:
        usage: Whether the end tells usage and provenance; `False` where that is not the client's business.

    Attributes:
        media_type: The content type.
        headers: What the response's headers have besides.
    """

    media_type: str = "text/event-stream"
    headers: Mapping[str, str] = {}

    def __init__(self, *, usage: bool = True) -> None:
        self._usage = usage

    def read(self, result: Any) -> AsyncIterator[Any]:
        """Return the iterator over the result.

        The partial outputs of a run whose output is structured; else pieces of text if it has a `stream_text`, and
        what it iterates if it has none.
        """
        if is_structured(result):
            return outputs_of(result)
        if isinstance(result, CancellableRun):
            # Not grouped: what waits for a slow client is sent together anyway.
            return result.stream_text(delta=True, debounce_by=None)  # pyright: ignore[reportUnknownMemberType]
        if hasattr(result, "_pieces"):  # a run that may take text back, of either framework
            pieces: AsyncIterator[Any] = result._pieces()
            return pieces
        items: AsyncIterator[Any] = result.stream_text(delta=True) if hasattr(result, "stream_text") else aiter(result)
        return items

    def event(self, data: Any, name: str | None = None) -> str:
        """One event with JSON data, for the methods below to return."""
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        if _SURROGATE.search(text):
            # Half of a character, which a provider has cut in two: escaped, the client can put the halves together.
            text = json.dumps(data, separators=(",", ":"))
        return f"data: {text}\n\n" if name is None else f"event: {name}\ndata: {text}\n\n"

    def start(self, stop_id: str | None) -> str:
        """The first event. There is no `stop_id` where no registry is used."""
        return self.event({"stop_id": stop_id}, "start")

    def item(self, item: Any) -> str:
        """One item: a piece of text, or a pydantic-ai event, of which the answer's text is sent.

        Partial outputs go through `output()`. Text that was taken back is an item, too: `{"text": ...}` is all of the
        text that is left.

        Raises:
            TypeError: It is none of these.
        """
        if isinstance(item, Output):
            return self.output(item.value)
        if isinstance(item, TextSoFar):
            return self.event({"text": item.text})
        if not isinstance(item, str) and not hasattr(item, "event_kind"):
            raise _NoTextError(
                f"this stream gives items of type {type(item).__name__}, which are no text: pass encode= with an "
                "item() that sends them"
            )
        text = item if isinstance(item, str) else text_of(item)
        return self.event({"delta": text}) if text else ""

    def output(self, output: Any) -> str:
        """A structured output as far as it has come, and at last the whole one."""
        return self.event({"output": to_jsonable_python(output)})

    def end(self, end: StreamEnd) -> str:
        """The last event."""
        told = end.to_json()
        if not self._usage:
            del told["usage"], told["provenance"]
        return self.event(told, "end")

    def pack(self, item: Any) -> Any:
        """Return what the outbox holds in place of an item; called where the item is read.

        Raises:
            RuntimeError: It cannot be encoded. The error says where, and does not hold the item.
        """
        try:
            encoded = self.item(item)
            encoded.encode()
        except _NoTextError:
            raise
        except Exception as error:  # noqa: BLE001 - an application's own item() may raise anything
            failed = _CannotEncodeError(type(self).__name__, item, error)
        else:
            return encoded
        raise failed  # here, and not where it would keep the error that holds the item as its context

    async def frames(self, stop_id: str | None, outbox: Outbox) -> AsyncGenerator[str]:
        """The whole stream in pieces, each to be sent at once."""
        yield self.start(stop_id)
        async for batch in outbox:
            encoded = "".join(batch)
            batch.clear()  # not held twice while a slow client takes it
            if encoded:
                yield encoded
        yield self.end(cast("StreamEnd", outbox.end))


class _NoTextError(TypeError):
    """This format has no way to send such items."""


class _CannotEncodeError(RuntimeError):
    """An item could not be encoded. Says what was raised and where, but nothing of the item: it is the answer."""

    def __init__(self, encoder: str, item: object, error: Exception) -> None:
        where = extract_tb(error.__traceback__)[-1]
        super().__init__(
            f"{encoder}.item() raised {type(error).__name__} for an item of type {type(item).__name__}, in "
            f"{where.name}(), {where.filename}, line {where.lineno}"
        )
