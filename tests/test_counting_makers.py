"""The table of makers: names, and what each row says of calls, of texts and of limits."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai.messages import (
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    TextPartDelta,
    ThinkingPart,
    ToolCallPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.tools import ToolDefinition

from cancelstream import Count
from cancelstream._counting import UNKNOWN, Prompt, Tool, Turn, count_prompt, family_of, from_messages, from_responses
from cancelstream._counting._makers import FAMILIES
from cancelstream._usage import Meter, ResponseUsage
from cancelstream._usage._objects import fill
from cancelstream._usage._record import UsageRecord
from cancelstream._usage._reported import NONE

pytestmark = pytest.mark.usefixtures("tokenizers")

ASKED = {"messages": [{"role": "user", "content": "Tell me a story about a frog."}]}


def answer_of(model: str, *deltas: dict[str, Any], finish: str | None = None, **body: Any) -> Count:
    """What is estimated of an answer of these deltas; it was cut unless there is a finish reason."""
    meter = Meter.for_openai({**ASKED, "model": model, **body}, api="openai-chat", model=model)
    meter.sent()
    meter.opened()
    for delta in deltas:
        meter.feed_chunk({"choices": [{"index": 0, "delta": delta}]})
    if finish is not None:
        meter.feed_chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    meter.settle(ended=finish is not None)
    return meter.usage.output


def call(name: str, arguments: str, index: int = 0) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, "function": {"name": name, "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("claude-opus-4-7", "claude"),
        ("claude-sonnet-5", "claude"),
        ("anthropic/claude-4.5-haiku-20251001", "claude-4"),
        ("claude-opus-4-6", "claude-4"),
        ("x-ai/grok-4.3", "grok"),
        ("ministral-3b-latest", "mistral"),
        ("voxtral-small-latest", "mistral"),
        ("sonar-pro", "sonar"),
        ("gpt-6", "openai-reasoning"),
        ("o4-mini", "openai-reasoning"),
        *(
            (name, "other")
            for name in ("palmyra-x5", "us.amazon.nova-lite-v1:0", "command-r-plus", "phi-4", "nemotron-4")
        ),
        ("supernova-finetune", ""),
    ],
)
def test_names(model: str, name: str):
    """A maker is found by its models' names, and what only looks like one is none."""
    assert family_of(model).name == name


def test_every_row_says_what_it_rests_on():
    """A row of the table names the traffic behind it, or is one of the makers that nothing was seen of."""
    unseen = {family.name for family in FAMILIES.values() if not family.source}
    assert unseen <= {"gemma", "other"}
    assert all(family.scale[1] <= family.scale[0] <= family.scale[2] for family in FAMILIES.values())


@pytest.mark.parametrize(
    ("model", "around"),
    [
        ("gpt-4o", 7),
        ("mistral-small-latest", 3),
        ("gemini-2.5-flash", 7),
        ("gemini-2.0-flash", -3),
        ("llama-3.3-70b-versatile", 9),
        ("qwen3-32b", 16.5),
        ("Qwen/Qwen3.5-9B", 21),
        ("deepseek-v4-flash", 35),
        ("glm-4.7-flash", 5),
        ("kimi-k2", 10),
        ("gpt-oss-120b", 18),
        ("grok-code-fast-1", 18),
    ],
)
def test_what_a_call_takes_beside_its_text(model: str, around: float):
    """Each maker has its own number of tokens around a call, some of them for each argument."""
    family = family_of(model)
    reasoning = {"reasoning_effort": "none"} if family.hides else {}
    count = answer_of(model, call("get_weather", '{"city":"Paris"}'), finish="tool_calls", **reasoning)
    text = family.count("get_weather").value + family.count('{"city":"Paris"}').value
    assert count.value == pytest.approx(text + around, abs=1)
    assert count.high is not None
    assert count.low <= count.value <= count.high


def test_calls_in_parallel():
    """OpenAI's model calls one function that calls the others: sixteen tokens around them, and six for each."""
    calls = [call("look", "{}", index) for index in range(3)]
    family = family_of("gpt-4o")
    text = 3 * (family.count("look").value + family.count("{}").value)
    assert answer_of("gpt-4o", *calls).value == text + 16 + 3 * 6


def test_a_call_that_was_cut():
    """What comes after the arguments is not there yet: OpenAI's header is all at the front, others' is not."""
    for model, closing in (("gpt-4o", 0), ("deepseek-v4-flash", 13)):
        family = family_of(model)
        whole, cut = (answer_of(model, call("look", text)).value or 0 for text in ('{"a":"b"}', '{"a":"b"'))
        gone = family.count('{"a":"b"}').value - family.count('{"a":"b"').value
        assert whole - cut == pytest.approx(closing + gone, abs=1)


def test_a_call_that_was_the_only_one_possible_in_responses():
    """With one function that has to be called, the Responses API counts arguments alone, and one token."""
    tools = [{"type": "function", "name": "look", "parameters": {}}]
    body = {"model": "gpt-4o", "input": "Look", "tools": tools, "tool_choice": "required"}
    meter = Meter.for_openai(body, api="openai-responses")
    meter.sent()
    meter.opened()
    item = {"type": "function_call", "name": "look"}
    meter.feed_chunk({"type": "response.output_item.added", "output_index": 0, "item": item})
    meter.feed_chunk({"type": "response.function_call_arguments.delta", "output_index": 0, "delta": '{"city":"Paris"}'})
    meter.settle(ended=True)
    assert meter.usage.output.value == 5 + 1


def test_the_only_call_of_a_pydantic_ai_request():
    """An agent whose answer is an object has one function to call; that leaves no choice in the Responses API alone."""
    output = ToolDefinition(name="final_result", kind="output")
    wanted = ModelRequestParameters(output_mode="tool", output_tools=[output], allow_text_output=False)
    prompt = from_messages([], None, wanted)
    assert [prompt.only_call(api) for api in ("openai-responses", "openai-chat", None)] == ["final_result", None, None]
    free = ModelRequestParameters(function_tools=[ToolDefinition(name="look"), ToolDefinition(name="run")])
    assert from_messages([], None, free).only_call("openai-responses") is None
    assert from_messages([], {"tool_choice": ["look"]}, free).only_call("openai-chat") == "look"
    assert from_messages([], {"tool_choice": "required"}, free).required


def test_a_limit_that_is_kept():
    """A value does not exceed the limit of its request where the maker keeps to it, nor fall below what arrived."""
    assert answer_of("mistral-small-latest", call("look", '{"city":"'), max_tokens=4).value == 4
    grok = answer_of("grok-4-fast-non-reasoning", *({"content": f" {word}"} for word in range(30)), max_tokens=16)
    assert grok.value == 60
    assert grok.high is not None
    assert grok.high > 16
    several = answer_of("gpt-4o", *({"content": " a"} for _ in range(30)), max_tokens=20, n=2)
    assert several.high is not None
    assert 20 < several.high <= 40


def test_an_answer_that_reached_its_limit():
    """It is as long as the limit, since the provider says that this is why it ended."""
    words = [{"content": " frog"} for _ in range(10)]
    assert answer_of("claude-sonnet-4-5", *words, finish="length", max_tokens=12).value == 12
    assert answer_of("claude-sonnet-4-5", *words, finish="length", max_tokens=500).value != 500
    natural = answer_of("claude-sonnet-4-5", *words, finish="stop", max_tokens=500)
    assert (natural.value or 0) > (answer_of("claude-sonnet-4-5", *words, max_tokens=500).value or 0)


@pytest.mark.parametrize("finish", [None, "stop"])
def test_an_answer_of_which_nothing_was_visible(finish: str | None):
    """Nothing that was seen is no count: only the limit bounds it."""
    assert answer_of("gpt-4o", finish=finish, max_tokens=12).high == 12
    assert answer_of("gpt-4o", finish=finish).high is None
    assert answer_of("gpt-4o", finish=finish).low == 0


def test_a_refusal_counts():
    """A refusal is text that the model wrote."""
    assert answer_of("gpt-4o", {"refusal": "I cannot"}, {"refusal": " help with that."}, finish="stop").low >= 2


def test_tools_that_leave_no_trace():
    """In the chat API a provider's own tools do not show, so that nothing bounds such an answer from above."""
    tools = [{"type": "openrouter:web_search"}]
    assert answer_of("gpt-4o", {"content": "Hi"}, finish="stop", tools=tools).high is None
    assert answer_of("gpt-4o", {"content": "Hi"}, finish="stop").high is not None


def test_citations_count():
    """Claude writes more into a text that cites than the text shows."""
    counts: list[int] = []
    for citations in ([], [{"cited_text": "x"}]):
        meter = Meter(model="claude-sonnet-4-5", provider="anthropic", provider_url=None)
        meter.sent()
        meter.opened()
        meter.feed_event(PartDeltaEvent(index=0, delta=TextPartDelta("Ruby is a language.")))
        meter.feed_event(PartDeltaEvent(index=0, delta=TextPartDelta("", citations_delta=citations)))  # type: ignore
        counts.append(meter.usage.output.value or 0)
    assert counts[1] - counts[0] == 15


HELLO = Prompt((Turn("user", "Hello there"),), tools=(Tool("look", "", {}),))


def test_what_only_openai_adds():
    """gpt-5 is told where its calls go by OpenAI's own chat API; a gateway does not, and may add what it likes."""
    family = family_of("gpt-5-mini")
    own = count_prompt(HELLO, family, "openai-chat", "https://api.openai.com/v1")
    other = count_prompt(HELLO, family, "openai-chat", "https://openrouter.ai/api/v1")
    assert (own.value or 0) - (other.value or 0) == 79
    assert (other.high or 0) > (own.high or 0)
    o_series = count_prompt(HELLO, family_of("o4-mini"), "openai-chat", "https://api.openai.com/v1")
    assert o_series.value == other.value


def test_what_a_reasoning_model_reads_of_its_own():
    """Each earlier answer of gpt-5's takes four tokens more, and a system message one."""
    hello, answer = Turn("user", "Hello"), Turn("assistant", "Hello")
    family = family_of("gpt-5")
    turns = [count_prompt(Prompt(turns), family, "openai-chat").value or 0 for turns in ((hello,), (hello, answer))]
    assert turns[1] - turns[0] == 1 + 3 + 4
    system = count_prompt(Prompt((Turn("system", "Hello"), hello)), family, "openai-chat").value
    assert (system or 0) - turns[0] == 1 + 3 + 1


def test_reasoning_that_is_not_read_again():
    """Encrypted reasoning from before the user's last word is dropped by the Responses API; later reasoning counts."""
    sealed = {"type": "reasoning", "encrypted_content": "x" * 2916}
    user = {"role": "user", "content": "Hello"}
    assert from_responses({"input": [user, sealed, user]}).sealed == ()
    assert from_responses({"input": [user, sealed]}).sealed == (2916,)
    asked, thought = ModelRequest(parts=[UserPromptPart("Hello")]), ThinkingPart("", signature="x" * 2916)
    answer = ModelResponse(parts=[thought, ToolCallPart("look")])
    assert from_messages([asked, answer, asked], None, ModelRequestParameters()).sealed == ()
    assert from_messages([asked, answer], None, ModelRequestParameters()).sealed == (2916,)


def test_answers_that_are_not_shown():
    """In pro mode several answers are made, each with its own input: such a request has no value."""
    asked = from_responses({"input": "Hello", "reasoning": {"mode": "pro"}})
    settings: Any = {"openai_reasoning_mode": "pro"}
    for prompt in (asked, from_messages([], settings, ModelRequestParameters())):
        assert count_prompt(prompt, family_of("gpt-5.6"), "openai-responses").value is None
    assert count_prompt(from_responses({"input": "Hello"}), family_of("gpt-5.6"), "openai-responses").value


def test_what_templates_leave_out():
    """An open-weight model does not read again what it thought in an earlier answer."""
    thought = "Let me see. " * 50
    family = family_of("deepseek-r1")
    short, long = (
        count_prompt(
            Prompt((Turn("user", "Hi"), Turn("assistant", text), Turn("user", "Go on"))), family, "openai-chat"
        )
        for text in ("Hello", f"<think>{thought}</think>Hello")
    )
    assert long.value == short.value
    assert (long.high or 0) > (short.high or 0)


def test_a_model_of_a_maker_has_a_price():
    """`maker/model`, as gateways call it, is priced as the maker's model."""
    prices = []
    for model, url in (("gpt-4o", None), ("openai/gpt-4o", "https://gateway.example/v1"), ("my/own", None)):
        record = UsageRecord(*(Count.reported(number) for number in (100, 50, 0, 0)), model=model, provider_url=url)
        usage = ResponseUsage()
        fill(usage, record, NONE, sent=True)
        prices.append(usage.cost_range.value)
    assert prices[0] == prices[1] is not None
    assert prices[2] is None


def test_an_unknown_model_has_no_upper_bound():
    """Whatever else is known of it."""
    assert family_of("my-own") is UNKNOWN
    assert answer_of("my-own", {"content": "Hi"}, finish="stop").high is None
