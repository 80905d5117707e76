"""Without a stop a run is pydantic-ai's own: each reading, message, count and error, side by side on one script."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic import TypeAdapter
from pydantic_ai import AgentRunResultEvent, ModelMessagesTypeAdapter, capture_run_messages
from pydantic_ai.messages import ModelResponse
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import Cancellable, run_stream, run_stream_events, sync
from cancelstream.testing import Answer, Reasoning, ScriptedServer, Text, ToolCall, Usage

from .scripts import SCRIPTS, Script


def plain(value: Any) -> Any:
    """Whatever a run gives, as JSON, without times and made-up ids."""
    text = TypeAdapter(Any).dump_json(value, fallback=repr).decode()
    text = re.sub(r'"timestamp": ?"[^"]*"', '"timestamp":"..."', text)
    return re.sub(r'"pyd_ai_[0-9a-f]+[^"]*"', '"an id"', text)


async def outcome(reading: Callable[[], Awaitable[Any]]) -> Any:
    """What came of it: the items, or those and the error."""
    try:
        return "ended", plain(await reading())
    except Exception as error:
        return type(error).__name__, str(error), repr(error.__cause__)


READINGS: dict[str, Callable[[Any], Any]] = {
    "pieces": lambda run: run.stream_text(delta=True, debounce_by=None),
    "texts": lambda run: run.stream_text(debounce_by=None),
    "grouped texts": lambda run: run.stream_text(debounce_by=5),
    "outputs": lambda run: run.stream_output(debounce_by=None),
    "snapshots": lambda run: run.stream_response(debounce_by=None),
    "the output": lambda run: run.get_output(),
}


async def read(opened: Any, reading: str, about: list[Any]) -> list[Any]:
    async with opened as run:
        about.append(run)
        source = READINGS[reading](run)
        # A snapshot is taken down as it comes: pydantic-ai may write a cost into it later.
        items = [plain(item) async for item in source] if hasattr(source, "__aiter__") else [await source]
        about.extend([run.is_complete, run.run_id, run.conversation_id, run.metadata, plain(run.response)])
        return items


def said_of(run: Any) -> list[Any]:
    """What a run says once it is over: its counts and messages."""
    usage = run.usage
    counts = [getattr(usage, name) for name in ("requests", "tool_calls", "input_tokens", "output_tokens", "details")]
    messages = [run.all_messages(), run.new_messages()]
    as_json = [run.all_messages_json(), run.new_messages_json()] if hasattr(run, "all_messages_json") else []
    assert [ModelMessagesTypeAdapter.validate_json(stored) for stored in as_json] in ([], messages)
    return [counts, plain(messages)]


IN_EVERY_WAY = ("text", "tools", "output tool", "an output that is refused once")
"""The scripts that are read in each way; the others in the two that bring the most."""

ANSWERS = [
    pytest.param(name, reading, id=f"{name}-{reading}")
    for name in SCRIPTS
    for reading in (READINGS if name in IN_EVERY_WAY else ("snapshots", "the output"))
]


@pytest.mark.parametrize(("name", "reading"), ANSWERS)
async def test_an_answer(name: str, reading: str):
    """`run_stream` and the capability: the same items, errors, messages and counts as pydantic-ai's `run_stream`."""
    script = SCRIPTS[name]
    doors = [
        script.make().run_stream("go", **script.kwargs),
        script.make(Cancellable()).run_stream("go", **script.kwargs),
        run_stream(script.make(), "go", **script.kwargs),
    ]
    seen: list[Any] = []
    for opened in doors:
        about: list[Any] = []
        with capture_run_messages() as captured:
            result = await outcome(lambda opened=opened, about=about: read(opened, reading, about))
        run = about[0] if about else None
        whole = result[0] == "ended" and run is not None
        # An error leaves a cut answer in them, of which more is known here.
        kept = list(captured) if whole else [(message.state, message.parts) for message in captured]
        seen.append((result, about[1:], said_of(run) if whole else None, plain(kept)))
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


async def read_events(opened: Any, about: list[Any]) -> list[Any]:
    async with opened as run:
        about.append(run)
        events = [event async for event in run]
        return [event.result.output if isinstance(event, AgentRunResultEvent) else event for event in events]


@pytest.mark.parametrize("name", SCRIPTS)
async def test_events(name: str):
    """`run_stream_events` and the capability: the same events, result, errors, messages and counts."""
    script = SCRIPTS[name]
    doors = [
        script.make().run_stream_events("go", **script.kwargs),
        script.make(Cancellable()).run_stream_events("go", **script.kwargs),
        run_stream_events(script.make(), "go", **script.kwargs),
    ]
    seen: list[Any] = []
    for opened in doors:
        about: list[Any] = []
        result = await outcome(lambda opened=opened, about=about: read_events(opened, about))
        run = about[0]
        settled = [plain([run.result.output, run.result.all_messages()])] if run.result else []
        seen.append((result, settled, said_of(run) if result[0] == "ended" else None))
    assert seen[1] == seen[0]
    assert seen[2] == seen[0]


def read_blocking(opened: Any, reading: str, about: list[Any]) -> list[Any]:
    with opened as run:
        about.append(run)
        source = READINGS[reading](run)
        items = list(source) if hasattr(source, "__next__") else [source]
        about.extend([run.is_complete, run.run_id, run.conversation_id, run.metadata, plain(run.response)])
        return items


@pytest.mark.usefixtures("own_loop")
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("name", ["tools", "output tool", "a tool that fails"])
def test_a_blocking_answer(name: str, reading: str):
    """`sync.run_stream`: the same as pydantic-ai's `run_stream_sync`."""
    script = SCRIPTS[name]
    seen: list[Any] = []
    for door in (lambda agent: agent.run_stream_sync, lambda agent: lambda *a, **k: sync.run_stream(agent, *a, **k)):
        about: list[Any] = []
        try:
            result: Any = plain(read_blocking(door(script.make())("go", **script.kwargs), reading, about))
            result = result, said_of(about[0])
        except Exception as error:
            result = type(error).__name__, str(error), repr(error.__cause__)
        seen.append((result, about[1:]))
    assert seen[1] == seen[0]


TURNS = [
    Answer(Reasoning("hm"), Text("I look."), ToolCall("look", '{"x": "a"}', id="call-1"), usage=Usage(20, 9)),
    Answer(Text.words("A river begins as water."), usage=Usage(40, 6)),
]


@pytest.mark.parametrize("reading", ["pieces", "snapshots", "the output", "events"])
async def test_a_provider_over_http(reading: str):
    """So it is with a real client: what is read, and the messages with the usage that the provider reported."""
    seen: list[Any] = []
    for ours in (False, True):
        with ScriptedServer(*TURNS) as server:
            async with AsyncOpenAI(base_url=server.base_url, api_key="not-a-key", max_retries=0) as client:
                model = OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client))
                agent, about = Script(lambda model=model: model, tools=True).make(), list[Any]()
                if reading == "events":
                    opened: Any = run_stream_events(agent, "go") if ours else agent.run_stream_events("go")
                    result = await outcome(lambda opened=opened, about=about: read_events(opened, about))
                else:
                    opened = run_stream(agent, "go") if ours else agent.run_stream("go")
                    result = await outcome(lambda opened=opened, about=about: read(opened, reading, about))
                reported = [m.usage.output_tokens for m in about[0].all_messages() if isinstance(m, ModelResponse)]
                assert reported in ([9], [9, 6])
                seen.append(scrub(server, [result, plain(about[0].all_messages())]))
    assert seen[1] == seen[0]


def scrub(server: ScriptedServer, value: Any) -> str:
    """Without what is another's in each server: its address, and the ids that it and pydantic-ai make up."""
    text = str(value).replace(server.base_url, "url")
    return re.sub(r'"(run_id|conversation_id|provider_response_id)":"[^"]*"', r'"\1":"..."', text)
