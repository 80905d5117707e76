"""The guard in the runs of pydantic-ai's UI adapters: the page gets their error event, the model nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic_ai import Agent, ModelMessage

from cancelstream._model import Cancellable

from .test_history_guard import Model, every_cut, model

pytest.importorskip("starlette")
ag_ui_core = pytest.importorskip("ag_ui.core")

from pydantic_ai.ui.ag_ui import AGUIAdapter  # noqa: E402
from pydantic_ai.ui.vercel_ai import VercelAIAdapter  # noqa: E402
from pydantic_ai.ui.vercel_ai.request_types import SubmitMessage, TextUIPart, UIMessage  # noqa: E402

__all__ = ("model",)  # a fixture


async def vercel(agent: Agent[None, str], history: list[ModelMessage]) -> list[str]:
    message = UIMessage(id="m", role="user", parts=[TextUIPart(text="go on")])
    adapter = VercelAIAdapter(agent=agent, run_input=SubmitMessage(id="1", messages=[message]))
    return [event.type async for event in adapter.run_stream(message_history=history)]


async def ag_ui(agent: Agent[None, str], history: list[ModelMessage]) -> list[str]:
    run_input = ag_ui_core.RunAgentInput(
        thread_id="t",
        run_id="r",
        state={},
        messages=[ag_ui_core.UserMessage(id="u", content="go on")],
        tools=[],
        context=[],
        forwarded_props={},
    )
    adapter = AGUIAdapter(agent=agent, run_input=run_input)
    return [event.type.value for event in [event async for event in adapter.run_stream(message_history=history)]]


@every_cut
@pytest.mark.parametrize(("adapter", "error"), [(vercel, "error"), (ag_ui, "RUN_ERROR")])
async def test_ui_adapters(model: Model, adapter: Any, error: str, cut: Callable[[], Awaitable[list[ModelMessage]]]):
    """A history kept by the server is guarded in the adapters' runs too: the page gets their error event."""
    history = await cut()
    assert error in await adapter(model.agent(capabilities=[Cancellable()]), history)
    assert model.requests == []
    assert error not in await adapter(model.agent(capabilities=[Cancellable(history="salvage")]), history)
    assert len(model.requests) == 1
