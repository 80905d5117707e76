"""Closing a refused stream: no other code has a handle to it, and its connection would stay open, generating.

The refused object may be a stream of the SDK, something around one (a raw response, a tracing library's wrapper), a
request that was not made yet, or nothing that can be closed. A stream inside a wrapper is looked for the way a
debugger would, because a wrapper that was not started yet closes nothing.

Known limits: a stream of another event loop, or of one that runs no more, cannot be closed from here. Its socket is
shut, so the provider knows. A wrapper that hides more than one stream keeps them.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import Any, Final
from weakref import WeakSet

import openai

from .._closing import DONE, Closing
from .._peekable import PeekableAsyncStream
from .._upstream import http

__all__ = ("adopt", "discard", "is_adopted")

DEPTH: Final = 6
"""References between a wrapper and the stream in it: an object, its attributes, a generator, a closure and its cell."""

LOOKS: Final = 2000
"""Objects that are looked at; a wrapper leads to a few dozen."""

_adopted: WeakSet[Any] = WeakSet()


def adopt(stream: Any) -> None:
    """Note that a stream has a wrapper of cancelstream, which closes it."""
    _adopted.add(stream)


def is_adopted(stream: Any) -> bool:
    """Whether a stream has a wrapper of cancelstream."""
    return stream in _adopted


def discard(refused: Any) -> Closing:
    """Begin to close what is refused; never raises an `Exception`.

    Left alone: a stream that has a wrapper of cancelstream; an object that is no stream and around none (a client).

    Args:
        refused: Anything.

    Returns:
        May be dropped. Awaiting it waits until it is closed.
    """
    with suppress(Exception):
        stream = _stream_inside(refused)
        if stream is not None and is_adopted(stream):
            return Closing(DONE)
        _cancel_requests(refused)
        response = _response_of(refused if stream is None else stream)
        if response is None and not (hasattr(refused, "__anext__") or hasattr(refused, "__next__")):
            return Closing(DONE)
        if not hasattr(refused if response is None else response.stream, "__aiter__"):
            _close_now(refused, stream, response)
        elif _has_loop():
            return PeekableAsyncStream(_Refused(refused, stream, response)).cancel()
        else:
            http.shut_socket(response)
    return Closing(DONE)


def _response_of(refused: Any) -> Any:
    """The HTTP response of a stream, or of a raw response of the SDK's; `None` if it is neither."""
    for response in (getattr(refused, "response", None), getattr(refused, "http_response", None)):
        if hasattr(response, "stream") and hasattr(response, "is_closed"):
            return response
    return None


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class _Refused:
    """Return the refused object as something to close."""

    def __init__(self, given: Any, stream: Any, response: Any) -> None:
        self.response = response
        self._to_close = [each for each in (given, stream) if each is not None]

    def __aiter__(self) -> AsyncIterator[Any]:
        raise NotImplementedError  # nothing is read from it

    async def close(self) -> None:
        for each in self._to_close:
            close = getattr(each, "aclose", None) or getattr(each, "close", None)
            with suppress(Exception):
                closing = None if close is None else close()
                if inspect.isawaitable(closing):
                    await closing


def _close_now(refused: Any, stream: Any, response: Any) -> None:
    """Close what belongs to a blocking client, or to none."""
    http.reset_http2_stream_blocking(response)
    for each in (refused, stream, response):
        close = getattr(each, "close", None)
        if close is not None and not inspect.iscoroutinefunction(close):
            with suppress(Exception):
                close()


def _cancel_requests(refused: Any) -> None:
    """End what would become a stream: a task, a coroutine, or one that a context manager keeps until it is entered."""
    for each in (refused, *getattr(refused, "__dict__", {}).values()):
        if isinstance(each, asyncio.Future):
            each.cancel()
        elif inspect.iscoroutine(each):
            with suppress(Exception):
                each.close()


def _stream_inside(wrapper: object) -> Any:
    """The SDK's stream that this is, or that it refers to; `None` if there is none, or more than one."""
    level, seen = [wrapper], {id(wrapper)}
    for _ in range(DEPTH):
        found: list[Any] = [each for each in level if isinstance(each, openai.AsyncStream | openai.Stream)]
        if found:
            return found[0] if len(found) == 1 else None
        if len(seen) > LOOKS:
            return None
        below: list[object] = []
        for each in level:
            for inner in _referents(each):
                if id(inner) not in seen:
                    seen.add(id(inner))
                    below.append(inner)
        level = below
    return None


def _referents(holder: object) -> list[object]:
    """The references of an object, without those that every object of its kind has."""
    if isinstance(holder, FunctionType):
        return [*(holder.__closure__ or ())]
    if isinstance(holder, type | ModuleType | openai.OpenAI | openai.AsyncOpenAI | asyncio.AbstractEventLoop):
        return []
    return gc.get_referents(holder)
