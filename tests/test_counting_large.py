"""Counting a large prompt or answer takes no longer than an event loop can spare, whatever it holds.

Held by the work that is done, not by a clock: how many characters a tokenizer is given, and in which portions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic_ai.messages import ModelRequest, PartDeltaEvent, TextPartDelta, UserPromptPart
from pydantic_ai.models import ModelRequestParameters

from cancelstream import Count, _tokens
from cancelstream._counting import Tool, count_prompt, family_of, from_chat, from_messages
from cancelstream._usage import Meter

SIZE = 2_000_000
PROSE = "The quick brown fox jumps over the lazy dog, and then 12345 more.\n"
TEXTS = {
    "prose": PROSE * (SIZE // len(PROSE)),
    "one word": "ab" * (SIZE // 2),
    "no spaces": "\u4f60\u597d\u4e16\u754c" * (SIZE // 4),
    "emoji": "\U0001f642" * SIZE,
    "white": " \n" * (SIZE // 2),
}
MODELS = ("gpt-4o", "gpt-4", "claude-sonnet-4-5", "claude-sonnet-5", "gemini-2.5-pro", "mistral-large", "my-own")


class Given:
    """What tokenizers were given to count."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.characters = 0
        self.longest_word = 0
        monkeypatch.setattr(_tokens, "_loaded", dict.fromkeys(_tokens.VOCABULARIES, self.count))

    def count(self, text: str) -> int:
        self.characters += len(text)
        self.longest_word = max(self.longest_word, max(map(len, text.split()), default=0))
        return len(text) // 4 + 1


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, nothing_is_loading: None) -> Given:
    return Given(monkeypatch)


def answer_of(model: str, text: str) -> Count:
    meter = Meter(model=model, provider=None, provider_url=None)
    meter.sent()
    meter.opened()
    meter.feed_event(PartDeltaEvent(index=0, delta=TextPartDelta(text)))
    meter.settle(ended=False)
    return meter.usage.output


def prompt_of(model: str, text: str) -> Count:
    return count_prompt(from_chat({"messages": [{"role": "user", "content": text}]}), family_of(model), "openai-chat")


def prompt_in_turns(model: str, text: str) -> Count:
    messages = [{"role": "user", "content": text[start : start + 2000]} for start in range(0, len(text), 2000)]
    return count_prompt(from_chat({"messages": messages}), family_of(model), "openai-chat")


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("counted", [answer_of, prompt_of, prompt_in_turns])
def test_a_large_text_is_counted_by_a_part_of_it(
    counted: Callable[[str, str], Count], model: str, name: str, given: Given
):
    """2 MB cost no more than the most that is counted at once, in words no longer than a tokenizer manages."""
    count = counted(model, TEXTS[name])
    assert 0 < given.characters <= 1.1 * _tokens.most_at_once(family_of(model).vocabulary)
    assert given.longest_word <= 10_000
    assert "sample:" in count.method
    if count.value is not None:
        assert count.low <= count.value <= (count.high or count.value)


@pytest.mark.parametrize("name", TEXTS)
def test_without_a_tokenizer(name: str, monkeypatch: pytest.MonkeyPatch, nothing_is_loading: None):
    """Words are counted in a part of it, too."""
    monkeypatch.setattr(_tokens, "_loaded", {})
    looked_at: list[int] = []
    approximate = _tokens.approximate

    def noted(text: str) -> tuple[int, int, int]:
        looked_at.append(len(text))
        return approximate(text)

    monkeypatch.setattr(_tokens, "approximate", noted)
    count = answer_of("gpt-4o", TEXTS[name])
    assert 0 < sum(looked_at) <= 1.1 * _tokens.most_at_once("o200k_base")
    assert count.method == "sample:words"


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize("model", ["gpt-4o", "claude-sonnet-4-5", "gemini-2.5-pro"])
def test_a_sample_holds_the_whole(model: str):
    """What a part of a text says of all of it is close, and the bounds hold all of it."""
    text = "".join(f"{PROSE}- item {number}: def f(x): return x**{number}\n" for number in range(8_000))
    family = family_of(model)
    whole, some = family._counted(text), family.count(text)
    assert some.method.startswith("sample:")
    assert some.value == pytest.approx(whole.value, rel=0.03)
    assert some.low < whole.value < some.high
    assert some.high - some.low > whole.high - whole.low


@pytest.mark.usefixtures("tokenizers")
def test_a_sample_of_unlike_parts_says_so():
    """Where the pieces that were counted differ much, the bounds are wider."""
    alike, unlike = PROSE * 4_000, PROSE * 2_000 + "\u4f60\u597d" * 66_000
    widths = [
        (count.high - count.low) / count.value
        for count in (family_of("gpt-4o").count(text) for text in (alike, unlike))
    ]
    assert widths[1] > 2 * widths[0]


def test_a_text_below_the_size_is_counted_whole(given: Given):
    """Up to what can be counted at once nothing is left out."""
    text = TEXTS["prose"][: _tokens.most_at_once("o200k_base")]
    assert answer_of("gpt-4o", text).method == "bpe:o200k_base"
    assert given.characters == len(text)


def test_a_text_without_spaces_is_counted_in_pieces(given: Given):
    """A tokenizer gets stuck in one long word: below the size, too, it is given such a text in portions."""
    text = TEXTS["one word"][:30_000]
    count = answer_of("gpt-4o", text)
    assert count.method == "bpe:o200k_base"
    assert (given.characters, given.longest_word) == (30_000, 2_000)


def test_thousands_of_messages(given: Given):
    """More messages than can be read at once leave a lower bound and no value, on either route."""
    messages = [{"role": "user", "content": "Hello"}] * 5_000
    raw = from_chat({"messages": messages})
    kept = from_messages([ModelRequest(parts=[UserPromptPart("Hello")])] * 5_000, None, ModelRequestParameters())
    for prompt in (raw, kept):
        assert len(prompt.turns) <= 2_000
        count = count_prompt(prompt, family_of("gpt-4o"), "openai-chat")
        assert (count.value, count.high) == (None, None)
        assert count.low > 2_000


def test_a_schema_without_end(given: Given):
    """Functions of more types than can be shown at once have no upper bound."""
    fields: dict[str, Any] = {f"field_{number}": {"type": "string"} for number in range(20_000)}
    tools = tuple(Tool(f"f{number}", "", {"properties": fields}) for number in range(5))
    prompt = from_chat({"messages": [{"role": "user", "content": "Hello"}]})
    count = count_prompt(prompt.__class__(prompt.turns, tools), family_of("gpt-4o"), "openai-chat")
    assert count.high is None
    assert given.characters < 50_000


def test_a_large_object(given: Given):
    """An object that a schema asked for is taken for one, where it is too long to be parsed."""
    function = {"type": "function", "function": {"name": "look"}}
    wanted = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}}}
    meter = Meter.for_openai(
        {"messages": [], "tools": [function], "response_format": wanted}, api="openai-chat", model="gpt-4o"
    )
    meter.sent()
    meter.opened()
    meter.feed_chunk({"choices": [{"index": 0, "delta": {"content": '{"a":1}' * 20_000}}]})
    meter.settle(ended=True)
    assert meter.usage.output.value == pytest.approx(140_000 // 4, rel=0.01)


@pytest.mark.parametrize("whole", [True, False])
def test_a_call_with_large_arguments(whole: bool, given: Given):
    """Arguments too long to be parsed are judged by their end: a call that was cut lacks what closes it."""
    arguments = json.dumps({"text": TEXTS["prose"]}, separators=(",", ":"))
    meter = Meter(model="deepseek-v4-flash", provider=None, provider_url=None)
    meter.sent()
    meter.opened()
    call = {"index": 0, "function": {"name": "write", "arguments": arguments if whole else arguments[:-2]}}
    meter.feed_chunk({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    meter.settle(ended=False)
    family = family_of("deepseek-v4-flash")
    around = (meter.usage.output.value or 0) - family.count(arguments).value
    assert around == pytest.approx(14 + 11 + 10 + 2 - (0 if whole else 13), abs=2)
