"""What a run of strands' has used: with bounds, and where each number came from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("strands", reason="needs cancelstream[strands]")

from strands import Agent, tool
from strands.models.model import Model
from strands_support import STUCK, agent_for, gated, reading

from cancelstream import StreamUsage
from cancelstream.strands import stream_async
from cancelstream.strands._usage import CallMeter, strands_usage
from cancelstream.testing import Answer, Cut, HttpError, Text, ToolCall, Usage
from cancelstream.testing._plugin import StartServer


@tool
async def now() -> str:
    """Tell the time."""
    return "noon"


async def test_a_whole_run_is_as_reported(scripted_server: StartServer):
    """Every number is the provider's, over all turns; so are the tools that were called."""
    usage = Usage(40, 7, cached_tokens=30, reasoning_tokens=3)
    server = scripted_server(Answer(ToolCall("now", "{}"), usage=usage), Answer(Text("It is noon."), usage=usage))
    async with stream_async(agent_for(server, tools=[now]), "when?") as stream:
        async for _ in stream:
            pass
    assert isinstance(stream.usage, StreamUsage)
    assert stream.usage.provenance == "reported"
    assert stream.usage.complete
    assert (stream.usage.input.value, stream.usage.output.value, stream.usage.cached_input.value) == (80, 14, 60)
    assert (stream.usage.requests, stream.usage.tool_calls) == (2, 1)
    assert stream.usage.cost_range.value is not None


async def test_a_cut_run_is_mixed(scripted_server: StartServer):
    """The turn that was whole stays as reported, the one that was cut is estimated, and nothing is a silent zero."""
    server = scripted_server(Answer(ToolCall("now", "{}"), usage=Usage(40, 7)), STUCK)
    async with stream_async(agent_for(server, tools=[now]), "when?") as stream, reading(stream) as reader:
        await reader.until_texts(2)
        in_flight = stream.usage
        assert in_flight.requests == 2
        least = in_flight.output.low
        await stream.cancel()
        await reader.end()
    assert stream.usage is in_flight
    assert stream.usage.output.low >= least >= 7 + 2
    assert stream.usage.provenance == "mixed"
    assert not stream.usage.complete
    assert stream.usage.input.value is not None
    assert stream.usage.input.value > 40
    assert stream.usage.cached_input.source == "unknown"
    assert stream.usage.estimated_requests == 1


async def test_a_request_that_was_refused_counts_nothing(scripted_server: StartServer):
    """An HTTP error status: no request, no tokens, no cost, and no whole answer either."""
    server = scripted_server(HttpError(500))
    stream = stream_async(agent_for(server), "hello")
    with pytest.raises(Exception, match="refuses"):
        async for _ in stream:
            pass
    assert stream.usage.requests == 0
    assert not stream.usage.complete
    assert (stream.usage.input.high, stream.usage.output.high) == (0, 0)
    assert stream.usage.cost_range.high == 0


async def test_a_request_that_was_lost_is_unknown(scripted_server: StartServer):
    """The connection broke before a status came: the request was made, and nothing is known of what it cost."""
    server = scripted_server(Answer(before_headers=Cut("eof")))
    stream = stream_async(agent_for(server), "hello")
    with pytest.raises(Exception, match=r"[Cc]onnection"):
        async for _ in stream:
            pass
    assert stream.usage.requests == 1
    assert stream.usage.provenance == "unknown"
    assert (stream.usage.input.low, stream.usage.input.value, stream.usage.input.high) == (0, None, None)
    assert (stream.usage.input_tokens, stream.usage.cost_range.high) == (0, None)


async def test_it_grows_while_it_streams(scripted_server: StartServer):
    """Read at any time it counts what arrived so far, and never goes down."""
    answer, gate = gated("one", " two", " three")
    stream = stream_async(agent_for(scripted_server(answer)), "count")
    seen: list[int] = []
    async with stream:
        async for event in stream:
            if "data" in event:
                seen.append(stream.usage.output.low)
                if len(seen) == 3:
                    gate.open()
    assert seen == sorted(seen)
    assert seen[:3] == [1, 2, 3]
    assert stream.usage.output.value == 4
    assert stream.usage.provenance == "reported"


class Reporting(Model):
    """A model that reports this usage, and may wait before it does."""

    def __init__(self, usage: dict[str, int] | None, *, waits: bool = False) -> None:
        self.usage = usage
        self.waits = waits

    def update_config(self, **config: Any) -> None:
        raise NotImplementedError

    def get_config(self) -> Any:
        return {"model_id": "vendor/some-model", "params": {"max_tokens": 50}}

    def structured_output(self, *_args: Any, **_kwargs: Any) -> Any:
        raise NotImplementedError

    async def stream(self, *_args: Any, **_kwargs: Any) -> AsyncIterator[Any]:
        yield {"messageStart": {"role": "assistant"}}
        yield {"contentBlockDelta": {"delta": {"text": "Well."}}}
        if self.waits:
            await asyncio.get_running_loop().create_future()
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}
        if self.usage is not None:
            yield {"metadata": {"usage": self.usage, "metrics": {"latencyMs": 1}}}


@pytest.mark.parametrize(
    ("reported", "tokens_in", "cached"),
    [
        ({"inputTokens": 10, "outputTokens": 2, "totalTokens": 12, "cacheReadInputTokens": 8}, 10, 8),
        ({"inputTokens": 2, "outputTokens": 2, "totalTokens": 12, "cacheReadInputTokens": 8}, 10, 8),
        ({"inputTokens": 1, "outputTokens": 2, "totalTokens": 12, "cacheWriteInputTokens": 9}, 10, 0),
        ({"inputTokens": 10, "outputTokens": 2, "totalTokens": 12}, 10, 0),
    ],
    ids=["inside", "apart", "written", "none"],
)
async def test_cached_tokens_inside_or_apart(reported: dict[str, int], tokens_in: int, cached: int):
    """Providers disagree whether cached tokens are part of the input: the total tells, as it does in strands."""
    stream = stream_async(Agent(model=Reporting(reported), callback_handler=None), "hello")
    async for _ in stream:
        pass
    assert (stream.usage.input_tokens, stream.usage.output_tokens) == (tokens_in, 2)
    assert stream.usage.cache_read_tokens == cached
    assert stream.usage.provenance == "reported"


async def test_nothing_reported_is_estimated():
    """A provider that reports nothing gets an estimate for a whole answer, too, and it is called one."""
    stream = stream_async(Agent(model=Reporting(None), callback_handler=None), "hello")
    async for _ in stream:
        pass
    assert stream.usage.complete
    assert stream.usage.output.source == "estimated"
    assert stream.usage.input.source != "reported"
    assert stream.usage.output.low >= 1


async def test_what_cannot_be_counted_is_not():
    """A request with a picture in it has no value, only a bound."""
    history: Any = [
        {"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": b"."}}}, {"text": "What is it?"}]},
        {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t", "name": "look", "input": {"at": 1}}}]},
        {
            "role": "user",
            "content": [{"toolResult": {"toolUseId": "t", "status": "success", "content": [{"json": {"a": 1}}]}}],
        },
    ]
    agent = Agent(model=Reporting(None, waits=True), messages=history, callback_handler=None, system_prompt="Be brief.")
    async with stream_async(agent, "And now?") as stream, reading(stream) as reader:
        await reader.until_texts(1)
        await stream.cancel()
        await reader.end()
    assert stream.usage.input.value is None
    assert stream.usage.input.source == "unknown"
    assert stream.usage.input.low > 0
    assert stream.usage.unmeasured_requests == 1


async def test_what_closing_may_have_lost():
    """Then only what the request allowed bounds it from above."""
    chunks: list[Any] = [{"contentBlockDelta": {"delta": {"text": "one"}}}]
    meter = CallMeter(Reporting(None), [], None, None, chunks)
    meter.settle(ended=False, late=[], unsaid=[], lost=True)
    meter.settle(ended=True, late=[], unsaid=[], lost=False)  # only the first time counts
    assert meter.usage.output.high == 50
    assert not meter.usage.complete
    assert strands_usage(meter.usage)["outputTokens"] == meter.usage.output_tokens >= 1


@pytest.mark.parametrize(
    ("usage", "asked", "answered"),
    [
        ({"outputTokens": 2}, None, 2),
        ({"inputTokens": 3}, 3, None),
        ({"inputTokens": "3"}, None, None),
        ({}, None, None),
    ],
)
async def test_a_report_with_gaps(usage: dict[str, Any], asked: int | None, answered: int | None):
    """What a model of the user's own leaves out is estimated or unknown, never taken for zero."""
    chunks: list[Any] = [{"contentBlockDelta": {"delta": {"text": "one"}}}, {"metadata": {"usage": usage}}]
    meter = CallMeter(Reporting(None), [], None, None, chunks)
    meter.settle(ended=True, late=[], unsaid=[], lost=False)
    for count, reported in ((meter.usage.input, asked), (meter.usage.output, answered)):
        assert (count.source == "reported") == (reported is not None)
        assert reported is None or count.value == reported
    assert meter.usage.output.low >= 1
