"""`stream_async()`, stopped at every moment of a run: over a real socket, with a server that says what it saw."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import anyio
import pytest

pytest.importorskip("strands", reason="needs cancelstream[strands]")

import openai
from strands import Agent, tool
from strands.hooks import (
    AfterInvocationEvent,
    AfterModelCallEvent,
    AfterToolCallEvent,
    AfterToolsEvent,
    BeforeModelCallEvent,
    MessageAddedEvent,
)
from strands.models.model import Model
from strands.types.exceptions import ConcurrencyException
from strands_support import (
    AGAIN,
    LIMIT,
    STUCK,
    agent_for,
    check_free,
    gated,
    left_at,
    model_for,
    reading,
    record_of,
    texts,
)

from cancelstream.strands import CancellableAgentStream, _run, stream_async
from cancelstream.testing import Answer, HttpError, Silence, Text, ToolCall
from cancelstream.testing._plugin import StartServer

CALL = Answer(Text("Let me", " see."), ToolCall("wait", "{}"))


class Waiting:
    """A tool that says when it has begun, and how it ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.cancelled = False

        @tool
        async def wait() -> str:
            """Wait for ever."""
            self.begun.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
            return "never"  # pragma: no cover

        self.tool = wait


def check_cut(agent: Agent, stream: CancellableAgentStream, text: str, reason: str) -> None:
    """What every cut run says."""
    assert stream.cancelled
    assert stream.cancel_reason == reason
    last = agent.messages[-1]
    assert last["role"] == "assistant"
    assert last["content"] == [{"text": text}]
    assert record_of(last)["v"] == 1
    assert record_of(last)["reason"] == reason


# --- the moments of a run ---------------------------------------------------------------------------------------------


async def test_mid_text_the_loop_just_ends(scripted_server: StartServer):
    """After `cancel()` nothing more arrives, the server is told, and what arrived is kept and counted."""
    answer, _ = gated("one", " two", " three")
    server = scripted_server(answer, AGAIN)
    agent = agent_for(server)
    taken: list[dict[str, Any]] = []
    async with stream_async(agent, "count") as stream:
        async for event in stream:
            taken.append(event)
            if texts(taken) == ["one", " two", " three"]:
                stream.cancel("enough")
    assert "data" in taken[-1]
    check_cut(agent, stream, "one two three", "enough")
    assert stream.usage.output.value is not None
    assert stream.usage.output.low >= 3
    assert stream.usage.output.source == "estimated"
    assert stream.usage() is stream.usage
    assert await left_at(server.records[0])
    await check_free(agent)


async def test_while_the_provider_is_silent(scripted_server: StartServer):
    """A provider that says nothing more is told at once all the same: nothing has to come first."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        before = time.monotonic()
        await stream.cancel("enough")
        assert await left_at(server.records[0]) - before < 1
        assert (await reader.end())[-1]["data"] == " two"
    check_cut(agent, stream, "one two", "enough")
    await check_free(agent)


@pytest.mark.parametrize("before_headers", [None, Silence()], ids=["first token", "headers"])
async def test_before_the_first_token(scripted_server: StartServer, before_headers: Silence | None):
    """A request that has no answer yet, not even headers, is closed; a fixed sentence stands for the answer."""
    stuck = Answer(Silence()) if before_headers is None else Answer(before_headers=before_headers)
    server = scripted_server(stuck, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await server.until_request()
        await stream.cancel()
        assert texts(await reader.end()) == []
    assert await left_at(server.records[0])
    check_cut(agent, stream, "[This answer was interrupted before it was complete.]", "cancelled")
    assert stream.usage.requests == 1
    await check_free(agent)


async def test_before_it_is_iterated(scripted_server: StartServer):
    """Nothing is sent, the agent is untouched, and awaiting the cancel returns."""
    server = scripted_server(AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")
    await stream.cancel("changed my mind")
    assert [event async for event in stream] == []
    assert stream.cancelled
    assert server.records == ()
    assert agent.messages == []
    assert stream.usage.requests == 0
    await check_free(agent)


async def test_in_a_tool(scripted_server: StartServer):
    """The tool is cancelled, its call is answered as interrupted, and nothing further is asked."""
    server = scripted_server(CALL, AGAIN)
    waiting = Waiting()
    agent = agent_for(server, tools=[waiting.tool])
    async with stream_async(agent, "look") as stream, reading(stream) as reader:
        await asyncio.wait_for(waiting.begun.wait(), LIMIT)
        await stream.cancel("enough")
        await reader.end()
    assert waiting.cancelled
    assert len(server.records) == 1
    assert agent.messages[-2]["content"][0] == {"text": "Let me see."}
    result = agent.messages[-1]["content"][0]["toolResult"]
    assert result["toolUseId"] == agent.messages[-2]["content"][1]["toolUse"]["toolUseId"]
    assert result["status"] == "error"
    assert result["content"] == [{"text": "The tool call was interrupted before a result was produced."}]
    assert record_of(agent.messages[-1]) == {"v": 1, "reason": "enough"}
    assert "metadata" not in agent.messages[-2] or "custom" not in agent.messages[-2]["metadata"]
    assert stream.usage.tool_calls == 0
    await check_free(agent)


async def test_in_one_tool_of_two(scripted_server: StartServer):
    """A tool that had finished keeps its result."""
    server = scripted_server(Answer(ToolCall("quick", "{}"), ToolCall("wait", "{}")), AGAIN)
    waiting = Waiting()
    finished = asyncio.Event()

    @tool
    def quick() -> str:
        """Be quick."""
        return "done"

    agent = agent_for(server, tools=[waiting.tool, quick])
    agent.add_hook(lambda event: finished.set() if event.tool_use["name"] == "quick" else None, AfterToolCallEvent)
    async with stream_async(agent, "look") as stream, reading(stream) as reader:
        await asyncio.wait_for(asyncio.gather(waiting.begun.wait(), finished.wait()), LIMIT)
        await stream.cancel()
        await reader.end()
    results = [block["toolResult"] for block in agent.messages[-1]["content"]]
    assert [result["status"] for result in results] == ["success", "error"]
    assert results[0]["content"] == [{"text": "done"}]
    assert stream.usage.tool_calls == 1
    await check_free(agent)


async def test_in_a_tool_that_is_a_plain_function(scripted_server: StartServer):
    """Its thread is left to finish, its result is dropped, and the run does not wait for it."""
    server = scripted_server(CALL, AGAIN)
    begun, release, finished = threading.Event(), threading.Event(), threading.Event()

    @tool
    def wait() -> str:
        """Wait until released."""
        begun.set()
        release.wait(LIMIT)
        finished.set()
        return "too late"

    agent = agent_for(server, tools=[wait])
    try:
        async with stream_async(agent, "look") as stream, reading(stream) as reader:
            assert await asyncio.to_thread(begun.wait, LIMIT)
            await stream.cancel()
            await reader.end()
        assert not finished.is_set()
        assert agent.messages[-1]["content"][0]["toolResult"]["status"] == "error"
        await check_free(agent)
    finally:
        release.set()
    assert await asyncio.to_thread(finished.wait, LIMIT)
    assert "too late" not in str(agent.messages)


async def test_by_its_own_tool(scripted_server: StartServer):
    """A tool may stop the run it is called in, and awaiting that does not wait for itself."""
    server = scripted_server(CALL, AGAIN)
    streams: list[CancellableAgentStream] = []

    @tool
    async def wait() -> str:
        """Stop the run."""
        await streams[0].cancel("a tool said so")
        await streams[0].close()
        await asyncio.get_running_loop().create_future()
        return "never"  # pragma: no cover

    agent = agent_for(server, tools=[wait])
    async with stream_async(agent, "look") as stream:
        streams.append(stream)
        async for _ in stream:
            pass
    assert stream.cancel_reason == "a tool said so"
    assert len(server.records) == 1
    await check_free(agent)


async def test_a_tool_that_swallows_it_is_let_go(scripted_server: StartServer):
    """A tool that catches the cancellation and goes on does not keep the run: after a second it is let go."""
    server = scripted_server(CALL, AGAIN)
    begun = asyncio.Event()

    @tool
    async def wait() -> str:
        """Wait, whatever happens."""
        begun.set()
        while True:
            with suppress(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()

    agent = agent_for(server, tools=[wait])
    async with stream_async(agent, "look") as stream, reading(stream) as reader:
        await asyncio.wait_for(begun.wait(), LIMIT)
        stream.cancel()
        await reader.end()
    await check_free(agent)


async def test_no_tool_begins_after_it(scripted_server: StartServer):
    """Stopped when the model has asked for a tool, the tool is never called."""
    server = scripted_server(CALL, AGAIN)
    called = False

    @tool
    def wait() -> str:
        """Be called."""
        nonlocal called
        called = True
        return "never"  # pragma: no cover

    agent = agent_for(server, tools=[wait])
    async with stream_async(agent, "look") as stream:
        async for event in stream:
            if "message" in event:
                stream.cancel()
    assert not called
    assert agent.messages[-1]["content"][0]["toolResult"]["status"] == "error"
    assert len(server.records) == 1
    await check_free(agent)


async def test_while_strands_waits_to_try_again(scripted_server: StartServer):
    """strands sleeps 4 seconds and more before it repeats a throttled request: that is interrupted too."""
    server = scripted_server(HttpError(429), AGAIN)
    agent = agent_for(server)
    failed = asyncio.Event()
    agent.add_hook(lambda _: failed.set(), AfterModelCallEvent)
    before = time.monotonic()
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await asyncio.wait_for(failed.wait(), LIMIT)
        await stream.cancel()
        await reader.end()
    assert time.monotonic() - before < 3
    assert len(server.records) == 1
    await check_free(agent)


async def test_between_two_pulls(scripted_server: StartServer):
    """While the consumer is busy with an event, the connection is closed all the same, by the loop."""
    answer, _ = gated("one", " two")
    server = scripted_server(answer, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream:
        async for event in stream:
            if "data" in event:
                await server.records[0].until_chunks(2)
                await stream.cancel()
                assert await left_at(server.records[0])
                await check_free(agent)
                taken = event
    assert taken["data"] == "one"
    assert {"text": "one"} in agent.messages[-3]["content"]


async def test_between_two_turns(scripted_server: StartServer):
    """Stopped when the tools have answered, the next request is never made."""
    server = scripted_server(Answer(ToolCall("now", "{}")), AGAIN)

    @tool
    def now() -> str:
        """Tell the time."""
        return "noon"

    agent = agent_for(server, tools=[now])
    async with stream_async(agent, "when?") as stream:
        async for event in stream:
            if "message" in event and event["message"]["role"] == "user":
                stream.cancel()
    assert len(server.records) == 1
    assert agent.messages[-1]["content"][0]["toolResult"]["status"] == "success"
    await check_free(agent)


async def test_by_a_hook_before_the_request(scripted_server: StartServer):
    """Stopped when the request is about to be made, it is not made."""
    server = scripted_server(AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")
    stop = [stream.cancel]
    agent.add_hook(lambda _: stop.pop()("not now") if stop else None, BeforeModelCallEvent)
    async with stream:
        assert texts([event async for event in stream]) == []
    assert stream.cancel_reason == "not now"
    assert server.records == ()
    await check_free(agent)


async def test_in_a_hook(scripted_server: StartServer):
    """A hook that waits is interrupted."""
    server = scripted_server(AGAIN)
    agent = agent_for(server)
    waits = [asyncio.Event()]

    async def hook(event: BeforeModelCallEvent) -> None:
        if waits:
            waits.pop().set()
            await asyncio.get_running_loop().create_future()

    agent.add_hook(hook, BeforeModelCallEvent)
    begun = waits[0]
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await asyncio.wait_for(begun.wait(), LIMIT)
        await stream.cancel()
        await reader.end()
    assert server.records == ()
    await check_free(agent)


async def test_a_hook_that_stores_the_answer_is_let_end(scripted_server: StartServer):
    """When the answer is whole and strands is finishing, its hooks are not interrupted."""
    server = scripted_server(AGAIN)
    agent = agent_for(server)
    begun, release, stored = asyncio.Event(), asyncio.Event(), False

    async def hook(event: AfterInvocationEvent) -> None:
        nonlocal stored
        begun.set()
        await release.wait()
        stored = True

    agent.add_hook(hook, AfterInvocationEvent)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await asyncio.wait_for(begun.wait(), LIMIT)
        closing = stream.cancel()
        release.set()
        await closing
        await reader.end()
    assert stored
    assert agent.messages[-1]["content"] == [{"text": "Here I am."}]
    assert "custom" not in agent.messages[-1]["metadata"]


async def test_a_hook_that_never_ends_does_not_keep_the_run(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
):
    """strands has a few seconds to end after a cancel; then it is interrupted, and what it missed is put right."""
    monkeypatch.setattr(_run, "HOOKS_TIMEOUT", 0.05)
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    stuck = [True]

    async def hook(event: AfterModelCallEvent) -> None:
        if stuck:
            stuck.clear()
            await asyncio.get_running_loop().create_future()

    agent.add_hook(hook, AfterModelCallEvent)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        stream.cancel("enough")
        await reader.end()
    check_cut(agent, stream, "one two", "enough")
    await check_free(agent)


async def test_a_whole_answer_is_not_flagged(scripted_server: StartServer):
    """Stopped in the moment between the answer's end and its being stored, the run is whole: nothing is changed."""
    server = scripted_server(AGAIN, AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "hello")
    stop = [stream.cancel]
    agent.add_hook(lambda _: stop.pop()() if stop else None, AfterModelCallEvent)
    async with stream:
        async for _ in stream:
            pass
    assert not stream.cancelled
    assert stream.usage.complete
    assert agent.messages[-1]["content"] == [{"text": "Here I am."}]
    assert "custom" not in agent.messages[-1]["metadata"]
    assert stream.usage.provenance == "reported"
    await check_free(agent)


async def test_whole_results_are_not_flagged(scripted_server: StartServer):
    """Stopped when the last tool has answered, every result is what the tool said."""
    server = scripted_server(Answer(ToolCall("now", "{}")), AGAIN)

    @tool
    def now() -> str:
        """Tell the time."""
        return "noon"

    agent = agent_for(server, tools=[now])
    stream = stream_async(agent, "when?")
    stop = [stream.cancel]
    agent.add_hook(lambda _: stop.pop()() if stop else None, AfterToolsEvent)
    async with stream:
        async for _ in stream:
            pass
    assert agent.messages[-1]["content"][0]["toolResult"]["content"] == [{"text": "noon"}]
    assert "metadata" not in agent.messages[-1]
    assert len(server.records) == 1
    await check_free(agent)


async def test_a_hook_that_asks_again_and_again_ends(scripted_server: StartServer):
    """A hook that has every call tried again is not obeyed after a cancel."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    insists = True

    def hook(event: AfterModelCallEvent) -> None:
        event.retry = insists

    agent.add_hook(hook, AfterModelCallEvent)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        stream.cancel("enough")
        await reader.end()
    assert len(server.records) == 1
    check_cut(agent, stream, "one two", "enough")
    insists = False
    await check_free(agent)


# --- from where it is called -----------------------------------------------------------------------------------------


async def test_from_another_thread(scripted_server: StartServer):
    """Any thread may call it, and what it returns may be awaited on another loop."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)

    def stop(stream: CancellableAgentStream) -> None:
        async def wait() -> None:
            await stream.cancel("from a thread")

        asyncio.run(wait())

    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        await asyncio.to_thread(stop, stream)
        assert await left_at(server.records[0])
        await reader.end()
    check_cut(agent, stream, "one two", "from a thread")
    await check_free(agent)


async def test_from_a_signal_handler(scripted_server: StartServer):
    """A signal handler may call it: it takes no lock."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        before = signal.signal(signal.SIGUSR1, lambda *_: stream.cancel("a signal") and None)
        try:
            signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, before)
        await reader.end()
    check_cut(agent, stream, "one two", "a signal")
    await check_free(agent)


async def test_after_the_end_it_does_nothing(scripted_server: StartServer):
    """Neither to the run, nor to the agent's next one."""
    server = scripted_server(AGAIN, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "hello") as stream:
        events = [event async for event in stream]
    await stream.cancel("too late")
    assert not stream.cancelled
    assert stream.cancel_reason is None
    assert events[-1]["result"].stop_reason == "end_turn"
    assert (stream.usage.input.value, stream.usage.output.value) == (10, 2)
    assert stream.usage.provenance == "reported"
    assert stream.usage.complete
    await check_free(agent)


async def test_the_first_reason_counts(scripted_server: StartServer):
    """It is idempotent, and a reason that is none is refused before anything happens."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        with pytest.raises(TypeError):
            stream.cancel(object())  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="201"):
            stream.cancel("x" * 201)
        assert not stream.cancelled
        stream.cancel("first")
        await stream.cancel("second")
        await reader.end()
    check_cut(agent, stream, "one two", "first")


# --- others who stop it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["ours", "theirs"])
async def test_a_task_that_is_cancelled_as_well(scripted_server: StartServer, first: str):
    """When both race the task's own cancellation wins, in either order, and nothing is lost."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")
    async with reading(stream) as reader:
        await reader.until_texts(2)
        acts = [lambda: stream.cancel("enough"), reader.task.cancel]
        for act in acts if first == "ours" else reversed(acts):
            act()
        with pytest.raises(asyncio.CancelledError):
            await reader.end()
    await stream.close()
    check_cut(agent, stream, "one two", "enough")
    assert await left_at(server.records[0])
    await check_free(agent)


@pytest.mark.parametrize("where", ["pulling", "paused"])
async def test_a_cancelled_task(scripted_server: StartServer, where: str):
    """It raises, as it should, and what arrived is kept all the same."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")
    here = asyncio.Event()

    async def consume() -> None:
        pieces = 0
        async with stream:
            async for event in stream:
                pieces += "data" in event
                if pieces == 2:
                    here.set()
                    if where == "paused":
                        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(consume())
    await asyncio.wait_for(here.wait(), LIMIT)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, LIMIT)
    check_cut(agent, stream, "one two", "task_cancelled")
    assert await left_at(server.records[0])
    await check_free(agent)


async def test_a_task_that_is_cancelled_again(scripted_server: StartServer):
    """A second cancellation, while strands ends its run, raises as well; what arrived is still kept."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    ending = [asyncio.Event()]

    async def hook(event: AfterInvocationEvent) -> None:
        if ending:
            ending.pop().set()
            await asyncio.get_running_loop().create_future()

    agent.add_hook(hook, AfterInvocationEvent)
    ends = ending[0]
    stream = stream_async(agent, "count")
    async with reading(stream) as reader:
        await reader.until_texts(2)
        closing = asyncio.create_task(stream.close())  # the pull that is going on finishes the run
        await asyncio.wait_for(ends.wait(), LIMIT)
        reader.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader.end()
        await closing
    check_cut(agent, stream, "one two", "left")
    await check_free(agent)


async def test_a_task_cancelled_in_a_tool(scripted_server: StartServer):
    """The call is answered as interrupted, which strands alone leaves open."""
    server = scripted_server(CALL, AGAIN)
    waiting = Waiting()
    agent = agent_for(server, tools=[waiting.tool])
    stream = stream_async(agent, "look")
    async with reading(stream) as reader:
        await asyncio.wait_for(waiting.begun.wait(), LIMIT)
        reader.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader.end()
    assert waiting.cancelled
    assert agent.messages[-1]["content"][0]["toolResult"]["status"] == "error"
    assert record_of(agent.messages[-1])["reason"] == "task_cancelled"
    await check_free(agent)


async def test_an_anyio_scope(scripted_server: StartServer):
    """A scope that is cancelled, and cancels again at every await, ends as scopes do, and nothing is lost."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")
    pieces = 0
    with anyio.CancelScope() as scope:
        async for event in stream:
            pieces += "data" in event
            if pieces == 2:
                scope.cancel()
    assert scope.cancelled_caught
    check_cut(agent, stream, "one two", "task_cancelled")
    assert await left_at(server.records[0])
    await check_free(agent)


async def test_a_timeout(scripted_server: StartServer):
    """`asyncio.timeout()` raises its `TimeoutError`, and nothing is lost."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")

    async def consume() -> None:
        async with asyncio.timeout(LIMIT) as limit:
            async for event in stream:
                if event.get("data") == " two":
                    limit.reschedule(0)

    with pytest.raises(TimeoutError):
        await consume()
    check_cut(agent, stream, "one two", "task_cancelled")
    await check_free(agent)


async def test_a_break(scripted_server: StartServer):
    """Leaving the block ends the run, and the agent is free when the block is left."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream:
        async for event in stream:
            if event.get("data") == " two":
                break
    check_cut(agent, stream, "one two", "left")
    assert await left_at(server.records[0])
    await check_free(agent)
    assert [event async for event in stream] == []


async def test_an_exception_in_the_block(scripted_server: StartServer):
    """It flies on, and the run is ended as by `break`."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")

    async def consume() -> None:
        async with stream:
            async for event in stream:
                if event.get("data") == " two":
                    raise LookupError

    with pytest.raises(LookupError):
        await consume()
    check_cut(agent, stream, "one two", "left")
    await check_free(agent)


async def test_a_break_at_the_result(scripted_server: StartServer):
    """The result is the last event: whoever has it has a whole run and a free agent."""
    server = scripted_server(AGAIN, AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "hello")
    async for event in stream:
        if "result" in event:
            break
    assert not stream.cancelled
    await check_free(agent)


async def test_a_stream_that_was_only_dropped(scripted_server: StartServer):
    """It warns, the loop ends the run, and the next stream of the agent waits for that."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    stream: CancellableAgentStream | None = stream_async(agent, "count")
    assert stream is not None
    async for event in stream:
        if event.get("data") == " two":
            break
    with pytest.warns(ResourceWarning, match="async with"):
        del stream
    assert "".join(texts([event async for event in stream_async(agent, "and now?")])) == "Here I am."
    assert agent.messages[1]["content"] == [{"text": "one two"}]
    assert record_of(agent.messages[1])["reason"] == "left"
    assert await left_at(server.records[0])


async def test_the_next_stream_waits_for_one_that_is_being_stopped(scripted_server: StartServer):
    """A cancel that nobody awaits does not trip the agent's next run."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")
    async for event in stream:
        if event.get("data") == " two":
            stream.cancel()
            break
    assert "".join(texts([event async for event in stream_async(agent, "and now?")])) == "Here I am."


async def test_a_stream_that_waits_for_one_that_does_not_end(scripted_server: StartServer):
    """It can be stopped itself, and then nothing of it was sent."""
    server = scripted_server(STUCK)
    agent = agent_for(server)
    held = asyncio.Event()

    async def hook(event: AfterModelCallEvent) -> None:
        held.set()
        await asyncio.get_running_loop().create_future()

    agent.add_hook(hook, AfterModelCallEvent)
    first, second = stream_async(agent, "count"), stream_async(agent, "and now?")
    async with reading(first) as one:
        await one.until_texts(2)
        first.cancel()
        await asyncio.wait_for(held.wait(), LIMIT)
        async with reading(second) as two:
            await asyncio.sleep(0)  # it has begun to wait
            await second.cancel("not now")
            assert await two.end() == []
        one.task.cancel()  # the hook is interrupted, and what it kept from being done is put right
        with pytest.raises(asyncio.CancelledError):
            await one.end()
    check_cut(agent, first, "one two", "cancelled")
    assert second.cancel_reason == "not now"
    assert len(server.records) == 1


async def test_what_no_library_should_raise(scripted_server: StartServer):
    """An exception that is no `Exception` flies on, and leaving the block ends the run."""

    class Stop(BaseException):
        pass

    server = scripted_server(AGAIN)
    agent = agent_for(server)
    raises = [Stop()]

    def hook(event: BeforeModelCallEvent) -> None:
        if raises:
            raise raises.pop()

    agent.add_hook(hook, BeforeModelCallEvent)
    async with stream_async(agent, "count") as stream:
        with pytest.raises(Stop):
            await _to_the_end(stream)
    assert stream.cancel_reason == "left"
    await check_free(agent)


async def _to_the_end(stream: CancellableAgentStream) -> None:
    async for _ in stream:
        pass


def test_when_its_loop_is_gone():
    """A cancel that comes when the loop has ended does nothing, and raises nothing."""

    class Said(Model):
        def update_config(self, **config: Any) -> None:
            raise NotImplementedError

        def get_config(self) -> Any:
            return {}

        def structured_output(self, *_args: Any, **_kwargs: Any) -> Any:
            raise NotImplementedError

        async def stream(self, *_args: Any, **_kwargs: Any) -> Any:
            yield {"contentBlockDelta": {"delta": {"text": "one"}}}

    stream = stream_async(Agent(model=Said(), callback_handler=None), "count")

    async def begin() -> None:
        async for event in stream:
            if "data" in event:
                return

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    stream.cancel()
    assert stream.cancelled
    asyncio.run(_awaited(stream))


async def _awaited(stream: CancellableAgentStream) -> None:
    await stream.cancel()
    await stream.close()


async def test_an_agent_that_is_busy(scripted_server: StartServer):
    """strands' own error comes through, and the run that is going on is left alone."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        with pytest.raises(ConcurrencyException):
            async for _ in stream_async(agent, "me too"):
                pass
        assert not stream.cancelled
        stream.cancel()
        await reader.end()
    check_cut(agent, stream, "one two", "cancelled")
    await check_free(agent)


async def test_one_task_pulls_at_a_time(scripted_server: StartServer):
    """A second one is told so, and the first goes on."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        with pytest.raises(RuntimeError, match="one pulls at a time"):
            await anext(stream)
        stream.cancel()
        assert "".join(texts(await reader.end())) == "one two"


async def test_cancelled_and_closed_at_once(scripted_server: StartServer):
    """The one does not get into the other's way."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")
    async for event in stream:
        if event.get("data") == " two":
            stream.cancel("enough")
            await stream.close()
    check_cut(agent, stream, "one two", "enough")
    await check_free(agent)


async def test_closed_by_another_task(scripted_server: StartServer):
    """The task that pulls just reaches the end of its loop."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")
    async with reading(stream) as reader:
        await reader.until_texts(2)
        await stream.close()
        await reader.end()
    check_cut(agent, stream, "one two", "left")
    await check_free(agent)


# --- strands' own cancel ----------------------------------------------------------------------------------------------


async def test_a_cancel_of_an_idle_agent_does_nothing(scripted_server: StartServer):
    """strands keeps `agent.cancel()` for the next run: a stream of ours begins without it."""
    server = scripted_server(AGAIN)
    agent = agent_for(server)
    agent.cancel()
    await check_free_stream(agent)


async def check_free_stream(agent: Agent) -> None:
    events = [event async for event in stream_async(agent, "and now?")]
    assert events[-1]["result"].stop_reason == "end_turn"
    assert "".join(texts(events)) == "Here I am."


async def test_a_signal_that_is_passed_in_counts(scripted_server: StartServer):
    """What is meant for this run does reach it, as in strands."""
    server = scripted_server(AGAIN)
    agent = agent_for(server)
    stop = threading.Event()
    stop.set()
    events = [event async for event in stream_async(agent, "hello", cancel_signal=stop)]
    assert events[-1]["result"].stop_reason == "cancelled"


async def test_strands_own_cancel_is_as_it_was(scripted_server: StartServer):
    """`agent.cancel()` during a run of ours ends it as in strands: with the next chunk, and its own words."""
    answer, gate = gated("one", " two")
    server = scripted_server(answer, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        agent.cancel()
        gate.open()
        events = await reader.end()
    assert events[-1]["result"].stop_reason == "cancelled"
    assert agent.messages[-1]["content"] == [{"text": "Cancelled by user"}]
    assert "custom" not in agent.messages[-1]["metadata"]
    assert not stream.cancelled
    assert stream.usage.output.source == "estimated"
    await check_free(agent)


async def test_both_cancels(scripted_server: StartServer):
    """After `agent.cancel(message=...)`, ours stops the run at once and keeps what arrived."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        agent.cancel(message="So be it.")
        await stream.cancel("enough")
        await reader.end()
    check_cut(agent, stream, "one two", "enough")
    await check_free(agent)


async def test_several_runs_at_once(scripted_server: StartServer):
    """Where an agent may run several at once, stopping one leaves the others alone."""
    server = scripted_server(STUCK, STUCK)
    agent = agent_for(server, concurrent_invocation_mode="unsafe_reentrant")
    first, second = stream_async(agent, "count"), stream_async(agent, "count too")
    async with first, second, reading(first) as one, reading(second) as two:
        await one.until_texts(2)
        await two.until_texts(2)
        await first.cancel("enough")
        await one.end()
        assert not two.task.done()
        assert not agent.cancel_signal.is_set()
        await second.cancel()
        await two.end()


# --- connections ------------------------------------------------------------------------------------------------------


async def test_a_client_of_the_users_own_loses_nothing(scripted_server: StartServer):
    """With an injected client that has one connection, the next request goes out, and the client stays open."""
    import httpx2

    server = scripted_server(STUCK, STUCK, AGAIN)
    limits = httpx2.Limits(max_connections=1)
    async with openai.AsyncOpenAI(
        api_key="not-a-key",
        base_url=server.base_url,
        http_client=httpx2.AsyncClient(limits=limits, timeout=LIMIT),
        max_retries=0,
    ) as client:
        from strands.models.openai import OpenAIModel

        agent = Agent(model=OpenAIModel(client=client, model_id="gpt-4o"), callback_handler=None)
        async with stream_async(agent, "count") as stream, reading(stream) as reader:
            await reader.until_texts(2)
            await stream.cancel()
        async with stream_async(agent, "count") as stream:
            async for event in stream:
                if event.get("data") == "one":
                    break
        await check_free(agent)


async def test_siblings_are_unharmed(scripted_server: StartServer):
    """Agents that share a model are told apart."""
    answer, gate = gated("one", " two")
    server = scripted_server(answer, answer)
    model = model_for(server)
    agents = [Agent(model=model, callback_handler=None) for _ in range(2)]
    streams = [stream_async(agent, "count") for agent in agents]
    async with streams[0], streams[1], reading(streams[0]) as one, reading(streams[1]) as two:
        await one.until_texts(2)
        await two.until_texts(2)
        await streams[0].cancel()
        gate.open()
        assert "".join(texts(await two.end())) == "one two end"
    assert "".join(one.texts) == "one two"


# --- what is refused --------------------------------------------------------------------------------------------------


async def test_what_is_no_agent():
    """The error says what is wanted."""
    with pytest.raises(TypeError, match="Agent, Graph or Swarm"):
        stream_async("an agent", "hello")  # type: ignore[arg-type]


async def test_messages_are_added_once(scripted_server: StartServer):
    """Hooks see each message of a cut run once, already with its record."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    added: list[Any] = []
    agent.add_hook(
        lambda event: added.append((event.message["role"], "custom" in event.message.get("metadata", {}))),
        MessageAddedEvent,
    )
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        await stream.cancel()
    assert added == [("user", False), ("assistant", True)]
