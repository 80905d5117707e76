"""`run_stream()`, stopped at every moment of a run: over a real socket, with a server that says what it saw."""

from __future__ import annotations

import asyncio
import signal
import threading

import pytest
from pydantic_ai import Agent, ModelMessage, ModelMessagesTypeAdapter, RunContext
from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart
from pydantic_ai.models.function import FunctionModel

from cancelstream import CancellableRun, IncompleteOutputError, is_incomplete, run_stream, salvage
from cancelstream.testing import Answer, Gate, Silence, Text, ToolCall
from cancelstream.testing._plugin import StartServer

from .conftest import MakeAgent

LIMIT = 20
WORDS = Text.words("one two three four five six seven eight")
TALK = Answer(WORDS)
STUCK = Answer(Text("one", " two", " three", Silence()))


async def take(result: CancellableRun[str], number: int) -> list[str]:
    """Read pieces of text, and stop in the middle of the loop without leaving it by `break`."""
    taken: list[str] = []
    async for piece in result.stream_text(delta=True, debounce_by=None):
        taken.append(piece)
        if len(taken) == number:
            result.cancel("enough")
    return taken


def last_response(messages: list[ModelMessage]) -> ModelResponse:
    last = messages[-1]
    assert isinstance(last, ModelResponse)
    return last


def check_cut(result: CancellableRun[str], text: str, reason: str) -> None:
    """What every cut run says, wherever one looks, and through JSON."""
    assert result.cancelled
    assert result.cancel_reason == reason
    stored = ModelMessagesTypeAdapter.validate_json(result.all_messages_json())
    for response in (result.response, last_response(result.all_messages()), last_response(stored)):
        assert response.state == "interrupted"
        assert response.text == (text or None)
        assert response.metadata is not None
        assert response.metadata["cancelstream"]["v"] == 1
        assert response.metadata["cancelstream"]["reason"] == reason
        assert is_incomplete(response)
    assert isinstance(result.all_messages()[0], ModelRequest)


# --- in the middle of the text -----------------------------------------------------------------------------------


async def test_mid_text_the_loop_just_ends(scripted_server: StartServer, make_agent: MakeAgent):
    """After `cancel()` nothing more arrives, the server is told, and what arrived is kept and counted."""
    gate = Gate()
    server = scripted_server(Answer(Text("one", " two", " three", " four", gate, " five")))
    async with run_stream(make_agent(server), "count") as result:
        taken = await take(result, 4)
        check_cut(result, "one two three four", "enough")
        usage = result.usage
        assert usage.output.low >= 4
        assert usage.output.source == "estimated"
    assert taken == ["one", " two", " three", " four"]
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(result, "one two three four", "enough")
    assert result.usage is usage
    assert result.usage() is usage
    assert result.usage.output.low >= 4
    assert result.usage.requests == 1


async def test_awaiting_the_cancel_as_pydantic_ai_has_it(scripted_server: StartServer, make_agent: MakeAgent):
    """Code written for pydantic-ai's `await result.cancel()` works unchanged, and the connection is then closed."""
    server = scripted_server(STUCK)
    async with run_stream(make_agent(server), "count") as result:
        pieces = [piece async for piece in stop_after(result, 3)]
    assert pieces == ["one", " two", " three"]
    check_cut(result, "one two three", "cancelled")


async def stop_after(result: CancellableRun[str], number: int):
    count = 0
    async for piece in result.stream_text(delta=True, debounce_by=None):
        yield piece
        count += 1
        if count == number:
            await result.cancel()
            assert result.usage.complete is False


async def test_a_debounced_consumer_gets_nothing_after_the_cancel(scripted_server: StartServer, make_agent: MakeAgent):
    """Text that was grouped and not handed out yet is kept in the message, but not handed out any more."""
    server = scripted_server(TALK)
    async with run_stream(make_agent(server), "count") as result:
        taken = [text async for text in cancel_at_once(result)]
    assert len(taken) == 1
    assert last_response(result.all_messages()).text is not None
    assert last_response(result.all_messages()).text.startswith(taken[0])


async def cancel_at_once(result: CancellableRun[str]):
    async for text in result.stream_text():
        yield text
        result.cancel()


async def test_cancelled_twice(scripted_server: StartServer, make_agent: MakeAgent):
    """The first cancel counts: its reason stays."""
    server = scripted_server(STUCK)
    async with run_stream(make_agent(server), "count") as result:
        taken = await take(result, 2)
        await result.cancel("again")
        await asyncio.gather(result.cancel(), asyncio.create_task(result.cancel()))
    assert taken == ["one", " two"]
    check_cut(result, "one two", "enough")


async def test_cancelled_after_the_end_changes_nothing(scripted_server: StartServer, make_agent: MakeAgent):
    """A whole answer stays whole, its usage reported, and the connection in its pool."""
    server = scripted_server(TALK, TALK)
    agent = make_agent(server)
    async with run_stream(agent, "count") as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            pass
        await result.cancel("too late")
    await result.cancel("much too late")
    assert not result.cancelled
    assert result.cancel_reason is None
    response = last_response(result.all_messages())
    assert response.state == "complete"
    assert not is_incomplete(response)
    assert result.usage.provenance == "reported"
    assert (result.usage.input_tokens, result.usage.output_tokens) == (10, 8)
    async with run_stream(agent, "again") as second:
        assert await second.get_output() == "one two three four five six seven eight"
    assert server.connections == 1


async def test_the_next_request_goes_out(scripted_server: StartServer, make_agent: MakeAgent):
    """A cancel costs its own connection and nothing else."""
    server = scripted_server(STUCK, TALK)
    agent = make_agent(server)
    async with run_stream(agent, "count") as result:
        await take(result, 2)
    async with run_stream(agent, "again") as result:
        assert await result.get_output() == "one two three four five six seven eight"


# --- while the server is silent ----------------------------------------------------------------------------------


@pytest.mark.parametrize("debounce_by", [None, 0.01])
@pytest.mark.parametrize("caller", ["task", "thread", "loop signal", "plain signal"])
async def test_a_silent_server_is_told_at_once(
    scripted_server: StartServer, make_agent: MakeAgent, caller: str, debounce_by: float | None
):
    """A pull that waits for a silent server ends, whoever calls `cancel()`, and the server sees the client go."""
    server = scripted_server(STUCK)
    async with run_stream(make_agent(server), "count") as result:
        reading = asyncio.create_task(drain(result, debounce_by))
        await server.records[0].until_chunks(3, LIMIT)
        await cancel_from(caller, result)
        text = await asyncio.wait_for(reading, LIMIT)
        assert await server.records[0].until_disconnected(LIMIT)
    # A slow reader may not have taken all of it before the cancel; what it took is a prefix of what is kept.
    assert "one two three".startswith(text)
    assert (last_response(result.all_messages()).text or "").startswith(text)
    assert result.cancel_reason == caller


async def drain(result: CancellableRun[str], debounce_by: float | None) -> str:
    return "".join([piece async for piece in result.stream_text(delta=True, debounce_by=debounce_by)])


async def cancel_from(caller: str, result: CancellableRun[str]) -> None:
    match caller:
        case "task":
            result.cancel(caller)
        case "thread":
            thread = threading.Thread(target=result.cancel, args=(caller,))
            thread.start()
            await asyncio.to_thread(thread.join, LIMIT)
        case "loop signal":
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR1, result.cancel, caller)
            signal.raise_signal(signal.SIGUSR1)
            while not result.cancelled:
                await asyncio.sleep(0)
            loop.remove_signal_handler(signal.SIGUSR1)
        case "plain signal":
            before = signal.signal(signal.SIGUSR1, lambda *_: result.cancel(caller))
            signal.raise_signal(signal.SIGUSR1)
            signal.signal(signal.SIGUSR1, before)


async def test_the_consumer_is_busy_elsewhere(scripted_server: StartServer, make_agent: MakeAgent):
    """Cancelled between two pulls, the server is told although nobody pulls, and the consumer's own wait goes on."""
    server = scripted_server(STUCK)
    async with run_stream(make_agent(server), "count") as result:
        items = result.stream_text(delta=True, debounce_by=None)
        assert await anext(items) == "one"
        threading.Thread(target=result.cancel, args=("elsewhere",)).start()
        assert await server.records[0].until_disconnected(LIMIT)
        with pytest.raises(StopAsyncIteration):
            await anext(items)
    check_cut(result, "one", "elsewhere")


# --- before the first token --------------------------------------------------------------------------------------


async def test_before_it_is_entered(scripted_server: StartServer, make_agent: MakeAgent):
    """Nothing is sent, entering returns normally, and the stream is empty."""
    server = scripted_server(TALK)
    run = run_stream(make_agent(server), "count")
    await run.cancel("early")
    async with run as result:
        assert result is run
        assert [piece async for piece in result.stream_text()] == []
    assert (run.cancelled, run.cancel_reason) == (True, "early")
    assert run.usage.requests == 0
    assert not run.usage.has_values()
    assert run.all_messages() == []
    assert run.response.state == "interrupted"
    assert server.records == ()


async def test_while_it_waits_for_the_headers(scripted_server: StartServer, make_agent: MakeAgent):
    """Entering returns normally, the server is told, and the request that was sent is counted."""
    gate = Gate()
    server = scripted_server(Answer(WORDS, before_headers=gate))
    run = run_stream(make_agent(server), "count")
    entering = asyncio.create_task(enter(run))
    record = await server.until_request(0, LIMIT)
    await gate.until_reached(LIMIT)
    run.cancel("no patience")
    assert await asyncio.wait_for(entering, LIMIT) == []
    assert await record.until_disconnected(LIMIT)
    check_cut(run, "", "no patience")
    assert run.usage.requests == 1
    assert run.usage.provenance != "reported"
    assert run.usage.output.low == 0
    assert run.usage.input.source != "reported"


async def enter(run: CancellableRun[str]) -> list[str]:
    async with run as result:
        return [piece async for piece in result.stream_text(delta=True)]


@pytest.mark.parametrize("caller", ["task", "thread"])
async def test_before_the_first_token(scripted_server: StartServer, make_agent: MakeAgent, caller: str):
    """The headers came and nothing else: entering returns normally and the server is told."""
    server = scripted_server(Answer(Text(Silence())), TALK)
    agent = make_agent(server)
    run = run_stream(agent, "count")
    entering = asyncio.create_task(enter(run))
    record = await server.until_request(0, LIMIT)
    await cancel_from(caller, run)
    assert await asyncio.wait_for(entering, LIMIT) == []
    assert await record.until_disconnected(LIMIT)
    check_cut(run, "", caller)
    assert [type(message) for message in salvage(run.all_messages())] == [ModelRequest]
    async with run_stream(agent, "again") as result:
        assert await result.get_output() == "one two three four five six seven eight"


async def test_a_task_that_is_being_cancelled_gets_its_own_cancellation(
    scripted_server: StartServer, make_agent: MakeAgent
):
    """Entering returns normally after a cancel of ours, but never hides somebody else's."""
    server = scripted_server(TALK)
    run = run_stream(make_agent(server), "count")
    run.cancel()

    async def enter_late() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        async with run:
            pytest.fail("entered although the task was being cancelled")

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(enter_late())


# --- tools -------------------------------------------------------------------------------------------------------


async def test_mid_tool_call(scripted_server: StartServer, make_agent: MakeAgent):
    """A tool call whose arguments were cut is kept as it arrived, and the tool never starts."""
    server = scripted_server(Answer(ToolCall("look_up", '{"city": "Par', Silence())))
    agent = make_agent(server)
    started: list[str] = []
    agent.tool_plain(name="look_up")(lambda city: started.append(city) or "")
    run = run_stream(agent, "look")
    entering = asyncio.create_task(enter(run))
    record = await server.until_request(0, LIMIT)
    await record.until_chunks(2, LIMIT)
    while not run.usage.output.low:  # the arguments have arrived
        await asyncio.sleep(0)
    run.cancel("enough")
    assert await asyncio.wait_for(entering, LIMIT) == []
    assert await record.until_disconnected(LIMIT)
    response = last_response(ModelMessagesTypeAdapter.validate_json(run.all_messages_json()))
    assert response.state == "interrupted"
    (call,) = response.parts
    assert isinstance(call, ToolCallPart)
    assert (call.tool_name, call.args) == ("look_up", '{"city": "Par')
    assert started == []


async def test_while_a_tool_runs(scripted_server: StartServer, make_agent: MakeAgent):
    """An asynchronous tool is cancelled, no further request is made, and the answer that called it stays whole."""
    server = scripted_server(Answer(ToolCall("wait", "{}")), TALK)
    agent = make_agent(server)
    running, stopped = asyncio.Event(), asyncio.Event()

    @agent.tool_plain
    async def wait() -> str:
        running.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return "never"

    run = run_stream(agent, "wait")
    entering = asyncio.create_task(enter(run))
    await asyncio.wait_for(running.wait(), LIMIT)
    await run.cancel("enough")
    assert await asyncio.wait_for(entering, LIMIT) == []
    assert stopped.is_set()
    assert len(server.records) == 1
    assert run.cancelled
    responses = [m for m in run.all_messages() if isinstance(m, ModelResponse)]
    assert [m.state for m in responses] == ["complete"]
    assert any(is_incomplete(message) for message in run.all_messages())
    assert run.usage.provenance == "reported"


async def test_a_tool_cancels_its_own_run(scripted_server: StartServer, make_agent: MakeAgent):
    """Awaited inside the run's own tool, the cancel returns at once instead of waiting for itself."""
    server = scripted_server(Answer(ToolCall("stop", "{}")), TALK)
    agent = make_agent(server)
    went_on: list[bool] = []

    @agent.tool_plain
    async def stop() -> str:
        async with asyncio.timeout(LIMIT):
            await run.cancel("from the tool")
        went_on.append(True)
        await asyncio.sleep(60)
        return "never"

    run = run_stream(agent, "stop")
    assert await asyncio.wait_for(enter(run), LIMIT) == []
    assert (went_on, run.cancel_reason, len(server.records)) == ([True], "from the tool", 1)


async def test_a_plain_tool_is_left_to_finish(scripted_server: StartServer, make_agent: MakeAgent):
    """A tool in a thread cannot be stopped: it finishes, its result is dropped, and no request follows."""
    server = scripted_server(Answer(ToolCall("block", "{}")), TALK)
    agent = make_agent(server)
    running, go_on, finished = threading.Event(), threading.Event(), threading.Event()

    @agent.tool_plain
    def block() -> str:
        running.set()
        go_on.wait(LIMIT)
        finished.set()
        return "dropped"

    run = run_stream(agent, "block")
    entering = asyncio.create_task(enter(run))
    assert await asyncio.to_thread(running.wait, LIMIT)
    run.cancel()
    assert await asyncio.wait_for(entering, LIMIT) == []
    assert not finished.is_set()
    go_on.set()
    assert await asyncio.to_thread(finished.wait, LIMIT)
    assert len(server.records) == 1
    assert "dropped" not in run.all_messages_json().decode()


async def test_while_a_tool_runs_after_the_final_answer(scripted_server: StartServer, make_agent: MakeAgent):
    """An exhaustive agent runs tools inside the consumer's pull: there they are cancelled, and the loop ends."""
    server = scripted_server(Answer(Text("Here", " it", " is."), ToolCall("log", "{}")))
    agent = make_agent(server, end_strategy="exhaustive")
    running, stopped = asyncio.Event(), asyncio.Event()

    @agent.tool_plain
    async def log() -> str:
        running.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()
        return "never"

    async with run_stream(agent, "log") as result:
        reading = asyncio.create_task(drain(result, None))
        await asyncio.wait_for(running.wait(), LIMIT)
        await result.cancel("enough")
        assert await asyncio.wait_for(reading, LIMIT) == "Here it is."
        assert stopped.is_set()
    assert (result.cancelled, result.cancel_reason) == (True, "enough")


# --- left, timed out, cancelled from outside ---------------------------------------------------------------------


@pytest.mark.parametrize("debounce_by", [None, 0.01])
async def test_break_keeps_what_arrived(scripted_server: StartServer, make_agent: MakeAgent, debounce_by: float | None):
    """Leaving the loop and the block closes the connection, and the partial answer is in the messages."""
    server = scripted_server(STUCK)
    async with run_stream(make_agent(server), "count") as result:
        async for _ in result.stream_text(delta=True, debounce_by=debounce_by):
            break
    assert await server.records[0].until_disconnected(LIMIT)
    response = last_response(result.all_messages())
    assert response.state == "interrupted"
    assert response.text is not None
    assert (result.cancelled, result.cancel_reason) == (True, "left")
    assert result.usage.output.low >= 1
    with pytest.raises(IncompleteOutputError, match="left"):
        await result.get_output()


async def test_a_second_loop_goes_on_after_break(scripted_server: StartServer, make_agent: MakeAgent):
    """Within the block a `break` closes nothing: the next loop takes what is left, and the answer is whole."""
    server = scripted_server(TALK)
    async with run_stream(make_agent(server), "count") as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            break
        assert await result.get_output() == "one two three four five six seven eight"
    assert not result.cancelled


async def test_task_cancel_propagates_and_keeps_what_arrived(scripted_server: StartServer, make_agent: MakeAgent):
    """Somebody else's cancellation is never swallowed, and costs nothing of what arrived."""
    server = scripted_server(STUCK)
    run = run_stream(make_agent(server), "count")
    reading = asyncio.create_task(enter(run))
    record = await server.until_request(0, LIMIT)
    await record.until_chunks(3, LIMIT)
    while run._result is None or (run.response.text or "") != "one two three":
        await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await record.until_disconnected(LIMIT)
    check_cut(run, "one two three", "task_cancelled")


async def test_task_cancel_while_entering_keeps_what_arrived(scripted_server: StartServer, make_agent: MakeAgent):
    """Also while the context is being entered."""
    server = scripted_server(Answer(ToolCall("look_up", '{"city": "Par', Silence())))
    agent = make_agent(server)
    agent.tool_plain(name="look_up")(lambda city: city)
    run = run_stream(agent, "look")
    entering = asyncio.create_task(enter(run))
    record = await server.until_request(0, LIMIT)
    await record.until_chunks(2, LIMIT)
    while not run.usage.output.low:
        await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert await record.until_disconnected(LIMIT)
    assert (run.cancelled, run.cancel_reason) == (True, "task_cancelled")
    assert isinstance(last_response(run.all_messages()).parts[0], ToolCallPart)


async def test_a_timeout_around_the_run(scripted_server: StartServer, make_agent: MakeAgent):
    """`asyncio.timeout` raises its own error, and what arrived is kept."""
    server = scripted_server(STUCK)
    run = run_stream(make_agent(server), "count")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit, run as result:
            await read_until(limit, result)
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(run, "one two three", "task_cancelled")


async def read_until(limit: asyncio.Timeout, result: CancellableRun[str]) -> None:
    """Let the time be over when all that will come is there."""
    seen = ""
    async for piece in result.stream_text(delta=True, debounce_by=None):
        seen += piece
        if seen == "one two three":
            limit.reschedule(asyncio.get_running_loop().time())


async def test_a_timeout_inside_the_run(scripted_server: StartServer, make_agent: MakeAgent):
    """A timeout within the block is told apart from any other cancellation."""
    server = scripted_server(STUCK)
    run = run_stream(make_agent(server), "count")
    with pytest.raises(TimeoutError):
        async with run as result, asyncio.timeout(None) as limit:
            await read_until(limit, result)
    check_cut(run, "one two three", "timeout")


async def fail_at_first(run: CancellableRun[str]) -> None:
    async with run as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            raise ZeroDivisionError


async def test_an_error_of_the_consumers_own(scripted_server: StartServer, make_agent: MakeAgent):
    """An exception in the block is the caller's, and passes; the run is closed and says that it was left."""
    server = scripted_server(STUCK)
    run = run_stream(make_agent(server), "count")
    with pytest.raises(ZeroDivisionError):
        await fail_at_first(run)
    assert await server.records[0].until_disconnected(LIMIT)
    check_cut(run, "one", "left")


# --- both at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("hops", range(4))
async def test_when_both_race_the_outer_one_wins(
    scripted_server: StartServer, make_agent: MakeAgent, first: str, hops: int
):
    """`cancel()` and `task.cancel()`, in both orders, k turns of the loop apart."""
    server = scripted_server(STUCK)
    run = run_stream(make_agent(server), "count")
    ended = asyncio.Event()

    async def read() -> None:
        try:
            await enter(run)
        finally:
            ended.set()

    reading = asyncio.create_task(read())
    record = await server.until_request(0, LIMIT)
    await record.until_chunks(3, LIMIT)
    while run._result is None or (run.response.text or "") != "one two three":
        await asyncio.sleep(0)

    calls = [lambda: run.cancel("ours"), reading.cancel]
    if first == "theirs":
        calls.reverse()
    calls[0]()
    for _ in range(hops):
        await asyncio.sleep(0)
    too_late = ended.is_set()
    calls[1]()

    if first == "ours" and too_late:
        await reading
    else:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(reading, LIMIT)
    assert await record.until_disconnected(LIMIT)
    assert run.cancelled
    assert last_response(run.all_messages()).state == "interrupted"


# --- output ------------------------------------------------------------------------------------------------------


async def test_get_output_of_a_cut_run(scripted_server: StartServer, make_agent: MakeAgent):
    """A cut answer is never returned as if it were the output."""
    server = scripted_server(STUCK)
    async with run_stream(make_agent(server), "count") as result:
        waiting = asyncio.create_task(result.get_output())
        await server.records[0].until_chunks(3, LIMIT)
        result.cancel("no output")
        with pytest.raises(IncompleteOutputError, match="'no output'"):
            await asyncio.wait_for(waiting, LIMIT)
        with pytest.raises(IncompleteOutputError, match="'no output'"):
            await result.get_output()


async def test_structured_output_just_ends(scripted_server: StartServer, make_agent: MakeAgent):
    """Half a JSON document raises no validation error into the consumer when the run is cancelled."""
    server = scripted_server(Answer(ToolCall("final_result", '{"response": [1, 2', ", 3", Silence())))
    async with run_stream(make_agent(server, output_type=list[int]), "count") as result:
        outputs: list[list[int]] = []
        async for output in result.stream_output(debounce_by=None):
            outputs.append(output)
            result.cancel()
    assert outputs
    assert result.cancelled
    assert isinstance(last_response(result.all_messages()).parts[0], ToolCallPart)


async def test_snapshots_just_end(scripted_server: StartServer, make_agent: MakeAgent):
    """`stream_response` ends like the other loops."""
    server = scripted_server(STUCK)
    async with run_stream(make_agent(server), "count") as result:
        snapshots = []
        async for response in result.stream_response(debounce_by=None):
            snapshots.append(response)
            result.cancel()
    assert len(snapshots) == 1
    check_cut(result, result.response.text or "", "cancelled")


# --- misuse ------------------------------------------------------------------------------------------------------


async def test_used_before_it_was_entered(scripted_server: StartServer, make_agent: MakeAgent):
    """The error names the missing `async with`."""
    run = run_stream(make_agent(scripted_server(TALK)), "count")
    with pytest.raises(RuntimeError, match="async with run_stream"):
        run.stream_text()
    with pytest.raises(RuntimeError, match="async with run_stream"):
        _ = run.response
    assert run.all_messages() == []


async def test_entered_twice(scripted_server: StartServer, make_agent: MakeAgent):
    """A run happens once."""
    run = run_stream(make_agent(scripted_server(TALK)), "count")
    async with run as result:
        await result.get_output()
    with pytest.raises(RuntimeError, match="entered before"):
        async with run:
            pass


def test_what_is_no_agent():
    """The error comes from the call that was wrong."""
    with pytest.raises(TypeError, match="pydantic-ai Agent, not a str"):
        run_stream("gpt-4o", "count")  # type: ignore[call-overload]


def test_what_is_no_history():
    """A history of the wrong type is refused at the call, not in the middle of the run."""
    agent = Agent(FunctionModel(stream_function=lambda *_: None))  # type: ignore[arg-type, return-value]
    with pytest.raises(TypeError, match="message history must be a list"):
        run_stream(agent, "count", message_history="hello")


async def test_a_reason_that_is_no_string(scripted_server: StartServer, make_agent: MakeAgent):
    """Nothing is stopped by a call that was wrong."""
    server = scripted_server(TALK)
    async with run_stream(make_agent(server), "count") as result:
        with pytest.raises(TypeError, match="pass a string"):
            result.cancel(ValueError("stop"))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="at most 200"):
            result.cancel("x" * 201)
        assert await result.get_output() == "one two three four five six seven eight"
    assert not result.cancelled


# --- many at once ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number_of_runs", [20, pytest.param(50, marks=pytest.mark.soak)])
async def test_many_runs_half_of_them_cancelled_from_threads(
    scripted_server: StartServer, make_agent: MakeAgent, number_of_runs: int
):
    """Runs share an agent and a client, and nothing else: each is whole or cut, as it was told."""
    gate = Gate()
    server = scripted_server(Answer(Text("one", " two", gate, " three")), repeat=True)
    agent = make_agent(server)
    runs = [run_stream(agent, f"run {number}") for number in range(number_of_runs)]
    reading = [asyncio.create_task(enter(run)) for run in runs]
    for number in range(number_of_runs):
        record = await server.until_request(number, LIMIT)
        await record.until_chunks(2, LIMIT)
    for run in runs:
        while run._result is None or run.response.text != "one two":
            await asyncio.sleep(0)
    threads = [threading.Thread(target=run.cancel) for run in runs[::2]]
    for thread in threads:
        thread.start()
    await asyncio.gather(*reading[::2])
    gate.open()
    await asyncio.gather(*reading)
    assert [run.response.text for run in runs] == ["one two", "one two three"] * (number_of_runs // 2)
    assert [run.cancelled for run in runs] == [True, False] * (number_of_runs // 2)
    gone = [record for record in server.records if record.ended_by == "client"]
    assert len(gone) == number_of_runs // 2


async def test_a_run_inside_a_tool_has_a_life_of_its_own(scripted_server: StartServer, make_agent: MakeAgent):
    """Cancelling the inner run of a tool leaves the outer one whole."""
    inner_server = scripted_server(STUCK)
    outer_server = scripted_server(Answer(ToolCall("ask", "{}")), Answer(Text("done")))
    inner_agent, outer_agent = make_agent(inner_server), make_agent(outer_server)

    @outer_agent.tool
    async def ask(ctx: RunContext[None]) -> str:
        async with run_stream(inner_agent, "count") as inner:
            taken = await take(inner, 2)
        assert inner.cancelled
        return "".join(taken)

    async with run_stream(outer_agent, "ask") as outer:
        assert await outer.get_output() == "done"
    assert not outer.cancelled
    assert "one two" in outer.all_messages_json().decode()
