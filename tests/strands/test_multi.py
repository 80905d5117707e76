"""Graphs and swarms: their events pass through, and a cancel ends whatever is going on in them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("strands", reason="needs cancelstream[strands]")

from strands import Agent, tool
from strands.multiagent import GraphBuilder, Swarm
from strands.multiagent.graph import Graph
from strands_support import AGAIN, LIMIT, STUCK, agent_for, check_free, reading, record_of

from cancelstream.strands import stream_async
from cancelstream.testing import Answer, ScriptedServer, Text, ToolCall
from cancelstream.testing._plugin import StartServer


def graph_of(**agents: Any) -> Graph:
    """A graph in which `first` hands on to every other node."""
    builder = GraphBuilder()
    for name, agent in agents.items():
        builder.add_node(agent, name)
    for name in agents:
        if name != "first":
            builder.add_edge("first", name)
    builder.set_entry_point("first")
    builder.set_max_node_executions(10)
    return builder.build()


def said(events: list[dict[str, Any]]) -> dict[str, str]:
    """What each node said."""
    texts: dict[str, str] = {}
    for event in events:
        inner = event
        while inner.get("type") == "multiagent_node_stream":
            name, inner = inner["node_id"], inner["event"]
            if "data" in inner:
                texts[name] = texts.get(name, "") + inner["data"]
    return texts


def kinds(events: list[dict[str, Any]]) -> list[Any]:
    return [event.get("type") for event in events if event.get("type") != "multiagent_node_stream"]


async def test_a_graph_passes_through(scripted_server: StartServer):
    """The events are the graph's own, and the usage is that of its agents."""
    server = scripted_server(*[Answer(Text("one", " two"))] * 4)
    plain = [event async for event in graph_of(first=agent_for(server), second=agent_for(server)).stream_async("count")]
    async with stream_async(graph_of(first=agent_for(server), second=agent_for(server)), "count") as stream:
        events = [event async for event in stream]
    assert kinds(events) == kinds(plain)
    assert said(events) == said(plain) == {"first": "one two", "second": "one two"}
    assert not stream.cancelled
    assert (stream.usage.requests, stream.usage.input_tokens, stream.usage.output_tokens) == (2, 20, 4)
    assert stream.usage.provenance == "reported"


async def test_a_graph_that_is_stopped(scripted_server: StartServer):
    """Every node's request is closed, what each had said is kept, no further node begins, and the agents are free."""
    server = scripted_server(Answer(Text("go")), STUCK, STUCK, AGAIN)
    first, second, third, fourth = (agent_for(server) for _ in range(4))
    graph = graph_of(first=first, second=second, third=third)
    builder = GraphBuilder()
    builder.add_node(graph, "inner")
    builder.add_node(fourth, "after")
    builder.add_edge("inner", "after")
    builder.set_max_node_executions(10)
    async with stream_async(builder.build(), "count") as stream, reading(stream) as reader:
        await reader.until(lambda reader: list(said(reader.events).values()) == ["go", "one two", "one two"])
        await stream.cancel("enough")
        for record in server.records[1:]:
            assert await record.until_disconnected(LIMIT)
        await reader.end()
    assert stream.cancelled
    assert len(server.records) == 3
    assert fourth.messages == []
    for agent in (second, third):
        assert agent.messages[-1]["content"] == [{"text": "one two"}]
        assert record_of(agent.messages[-1])["reason"] == "enough"
        assert not agent.cancel_signal.is_set()
    assert stream.usage.requests == 3
    await check_free(second)


async def test_a_graph_that_is_left(scripted_server: StartServer):
    """A `break` does the same."""
    server = scripted_server(STUCK, AGAIN)
    agent = agent_for(server)
    async with stream_async(graph_of(first=agent), "count") as stream:
        async for event in stream:
            if said([event]) == {"first": " two"}:
                break
    assert await server.records[0].until_disconnected(LIMIT)
    assert agent.messages[-1]["content"] == [{"text": "one two"}]
    await check_free(agent)


async def test_a_node_that_is_no_agent_of_strands(scripted_server: StartServer):
    """It has none of our hooks, and is interrupted with its graph."""
    waits = asyncio.Event()

    class Remote:
        name = id = "remote"

        async def invoke_async(self, prompt: Any = None, **_: Any) -> Any:
            raise NotImplementedError

        def __call__(self, prompt: Any = None, **_: Any) -> Any:
            raise NotImplementedError

        async def stream_async(self, prompt: Any = None, **_: Any) -> Any:
            yield {"data": "far away"}
            waits.set()
            await asyncio.get_running_loop().create_future()

    async with stream_async(graph_of(first=Remote()), "count") as stream, reading(stream) as reader:
        await asyncio.wait_for(waits.wait(), LIMIT)
        await reader.until(lambda reader: said(reader.events) == {"first": "far away"})
        await stream.cancel()
        await reader.end()
    assert stream.cancelled
    assert stream.usage.requests == 0


def swarm_of(server: ScriptedServer) -> tuple[Swarm, list[Agent]]:
    agents = [agent_for(server, name=name) for name in ("planner", "writer")]
    return Swarm(agents), agents


HAND_OFF = Answer(
    Text("Over to you."), ToolCall("handoff_to_agent", '{"agent_name": "writer", "message": "Write it."}')
)


async def test_a_swarm_passes_through(scripted_server: StartServer):
    """The events are the swarm's own."""
    server = scripted_server(*[HAND_OFF, Answer(Text("Well.")), Answer(Text("It", " is done."))] * 2)
    swarm, _ = swarm_of(server)
    plain = [event async for event in swarm.stream_async("write")]
    swarm, _ = swarm_of(server)
    events = [event async for event in stream_async(swarm, "write")]
    assert kinds(events) == kinds(plain)
    assert said(events) == said(plain)
    assert "writer" in said(events)


async def test_a_swarm_that_is_stopped(scripted_server: StartServer):
    """The agent whose turn it is keeps what it had said, and nobody else's turn comes."""
    server = scripted_server(STUCK)
    swarm, (planner, writer) = swarm_of(server)
    async with stream_async(swarm, "write") as stream, reading(stream) as reader:
        await reader.until(lambda reader: said(reader.events) == {"planner": "one two"})
        await stream.cancel("enough")
        assert await server.records[0].until_disconnected(LIMIT)
        await reader.end()
    assert planner.messages[-1]["content"] == [{"text": "one two"}]
    assert record_of(planner.messages[-1])["reason"] == "enough"
    assert writer.messages == []
    assert len(server.records) == 1


async def test_an_agent_that_a_tool_calls(scripted_server: StartServer):
    """It is interrupted with the tool; the provider is told, and both agents are free."""
    server = scripted_server(Answer(ToolCall("helper", '{"input": "count"}')), STUCK, AGAIN, AGAIN)
    helper = agent_for(server, name="helper", description="Helps.")
    agent = agent_for(server, tools=[helper.as_tool()])
    async with stream_async(agent, "get help") as stream, reading(stream) as reader:
        await server.until_request(1)
        await server.records[1].until_chunks(2)
        await stream.cancel()
        assert await server.records[1].until_disconnected(LIMIT)
        await reader.end()
    assert agent.messages[-1]["content"][0]["toolResult"]["status"] == "error"
    await check_free(agent)
    await check_free(helper)


async def test_an_agent_of_ours_in_a_tool(scripted_server: StartServer):
    """A stream in a tool of another stream is a run of its own, and is ended with it."""
    server = scripted_server(Answer(ToolCall("ask", "{}")), STUCK, AGAIN, AGAIN)
    helper = agent_for(server)
    inner: list[Any] = []

    @tool
    async def ask() -> str:
        """Ask the helper."""
        async with stream_async(helper, "count") as stream:
            inner.append(stream)
            return "".join([text async for text in stream.stream_text(delta=True)])

    agent = agent_for(server, tools=[ask])
    async with stream_async(agent, "get help") as stream, reading(stream) as reader:
        await server.until_request(1)
        await server.records[1].until_chunks(2)
        await stream.cancel()
        await reader.end()
    assert inner[0].cancel_reason == "task_cancelled"
    assert record_of(helper.messages[-1])["reason"] == "task_cancelled"
    assert stream.usage.requests == 1
    assert inner[0].usage.requests == 1
    await check_free(agent)
    await check_free(helper)


@pytest.mark.parametrize("as_tool", [True, False], ids=["as_tool", "function"])
async def test_an_agent_whose_events_a_tool_passes_on(scripted_server: StartServer, as_tool: bool):
    """Left while that agent stands between two events, its request is closed, and it is free."""
    server = scripted_server(Answer(ToolCall("helper", '{"input": "count"}')), STUCK, AGAIN, AGAIN)
    inner = agent_for(server, name="helper", description="Helps.")

    @tool
    async def helper(input: str) -> Any:  # noqa: A002  (as strands calls it)
        """Ask the helper.

        Args:
            input: What.
        """
        async for event in inner.stream_async(input):
            yield event

    agent = agent_for(server, tools=[inner.as_tool() if as_tool else helper])
    async with stream_async(agent, "get help") as stream:
        async for event in stream:
            if event.get("tool_stream_event", {}).get("data", {}).get("data") == " two":
                break
    assert await server.records[1].until_disconnected(LIMIT)
    assert agent.messages[-1]["content"][0]["toolResult"]["status"] == "error"
    await check_free(agent)
    await check_free(inner)
