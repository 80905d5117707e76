"""Usage on its way through pydantic-ai: runs, limits, stored messages and spans, over a real socket."""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic_ai import Agent, CancellationToken, ModelMessagesTypeAdapter, RunCancelled, RunUsage, Tool, UsageLimits
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import (
    Cancellable,
    CancellableModel,
    CancellableRun,
    CancellableRunEvents,
    Count,
    StreamUsage,
    _tokens,
    run_stream,
    run_stream_events,
)
from cancelstream.testing import Answer, ScriptedServer, Silence, Text, ToolCall, Usage
from cancelstream.testing._plugin import StartServer

WORDS = ("Once", " upon", " a", " time", " a", " frog", " sat")
STUCK = Answer(Text(*WORDS, Silence()), usage=Usage(30, 40))
WHOLE = Answer(Text(*WORDS), usage=Usage(30, 40))


@pytest_asyncio.fixture
async def clients() -> AsyncIterator[list[AsyncOpenAI]]:
    opened: list[AsyncOpenAI] = []
    yield opened
    for client in opened:
        await client.close()


def model_for(server: ScriptedServer, clients: list[AsyncOpenAI], api: str = "chat", name: str = "gpt-4o") -> Any:
    client = AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0)
    clients.append(client)
    kind = OpenAIChatModel if api == "chat" else OpenAIResponsesModel
    return kind(name, provider=OpenAIProvider(openai_client=client))


async def cut_after(result: CancellableRun[Any] | CancellableRunEvents[Any], number: int) -> None:
    """Read that many pieces of text, then cancel."""
    taken = 0
    at_once = {"debounce_by": None} if isinstance(result, CancellableRun) else {}
    async for _ in result.stream_text(delta=True, **at_once):
        taken += 1
        if taken == number:
            result.cancel()


@pytest.mark.parametrize("api", ["chat", "responses"])
async def test_a_cut_run(scripted_server: StartServer, clients: list[AsyncOpenAI], api: str):
    """What a cut run says of its usage, it says in its messages too, and after a database."""
    agent = Agent(model_for(scripted_server(STUCK), clients, api), instructions="Be brief.")
    async with run_stream(agent, "Tell me a story about a frog.") as result:
        await cut_after(result, len(WORDS))
    usage = result.usage
    assert usage.provenance == "estimated"
    assert usage.output.value == len(WORDS)
    assert usage.input.low <= 22 <= (usage.input.high or 0)
    assert usage.estimated_requests == usage.requests == 1
    assert usage.unmeasured_requests == 0
    assert usage.cost_range.value is not None
    stored = ModelMessagesTypeAdapter.validate_json(result.all_messages_json())
    for messages in (result.all_messages(), stored):
        again = StreamUsage.of(messages)
        assert (again.input, again.output, again.provenance) == (usage.input, usage.output, "estimated")
        assert again.cost_range == usage.cost_range
        assert (again.input_tokens, again.output_tokens) == (usage.input_tokens, usage.output_tokens)


@pytest.mark.usefixtures("tokenizers")
async def test_each_interface_counts_its_own_way(scripted_server: StartServer, clients: list[AsyncOpenAI]):
    """Functions take another number of tokens in the Responses API than in the chat API, also for a wrapped model."""
    asked: dict[str, Count] = {}
    for api in ("chat", "responses"):
        model = WrapperModel(model_for(scripted_server(STUCK), clients, api, name="gpt-5-mini"))
        agent = Agent(model, tools=[Tool(lambda: "a frog", name="look", takes_ctx=False)])
        async with run_stream(agent, "Look") as result:
            await cut_after(result, len(WORDS))
        asked[api] = result.usage.input
    chat, responses = asked["chat"].value, asked["responses"].value
    assert chat is not None
    assert responses is not None
    # The chat API makes a system message for them.
    assert chat > responses


def test_wrapping_a_model_loads_its_tokenizer(monkeypatch: pytest.MonkeyPatch):
    """So that it is there before the event loop runs, where a program wraps its models first."""
    wanted: list[str] = []
    monkeypatch.setattr(_tokens, "preload", wanted.append)
    CancellableModel(TestModel(model_name="gpt-3.5-turbo"))
    assert wanted == ["cl100k_base"]


async def test_a_run_of_which_one_answer_was_cut(scripted_server: StartServer, clients: list[AsyncOpenAI]):
    """The first turn was reported, the second was cut: mixed, and the sum of both."""
    call = Answer(ToolCall("look", "{}"), usage=Usage(30, 9))
    agent = Agent(model_for(scripted_server(call, STUCK), clients))

    @agent.tool_plain
    def look() -> str:
        return "a frog"

    async with run_stream_events(agent, "Look") as events:
        await cut_after(events, len(WORDS))
    usage = events.usage
    assert usage.provenance == "mixed"
    assert (usage.requests, usage.estimated_requests, usage.tool_calls) == (2, 1, 1)
    assert usage.output.value == 9 + len(WORDS)
    assert usage.input_tokens - usage.estimated_input_tokens == 30
    assert StreamUsage.of(events.all_messages()).output == usage.output


async def test_an_estimate_counts_against_the_limits_of_what_follows(
    scripted_server: StartServer, clients: list[AsyncOpenAI]
):
    """Two runs that share a usage: what the first was estimated at, the second may not use again."""
    agent = Agent(model_for(scripted_server(STUCK, WHOLE), clients), capabilities=[Cancellable()])
    async with run_stream(agent, "Tell me a story about a frog.") as result:
        await cut_after(result, len(WORDS))
    spent = RunUsage() + result.usage
    assert spent.output_tokens == len(WORDS)
    limits = UsageLimits(output_tokens_limit=40 + len(WORDS) - 1)
    with pytest.raises(UsageLimitExceeded, match="output_tokens_limit"):
        await agent.run("And another", usage=spent, usage_limits=limits)


@pytest.mark.parametrize("cut", [True, False])
async def test_the_span(scripted_server: StartServer, clients: list[AsyncOpenAI], spans: Any, cut: bool):
    """The tokens and the cost on the span are ours, once, and an attribute says that they were estimated."""
    model = model_for(scripted_server(STUCK if cut else WHOLE), clients)
    agent = Agent(model, capabilities=[spans.instrumentation, Cancellable()])
    async with run_stream(agent, "Tell me a story about a frog.") as result:
        if cut:
            await cut_after(result, len(WORDS))
        else:
            await result.get_output()
    usage = result.usage
    (chat,) = spans.named("chat")
    attributes = dict(chat.attributes or {})
    assert attributes["gen_ai.usage.output_tokens"] == usage.output_tokens == (len(WORDS) if cut else 40)
    assert attributes["gen_ai.usage.input_tokens"] == usage.input_tokens
    assert attributes["operation.cost"] == pytest.approx(float(usage.cost_range.value or 0))
    assert attributes["cancelstream.usage.provenance"] == ("estimated" if cut else "reported")
    ours = {name for name in attributes if "usage" in name and "details" not in name}
    assert sorted(ours - {"cancelstream.usage.provenance"}) == [
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
    ]


async def test_hidden_reasoning_in_a_run(scripted_server: StartServer, clients: list[AsyncOpenAI]):
    """A model that may have reasoned unseen: no value, and pydantic-ai knows that its total is a lower bound."""
    agent = Agent(model_for(scripted_server(STUCK), clients, name="gpt-5-mini"))
    async with run_stream(agent, "Tell me a story about a frog.") as result:
        await cut_after(result, len(WORDS))
    assert result.usage.hidden_reasoning
    assert result.usage.output.value is None
    assert result.usage.output.low == result.usage.output_tokens == len(WORDS)
    assert result.usage.unmeasured_requests == 1


async def test_a_cancelled_run_of_pydantic_ai(scripted_server: StartServer, clients: list[AsyncOpenAI]):
    """`RunCancelled.usage` is plain and says what of it is estimated; its messages have every bound."""
    agent = Agent(model_for(scripted_server(STUCK), clients), capabilities=[Cancellable()])
    token = CancellationToken()

    async def read() -> None:
        async with agent.run_stream("Tell me a story about a frog.", cancellation_token=token) as result:
            async for text in result.stream_text(debounce_by=None):
                if text == "".join(WORDS):
                    token.cancel()

    with pytest.raises(RunCancelled) as caught:
        await read()
    usage: Any = caught.value.usage
    assert type(usage) is RunUsage
    assert (usage.requests, usage.estimated_requests, usage.unmeasured_requests) == (1, 1, 0)
    assert usage.output_tokens == usage.estimated_output_tokens == len(WORDS)
    again = StreamUsage.of(caught.value.all_messages())
    assert (again.output.value, again.input_tokens) == (len(WORDS), usage.input_tokens)
    assert again.provenance == "estimated"


async def test_a_result_keeps_what_was_estimated_before(scripted_server: StartServer, clients: list[AsyncOpenAI]):
    """pydantic-ai's own sum in `AgentRunResult.usage` says which part of it was estimated in an earlier run."""
    agent = Agent(model_for(scripted_server(STUCK, WHOLE), clients), capabilities=[Cancellable()])
    async with run_stream(agent, "Tell me a story about a frog.") as cut:
        await cut_after(cut, len(WORDS))
    total = (await agent.run("And another", usage=RunUsage() + cut.usage)).usage
    assert (total.requests, total.estimated_requests) == (2, 1)
    assert (total.output_tokens, total.estimated_output_tokens) == (40 + len(WORDS), len(WORDS))
    assert total.input_tokens - total.estimated_input_tokens == 30
    assert total.unmeasured_requests == 0


@pytest.mark.usefixtures("nothing_is_loading")
async def test_nothing_is_fetched_to_count(
    scripted_server: StartServer, clients: list[AsyncOpenAI], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """With no tokenizer and an empty cache, a cut run is counted and priced, and nobody but its provider is asked."""
    asked: list[str] = []
    resolve = socket.getaddrinfo

    def only_here(host: Any, *arguments: Any, **options: Any) -> Any:
        if host not in ("127.0.0.1", "localhost"):
            asked.append(host)
            raise OSError("a test tried to reach the network")
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    monkeypatch.setitem(sys.modules, "splintr", None)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(_tokens, "_loaded", {})
    monkeypatch.setattr(_tokens, "_loading", {})
    agent = Agent(model_for(scripted_server(STUCK), clients))
    async with run_stream(agent, "Tell me a story about a frog.") as result:
        await cut_after(result, len(WORDS))
    for thread in _tokens._loading.values():
        thread.join(20)
    assert _tokens._loaded == {"o200k_base": None}
    assert result.usage.input.method == "words"
    assert result.usage.cost_range.value is not None
    assert not asked
