"""What is iterated and what the callback handler sees: strands' own events, nothing else, in order."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

pytest.importorskip("strands", reason="needs cancelstream[strands]")

from opentelemetry import context as otel_context
from strands import Agent, tool
from strands.hooks import BeforeInvocationEvent, BeforeModelCallEvent
from strands.types.exceptions import MaxTokensReachedException
from strands_support import AGAIN, STUCK, agent_for, check_free, collect, reading, record_of, texts

from cancelstream.strands import stream_async
from cancelstream.testing import Answer, Cut, Gate, HttpError, Reasoning, Text, ToolCall, Turn
from cancelstream.testing._plugin import StartServer


@tool
async def now() -> str:
    """Tell the time."""
    return "noon"


@tool
def fail() -> str:
    """Fail."""
    raise LookupError("nothing there")


RUNS: dict[str, list[Turn]] = {
    "text": [Answer(Text("one", " two"))],
    "tools": [
        Answer(Text("Let me see."), ToolCall("now", "{}", id="a"), ToolCall("fail", "{}", id="b")),
        Answer(Text("It is noon.")),
    ],
    "reasoning": [Answer(Reasoning("Hm", "m."), Text("one", " two"))],
    "length": [Answer(Text("one", " two"), finish="length")],
    "filtered": [Answer(Text("one"), finish="content_filter")],
    "refused": [HttpError(400)],
    "broken": [Answer(Text("one"), Cut("reset"))],
}


class Seen:
    """A callback handler that remembers what it is called with."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, **event: Any) -> None:
        self.events.append(event)


def plain(value: Any) -> Any:
    """What can be compared of an event: no times, no random ids, no objects of a run."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key not in ("tracking_id", "metrics")}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


async def taken(stream: Any) -> tuple[list[Any], str | None]:
    """All events as they can be compared, and the error they ended with."""
    events, error = await collect(stream)
    return plain(events), None if error is None else repr(error)


@pytest.mark.parametrize("run", RUNS)
async def test_they_are_strands_own(scripted_server: StartServer, run: str):
    """The same events, in the same order, and the same error at the end; the handler sees each of them once."""
    both = []
    for ours in (False, True):
        server = scripted_server(*RUNS[run])
        seen = Seen()
        agent = agent_for(server, tools=[now, fail], callback_handler=seen)
        state = {"user": "u-1"}
        if ours:
            stream: Any = stream_async(agent, "go", invocation_state=state)
        else:
            stream = agent.stream_async("go", invocation_state=state)
        events, error = await taken(stream)
        assert plain(seen.events) == events
        both.append((events, str(error).replace(server.url, "")))
    assert len(both[0][0]) > 3
    assert both[0] == both[1]


async def test_the_handler_is_put_back_at_once(scripted_server: StartServer):
    """Whoever looks at the agent's handler finds the user's own, during the run and after it."""
    server = scripted_server(AGAIN)
    seen = Seen()
    agent = agent_for(server, callback_handler=seen)
    async for _ in stream_async(agent, "hello"):
        assert agent.callback_handler is seen
    assert agent.callback_handler is seen


async def test_a_handler_that_a_hook_sets_stays(scripted_server: StartServer):
    """Putting the handler back does not undo what somebody else has done meanwhile."""
    server = scripted_server(AGAIN)
    agent, other = agent_for(server), Seen()
    agent.add_hook(lambda event: setattr(event.agent, "callback_handler", other), BeforeInvocationEvent)
    async for _ in stream_async(agent, "hello"):
        pass
    assert agent.callback_handler is other


async def test_a_handler_for_this_run_only(scripted_server: StartServer):
    """`callback_handler=` counts as it does in strands, and hooks find it where strands puts it."""
    server = scripted_server(AGAIN)
    seen, found = Seen(), []
    agent = agent_for(server)
    agent.add_hook(lambda event: found.append(event.invocation_state["callback_handler"]), BeforeModelCallEvent)
    with pytest.warns(UserWarning, match="deprecating"):
        events = [event async for event in stream_async(agent, "hello", callback_handler=seen)]
    assert texts(seen.events) == texts(events) == ["Here", " I am."]
    assert found == [seen]
    assert all(event.get("callback_handler", seen) is seen for event in events)


async def test_a_handler_that_raises(scripted_server: StartServer):
    """Its error is the consumer's, as in strands; what arrived is kept, and the agent is free."""
    server = scripted_server(STUCK, AGAIN)

    def handler(**event: Any) -> None:
        if event.get("data") == " two":
            raise LookupError("the terminal is gone")

    agent = agent_for(server, callback_handler=handler)
    with pytest.raises(LookupError):
        async for _ in stream_async(agent, "count"):
            pass
    assert agent.messages[-1]["content"] == [{"text": "one two"}]
    await check_free(agent)


async def test_the_handler_is_silent_after_a_cancel(scripted_server: StartServer):
    """How strands ends a run that was stopped is nobody's to see."""
    server = scripted_server(STUCK)
    seen = Seen()
    agent = agent_for(server, callback_handler=seen)
    async with stream_async(agent, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        await stream.cancel()
        events = await reader.end()
    assert plain(seen.events) == plain(events)
    assert events[-1]["data"] == " two"


async def test_stopping_a_duplicate(scripted_server: StartServer):
    """With an `idempotency_token` a second call waits for the first: stopping it leaves the first alone."""
    server = scripted_server(STUCK)
    seen = Seen()
    agent = agent_for(server, callback_handler=seen)
    first = stream_async(agent, "count", idempotency_token="t")
    second = stream_async(agent, "count", idempotency_token="t")
    async with first, reading(first) as one, second, reading(second) as two:
        await one.until_texts(2)
        assert two.events == []
        await second.cancel()
        assert await two.end() == []
        assert not agent.cancel_signal.is_set()
        assert not first.cancelled
        await first.cancel()
        await one.end()
    assert texts(seen.events) == ["one", " two"]


async def test_the_result_of_a_duplicate(scripted_server: StartServer):
    """It is handed out, and the handler is called with it once."""
    gate = Gate()
    server = scripted_server(Answer(Text("one", gate, " two")))
    seen = Seen()
    agent = agent_for(server, callback_handler=seen)
    first, second = (stream_async(agent, "count", idempotency_token="t") for _ in range(2))
    async with first, reading(first) as one, second, reading(second) as two:
        await one.until_texts(1)
        assert two.events == []
        gate.open()
        events = await two.end()
        assert (await one.end())[-1]["result"] is events[-1]["result"]
    assert len(events) == 1
    assert [event["result"] for event in seen.events if "result" in event] == [events[0]["result"]] * 2


async def test_its_context_is_its_own(scripted_server: StartServer):
    """The consumer's context is not the one that strands opens its spans in, and closing finds the right one."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    before = otel_context.get_current()
    async with stream_async(agent, "count") as stream:
        async for event in stream:
            assert otel_context.get_current() == before
            if event.get("data") == " two":
                await asyncio.create_task(_close(stream))  # in another task, and so in another context
    assert otel_context.get_current() == before
    await check_free(agent)


async def _close(stream: Any) -> None:
    await stream.cancel()


async def test_the_error_of_a_full_answer(scripted_server: StartServer):
    """strands raises for an answer that was cut at its length limit; the agent can be called again."""
    server = scripted_server(Answer(Text("one"), finish="length"), AGAIN)
    agent = agent_for(server)
    stream = stream_async(agent, "count")
    with pytest.raises(MaxTokensReachedException):
        async for _ in stream:
            pass
    assert [event async for event in stream] == []
    assert not stream.cancelled
    assert stream.usage.provenance == "reported"
    await check_free(agent)


async def test_only_its_text(scripted_server: StartServer):
    """`stream_text()` gives the text, whole so far or in pieces, a blank line between two turns."""
    turns = [Answer(Text("Let me", " see."), ToolCall("now", "{}")), Answer(Text("It is", " noon."))]
    agent = agent_for(scripted_server(*turns), tools=[now])
    pieces = [text async for text in stream_async(agent, "when?").stream_text(delta=True)]
    assert pieces == ["Let me", " see.", "\n\nIt is", " noon."]
    agent = agent_for(scripted_server(*turns), tools=[now])
    whole = [text async for text in stream_async(agent, "when?").stream_text()]
    assert whole[-1] == "".join(pieces)


async def test_an_agent_that_was_used_goes_on_without_us(scripted_server: StartServer):
    """What is hooked into an agent does nothing in a run that is not ours, nor in a copy's."""
    server = scripted_server(*RUNS["tools"], *RUNS["tools"])
    agent = agent_for(server, tools=[now, fail])
    ours, _ = await taken(stream_async(agent, "go"))
    agent.messages.clear()
    theirs, _ = await taken(agent.stream_async("go"))
    assert ours == theirs
    assert len(server.records) == 4


async def test_a_copy_of_an_agent(scripted_server: StartServer):
    """It has copies of what is hooked in, and works as its original does."""
    server = scripted_server(AGAIN, STUCK, AGAIN)
    agent = agent_for(server)
    async for _ in stream_async(agent, "hello"):
        pass
    twin = Agent(model=agent.model, callback_handler=None)
    twin._middleware_registry = copy.deepcopy(agent._middleware_registry)
    twin.hooks = copy.deepcopy(agent.hooks)
    async with stream_async(twin, "count") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        await stream.cancel("enough")
    assert twin.messages[-1]["content"] == [{"text": "one two"}]
    assert record_of(twin.messages[-1])["usage"]["output"]["low"] == 2
    await check_free(twin)
