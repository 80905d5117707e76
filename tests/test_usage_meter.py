"""One response's meter: what it counts of what it is fed, and what it calls it."""

from __future__ import annotations

import json
import threading
from decimal import Decimal
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseTextDeltaEvent
from pydantic_ai.messages import (
    BinaryContent,
    CompactionPart,
    FilePart,
    FinalResultEvent,
    ModelRequest,
    ModelResponsePart,
    NativeToolCallPart,
    PartDeltaEvent,
    PartEndEvent,
    PartStartEvent,
    SpeechPartDelta,
    TextPart,
    TextPartDelta,
    ThinkingPart,
    ThinkingPartDelta,
    ToolCallPart,
    ToolCallPartDelta,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.usage import RequestUsage

from cancelstream import Count, _tokens
from cancelstream._usage import Meter

WORDS = ("Once", " upon", " a", " time", ",", " a", " frog", " sat", " by", " the", " pond", ".")
TEXT = "".join(WORDS)
ASKED = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Tell me a story about a frog."}]}
ASKED_TOKENS = 15  # 8 of the text, 4 around it, 3 around the whole
CHAT: Literal["openai-chat"] = "openai-chat"


@pytest.fixture(params=["tokenizers", "no_tokenizers"])
def either(request: pytest.FixtureRequest) -> str:
    """With the tokenizer extra, and without any tokenizer."""
    request.getfixturevalue(request.param)
    return request.param


def said(text: str, index: int = 0) -> PartDeltaEvent:
    return PartDeltaEvent(index=index, delta=TextPartDelta(text))


def chunk(text: str | None = None, *, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk of a host that does not say which model answers."""
    choices = [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]
    return {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "", "choices": choices, **fields}


def meter_of(model: str = "gpt-4o", provider: str = "openai") -> Meter:
    """A meter of pydantic-ai's route whose request went out."""
    meter = Meter.for_pydantic_ai(
        model_name=model,
        provider_name=provider,
        provider_url="https://user:secret@api.example/v1?key=secret",
        messages=[ModelRequest(parts=[UserPromptPart("Tell me a story about a frog.")])],
        model_settings=None,
        model_request_parameters=ModelRequestParameters(),
    )
    meter.sent()
    meter.opened()
    return meter


def raw_meter(model: str = "gpt-4o", request: Any = ASKED, api: Any = CHAT) -> Meter:
    meter = Meter.for_openai(request, api=api, model=model, url="https://api.openai.com/v1")
    meter.sent()
    meter.opened()
    return meter


# --- what was reported ----------------------------------------------------------------------------------------


def test_reported_at_the_end():
    """A whole answer has the provider's own counts, and nothing of ours."""
    meter = meter_of()
    for word in WORDS:
        meter.feed_event(said(word))
    reported = RequestUsage(input_tokens=14, output_tokens=12, cache_read_tokens=3, details={"reasoning_tokens": 2})
    meter.settle(parts=[TextPart(TEXT)], reported=reported, ended=True)
    usage = meter.usage
    assert (usage.input, usage.output) == (Count.reported(14), Count.reported(12))
    assert usage.cached_input == Count.reported(3)
    assert usage.details == {"reasoning_tokens": 2}
    assert usage.provenance == "reported"
    assert usage.complete


def test_everything_that_was_reported_is_kept():
    """What pydantic-ai would have shown of a whole answer is there, to the last name that a provider invented."""
    reported = RequestUsage(
        input_tokens=14, output_tokens=12, cache_write_tokens=3, audio_seconds=2.5, web_searches=2, empty=0,
        details={"output_tokens": 12, "x": 1}, cost=Decimal("0.5"),
    )  # fmt: skip
    meter = meter_of("claude-sonnet-4-5", "anthropic")
    meter.settle(reported=reported, ended=True)
    assert meter.usage == reported
    assert meter.usage.cost_range.value == Decimal("0.5")


def test_a_meter_in_a_meter():
    """What a wrapper inside has estimated is not taken for what a provider said."""
    inner, outer = meter_of(), meter_of()
    for meter in (inner, outer):
        meter.feed_event(said("Hello"))
    inner.settle(ended=False)
    outer.settle(reported=inner.usage, ended=False)
    assert outer.usage.provenance == "estimated"


def test_an_explicit_zero_is_reported():
    """A zero that the provider said is its count, also where it cannot be right."""
    meter = meter_of()
    meter.feed_event(said("Hello"))
    meter.settle(reported=RequestUsage(input_tokens=0, output_tokens=0), ended=True)
    assert meter.usage.provenance == "reported"
    assert (meter.usage.input, meter.usage.output) == (Count.reported(0), Count.reported(0))
    raw = raw_meter()
    for piece in (chunk("Hello"), chunk(finish="stop"), chunk(usage={"prompt_tokens": 0, "completion_tokens": 0})):
        raw.feed_chunk(piece)
    raw.settle(ended=True)
    assert raw.usage.provenance == "reported"


@pytest.mark.usefixtures("either")
def test_zeros_that_nobody_said():
    """pydantic-ai's usage is all zeros until something is reported: those are not counts."""
    meter = meter_of()
    meter.feed_event(said("Hello"))
    meter.settle(reported=RequestUsage(), ended=True)
    assert meter.usage.output.source == "estimated"
    assert meter.usage.output_tokens >= 1
    unmeasured = meter_of()
    unmeasured.settle(reported=RequestUsage(input_tokens=5, unmeasured_requests=1), ended=True)
    assert unmeasured.usage.input.source == "estimated"


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(("given", "missing"), [("input", "output"), ("output", "input")])
def test_reported_field_by_field(given: str, missing: str):
    """What was reported is taken, and only what was not is estimated."""
    meter = meter_of()
    for word in WORDS:
        meter.feed_event(said(word))
    meter.settle(reported=RequestUsage(**{f"{given}_tokens": 40}), ended=True)
    assert getattr(meter.usage, given) == Count.reported(40)
    assert getattr(meter.usage, missing).source == "estimated"
    assert meter.usage.provenance == "mixed"
    assert getattr(meter.usage, f"estimated_{given}_tokens") == 0
    assert getattr(meter.usage, f"estimated_{missing}_tokens") == getattr(meter.usage, f"{missing}_tokens") > 0


def test_a_cancel_after_the_usage_event():
    """The usage came, then the cancel: reported."""
    meter = raw_meter()
    usage = {"prompt_tokens": 14, "completion_tokens": 12}
    for piece in (*map(chunk, WORDS), chunk(finish="stop"), {**chunk(), "choices": [], "usage": usage}):
        meter.feed_chunk(piece)
    meter.settle(ended=False)
    assert (meter.usage.input, meter.usage.output) == (Count.reported(14), Count.reported(12))
    assert not meter.usage.complete


def test_continuous_usage():
    """Usage on every chunk: a cut answer is reported, up to the last delta that arrived."""
    meter = raw_meter()
    for number, word in enumerate(WORDS, 1):
        meter.feed_chunk(chunk(word, usage={"prompt_tokens": 14, "completion_tokens": number}))
    assert meter.usage.output == Count.reported(12, "continuous")
    meter.settle(ended=False)
    assert meter.usage.provenance == "reported"


@pytest.mark.usefixtures("either")
def test_usage_that_came_too_early():
    """A count that does not account for every delta is a lower bound, not the count."""
    meter = raw_meter()
    meter.feed_chunk(chunk("Once", usage={"prompt_tokens": 14, "completion_tokens": 1}))
    for word in WORDS[1:]:
        meter.feed_chunk(chunk(word))
    meter.settle(ended=False)
    assert meter.usage.input == Count.reported(14)
    assert meter.usage.output.source == "estimated"
    assert meter.usage.output_tokens == 12


@pytest.mark.usefixtures("either")
def test_a_count_that_came_early_and_was_large():
    """Such a lower bound counts, where it is more than what was seen."""
    meter = raw_meter()
    meter.feed_chunk(chunk("Once", usage={"prompt_tokens": 14, "completion_tokens": 80}))
    meter.feed_chunk(chunk(" upon"))
    meter.settle(ended=False)
    assert meter.usage.output.source == "estimated"
    assert meter.usage.output.low == 80


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(("model", "provider"), [("claude-sonnet-4-5", "anthropic"), ("claude-sonnet-4-5", "gateway")])
def test_anthropic_opens_with_a_placeholder(model: str, provider: str):
    """Its opening event has the true input, and an output that means nothing until the finish reason comes."""
    opening = RequestUsage(input_tokens=78, output_tokens=30, details={"input_tokens": 78, "output_tokens": 30})
    meter = meter_of(model, provider)
    for word in WORDS:
        meter.feed_event(said(word))
    meter.observe(reported=opening)
    assert meter.usage.input == Count.reported(78)
    assert meter.usage.output.source == "estimated"
    meter.settle(parts=[TextPart(TEXT)], reported=opening, ended=False)
    assert meter.usage.provenance == "mixed"
    assert meter.usage.output.low <= 12 <= meter.usage.output_tokens <= 20
    assert meter.usage.details == {"input_tokens": 78}


def test_anthropic_after_its_finish_reason():
    """Cancelled after the event that has the finish reason and the true count: reported."""
    meter = meter_of("claude-sonnet-4-5", "anthropic")
    meter.feed_event(said(TEXT))
    meter.settle(
        reported=RequestUsage(input_tokens=78, output_tokens=16, details={"output_tokens": 1, "x": 3}),
        ended=False,
        finish_reason="stop",
    )
    assert meter.usage.output == Count.reported(16)
    assert meter.usage.details == {"output_tokens": 1, "x": 3}


def test_usage_with_every_chunk_through_pydantic_ai():
    """Google's counts are running totals: the last one before the cancel is the count."""
    meter = meter_of("gemini-2.5-flash", "google")
    meter.feed_event(said(TEXT))
    meter.settle(reported=RequestUsage(input_tokens=9, output_tokens=80, output_reasoning_tokens=68), ended=False)
    assert meter.usage.output == Count.reported(80, "continuous")
    assert meter.usage.reasoning.value == 68


@pytest.mark.parametrize("name", ["response.completed", "response.incomplete", "response.failed"])
def test_terminal_events_of_responses(name: str):
    """The Responses API reports in its last event, whichever that is."""
    meter = raw_meter(api="openai-responses")
    meter.feed_chunk({"type": "response.output_text.delta", "output_index": 0, "delta": TEXT})
    details = {"input_tokens_details": {"cached_tokens": 4}, "output_tokens_details": {"reasoning_tokens": 3}}
    usage = {"input_tokens": 14, "output_tokens": 15, **details}
    meter.feed_chunk({"type": name, "response": {"usage": usage, "model": "gpt-4o"}})
    meter.settle(ended=name == "response.completed")
    usage = meter.usage
    assert usage.provenance == "reported"
    assert (usage.output.value, usage.cached_input.value, usage.reasoning.value) == (15, 4, 3)
    assert usage.details == {"reasoning_tokens": 3}


def test_reasoning_beside_the_answer():
    """xAI reports reasoning beside the output; it is made a part of it, as everywhere else."""
    meter = raw_meter("grok-3-mini")
    meter.feed_chunk(
        chunk("Hi", finish="stop", usage={"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 303,
                                          "completion_tokens_details": {"reasoning_tokens": 290}})
    )  # fmt: skip
    meter.settle(ended=True)
    assert (meter.usage.output.value, meter.usage.reasoning.value) == (291, 290)


def test_where_else_hosts_put_usage():
    """Groq's corner, DeepSeek's cache, audio."""
    meter = raw_meter("llama-3.3-70b")
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 1,
        "prompt_cache_hit_tokens": 5,
        "prompt_tokens_details": {"audio_tokens": 6},
        "completion_tokens_details": {"audio_tokens": 7},
    }
    meter.feed_chunk({**chunk("Hi", finish="stop"), "x_groq": {"usage": usage}})
    meter.settle(ended=True)
    assert meter.usage.cached_input.value == 5
    assert (meter.usage.input_audio_tokens, meter.usage.output_audio_tokens) == (6, 7)


# --- what is estimated ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("route", ["events", "dicts", "objects"])
def test_a_cut_answer(route: str, either: str):
    """One delta, one token: the count of a cut answer is exact, and its bounds are close."""
    meter = meter_of() if route == "events" else raw_meter()
    for word in WORDS:
        if route == "events":
            meter.feed_event(said(word))
        else:
            piece = chunk(word)
            meter.feed_chunk(ChatCompletionChunk.model_validate(piece) if route == "objects" else piece)
    meter.settle(parts=[TextPart(TEXT)] if route == "events" else (), ended=False)
    usage = meter.usage
    assert usage.output.value == 12
    assert usage.output.low == 12
    assert usage.output.high is not None
    assert usage.output.high <= 14
    assert usage.provenance == "estimated"
    exact = either == "tokenizers"
    assert usage.input.low <= ASKED_TOKENS <= (usage.input.high or 0)
    assert usage.output.method == ("bpe:o200k_base" if exact else "deltas")
    assert usage.input.method == ("bpe:o200k_base" if exact else "words")
    if exact:
        assert usage.input.value == ASKED_TOKENS


@pytest.mark.usefixtures("no_tokenizers")
def test_bounds_are_wider_without_a_tokenizer(vocabularies: Any, monkeypatch: pytest.MonkeyPatch):
    """Where text has to be guessed at, the interval says so."""
    guessed = raw_meter().usage.input
    monkeypatch.setattr(_tokens, "_loaded", vocabularies)
    counted = raw_meter().usage.input
    assert guessed.high is not None
    assert counted.high is not None
    assert guessed.high - guessed.low > counted.high - counted.low


@pytest.mark.usefixtures("tokenizers")
def test_several_tokens_to_a_delta():
    """A host that sends whole sentences: the text is counted, and the deltas are only a lower bound."""
    meter = raw_meter()
    for piece in (TEXT, " " + TEXT, " " + TEXT):
        meter.feed_chunk(chunk(piece))
    assert meter.usage.output.value == 36
    assert 3 <= meter.usage.output.low <= 36


@pytest.mark.usefixtures("tokenizers")
def test_several_deltas_to_a_token():
    """A proxy that sends single letters: the pieces say nothing."""
    meter = raw_meter()
    for letter in TEXT:
        meter.feed_chunk(chunk(letter))
    assert meter.usage.output.value == 12
    assert meter.usage.output.low <= 12


@pytest.mark.usefixtures("either")
def test_a_whole_answer_whose_usage_never_came():
    """The end of an answer has tokens too, which are only there when it was reached."""
    cut, ended = raw_meter(api="openai-responses"), raw_meter(api="openai-responses")
    for meter in (cut, ended):
        for word in WORDS:
            meter.feed_chunk({"type": "response.output_text.delta", "output_index": 0, "delta": word})
    cut.settle(ended=False)
    ended.settle(ended=True)
    assert (cut.usage.output.value, ended.usage.output.value) == (12, 13)
    assert ended.usage.complete


@pytest.mark.usefixtures("either")
def test_cut_between_the_end_and_the_usage():
    """The finish reason says that the model came to its end, whatever happened to the stream."""
    request = {**ASKED, "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}
    meter = raw_meter(request=request)
    for word in WORDS:
        meter.feed_chunk(chunk(word))
    meter.feed_chunk(chunk(finish="stop"))
    meter.settle(ended=False)
    assert meter.usage.output.value == 13


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize(
    ("arguments", "value"), [(['{"', "city", '":"', "Paris", '"}'], 2 + 5 + 7), (['{"', "city"], 2 + 2 + 7)]
)
def test_a_function_call(arguments: list[str], value: int):
    """A call is its name, its arguments, and what is around them, whole or cut."""
    meter = raw_meter()
    for number, piece in enumerate(arguments):
        call = {"index": 0, "function": {"name": "get_weather" if number == 0 else None, "arguments": piece}}
        meter.feed_chunk(chunk_of({"tool_calls": [call]}))
    meter.settle(ended=False)
    assert meter.usage.output.value == value
    assert meter.usage.output.low >= len(arguments)


@pytest.mark.usefixtures("tokenizers")
def test_the_same_call_through_pydantic_ai():
    """pydantic-ai's events of the same call give the same count."""
    meter = meter_of()
    meter.feed_event(PartStartEvent(index=0, part=ToolCallPart("get_weather")))
    for piece in ('{"', "city", '":"', "Paris", '"}'):
        meter.feed_event(PartDeltaEvent(index=0, delta=ToolCallPartDelta(args_delta=piece)))
    meter.settle(parts=[ToolCallPart("get_weather", '{"city":"Paris"}')], ended=False)
    assert meter.usage.output.value == 14
    assert meter.usage.output.low >= 5


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize("api", ["openai-chat", "openai-responses"])
def test_a_call_that_was_forced(api: Any):
    """A model that has to call one function writes only the arguments."""
    choice: dict[str, Any] = {"type": "function", "name": "get_weather"}
    if api == "openai-chat":
        choice = {"type": "function", "function": {"name": "get_weather"}}
    meter = raw_meter(request={**ASKED, "tool_choice": choice}, api=api)
    if api == "openai-chat":
        meter.feed_chunk(chunk_of({"tool_calls": [{"index": 0, "function": {"name": "get_weather"}}]}))
        meter.feed_chunk(chunk_of({"tool_calls": [{"index": 0, "function": {"arguments": '{"city":"Paris"}'}}]}))
    else:
        item = {"type": "function_call", "name": "get_weather"}
        meter.feed_chunk({"type": "response.output_item.added", "output_index": 0, "item": item})
        delta = '{"city":"Paris"}'
        meter.feed_chunk({"type": "response.function_call_arguments.delta", "output_index": 0, "delta": delta})
    meter.settle(ended=True)
    assert meter.usage.output.value == 5 + (api == "openai-responses")
    assert meter.usage.output.low <= 5


@pytest.mark.usefixtures("either")
def test_calls_in_parallel_and_in_the_old_form():
    """Each further call has more around it; the older `function_call` is a call too."""
    one, two = raw_meter(), raw_meter()
    legacy = {"function_call": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    one.feed_chunk(chunk_of(legacy))
    for index in (0, 1):
        call = {"index": index, "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
        two.feed_chunk(chunk_of({"tool_calls": [call]}))
    assert two.usage.output_tokens > 2 * one.usage.output_tokens


@pytest.mark.usefixtures("either")
def test_a_schema_that_was_answered_twice():
    """With functions and a schema each document has a head of its own, also where the chat API runs them together."""
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    counts = []
    for text in ('{"a": 1}', '{"a": 1}\n{"a": 1}', '{"a": 1} and'):
        meter = raw_meter(request={**ASKED, "response_format": wanted, "tools": [tool]})
        meter.feed_chunk(chunk(text))
        without = meter.usage.output_tokens
        meter.settle(ended=True)
        counts.append(meter.usage.output_tokens - without)
    assert counts == [5, 10, 5]


@pytest.mark.usefixtures("tokenizers")
def test_several_choices():
    """Answers that are interleaved are counted each by itself."""
    meter = raw_meter()
    for word in WORDS:
        for index in (0, 1):
            meter.feed_chunk({"choices": [{"index": index, "delta": {"content": word}}]})
    assert meter.usage.output.value == 24


@pytest.mark.usefixtures("either")
def test_claude_counts_more_than_openai():
    """Another maker, another vocabulary: the same text is more of Claude's tokens, within wider bounds."""
    counts = []
    for model in ("gpt-4o", "claude-sonnet-4-5"):
        meter = meter_of(model)
        for piece in (TEXT, TEXT):
            meter.feed_event(said(piece))
        meter.settle(parts=[TextPart(TEXT + TEXT)], ended=False)
        counts.append(meter.usage.output)
    openai, claude = counts
    assert claude.value > openai.value
    assert claude.high - claude.low > openai.high - openai.low
    call = meter_of("claude-sonnet-4-5")
    call.feed_event(PartStartEvent(index=0, part=ToolCallPart("get_weather", {"city": "Paris", "days": 3})))
    cut = meter_of("claude-sonnet-4-5")
    cut.feed_event(PartStartEvent(index=0, part=ToolCallPart("get_weather", '{"city": "Paris", "da')))
    assert call.usage.output.value > cut.usage.output.value > 24
    strange = meter_of("claude-sonnet-4-5")
    strange.feed_event(PartStartEvent(index=0, part=ToolCallPart("get_weather", "[1]")))
    assert strange.usage.output.value > 24


# --- what cannot be known -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("model", ["gpt-5-mini", "o3", "openai/gpt-5-nano"])
def test_hidden_reasoning(model: str):
    """A model that may have reasoned unseen: what is visible is the lower bound, and there is no value."""
    meter = raw_meter(model)
    for word in WORDS:
        meter.feed_chunk(chunk(word))
    meter.settle(ended=False)
    assert meter.usage.output.value is None
    assert meter.usage.output.low == 12
    assert meter.usage.output.high is None
    assert meter.usage.hidden_reasoning
    assert meter.usage.unmeasured_requests == 1
    assert meter.usage.output_tokens == 12
    assert meter.usage.reasoning.value is None


@pytest.mark.usefixtures("either")
def test_hidden_reasoning_has_a_limit():
    """The most that the request allows bounds what nobody saw."""
    meter = raw_meter(request={**ASKED, "model": "gpt-5-mini", "max_completion_tokens": 500}, model="gpt-5-mini")
    meter.feed_chunk(chunk("Hi"))
    assert meter.usage.output.high == 500


@pytest.mark.usefixtures("either")
def test_reasoning_that_was_switched_off():
    """With no reasoning asked of it there is none to hide."""
    meter = raw_meter("gpt-5.1", {**ASKED, "reasoning_effort": "none"})
    meter.feed_chunk(chunk("Hi"))
    assert meter.usage.output.source == "estimated"
    responses = raw_meter("gpt-5.1", None, "openai-responses")
    responses.feed_chunk({"type": "response.created", "response": {"reasoning": {"effort": "none"}}})
    responses.feed_chunk({"type": "response.output_text.delta", "delta": "Hi"})
    assert responses.usage.output.source == "estimated"
    assert not responses.usage.hidden_reasoning


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    "part",
    [
        ThinkingPart("", signature="sealed"),
        ThinkingPart("First I will"),
    ],
)
def test_a_summary_is_not_the_reasoning(part: ThinkingPart):
    """Claude 4 shows a summary of its reasoning, or nothing of it: neither can be counted."""
    meter = meter_of("claude-sonnet-4-5", "anthropic")
    meter.feed_event(PartStartEvent(index=0, part=part))
    meter.feed_event(said(TEXT, 1))
    meter.settle(parts=[part, TextPart(TEXT)], reported=RequestUsage(input_tokens=5), ended=False)
    assert meter.usage.hidden_reasoning
    assert meter.usage.output.value is None


@pytest.mark.usefixtures("either")
def test_a_signature_without_thinking():
    """Reasoning that comes as nothing but a signature was hidden."""
    meter = meter_of("claude-sonnet-4-5")
    meter.feed_event(PartDeltaEvent(index=0, delta=ThinkingPartDelta(signature_delta="sealed")))
    assert meter.usage.hidden_reasoning


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_that_streams_is_counted(field: str):
    """Models that show all of their reasoning have nothing hidden: it is a part of the output."""
    meter = raw_meter("deepseek-reasoner")
    for word in WORDS:
        meter.feed_chunk(chunk_of({field: word}))
    for word in WORDS:
        meter.feed_chunk(chunk(word))
    meter.settle(ended=False)
    assert meter.usage.output.value == 24
    assert meter.usage.reasoning.value is not None
    assert not meter.usage.hidden_reasoning
    objects = raw_meter("deepseek-reasoner")
    objects.feed_chunk(ChatCompletionChunk.model_validate({**chunk(), "choices": chunk_of({field: "Well"})["choices"]}))
    assert objects.usage.reasoning.value == 1
    through = meter_of("deepseek-reasoner", "deepseek")
    for word in WORDS:
        through.feed_event(PartDeltaEvent(index=0, delta=ThinkingPartDelta(content_delta=word)))
    assert through.usage.output.value == 12


@pytest.mark.usefixtures("either")
def test_reasoning_items_of_responses():
    """A reasoning item hides its text, unless the text streams after all; a summary is not it."""
    hidden, shown, summed = (raw_meter("gpt-oss-120b", None, "openai-responses") for _ in range(3))
    for meter in (hidden, shown, summed):
        meter.feed_chunk({"type": "response.output_item.added", "output_index": 0, "item": {"type": "reasoning"}})
    shown.feed_chunk({"type": "response.reasoning_text.delta", "delta": "Well"})
    shown.feed_chunk({"type": "response.reasoning_text.delta", "delta": ""})
    summed.feed_chunk({"type": "response.reasoning_summary_text.delta", "delta": "Thought about it"})
    assert [meter.usage.hidden_reasoning for meter in (hidden, shown, summed)] == [True, False, True]
    assert shown.usage.reasoning.value == 1
    assert summed.usage.output.low == 0


@pytest.mark.usefixtures("either")
def test_reasoning_that_a_response_rules_out():
    """A usage that was read before the response said that it does not reason is not the last word."""
    meter = raw_meter("gpt-5.1", None, "openai-responses")
    assert meter.usage.hidden_reasoning
    meter.feed_chunk({"type": "response.created", "response": {"reasoning": {"effort": "none"}}})
    assert not meter.usage.hidden_reasoning
    assert meter.usage.output.value == 0


@pytest.mark.usefixtures("either")
def test_what_carries_no_token_is_noticed():
    """A usage that was read before a tool of the provider's turned up is not the last word."""
    meter = raw_meter(api="openai-responses")
    meter.feed_chunk({"type": "response.output_text.delta", "output_index": 0, "delta": "Hi"})
    assert meter.usage.output.value == 1
    meter.feed_chunk({"type": "response.output_item.added", "output_index": 1, "item": {"type": "web_search_call"}})
    assert meter.usage.output.value is None
    meter.feed_chunk({"type": "response.output_item.added", "output_index": 2, "item": {"type": "reasoning"}})
    assert meter.usage.hidden_reasoning


@pytest.mark.usefixtures("either")
def test_a_tool_of_the_providers_own():
    """What the provider's tools did has tokens of which nothing arrives: no value, and no upper bound."""
    raw = raw_meter(api="openai-responses")
    item = {"type": "web_search_call"}
    raw.feed_chunk({"type": "response.output_item.added", "output_index": 0, "item": item})
    raw.feed_chunk({"type": "response.output_item.added", "output_index": 1, "item": {"type": "message"}})
    raw.feed_chunk({"type": "response.output_text.delta", "output_index": 1, "delta": TEXT})
    through = meter_of()
    through.feed_event(PartStartEvent(index=0, part=NativeToolCallPart("web_search")))
    through.feed_event(PartDeltaEvent(index=0, delta=ToolCallPartDelta(args_delta='{"query": "frogs"}')))
    through.feed_event(said(TEXT, 1))
    drawn = meter_of()
    drawn.feed_event(PartStartEvent(index=0, part=FilePart(BinaryContent(b"x", media_type="image/png"))))
    spoken = raw_meter()
    spoken.feed_chunk(chunk_of({"audio": {"data": "x"}, "annotations": []}))
    for meter in (raw, through, drawn, spoken):
        meter.settle(ended=True)
        assert meter.usage.output.value is None
        assert meter.usage.output.high is None
        assert not meter.usage.hidden_reasoning
    assert raw.usage.output.low == through.usage.output.low == 1


@pytest.mark.usefixtures("either")
def test_a_model_that_nobody_knows():
    """An estimate without an upper bound, and a request that has only a lower one."""
    meter = raw_meter("my-finetune")
    for word in WORDS:
        meter.feed_chunk({**chunk(word), "model": "my-finetune"})
    meter.settle(ended=False)
    assert meter.usage.output == Count(12, 12, None, "estimated", "deltas")
    assert meter.usage.input.source == "unknown"
    assert 0 < meter.usage.input.low <= ASKED_TOKENS


@pytest.mark.usefixtures("tokenizers")
def test_a_deployment_of_any_name():
    """The chunks say which model a deployment is, and so how to count and price it; also what was read before them."""
    meter = raw_meter("my-deployment")
    assert meter.usage.input.source == "unknown"
    meter.feed_chunk(chunk("", model="gpt-4o"))
    assert meter.usage.input.value == ASKED_TOKENS
    meter.feed_chunk(chunk(TEXT))
    assert meter.usage.output.value == 12
    assert meter.usage.output.high is not None
    assert meter.usage.cost_range.value is not None


# --- the life of a meter --------------------------------------------------------------------------------------


def test_before_it_is_sent():
    """A request that was cancelled before it went out counts nothing."""
    meter = Meter.for_openai(ASKED, api="openai-chat")
    assert (meter.usage.input.value, meter.usage.output.value) == (0, 0)
    meter.settle(ended=False)
    assert not meter.usage.has_values()
    assert meter.usage.estimated_requests == 0
    assert meter.usage.unmeasured_requests == 0


@pytest.mark.usefixtures("either")
def test_sent_and_cancelled_before_the_first_token():
    """The request counts; of the answer nothing was delivered."""
    meter = raw_meter()
    meter.settle(ended=False)
    assert meter.usage.input.source == "estimated"
    assert meter.usage.input_tokens > 0
    assert meter.usage.output == Count(0, 0, None, "estimated", "nothing_arrived")
    assert meter.usage.estimated_requests == 1


@pytest.mark.usefixtures("either")
def test_no_request_to_read():
    """Without a body the size of the request is unknown."""
    meter = raw_meter(request=None)
    assert meter.usage.input == Count.unknown()
    assert meter.usage.unmeasured_requests == 1
    wrapped = Meter(model="gpt-4o", provider="openai", provider_url=None)
    wrapped.sent()
    assert wrapped.usage.input == Count.unknown()


@pytest.mark.usefixtures("either")
def test_late():
    """What had arrived when the stream was cancelled is counted, though it is in no part."""
    meter = meter_of()
    meter.feed_event(said("Once"))
    meter.late([said(" upon"), said(" a"), PartEndEvent(index=0, part=TextPart("Once"))])
    meter.settle(parts=[TextPart("Once")], ended=False)
    assert meter.usage.output.value == 3
    raw = raw_meter()
    raw.feed_chunk(chunk("Once"))
    raw.late([chunk(" upon"), chunk(" a")])
    raw.settle(ended=False)
    assert raw.usage.output.value == 3


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("limit", [None, 100])
def test_lost(limit: int | None):
    """Data that had arrived and was thrown away: nobody knows how much, so nothing bounds the count from above."""
    meter = raw_meter(request={**ASKED, "max_tokens": limit})
    meter.feed_chunk(chunk("Once"))
    meter.lost()
    meter.settle(ended=False)
    assert meter.usage.output.value == 1
    assert meter.usage.output.high == limit


@pytest.mark.usefixtures("either")
def test_the_limit_bounds_the_estimate():
    """No answer is longer than the request allows."""
    meter = raw_meter(request={**ASKED, "max_tokens": 12})
    for word in WORDS:
        meter.feed_chunk(chunk(word))
    assert meter.usage.output.high == 12


@pytest.mark.usefixtures("either")
def test_it_is_one_object_that_never_goes_down():
    """The usage of a response is one object, counts what was pulled at any time, and is final once settled."""
    meter = meter_of()
    usage, seen = meter.usage, 0
    for number, word in enumerate(WORDS, 1):
        meter.feed_event(said(word))
        assert meter.usage is usage
        assert usage.output_tokens >= max(seen, number)
        seen = usage.output_tokens
    meter.settle(parts=[TextPart(TEXT)], ended=False)
    final = usage.output
    assert usage.output_tokens >= seen
    meter.feed_event(said(" more"))
    meter.late([said(" still")])
    meter.settle(reported=RequestUsage(input_tokens=1, output_tokens=1), ended=True)
    meter.observe(reported=RequestUsage(input_tokens=1, output_tokens=1))
    assert meter.usage is usage
    assert usage.output == final


@pytest.mark.usefixtures("no_tokenizers")
def test_a_tokenizer_that_arrives_in_between(vocabularies: Any, monkeypatch: pytest.MonkeyPatch):
    """The count does not go down when a guess is replaced by a count, and the interval still holds both."""
    long = "antidisestablishmentarianism 1 2 3 4 5 6 7 8 9\n\n" * 5
    meter = raw_meter("claude-sonnet-4-5")
    meter.feed_chunk(chunk(long))
    guess = meter.usage.output
    monkeypatch.setattr(_tokens, "_loaded", vocabularies)
    meter.feed_chunk(chunk(" end"))
    count = meter.usage.output
    assert guess.value is not None
    assert count.value is not None
    assert count.value >= guess.value
    assert count.low >= guess.low
    hidden = raw_meter("gpt-5")
    hidden.feed_chunk(chunk(long))
    bound = hidden.usage.output.low
    monkeypatch.setattr(_tokens, "_loaded", dict.fromkeys(_tokens.VOCABULARIES))
    hidden.feed_chunk(chunk(" end"))
    assert hidden.usage.output.low >= bound
    assert hidden.usage.output.value is None


def test_reading_from_another_thread():
    """Any thread may read the usage while the stream is pulled."""
    meter, go, counts = meter_of(), threading.Event(), []

    def read() -> None:
        go.wait(10)
        counts.extend(meter.usage.output_tokens for _ in range(200))

    thread = threading.Thread(target=read)
    thread.start()
    go.set()
    for _ in range(2000):
        meter.feed_event(said("Once"))
    thread.join(10)
    assert counts == sorted(counts)
    meter.settle(ended=False)
    assert meter.usage.output.low == 2000


def test_no_secrets_in_the_record():
    """The address is kept for the price, without what people put into it."""
    meter = meter_of()
    meter.settle(reported=RequestUsage(input_tokens=1, output_tokens=1), ended=True)
    record = meter.usage.record()
    assert record["provider_url"] == "https://api.example/v1"
    assert "secret" not in json.dumps(record)
    for url in ("", "not a url", "http://[broken", "file:///x"):
        plain = Meter(model=None, provider=None, provider_url=url)
        plain.sent()
        assert "provider_url" not in plain.usage.record()


@pytest.mark.parametrize("model", ["gpt-4o", "llama-3.3-70b"])
def test_sending_loads_a_tokenizer_in_the_background(monkeypatch: pytest.MonkeyPatch, model: str):
    """The vocabulary of the model that is asked is wanted from the moment of the request."""
    wanted: list[str] = []
    monkeypatch.setattr(_tokens, "preload", wanted.append)
    raw_meter(model)
    assert wanted == [{"gpt-4o": "o200k_base", "llama-3.3-70b": "llama3"}[model]]


# --- bad input ------------------------------------------------------------------------------------------------


BAD_USAGES: list[Any] = [
    {"prompt_tokens": -5, "completion_tokens": -1},
    {"prompt_tokens": "14", "completion_tokens": "many"},
    {"prompt_tokens": None, "completion_tokens": None},
    {"prompt_tokens": 10**30, "completion_tokens": 10**30},
    {"prompt_tokens": 1.5, "completion_tokens": float("nan")},
    {"prompt_tokens": [14], "completion_tokens": {}},
    {},
    [],
    "lots",
    7,
    {"prompt_tokens_details": 5, "completion_tokens_details": "x"},
]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("usage", BAD_USAGES)
def test_bad_usage_in_a_chunk(usage: Any):
    """Counts that cannot be counts were not reported."""
    meter = raw_meter()
    for word in WORDS:
        meter.feed_chunk(chunk(word))
    meter.feed_chunk(chunk(finish="stop", usage=usage))
    meter.settle(ended=True)
    assert meter.usage.provenance == "estimated"
    assert meter.usage.output.value == 12


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bad", [-5, "many", None, 10**30, 2.5, True, [], {}])
def test_bad_usage_through_pydantic_ai(bad: Any):
    """The same where it came through pydantic-ai's own usage object."""
    meter = meter_of()
    for word in WORDS:
        meter.feed_event(said(word))
    reported = RequestUsage(input_tokens=bad, output_tokens=bad, cache_read_tokens=bad, details={"x": bad})
    meter.settle(parts=[TextPart(TEXT)], reported=reported, ended=True)
    assert meter.usage.provenance == "estimated"
    assert meter.usage.output.value == 12
    assert meter.usage.details == {}
    reported = RequestUsage(input_tokens=1)
    reported.details = None  # type: ignore[assignment]
    plain = meter_of()
    plain.settle(reported=reported, ended=True)
    assert plain.usage.input == Count.reported(1)


BAD_CHUNKS: list[Any] = [
    {"choices": None},
    {"choices": [None]},
    {"choices": [{"delta": None, "text": "from the older API"}]},
    {"choices": [{"delta": 5, "index": "x"}]},
    {"choices": [{"delta": {"content": 5, "tool_calls": "x", "function_call": 7}}]},
    {"choices": [{"delta": {"tool_calls": [None, 5, {"function": None}, {"index": [], "function": {"name": 5}}]}}]},
    {"choices": {"0": {}}, "usage": None},
    {"type": "response.completed", "response": None},
    {"type": "response.output_text.delta", "delta": None, "output_index": {}},
    {"type": "response.output_item.added", "item": None, "output_index": []},
    {"type": "response.output_item.added", "item": {"type": "function_call", "name": 5}},
    {"type": 7, "choices": 9},
    None,
    5,
    "text",
    [],
    object(),
    FinalResultEvent(tool_name=None, tool_call_id=None),
]


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("bad", BAD_CHUNKS, ids=range(len(BAD_CHUNKS)))
def test_bad_chunks(bad: Any):
    """A chunk of nonsense changes nothing, and ends nothing."""
    for model in ("gpt-4o", "claude-sonnet-4-5"):
        meter = raw_meter(model)
        for word in WORDS:
            meter.feed_chunk(chunk(word))
        meter.feed_chunk(bad)
        meter.feed_event(bad)
        meter.settle(ended=False)
        assert meter.usage.output.source in ("estimated", "unknown")
        assert meter.usage.output.low <= 12 + 4 <= meter.usage.output_tokens + 8


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize(
    "request_body",
    [
        {"messages": None},
        {"messages": "Tell me"},
        {"messages": [None, 5, {"role": 7, "content": 9}], "tools": [None, 7, {}], "response_format": 5},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": None}, 7, None, "x"]}]},
        {"input": [7, None, {"type": None}, {"type": "reasoning"}], "text": 7, "tools": "x", "reasoning": 5},
        {"input": {"role": "user"}, "max_output_tokens": "many", "tool_choice": 7},
        {},
    ],
)
@pytest.mark.parametrize("api", ["openai-chat", "openai-responses"])
def test_bad_requests(request_body: dict[str, Any], api: Any):
    """A body that no provider would take is no error of the meter's."""
    usage = raw_meter(request=request_body, api=api).usage
    assert usage.input.source in ("estimated", "unknown")


class Hostile(dict[str, Any]):
    """A body that cannot be read."""

    def get(self, key: str, default: Any = None) -> Any:
        raise RuntimeError("no")


def test_a_request_that_cannot_be_read():
    """Even then: no value, and no exception."""
    meter = raw_meter(request=Hostile())
    meter.feed_chunk(chunk("Hi"))
    assert meter.usage.input == Count.unknown()
    assert meter.usage.output.value == 1


def test_a_request_that_cannot_be_counted(monkeypatch: pytest.MonkeyPatch):
    """A tokenizer that fails on a text leaves the request without a value."""

    def broken(text: str) -> int:
        raise RuntimeError("no")

    monkeypatch.setattr(_tokens, "_loaded", {"o200k_base": broken})
    assert raw_meter().usage.input == Count.unknown()


NAMES = [
    *("choices", "delta", "content", "index", "usage", "tool_calls", "function", "name", "arguments", "type", "item"),
    *("response", "output_index", "prompt_tokens", "completion_tokens", "model", "reasoning", "finish_reason"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=6), st.sampled_from(["gpt-4o", "claude-opus-4-5", "gpt-5", "who-knows"]))
@settings(deadline=None, max_examples=100)
def test_no_json_ends_the_count(chunks: list[Any], model: str):
    """Whatever JSON a server sends: no exception, counts in order, and nothing but its own numbers is `reported`."""
    meter = Meter.for_openai(ASKED, api="openai-chat", model=model)
    meter.sent()
    for piece in chunks:
        meter.feed_chunk(piece)
        usage = meter.usage
        for count in (usage.input, usage.output, usage.cached_input, usage.reasoning):
            assert 0 <= count.low <= count.plain
            assert count.high is None or count.plain <= count.high
    meter.settle(ended=True)
    sent = json.dumps(chunks)
    for name, count in (("prompt_tokens", meter.usage.input), ("completion_tokens", meter.usage.output)):
        if count.source == "reported":
            assert f'"{name}": ' in sent or "input_tokens" in sent


def chunk_of(delta: dict[str, Any]) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta}]}


def test_objects_of_responses():
    """The SDK's own events are read like their JSON."""
    meter = raw_meter(api="openai-responses")
    for number, word in enumerate((*WORDS, "")):
        meter.feed_chunk(
            ResponseTextDeltaEvent(
                type="response.output_text.delta",
                delta=word,
                content_index=0,
                item_id="1",
                logprobs=[],
                output_index=0,
                sequence_number=number,
            )
        )
    assert meter.usage.output.low == 12


@pytest.mark.parametrize(
    ("fields", "deltas"),
    [
        ({}, 1),
        ({"choices": []}, 0),
        ({"choices": [{"index": 1, "delta": {"content": "Hi"}}]}, 1),
        ({"choices": [{"index": 0, "delta": {"content": "Hi"}}, {"index": 1, "delta": {"content": "Ho"}}]}, 2),
        ({"choices": [{"index": 0, "delta": {"content": ""}}]}, 0),
        ({"choices": [{"index": 0, "delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]}}]}, 1),
        ({"choices": [{"index": 0, "delta": {"content": 5}}]}, 0),
        ({"choices": [5]}, 0),
        ({"choices": None}, 0),
    ],
)
def test_objects_of_chat(fields: dict[str, Any], deltas: int):
    """The SDK's own chunks, also those it made of nonsense without checking them."""
    meter = raw_meter()
    made: Any = ChatCompletionChunk.construct(**{**chunk("Hi"), **fields})
    meter.feed_chunk(made)
    assert meter._seen.deltas == deltas


def test_events_that_carry_nothing():
    """Empty deltas, and parts without tokens."""
    meter = meter_of()
    meter.feed_event(said(""))
    meter.feed_event(PartDeltaEvent(index=0, delta=ThinkingPartDelta(provider_name="x")))
    meter.feed_event(PartDeltaEvent(index=0, delta=SpeechPartDelta(transcript_delta="Hi")))
    meter.feed_event(PartStartEvent(index=0, part=CompactionPart(None)))
    assert meter._seen.deltas == 0
    assert not meter.usage.hidden_reasoning


def test_mistral_sends_parts():
    """Mistral's models that reason send their content in parts."""
    meter = raw_meter("magistral-medium")
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Well"}, {"text": ""}]}
    meter.feed_chunk(chunk_of({"content": [thinking, {"type": "text", "text": "Hi"}]}))
    assert meter.usage.output.low == 2
    assert meter.usage.reasoning.value == 1


def test_whole_parts():
    """Parts that come in one piece are counted like those that stream."""
    parts: list[ModelResponsePart] = [TextPart(""), ThinkingPart(""), TextPart(TEXT), ToolCallPart("f", {"a": 1})]
    meter = meter_of("deepseek-chat")
    for index, part in enumerate(parts):
        meter.feed_event(PartStartEvent(index=index, part=part))
    meter.settle(parts=parts, ended=False)
    assert meter.usage.output.low >= 2


@pytest.mark.parametrize(
    ("first", "counted"),
    [
        (chunk("Once"), 3),
        ({"choices": [{"index": 1, "delta": {"content": "Once"}}]}, 3),
        (chunk_of({"reasoning_content": "Once"}), 3),
        (chunk_of({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "Once"}}]}), 3),
        (chunk_of({"role": "assistant"}), 0),
    ],
)
def test_chunks_that_carry_on(first: dict[str, Any], counted: int):
    """The first chunk of a run says what its text is; the others of the run are counted by their text alone."""
    meter = raw_meter("deepseek-chat")
    count = meter.feed_first(first)
    count(" upon")
    count(" a")
    assert meter._seen.deltas == counted
