"""Play one turn of a script on one connection, and keep its record."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from ._chat import ChatCompletions
from ._connection import Connection
from ._record import KeptRecord
from ._rendering import Rendering, error_body, sse
from ._responses import Responses
from ._script import Answer, Chunk, HttpError, Replay, Turn, Write, parts
from ._steps import Cut, ErrorEvent, Event, Gap, Gate, Pause

__all__ = ("Player",)

_STREAM: Final = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
_JSON: Final = {"content-type": "application/json"}
_HALF_AN_EVENT: Final = b'data: {"id": "half'


class Player:
    """Answers one request as its turn says."""

    def __init__(self, turn: Turn, record: KeptRecord, connection: Connection) -> None:
        self._turn = turn
        self._record = record
        self._connection = connection

    async def run(self) -> None:
        """Play the turn."""
        turn = self._turn
        if isinstance(turn.before_headers, Cut):
            await self._break(turn.before_headers.how)
            return
        if turn.before_headers is not None:
            await _pause(turn.before_headers)
        match turn:
            case HttpError():
                await self._respond(turn.status, error_body(turn.message, turn.code), headers=turn.headers)
            case Replay():
                await self._connection.head(200, _STREAM)
                await self._stream(turn, None)
            case _:
                await self._answer(turn)

    def left(self, how: Literal["FIN", "RST"]) -> None:
        """Note how the client went away."""
        self._record.end("client", disconnect=how)

    def over(self) -> None:
        """Record the server's own end for an answer that has not ended by now."""
        self._record.end("server")

    async def _answer(self, turn: Answer) -> None:
        record = self._record
        try:
            asked: dict[str, Any] = dict(record.json)
        except (TypeError, ValueError):
            await self._respond(400, error_body("The body of this request is no JSON object."))
            return
        rendering: Rendering
        if record.path.endswith("/chat/completions"):
            rendering = ChatCompletions(turn, model=str(asked.get("model")), number=record.index)
        elif record.path.endswith("/responses"):
            rendering = Responses(turn, model=str(asked.get("model")), number=record.index)
        else:
            why = "an Answer is rendered for /chat/completions and /responses; other APIs take a Replay"
            await self._respond(404, error_body(f"{record.path!r} is no path of OpenAI's: {why}."))
            return
        if asked.get("stream"):
            await self._connection.head(200, _STREAM)
            await self._send(rendering.opening())
            await self._stream(turn, rendering)
        else:
            await self._whole(turn, rendering)

    # --- streamed ------------------------------------------------------------------------------------------------

    async def _stream(self, turn: Answer | Replay, rendering: Rendering | None) -> None:
        for part in parts(turn):
            match part:
                case tuple():
                    await self._send(self._generate(part, rendering))
                case Cut():
                    await self._break(part.how)
                    return
                case ErrorEvent():
                    assert rendering is not None  # noqa: S101  (no Replay holds one)
                    await self._finish(_bytes(rendering.failure(part)), by="script")
                    return
                case _:
                    await _pause(part)
        await self._finish(b"" if rendering is None else _bytes(rendering.ending()))

    def _generate(self, write: Write, rendering: Rendering | None) -> list[Event]:
        events: list[Event] = []
        for part in write:
            self._record.add_chunk()
            if isinstance(part, Chunk):
                assert rendering is not None  # noqa: S101  (no Replay holds one)
                events += rendering.chunk(part)
            else:
                events.append(part)
        return events

    async def _send(self, events: list[Event]) -> None:
        if events:
            await self._connection.write(_bytes(events))

    async def _break(self, how: Literal["reset", "eof", "end", "truncated"]) -> None:
        if how in ("end", "truncated"):
            await self._finish(_HALF_AN_EVENT if how == "truncated" else b"", by="script")
            return
        self._record.end("script")
        if how == "reset":
            self._connection.reset()
        else:
            self._connection.hang_up()

    # --- whole ---------------------------------------------------------------------------------------------------

    async def _whole(self, turn: Answer, rendering: Rendering) -> None:
        """Generate everything, then send it as one document."""
        for part in parts(turn):
            match part:
                case tuple():
                    self._generate(part, rendering)
                case Cut():
                    await self._break_document(part.how, rendering)
                    return
                case ErrorEvent():
                    await self._respond(500, error_body(part.message, part.code), by="script")
                    return
                case _:
                    await _pause(part)
        await self._respond(200, json.dumps(rendering.document()).encode())

    async def _break_document(self, how: Literal["reset", "eof", "end", "truncated"], rendering: Rendering) -> None:
        """Break off with half the document sent, except for a reset."""
        document = json.dumps(rendering.document()).encode()
        half = document[: len(document) // 2]
        if how in ("end", "truncated"):
            await self._respond(200, half, by="script")
            return
        if how == "eof":
            await self._connection.head(200, {**_JSON, "content-length": str(len(document))})
            await self._connection.write(half)
        await self._break(how)

    # --- the end -------------------------------------------------------------------------------------------------

    async def _finish(self, data: bytes, *, by: Literal["complete", "script"] = "complete") -> None:
        await self._end(by, lambda: self._connection.finish(data))

    async def _respond(
        self,
        status: int,
        body: bytes,
        *,
        headers: Mapping[str, str] = _JSON,
        by: Literal["complete", "script"] = "complete",
    ) -> None:
        await self._end(by, lambda: self._connection.respond(status, {**_JSON, **headers}, body))

    async def _end(self, by: Literal["complete", "script"], write: Callable[[], None]) -> None:
        """Write the last bytes: a client that has read them finds the end on record."""
        with self._record.held():
            write()
            if self._connection.is_flushed:
                self._record.end(by)
        await self._connection.flushed()
        self._record.end(by)


async def _pause(step: Pause) -> None:
    match step:
        case Gap():
            await asyncio.sleep(step.seconds)
        case Gate():
            await step.pass_through()
        case _:
            await asyncio.get_running_loop().create_future()  # only a cancellation ends a Silence


def _bytes(events: list[Event]) -> bytes:
    return b"".join(map(sse, events))
