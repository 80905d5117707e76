"""Errors and log lines end in places that many people read: they hold no prompt, no answer and no secret."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import (
    Cancellable,
    CancellableStreamedResponse,
    FinalTurnFilter,
    MemoryStopRegistry,
    PeekableAsyncStream,
    check_history,
    open_stream,
    run_stream,
    run_stream_events,
    salvage,
    sync,
)
from cancelstream._errors import named
from cancelstream.testing import Answer, Replay, ScriptedServer, Silence, StartServer, Text, ToolCall

SECRET = "CANARY-of-what-nobody-may-read "
LONG: Any = SECRET * 1000

WRONG: dict[str, Callable[[Any], Any]] = {
    "run_stream": lambda wrong: run_stream(wrong, "x"),
    "run_stream_events": lambda wrong: run_stream_events(wrong, "x"),
    "run_stream_events(final_turn_only=)": lambda wrong: run_stream_events(Agent("test"), final_turn_only=wrong),
    "sync.run_stream": lambda wrong: sync.run_stream(wrong, "x"),
    "sync.CancellableStream": lambda wrong: sync.CancellableStream(wrong),
    "open_stream": lambda wrong: open_stream(wrong),
    "open_stream(stream=)": lambda wrong: open_stream(AsyncOpenAI(api_key="k").responses.create, stream=wrong),
    "PeekableAsyncStream": lambda wrong: PeekableAsyncStream(wrong),
    "CancellableStreamedResponse": lambda wrong: CancellableStreamedResponse(wrong),
    "from_openai": lambda wrong: CancellableStreamedResponse.from_openai(wrong),
    "Cancellable(history=)": lambda wrong: Cancellable(history=wrong),
    "FinalTurnFilter": lambda wrong: FinalTurnFilter(wrong),
    "check_history": lambda wrong: check_history(wrong),
    "check_history([...])": lambda wrong: check_history([wrong]),
    "salvage(text=)": lambda wrong: salvage([], text=wrong),
    "salvage(tool_calls=)": lambda wrong: salvage([], tool_calls=wrong),
    "MemoryStopRegistry(ttl=)": lambda wrong: MemoryStopRegistry(ttl=wrong),
    "register(cancel)": lambda wrong: MemoryStopRegistry().register("id", wrong, owner="me"),
    "register(owner=)": lambda wrong: MemoryStopRegistry().register("id", print, owner=[wrong]),  # type: ignore[arg-type]
    "register(stop_id)": lambda wrong: MemoryStopRegistry().register([wrong], print, owner="me"),  # type: ignore[arg-type]
    "cancel(reason)": lambda wrong: run_stream(Agent("test")).cancel([wrong]),  # type: ignore[arg-type]
    "cancel(long reason)": lambda wrong: run_stream(Agent("test")).cancel(str(wrong)),
}


@pytest.mark.parametrize("call", WRONG)
@pytest.mark.parametrize("wrong", [LONG, [LONG], {"content": LONG}], ids=["str", "list", "dict"])
def test_a_wrong_argument_is_not_echoed(call: str, wrong: Any) -> None:
    """The error names what it is, in few words."""
    with pytest.raises((TypeError, ValueError)) as raised:
        WRONG[call](wrong)
    assert "CANARY" not in str(raised.value)
    assert len(str(raised.value)) < 400


def test_an_id_in_use_is_not_echoed() -> None:
    """A stop id is a secret of its owner's."""
    registry = MemoryStopRegistry()
    with registry.register(LONG, print, owner="me"), pytest.raises(ValueError, match="in use by a live") as raised:
        registry.register(LONG, print, owner="me")
    assert "CANARY" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "None"),
        (True, "True"),
        (-1, "-1"),
        (0.5, "0.5"),
        (10**50, "an int"),
        ("retracts", "'retracts'"),
        ("two words", "a str of 9 characters"),
        ("sk-1234", "a str of 7 characters"),
        ("说说河流吧", "a str of 5 characters"),
        (b"bytes", "a bytes"),
        ([LONG], "a list"),
        (ValueError(LONG), "a ValueError"),
        (ValueError, "the class ValueError"),
        (test_an_id_in_use_is_not_echoed, "the function test_an_id_in_use_is_not_echoed"),
        (type("Odd" * 50, (), {})(), "an " + "Odd" * 20),
    ],
)
def test_how_it_is_named(value: object, told: str) -> None:
    """A number and a short word are shown, of anything else its type is."""
    assert named(value) == told


@given(st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.lists(st.text())))
def test_it_is_named_in_at_most_80_characters(value: object) -> None:
    """Whatever it is."""
    assert 0 < len(named(value)) <= 80


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: MemoryStopRegistry(ttl="x"), "ttl is a time in seconds, not 'x'"),  # type: ignore[arg-type]
        (lambda: MemoryStopRegistry(ttl=0), "ttl is a time in seconds above 0, not 0"),
        (lambda: MemoryStopRegistry(ttl=float("nan")), "above 0, not nan"),
        (lambda: MemoryStopRegistry().register(5, print, owner="me"), "stop_id is the stream's id as a string, not 5"),  # type: ignore[arg-type]
        (lambda: MemoryStopRegistry().register("id", 5, owner="me"), "cancel is a function that stops"),  # type: ignore[arg-type]
        (lambda: MemoryStopRegistry().register("id", print, owner=5), "owner is the authenticated user's id"),  # type: ignore[arg-type]
    ],
)
def test_what_is_wrong_is_said(call: Callable[[], object], told: str) -> None:
    """By the argument's name, and what belongs there."""
    with pytest.raises((TypeError, ValueError), match=told):
        call()


async def test_a_worker_that_blocks_is_told_the_recipe() -> None:
    """A registry on Redis that was not entered says how a task of Celery enters it."""
    redis = pytest.importorskip("cancelstream.redis", reason="needs cancelstream[redis]")
    registry = redis.RedisStopRegistry.from_url("redis://127.0.0.1:1")
    with pytest.raises(RuntimeError, match=r"such as Celery's.*asyncio\.run"):
        registry.register(None, print, owner="me")


# --- the log ------------------------------------------------------------------------------------------------------


def agent_on(model: Any) -> Agent[None, str]:
    agent = Agent(model, system_prompt=SECRET, instructions=SECRET)

    @agent.tool_plain(description=SECRET)
    def look(where: str) -> str:
        return SECRET

    return agent


def google(server: ScriptedServer, http: Any) -> Any:
    pytest.importorskip("google.genai", reason="needs pydantic-ai-slim[google]")
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    return GoogleModel("gemini-2.5-flash", provider=GoogleProvider(api_key="k", base_url=server.url, http_client=http))


GEMINI = (
    '{"candidates": [{"content": {"role": "model", "parts": [{"text": "%s"}]}, "index": 0}], '
    '"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 1, "totalTokenCount": 10}}'
)


@pytest.mark.parametrize("provider", ["openai", "google"])
@pytest.mark.parametrize("door", [run_stream, run_stream_events])
async def test_the_log_of_a_stop(
    door: Any, provider: str, scripted_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """At DEBUG, too, our lines hold neither what was asked nor what was answered."""
    import httpx2

    caplog.set_level(logging.DEBUG, "cancelstream")
    pieces = (SECRET, SECRET, Silence())
    if provider == "google":
        answers = [Replay([GEMINI % SECRET, GEMINI % SECRET, Silence()])]
    else:
        answers = [Answer(ToolCall("look", f'{{"where": "{SECRET}"}}')), Answer(Text(*pieces))]
    server = scripted_server(*answers)
    async with httpx2.AsyncClient(timeout=30) as http, AsyncOpenAI(base_url=server.base_url, api_key="k") as client:
        chat = OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client))
        agent = agent_on(google(server, http) if provider == "google" else chat)
        async with door(agent, SECRET) as result:
            texts = result.stream_text(delta=True, **({"debounce_by": None} if door is run_stream else {}))
            async for _ in texts:
                result.cancel("enough")
    assert result.response.text
    told = [record for record in caplog.records if record.name.startswith("cancelstream")]
    assert told
    for record in told:
        assert "CANARY" not in logging.Formatter().format(record)


def test_the_log_of_a_blocking_stop(scripted_server: StartServer, caplog: pytest.LogCaptureFixture) -> None:
    """The same of the blocking door."""
    from openai import OpenAI

    caplog.set_level(logging.DEBUG, "cancelstream")
    server = scripted_server(Answer(Text(*[SECRET] * 50, gap=0.001)))
    messages: Any = [{"role": "user", "content": SECRET}]
    with OpenAI(base_url=server.base_url, api_key="k") as client:
        created = client.chat.completions.create(model="gpt-4o", messages=messages, stream=True)
        with sync.CancellableStream(created) as stream:
            for _ in stream.stream_text():
                stream.cancel("enough")
    for record in caplog.records:
        if record.name.startswith("cancelstream"):
            assert "CANARY" not in logging.Formatter().format(record)
