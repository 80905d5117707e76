"""The table of moments at which a stop can find a run: each is walked, in both doors, and heard at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from pydantic_ai import Agent, ModelMessage, ModelRetry, RunContext
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.conversation import Conversation
from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart, ToolReturnPart, UserPromptPart
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from cancelstream import Cancellable, IncompleteOutputError, is_incomplete, run_stream, run_stream_events
from cancelstream._run._moments import STOPS, Moment, moment_of

LIMIT = 20
HISTORY: list[ModelMessage] = [
    ModelRequest(parts=[UserPromptPart("earlier")]),
    ModelResponse(parts=[TextPart("answer")]),
]
DOORS = pytest.mark.parametrize("door", [run_stream, run_stream_events])


class Stage:
    """An agent that stands still where it is told to, until a gate that never opens."""

    def __init__(self, at: str) -> None:
        self._at = at
        self.arrived = asyncio.Event()
        self.requests = 0

    async def stand(self, place: str) -> None:
        if self._at == place:
            self.arrived.set()
            await asyncio.Event().wait()

    def agent(self, **kwargs: Any) -> Agent[None, str]:
        async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
            self.requests += 1
            if self.requests == 1:
                yield {0: DeltaToolCall(name="look", json_args="{}", tool_call_id="look-1")}
                return
            await self.stand("before the first token")
            yield "one "
            yield "two"
            await self.stand("in the text")

        agent = Agent(FunctionModel(stream_function=stream), **kwargs)

        @agent.tool_plain
        async def look() -> str:
            await self.stand("in a tool")
            return "seen"

        @agent.output_validator
        async def validate(ctx: RunContext[None], output: str) -> str:
            if not ctx.partial_output:
                await self.stand("in a validator")
            return output

        return agent


class Holds(AbstractCapability[Any]):
    """A capability that holds a run up."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def for_run(self, ctx: RunContext[Any]) -> Any:
        await self._stage.stand("in another for_run")
        return self

    async def wrap_run(self, ctx: RunContext[Any], *, handler: Any) -> Any:
        await self._stage.stand("in another wrap_run")
        return await handler()


async def read(run: Any) -> list[str]:
    async with run as result:
        options = {"debounce_by": None} if hasattr(result, "stream_response") else {}
        return [text async for text in result.stream_text(**options)]


def kinds(messages: list[ModelMessage]) -> list[tuple[str, str, list[str]]]:
    return [(message.kind, message.state, [part.part_kind for part in message.parts]) for message in messages]


ASKED = ("request", "complete", ["user-prompt"])
CALLED = ("response", "complete", ["tool-call"])
ANSWERED = ("request", "complete", ["tool-return"])
NOTHING: tuple[str, str, list[str]] = ("response", "interrupted", [])
TEXT = ("response", "interrupted", ["text"])

PLACES: list[tuple[str, dict[Any, Moment], list[Any]]] = [
    ("in another for_run", {run_stream: Moment.BEGINNING, run_stream_events: Moment.BEGINNING}, []),
    ("in another wrap_run", {run_stream: Moment.BEGINNING, run_stream_events: Moment.BEGINNING}, []),
    (
        "in a tool",
        {run_stream: Moment.BETWEEN, run_stream_events: Moment.BETWEEN},
        [ASKED, CALLED, ("request", "interrupted", [])],
    ),
    (
        "before the first token",
        {run_stream: Moment.STREAMING, run_stream_events: Moment.STREAMING},
        [ASKED, CALLED, ANSWERED, NOTHING],
    ),
    (
        "in the text",
        {run_stream: Moment.ANSWERING, run_stream_events: Moment.STREAMING},
        [ASKED, CALLED, ANSWERED, TEXT],
    ),
    (
        "in a validator",
        {run_stream: Moment.BEHIND, run_stream_events: Moment.BETWEEN},
        [ASKED, CALLED, ANSWERED, TEXT],
    ),
]


@DOORS
@pytest.mark.parametrize(("place", "moments", "kept"), PLACES, ids=[place.replace(" ", "-") for place, _, _ in PLACES])
async def test_heard_wherever_it_stands(
    door: Callable[..., Any], place: str, moments: dict[Any, Moment], kept: list[Any]
) -> None:
    """A run that would stand there for ever ends by `cancel()`, with all that had come until then."""
    stage = Stage(place)
    # Named before ours, which a run adds, so that it is asked first.
    run = door(stage.agent(capabilities=[Holds(stage)]), "go", message_history=HISTORY)
    reading = asyncio.create_task(read(run))
    async with asyncio.timeout(LIMIT):
        await stage.arrived.wait()
        assert run._moment() is moments[door]
        run.cancel("pressed")
        await reading
    assert (run.cancelled, run.cancel_reason) == (True, "pressed")
    assert kinds(run.new_messages()) == kept
    assert run.all_messages()[:2] == HISTORY
    assert not kept or is_incomplete(run.all_messages()[-1])
    assert run.response.state == "interrupted"
    assert not run.usage.complete


@DOORS
async def test_heard_in_the_queue(door: Callable[..., Any]) -> None:
    """A run that queues for a slot of `Agent(max_concurrency=)` ends at once, and another one's slot is not lost."""
    stage = Stage("in a tool")
    agent = stage.agent(max_concurrency=1)
    first, second = door(agent, "first"), door(agent, "second", message_history=HISTORY)
    tasks = [asyncio.create_task(read(run)) for run in (first, second)]
    async with asyncio.timeout(LIMIT):
        await stage.arrived.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert second._moment() is Moment.BEGINNING
        second.cancel("pressed")
        await tasks[1]
        assert second.all_messages() == HISTORY
        assert not tasks[0].done()
        first.cancel()
        await tasks[0]


async def test_somebody_elses_cancellation_in_the_queue() -> None:
    """Both at once: the stop of the run is withdrawn, and the task's own cancellation flies on."""
    stage = Stage("in another for_run")
    run = run_stream(stage.agent(capabilities=[Holds(stage)]), "go")
    reading = asyncio.create_task(read(run))
    await stage.arrived.wait()
    run.cancel("pressed")
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert reading.cancelled()


async def test_the_stop_leaves_no_cancellation_behind() -> None:
    """What stopped the entering is withdrawn from the consumer's task, whose own waits go on."""
    stage = Stage("in another wrap_run")
    run = run_stream(stage.agent(capabilities=[Holds(stage)]), "go")

    async def consume() -> int:
        await read(run)
        await asyncio.sleep(0)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    consuming = asyncio.create_task(consume())
    await stage.arrived.wait()
    run.cancel()
    assert await asyncio.wait_for(consuming, LIMIT) == 0


@DOORS
@pytest.mark.parametrize("how", ["message_history", "conversation"])
async def test_not_entered(door: Callable[..., Any], how: str) -> None:
    """A run that was stopped before it was entered gives back the history, whichever way it was given."""
    given = Conversation(messages=list(HISTORY)) if how == "conversation" else list(HISTORY)
    stage = Stage("nowhere")
    run = door(stage.agent(), "go", **{how: given})
    assert run._moment() is Moment.NEW
    run.cancel()
    assert (run.all_messages(), run.new_messages()) == (HISTORY, [])
    assert await read(run) == []
    assert (run.all_messages(), run.new_messages()) == (HISTORY, [])
    assert stage.requests == 0


@DOORS
async def test_over(door: Callable[..., Any]) -> None:
    """When the whole answer was handed out, a stop changes nothing, also before the block is left."""
    run = door(Stage("nowhere").agent(), "go")
    async with run as result:
        options = {"debounce_by": None} if door is run_stream else {}
        assert [text async for text in result.stream_text(**options)][-1] == "one two"
        assert run._moment() is Moment.OVER
        run.cancel("too late")
    assert (run.cancelled, run.cancel_reason, run.usage.complete) == (False, None, True)
    assert kinds(run.all_messages())[-1] == ("response", "complete", ["text"])


async def test_left_when_it_is_whole() -> None:
    """Left by `break` at the last snapshot, a whole answer is validated and recorded, and its output can be had."""
    run = run_stream(Stage("nowhere").agent(), "go")
    async with run as result:
        async for message in result.stream_response(debounce_by=None):
            if message.state == "complete":
                break
        result.cancel("too late")
        assert kinds(run.all_messages())[-1] == ("response", "complete", ["text"])
    assert (run.cancelled, run.usage.complete) == (False, True)
    assert await run.get_output() == "one two"


async def test_left_when_it_is_whole_and_its_output_is_refused() -> None:
    """A validator that refuses the whole answer as the block is left raises nothing there: the run was left."""
    agent = Stage("nowhere").agent()

    @agent.output_validator
    def refuse(ctx: RunContext[None], output: str) -> str:
        if not ctx.partial_output:
            raise ZeroDivisionError
        return output

    run = run_stream(agent, "go")
    async with run as result:
        async for message in result.stream_response(debounce_by=None):
            if message.state == "complete":
                break
    assert (run.cancelled, run.cancel_reason, run.usage.complete) == (True, "left", False)
    assert is_incomplete(run.all_messages()[-1])
    with pytest.raises(IncompleteOutputError):
        await run.get_output()


async def test_a_validator_sends_the_run_back() -> None:
    """A stop that came when the events seemed to be over is heard when a validator asks the model again."""
    stage = Stage("nowhere")
    agent = stage.agent()

    @agent.output_validator
    def again(output: str) -> str:
        raise ModelRetry("again")

    run = run_stream_events(agent, "go")
    async with run as events:
        async for event in events:
            if event.event_kind == "part_end" and isinstance(event.part, TextPart):
                for _ in range(50):
                    await asyncio.sleep(0)  # the run's own task finds the end of the stream
                run.cancel("pressed")
    assert (run.cancelled, run.cancel_reason) == (True, "pressed")
    assert stage.requests <= 2
    assert is_incomplete(run.all_messages()[-1])


def test_the_table() -> None:
    """Each moment has its action, and each is reached."""
    assert set(STOPS) == set(Moment)
    flags = [False, True]
    reached = {
        moment_of(entered=entered, over=over, answering=answering, begun=begun, streaming=streaming)
        for entered in flags
        for over in flags
        for answering in flags
        for begun in flags
        for streaming in flags
    }
    assert reached == set(Moment)


# --- pulls that their consumer cancels ----------------------------------------------------------------------------


@DOORS
@pytest.mark.parametrize("leaves", ["nothing", "a timeout"])
async def test_a_pull_that_times_out(door: Callable[..., Any], leaves: str) -> None:
    """`asyncio.wait_for(anext(texts), t)` that runs out ends the answer there, and the run says so at once."""
    stage = Stage("in the text")
    run = door(stage.agent(), "go")

    async def consume() -> None:
        async with run as result:
            options = {"debounce_by": None} if door is run_stream else {}
            texts = aiter(result.stream_text(**options))
            assert [await anext(texts), await anext(texts)] == ["one ", "one two"]
            pull = asyncio.create_task(anext(texts))  # as `wait_for` does it
            await stage.arrived.wait()
            await asyncio.sleep(0)
            pull.cancel()
            await asyncio.wait([pull])
            assert (run.cancelled, run.cancel_reason) == (True, "task_cancelled")
            assert run.response.state == "interrupted"
            with pytest.raises(StopAsyncIteration):
                await anext(texts)
            if leaves == "a timeout":
                raise TimeoutError

    if leaves == "a timeout":
        with pytest.raises(TimeoutError):
            await consume()
    else:
        await consume()
    assert run.cancel_reason == ("timeout" if leaves == "a timeout" else "task_cancelled")
    assert kinds(run.all_messages())[-1] == TEXT


# --- what failed, and what was called elsewhere -------------------------------------------------------------------


@DOORS
async def test_the_messages_of_a_run_that_fails_after_a_tool(door: Callable[..., Any]) -> None:
    """They have all that had come before the error, in both doors alike."""

    async def stream(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        if any(isinstance(part, ToolReturnPart) for part in messages[-1].parts):
            raise UserError("no more")
        yield {0: DeltaToolCall(name="look", json_args="{}", tool_call_id="look-1")}

    agent = Agent(FunctionModel(stream_function=stream))

    @agent.tool_plain
    def look() -> str:
        return "seen"

    run = door(agent, "go", message_history=HISTORY)
    with pytest.raises(UserError, match="no more"):
        await read(run)
    assert kinds(run.new_messages())[:3] == [ASKED, CALLED, ANSWERED]
    assert not run.cancelled


class Elsewhere(WrapperModel):
    """A model whose stream is read in a task of its own, and handed over when it is whole, as a durable step does."""

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        opening = self.wrapped.request_stream(messages, model_settings, model_request_parameters, run_context)

        async def step() -> ModelResponse:
            async with opening as stream:
                async for _ in stream:
                    pass
                return stream.get()

        response = await asyncio.create_task(step())
        yield CompletedStreamedResponse(response, model_request_parameters=model_request_parameters, replay_events=True)


class Durable(AbstractCapability[Any]):
    def get_wrapper_model(self, model: Model) -> Model:
        return Elsewhere(model)


@DOORS
async def test_a_model_that_is_called_elsewhere(door: Callable[..., Any]) -> None:
    """What had arrived there when the run was cut is in the response and in the messages."""
    stage = Stage("in the text")
    run = door(stage.agent(capabilities=[Durable(), Cancellable()]), "go")
    reading = asyncio.create_task(read(run))
    async with asyncio.timeout(LIMIT):
        await stage.arrived.wait()
        run.cancel("pressed")
        assert await reading == []
    assert run.response.text == "one two"
    assert kinds(run.all_messages()) == [ASKED, CALLED, ANSWERED, TEXT]
    assert run.all_messages()[-1].parts == [TextPart("one two")]


async def test_what_a_run_that_was_stopped_in_a_tool_says_of_itself() -> None:
    """Its ids, its metadata and its workspace are those that it had begun with."""
    stage = Stage("in a tool")
    run = run_stream(stage.agent(), "go", metadata={"user": "ada"})
    reading = asyncio.create_task(read(run))
    async with asyncio.timeout(LIMIT):
        await stage.arrived.wait()
        before = (run.run_id, run.conversation_id, run.metadata, run.workspace)
        run.cancel()
        await reading
    assert (run.run_id, run.conversation_id, run.metadata, run.workspace) == before
    assert run.metadata == {"user": "ada"}
    assert run.all_messages()[-1].run_id == run.run_id
