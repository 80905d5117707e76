"""`Agent(capabilities=[Cancellable()])`: pydantic-ai's own methods and handles, with our account of what was cut."""

from __future__ import annotations

import asyncio

import pytest
from pydantic_ai import Agent, CancellationToken, ModelMessage, ModelMessagesTypeAdapter, capture_run_messages
from pydantic_ai.exceptions import RunCancelled, RunTimedOut
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.fallback import FallbackModel

from cancelstream import Cancellable, CancellableModel, StreamUsage
from cancelstream.testing import Answer, Gate, HttpError, Record, ScriptedServer, Silence, Text
from cancelstream.testing._plugin import StartServer

from .conftest import MakeAgent, MakeModel

LIMIT = 20
STUCK = Answer(Text("one", " two", " three", Silence()))
TALK = Answer(Text.words("one two three four"))


def check_cut(messages: list[ModelMessage], text: str, reason: str) -> None:
    """The account of a cut answer, as it is stored."""
    stored = ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json(messages))
    response = stored[-1]
    assert isinstance(response, ModelResponse)
    assert response.state == "interrupted"
    assert response.text == text
    assert response.metadata is not None
    assert response.metadata["cancelstream"]["reason"] == reason
    usage = StreamUsage.of(stored)
    assert usage.output.low >= 1
    assert usage.output.source == "estimated"
    assert not usage.complete


async def test_its_own_cancel_ends_the_loop(scripted_server: StartServer, make_agent: MakeAgent):
    """`await result.cancel()` raises no connection error, as it does without us; the account is in the result."""
    server = scripted_server(STUCK)
    agent = make_agent(server, capabilities=[Cancellable()])
    taken: list[str] = []
    async with agent.run_stream("count") as result:
        async for piece in result.stream_text(delta=True, debounce_by=None):
            taken.append(piece)
            if len(taken) == 2:
                await result.cancel()
    assert taken == ["one", " two"]
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(result.all_messages(), "one two", "cancelled")
    assert result.usage.requests == 1
    assert result.usage.output_tokens >= 2


async def test_its_own_cancel_while_the_server_is_silent(scripted_server: StartServer, make_agent: MakeAgent):
    """From another task, with a read pending: the loop ends and the server is told."""
    server = scripted_server(STUCK)
    agent = make_agent(server, capabilities=[Cancellable()])
    async with agent.run_stream("count") as result:
        reading = asyncio.create_task(collect(result.stream_text(delta=True, debounce_by=None)))
        await server.records[0].until_chunks(3, LIMIT)
        while result.response.text != "one two three":
            await asyncio.sleep(0)
        await result.cancel()
        assert await asyncio.wait_for(reading, LIMIT) == "one two three"
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(result.all_messages(), "one two three", "cancelled")


async def collect(pieces) -> str:
    return "".join([piece async for piece in pieces])


async def test_iter_and_its_stream(scripted_server: StartServer, make_agent: MakeAgent):
    """`await stream.cancel()` in `agent.iter()` ends that response."""
    server = scripted_server(STUCK)
    agent = make_agent(server, capabilities=[Cancellable()])
    async with agent.iter("count") as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as stream:
                    async for _ in stream.stream_text(delta=True, debounce_by=None):
                        await stream.cancel()
                break
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(run.all_messages(), "one", "cancelled")


async def test_a_token(scripted_server: StartServer, make_agent: MakeAgent):
    """`CancellationToken` raises `RunCancelled` as it does without us, and that has the account."""
    server = scripted_server(STUCK)
    agent = make_agent(server, capabilities=[Cancellable()])
    token = CancellationToken()
    reading = asyncio.create_task(read(agent, cancellation_token=token))
    await seen(await server.until_request(0, LIMIT))
    token.cancel()
    with pytest.raises(RunCancelled) as caught:
        await asyncio.wait_for(reading, LIMIT)
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(caught.value.all_messages(), "one two three", "cancelled")
    assert caught.value.usage.output_tokens >= 3


async def test_events_and_their_handle(scripted_server: StartServer, make_agent: MakeAgent):
    """`run_stream_events` and its own `cancel()`."""
    server = scripted_server(STUCK)
    agent = make_agent(server, capabilities=[Cancellable()])
    with pytest.raises(RunCancelled) as caught:
        await cancel_events(agent, server)
    assert await server.records[0].until_disconnected(LIMIT)
    response = caught.value.all_messages()[-1]
    assert isinstance(response, ModelResponse)
    check_cut(caught.value.all_messages(), response.text or "", "cancelled")


async def cancel_events(agent: Agent[None, str], server: ScriptedServer) -> None:
    async with agent.run_stream_events("count") as events:
        async for _ in events:
            if events.all_messages() and server.records[0].chunks_generated == 3:
                events.cancel()


async def read(agent: Agent[None, str], **kwargs: object) -> None:
    async with agent.run_stream("count", **kwargs) as result:  # type: ignore[call-overload]
        await collect(result.stream_text(delta=True, debounce_by=None))


async def seen(record: Record) -> None:
    """Wait until the server has sent all it will, and give the client the turns to read it."""
    await record.until_chunks(3, LIMIT)
    await asyncio.sleep(0.2)


async def test_task_cancel(scripted_server: StartServer, make_agent: MakeAgent):
    """Somebody else's cancellation flies on with the account attached, and is in the captured messages."""
    server = scripted_server(STUCK)
    agent = make_agent(server, capabilities=[Cancellable()])
    messages: list[list[ModelMessage]] = []

    async def captured() -> None:
        with capture_run_messages() as kept:
            messages.append(kept)
            await read(agent)

    reading = asyncio.create_task(captured())
    await seen(await server.until_request(0, LIMIT))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await reading
    assert await server.records[0].until_disconnected(LIMIT)
    cancelled = RunCancelled.from_cancellation(caught.value)
    assert cancelled is not None
    check_cut(cancelled.all_messages(), "one two three", "task_cancelled")
    check_cut(messages[0], "one two three", "task_cancelled")


async def test_a_timeout_of_asyncio(scripted_server: StartServer, make_agent: MakeAgent):
    """`asyncio.timeout` raises its own error; the account is attached."""
    server = scripted_server(STUCK)
    agent = make_agent(server, capabilities=[Cancellable()])
    with pytest.raises(TimeoutError) as caught:
        await asyncio.wait_for(read(agent), 0.4)
    assert await server.records[0].until_disconnected(LIMIT)
    cancelled = RunCancelled.from_cancellation(caught.value)
    assert cancelled is not None
    check_cut(cancelled.all_messages(), "one two three", "task_cancelled")


async def test_its_own_timeout(scripted_server: StartServer, make_agent: MakeAgent):
    """pydantic-ai's `timeout=` raises its own error, and is told apart."""
    server = scripted_server(STUCK)
    agent = make_agent(server, capabilities=[Cancellable()])
    with pytest.raises(RunTimedOut) as caught:
        await read(agent, timeout=0.4)
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(caught.value.all_messages(), "one two three", "timeout")


@pytest.mark.parametrize("debounce_by", [None, 0.01])
async def test_break(scripted_server: StartServer, make_agent: MakeAgent, debounce_by: float | None):
    """A `break` closes the connection; the run's own messages have the answer, marked as cut."""
    server = scripted_server(STUCK)
    agent = make_agent(server, capabilities=[Cancellable()])
    with capture_run_messages() as messages:
        async with agent.run_stream("count") as result:
            async for _ in result.stream_text(delta=True, debounce_by=debounce_by):
                break
    assert await server.records[0].until_disconnected(LIMIT)
    response = messages[-1]
    assert isinstance(response, ModelResponse)
    check_cut(list(messages), response.text or "", "left")


async def test_a_whole_answer_is_as_it_was(scripted_server: StartServer, make_agent: MakeAgent):
    """The capability changes nothing in a run that nobody stops."""
    server = scripted_server(TALK, TALK)
    plain, ours = make_agent(server), make_agent(server, capabilities=[Cancellable()])
    results = []
    for agent in (plain, ours):
        async with agent.run_stream("count") as result:
            text = await result.get_output()
        results.append((text, result.usage, result.all_messages()[-1].parts))
    assert results[0][0] == results[1][0]
    assert results[0][1].input_tokens == results[1][1].input_tokens == 10
    assert [part.content for part in results[0][2]] == [part.content for part in results[1][2]]  # type: ignore[union-attr]


async def test_fallback(scripted_server: StartServer, make_model: MakeModel):
    """Behind a `FallbackModel` the model that answers is the one that is stopped."""
    broken, server = scripted_server(HttpError(500)), scripted_server(STUCK)
    model = FallbackModel(make_model(broken), make_model(server))
    agent = Agent(model, capabilities=[Cancellable()])
    async with agent.run_stream("count") as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            await result.cancel()
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(result.all_messages(), "one", "cancelled")


async def test_inside_a_fallback(scripted_server: StartServer, make_model: MakeModel):
    """Wrapped one by one below a `FallbackModel`, a model that fails is still fallen back from."""
    broken, server = scripted_server(HttpError(500)), scripted_server(STUCK)
    model = FallbackModel(CancellableModel(make_model(broken)), CancellableModel(make_model(server)))
    async with Agent(model).run_stream("count") as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            await result.cancel()
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(result.all_messages(), "one", "cancelled")


async def test_primed_streams(scripted_server: StartServer, make_model: MakeModel):
    """With a hook that recovers from failures, pydantic-ai pulls the first event early; stopping is the same."""
    from pydantic_ai.capabilities import ModelFallback

    broken, server = scripted_server(HttpError(500)), scripted_server(STUCK)
    agent = Agent(make_model(broken), capabilities=[Cancellable(), ModelFallback(make_model(server))])
    async with agent.run_stream("count") as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            await result.cancel()
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(result.all_messages(), "one", "cancelled")


async def test_one_instance_serves_many_runs(scripted_server: StartServer, make_agent: MakeAgent):
    """The state of a run is its own: one is cancelled, the other is whole."""
    gate = Gate()
    server = scripted_server(Answer(Text("one", gate, " two")), repeat=True)
    agent = make_agent(server, capabilities=[Cancellable()])
    async with agent.run_stream("first") as first, agent.run_stream("second") as second:
        await first.cancel()
        gate.open()
        assert await second.get_output() == "one two"
    check_cut(first.all_messages(), "one", "cancelled")


async def test_in_an_agent_spec(scripted_server: StartServer, make_model: MakeModel):
    """An agent made from a spec names the capability and its policy."""
    agent = Agent.from_spec(
        {"capabilities": [{"Cancellable": {"history": "allow"}}]},
        model=make_model(scripted_server(TALK)),
        custom_capability_types=[Cancellable],
    )
    found: list[object] = []
    agent.root_capability.apply(found.append)
    (ours,) = [capability for capability in found if isinstance(capability, Cancellable)]
    assert ours.history == "allow"


def test_a_policy_that_is_none():
    """The three that there are are named."""
    with pytest.raises(ValueError, match="'ignore' is no policy: use one of 'refuse', 'salvage', 'allow'"):
        Cancellable(history="ignore")  # type: ignore[arg-type]
