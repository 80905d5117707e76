"""`run_stream()` when something else goes wrong: the provider, the user's own limits, a cancel in an odd moment."""

from __future__ import annotations

import asyncio

import pytest
from pydantic_ai import CancellationToken, ModelMessagesTypeAdapter
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, RunCancelled, RunTimedOut
from pydantic_ai.messages import ModelRequest, ModelResponse
from pydantic_ai.usage import RunUsage

from cancelstream import CancellableRun, is_incomplete, run_stream, salvage
from cancelstream.testing import Answer, Cut, ErrorEvent, HttpError, Silence, Text, ToolCall
from cancelstream.testing._plugin import StartServer

from .conftest import MakeAgent

LIMIT = 20
STUCK = Answer(Text("one", " two", " three", Silence()))
TALK = Answer(Text.words("one two three"))


async def read(run: CancellableRun[str]) -> str:
    async with run as result:
        return "".join([piece async for piece in result.stream_text(delta=True, debounce_by=None)])


async def test_a_provider_that_refuses(scripted_server: StartServer, make_agent: MakeAgent):
    """Its error comes out as it is, and the run is not called cancelled."""
    run = run_stream(make_agent(scripted_server(HttpError(500))), "count")
    with pytest.raises(ModelHTTPError):
        await read(run)
    assert (run.cancelled, run.cancel_reason) == (False, None)
    await run.cancel()
    assert not run.cancelled


@pytest.mark.parametrize("trouble", [Cut("reset"), Cut("eof"), ErrorEvent("overloaded")])
async def test_a_connection_that_breaks(scripted_server: StartServer, make_agent: MakeAgent, trouble: Cut | ErrorEvent):
    """The error comes out, and what arrived before it is kept, marked and counted."""
    run = run_stream(make_agent(scripted_server(Answer(Text("one", " two"), trouble))), "count")
    with pytest.raises(ModelAPIError):
        await read(run)
    assert not run.cancelled
    response = ModelMessagesTypeAdapter.validate_json(run.all_messages_json())[-1]
    assert isinstance(response, ModelResponse)
    assert (response.state, response.text) == ("interrupted", "one two")
    assert is_incomplete(response)
    assert run.usage.output.low >= 2


async def test_cancelled_and_broken_at_once(scripted_server: StartServer, make_agent: MakeAgent):
    """An error that comes after our cancel is ours, and does not come out."""
    server = scripted_server(STUCK)
    async with run_stream(make_agent(server), "count") as result:
        pieces = result.stream_text(delta=True, debounce_by=None)
        assert await anext(pieces) == "one"
        result.cancel()
        server.close()
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)
    assert result.cancelled


@pytest.mark.parametrize("phase", ["entering", "streaming"])
async def test_the_users_own_token(scripted_server: StartServer, make_agent: MakeAgent, phase: str):
    """A `CancellationToken` raises `RunCancelled` as in pydantic-ai, and what arrived is in our messages too."""
    stuck = Answer(Text(Silence())) if phase == "entering" else STUCK
    server = scripted_server(stuck)
    token = CancellationToken()
    run = run_stream(make_agent(server), "count", cancellation_token=token)
    reading = asyncio.create_task(read(run))
    record = await server.until_request(0, LIMIT)
    if phase == "streaming":
        await record.until_chunks(3, LIMIT)
        while run._result is None or run.response.text != "one two three":
            await asyncio.sleep(0)
    token.cancel()
    with pytest.raises(RunCancelled):
        await asyncio.wait_for(reading, LIMIT)
    assert await record.until_disconnected(LIMIT)
    assert (run.cancelled, run.cancel_reason) == (True, "cancelled")
    last = run.all_messages()[-1]
    assert isinstance(last, ModelResponse)
    assert (last.state, last.text) == ("interrupted", "one two three" if phase == "streaming" else None)


@pytest.mark.parametrize("phase", ["entering", "streaming"])
async def test_the_users_own_timeout(scripted_server: StartServer, make_agent: MakeAgent, phase: str):
    """pydantic-ai's `timeout=` raises `RunTimedOut`, and the reason says so."""
    server = scripted_server(Answer(Text(Silence())) if phase == "entering" else STUCK)
    run = run_stream(make_agent(server), "count", timeout=0.4)
    with pytest.raises(RunTimedOut):
        await read(run)
    assert await server.records[0].until_disconnected(LIMIT)
    assert (run.cancelled, run.cancel_reason) == (True, "timeout")


async def test_cancelled_before_the_model_is_asked(scripted_server: StartServer, make_agent: MakeAgent):
    """While something of the agent's own runs before the first request, nothing is sent any more."""
    server = scripted_server(TALK)
    agent = make_agent(server)
    preparing, stopped = asyncio.Event(), asyncio.Event()

    @agent.instructions
    async def slow() -> str:
        preparing.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return ""

    run = run_stream(agent, "count")
    reading = asyncio.create_task(read(run))
    await asyncio.wait_for(preparing.wait(), LIMIT)
    await run.cancel("changed my mind")
    assert await asyncio.wait_for(reading, LIMIT) == ""
    assert stopped.is_set()
    assert server.records == ()
    assert (run.usage.requests, run.response.state) == (0, "interrupted")


async def test_cancelled_from_a_handler_of_the_runs_own_events(scripted_server: StartServer, make_agent: MakeAgent):
    """`await run.cancel()` inside the run's own event handler returns at once."""
    server = scripted_server(Answer(ToolCall("tool", "{}")), TALK)
    agent = make_agent(server)
    agent.tool_plain(name="tool")(lambda: "done")

    async def handler(_: object, events: object) -> None:
        async for _ in events:  # type: ignore[attr-defined]
            await run.cancel("from the handler")

    run = run_stream(agent, "count", event_stream_handler=handler)
    assert await asyncio.wait_for(read(run), LIMIT) == ""
    assert (run.cancel_reason, len(server.records)) == ("from the handler", 1)


async def test_a_history_is_kept_apart(scripted_server: StartServer, make_agent: MakeAgent):
    """`new_messages` are this run's, whether it was cut or not, and the history that was passed is not touched."""
    server = scripted_server(TALK, STUCK, TALK)
    agent = make_agent(server)
    async with run_stream(agent, "first") as first:
        await first.get_output()
    history = first.all_messages()
    async with run_stream(agent, "second", message_history=history) as second:
        async for _ in second.stream_text(delta=True, debounce_by=None):
            second.cancel()
    assert len(history) == 2
    assert [type(message) for message in second.new_messages()] == [ModelRequest, ModelResponse]
    assert second.all_messages()[:2] == history
    stored = ModelMessagesTypeAdapter.validate_json(second.new_messages_json())
    assert [message.parts for message in stored] == [message.parts for message in second.new_messages()]
    async with run_stream(agent, "third", message_history=salvage(second.all_messages())) as third:
        assert await third.get_output() == "one two three"
    assert len(third.all_messages()) == 6
    assert len(third.new_messages()) == 2


async def test_the_policy_of_the_agent_wins(scripted_server: StartServer, make_agent: MakeAgent):
    """An agent that has the capability is not wrapped again, and its `history=` decides."""
    from cancelstream import Cancellable

    server = scripted_server(STUCK, TALK)
    agent = make_agent(server, capabilities=[Cancellable(history="salvage")])
    async with run_stream(agent, "first") as first:
        async for _ in first.stream_text(delta=True, debounce_by=None):
            first.cancel()
    async with run_stream(agent, "second", message_history=first.all_messages()) as second:
        assert await second.get_output() == "one two three"
    assert not is_incomplete(second.all_messages()[1])
    assert len(server.records) == 2


async def test_usage_that_the_run_was_given(scripted_server: StartServer, make_agent: MakeAgent):
    """What was spent before the run is in its sum, and an estimate counts against limits."""
    server = scripted_server(STUCK)
    spent = RunUsage(requests=2, input_tokens=100, output_tokens=50)
    async with run_stream(make_agent(server), "count", usage=spent) as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            result.cancel()
    assert result.usage.requests == 3
    assert result.usage.input_tokens >= 100
    assert result.usage.output_tokens >= 51
    assert result.usage.provenance == "mixed"
