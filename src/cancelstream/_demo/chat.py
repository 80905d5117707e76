"""The chat page's application: the routes, who asks, and where conversations are kept.

It does what an application of yours does. The owner of a stream is the visitor, whom a cookie names (an application
with users has a session instead). The messages of a stream are saved when it ends, however it ends. A cut answer goes
back to the model only as `salvage()` makes it.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from pydantic_ai import Agent, ModelMessage, ModelMessagesTypeAdapter
from pydantic_ai.messages import ModelRequest, UserPromptPart
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from .._history import salvage
from .._record import read_record
from .._run import run_stream_events
from .._stops import MemoryStopRegistry, StopRegistry
from .._usage import ResponseUsage, StreamUsage, usage_to_json
from ..starlette import CancellableEventResponse, EventEncoder, StreamEnd, lifespan, stop_endpoint

__all__ = ("chat_application",)

PAGE: Final = Path(__file__).parent / "page"

GO_ON: Final = "Go on from where you were stopped."

COOKIE: Final = "cancelstream_visitor"

LONGEST_PROMPT: Final = 20_000
"""In characters."""

CONVERSATIONS_KEPT: Final = 1000
"""In the memory of a process; the ones that were used last."""

KEPT_FOR: Final = 24 * 60 * 60
"""How long Redis keeps a conversation, in seconds."""

SECURITY: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Conversations(Protocol):
    """Where conversations are kept, each under its visitor."""

    async def load(self, visitor: str, conversation: str) -> bytes | None:
        """The messages as JSON."""
        ...

    async def save(self, visitor: str, conversation: str, messages: bytes) -> None:
        """Keep the messages."""
        ...

    async def close(self) -> None:
        """Let go of what it needed."""


class InMemory:
    """In this process."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    async def load(self, visitor: str, conversation: str) -> bytes | None:
        """The messages as JSON."""
        return self._kept.get((visitor, conversation))

    async def save(self, visitor: str, conversation: str, messages: bytes) -> None:
        """Keep the messages."""
        self._kept[visitor, conversation] = messages
        self._kept.move_to_end((visitor, conversation))
        if len(self._kept) > CONVERSATIONS_KEPT:
            self._kept.popitem(last=False)

    async def close(self) -> None:
        """Nothing to let go of."""


class InRedis:
    """For all workers."""

    def __init__(self, url: str) -> None:
        from redis.asyncio import Redis

        self._redis = Redis.from_url(url)  # pyright: ignore[reportUnknownMemberType]

    async def load(self, visitor: str, conversation: str) -> bytes | None:
        """The messages as JSON."""
        messages: bytes | str | None = await self._redis.get(_key(visitor, conversation))
        return messages.encode() if isinstance(messages, str) else messages

    async def save(self, visitor: str, conversation: str, messages: bytes) -> None:
        """Keep the messages."""
        await self._redis.set(_key(visitor, conversation), messages, ex=KEPT_FOR)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()


def _key(visitor: str, conversation: str) -> str:
    return f"cancelstream:chat:{visitor}:{conversation}"


class WithCost(EventEncoder):
    """Plain events, and the cost in the last one."""

    _result: Any = None

    def read(self, result: Any) -> AsyncIterator[Any]:
        """Keep the result, whose cost is asked for in the end."""
        self._result = result
        return super().read(result)

    def end(self, end: StreamEnd) -> str:
        """The last event."""
        usage = None if self._result is None else self._result.usage
        return self.event({**end.to_json(), "cost": None if usage is None else _cost(usage)}, "end")


def _cost(usage: StreamUsage | ResponseUsage) -> dict[str, str | None]:
    cost = usage.cost_range
    amounts = {"value": cost.value, "low": cost.low, "high": cost.high}
    return {**{name: None if it is None else f"{it:f}" for name, it in amounts.items()}, "reason": cost.reason}


def chat_application(agent: Agent[None, str], *, redis: str | None = None) -> Starlette:
    """The application.

    Args:
        agent: Who answers.
        redis: Where stops and conversations are shared with other workers; `None` for one process.
    """
    registry: StopRegistry
    conversations: Conversations
    if redis is None:
        registry, conversations = MemoryStopRegistry(), InMemory()
    else:
        from ..redis import RedisStopRegistry

        registry, conversations = RedisStopRegistry.from_url(redis), InRedis(redis)

    async def page(request: Request) -> Response:
        response = FileResponse(PAGE / "index.html", headers=SECURITY)
        if COOKIE not in request.cookies:
            secure = request.url.scheme == "https"
            response.set_cookie(COOKIE, secrets.token_urlsafe(18), httponly=True, samesite="strict", secure=secure)
        return response

    async def chat(request: Request) -> Response:
        visitor, asked = _visitor(request), await _json(request)
        conversation, prompt = _text(asked, "conversation", 64), _text(asked, "prompt", LONGEST_PROMPT)
        kept = await conversations.load(visitor, conversation)
        # An answer that was cut must not go back as a whole one.
        history = salvage(ModelMessagesTypeAdapter.validate_json(kept)) if kept else []

        async def save(result: Any) -> None:
            if response.end is not None and response.end.state != "failed":
                await conversations.save(visitor, conversation, result.all_messages_json())

        response = CancellableEventResponse(
            lambda: run_stream_events(agent, prompt or GO_ON, message_history=history),
            registry=registry,
            owner=visitor,
            on_end=save,
            encode=WithCost(),
        )
        return response

    async def past(request: Request) -> Response:
        kept = await conversations.load(_visitor(request), request.path_params["conversation"])
        messages = ModelMessagesTypeAdapter.validate_json(kept) if kept else []
        return JSONResponse([turn for message in messages for turn in _turns(message)], headers=SECURITY)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncGenerator[None]:
        try:
            async with lifespan(registry)(app):
                yield
        finally:
            await conversations.close()

    return Starlette(
        routes=[
            Route("/", page),
            Route("/chat", chat, methods=["POST"]),
            Route("/chat/{conversation}", past),
            Route("/stop/{stop_id}", stop_endpoint(registry, owner=_visitor), methods=["POST"]),
            Mount("/page", StaticFiles(directory=PAGE)),
        ],
        lifespan=life,
    )


def _visitor(request: Request) -> str:
    visitor = request.cookies.get(COOKIE)
    if not visitor:
        raise HTTPException(401, "load the page first: it sets a cookie")
    return visitor


async def _json(request: Request) -> dict[str, Any]:
    try:
        return dict(await request.json())
    except (TypeError, ValueError):
        raise HTTPException(422, "this has to be a JSON object") from None


def _text(asked: dict[str, Any], name: str, longest: int) -> str:
    text = asked.get(name)
    if not isinstance(text, str) or len(text) > longest:
        raise HTTPException(422, f"{name} has to be a text of at most {longest} characters")
    return text


def _turns(message: ModelMessage) -> list[dict[str, Any]]:
    """The part of a stored message that the page shows."""
    if isinstance(message, ModelRequest):
        prompts = [part.content for part in message.parts if isinstance(part, UserPromptPart)]
        return [{"role": "user", "text": prompt} for prompt in prompts if isinstance(prompt, str)]
    usage = StreamUsage.of(message)
    record = read_record(message.metadata) or {}
    return [
        {
            "role": "assistant",
            "text": message.text or "",
            "state": "complete" if message.state == "complete" else "interrupted",
            "reason": record.get("reason"),
            "usage": usage_to_json(usage),
            "provenance": usage.provenance,
            "cost": _cost(usage),
        }
    ]
