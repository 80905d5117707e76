"""Plain Server-Sent Events, the format a stream has unless it is given another.

::

    event: start
    data: {"stop_id": "x2kd…"}

    data: {"delta": "Hel"}

    data: {"delta": "lo"}

    event: end
    data: {"state": "interrupted", "reason": "user", "usage": {…}, "provenance": "estimated", "characters": 5}

Everything is JSON, so no line break in a text can break an event. No text of an exception is ever sent: a provider's
error may hold what is not the client's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any, Final, cast

from .._response import text_of
from .._run import CancellableRun
from ._outbox import Outbox, StreamEnd

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
        """What is read of the result: its pieces of text if it has a `stream_text`, else what it iterates."""
        if isinstance(result, CancellableRun):
            # Not grouped: what waits for a slow client is sent together anyway.
            return result.stream_text(delta=True, debounce_by=None)  # pyright: ignore[reportUnknownMemberType]
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

        Raises:
            TypeError: It is neither.
        """
        if not isinstance(item, str) and not hasattr(item, "event_kind"):
            raise TypeError(f"this stream gives {item!r}, which is no text: pass encode= with an item() that sends it")
        text = item if isinstance(item, str) else text_of(item)
        return self.event({"delta": text}) if text else ""

    def end(self, end: StreamEnd) -> str:
        """The last event."""
        told = end.to_json()
        if not self._usage:
            del told["usage"], told["provenance"]
        return self.event(told, "end")

    async def frames(self, stop_id: str | None, outbox: Outbox) -> AsyncGenerator[str]:
        """The whole stream in pieces, each to be sent at once."""
        yield self.start(stop_id)
        async for batch in outbox:
            if encoded := "".join(map(self.item, batch)):
                yield encoded
        yield self.end(cast("StreamEnd", outbox.end))
