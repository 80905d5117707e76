"""openai's SDK: what it keeps private and this package needs."""

from __future__ import annotations

from functools import partial
from types import AsyncGeneratorType, FunctionType, GeneratorType
from typing import Any, Final

import openai
from openai import _streaming

from . import missing

__all__ = ("builder_of", "client_behind", "client_of", "iteration_of", "reads_as_written")

_ITERATION: Final = ("__iter__", "__next__", "__aiter__", "__anext__", "__stream__", "_iter_events")
"""The methods of a stream that its chunks pass through."""

_READS: Final = ("aiter_bytes", "aiter_raw", "iter_bytes", "iter_raw")
"""The methods of an HTTP response that a stream's bytes come from."""

_GONE: Final[Any] = object()

_OWN: Final[dict[type[Any], dict[str, Any]]] = {
    kind: {name: vars(kind)[name] for name in _ITERATION if name in vars(kind)}
    for kind in (openai.AsyncStream, openai.Stream)
}
"""These methods as they were when this module was imported."""


def reads_as_written(stream: Any) -> bool:
    """Whether a stream that nothing was read from yet would be read by the SDK's own code and by nothing else.

    Tracing libraries look into a stream in one of four ways: they replace its `_iterator` (Sentry, Langfuse, MLflow),
    patch a method of its class (New Relic), return a subclass, or a proxy of it. Reading past them would leave their
    spans empty. Where a name of the SDK's is gone the answer is false: the stream is read by the SDK, which costs more.
    """
    kind = _class_of(stream)
    own = _OWN.get(kind)
    if own is None:
        return False
    if "__stream__" not in own or not hasattr(stream, "_iterator"):
        missing("openai", f"{kind.__name__}._iterator", "its streams are read by the SDK, which costs more")
        return False
    return (
        all(kind.__dict__.get(name) is method and _is_the_sdks(method) for name, method in own.items())
        and not any(name in vars(stream) for name in _ITERATION)
        and _is_untouched(stream._iterator, stream, own["__stream__"])
        and type(getattr(stream, "_decoder", None)).__module__ == _streaming.__name__
        and _reads_bytes_as_written(stream.response)
    )


def _class_of(stream: object) -> Any:
    return type(stream)


def builder_of(stream: Any) -> partial[Any] | None:
    """The function by which the SDK makes its object of a decoded chunk; called with `data=chunk`.

    `None` if the SDK does more than that: an option of the stream or of its client says so. `None`, too, where one of
    the names is gone: the stream is read by the SDK then, which costs more.

    Args:
        stream: An `AsyncStream` or a `Stream`, of the SDK's own class.
    """
    try:
        options, client = stream._options, stream._client
        build = partial(client._process_response_data, cast_to=stream._cast_to, response=stream.response)
        is_plain = (
            getattr(options, "stream_mode", "legacy") == "legacy"  # older versions have no other
            and (options is None or not options.synthesize_event_and_data)
            and not client._strict_response_validation
        )
    except AttributeError as error:
        if type(error.obj).__module__.partition(".")[0] == "openai":  # and no stand-in for a client
            missing("openai", str(error.name), "its streams are read by the SDK, which costs more")
        return None
    return build if is_plain else None


def client_behind(method: object) -> Any:
    """The client whose method this is, such as `client.chat.completions.create`.

    Of another function, or without a resource's `_client`, it is `None`: what was asked is read once there is a stream.
    """
    return getattr(getattr(method, "__self__", None), "_client", None)


def client_of(stream: Any) -> Any:
    """The client that made the stream.

    Without `_client` it is `None`, and a background response that is stopped goes on at the provider.
    """
    client = getattr(stream, "_client", _GONE)
    if client is not _GONE:
        return client
    if type(stream) in _OWN:
        missing("openai", f"{type(stream).__name__}._client", "a background response that is stopped goes on")
    return None


def iteration_of(stream: Any) -> Any:
    """Return the source of a stream's chunks, the SDK's generator or its replacement; `None` if the name is gone.

    It refers to the stream, and the stream to it, so it has to be closed with the stream.
    """
    return getattr(stream, "_iterator", None)


def _is_the_sdks(method: object) -> bool:
    """Whether a function was written in the SDK's module: a wrapper around it says so, and has its own globals."""
    return type(method) is FunctionType and method.__globals__.get("__name__") == _streaming.__name__


def _is_untouched(iteration: object, stream: object, method: Any) -> bool:
    """Whether this is what `method` returned for the stream, and has not begun."""
    code = getattr(method, "__code__", None)
    if type(iteration) is AsyncGeneratorType:
        frame, written = iteration.ag_frame, iteration.ag_code
    elif type(iteration) is GeneratorType:
        frame, written = iteration.gi_frame, iteration.gi_code
    else:
        return False
    # Its code sets further variables as soon as it begins.
    return written is code and frame is not None and [*frame.f_locals.items()] == [("self", stream)]


def _reads_bytes_as_written(response: Any) -> bool:
    """Whether a response is httpx's own, and no other library has replaced the way to read it."""
    module: str = type(response).__module__
    is_httpx = module.partition(".")[0] in ("httpx", "httpx2")
    return is_httpx and not any(name in vars(response) for name in _READS)
