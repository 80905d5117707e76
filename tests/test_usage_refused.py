"""Only what happened is counted: a request that failed before its answer, through every door and a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from pydantic_ai import Agent, ModelRequest, ModelResponse, RunUsage, UsageLimits
from pydantic_ai.capabilities import ModelFallback
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import Cancellable, CancellableModel, StreamUsage, open_stream, run_stream, run_stream_events
from cancelstream.testing import Answer, Cut, HttpError, Silence, Text, Usage
from cancelstream.testing._plugin import StartServer

PROMPT = "Tell me about rivers and the sea."
WHOLE = Answer(Text("one", " two"), usage=Usage(10, 5))
NOBODY = "http://127.0.0.1:9/v1"
AT_ONCE = {"x-should-retry": "false"}


@pytest_asyncio.fixture
async def make_client() -> AsyncIterator[Callable[..., AsyncOpenAI]]:
    """Makes clients, which are closed after the test."""
    clients: list[AsyncOpenAI] = []

    def make(url: str, **kwargs: Any) -> AsyncOpenAI:
        clients.append(AsyncOpenAI(base_url=url, api_key="none", **{"max_retries": 0, **kwargs}))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


MakeClient = Callable[..., AsyncOpenAI]


def model_of(client: AsyncOpenAI, name: str = "gpt-4o") -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))


@contextmanager
def failing(kind: str, server: StartServer) -> Iterator[tuple[str, dict[str, Any]]]:
    """The URL, and the client's options, where a request fails that way."""
    if kind == "nobody listens":
        yield NOBODY, {}
    elif kind == "no TLS":
        yield server(WHOLE).base_url.replace("http://", "https://"), {}
    elif kind == "timeout":
        yield server(Answer(before_headers=Silence()), repeat=True).base_url, {"timeout": 0.2}
    elif kind == "lost":
        yield server(Answer(before_headers=Cut("eof")), repeat=True).base_url, {}
    else:
        yield server(HttpError(int(kind), "no"), repeat=True).base_url, {}


REFUSALS = ("401", "429", "500", "503", "nobody listens", "no TLS")
LOSSES = ("timeout", "lost")


async def read(run: AbstractAsyncContextManager[Any]) -> None:
    async with run as result:
        async for _ in result.stream_text():
            pass


async def fail(reading: Awaitable[Any]) -> None:
    with pytest.raises(Exception):  # noqa: B017 - each door and each failure has its own, as it is without us
        await reading


async def iterate(agent: Agent[None, str], used: RunUsage) -> None:
    async with agent.iter(PROMPT, usage=used) as run:
        async for node in run:
            if Agent.is_model_request_node(node):
                async with node.stream(run.ctx) as stream:
                    async for _ in stream:
                        pass


async def run_door(door: str, model: Any, used: RunUsage, *capabilities: Any) -> StreamUsage | None:
    """Have a run fail; the usage that the door has of its own, where it has one."""
    agent = Agent(model, capabilities=capabilities)
    if door in ("run_stream", "run_stream_events"):
        run = (run_stream if door == "run_stream" else run_stream_events)(agent, PROMPT, usage=used)
        await fail(read(run))
        for message in run.all_messages():
            if isinstance(message, ModelResponse):
                assert not message.usage.has_values()
                assert "cancelstream" not in (message.metadata or {})
        return run.usage
    own = Agent(model, capabilities=[*capabilities, Cancellable()])
    if door == "capability":
        await fail(read(own.run_stream(PROMPT, usage=used)))
    elif door == "run":
        await fail(own.run(PROMPT, usage=used, event_stream_handler=ignore))
    else:
        await fail(iterate(own, used))
    return None


async def ignore(_context: Any, events: Any) -> None:
    async for _ in events:
        pass


DOORS = ("run_stream", "run_stream_events", "capability", "run", "iter")


@pytest.mark.parametrize(
    ("door", "kind"),
    [
        *(("run_stream", kind) for kind in (*REFUSALS, *LOSSES)),
        *((door, kind) for door in DOORS[1:] for kind in ("429", "nobody listens", "lost")),
    ],
)
async def test_a_run(scripted_server: StartServer, make_client: MakeClient, spans: Any, kind: str, door: str):
    """Nothing of it is in the shared sum, in the span, in the messages or in the cost; as in pydantic-ai alone."""
    used = RunUsage()
    with failing(kind, scripted_server) as (url, options):
        own = await run_door(door, model_of(make_client(url, **options)), used, spans.instrumentation)
    assert used == RunUsage()
    attributes = [name for span in spans.named("") for name in span.attributes or {}]
    assert [name for name in attributes if "usage" in name or "cost" in name] == (
        [] if kind in REFUSALS else ["cancelstream.usage.provenance"]
    )
    if own is not None:
        certain = 0 if kind in REFUSALS else None
        assert (own.input.low, own.output.low, own.input_tokens, own.output_tokens, own.requests) == (0,) * 5
        assert (own.input.value, own.output.value, own.input.high, own.output.high) == (certain,) * 4
        assert (own.cost_range.value, own.cost_range.high) == (certain,) * 2
        assert not own.complete


@pytest.mark.parametrize("door", ["run_stream", "run_stream_events", "capability"])
async def test_a_storm_of_refusals_leaves_the_budget_alone(
    scripted_server: StartServer, make_client: MakeClient, door: str
):
    """Eight refusals and an answer under one limit: the answer comes, and the limit has room for nothing else."""
    server = scripted_server(*[HttpError(429, "slow down", headers=AT_ONCE)] * 8, WHOLE)
    model = model_of(make_client(server.base_url))
    used, limits = RunUsage(), UsageLimits(input_tokens_limit=10, request_limit=None)
    for _ in range(8):
        await run_door(door, model, used)
    async with run_stream(Agent(model), PROMPT, usage=used, usage_limits=limits) as result:
        assert await result.get_output() == "one two"
    assert (used.input_tokens, used.output_tokens, used.requests, used.unmeasured_requests) == (10, 5, 1, 0)


@pytest.mark.parametrize("broken", ["503", "nobody listens", "lost"])
@pytest.mark.parametrize("how", ["model", "capability"])
@pytest.mark.parametrize("door", [run_stream, run_stream_events])
async def test_a_fallback(scripted_server: StartServer, make_client: MakeClient, broken: str, how: str, door: Any):
    """The model that answered is counted, and the one that was refused is not; a whole answer is whole."""
    good = model_of(make_client(scripted_server(WHOLE).base_url))
    with failing(broken, scripted_server) as (url, options):
        bad = model_of(make_client(url, **options))
        agent = Agent(FallbackModel(bad, good)) if how == "model" else Agent(bad, capabilities=[ModelFallback(good)])
        async with door(agent, PROMPT) as result:
            async for _ in result.stream_text():
                pass
    usage = result.usage
    assert (usage.input_tokens, usage.output_tokens, usage.requests) == (10, 5, 1)
    if broken == "lost" and how == "capability":  # that request is known here, and what it cost is not
        assert (usage.input.low, usage.input.value, usage.provenance) == (10, None, "mixed")
    else:
        assert (usage.input.value, usage.output.value, usage.provenance, usage.complete) == (10, 5, "reported", True)
        assert usage.cost_range.value is not None
        assert usage.cost_range.value > 0


async def test_a_retry_inside_the_client(scripted_server: StartServer, make_client: MakeClient):
    """The client tries a refused request again: the one that was accepted is counted, once."""
    stuck = Answer(Text("one", " two", Silence()))
    server = scripted_server(HttpError(429, headers={"retry-after-ms": "1"}), HttpError(503), stuck)
    agent = Agent(model_of(make_client(server.base_url, max_retries=2)))
    async with run_stream(agent, PROMPT) as result:
        async for text in result.stream_text(debounce_by=None):
            if text == "one two":
                result.cancel()
    assert len(server.records) == 3
    assert result.usage.requests == result.usage.estimated_requests == 1
    assert 0 < result.usage.input.low <= (result.usage.input.value or 0) < 30


@pytest.mark.parametrize("kind", [*REFUSALS, *LOSSES])
async def test_direct_calls(scripted_server: StartServer, make_client: MakeClient, kind: str):
    """`CancellableModel` and `open_stream`: the same."""
    with failing(kind, scripted_server) as (url, options):
        client = make_client(url, **options)
        model = CancellableModel(model_of(client))
        async with model.request_stream([ModelRequest.user_text_prompt(PROMPT)], None, ModelRequestParameters()) as one:
            assert one.usage.input.high == 0
            await fail(anext(aiter(one)))
        messages: Any = [{"role": "user", "content": PROMPT}]
        async with open_stream(client.chat.completions.create, model="gpt-4o", messages=messages) as other:
            await fail(anext(other.stream_text()))
    certain = 0 if kind in REFUSALS else None
    for usage in (one.usage, other.usage):
        assert (usage.input.low, usage.input.value, usage.input.high) == (0, certain, certain)
        assert (usage.output.value, usage.cost_range.value, usage.cost_range.high) == (certain,) * 3
        assert (usage.input_tokens, usage.output_tokens) == (0, 0)
    assert one.get().usage.input_tokens == other.get().usage.input_tokens == 0


async def test_a_cut_before_the_status(scripted_server: StartServer, make_client: MakeClient):
    """The request went out and may be billed or refused: a value, and zero for a lower bound."""
    server = scripted_server(Answer(before_headers=Silence()), repeat=True)
    run = run_stream(Agent(model_of(make_client(server.base_url))), PROMPT)

    async def enter() -> None:
        async with run:
            pass

    entering = asyncio.create_task(enter())
    await server.until_request(0, 20)
    await run.cancel()
    await entering
    assert run.usage.input.low == 0 < (run.usage.input.value or 0)
    assert run.usage.cost_range.low == 0 < (run.usage.cost_range.value or 0)


async def test_a_cut_while_nobody_answers_the_connection(make_client: MakeClient):
    """A connection that was refused under a cancel counts nothing, whichever came first."""
    run = run_stream(Agent(model_of(make_client(NOBODY))), PROMPT)
    run.cancel()
    async with run:
        pass
    assert run.usage.input.high == 0
