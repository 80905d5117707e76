"""pydantic-ai's own reading of an openai stream, without a stream: chunks are pushed in, events come out.

pydantic-ai maps chunks to events in an asynchronous generator that pulls from the SDK's stream. Here it pulls from a
queue, and we drive it by hand: when the queue is empty it suspends, and `send(None)` goes on with it once there is
more. It awaits nothing else, so no event loop takes part, and the same mapping serves async and blocking clients, and
a message that is put together long after its chunks were handed out.

Known limits: pydantic-ai's two response classes are made directly, by their private fields
(`_upstream/pydantic_ai_streams.py`).
"""

from __future__ import annotations

import sys
import types
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final, Self, cast

from openai.types import responses
from pydantic_ai.messages import ModelResponse, ModelResponseStreamEvent
from pydantic_ai.models import StreamedResponse
from pydantic_ai.models.openai import OpenAIResponsesStreamedResponse, OpenAIStreamedResponse

from .._tokens import well_formed
from .._upstream.pydantic_ai_streams import details_of, name_model, openai_response

__all__ = ("Mapping",)

_DRY: Final = object()


class _Closed(BaseException):
    """Thrown into a mapping that is closed; not `GeneratorExit`, which does not reach generators inside a generator."""


class Mapping:
    """One stream's events, made of its chunks.

    Args:
        responses_api: Whether they are events of the Responses API, and not chat completion chunks.
        model: The model that was asked, for as long as no chunk names another.
        resumed: Whether a background response is taken up again, so that its beginning will not come.
        provider_url: The provider's base URL.

    Attributes:
        response: pydantic-ai's response: what the chunks so far amount to.
        error: What the mapping raised, or `None`; it is over then.
    """

    def __init__(self, *, responses_api: bool, resumed: bool, model: str, provider_url: str) -> None:
        self._queue = _Queue()
        self.response: StreamedResponse = openai_response(
            _Responses if responses_api else _Chat,
            source=self._queue,
            model=model,
            provider_name=_provider(provider_url),
            provider_url=provider_url,
        )
        if resumed:
            self.response.state = "suspended"
            self.response.provider_details = {"background": True}
        self.error: Exception | None = None
        self._iterator: Any = None
        self._step: Any = None
        self._over = False

    def feed(self, chunk: Any) -> None:
        """Take a chunk, an SDK object; `events()` has to be read before the next one."""
        if self._iterator is None and isinstance(chunk, responses.ResponseCreatedEvent):
            # pydantic-ai's model looks at the first event before it makes the response.
            name_model(self.response, chunk.response.model)
        self._queue.chunks.append(chunk)

    def end(self) -> None:
        """The stream came to its natural end; `events()` has what follows from that."""
        self._queue.ended = True

    def close(self) -> None:
        """Nothing follows. Its iteration refers to `response`, and `response` to it: unwind it to its end."""
        self._over = True
        step, self._step = self._step, None
        iterator, self._iterator = self._iterator, None
        with suppress(BaseException):
            if step is not None:
                step.throw(_Closed())
            elif iterator is not None:
                iterator.aclose().send(None)

    def events(self) -> Iterator[ModelResponseStreamEvent]:
        """The events of what was fed; nothing is mapped before it is asked for.

        Raises:
            Exception: The provider reports an error in a chunk; in pydantic-ai's words. Once, and kept in `error`.
        """
        while not self._over:
            if self._step is None:
                with _unnoticed():
                    self._iterator = self._iterator or aiter(self.response)
                    self._step = self._iterator.__anext__()
                    event = self._go_on()
            else:
                event = self._go_on()
            if event is _DRY:
                return
            yield event

    def _go_on(self) -> Any:
        try:
            self._step.send(None)
        except StopIteration as done:
            self._step = None
            return done.value
        except StopAsyncIteration:
            self._over = True
        except Exception as error:
            self._over = True
            self.error = error
            raise
        return _DRY


class _Queue:
    """The stand-in that pydantic-ai's response reads as the SDK's stream."""

    def __init__(self) -> None:
        self.chunks: deque[Any] = deque()
        self.ended = False

    def __aiter__(self) -> Self:
        return self

    @types.coroutine
    def __anext__(self) -> Generator[None, None, Any]:
        while not self.chunks:
            if self.ended:
                raise StopAsyncIteration
            yield
        return self.chunks.popleft()


@contextmanager
def _unnoticed() -> Generator[None]:
    """Keep the event loop from looking after generators that begin here: only we drive and close them."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*hooks)


class _Chat(OpenAIStreamedResponse):
    def get(self) -> ModelResponse:
        return _with_details(super().get(), details_of(self))


class _Responses(OpenAIResponsesStreamedResponse):
    def get(self) -> ModelResponse:
        return _with_details(super().get(), details_of(self))


def _with_details(response: ModelResponse, details: dict[str, Any]) -> ModelResponse:
    """Add what pydantic-ai adds when a stream has ended, for one that was cut; and make its text well-formed."""
    response.parts = [_well_formed(part) for part in response.parts]
    kept = {name: value for name, value in details.items() if value}
    if kept:
        response.provider_details = {**(response.provider_details or {}), **kept}
    return response


def _well_formed(part: Any) -> Any:
    """The part with texts that can be stored and sent; itself, if they are so already."""
    fields = cast("dict[str, Any]", vars(part))
    texts = {name: text for name, text in fields.items() if isinstance(text, str)}
    changed = {name: whole for name, text in texts.items() if (whole := well_formed(text)) is not text}
    return replace(part, **changed) if changed else part


def _provider(url: str) -> str:
    """The provider's name as pydantic-ai has it for a client of that base URL."""
    return "azure" if ".azure.com" in url else "openai"
