"""Who answers, what was asked and what was reported is read from the open stream, whatever stands around it."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import openai
import pytest
import pytest_asyncio
from openai import AsyncAzureOpenAI, AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.capabilities import ModelFallback
from pydantic_ai.messages import PartStartEvent, TextPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.providers.azure import AzureProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage

from cancelstream import (
    Cancellable,
    CancellableModel,
    CancellableStreamedResponse,
    open_stream,
    run_stream,
    run_stream_events,
)
from cancelstream._model import _asked_of
from cancelstream._usage import Meter
from cancelstream.testing import Answer, Event, HttpError, ScriptedServer, Silence, Text, Usage
from cancelstream.testing._plugin import StartServer

PROMPT = "Tell me about rivers, please."
WORDS = ("The", " river", " runs", " on")
STUCK = Answer(Text(*WORDS, Silence()), usage=Usage(10, 5))
WHOLE = Answer(Text(*WORDS), usage=Usage(10, 5))
DATED = "gpt-4o-2024-08-06"
LONG = "Tell me all about the rivers of the world, and about the people who live by them. " * 20


@pytest_asyncio.fixture
async def make_client() -> AsyncIterator[Callable[..., Any]]:
    """Makes clients, which are closed after the test."""
    clients: list[Any] = []

    def make(server: ScriptedServer, kind: Any = AsyncOpenAI) -> Any:
        if kind is AsyncAzureOpenAI:
            url = server.base_url.removesuffix("/v1")
            client = kind(azure_endpoint=url, api_key="none", api_version="2025-01-01", max_retries=0)
        else:
            client = kind(base_url=server.base_url, api_key="none", max_retries=0)
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


def chat(client: Any, name: str = "gpt-4o") -> OpenAIChatModel:
    return OpenAIChatModel(name, provider=OpenAIProvider(openai_client=client))


async def read(run: Any, *, cut: bool) -> Any:
    """Read a run or a response, cancel it after the last word if it is to be cut, and give it back."""
    async with run as result:
        text = ""
        kwargs = {"debounce_by": None} if hasattr(result, "stream_output") else {}
        async for piece in result.stream_text(delta=True, **kwargs):
            text += piece
            if cut and text == "".join(WORDS):
                result.cancel()
    return result


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("door", [run_stream, run_stream_events])
async def test_a_fallback_counts_as_the_model_that_served(
    scripted_server: StartServer, make_client: Any, cut: bool, door: Any
):
    """Counted and priced like that model alone, though the fallback's own name joins all of its models'."""
    answer = STUCK if cut else WHOLE
    client = make_client(scripted_server(answer, repeat=True))
    broken = make_client(scripted_server(HttpError(503), repeat=True))
    alone = (await read(door(Agent(chat(client)), PROMPT), cut=cut)).usage
    fallback = FallbackModel(chat(broken, "claude-sonnet-4-5"), WrapperModel(chat(client)))
    usage = (await read(door(Agent(fallback), PROMPT), cut=cut)).usage
    assert (usage.input, usage.output, usage.provenance) == (alone.input, alone.output, alone.provenance)
    assert usage.cost_range == alone.cost_range
    assert usage.cost_range.value is not None


def test_whom_a_request_goes_to():
    """Before somebody answers, a fallback has what its models have in common, and is otherwise not known."""
    client = AsyncOpenAI(base_url="http://127.0.0.1:9/v1", api_key="none")
    provider = OpenAIProvider(openai_client=client)
    other: Any = OpenAIResponsesModel("gpt-5", provider=provider)
    alike = _asked_of(FallbackModel(chat(client), WrapperModel(chat(client, "gpt-4o-mini"))))
    assert (alike.name, alike.provider, alike.url, alike.api) == (
        "gpt-4o",
        "openai",
        str(client.base_url),
        "openai-chat",
    )
    mixed = _asked_of(FallbackModel(chat(client), other))
    assert (mixed.name, mixed.provider, mixed.api) == (None, "openai", None)
    assert _asked_of(CancellableModel(other)).api == "openai-responses"
    strangers = FallbackModel(chat(client), chat(client, "m-1"))
    assert _asked_of(strangers).name is None


def meter(model: str | None = "my-deployment") -> Meter:
    one = Meter.for_openai({"model": model, "messages": [{"role": "user", "content": PROMPT}]}, api="openai-chat")
    one.sent()
    one.opened()
    return one


@pytest.mark.usefixtures("tokenizers")
def test_which_name_counts():
    """The name that the stream tells, unless nobody knows it and the one that was asked is known."""
    one = meter()
    assert one.usage.input.value is None
    one.served(model=DATED, provider="azure", provider_url="https://user:secret@host/x?key=1", api=None)
    assert one.usage.input.value is not None
    assert one.usage.cost_range.high is None  # the answer has no bound yet, and the price is known
    record = one.usage.record()
    assert (record["model"], record["provider"], record["provider_url"]) == (DATED, "azure", "https://host/x")
    known = meter("gpt-4o")
    known.served(model="m-1", provider=None, provider_url=None, api=None)
    assert known.usage.record()["model"] == "gpt-4o"
    known.served(model="gpt-4o-mini", provider=None, provider_url=None, api="openai-responses")
    assert known.usage.record()["model"] == "gpt-4o-mini"
    nobody = meter(None)
    nobody.served(model="", provider=None, provider_url=None, api=None)
    assert "model" not in nobody.usage.record()


def test_a_placeholder_is_told_by_who_serves():
    """Anthropic's opening count of the output is none, whoever was asked first."""
    for provider, model in (("anthropic", "m-1"), ("gateway", "claude-sonnet-4-5")):
        one = meter("gpt-4o")
        one.served(model=model, provider=provider, provider_url=None, api=None)
        one.feed_event(PartStartEvent(index=0, part=TextPart("Rivers begin in the mountains, where snow melts.")))
        one.observe(reported=RequestUsage(input_tokens=12, output_tokens=8))
        assert one.usage.input.value == 12
        assert one.usage.output.source == "estimated"
        assert one.usage.provenance == "mixed"


@pytest.mark.usefixtures("tokenizers")
@pytest.mark.parametrize("cut", [True, False])
async def test_a_deployment(scripted_server: StartServer, make_client: Any, cut: bool):
    """An Azure deployment has a name of its own, and only its chunks say which model it is: in each door alike."""
    opening = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "", "choices": []}
    choices = [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in WORDS]
    told = [Event({**opening, "model": DATED, "choices": [choice]}) for choice in choices]
    ending: dict[str, Any] = {**opening, "model": DATED}
    stop = [{"index": 0, "delta": {}, "finish_reason": "stop"}]
    total = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    end = [Event({**ending, "choices": stop}), Event({**ending, "usage": total}), Event("[DONE]")]
    rest: list[Any] = [Silence()] if cut else end
    answer = Answer(Event(opening), *told, *rest, usage=Usage(10, 5))
    client = make_client(scripted_server(answer, repeat=True), AsyncAzureOpenAI)
    agent = Agent(OpenAIChatModel("team-chat", provider=AzureProvider(openai_client=client)))
    messages: Any = [{"role": "user", "content": PROMPT}]
    found = [
        await read(run_stream(agent, PROMPT), cut=cut),
        await read(run_stream_events(agent, PROMPT), cut=cut),
        await read(open_stream(client.chat.completions.create, model="team-chat", messages=messages), cut=cut),
    ]
    for one in found:
        assert one.usage.input.value is not None
        assert one.usage.cost_range.value is not None
    assert len({(one.usage.input, one.usage.output, one.usage.cost_range) for one in found}) == 1


WRAPS: dict[str, Callable[[Any], tuple[Any, list[Any]]]] = {
    "CancellableModel": lambda model: (CancellableModel(model), []),
    "CancellableModel and the capability": lambda model: (CancellableModel(model), [Cancellable()]),
    "the capability twice": lambda model: (model, [Cancellable(), Cancellable()]),
    "a fallback of one": lambda model: (FallbackModel(CancellableModel(model)), []),
    "one around a fallback": lambda model: (CancellableModel(FallbackModel(model)), []),
    "one in another wrapper": lambda model: (WrapperModel(CancellableModel(model)), []),
    "one in another": lambda model: (CancellableModel(CancellableModel(model)), [Cancellable()]),
}


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.parametrize("wrap", WRAPS)
async def test_wrapped_twice(scripted_server: StartServer, make_client: Any, wrap: str, cut: bool):
    """What the provider reported is reported, and what was cut is estimated, as with one wrapper."""
    client = make_client(scripted_server(STUCK if cut else WHOLE, repeat=True))
    once = (await read(run_stream(Agent(chat(client)), PROMPT), cut=cut)).usage
    model, capabilities = WRAPS[wrap](chat(client))
    agent = Agent(model, capabilities=capabilities)
    for door in (run_stream, run_stream_events):
        usage = (await read(door(agent, PROMPT), cut=cut)).usage
        assert (usage.input, usage.output, usage.complete) == (once.input, once.output, once.complete)
        assert (usage.input_tokens, usage.output_tokens) == (once.input_tokens, once.output_tokens)
        assert (usage.requests, usage.unmeasured_requests) == (1, 0)
    if not cut:
        async with agent.run_stream(PROMPT) as own:
            await own.get_output()
        assert (own.usage.input_tokens, own.usage.output_tokens, own.usage.unmeasured_requests) == (10, 5, 0)


async def test_a_raw_response_in_a_wrapper(scripted_server: StartServer, make_client: Any):
    """`CancellableStreamedResponse(response)` around one that reads openai's own stream has its reported counts."""
    client = make_client(scripted_server(WHOLE))
    messages: Any = [{"role": "user", "content": PROMPT}]
    stream = await client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
    async with (
        CancellableStreamedResponse.from_openai(stream) as inner,
        CancellableStreamedResponse(inner) as outer,
    ):
        assert [piece async for piece in outer.stream_text(delta=True)] == list(WORDS)
    assert outer.usage.provenance == "reported"
    assert (outer.usage.output_tokens, outer.get().usage.output_tokens, inner.usage.output_tokens) == (5, 5, 5)


@pytest.mark.usefixtures("tokenizers")
async def test_open_stream_counts_what_was_sent(scripted_server: StartServer, make_client: Any):
    """With a `functools.partial`, or with a function that adds to the request, as with the keywords themselves."""
    client = make_client(scripted_server(STUCK, repeat=True))
    create = client.chat.completions.create
    both = system, user = [{"role": "system", "content": LONG}, {"role": "user", "content": "Go."}]

    async def with_system(**kwargs: Any) -> Any:
        return await create(**{**kwargs, "model": "gpt-4o", "messages": [system, *kwargs["messages"]]})

    ways: list[Callable[[], Any]] = [
        lambda: open_stream(create, model="gpt-4o", messages=both),
        lambda: open_stream(functools.partial(create, model="gpt-4o", messages=both)),
        lambda: open_stream(
            functools.partial(functools.partial(create, model="x"), model="gpt-4o"), messages=[system, user]
        ),
        lambda: open_stream(with_system, messages=[user]),
    ]
    found = [(await read(way(), cut=True)).usage for way in ways]
    assert len({(usage.input, usage.cost_range.value) for usage in found}) == 1
    assert found[0].input.value is not None
    assert found[0].input.low > 300


@pytest.mark.usefixtures("tokenizers")
async def test_open_stream_before_anything_was_sent(scripted_server: StartServer, make_client: Any):
    """Cut while it waits: the keywords of the client's own method are what is sent; a function may send anything."""
    server = scripted_server(Answer(before_headers=Silence()), repeat=True)
    create = make_client(server).chat.completions.create
    messages: Any = [{"role": "user", "content": LONG}]

    async def anything(**kwargs: Any) -> Any:
        return await create(**kwargs)

    for number, (function, known) in enumerate(((functools.partial(create, model="gpt-4o"), True), (anything, False))):
        kwargs = {} if known else {"model": "gpt-4o"}
        async with open_stream(function, messages=messages, **kwargs) as response:
            pulling = asyncio.ensure_future(anext(response.stream_text(), None))
            await server.until_request(number, 20)
            await response.cancel()
            await pulling
        asked = response.usage.input
        assert asked.low == 0
        assert (asked.value is not None) is known


def test_open_stream_knows_a_blocking_client_in_a_partial():
    """It is refused as it is without the partial."""
    with openai.OpenAI(api_key="none") as client, pytest.raises(TypeError, match="AsyncOpenAI"):
        open_stream(functools.partial(client.chat.completions.create, model="gpt-4o"))


@pytest.mark.parametrize("cut", [True, False])
async def test_a_running_total_with_every_chunk(scripted_server: StartServer, make_client: Any, cut: bool):
    """The last total counts, in each door; pydantic-ai alone adds them up."""
    pieces = Text(*WORDS, Silence()) if cut else Text(*WORDS)
    client = make_client(scripted_server(Answer(pieces, usage=Usage(1000, 4, when="every")), repeat=True))
    agent = Agent(chat(client))
    messages: Any = [{"role": "user", "content": PROMPT}]
    found = [
        await read(run_stream(agent, PROMPT), cut=cut),
        await read(run_stream_events(agent, PROMPT), cut=cut),
        await read(run_stream(Agent(FallbackModel(chat(client))), PROMPT), cut=cut),
        await read(open_stream(client.chat.completions.create, model="gpt-4o", messages=messages), cut=cut),
    ]
    for one in found:
        assert (one.usage.input.value, one.usage.input_tokens) == (1000, 1000)
        assert (one.usage.output.value, one.usage.output.source) == (4, "reported")
    async with Agent(chat(client), capabilities=[Cancellable()]).run_stream(PROMPT) as own:
        async for text in own.stream_text(debounce_by=None):
            if text == "".join(WORDS):
                break
    assert own.usage.input_tokens == 1000


async def test_a_running_total_whose_prompt_shrinks():
    """Google's OpenAI endpoint begins with too large a prompt: the last total counts all the same."""
    totals = [("Hello", 4, 0), (" there", 4, 0), ("!", 3, 11)]
    chunks = [
        {
            "id": "1", "object": "chat.completion.chunk", "created": 1, "model": "gemini-2.0-flash",
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop" if counted else None}],
            "usage": {"prompt_tokens": asked, "completion_tokens": counted, "total_tokens": asked + counted},
        }
        for text, asked, counted in totals
    ]  # fmt: skip
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    answer = httpx2.Response(200, headers={"content-type": "text/event-stream"}, text=body)
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: answer)) as http:
        client = openai.AsyncOpenAI(api_key="none", http_client=http)
        result = await read(run_stream(Agent(chat(client)), PROMPT), cut=False)
    assert (result.usage.input_tokens, result.usage.output_tokens) == (3, 11)
    assert (result.usage.input.source, result.usage.output.source) == ("reported", "reported")


@pytest.mark.parametrize("how", ["a fallback", "a capability"])
async def test_the_event_that_a_fallback_has_read_comes_again(scripted_server: StartServer, make_client: Any, how: str):
    """A fallback waits for the first event before it hands a stream over: no event is lost, or counted twice."""
    model = CancellableModel(chat(make_client(scripted_server(Answer(Text(*WORDS), usage=None), repeat=True))))
    fallback = chat(make_client(scripted_server(WHOLE)))
    agent = (
        Agent(FallbackModel(model, fallback))
        if how == "a fallback"
        else Agent(model, capabilities=[ModelFallback(fallback)])
    )
    async with run_stream_events(agent, PROMPT) as run:
        kinds = [event.event_kind async for event in run]
    assert (kinds.count("part_start"), kinds.count("part_delta")) == (1, len(WORDS) - 1)
    assert run.usage.output.low == len(WORDS)


@pytest.mark.parametrize("reported", [True, False])
async def test_messages_of_a_raw_response(scripted_server: StartServer, make_client: Any, reported: bool):
    """Each has the usage of its moment, estimates and all; the last has that of the response."""
    client = make_client(scripted_server(Answer(Text(*WORDS), usage=Usage(10, 5) if reported else None)))
    messages: Any = [{"role": "user", "content": PROMPT}]
    async with open_stream(client.chat.completions.create, model="gpt-4o", messages=messages) as response:
        kept: list[Any] = [response.get().usage async for _ in response.stream_text()]
    assert [usage.output.low for usage in kept] == [1, 2, 3, 4]
    assert len({id(usage) for usage in kept}) == len(WORDS)
    assert response.get().usage is response.usage
    assert response.usage.output_tokens == 5 if reported else response.usage.output_tokens >= 4
    assert response.usage.unmeasured_requests == 0
