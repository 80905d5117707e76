"""Names of its streams that pydantic-ai keeps private.

Reading a stream directly. pydantic-ai's model classes read their SDK's stream through a wrapper that enters a cancel
scope and takes a lock for every chunk, so that closing can interrupt a pull and wait for it. Here both are done
already, around the whole stream (`_peekable`), at a fraction of the cost: a run of cancelstream takes less time for a
chunk than pydantic-ai's own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final, TypeVar

from pydantic_ai import _utils
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models.openai import OpenAIResponsesStreamedResponse
from pydantic_ai.usage import RequestUsage

from . import missing

__all__ = (
    "details_of",
    "enforce_deadline",
    "http_response_of",
    "keep_timing",
    "name_model",
    "openai_response",
    "other_iterator_of",
    "read_directly",
    "reported_by",
)

_LIBRARY: Final = "pydantic-ai-slim"
_GONE: Final[Any] = object()

_Wrapper: Any = getattr(_utils, "PeekableAsyncStream", object)
_EMPTY: Any = getattr(_utils, "UNSET", None)
_NEEDED: Final = ("_source_iter", "_buffer", "_exhausted")

ResponseT = TypeVar("ResponseT", bound=StreamedResponse)


# --- any stream -------------------------------------------------------------------------------------------------------


class _Direct(_Wrapper):  # type: ignore[misc]
    """pydantic-ai's wrapper, which pulls without a scope and a lock once its iteration has begun."""

    _source_iter: AsyncIterator[Any] | None
    _buffer: Any
    _exhausted: bool

    async def __anext__(self) -> Any:
        if self._exhausted or self._buffer is not _EMPTY or self._source_iter is None:
            return await _Wrapper.__anext__(self)
        try:
            return await self._source_iter.__anext__()
        except StopAsyncIteration:
            self._exhausted = True
            raise


def read_directly(inner: StreamedResponse) -> None:
    """Have an open stream, which is not iterated yet, pull its chunks directly, if it is of a kind that can.

    Where the wrapper does not look as expected nothing is done: every chunk costs pydantic-ai's scope and lock.
    """
    if _Wrapper is object:
        missing(_LIBRARY, "PeekableAsyncStream", "a chunk costs more")
    wrapper: Any = getattr(inner, "_response", None)
    if wrapper is None or type(wrapper) is not _Wrapper:
        return
    if all(hasattr(wrapper, name) for name in _NEEDED):
        wrapper.__class__ = _Direct
    else:
        missing(_LIBRARY, f"PeekableAsyncStream.{'/'.join(_NEEDED)}", "a chunk costs more")


def http_response_of(inner: StreamedResponse | None) -> Any:
    """The HTTP response, where the stream's class keeps it as those for OpenAI and Anthropic do.

    Of another class, or without `_response` and the wrapper's `source`, it is `None`: the stream is closed without an
    HTTP/2 reset, as a provider's whose response is out of reach.
    """
    stream = getattr(inner, "_response", None)
    return getattr(getattr(stream, "source", stream), "response", None)


def other_iterator_of(response: StreamedResponse) -> AsyncIterator[ModelResponseStreamEvent] | None:
    """The iterator that a fallback has put in place of a stream's own: it gives the event again that was looked at.

    Without `_event_iterator` there is none, and that first event is not given again.
    """
    iterator = getattr(response, "_event_iterator", _GONE)
    if iterator is _GONE:
        missing(_LIBRARY, "StreamedResponse._event_iterator", "the first event after a fallback is not given again")
        return None
    found: AsyncIterator[ModelResponseStreamEvent] | None = iterator
    return found


def enforce_deadline(inner: StreamedResponse, deadline: Any) -> None:
    """Have pydantic-ai's deadline hold for each pull of an open stream that is not iterated yet.

    Without `_enforce_request_deadline` the deadline holds until the stream is open.
    """
    enforce = getattr(inner, "_enforce_request_deadline", None)
    if enforce is None:
        missing(_LIBRARY, "StreamedResponse._enforce_request_deadline", "a timeout ends when the stream is open")
        return
    enforce(deadline)


def keep_timing(cls: type[StreamedResponse], *, first_chunk_at: object, deadline: object) -> None:
    """Have a class of cancelstream keep what pydantic-ai notes on its streams elsewhere.

    Where pydantic-ai has renamed `_first_chunk_monotonic` or `_request_deadline`, it notes them on the stream itself:
    a `CancellableModel` then loses the time to the first chunk, and holds the deadline until the stream is open.

    Args:
        cls: The class.
        first_chunk_at: A descriptor of when the first item came, by `time.perf_counter()`.
        deadline: A descriptor of pydantic-ai's deadline for each pull.
    """
    for name, descriptor in (("_first_chunk_monotonic", first_chunk_at), ("_request_deadline", deadline)):
        if not hasattr(StreamedResponse, name):
            missing(_LIBRARY, f"StreamedResponse.{name}", "the time to the first chunk or a timeout is not kept")
        setattr(cls, name, descriptor)


def reported_by(inner: StreamedResponse) -> RequestUsage | None:
    """The usage that the provider has reported so far, `None` if the stream says that there was no report.

    Without `_usage_received` a stream is one that does not keep track; without `_usage` it is the stream's public
    usage, in which pydantic-ai may have counted a request that reported nothing.
    """
    # False is a stream that would have said so, None one that does not keep track.
    if getattr(inner, "_usage_received", None) is False:
        return None
    usage = getattr(inner, "_usage", _GONE)
    if usage is _GONE:
        missing(_LIBRARY, "StreamedResponse._usage", "a request that reported no usage may be counted as one that did")
        usage = inner.usage
    found: RequestUsage = usage
    return found


# --- openai's streams -------------------------------------------------------------------------------------------------


def openai_response(
    kind: type[ResponseT], *, source: Any, model: str, provider_name: str, provider_url: str
) -> ResponseT:
    """Make a response of pydantic-ai's for openai, which maps the chunks of `source`.

    It is made when a stream of openai's is taken up, before anything is read.

    Args:
        kind: `OpenAIStreamedResponse`, `OpenAIResponsesStreamedResponse`, or a subclass.
        source: What is iterated for the SDK's chunks.
        model: The model that was asked.
        provider_name: As pydantic-ai names it.
        provider_url: The base URL.

    Raises:
        TypeError: If pydantic-ai has renamed the fields that it makes one of.
    """
    fields: dict[str, Any] = {
        "model_request_parameters": ModelRequestParameters(),
        "_model_name": model,
        "_response": source,
        "_provider_name": provider_name,
        "_model_id_namespace": "openai",
        "_provider_url": provider_url,
    }
    if issubclass(kind, OpenAIResponsesStreamedResponse):
        fields["_model_settings"] = {}
        fields["_tool_call_ids_are_response_scoped"] = False
        fields["_process_provider_details"] = _no_details
    else:
        fields["_model_profile"] = {}
        # A chunk reports the total so far: never add it up.
        fields["_model_settings"] = {"openai_continuous_usage_stats": True}
    try:
        response: ResponseT = kind(**fields)
    except TypeError as error:
        missing(_LIBRARY, f"{kind.__name__} of the fields that were known", "no stream of openai's can be read")
        raise TypeError(
            f"pydantic-ai makes an {kind.__name__} of other fields than it did, so a stream of openai's cannot be "
            "read: install a version of pydantic-ai that cancelstream was tested with"
        ) from error
    response.canonical_system = provider_name
    return response


def _no_details(_: object) -> None:
    """The additions of pydantic-ai's own model to a response; there is no model here."""


def name_model(response: StreamedResponse, model: str) -> None:
    """Say which model answers, once the first event has said so.

    Where pydantic-ai keeps `_model_name` under another name, the response goes on to name the model that was asked.
    """
    named: Any = response
    named._model_name = model


def details_of(response: StreamedResponse) -> dict[str, Any]:
    """The details that pydantic-ai adds to a message only when its stream has ended: a refusal, and probabilities.

    Without `_refusal_text` and `_logprobs` a message that was cut has none of it.
    """
    refusal = getattr(response, "_refusal_text", _GONE)
    if refusal is _GONE:
        missing(_LIBRARY, "OpenAIStreamedResponse._refusal_text", "a refusal that was cut is no detail of its message")
        refusal = None
    return {"refusal": refusal, "logprobs": getattr(response, "_logprobs", None)}
