"""What differs from pydantic-ai without a stop, by design: the guide says each of these (docs/drop-in.md)."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai import Agent, RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models import Model, ModelRequestContext, ModelResolutionContext
from pydantic_ai.models.instrumented import InstrumentedModel
from pydantic_ai.models.test import TestModel

from cancelstream import Cancellable, CancellableModel


class Looking(AbstractCapability[Any]):
    """Looks at the model of each request when it has been answered."""

    def __init__(self) -> None:
        self.seen: list[object] = []

    async def after_model_request(
        self, ctx: RunContext[Any], *, request_context: ModelRequestContext, response: ModelResponse
    ) -> ModelResponse:
        self.seen.append(request_context.model)
        return response


async def test_a_hook_sees_the_wrapper():
    """It has the attributes of the model, which is its `wrapped`."""
    model, looking = TestModel(), Looking()
    await Agent(model, capabilities=[looking, Cancellable()]).run("go")
    (seen,) = looking.seen
    assert isinstance(seen, CancellableModel)
    assert seen.wrapped is model
    assert seen.custom_output_text == model.custom_output_text


class Resolving(AbstractCapability[Any]):
    """Names a model, and counts how often the name is resolved."""

    calls = 0

    def get_model(self) -> str:
        return "some:model"

    async def resolve_model_id(self, ctx: ModelResolutionContext[Any], *, model_id: str) -> Model | None:
        self.calls += 1
        return TestModel()


class OfEachRun(AbstractCapability[Any]):
    """Has another instance for each run, as `Cancellable` has."""

    async def for_run(self, ctx: RunContext[Any]) -> AbstractCapability[Any]:
        return OfEachRun()


@pytest.mark.parametrize(("more", "calls"), [([], 1), ([OfEachRun()], 2), ([Cancellable()], 2)])
async def test_a_name_that_a_capability_gives_is_resolved_twice(more: list[Any], calls: int):
    """pydantic-ai does so for any capability whose `for_run` returns a new instance."""
    resolving = Resolving()
    await Agent(capabilities=[resolving, *more]).run("go")
    assert resolving.calls == calls


@pytest.mark.parametrize(
    ("more", "kind"), [([], TestModel), ([OfEachRun()], InstrumentedModel), ([Cancellable()], InstrumentedModel)]
)
async def test_the_model_that_a_tool_sees(more: list[Any], kind: type[Model]):
    """So it is with the `InstrumentedModel` that pydantic-ai takes the agent's model out of."""
    seen: list[object] = []
    agent = Agent(InstrumentedModel(TestModel()), capabilities=more)

    @agent.tool
    def look(ctx: RunContext[None]) -> str:
        seen.append(ctx.model)
        return "seen"

    await agent.run("go")
    assert [type(model) for model in seen] == [kind]
