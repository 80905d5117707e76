"""One response's meter: fed with every event, asked for its usage at any time, settled once at the end.

Feeding must cost next to nothing, so it appends a delta's text to a list; all else is worked out when the usage is
read. Nothing here awaits, touches a network or waits for a tokenizer, and nothing raises out of a feed.

The provider's own numbers win, as far as they can be final (`_standing`). Everything else is an estimate,
made when it is asked for, by the room of counting. The request is counted once (`_request`); the answer's estimate
never goes down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Self

from pydantic_ai.messages import (
    ModelMessage,
    ModelResponsePart,
    PartDeltaEvent,
    PartStartEvent,
    ThinkingPartDelta,
    ToolCallPartDelta,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from .. import _tokens
from .._counting import (
    NOTHING,
    Answer,
    Api,
    Count,
    Delivered,
    Prompt,
    as_count,
    count_answer,
    family_of,
    from_chat,
    from_messages,
    from_responses,
)
from ._boundary import attempt, harmless
from ._chunks import Reader
from ._objects import ResponseUsage, fill
from ._record import UsageRecord
from ._reported import NONE, Reported, from_usage
from ._request import Request
from ._stage import Stage, Step, step_of
from ._standing import input_count, output_count, reasoning_count, settles_input

__all__ = ("Meter", "prepare")


def prepare(model: str | None) -> None:
    """Start loading the tokenizer for a model in the background, unless it is loaded. Returns at once.

    The sooner the better: a program that wraps its models before its event loop runs has it loaded by then, and its
    loop never notices.
    """
    _tokens.preload(family_of(model).vocabulary)


_BUILD: Final[Mapping[Api, Callable[[Mapping[str, Any]], Prompt]]] = {
    "openai-chat": from_chat,
    "openai-responses": from_responses,
}


_AT_LIMIT: Final = frozenset({"length"})
"""Why an answer ended that reached the limit of its request, in the chat API's words and in pydantic-ai's."""


class Meter:
    """Counts one response while it streams; not shared between responses.

    `feed_event`, `feed_chunk`, `late`, `lost` and `settle` are for the code that pulls; `usage` may be read from any
    thread.

    Args:
        model: The model's name, which says how its tokens are counted.
        provider: The provider's name, to price them.
        provider_url: The provider's base URL, to price them.
        read: Makes the `Prompt` of what was sent; called at most once, and only if the request has to be estimated.
        api: Which of OpenAI's interfaces the request goes through, if any.
    """

    def __init__(
        self,
        *,
        model: str | None,
        provider: str | None,
        provider_url: str | None,
        read: Callable[[], Prompt] | None = None,
        api: Api | None = None,
    ) -> None:
        self._request = Request(model=model, provider=provider, provider_url=provider_url, read=read, api=api)
        self._seen = Delivered()
        self._text = self._seen.text
        self._reader = Reader(self._seen)
        self._parts: Sequence[ModelResponsePart] = ()
        self._answer: Answer | None = None
        self._answer_at: object = None
        self._reported = NONE
        self._finish_reason: str | None = None
        self._usage = ResponseUsage()
        self._is_late = self._lost = self._settled = False

    @classmethod
    def for_pydantic_ai(
        cls,
        *,
        model_name: str | None,
        provider_name: str | None,
        provider_url: str | None,
        messages: Sequence[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        api: Api | None = None,
    ) -> Self:
        """A meter for a request of pydantic-ai; keeps references, and counts the request only if it has to."""
        read = partial(from_messages, messages, model_settings, model_request_parameters)
        return cls(model=model_name, provider=provider_name, provider_url=provider_url, read=read, api=api)

    @classmethod
    def for_openai(
        cls, request: Mapping[str, Any] | None, *, api: Api, model: str | None = None, url: str | None = None
    ) -> Self:
        """A meter for a raw OpenAI request body; without one the request's own size stays unknown."""
        if model is None and request is not None and isinstance(name := request.get("model"), str):
            model = name
        read = None if request is None else partial(_BUILD[api], request)
        return cls(model=model, provider=None, provider_url=url, read=read, api=api)

    # --- the request ------------------------------------------------------------------------------------------

    def sent(self) -> None:
        """The request goes out: from here on it counts, and a tokenizer is loaded, unless one is, in the background."""
        self._request.apply(Step.SEND)
        prepare(self._request.model)

    def opened(self) -> None:
        """The provider accepted the request."""
        self._request.apply(Step.OPEN)

    @harmless
    def failed(self, error: BaseException, *, cut: bool = False) -> None:
        """Note the error that came instead of an answer; one that comes after the provider accepted changes nothing.

        Args:
            error: The error, which says whether the request was refused.
            cut: Whether the stream was stopped before: a connection that breaks then was broken by us.
        """
        step = step_of(error)
        if not (cut and step is Step.LOSE):
            self._request.apply(step)

    @harmless
    def served(self, *, model: str | None, provider: str | None, provider_url: str | None, api: Api | None) -> None:
        """Note who answers, as the open stream says: a fallback or a deployment is known only then.

        Args:
            model: The model's name, which some streams only learn from their chunks.
            provider: The provider's name.
            provider_url: The provider's base URL.
            api: Which of OpenAI's interfaces the answer comes through, if that is known.
        """
        self._request.served(model=model, provider=provider, provider_url=provider_url, api=api)

    @harmless
    def asked(self, request: Mapping[str, Any], *, api: Api, model: str | None, url: str | None) -> None:
        """Note the request's body as it was sent, in place of what was thought to be sent."""
        self._request.asked(partial(_BUILD[api], request), api=api, model=model, url=url)

    # --- feeding ----------------------------------------------------------------------------------------------

    def feed_event(self, event: Any) -> None:
        """Count what one pydantic-ai stream event carries."""
        # Asked for by name, which is faster than asking for a type: this is what happens for every token.
        try:
            delta = event.delta
            if delta.part_delta_kind == "text":
                if delta.content_delta:
                    self._text.append(delta.content_delta)
                elif delta.citations_delta:
                    self._seen.cited.add(event.index)
                return
        except AttributeError:
            pass
        self._feed_rest(event)

    def _feed_rest(self, event: object) -> None:
        # Apart, since a function that makes a closure of its arguments reads each of them more slowly.
        if not attempt(lambda: self._feed_other(event), otherwise=False):
            self._lost = True

    def _feed_other(self, event: object) -> bool:
        if isinstance(event, PartStartEvent):
            self._seen.part(event.index, event.part)
        elif isinstance(event, PartDeltaEvent):
            delta = event.delta
            if isinstance(delta, ToolCallPartDelta):
                self._seen.call(event.index, delta.tool_name_delta, delta.args_delta)
            elif isinstance(delta, ThinkingPartDelta):
                if delta.content_delta:
                    self._seen.thinking.append(delta.content_delta)
                elif delta.signature_delta and not self._seen.thinking:
                    self._seen.sealed = True
        return True

    def feed_chunk(self, chunk: object) -> None:
        """Count what one raw chunk or event of OpenAI's SDK carries, as an object or as a `dict`."""
        attempt(lambda: self._reader.read(chunk), None)

    def feed_first(self, chunk: object) -> Callable[[str], object]:
        """Count a raw chunk, and return what counts the text of each later chunk that does nothing but carry it on."""
        before = self._seen.sizes()
        self.feed_chunk(chunk)
        return self._seen.grown(before)

    @harmless
    def late(self, items: Iterable[object]) -> None:
        """Count what had arrived when the stream was cancelled but was never handed out: events or raw chunks."""
        for item in items:
            self._is_late = True
            if isinstance(item, PartDeltaEvent | PartStartEvent):
                self.feed_event(item)
            else:
                self.feed_chunk(item)

    def lost(self) -> None:
        """Closing threw away data that had arrived: more arrived than was counted, by an unknown amount."""
        self._lost = True

    @harmless
    def observe(
        self, *, reported: RequestUsage | Reported | None, finish_reason: str | None = None, ended: bool = False
    ) -> None:
        """Note the wrapped stream's own usage as it stands now, for a read of `usage` before the end.

        Args:
            reported: The usage of the wrapped stream, whatever it holds: what was not reported is told apart here. Or
                the parts that the meter of a wrapper inside has told apart.
            finish_reason: The provider's, where one came: what was reported with it is final.
            ended: Whether the answer is whole.
        """
        if not self._settled:
            known = reported if isinstance(reported, Reported) else from_usage(reported)
            self._reported, self._finish_reason = known, finish_reason
            if ended:
                self._request.apply(Step.END)

    def settle(
        self,
        *,
        parts: Sequence[ModelResponsePart] = (),
        reported: RequestUsage | Reported | None = None,
        ended: bool,
        finish_reason: str | None = None,
    ) -> None:
        """The stream is over: bring the usage to its final state. Only the first call counts.

        Args:
            parts: What was delivered, in whole parts: less to put together than its deltas.
            reported: As for `observe()`; `None` for a raw stream, whose chunks have said it.
            ended: As for `observe()`.
            finish_reason: As for `observe()`.
        """
        if self._settled:
            return
        self.observe(reported=reported, finish_reason=finish_reason, ended=ended)
        self._parts = parts
        _ = self.usage
        self._settled = True
        # The pieces were kept for counting only, which is done.
        self._seen, self._text, self._parts = Delivered(), [], ()
        self._request.forget()
        self._reader.seen = self._seen

    # --- reading ----------------------------------------------------------------------------------------------

    @property
    def usage(self) -> ResponseUsage:
        """The usage so far: one object for the life of the meter, brought up to date on each read."""
        if not self._settled:
            self._request.told = self._reader.model
            reported = self.reported
            record = attempt(lambda: self._record(reported), None) or self._bounds()
            fill(self._usage, record, reported, sent=not self._request.is_nothing)
        return self._usage

    def usage_in_message(self, plain: RequestUsage | None) -> ResponseUsage:
        """The usage for a message that is made of this response now.

        Args:
            plain: pydantic-ai's own usage of it, or `None` if the response was cut, whose messages have `usage`.
        """
        if plain is None or self._settled:
            return self.usage._for_message(plain)
        # Nothing is estimated here: pydantic-ai makes such a message of every event, for its limits.
        asked = Count.unknown(as_count(plain.input_tokens) or 0)
        answered = Count.unknown(0 if self._opens_with_placeholder() else as_count(plain.output_tokens) or 0)
        record = UsageRecord(asked, answered, Count.unknown(), Count.unknown(), **self._request.names())
        return self._usage._for_message(plain, record)

    @property
    def text(self) -> str:
        """The text that was counted so far; empty once the usage is settled."""
        return "".join(piece for piece in self._text if isinstance(piece, str))  # pyright: ignore[reportUnnecessaryIsInstance]

    @property
    def reported(self) -> Reported:
        """The usage that the provider reported: through the wrapped stream, or in the raw chunks."""
        return self._reader.reported if self._reported is NONE else self._reported

    def _bounds(self) -> UsageRecord:
        """The lower bound of an answer that cannot be counted: each delta was a token at least."""
        unknown = Count.unknown()
        least = Count.unknown(self._seen.deltas)
        return UsageRecord(unknown, least, unknown, unknown, complete=self._request.stage is Stage.ENDED)

    def _record(self, reported: Reported) -> UsageRecord:
        if self._request.is_nothing:
            return UsageRecord(NOTHING, NOTHING, NOTHING, NOTHING)
        if self._request.stage is Stage.LOST:
            unknown = Count.unknown()
            return UsageRecord(unknown, unknown, unknown, unknown, **self._request.names())
        family, final = self._request.family, self._is_final(reported)
        settled = settles_input(reported, family=family, prompt=self._request.prompt, final=final)
        asked = input_count(reported, self._request.count, family=family, settled=settled)
        known = NONE if self._opens_with_placeholder() and not final else reported
        output = output_count(known, lambda: self._estimate().output, final=final, covers=self._covers(reported))
        whole = output.source == "reported"
        if whole or known.beside:
            reasoning, hidden = reasoning_count(reported, output, shown=bool(self._seen.thinking)), False
        else:
            reasoning, hidden = self._estimate().reasoning, self._estimate().hidden
        if reported.cached is not None and settled:
            cached = Count.reported(reported.cached)
        else:
            cached = Count.unknown(0, asked.high)
        return UsageRecord(
            asked,
            output,
            cached,
            reasoning,
            complete=self._request.stage is Stage.ENDED,
            hidden_reasoning=hidden,
            others=tuple((name, amount) for name, amount in reported.others if amount),
            cost=reported.cost if settled and whole else None,
            **self._request.names(),
        )

    def _is_final(self, reported: Reported) -> bool:
        """Whether the reported usage came with the end of the answer, or after it."""
        if self._request.stage is Stage.ENDED:
            return True
        return self._reader.is_final if reported is self._reader.reported else self._finish_reason is not None

    def _covers(self, reported: Reported) -> bool:
        """Whether no delta came after this usage; of a wrapped stream's usage only the number of deltas can tell."""
        deltas = self._seen.deltas
        if reported is self._reader.reported and self._reader.reported_at != deltas:
            return False
        return (reported.output or 0) >= deltas

    def _said_all(self) -> bool:
        """Whether the model came to the end of its answer, even if the stream did not."""
        return self._request.stage is Stage.ENDED or self._why_ended() is not None

    def _why_ended(self) -> str | None:
        """Why the answer ended, once the provider said so."""
        return self._finish_reason or self._reader.finish_reason

    def _opens_with_placeholder(self) -> bool:
        """Whether an early output count is none: Anthropic's means nothing until the finish reason comes."""
        return self._request.provider == "anthropic" or self._request.family.is_claude

    def _estimate(self) -> Answer:
        """The answer, estimated again if more of it has arrived."""
        seen, family, thinking, ended = self._seen, self._request.family, self._reader.thinking, self._said_all()
        deltas = seen.deltas
        at_limit = self._why_ended() in _AT_LIMIT
        found = (deltas, len(seen.calls), len(seen.natives), len(seen.cited), seen.sealed)
        state = (*found, family.name, thinking, ended, at_limit, self._lost)
        if self._answer is None or state != self._answer_at:
            prompt = self._request.prompt()
            count = partial(
                count_answer,
                deltas=deltas,
                family=family,
                prompt=prompt,
                api=self._request.api,
                thinking=thinking,
                ended=ended,
                at_limit=at_limit,
                lost=self._lost,
            )
            arrived = seen if self._is_late or not self._parts else seen.in_whole_parts(self._parts)
            limit = None if prompt is None else prompt.limit
            unknown = Answer(Count.unknown(deltas, limit), Count.unknown(0, limit), hidden=False)
            answer = attempt(lambda: count(arrived), unknown)
            self._answer = answer if self._answer is None else answer.not_below(self._answer)
            self._answer_at = state
        return self._answer
