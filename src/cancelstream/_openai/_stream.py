"""Inspect a stream of openai's SDK before it is read: its API, its request, and whether it can be used.

Everything is read from public attributes of the stream's HTTP response and of the request that it answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import openai
from jiter import from_json

from .._errors import named
from .._upstream.openai import iteration_of
from ._refused import is_adopted

__all__ = ("Asked", "asked_of", "check_stream")

_EVENT_STREAMS: Final = ("", "text/event-stream", "text/plain", "application/octet-stream")
"""The media types that an event stream comes with; some servers say nothing, or nothing in particular."""

_DEPLOYMENT: Final = re.compile("/deployments/[^/]+$")
"""The path that Azure's client puts behind the base URL."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The request that a stream answers.

    Attributes:
        api: The API that was asked.
        url: The provider's base URL, as its client has it, without credentials or query.
        model: The model that was asked, or an empty string.
        request: The request's body, `None` if it is not known.
        resumed: The id of a background response that is taken up again, else `None`.
    """

    api: Literal["openai-chat", "openai-responses"]
    url: str
    model: str
    request: Mapping[str, Any] | None
    resumed: str | None = None

    @property
    def choices(self) -> int:
        """How many choices were asked for; one, where that is not known."""
        number = (self.request or {}).get("n")
        return number if type(number) is int and number > 1 else 1


def check_stream(stream: Any, kind: type[openai.AsyncStream[Any]] | type[openai.Stream[Any]]) -> None:
    """Refuse what cannot be streamed from.

    Raises:
        TypeError: It is no such stream: it is the other client's, or another library's.
        ValueError: It was read, wrapped or closed before, or its response is no event stream.
    """
    given = f"{type(stream).__module__}.{type(stream).__qualname__}"
    hint = _hint(stream)
    name = "AsyncStream" if kind is openai.AsyncStream else "Stream"
    if isinstance(stream, openai.Stream) and kind is openai.AsyncStream:
        raise TypeError(
            f"{given} belongs to a blocking client: use `cancelstream.sync.CancellableStream(stream)`, or "
            "create it with `AsyncOpenAI`"
        )
    if isinstance(stream, openai.AsyncStream) and kind is openai.Stream:
        raise TypeError(
            f"{given} belongs to an asynchronous client: use "
            "`CancellableStreamedResponse.from_openai(stream)`, or create it with `OpenAI`"
        )
    if not isinstance(stream, kind):
        raise TypeError(
            f"expected openai's {name}, as `create(stream=True)` returns it, not {given}{hint}"
            + (". `PeekableAsyncStream` wraps any other asynchronous stream" if kind is openai.AsyncStream else "")
        )
    if is_adopted(stream):
        raise ValueError("this stream was wrapped before: read the wrapper that it has")
    response = stream.response
    is_loaded = _is_loaded(response)
    if _is_exhausted(stream) if is_loaded else response.is_stream_consumed:
        raise ValueError("this stream was read from before: wrap it first, then read the wrapper")
    if response.is_closed and not is_loaded:
        raise ValueError("this stream was closed before: create another one")
    media = str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()
    if media not in _EVENT_STREAMS:
        raise ValueError(
            f"the response is {media[:80]!r} and no event stream: does this server stream, and was `stream=True` "
            "asked for?"
        )


def asked_of(stream: Any, request: Mapping[str, Any] | None = None) -> Asked:
    """Return the request that a stream answers.

    Args:
        stream: The stream, which `check_stream` let pass.
        request: The arguments of `create()`, where they are at hand; else they are read from what was sent.

    Raises:
        TypeError: It is neither chat completions nor Responses, or `request` is no mapping.
    """
    if request is not None and not isinstance(request, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"request is the mapping of what `create()` was given, not {named(request)}")
    sent = stream.response.request
    if request is None:
        request = _body(sent)
    url = sent.url
    base, _, end = f"{url.scheme}://{url.netloc.decode()}{url.path}".rpartition("/")
    model = (request or {}).get("model")
    model = model if isinstance(model, str) else ""
    if end == "completions" and base.endswith("/chat"):
        base = _DEPLOYMENT.sub("", base.removesuffix("/chat"))
        return Asked("openai-chat", f"{base}/", model, request)
    if end == "responses":
        return Asked("openai-responses", f"{base}/", model, request)
    if base.endswith("/responses") and sent.method == "GET":
        return Asked("openai-responses", base.removesuffix("responses"), model, request, resumed=end)
    raise TypeError(
        f"this stream answers {url.path[:80]!r}: only chat completions and Responses are understood. "
        "`PeekableAsyncStream` wraps any other asynchronous stream"
    )


def _hint(given: Any) -> str:
    """How something came instead of a stream."""
    if hasattr(given, "__await__"):
        return "; a coroutine has to be awaited first"
    if hasattr(given, "http_response"):
        return ": leave out `with_raw_response`, the stream itself has the HTTP response as its `response`"
    if hasattr(given, "__aenter__") and not hasattr(given, "__aiter__"):
        return ": pass what `create(stream=True)` returns, not a context manager around it"
    return ""


def _is_loaded(response: Any) -> bool:
    """Whether the whole body is in memory, as a mock's is: it can be read any number of times."""
    try:
        return isinstance(response.content, bytes)
    except RuntimeError:  # httpx's ResponseNotRead
        return False


def _is_exhausted(stream: Any) -> bool:
    """Whether the SDK's iteration, a generator, is over; for a body in memory, which does not show it."""
    iteration = iteration_of(stream)
    frames = [getattr(iteration, name, iteration) for name in ("ag_frame", "gi_frame")]
    return iteration is not None and None in frames


def _body(request: Any) -> Mapping[str, Any] | None:
    try:
        body = from_json(request.content)
    except (RuntimeError, ValueError):  # it was streamed, or is no JSON
        return None
    return cast("Mapping[str, Any]", body) if isinstance(body, dict) else None
