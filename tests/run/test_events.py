"""`run_stream_events()`: every turn of a run, stopped at every moment, over a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from pydantic_ai import Agent, AgentRunResultEvent, CancellationToken, ModelMessage, ModelMessagesTypeAdapter
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ModelAPIError, RunCancelled, RunTimedOut, SkipModelRequest
from pydantic_ai.messages import (
    FunctionToolCallEvent,
    FunctionToolResultEvent,
    ModelRequest,
    ModelResponse,
    PartStartEvent,
    TextPart,
    ToolReturnPart,
)
from pydantic_ai.models.function import FunctionModel

from cancelstream._errors import IncompleteHistoryError
from cancelstream._final_turn import TextRetracted
from cancelstream._history import is_incomplete, salvage
from cancelstream._model import Cancellable
from cancelstream._run._events import CancellableRunEvents, run_stream_events
from cancelstream.testing import Answer, Cut, Gate, HttpError, Reasoning, Silence, Text, ToolCall
from cancelstream.testing._plugin import StartServer

from .conftest import MakeAgent

LIMIT = 20
LOOK = Answer(Text("Let me", " look."), ToolCall("weather", '{"city": "Paris"}'))
SUNNY = Answer(Text("It is", " sunny."))


def weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


def kinds(events: list[Any]) -> list[str]:
    return [event.event_kind for event in events]


def said(events: list[Any]) -> str:
    """The text that a page would show: what was said, without what was taken back."""
    text = ""
    for event in events:
        match event:
            case TextRetracted(characters=characters):
                text = text[:-characters]
            case PartStartEvent(part=TextPart(content=piece)):
                text += piece
            case _:
                text += getattr(getattr(event, "delta", None), "content_delta", None) or ""
    return text


async def read(
    events: CancellableRunEvents[Any],
    stop_at: str | None = None,
    reason: str = "enough",
    into: list[Any] | None = None,
) -> list[Any]:
    """Read every event, and cancel in the middle of the loop at the first of a kind."""
    seen: list[Any] = [] if into is None else into
    async for event in events:
        seen.append(event)
        if event.event_kind == stop_at:
            events.cancel(reason)
    return seen


def last(messages: list[ModelMessage]) -> ModelMessage:
    return messages[-1]


def check_cut(events: CancellableRunEvents[Any], text: str | None, reason: str) -> None:
    """What a run says whose answer was cut, wherever one looks, and through JSON."""
    assert events.cancelled
    assert events.cancel_reason == reason
    assert events.result is None
    stored = ModelMessagesTypeAdapter.validate_json(events.all_messages_json())
    for response in (events.response, last(events.all_messages()), last(events.new_messages()), last(stored)):
        assert isinstance(response, ModelResponse)
        assert response.state == "interrupted"
        assert response.text == text
        assert response.metadata is not None
        assert response.metadata["cancelstream"]["reason"] == reason
        assert is_incomplete(response)


# --- what it streams ---------------------------------------------------------------------------------------------


async def test_the_events_are_pydantic_ais(scripted_server: StartServer, make_agent: MakeAgent):
    """Without a filter: the same events in the same order as pydantic-ai's own `run_stream_events`."""
    server = scripted_server(LOOK, SUNNY, LOOK, SUNNY)
    agent = make_agent(server, tools=[weather])
    async with agent.run_stream_events("?") as theirs:
        expected = [event async for event in theirs]
    async with run_stream_events(agent, "?") as ours:
        seen = await read(ours)
    assert kinds(seen) == kinds(expected)
    assert said(seen) == said(expected) == "Let me look.It is sunny."
    assert seen[-1].result is ours.result
    assert ours.result is not None
    assert ours.result.output == "It is sunny."
    assert not ours.cancelled
    assert ours.cancel_reason is None
    assert ours.usage.requests == 2
    assert ours.usage.provenance == "reported"
    assert ours.usage.input_tokens == 20
    assert [type(message) for message in ours.all_messages()] == [ModelRequest, ModelResponse] * 2
    assert ours.new_messages() == ours.all_messages()
    assert ours.new_messages_json() == ours.all_messages_json()
    assert ours.response.text == "It is sunny."


async def test_the_preamble_is_held(scripted_server: StartServer, make_agent: MakeAgent):
    """`final_turn_only=True`: tools at once, the preamble never, the answer when it is known to be one."""
    gate = Gate()
    server = scripted_server(LOOK, Answer(Text("It is", gate, " sunny.")))
    async with run_stream_events(make_agent(server, tools=[weather]), "?", final_turn_only=True) as events:
        seen: list[Any] = []
        async for event in events:
            seen.append(event)
            if isinstance(event, FunctionToolResultEvent):
                gate.open()
    tool = ["part_start", "part_delta", "part_end", "function_tool_call", "function_tool_result"]
    assert kinds(seen)[:5] == tool
    assert said(seen) == "It is sunny."
    assert kinds(seen).count("final_result") == 1
    assert kinds(seen)[-1] == "agent_run_result"


async def test_the_preamble_is_retracted(scripted_server: StartServer, make_agent: MakeAgent):
    """`'retract'`: the preamble shows while it arrives, and is taken back when the next turn begins."""
    server = scripted_server(LOOK, SUNNY)
    async with run_stream_events(make_agent(server, tools=[weather]), "?", final_turn_only="retract") as events:
        seen = await read(events)
    back = [event for event in seen if isinstance(event, TextRetracted)]
    assert back == [TextRetracted(turn=1, parts=(0,), characters=len("Let me look."))]
    assert said(seen[: seen.index(back[0])]) == "Let me look."
    assert said(seen) == "It is sunny."


async def test_a_turn_that_cannot_go_on_is_not_held(scripted_server: StartServer, make_agent: MakeAgent):
    """No tools, no output functions, no validators: each piece shows when it arrives."""
    gate = Gate()
    server = scripted_server(Answer(Text("It is", gate, " sunny.")))
    agent = WrapperAgent(make_agent(server))
    async with run_stream_events(agent, "?", final_turn_only=True) as events:
        async for event in events:
            if said([event]) == "It is":
                gate.open()  # the answer goes on only because its first word was shown
    assert events.result is not None


@pytest.mark.parametrize("final_turn_only", [False, True, "retract"])
async def test_an_answer_without_a_request(scripted_server: StartServer, make_agent: MakeAgent, final_turn_only: Any):
    """Another capability may answer in the model's place: that is a turn like any other."""

    async def answer() -> None:
        raise SkipModelRequest(ModelResponse(parts=[TextPart("cached")]))

    server = scripted_server(SUNNY)
    agent = make_agent(server, capabilities=[Hooked("before_model_request", answer)])
    async with run_stream_events(agent, "?", final_turn_only=final_turn_only) as events:
        assert said(await read(events)) == "cached"
    assert not server.records


async def test_what_may_go_on_is_held(scripted_server: StartServer, make_agent: MakeAgent):
    """An output validator may send the model back, so what it has not seen is not shown."""
    server = scripted_server(Answer(Text("draft")), SUNNY)
    agent = make_agent(server)
    drafts = iter(["refused"])

    @agent.output_validator
    def check(output: str) -> str:
        from pydantic_ai import ModelRetry

        if next(drafts, None):
            raise ModelRetry("no")
        return output

    async with run_stream_events(agent, "?", final_turn_only=True) as events:
        assert said(await read(events)) == "It is sunny."


async def test_reasoning_passes(scripted_server: StartServer, make_agent: MakeAgent):
    """Reasoning of every turn shows at once: only text is held."""
    server = scripted_server(
        Answer(Reasoning("hm"), Text("Let me look."), ToolCall("weather", '{"city": "Paris"}')), SUNNY
    )
    async with run_stream_events(make_agent(server, tools=[weather]), "?", final_turn_only=True) as events:
        parts = [event.part for event in await read(events) if isinstance(event, PartStartEvent)]
    assert [part.part_kind for part in parts] == ["thinking", "tool-call", "text"]


@pytest.mark.parametrize(
    ("final_turn_only", "expected"),
    [
        (False, ["Let me", "Let me look.", "Let me look.\n\nIt is", "Let me look.\n\nIt is sunny."]),
        (True, ["It is", "It is sunny."]),
        ("retract", ["Let me", "Let me look.", "", "It is", "It is sunny."]),
    ],
)
async def test_stream_text(
    scripted_server: StartServer, make_agent: MakeAgent, final_turn_only: Any, expected: list[str]
):
    """One loop over the text so far; with the filter that is the answer and not the preamble."""
    server = scripted_server(LOOK, SUNNY)
    agent = make_agent(server, tools=[weather])
    async with run_stream_events(agent, "?", final_turn_only=final_turn_only) as events:
        assert [text async for text in events.stream_text()] == expected


async def test_stream_text_delta(scripted_server: StartServer, make_agent: MakeAgent):
    server = scripted_server(LOOK, SUNNY, LOOK, SUNNY)
    agent = make_agent(server, tools=[weather])
    async with run_stream_events(agent, "?", final_turn_only=True) as events:
        assert [text async for text in events.stream_text(delta=True)] == ["It is", " sunny."]
    async with run_stream_events(agent, "?") as events:
        assert [text async for text in events.stream_text(delta=True)] == ["Let me", " look.", "\n\nIt is", " sunny."]
    with pytest.raises(ValueError, match="cannot take text back"):
        run_stream_events(agent, "?", final_turn_only="retract").stream_text(delta=True)


# --- stopped at every moment --------------------------------------------------------------------------------------


@pytest.mark.parametrize("final_turn_only", [False, True, "retract"])
async def test_mid_text(scripted_server: StartServer, make_agent: MakeAgent, final_turn_only: Any):
    """The loop just ends, the server is told, what arrived is kept, and held text is released."""
    gate = Gate()
    server = scripted_server(LOOK, Answer(Text("It", " is", gate, " sunny.")))
    agent = make_agent(server, tools=[weather])
    async with run_stream_events(agent, "?", final_turn_only=final_turn_only) as events:
        seen: list[Any] = []
        reading = asyncio.create_task(read(events, into=seen))
        await taken(events, seen, "It is")
        await events.cancel("enough")
        await asyncio.wait_for(reading, LIMIT)
        check_cut(events, "It is", "enough")
        assert events.usage.output.low >= 2
    assert await server.records[1].until_disconnected(LIMIT)
    check_cut(events, "It is", "enough")
    assert said(seen) == ("Let me look.It is" if final_turn_only is False else "It is")
    assert "agent_run_result" not in kinds(seen)
    assert events.usage.requests == 2
    assert events.usage.provenance == "mixed"
    gate.open()


async def taken(events: CancellableRunEvents[Any], seen: list[Any], text: str) -> None:
    """Wait until the consumer has this text: in its hands, or held for it by the filter."""

    async def poll() -> None:
        while True:
            held = [] if events._filter is None else [event for _, event in events._filter._held]
            if said([*seen, *held]).endswith(text):
                return
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), LIMIT)


async def arrived(events: CancellableRunEvents[Any], text: str) -> None:
    """Wait until the client holds this text, on the event loop's own turns."""

    async def poll() -> None:
        while events.response.text != text:
            await asyncio.sleep(0.001)

    await asyncio.wait_for(poll(), LIMIT)


async def test_in_the_loop(scripted_server: StartServer, make_agent: MakeAgent):
    """Cancelled between two events of the loop, nothing more is handed out, though more had arrived."""
    server = scripted_server(Answer(Text.words("one two three four five six")))
    async with run_stream_events(make_agent(server), "count") as events:
        seen = await read(events, stop_at="part_delta")
        check_cut(events, events.response.text, "enough")
    assert kinds(seen) == ["part_start", "final_result", "part_delta"]
    assert (events.response.text or "").startswith("one two")


@pytest.mark.parametrize("turn", [0, 1])
async def test_before_the_first_token(scripted_server: StartServer, make_agent: MakeAgent, turn: int):
    """A request that waits for its headers can be stopped, in any turn."""
    waiting = Answer(before_headers=Silence())
    server = scripted_server(*[LOOK, SUNNY][:turn], waiting)
    agent = make_agent(server, tools=[weather])
    async with run_stream_events(agent, "?", final_turn_only=True) as events:
        reading = asyncio.create_task(read(events))
        record = await server.until_request(turn)
        await events.cancel("enough")
        seen = await asyncio.wait_for(reading, LIMIT)
    assert await record.until_disconnected(LIMIT)
    check_cut(events, None, "enough")
    assert said(seen) == ""
    assert events.usage.requests == turn + 1


async def test_before_it_is_entered(scripted_server: StartServer, make_agent: MakeAgent):
    """Nothing is sent, entering is fine, and the loop is empty."""
    server = scripted_server(SUNNY)
    events = run_stream_events(make_agent(server), "?")
    await events.cancel()
    async with events:
        assert await read(events) == []
    assert not server.records
    assert events.cancelled
    assert events.cancel_reason == "cancelled"
    assert events.all_messages() == []
    assert events.response.state == "interrupted"
    assert events.usage.requests == 0


async def test_before_the_first_pull(scripted_server: StartServer, make_agent: MakeAgent):
    """Entered, but not pulled yet: the run never starts."""
    server = scripted_server(SUNNY)
    async with run_stream_events(make_agent(server), "?") as events:
        events.cancel("early")
        assert await read(events) == []
    assert not server.records
    assert events.cancel_reason == "early"


async def test_left_without_a_pull(scripted_server: StartServer, make_agent: MakeAgent):
    server = scripted_server(SUNNY)
    async with run_stream_events(make_agent(server), "?") as events:
        assert events.response.state == "incomplete"
    assert events.cancel_reason == "left"
    assert not server.records


async def test_during_an_async_tool(scripted_server: StartServer, make_agent: MakeAgent):
    """The tool is cancelled, its request is kept as interrupted with what had finished, and nothing further starts."""
    server = scripted_server(
        Answer(Text("Let me look."), ToolCall("weather", '{"city": "Paris"}', id="a"), ToolCall("slow", "{}", id="b"))
    )
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def slow() -> str:
        """Takes for ever."""
        started.set()
        try:
            return await asyncio.Event().wait() and ""
        except asyncio.CancelledError:
            cancelled.set()
            raise

    agent = make_agent(server, tools=[weather, slow])
    async with run_stream_events(agent, "?", final_turn_only=True) as events:
        reading = asyncio.create_task(read(events))
        await asyncio.wait_for(started.wait(), LIMIT)
        await events.cancel("enough")
        assert cancelled.is_set()
        seen = await asyncio.wait_for(reading, LIMIT)
    assert said(seen) == "Let me look."
    assert events.cancel_reason == "enough"
    cut = last(events.all_messages())
    assert isinstance(cut, ModelRequest)
    assert cut.state == "interrupted"
    assert is_incomplete(cut)
    salvaged = salvage(events.all_messages())
    returns = [part for message in salvaged for part in message.parts if isinstance(part, ToolReturnPart)]
    assert {part.tool_call_id for part in returns} == {"a", "b"}
    assert events.usage.requests == 1
    assert events.usage.provenance == "reported"


async def test_during_a_tool_in_a_thread(scripted_server: StartServer, make_agent: MakeAgent):
    """A plain function cannot be stopped: the run ends without it, and its result is dropped."""
    server = scripted_server(Answer(ToolCall("block", "{}")), SUNNY)
    started, finish = threading.Event(), threading.Event()

    def block() -> str:
        """Blocks a thread."""
        started.set()
        assert finish.wait(LIMIT)
        return "late"

    async with run_stream_events(make_agent(server, tools=[block]), "?") as events:
        reading = asyncio.create_task(read(events))
        await asyncio.to_thread(started.wait, LIMIT)
        closing = events.cancel("enough")
        await asyncio.wait_for(reading, LIMIT)
        await asyncio.wait_for(closing, LIMIT)
    assert not finish.is_set()
    finish.set()
    assert len(server.records) == 1
    assert events.cancel_reason == "enough"
    assert is_incomplete(last(events.all_messages()))


async def test_during_a_tool_that_will_not_stop(scripted_server: StartServer, make_agent: MakeAgent):
    """A coroutine that ignores its cancellation keeps the run, but not the loop: that ends by its deadline."""
    server = scripted_server(Answer(Text("Let me look."), ToolCall("stubborn", "{}")), SUNNY)
    started, finish = asyncio.Event(), asyncio.Event()

    async def stubborn() -> str:
        """Will not be told."""
        started.set()
        while not finish.is_set():
            with suppress(asyncio.CancelledError):
                await finish.wait()
        return "late"

    agent = make_agent(server, tools=[stubborn])
    async with run_stream_events(agent, "?", final_turn_only=True) as events:
        reading = asyncio.create_task(read(events))
        await asyncio.wait_for(started.wait(), LIMIT)
        closing = events.cancel("enough")
        done, _ = await asyncio.wait([reading], timeout=LIMIT)
        finish.set()
        await asyncio.wait_for(closing, LIMIT)
        assert done
        assert said(reading.result()) == "Let me look."
        assert await read(events) == []
    assert len(server.records) == 1
    assert events.cancel_reason == "enough"


class Hooked(AbstractCapability[None]):
    """Calls something of the test at one of the moments before a request."""

    def __init__(self, moment: str, call: Callable[[], Awaitable[None]]) -> None:
        self.moment = moment
        self.call = call

    async def for_run(self, ctx: Any) -> AbstractCapability[None]:
        if self.moment == "for_run":
            await self.call()
        return self

    async def wrap_run(self, ctx: Any, *, handler: Any) -> Any:
        if self.moment == "wrap_run":
            await self.call()
        return await handler()

    async def before_model_request(self, ctx: Any, request_context: Any) -> Any:
        if self.moment == "before_model_request":
            await self.call()
        return request_context


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("moment", ["for_run", "wrap_run", "before_model_request"])
async def test_while_the_run_is_being_set_up(
    scripted_server: StartServer, make_agent: MakeAgent, moment: str, waiting: bool
):
    """Cancelled in a hook of another capability, which goes on or waits: nothing is ever sent."""
    server = scripted_server(SUNNY)
    runs: list[CancellableRunEvents[Any]] = []

    async def call() -> None:
        runs[0].cancel("early")
        if waiting:
            await asyncio.Event().wait()

    runs.append(run_stream_events(make_agent(server, capabilities=[Hooked(moment, call)]), "?"))
    async with runs[0] as events:
        assert await asyncio.wait_for(read(events), LIMIT) == []
    assert not server.records
    assert events.cancel_reason == "early"
    assert events.result is None
    assert events.response.state == "interrupted"


async def test_a_tool_that_cancels_its_own_run(scripted_server: StartServer, make_agent: MakeAgent):
    """It may await its cancel, which returns at once."""
    server = scripted_server(Answer(ToolCall("stop", "{}")), SUNNY)
    runs: list[CancellableRunEvents[Any]] = []

    async def stop() -> str:
        """Stops the run."""
        await runs[0].cancel("tool")
        return "stopped"

    runs.append(run_stream_events(make_agent(server, tools=[stop]), "?"))
    async with runs[0] as events:
        await asyncio.wait_for(read(events), LIMIT)
    assert events.cancel_reason == "tool"
    assert len(server.records) == 1


async def test_from_a_thread(scripted_server: StartServer, make_agent: MakeAgent):
    """From another thread, while the server is silent."""
    server = scripted_server(Answer(Text("one", " two", Silence())))
    async with run_stream_events(make_agent(server), "count") as events:
        reading = asyncio.create_task(read(events))
        await arrived(events, "one two")
        thread = threading.Thread(target=events.cancel, args=("thread",))
        thread.start()
        await asyncio.wait_for(reading, LIMIT)
        thread.join(LIMIT)
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(events, "one two", "thread")


async def test_after_the_end(scripted_server: StartServer, make_agent: MakeAgent):
    """A run that has ended stays as it is, also if its last event was not taken yet."""
    server = scripted_server(SUNNY)
    async with run_stream_events(make_agent(server), "?") as events:
        seen: list[Any] = []
        async for event in events:
            seen.append(event)
            if isinstance(event, AgentRunResultEvent):
                await events.cancel("too late")
    await events.cancel("much too late")
    assert not events.cancelled
    assert events.result is not None
    assert last(events.all_messages()).state == "complete"
    assert await read(events) == []


async def test_twice(scripted_server: StartServer, make_agent: MakeAgent):
    """The first cancel counts."""
    server = scripted_server(Answer(Text("one", Silence())))
    async with run_stream_events(make_agent(server), "count") as events:
        await read(events, stop_at="final_result", reason="first")
        await events.cancel("second")
        await asyncio.gather(events.cancel(), asyncio.create_task(events.cancel()))
    check_cut(events, "one", "first")


# --- left, broken, cancelled by others --------------------------------------------------------------------------


async def test_break(scripted_server: StartServer, make_agent: MakeAgent):
    server = scripted_server(Answer(Text("one", Silence())))
    async with run_stream_events(make_agent(server), "count") as events:
        async for event in events:
            if event.event_kind == "final_result":
                break
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(events, "one", "left")


async def test_left_while_another_task_reads(scripted_server: StartServer, make_agent: MakeAgent):
    """A loop that outlives the block just ends."""
    server = scripted_server(Answer(Text("one", Silence())))
    seen: list[Any] = []
    async with run_stream_events(make_agent(server), "count") as events:
        reading = asyncio.create_task(read(events, into=seen))
        await taken(events, seen, "one")
    await asyncio.wait_for(reading, LIMIT)
    check_cut(events, "one", "left")


async def test_task_cancelled(scripted_server: StartServer, make_agent: MakeAgent):
    """Somebody else's cancellation flies on, with the run's state where pydantic-ai's users look for it."""
    server = scripted_server(Answer(Text("one", Silence())))
    events = run_stream_events(make_agent(server), "count")
    caught: list[BaseException] = []

    async def consume() -> None:
        try:
            async with events:
                await read(events)
        except asyncio.CancelledError as error:
            caught.append(error)
            raise

    task = asyncio.create_task(consume())
    await server.until_request(0)
    await arrived(events, "one")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(events, "one", "task_cancelled")
    state = RunCancelled.from_cancellation(caught[0])
    assert state is not None
    assert is_incomplete(state.all_messages()[-1])


async def test_timeout_around_the_loop(scripted_server: StartServer, make_agent: MakeAgent):
    """It comes while a pull is waiting, and is nobody's but the caller's."""
    server = scripted_server(Answer(Text("one", Silence())))

    async def too_slow(events: CancellableRunEvents[Any]) -> None:
        async with asyncio.timeout(None) as limit:
            async for event in events:
                if event.event_kind == "final_result":
                    limit.reschedule(asyncio.get_running_loop().time() + 0.05)

    async with run_stream_events(make_agent(server), "count") as events:
        with pytest.raises(TimeoutError):
            await too_slow(events)
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(events, "one", "left")


async def test_token_raises(scripted_server: StartServer, make_agent: MakeAgent):
    """pydantic-ai's own token raises as it does there, after the text that was held."""
    server = scripted_server(Answer(Text("one", Silence())))
    token = CancellationToken()
    agent = make_agent(server, tools=[weather])
    async with run_stream_events(agent, "count", final_turn_only=True, cancellation_token=token) as events:
        seen: list[Any] = []
        reading = asyncio.create_task(read_to_error(events, RunCancelled, into=seen))
        await taken(events, seen, "one")
        token.cancel()
        await asyncio.wait_for(reading, LIMIT)
    assert said(seen) == "one"
    check_cut(events, "one", "cancelled")


async def read_to_error(
    events: CancellableRunEvents[Any], error: type[BaseException], into: list[Any] | None = None
) -> list[Any]:
    """Read every event up to this error, which has to come."""
    seen: list[Any] = [] if into is None else into
    while True:
        try:
            seen.append(await anext(events))
        except error:
            return seen


async def test_pydantic_ais_timeout_raises(scripted_server: StartServer, make_agent: MakeAgent):
    """So does its `timeout=`, and the reason is that."""
    server = scripted_server(Answer(Text("one", Silence())))
    agent = make_agent(server, tools=[weather])
    async with run_stream_events(agent, "count", final_turn_only=True, timeout=1) as events:
        seen = await asyncio.wait_for(read_to_error(events, RunTimedOut), LIMIT)
    assert said(seen) == "one"
    check_cut(events, "one", "timeout")


async def test_an_error_of_the_consumers(scripted_server: StartServer, make_agent: MakeAgent):
    """It flies on, and the run is left."""
    server = scripted_server(Answer(Text("one", Silence())))
    events = run_stream_events(make_agent(server), "count")

    async def fail() -> None:
        async with events:
            await anext(events)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(events, "one", "left")


@pytest.mark.parametrize("final_turn_only", [False, True, "retract"])
async def test_an_error_comes_after_the_text(scripted_server: StartServer, make_agent: MakeAgent, final_turn_only: Any):
    """The provider breaks off: the text first, then the error; nothing of it was ours."""
    server = scripted_server(Answer(Text("one", " two"), Cut("reset")))
    agent = make_agent(server, tools=[weather])
    async with run_stream_events(agent, "count", final_turn_only=final_turn_only) as events:
        seen = await read_to_error(events, ModelAPIError)
        assert await read(events) == []
    assert said(seen) == "one two"
    assert not events.cancelled
    assert events.result is None
    assert events.response.text == "one two"
    assert is_incomplete(last(events.all_messages()))
    assert len(events.all_messages()) == 2


async def test_an_error_before_any_text(scripted_server: StartServer, make_agent: MakeAgent):
    server = scripted_server(HttpError(500))
    async with run_stream_events(make_agent(server), "?") as events:
        with pytest.raises(ModelAPIError):
            await read(events)
    assert not events.cancelled


# --- wrong use, and histories -----------------------------------------------------------------------------------


async def test_wrong_use(scripted_server: StartServer, make_agent: MakeAgent):
    """Each mistake is told at the call."""
    agent = make_agent(scripted_server(SUNNY))
    with pytest.raises(ValueError, match="final_turn_only must be False, True or 'retract'"):
        run_stream_events(agent, "?", final_turn_only="hold")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="event_stream_handler"):
        run_stream_events(agent, "?", event_stream_handler=None)
    with pytest.raises(TypeError, match="pydantic-ai Agent"):
        run_stream_events("agent", "?")  # type: ignore[call-overload]
    events = run_stream_events(agent, "?")
    with pytest.raises(RuntimeError, match="async with"):
        await anext(events)
    async with events:
        await read(events)
    with pytest.raises(RuntimeError, match="entered before"):
        await events.__aenter__()


async def test_a_cut_history_is_refused(scripted_server: StartServer, make_agent: MakeAgent):
    """What one run cut, the next one refuses before anything is sent, and `salvage` makes usable."""
    server = scripted_server(Answer(Text("one", Silence())), SUNNY)
    agent = make_agent(server)
    async with run_stream_events(agent, "count") as events:
        await read(events, stop_at="final_result")
    history = events.all_messages()
    for prompt in ("go on", None):
        async with run_stream_events(agent, prompt, message_history=history) as again:
            with pytest.raises(IncompleteHistoryError):
                await read(again)
        assert again.all_messages() == history
    assert len(server.records) == 1
    async with run_stream_events(agent, "go on", message_history=salvage(history)) as again:
        assert said(await read(again)) == "It is sunny."
    assert len(again.new_messages()) == 2


async def test_function_models(make_agent: MakeAgent):
    """A model without a connection is stopped just the same."""
    waiting = asyncio.Event()

    async def stream(messages: Any, info: Any) -> AsyncIterator[str]:
        yield "one"
        await waiting.wait()

    agent = Agent(FunctionModel(stream_function=stream), capabilities=[Cancellable()])
    async with run_stream_events(agent, "?") as events:
        await asyncio.wait_for(read(events, stop_at="final_result"), LIMIT)
        check_cut(events, "one", "enough")


def test_tool_events_have_the_same_types() -> None:
    """The names that the tests above go by are pydantic-ai's."""
    assert FunctionToolCallEvent.event_kind == "function_tool_call"
