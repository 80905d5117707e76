"""Without a stop, usage limits and usage are those of pydantic-ai alone; what is more is known about it.

Each case is run in every door, and in pydantic-ai without this package: the pieces that came, the error and the sum.
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any

import pytest
from pydantic_ai import Agent, ModelMessagesTypeAdapter, RunUsage, UsageLimits, capture_run_messages
from pydantic_ai._warnings import UsageLimitUnavailableWarning
from pydantic_ai.exceptions import UsageLimitExceeded
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.test import TestModel

from cancelstream import Cancellable, CancellableModel, StreamUsage, run_stream, run_stream_events
from cancelstream.testing import Answer, Cut, Text, ToolCall, Usage
from cancelstream.testing._plugin import StartServer

from .conftest import MakeModel

PROMPT = "Tell me about the rivers."
WORDS = Text(*["word "] * 40)
PLAIN = "pydantic-ai"
DOORS = ("run_stream", "run_stream_events", "capability", "capability and events", "handler", "model")

CASES: dict[str, tuple[Answer, UsageLimits]] = {
    "fewer reported than pieces came": (Answer(WORDS, usage=Usage(10, 5)), UsageLimits(output_tokens_limit=20)),
    "fewer reported, in total": (Answer(WORDS, usage=Usage(5, 5)), UsageLimits(total_tokens_limit=20)),
    "a small request": (Answer(Text("a", "b"), usage=Usage(3, 2)), UsageLimits(input_tokens_limit=5)),
    "nothing reported": (Answer(WORDS, usage=None), UsageLimits(output_tokens_limit=20)),
    "nothing reported, of the request": (Answer(WORDS, usage=None), UsageLimits(input_tokens_limit=2)),
    "over the limit in the end": (Answer(WORDS, usage=Usage(10, 40)), UsageLimits(output_tokens_limit=20)),
    "one request over its limit": (Answer(WORDS, usage=Usage(10, 4)), UsageLimits(per_request_input_tokens_limit=5)),
    "broken off": (Answer(Text("a", "b", Cut("reset")), usage=Usage(3, 2)), UsageLimits(output_tokens_limit=1)),
}


@pytest.fixture
def http() -> str:
    """One HTTP library is enough here."""
    return "httpx2"


EVERYWHERE = ("fewer reported than pieces came", "nothing reported", "over the limit in the end", "broken off")
"""The cases that are tried in every door; the others in two."""


async def take(run: Any, pieces: list[str], **kwargs: Any) -> None:
    async with run as result:
        async for piece in result.stream_text(delta=True, **kwargs):
            pieces.append(piece)  # noqa: PERF401 - those that came before an error count


async def take_events(run: Any, pieces: list[str]) -> None:
    async def keep(_context: Any, events: AsyncIterable[Any]) -> None:
        async for event in events:
            part = getattr(event, "part", None) if event.event_kind == "part_start" else getattr(event, "delta", None)
            pieces.append(getattr(part, "content", None) or getattr(part, "content_delta", ""))

    await run(event_stream_handler=keep)


async def outcome(door: str, model: Any, limits: UsageLimits) -> tuple[str, str | None, RunUsage]:
    """The text that came, the error's type, and what is in the user's own sum."""
    pieces: list[str] = []
    used, error = RunUsage(), None
    kwargs: Any = {"usage": used, "usage_limits": limits}
    at_once: Any = {"debounce_by": None}
    capable = Agent(model, capabilities=[Cancellable()])
    agent = Agent(model)
    try:
        if door == PLAIN:
            await take(agent.run_stream(PROMPT, **kwargs), pieces, **at_once)
        elif door == "run_stream":
            await take(run_stream(agent, PROMPT, **kwargs), pieces, **at_once)
        elif door == "run_stream_events":
            await take(run_stream_events(agent, PROMPT, **kwargs), pieces)
        elif door == "capability":
            await take(capable.run_stream(PROMPT, **kwargs), pieces, **at_once)
        elif door == "model":
            await take(Agent(CancellableModel(model)).run_stream(PROMPT, **kwargs), pieces, **at_once)
        elif door == "handler":
            await take_events(lambda **more: capable.run(PROMPT, **kwargs, **more), pieces)
        else:
            async with capable.run_stream_events(PROMPT, **kwargs) as events:
                await take_events(lambda event_stream_handler: event_stream_handler(None, events), pieces)
    except Exception as raised:
        error = type(raised).__name__
    return "".join(pieces), error, used


EXTRAS = ("estimated_requests", "estimated_input_tokens", "estimated_output_tokens")


def without_extras(usage: Any) -> dict[str, Any]:
    return {name: value for name, value in usage.__dict__.items() if name not in EXTRAS and value}


@pytest.mark.filterwarnings("ignore::pydantic_ai._warnings.UsageLimitUnavailableWarning")
@pytest.mark.parametrize(
    ("case", "door"), [(case, door) for case in CASES for door in (DOORS if case in EVERYWHERE else DOORS[1:3])]
)
async def test_limits_are_pydantic_ai_s(scripted_server: StartServer, make_model: MakeModel, case: str, door: str):
    """The same pieces, the same error and the same sum, whatever we estimate on the way."""
    answer, limits = CASES[case]
    model = make_model(scripted_server(answer, repeat=True))
    text, error, used = await outcome(PLAIN, model, limits)
    ours, raised, summed = await outcome(door, model, limits)
    assert raised == error
    assert without_extras(summed) == without_extras(used)
    if door == "run_stream_events" and error == "UsageLimitExceeded":
        assert text.startswith(ours)  # there a run is not ahead of its reader
    else:
        assert ours == text


async def test_what_nobody_reported_is_still_known(scripted_server: StartServer, make_model: MakeModel):
    """The run's own usage has the estimate; the sum that limits are held to has it beside the totals, as extras."""
    model = make_model(scripted_server(Answer(WORDS, usage=None), repeat=True))
    for door in (run_stream, run_stream_events):
        used = RunUsage(input_tokens=100, output_tokens=10, requests=1)
        async with door(Agent(model), PROMPT, usage=used) as run:
            async for _ in run.stream_text():
                assert run.usage.output.low >= 10  # read often, it does not grow by itself
        assert (used.input_tokens, used.output_tokens, used.requests, used.unmeasured_requests) == (100, 10, 2, 1)
        estimated: Any = used
        assert estimated.estimated_output_tokens >= 40
        usage = run.usage
        assert usage.output.value is not None
        assert usage.output.value == usage.output_tokens >= 50
        assert usage.input_tokens == usage.input.value == 100 + estimated.estimated_input_tokens
        assert usage.unmeasured_requests == 0
        assert usage.complete
        stored = ModelMessagesTypeAdapter.validate_json(run.all_messages_json())
        for messages in (run.all_messages(), stored):
            again = StreamUsage.of(messages)
            assert again.output.value == again.output_tokens == usage.output_tokens - 10
            assert again.complete
            assert again.provenance == "estimated"
        (response,) = [message for message in run.new_messages() if isinstance(message, ModelResponse)]
        assert (response.usage.output_tokens, response.usage.unmeasured_requests) == (0, 1)
    with pytest.raises(ValueError, match="omitted usage"):
        response.cost()  # as in pydantic-ai alone


@pytest.mark.parametrize("door", [run_stream, run_stream_events])
async def test_a_tool_s_turn(door: Any):
    """A model that reports no output for a call, as pydantic-ai's test model does: the limit does not see a guess."""
    agent = Agent(TestModel())

    @agent.tool_plain
    def look(x: str) -> str:
        return f"{x} apple"

    limits = UsageLimits(output_tokens_limit=12)
    async with agent.run_stream("hi", usage_limits=limits) as plain:
        await plain.get_output()
    async with door(agent, "hi", usage_limits=limits) as run:
        async for _ in run.stream_text():
            pass
    assert without_extras(run.usage) == without_extras(plain.usage)


async def test_a_warning_of_pydantic_ai_s(scripted_server: StartServer, make_model: MakeModel):
    """Limits that cannot be enforced are said to be so, once the answer is there."""
    model = make_model(scripted_server(Answer(WORDS, usage=None)))
    limits = UsageLimits(output_tokens_limit=20)
    with pytest.warns(UsageLimitUnavailableWarning):
        async with run_stream(Agent(model), PROMPT, usage_limits=limits) as run:
            await run.get_output()


async def test_a_running_total_is_enforced_when_it_is_certain(scripted_server: StartServer, make_model: MakeModel):
    """A server that reports with every chunk: the run ends at the piece that crosses the limit."""
    answer = Answer(WORDS, usage=Usage(10, 40, when="every"))
    model = make_model(scripted_server(answer))
    settings: Any = {"openai_continuous_usage_stats": True}
    pieces: list[str] = []
    agent = Agent(model, model_settings=settings)
    run = run_stream(agent, PROMPT, usage_limits=UsageLimits(output_tokens_limit=20))
    with pytest.raises(UsageLimitExceeded, match="output_tokens_limit of 20"):
        await take(run, pieces, debounce_by=None)
    assert len(pieces) <= 20


@pytest.mark.parametrize("capable", [False, True])
async def test_each_snapshot_has_its_own_usage(capable: bool):
    """Snapshots that are kept have the usage of their moment, as in pydantic-ai alone."""
    model = TestModel(custom_output_text="The cat sat on the mat.")

    async def kept(run: Any) -> list[Any]:
        async with run as result:
            return [snapshot.usage async for snapshot in result.stream_response(debounce_by=None)]

    plain = await kept(Agent(model).run_stream("hi"))
    own = Agent(model, capabilities=[Cancellable()]).run_stream("hi") if capable else run_stream(Agent(model), "hi")
    ours = await kept(own)
    assert [usage.output_tokens for usage in ours] == [usage.output_tokens for usage in plain]
    assert len({id(usage) for usage in ours}) > 4
    assert all(ours[number] == plain[number] for number in range(len(plain)))
    assert ours[0].output.source == "unknown"
    assert ours[-1].output.source == "reported"


async def test_a_snapshot_of_a_cut_answer(scripted_server: StartServer, make_model: MakeModel):
    """What was cut is estimated in every message of it, also in one that is made before the usage is settled."""
    call = Answer(ToolCall("look", "{}"), usage=Usage(30, 9))
    model = make_model(scripted_server(call, Answer(WORDS, usage=Usage(10, 40))))
    agent = Agent(model, capabilities=[Cancellable()])

    @agent.tool_plain
    def look() -> str:
        return "a frog"

    used = RunUsage()
    with capture_run_messages() as messages:
        async with agent.run_stream("Look", usage=used) as result:
            async for _ in result.stream_text(debounce_by=None):
                break
    last = messages[-1]
    assert isinstance(last, ModelResponse)
    assert last.usage.output_tokens >= 1
    assert used.output_tokens == 9 + last.usage.output_tokens
    assert used.input_tokens > 30


async def test_the_span_of_an_answer_that_nobody_reported(
    scripted_server: StartServer, make_model: MakeModel, spans: Any
):
    """It has no tokens and no price, as in pydantic-ai alone; one attribute says that more is known."""
    model = make_model(scripted_server(Answer(WORDS, usage=None), repeat=True))
    found: list[set[str]] = []
    for extra in ([], [Cancellable()]):
        async with Agent(model, capabilities=[spans.instrumentation, *extra]).run_stream(PROMPT) as run:
            await run.get_output()
        span = spans.named("chat")[-1]
        found.append({name for name in span.attributes if "usage" in name or "cost" in name})
    assert found[1] - found[0] == {"cancelstream.usage.provenance"}
    assert not [name for name in found[1] if "tokens" in name]
