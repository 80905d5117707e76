"""What a reported count says: the final number, a bound, or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic_ai.messages import ModelRequest, PartDeltaEvent, TextPartDelta, ThinkingPart, UserPromptPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.native_tools import WebSearchTool
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import RequestUsage

from cancelstream import Count
from cancelstream._usage import Meter
from cancelstream._usage._reported import from_usage, from_wire

pytestmark = pytest.mark.usefixtures("no_tokenizers")

ASKED = {"messages": [{"role": "user", "content": "Tell me a story about a frog."}]}


def meter_of(model: str, parameters: ModelRequestParameters | None = None, settings: Any = None) -> Meter:
    """A meter of pydantic-ai's route whose request was accepted."""
    meter = Meter.for_pydantic_ai(
        model_name=model,
        provider_name="anthropic" if "claude" in model else "google",
        provider_url=None,
        messages=[ModelRequest(parts=[UserPromptPart("Tell me a story about a frog.")])],
        model_settings=settings,
        model_request_parameters=parameters or ModelRequestParameters(),
    )
    meter.sent()
    meter.opened()
    return meter


def raw_meter(model: str = "gpt-4o", **body: Any) -> Meter:
    meter = Meter.for_openai({**ASKED, "model": model, **body}, api="openai-chat", model=model)
    meter.sent()
    meter.opened()
    return meter


def chunk(text: str | None, *, finish: str | None = None, usage: tuple[int, int] | None = None) -> dict[str, Any]:
    counts = None if usage is None else {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], "usage": counts}


def said(text: str) -> PartDeltaEvent:
    return PartDeltaEvent(index=0, delta=TextPartDelta(text))


# --- the input ------------------------------------------------------------------------------------------------

FUNCTION = ModelRequestParameters(function_tools=[ToolDefinition(name="look")])
SEARCH = ModelRequestParameters(native_tools=[WebSearchTool()])


@pytest.mark.parametrize(
    ("model", "parameters", "settings"),
    [
        ("claude-sonnet-4-5", None, None),
        ("claude-sonnet-4-5", FUNCTION, None),
        ("gemini-2.5-flash", None, None),
        ("gemini-2.5-flash", FUNCTION, None),
    ],
)
def test_an_opening_count_that_does_not_move(model: str, parameters: Any, settings: Any):
    """The count that comes first is the whole input where the request holds text and functions alone."""
    meter = meter_of(model, parameters, settings)
    meter.feed_event(said("Once"))
    meter.observe(reported=RequestUsage(input_tokens=40, output_tokens=1))
    assert meter.usage.input == Count.reported(40)


@pytest.mark.parametrize(
    ("model", "parameters", "settings"),
    [
        ("claude-sonnet-4-5", SEARCH, None),
        ("claude-sonnet-4-5", None, {"anthropic_context_management": {"edits": []}}),
        ("gemini-2.5-flash", SEARCH, None),
        ("gemini-3-pro-preview", FUNCTION, None),
        ("gemini-3-pro-preview", None, None),
    ],
)
def test_an_opening_count_that_grows(model: str, parameters: Any, settings: Any):
    """What a provider's own tools read comes on top of it: until the finish the first count is a lower bound."""
    meter = meter_of(model, parameters, settings)
    meter.feed_event(said("Once"))
    meter.observe(reported=RequestUsage(input_tokens=2_479, output_tokens=1, cache_read_tokens=9))
    assert meter.usage.input.source != "reported"
    assert meter.usage.input.low == 2_479
    assert meter.usage.cached_input.source == "unknown"
    meter.settle(reported=RequestUsage(input_tokens=404_500, output_tokens=9), ended=False, finish_reason="stop")
    assert meter.usage.input == Count.reported(404_500)


def test_an_opening_count_of_a_request_that_is_not_known():
    """It may hold anything, so that its first count is a lower bound."""
    meter = Meter(model="claude-sonnet-4-5", provider="anthropic", provider_url=None)
    meter.sent()
    meter.opened()
    meter.observe(reported=RequestUsage(input_tokens=40, output_tokens=1))
    assert meter.usage.input == Count.unknown(40, None, "unknown")


def test_an_opening_count_that_goes_down():
    """Older Gemini models begin with too many: their first count says nothing, and the request is estimated."""
    counted = meter_of("gemini-2.0-flash").usage.input
    meter = meter_of("gemini-2.0-flash")
    meter.observe(reported=RequestUsage(input_tokens=145, output_tokens=0))
    assert meter.usage.input == counted
    meter.settle(reported=RequestUsage(input_tokens=85, output_tokens=2), ended=True)
    assert meter.usage.input == Count.reported(85)


def test_an_opening_count_of_zero():
    """A gateway that opens with zero has not counted yet; a zero at the end is the provider's."""
    meter = meter_of("claude-sonnet-4-5")
    meter.observe(reported=RequestUsage(input_tokens=0, output_tokens=0))
    assert meter.usage.input.source == "estimated"
    meter.settle(reported=RequestUsage(input_tokens=0, output_tokens=0), ended=True)
    assert meter.usage.input == Count.reported(0)


# --- the output -----------------------------------------------------------------------------------------------


def test_a_zero_with_every_chunk_is_a_placeholder():
    """Google's OpenAI endpoint says zero until the end."""
    meter = raw_meter("gemini-2.5-flash")
    for word in ("Once", " upon", " a"):
        meter.feed_chunk(chunk(word, usage=(9, 0)))
        assert meter.usage.output.source != "reported"
        assert meter.usage.output.low >= 1
    meter.feed_chunk(chunk(None, finish="stop", usage=(9, 5)))
    assert meter.usage.output == Count.reported(5)


def test_a_running_total_covers_what_came():
    """A total with every chunk is the count of what came, as long as it is not smaller than that."""
    meter = raw_meter("sonar")
    meter.feed_chunk(chunk("Once upon a time", usage=(9, 4)))
    assert meter.usage.output == Count.reported(4, "continuous")
    meter.feed_chunk(chunk(" there was a frog by the pond and it sang", usage=(9, 4)))
    assert meter.usage.output.source == "estimated"
    assert meter.usage.output.low >= 4


def test_a_total_that_came_before_the_finish():
    """What was reported before the provider said how the answer ended is a running total; the rest may still come."""
    meter = raw_meter("sonar")
    meter.feed_chunk(chunk("Once", usage=(9, 1)))
    meter.feed_chunk(chunk(None, finish="stop"))
    assert meter.usage.output.method == "continuous"
    meter.feed_chunk({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})
    assert meter.usage.output == Count.reported(3)
    meter.feed_chunk({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}})
    assert meter.usage.output == Count.reported(3)


# --- reasoning ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "reasoning", "total", "whole", "beside"),
    [
        (1, 290, 303, 291, 0),  # beside: the total says so
        (128, 130, 140, 128, 0),  # inside, though it is more than the whole
        (128, 100, 140, 128, 0),
        (128, 100, None, 128, 0),
        (19, 280, None, 19, 280),  # nothing says which
        (19, 280, 77, 19, 280),
        (19, 0, 31, 19, 0),
        (19, None, 31, 19, 0),
    ],
)
def test_reasoning_inside_and_beside(output: int, reasoning: int | None, total: int | None, whole: int, beside: int):
    """Reasoning is added to the output where the provider's total shows that it is not in it, and only there."""
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": output,
        "total_tokens": total,
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    reported = from_wire(usage)
    assert (reported.output, reported.beside) == (whole, beside)


def test_reasoning_of_which_nothing_says_where_it_is():
    """The number stays pydantic-ai's, but it is not called reported: it may be that, or that and the reasoning."""
    meter = meter_of("my-model")
    usage = RequestUsage(input_tokens=12, output_tokens=19, output_reasoning_tokens=280)
    meter.settle(reported=usage, ended=True)
    assert meter.usage.output == Count(19, 19, 299, "estimated", "usage_event")
    assert meter.usage.output_tokens == 19
    assert from_usage(RequestUsage(input_tokens=12, output_tokens=300, output_reasoning_tokens=280)).beside == 0


@pytest.mark.parametrize(("shown", "source"), [(True, "unknown"), (False, "reported")])
def test_reasoning_without_a_number(shown: bool, source: str):
    """A provider that streams reasoning and counts none of it has not said that there was none."""
    meter = raw_meter("qwen3-32b")
    delta: Mapping[str, Any] = {"reasoning": "Let me see."} if shown else {"content": "Hi"}
    meter.feed_chunk({"choices": [{"index": 0, "delta": delta, "finish_reason": "stop"}]})
    meter.feed_chunk({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 30}})
    assert meter.usage.reasoning.source == source
    assert meter.usage.reasoning.low == 0
    assert meter.usage.output == Count.reported(30)


@pytest.mark.parametrize(
    ("details", "kind"),
    [
        ([{"type": "reasoning.text", "text": "Let me see."}], "text"),
        ([{"type": "reasoning.summary", "summary": "It looked."}], "text"),
        ([{"type": "reasoning.encrypted", "data": "gAAA"}], "sealed"),
        ([{"type": "reasoning.encrypted"}], None),
    ],
)
def test_reasoning_in_details_alone(details: Any, kind: str | None):
    """OpenRouter may send reasoning under another name, as text or encrypted."""
    meter = raw_meter("qwen/qwen3-32b")
    meter.feed_chunk({"choices": [{"index": 0, "delta": {"content": "", "reasoning_details": details}}]})
    assert bool(meter._seen.thinking) == (kind == "text")
    assert meter._seen.sealed == (kind == "sealed")


def test_thinking_through_pydantic_ai():
    """The same where pydantic-ai's own event carries it."""
    meter = meter_of("claude-3-7-sonnet")
    meter._seen.part(0, ThinkingPart("Let me see."))
    meter.settle(reported=RequestUsage(input_tokens=9, output_tokens=30), ended=True)
    assert meter.usage.reasoning == Count.unknown(0, 30)
