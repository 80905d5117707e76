"""How many tokens a request is: what is read of it, how a model is shown it, and what cannot be seen."""

from __future__ import annotations

from typing import Any

import pytest
from openai import NOT_GIVEN
from openai.types.chat import ChatCompletionMessage
from pydantic_ai import ModelSettings
from pydantic_ai.messages import (
    BinaryContent,
    CachePoint,
    ImageUrl,
    InstructionDeltaPart,
    InstructionPart,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    RetryFeedbackPart,
    RetryInfo,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.native_tools import WebSearchTool
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.tools import ToolDefinition

from cancelstream import _tokens
from cancelstream._counting import family_of
from cancelstream._counting._input import count_prompt
from cancelstream._counting._prompt import Prompt, Schema, Turn, from_chat, from_responses
from cancelstream._counting._prompt_messages import from_messages
from cancelstream._counting._schema import Tool, compact, declarations, response_format
from cancelstream._usage import Count, Meter

WEATHER = {
    "type": "object",
    "properties": {
        "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
        "unit": {
            "type": "string",
            "description": "The unit of temperature to return",
            "enum": ["celsius", "fahrenheit"],
        },
    },
    "required": ["location"],
}
WEATHER_TOOL = {
    "name": "get_current_weather",
    "description": "Get the current weather in a given location",
    "parameters": WEATHER,
}


def count_chat(model: str, **body: Any) -> Count:
    meter = Meter.for_openai({"model": model, **body}, api="openai-chat")
    meter.sent()
    return meter.usage.input


# --- what OpenAI's cookbook says of its own counts ----------------------------------------------------------------
# "How to count tokens with tiktoken" (cookbook.openai.com) gives these conversations with the API's own counts.

JARGON = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate jargon into plain "
        "English.",
    },
    {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."},
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Things working well together will increase revenue.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities for increased "
        "leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client deliverable.",
    },
]


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize(("model", "counted"), [("gpt-4o", 124), ("gpt-4o-mini", 124), ("gpt-4", 129)])
def test_messages_as_the_api_counts_them(model: str, counted: int):
    """A conversation with names in it, to the token."""
    count = count_chat(model, messages=JARGON)
    assert count.value == counted
    assert count.low <= counted <= (count.high or 0)


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize(("model", "counted"), [("gpt-4o", 101), ("gpt-4", 105), ("gpt-3.5-turbo", 105)])
def test_functions_as_the_api_counts_them(model: str, counted: int):
    """A function with comments and an enumeration, within a token."""
    messages = [
        {
            "role": "system",
            "content": "You are a helpful assistant that can answer to questions about the weather.",
        },
        {"role": "user", "content": "What's the weather like in San Francisco?"},
    ]
    count = count_chat(model, messages=messages, tools=[{"type": "function", "function": WEATHER_TOOL}])
    assert count.value == pytest.approx(counted, abs=1)
    assert count.low <= counted <= (count.high or 0)
    legacy = count_chat(model, messages=messages, functions=[WEATHER_TOOL])
    assert legacy == count


# --- how functions are shown --------------------------------------------------------------------------------------


def test_functions_as_typescript():
    """What OpenAI's models read, line by line."""
    schema = {
        "title": "search_args",
        "$defs": {"Kind": {"title": "Kind", "enum": ["a", 1, None]}, "Tree": {"$ref": "#/$defs/Tree"}},
        "properties": {
            "text": {"type": "string", "title": "Text", "description": "What to look for.\n\n  Any words."},
            "kind": {"$ref": "#/$defs/Kind"},
            "limit": {"type": "integer", "default": 5},
            "ratio": {"type": ["number", "null"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "anything": {"type": "array"},
            "either": {"anyOf": [{"type": "string"}, {"const": "x"}]},
            "inner": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
            "bag": {"type": "object"},
            "open": {},
            "odd": 5,
            "loop": {"$ref": "#/$defs/Tree"},
        },
        "required": ["text"],
    }
    text, correction, whole = declarations(
        [
            Tool("search", "Look it up.\n\n    Twice.", schema),
            Tool("stop", "", {}),
            Tool("go", "", {"properties": {"x": {}}}),
        ]
    )
    assert text == (
        "# Tools\n\n## functions\n\nnamespace functions {\n\n"
        "// Look it up.\n// Twice.\n"
        "type search = (_: // search_args\n{\n"
        "// Text\n// What to look for.\n// Any words.\ntext: string,\n"
        '// Kind\nkind?: "a" | 1 | null,\n'
        "limit?: number, // default: 5\n"
        "ratio?: number | null,\n"
        "tags?: string[],\n"
        "anything?: any[],\n"
        'either?: string | "x",\n'
        "inner?: {\non: boolean,\n},\n"
        "bag?: object,\n"
        "open?: any,\n"
        "odd?: any,\n"
        "loop?: any,\n"
        "}) => any;\n\n"
        "type stop = () => any;\n\n"
        "type go = (_: {\nx?: any,\n}) => any;\n\n"
        "} // namespace functions"
    )
    assert correction == -1
    assert whole


def test_schemas_that_refer_to_themselves():
    """A schema without an end is read to a depth, and to a length."""
    node = {"properties": {name: {"$ref": "#/$defs/Node"} for name in "abcdefgh"}}
    union = {"anyOf": [{"$ref": "#/$defs/Union"}] * 20}
    for root in (node, union):
        schema = {"properties": {"root": root}, "$defs": {"Node": node, "Union": union}}
        text, _, whole = declarations([Tool("f", "", schema)])
        assert len(text) < 200_000
        assert not whole
        assert counted(with_(tools=(Tool("f", "", schema),))).high is None


def test_a_schema_for_the_answer():
    """A response schema is shown as compact JSON without what a validator needs; fields that are called so stay."""
    schema = {
        "title": "Book",
        "type": "object",
        "properties": {"format": {"type": "string", "format": "date", "maxLength": 9}, "required": {"title": "Needed"}},
        "required": ["format", "required"],
        "additionalProperties": False,
        "$schema": "https://json-schema.org/draft/2020-12/schema",
    }
    text = response_format("Book", "One book", schema)
    assert text == (
        "# Response Formats\n\n## Book\n\n// One book\n"
        '{"title":"Book","type":"object","properties":{"format":{"type":"string"},"required":{"title":"Needed"}}}'
    )


def test_json_that_cannot_be_written():
    """A value that JSON does not know becomes text, and one that has no end is left out."""
    endless: list[Any] = []
    endless.append(endless)
    assert compact({"a": {1}}) == '{"a":"{1}"}'
    assert compact(endless) == ""


# --- what is read of a body ---------------------------------------------------------------------------------------


def test_a_chat_body():
    """Everything of a chat body that has tokens, and a note of what cannot be counted."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
    custom = {"id": "c2", "type": "custom", "custom": {"name": "run", "input": "x"}}
    prompt = from_chat(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "Look"}, {"type": "image_url"}]},
                {"role": "assistant", "content": "I will", "tool_calls": [call, custom]},
                {"role": "tool", "tool_call_id": "c1", "content": "seen"},
                {"role": "assistant", "content": None, "function_call": {"name": "old", "arguments": "{}"}},
                {"role": "function", "name": "old", "content": {"found": True}},
                ChatCompletionMessage(role="assistant", content="Done", refusal=None),
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "No"}, "text"]},
            ],
            "tools": [{"type": "function", "function": {"name": "look"}}, {"type": "custom", "custom": {}}],
            "tool_choice": {"type": "function", "function": {"name": "look"}},
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"a": 1}}},
            "max_tokens": NOT_GIVEN,
            "max_completion_tokens": 9,
            "reasoning_effort": "low",
            "audio": {"voice": "x"},
        }
    )
    assert prompt == Prompt(
        turns=(
            Turn("system", "Be brief."),
            Turn("user", "Look", "Ann"),
            Turn("assistant", "I will"),
            Turn("call", '{"a":1}', "look"),
            Turn("call", "x", "run"),
            Turn("return", "seen", "look"),
            Turn("call", "{}", "old"),
            Turn("return", '{"found":true}', "old"),
            Turn("assistant", "Done"),
            Turn("assistant", "Notext"),
        ),
        tools=(Tool("look", "", {}),),
        schema=Schema("n", "", {"a": 1}),
        forced="look",
        limit=9,
        thinking=True,
        unseen=("image_url", "custom", "audio"),
        native=False,
    )


def test_a_responses_body():
    """The same of a Responses body."""
    prompt = from_responses(
        {
            "instructions": "Be brief.",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Look"}, {"type": "input_image"}]},
                {"type": "reasoning", "encrypted_content": "x" * 2916},
                {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a":1}'},
                {"type": "custom_tool_call", "call_id": "c2", "name": "run", "input": "x"},
                {"type": "function_call_output", "call_id": "c1", "output": "seen"},
                {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "ran"}]},
                {"type": "item_reference", "id": "1"},
            ],
            "tools": [{"type": "function", "name": "look", "description": None}, {"type": "web_search"}],
            "tool_choice": {"type": "function", "name": "look"},
            "text": {"format": {"type": "json_schema", "name": "n", "schema": {"a": 1}}},
            "reasoning": {"effort": "none"},
            "max_output_tokens": 9,
            "previous_response_id": "r1",
        }
    )
    assert prompt == Prompt(
        turns=(
            Turn("system", "Be brief."),
            Turn("user", "Look"),
            Turn("call", '{"a":1}', "look"),
            Turn("call", "x", "run"),
            Turn("return", "seen", "look"),
            Turn("return", "ran", "run"),
        ),
        tools=(Tool("look", "", {}),),
        schema=Schema("n", "", {"a": 1}),
        forced="look",
        limit=9,
        thinking=False,
        sealed=(2916,),
        unseen=("previous_response_id", "input_image", "item_reference", "web_search"),
        native=True,
    )
    assert from_responses({"input": "Look"}).turns == (Turn("user", "Look"),)


def test_a_pydantic_ai_request_is_the_body_it_becomes():
    """pydantic-ai's messages read as the chat body that is made of them."""
    messages: list[ModelMessage] = [
        ModelRequest(
            parts=[SystemPromptPart("Be brief."), UserPromptPart(["Look", TextContent(" here"), CachePoint()])]
        ),
        ModelResponse(
            parts=[
                ThinkingPart("hm", signature="x" * 10),
                TextPart("I will"),
                ToolCallPart("look", {"a": 1}),
                ToolCallPart("run", "{}"),
            ]
        ),
        ModelRequest(parts=[ToolReturnPart("look", "seen"), ToolReturnPart("run", {"b": 2})], instructions="Now."),
    ]
    parameters = ModelRequestParameters(
        function_tools=[ToolDefinition(name="look", parameters_json_schema=WEATHER, description="Look")],
        output_tools=[ToolDefinition(name="answer", parameters_json_schema={})],
        output_mode="tool",
    )
    prompt = from_messages(messages, ModelSettings(max_tokens=9), parameters)
    assert prompt == Prompt(
        turns=(
            Turn("system", "Now."),
            Turn("system", "Be brief."),
            Turn("user", "Look here"),
            Turn("assistant", "I will"),
            Turn("call", '{"a":1}', "look"),
            Turn("call", "{}", "run"),
            Turn("return", "seen", "look"),
            Turn("return", '{"b":2}', "run"),
        ),
        tools=(Tool("look", "Look", WEATHER), Tool("answer", "", {})),
        limit=9,
        sealed=(10,),
    )


def test_more_of_a_pydantic_ai_request():
    """Instructions in parts, schemas, retries, media, the provider's tools."""
    retry = RetryFeedbackPart("Not JSON", retry=RetryInfo("no_output"))
    messages: list[ModelMessage] = [
        ModelRequest(
            parts=[
                UserPromptPart(["See", ImageUrl("https://x/y.png"), BinaryContent(b"x", media_type="image/png")]),
                ToolReturnPart("draw", BinaryContent(b"x", media_type="image/png")),
                ToolReturnPart("look", "again", outcome="retried"),
                retry,
                InstructionDeltaPart(id=None, content="x"),
            ]
        ),
        ModelResponse(
            parts=[NativeToolCallPart("web_search", {}), NativeToolReturnPart("web_search", "x", tool_call_id="1")]
        ),
    ]
    wanted = OutputObjectDefinition(json_schema={"a": 1}, name="n", description="d")
    native = ModelRequestParameters(
        instruction_parts=[InstructionPart("One."), InstructionPart("Two.")],
        native_tools=[WebSearchTool()],
        output_mode="native",
        output_object=wanted,
        output_tools=[ToolDefinition(name="answer", parameters_json_schema={})],
    )
    prompt = from_messages(messages, None, native)
    assert [turn.text for turn in prompt.turns][:3] == ["One.", "Two.", "See"]
    assert [turn.kind for turn in prompt.turns][3:] == ["return", "return", "user"]
    assert "Not JSON" in prompt.turns[-1].text
    assert prompt.schema == Schema("n", "d", {"a": 1})
    assert prompt.tools == ()
    assert prompt.unseen[0] == "web_search"
    assert {"image-url", "binary", "file"} <= set(prompt.unseen)
    prompted = ModelRequestParameters(
        output_mode="prompted", output_object=wanted, prompted_output_template="Follow {schema}"
    )
    turns = from_messages([], None, prompted).turns
    assert turns[0].kind == "system"
    assert turns[0].text.startswith("Follow")


@pytest.mark.parametrize(
    ("settings", "thinking"),
    [
        (None, None),
        ({"openai_reasoning_effort": "none"}, False),
        ({"openai_reasoning_effort": "low"}, True),
        ({"thinking": False}, False),
        ({"thinking": "high"}, True),
        ({"anthropic_thinking": {"type": "enabled", "budget_tokens": 1024}}, True),
        ({"anthropic_thinking": {"type": "disabled"}}, False),
    ],
)
def test_whether_reasoning_is_asked_for(settings: Any, thinking: bool | None):
    """The settings say whether a model was asked to reason, or told not to."""
    assert from_messages([], settings, ModelRequestParameters()).thinking is thinking


# --- what is counted ----------------------------------------------------------------------------------------------

HELLO = Prompt((Turn("user", "Hello there, how are you?"),))


def counted(prompt: Prompt, model: str = "gpt-4o", api: Any = "openai-chat") -> Count:
    return count_prompt(prompt, family_of(model), api)


def with_(**fields: Any) -> Prompt:
    return Prompt(**{"turns": HELLO.turns, **fields})


@pytest.mark.usefixtures("tokenizers")
def test_what_is_unseen_has_no_value():
    """Media and the like leave a lower bound, and nothing more."""
    count = counted(with_(unseen=("image_url",)))
    assert count.value is None
    assert count.high is None
    assert count.low == counted(HELLO).low > 0


@pytest.mark.usefixtures("tokenizers")
def test_nothing_to_count():
    """An empty request is what is around it."""
    assert counted(Prompt(())).value == 3


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize("model", ["gpt-4o", "gpt-5", "claude-sonnet-4-5", "gemini-2.5-flash", "llama-3.3-70b"])
@pytest.mark.parametrize(
    "more",
    [
        {"tools": (Tool("look", "Look it up", WEATHER),)},
        {"schema": Schema("n", "d", WEATHER)},
        {"turns": (*HELLO.turns, Turn("call", "{}", "look"), Turn("return", "seen", "look"))},
    ],
    ids=["tools", "schema", "calls"],
)
@pytest.mark.parametrize("api", ["openai-chat", "openai-responses", None])
def test_more_in_a_request_is_more_tokens(model: str, more: dict[str, Any], api: Any):
    """Every part of a request counts, for every family and through each interface, in an interval with an end."""
    less, count = counted(HELLO, model, api), counted(with_(**more), model, api)
    assert less.value is not None
    assert count.value is not None
    assert count.high is not None
    assert less.high is not None
    gemini_takes_schemas_for_nothing = model.startswith("gemini") and "schema" in more
    assert count.value > less.value or gemini_takes_schemas_for_nothing
    assert count.high > less.high
    assert count.low <= count.value <= count.high


@pytest.mark.usefixtures("tokenizers")
def test_the_system_message_of_functions():
    """The chat API makes a system message for functions where there is none."""
    system = Turn("system", "")
    tools = (Tool("look", "", {}),)
    without, with_system = counted(with_(tools=tools)), counted(with_(turns=(system, *HELLO.turns), tools=tools))
    assert without.value is not None
    assert with_system.value is not None
    assert with_system.value - without.value == 4 - 3
    schema = Schema("n", "", {})
    for api, difference in (("openai-chat", 4 - 3), ("openai-responses", 4)):
        alone = counted(with_(schema=schema), api=api)
        beside = counted(with_(turns=(system, *HELLO.turns), schema=schema), api=api)
        assert (beside.value or 0) - (alone.value or 0) == difference


@pytest.mark.usefixtures("tokenizers")
def test_a_function_that_is_forced():
    """The name of a function that has to be called is a part of the request."""
    tools = (Tool("look", "", {}),)
    free, forced = counted(with_(tools=tools)), counted(with_(tools=tools, forced="look"))
    assert (forced.value or 0) - (free.value or 0) == 7
    assert counted(with_(tools=tools), "gpt-5") == counted(with_(tools=tools, forced="look"), "gpt-5")


@pytest.mark.usefixtures("tokenizers")
def test_calls_in_parallel():
    """Calls that were made together have more around them in the chat API, once, and less in Responses."""
    call, seen = Turn("call", "{}", "look"), Turn("return", "seen", "look")
    for api, around in (("openai-chat", 25 - 4 - 4), ("openai-responses", 5 - 4 - 4)):
        together = counted(with_(turns=(call, call, seen, seen)), api=api)
        apart = counted(with_(turns=(call, seen, call, seen)), api=api)
        assert (together.value or 0) - (apart.value or 0) == around
    newest = [counted(with_(turns=turns), "gpt-5.4", "openai-responses").value
              for turns in ((call, call, seen, seen), (call, seen, call, seen))]  # fmt: skip
    assert newest[0] == newest[1]


@pytest.mark.usefixtures("tokenizers")
def test_reasoning_that_is_sent_back():
    """Encrypted reasoning counts by its length, in the Responses API alone."""
    sealed = counted(with_(sealed=(2916, 1252)), "gpt-5", "openai-responses")
    plain = counted(HELLO, "gpt-5", "openai-responses")
    assert (sealed.value or 0) - (plain.value or 0) == pytest.approx(2 * 10 + 286 + 9, abs=2)
    assert sealed.low == plain.low
    assert counted(with_(sealed=(2916,)), "gpt-5", "openai-chat") == counted(HELLO, "gpt-5", "openai-chat")


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ("gpt-4o-mini-2024-07-18", "openai"),
        ("openai/gpt-4.1-nano", "openai"),
        ("ft:gpt-4o-2024-08-06:org::x", "openai"),
        ("gpt-5-chat-latest", "openai"),
        ("gpt-35-turbo", "openai"),
        ("gpt-5.2", "openai-reasoning"),
        ("o3-mini", "openai-reasoning"),
        ("openai/gpt-oss-120b", "gpt-oss"),
        ("us.anthropic.claude-sonnet-4-20250514-v1:0", "claude-4"),
        ("claude-3-5-haiku-20241022", "claude-3"),
        ("claude-opus-5", "claude"),
        ("models/gemini-2.5-pro", "gemini"),
        ("deepseek-r1-distill-llama-70b", "llama"),
        ("deepseek-chat", "deepseek"),
        ("accounts/fireworks/models/llama-v3p1-8b-instruct", "llama"),
        ("mixtral-8x7b", "mistral"),
        ("Qwen/Qwen3-32B", "qwen"),
        ("moonshotai/kimi-k2", "kimi"),
        ("zai/GLM-4.7", "glm"),
        ("gemma-3-27b", "gemma"),
        ("foo1-bar", ""),
        ("my-finetune", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_families(model: str | None, family: str):
    """A model's name says how it counts, wherever it is hosted."""
    assert family_of(model).name == family


@pytest.mark.usefixtures("tokenizers")
def test_a_vocabulary_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    """Another maker's vocabulary stands in for one that is not at hand, with wider bounds, and words for any."""
    own = counted(HELLO, "llama-3.3-70b")
    o200k = _tokens.tokenizer("o200k_base")
    monkeypatch.setattr(_tokens, "_loaded", {"o200k_base": o200k})
    stood_in = counted(HELLO, "llama-3.3-70b")
    monkeypatch.setattr(_tokens, "_loaded", {})
    guessed = counted(HELLO, "llama-3.3-70b")
    assert [count.method for count in (own, stood_in, guessed)] == ["bpe:llama3", "ratio:llama", "words"]
    assert own.low > stood_in.low
    for count in (stood_in, guessed):
        assert count.low <= (own.value or 0) <= (count.high or 0)
