"""Models of every kind answer as they do in pydantic-ai's own runs: the same requests, errors and spans."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError, UserError
from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent, TextPart
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.instrumented import InstrumentationSettings, InstrumentedModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.settings import ModelSettings

from .doors import EVENT_DOORS, STREAM_DOORS, Open, capable_agent, plain_agent

ALL_DOORS = [
    *(pytest.param(door, id=f"answer-{name}") for name, door in STREAM_DOORS.items()),
    *(pytest.param(door, id=f"events-{name}") for name, door in EVENT_DOORS.items()),
]


async def read(opened: Any) -> list[ModelMessage]:
    """Read a run to its end, whichever door it came through."""
    async with opened as run:
        if hasattr(run, "get_output"):
            await run.get_output()
        else:
            async for _ in run:
                pass
        return run.all_messages()


class Whole(Model):
    """A model that has only `request()`."""

    @property
    def model_name(self) -> str:
        return "whole"

    @property
    def system(self) -> str:
        return "test"

    async def request(self, *_: Any) -> ModelResponse:
        return ModelResponse(parts=[TextPart("hello")])


@pytest.mark.parametrize("door", ALL_DOORS)
async def test_a_model_that_cannot_stream(door: Open):
    """The error is pydantic-ai's own, which says what to implement."""
    with pytest.raises(UserError, match="Whole does not support streamed requests"):
        await read(door(Whole()))


@pytest.mark.parametrize("agent", [plain_agent, capable_agent])
async def test_a_model_that_cannot_stream_in_a_run_that_does_not(agent: Callable[[Model], Agent[None, Any]]):
    """`agent.run()` needs no streaming, with the capability neither."""
    assert (await agent(Whole()).run("go")).output == "hello"


@dataclass
class Part(StreamedResponse):
    """One part of an answer that is given in several."""

    last: bool = False
    model_name = "job"
    provider_name = "test"
    provider_url = "test"
    timestamp = datetime(2026, 1, 1, tzinfo=UTC)

    def __post_init__(self) -> None:
        self.provider_response_id = "job-1"
        self.state = "complete" if self.last else "suspended"

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        for event in self._parts_manager.handle_text_delta(vendor_part_id=0, content="part"):
            yield event

    async def close_stream(self) -> None:
        pass


@dataclass
class Parts(Whole):
    """A model whose answer is the job of a provider, in three parts; or one that is down."""

    down: bool = False
    asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def model_name(self) -> str:
        return "down" if self.down else "job"

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncIterator[StreamedResponse]:
        self.asked += 1
        if self.down:
            raise ModelHTTPError(500, "down", "down")
        yield Part(model_request_parameters, last=self.asked == 3)

    def continuation_delay(self, response: ModelResponse) -> float:
        return 0


@pytest.mark.parametrize("door", ALL_DOORS)
async def test_a_fallback_stays_with_the_model_that_answers(door: Open):
    """An answer in several parts is asked of the model that began it; the one that is down is asked once."""
    down, parts = Parts(down=True), Parts()
    messages = await read(door(FallbackModel(down, parts)))
    assert (down.asked, parts.asked) == (1, 3)
    assert isinstance(messages[-1], ModelResponse)
    assert messages[-1].state == "complete"


@dataclass
class Traced:
    """Spans as a tracing tool sees them."""

    exporter: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)

    def __post_init__(self) -> None:
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.settings = InstrumentationSettings(tracer_provider=provider)

    def spans(self) -> list[tuple[str, str | None, list[str]]]:
        """Of each span its name, the name of the one that it is in, and which attributes it has."""
        finished = self.exporter.get_finished_spans()
        names = {span.context.span_id: span.name for span in finished}
        ours = "cancelstream.usage.provenance"
        return [
            (span.name, span.parent and names[span.parent.span_id], sorted({*(span.attributes or {})} - {ours}))
            for span in finished
        ]


INSTRUMENTED: dict[str, Callable[[InstrumentationSettings], tuple[Model, dict[str, Any]]]] = {
    "model": lambda settings: (InstrumentedModel(TestModel(), settings), {}),
    "agent": lambda settings: (TestModel(), {"instrument": settings}),
    "both": lambda settings: (InstrumentedModel(TestModel(), settings), {"instrument": settings}),
    "inside a fallback": lambda settings: (FallbackModel(InstrumentedModel(TestModel(), settings), TestModel()), {}),
}


@pytest.mark.parametrize("how", INSTRUMENTED)
@pytest.mark.parametrize("kind", [STREAM_DOORS, EVENT_DOORS], ids=["answer", "events"])
async def test_spans(kind: dict[str, Open], how: str):
    """A request has the spans that it has without us, with the same attributes, wherever the tracing is asked for."""
    seen: dict[str, Any] = {}
    for name, door in kind.items():
        tracing = Traced()
        model, kwargs = INSTRUMENTED[how](tracing.settings)
        await read(door(model, **kwargs))
        seen[name] = tracing.spans()
    plain, *others = seen.values()
    assert plain
    assert others == [plain, plain]


@pytest.mark.parametrize("how", INSTRUMENTED)
async def test_spans_of_a_run_that_does_not_stream(how: str):
    """So it is in `agent.run()` with the capability."""
    seen: list[Any] = []
    for make in (plain_agent, capable_agent):
        tracing = Traced()
        model, kwargs = INSTRUMENTED[how](tracing.settings)
        await make(model, **kwargs).run("go")
        seen.append(tracing.spans())
    assert seen[0] == seen[1]
