"""A cut answer is refused before any request: whoever cut it, wherever it was kept, whichever way the agent is run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest
from pydantic_ai import Agent, CancellationToken, ModelMessage, ModelMessagesTypeAdapter, capture_run_messages
from pydantic_ai.exceptions import RunCancelled
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel

from cancelstream._errors import IncompleteHistoryError
from cancelstream._history import check_history, salvage
from cancelstream._model import Cancellable
from cancelstream._run import run_stream
from cancelstream._run._events import run_stream_events

LIMIT = 20


class Model:
    """A model that answers at once, and keeps what it was sent."""

    def __init__(self) -> None:
        self.requests: list[list[ModelMessage]] = []

    async def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.requests.append(deepcopy(messages))
        return ModelResponse(parts=[TextPart("whole")])

    async def stream(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        self.requests.append(deepcopy(messages))
        yield "whole"

    def agent(self, **kwargs: Any) -> Agent[None, str]:
        return Agent(FunctionModel(self.answer, stream_function=self.stream), **kwargs)


@pytest.fixture
def model() -> Model:
    return Model()


# --- every way to run an agent ----------------------------------------------------------------------------------


async def by_run(agent: Agent[None, str], prompt: str | None, history: list[ModelMessage]) -> None:
    await agent.run(prompt, message_history=history)


async def by_run_sync(agent: Agent[None, str], prompt: str | None, history: list[ModelMessage]) -> None:
    def call() -> None:
        # In a thread it makes a loop of its own, which nobody would close.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            agent.run_sync(prompt, message_history=history)
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    await asyncio.to_thread(call)


async def by_run_stream(agent: Agent[None, str], prompt: str | None, history: list[ModelMessage]) -> None:
    async with agent.run_stream(prompt, message_history=history) as result:
        await result.get_output()


async def by_iter(agent: Agent[None, str], prompt: str | None, history: list[ModelMessage]) -> None:
    async with agent.iter(prompt, message_history=history) as run:
        async for _ in run:
            pass


async def by_run_stream_events(agent: Agent[None, str], prompt: str | None, history: list[ModelMessage]) -> None:
    async with agent.run_stream_events(prompt, message_history=history) as events:
        async for _ in events:
            pass


async def by_our_run_stream(agent: Agent[None, str], prompt: str | None, history: list[ModelMessage]) -> None:
    async with run_stream(agent, prompt, message_history=history) as result:
        await result.get_output()


async def by_our_run_stream_events(agent: Agent[None, str], prompt: str | None, history: list[ModelMessage]) -> None:
    async with run_stream_events(agent, prompt, message_history=history) as events:
        async for _ in events:
            pass


Way = Callable[[Agent[None, str], str | None, list[ModelMessage]], Awaitable[None]]
WAYS: list[Way] = [
    by_run,
    by_run_sync,
    by_run_stream,
    by_iter,
    by_run_stream_events,
    by_our_run_stream,
    by_our_run_stream_events,
]
every_way = pytest.mark.parametrize("way", WAYS)


# --- every way to get a cut answer into a history, without us ---------------------------------------------------


async def slowly(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    yield "one"
    yield " two"
    await asyncio.Event().wait()


def plain_agent() -> Agent[None, str]:
    return Agent(FunctionModel(stream_function=slowly))


async def left_by_break() -> list[ModelMessage]:
    with capture_run_messages() as messages:
        async with plain_agent().run_stream("count") as result:
            async for _ in result.stream_text(debounce_by=None):
                break
    return messages


async def ended_by_an_error() -> list[ModelMessage]:
    with capture_run_messages() as messages, suppress(ZeroDivisionError):
        async with plain_agent().run_stream("count") as result:
            async for _ in result.stream_text(debounce_by=None):
                raise ZeroDivisionError
    return messages


async def messages_of(
    agent: Agent[None, str], token: CancellationToken, stop_at: Callable[[Any], bool] = lambda event: False
) -> list[ModelMessage]:
    """Run the agent until pydantic-ai's token cancels it, and return what it keeps of that."""
    try:
        async with agent.run_stream_events("go", cancellation_token=token) as events:
            async for event in events:
                if stop_at(event):
                    token.cancel()
    except RunCancelled as cancelled:
        return cancelled.all_messages()
    raise AssertionError("the run was not cancelled")


async def cancelled_by_a_token() -> list[ModelMessage]:
    token = CancellationToken()
    return await messages_of(plain_agent(), token, lambda event: event.event_kind == "part_delta")


async def stopped_in_a_tool() -> list[ModelMessage]:
    async def call(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[dict[int, DeltaToolCall]]:
        yield {0: DeltaToolCall(name="wait", json_args="{}", tool_call_id="a")}

    token = CancellationToken()

    async def wait() -> None:
        token.cancel()
        await asyncio.Event().wait()

    return await messages_of(Agent(FunctionModel(stream_function=call), tools=[wait]), token)


async def stored_before_a_crash() -> list[ModelMessage]:
    """A program that stores each snapshot of the answer, and is killed before the last."""
    async with plain_agent().run_stream("count") as result:
        async for response in result.stream_response(debounce_by=None):
            stored = ModelMessagesTypeAdapter.dump_json([*result.all_messages(), response])
            if response.text == "one two":
                break
    return ModelMessagesTypeAdapter.validate_json(stored)


async def cut_by_us() -> list[ModelMessage]:
    async with run_stream_events(plain_agent(), "count") as events:
        async for event in events:
            if event.event_kind == "part_delta":
                events.cancel("user")
    return events.all_messages()


async def cut_by_us_through_json() -> list[ModelMessage]:
    return ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json(await cut_by_us()))


CUTS = [
    left_by_break,
    ended_by_an_error,
    cancelled_by_a_token,
    stopped_in_a_tool,
    stored_before_a_crash,
    cut_by_us,
    cut_by_us_through_json,
]
every_cut = pytest.mark.parametrize("cut", CUTS)


# --- the promises -----------------------------------------------------------------------------------------------


@every_cut
@every_way
async def test_refused_before_any_request(model: Model, way: Way, cut: Callable[[], Awaitable[list[ModelMessage]]]):
    """With a prompt and without one, nothing is sent and nothing is returned as an answer."""
    history = await cut()
    before = deepcopy(history)
    with pytest.raises(IncompleteHistoryError):
        check_history(history)
    agent = model.agent(capabilities=[Cancellable()])
    for prompt in ("go on", None):
        with pytest.raises(IncompleteHistoryError) as error:
            await way(agent, prompt, history)
        assert error.value.index == len(history) - 1
    assert model.requests == []
    assert history == before


@every_cut
@every_way
async def test_salvaged_by_policy(model: Model, way: Way, cut: Callable[[], Awaitable[list[ModelMessage]]]):
    """`history='salvage'` sends what `salvage()` makes of it, and leaves the caller's list alone."""
    history = await cut()
    before = deepcopy(history)
    await way(model.agent(capabilities=[Cancellable(history="salvage")]), "go on", history)
    assert history == before
    (sent,) = model.requests
    said = [part.content for message in sent for part in message.parts if isinstance(part, TextPart)]
    expected = [part.content for message in salvage(history) for part in message.parts if isinstance(part, TextPart)]
    assert said == expected
    assert isinstance(sent[-1], ModelRequest)
    assert isinstance(sent[-1].parts[-1], UserPromptPart)


@every_way
async def test_allowed(model: Model, way: Way):
    """`history='allow'` is pydantic-ai as it is; without a prompt that returns the cut text and asks nobody."""
    history = await cut_by_us()
    agent = model.agent(capabilities=[Cancellable(history="allow")])
    if way not in (by_run_stream, by_our_run_stream):  # these stream a response, and there would be none
        await way(agent, None, history)
        assert model.requests == []
    await way(agent, "go on", history)
    assert len(model.requests) == 1


@every_way
async def test_salvaged_without_a_prompt(model: Model, way: Way):
    """A salvaged answer at the end is no output either: it takes a prompt to go on from it."""
    history = salvage(await cut_by_us())
    agent = model.agent(capabilities=[Cancellable()])
    with pytest.raises(IncompleteHistoryError, match="Pass a prompt"):
        await way(agent, None, history)
    assert model.requests == []
    await way(agent, "go on", history)
    assert len(model.requests) == 1


async def test_stopped_tools_can_go_on_without_a_prompt(model: Model):
    """After salvage the model is told which tools were stopped, and answers: there is nothing to take for an output."""
    history = salvage(await stopped_in_a_tool())
    await by_run(model.agent(capabilities=[Cancellable()], tools=[]), None, history)
    (sent,) = model.requests
    (returned,) = [part for message in sent for part in message.parts if isinstance(part, ToolReturnPart)]
    assert (returned.tool_call_id, returned.outcome) == ("a", "interrupted")


async def test_two_cuts_in_one_history(model: Model):
    """The first cut message is the one that is named."""
    history = [*await left_by_break(), ModelRequest(parts=[UserPromptPart("more")]), *(await cut_by_us())[1:]]
    with pytest.raises(IncompleteHistoryError) as error:
        await by_run(model.agent(capabilities=[Cancellable()]), "go on", history)
    assert error.value.index == 1
    check_history(salvage(history))
