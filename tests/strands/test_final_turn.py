"""`stream_async(..., final_turn_only=...)`: only the text of the final turn, held or taken back."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("strands", reason="needs cancelstream[strands]")

import openai
from pydantic import BaseModel
from strands import Agent, tool
from strands.models.model import Model
from strands.types.exceptions import MaxTokensReachedException
from strands_support import LIMIT, agent_for, check_free, collect, reading, texts

from cancelstream import TextRetracted
from cancelstream.strands import stream_async
from cancelstream.testing import Answer, Cut, Gate, Reasoning, Silence, Text, ToolCall
from cancelstream.testing._plugin import StartServer


@tool
async def now() -> str:
    """Tell the time."""
    return "noon"


TURNS = (
    Answer(Reasoning("Hm."), Text("Let me", " see."), ToolCall("now", "{}")),
    Answer(Text("One", " more."), ToolCall("now", "{}")),
    Answer(Text("It is", " noon.")),
)


class Seen:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, **event: Any) -> None:
        self.events.append(event)


def shown(events: list[dict[str, Any]]) -> str:
    """What a page shows in the end: what was taken back is gone."""
    text = ""
    for event in events:
        text += event.get("data", "")
        if (retracted := event.get("text_retracted")) is not None:
            text = text[: -retracted.characters]
    return text


def has_come(events: list[dict[str, Any]], piece: str) -> bool:
    """Whether this piece of text has arrived, shown or not: strands' raw events are never held."""
    return any(f"{{'text': {piece!r}}}" in str(event.get("event")) for event in events)


def kind(event: dict[str, Any]) -> Any:
    """An event without what differs from run to run."""
    if "message" in event:
        return event["message"]["content"]
    return next((key, event[key]) for key in event) if "event" in event else next(iter(event))


async def test_the_text_of_earlier_turns_is_dropped(scripted_server: StartServer):
    """Over a loop of tools only the last turn's text comes; everything else comes as it did, and at once."""
    plain = [event async for event in stream_async(agent_for(scripted_server(*TURNS), tools=[now]), "when?")]
    seen = Seen()
    agent = agent_for(scripted_server(*TURNS), tools=[now], callback_handler=seen)
    events = [event async for event in stream_async(agent, "when?", final_turn_only=True)]
    assert texts(events) == ["It is", " noon."]
    assert texts(plain) == ["Let me", " see.", "One", " more.", "It is", " noon."]
    rest = [[kind(event) for event in some if "data" not in event] for some in (events, plain)]
    assert [str(event)[:60] for event in rest[0]] == [str(event)[:60] for event in rest[1]]
    assert "reasoningText" in str(rest[0])
    assert [kind(event) for event in seen.events] == [kind(event) for event in events]
    assert agent.callback_handler is seen
    assert agent.messages[1]["content"][-2] == {"text": "Let me see."}


async def test_retract(scripted_server: StartServer):
    """Shown at once, and taken back with an event that says how much, when the turn was not the last."""
    seen = Seen()
    agent = agent_for(scripted_server(*TURNS), tools=[now], callback_handler=seen)
    events = [event async for event in stream_async(agent, "when?", final_turn_only="retract")]
    assert texts(events) == ["Let me", " see.", "One", " more.", "It is", " noon."]
    retracted = [event["text_retracted"] for event in events if "text_retracted" in event]
    assert [type(each) for each in retracted] == [TextRetracted, TextRetracted]
    assert [(each.turn, each.characters) for each in retracted] == [(1, 11), (2, 9)]
    assert shown(events) == shown(seen.events) == "It is noon."


async def test_stream_text(scripted_server: StartServer):
    """In one loop, the answer and not the preamble."""
    agent = agent_for(scripted_server(*TURNS), tools=[now])
    stream = stream_async(agent, "when?", final_turn_only=True)
    assert [text async for text in stream.stream_text(delta=True)] == ["It is", " noon."]
    agent = agent_for(scripted_server(*TURNS), tools=[now])
    stream = stream_async(agent, "when?", final_turn_only="retract")
    with pytest.raises(ValueError, match="cannot take text back"):
        stream.stream_text(delta=True)
    whole = [text async for text in stream.stream_text()]
    assert whole == ["Let me", "Let me see.", "", "One", "One more.", "", "It is", "It is noon."]


class Said(Model):
    """A model that says one text and ends for one reason; no provider of ours knows them all."""

    def __init__(self, stop_reason: str) -> None:
        self.stop_reason = stop_reason

    def update_config(self, **config: Any) -> None:
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        return {"model_id": "said"}

    def structured_output(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError

    async def stream(self, *_args: Any, **_kwargs: Any) -> Any:
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockDelta": {"delta": {"reasoningContent": {"text": "Hm."}}}}
        yield {"contentBlockDelta": {"delta": {"reasoningContent": {"signature": "signed"}}}}
        yield {"contentBlockStop": {}}
        yield {"contentBlockDelta": {"delta": {"text": "Well"}}}
        yield {"contentBlockDelta": {"delta": {"citation": {"title": "A book"}}}}
        yield {"contentBlockDelta": {"delta": {"text": " then."}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": self.stop_reason}}


@pytest.mark.parametrize("mode", [True, "retract"])
@pytest.mark.parametrize(
    "stop_reason",
    ["end_turn", "stop_sequence", "content_filtered", "guardrail_intervened", "cancelled", "max_tokens", "limit_turns"],
)
async def test_every_other_end_releases_it(stop_reason: str, mode: Any):
    """Whatever a turn ends for but a tool call, its text is shown; for `max_tokens` before strands' error."""
    agent = Agent(model=Said(stop_reason), callback_handler=None)
    events, error = await collect(stream_async(agent, "hello", final_turn_only=mode))
    assert isinstance(error, MaxTokensReachedException) == (stop_reason == "max_tokens")
    assert shown(events) == "Well then."
    # All but the text passes at once, and in order.
    known = ("reasoningText", "reasoning_signature", "citation", "data", "message")
    kinds = [key for event in events for key in known if key in event]
    passed = ["reasoningText", "reasoning_signature", "citation"]
    assert [key for key in kinds if key in passed] == passed
    assert kinds.index("citation") == (2 if mode is True else 3)


@pytest.mark.parametrize("mode", [True, "retract"])
async def test_a_run_that_ends_in_a_tool_call(scripted_server: StartServer, mode: Any):
    """A structured answer is a tool call: what was said before it is no answer."""

    class Time(BaseModel):
        """The time."""

        hour: int

    server = scripted_server(Answer(Text("Let me see."), ToolCall("Time", '{"hour": 12}')))
    agent = agent_for(server)
    stream = stream_async(agent, "when?", final_turn_only=mode, structured_output_model=Time)
    events = [event async for event in stream]
    assert events[-1]["result"].stop_reason == "tool_use"
    assert events[-1]["result"].structured_output == Time(hour=12)
    assert shown(events) == ""


@pytest.mark.parametrize("mode", [True, "retract"])
async def test_an_error_comes_after_the_text(scripted_server: StartServer, mode: Any):
    """First what had been held, then the error."""
    agent = agent_for(scripted_server(Answer(Text("one", " two"), Cut("reset"))))
    events, error = await collect(stream_async(agent, "count", final_turn_only=mode))
    assert isinstance(error, openai.APIError)
    assert shown(events) == "one two"
    assert any("force_stop" in event for event in events)


@pytest.mark.parametrize("mode", [True, "retract"])
async def test_a_cancel_releases_the_turn_in_flight(scripted_server: StartServer, mode: Any):
    """What was held of the turn that was stopped is what the user would want to see."""
    server = scripted_server(TURNS[0], Answer(Text("It", " is", Silence())), Answer(Text("Here", " I am.")))
    seen = Seen()
    agent = agent_for(server, tools=[now], callback_handler=seen)
    async with stream_async(agent, "when?", final_turn_only=mode) as stream, reading(stream) as reader:
        await server.until_request(1)
        await server.records[1].until_chunks(2)
        await reader.until(
            lambda reader: "' is'" in str([event["event"] for event in reader.events if "event" in event])
        )
        await stream.cancel()
        events = await reader.end()
    assert shown(events) == shown(seen.events) == "It is"
    agent.callback_handler = lambda **_: None
    await check_free(agent)


async def test_a_cancel_after_the_tool_call_began(scripted_server: StartServer):
    """Its text is released as well: nothing else will be said."""
    gate = Gate()
    agent = agent_for(scripted_server(Answer(Text("Let me see."), ToolCall("now", '{"a"', gate, ": 1}"))), tools=[now])
    async with stream_async(agent, "when?", final_turn_only=True) as stream, reading(stream) as reader:
        await gate.until_reached(LIMIT)
        await reader.until(lambda reader: has_come(reader.events, "Let me see."))
        await stream.cancel()
        assert texts(await reader.end()) == ["Let me see."]


async def test_whoever_leaves_gets_nothing(scripted_server: StartServer):
    """A `break` ends it: nothing is handed on to anybody."""
    server = scripted_server(Answer(Text("one", " two", Silence())), Answer(Text("Here", " I am.")))
    seen = Seen()
    agent = agent_for(server, callback_handler=seen)
    async with stream_async(agent, "count", final_turn_only=True) as stream:
        async for event in stream:
            if has_come([event], " two"):
                break
    assert texts(seen.events) == []
    assert [event async for event in stream] == []
    assert agent.messages[-1]["content"] == [{"text": "one two"}]


async def test_what_is_refused(scripted_server: StartServer):
    """A mode that is none, and a filter for a run of several agents."""
    from strands.multiagent import GraphBuilder

    agent = agent_for(scripted_server(*TURNS))
    with pytest.raises(ValueError, match="'retract'"):
        stream_async(agent, "when?", final_turn_only="yes")  # type: ignore[arg-type]
    builder = GraphBuilder()
    builder.add_node(agent, "only")
    builder.set_max_node_executions(3)
    with pytest.raises(ValueError, match="Graph"):
        stream_async(builder.build(), "when?", final_turn_only=True)
