"""A run in blocking code is stopped from anywhere, and leaves no thread, task or connection behind."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import httpx2
import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent, ModelMessagesTypeAdapter
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import IncompleteOutputError
from cancelstream.sync import _loops, run_stream
from cancelstream.sync._loops import Reply
from cancelstream.sync._run import BlockingRun
from cancelstream.testing import Answer, ScriptedServer, Silence, StartServer, ToolCall

from .conftest import LIMIT, SILENT, WHOLE
from .threads import Running, in_thread, left_on, on_loop, on_signal, soon

MakeAgent = Callable[[ScriptedServer], Agent[None, str]]

NO_HEADERS = Answer(before_headers=Silence())


@pytest.fixture(params=["httpx2", "httpx", "httpx2 in the background"])
def make_agent(
    request: pytest.FixtureRequest, thread_loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeAgent]:
    """Make an agent whose client has room for one connection; what it left running in its loop fails the test.

    In the background its runs are on the loop that other threads share, as if this thread were not the main one.
    """
    clients: list[AsyncOpenAI] = []
    library: Any = httpx if request.param == "httpx" else httpx2
    loop = thread_loop
    if request.param.endswith("background"):
        loop = _loops._shared_loop().loop
        monkeypatch.setattr("cancelstream.sync._session.place_for_this_thread", _loops._shared_loop)

    def make(server: ScriptedServer) -> Agent[None, str]:
        limits = library.Limits(max_connections=1)
        http = library.AsyncClient(limits=limits, timeout=library.Timeout(30, pool=2.0), verify=False)
        client = AsyncOpenAI(api_key="none", base_url=server.base_url, http_client=http, max_retries=0)
        clients.append(client)
        return Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))

    threads = threading.active_count()
    yield make
    for client in clients:
        on_loop(client.close, loop)
    assert not left_on(loop)
    pools = [getattr(each, "_default_executor", None) for each in (loop, thread_loop)]
    assert threading.active_count() <= threads + sum(len(getattr(pool, "_threads", ())) for pool in pools)


@pytest.fixture
def server(scripted_server: StartServer) -> ScriptedServer:
    """A server that falls silent after three words, and answers the next request whole."""
    return scripted_server(SILENT, WHOLE)


def pieces(run: BlockingRun[Any]) -> Iterator[str]:
    return run.stream_text(delta=True, debounce_by=None)


def check_cut(run: BlockingRun[str], text: str | None, reason: str) -> None:
    """What arrived is in the messages, marked, and counted."""
    assert run.cancelled
    assert run.cancel_reason == reason
    assert run.response.state == "interrupted"
    assert run.response.text == text
    last = run.all_messages()[-1]
    assert last.state == "interrupted"
    assert last.metadata is not None
    assert last.metadata["cancelstream"]["reason"] == reason
    assert run.usage is run.usage()


def check_serves(agent: Agent[None, str]) -> None:
    """The next run is served at once, on the one connection there is room for."""
    with run_stream(agent, "again") as again:
        assert again.get_output() == "0 1 2 "
    assert again.response.state == "complete"
    assert not again.cancelled


def test_a_whole_run(make_agent: MakeAgent, scripted_server: StartServer) -> None:
    """It reads like pydantic-ai's own, and one client serves one run after another."""
    agent = make_agent(scripted_server(WHOLE, repeat=True))
    with run_stream(agent, "go") as result:
        assert [*result.stream_text(debounce_by=None)] == ["0 ", "0 1 ", "0 1 2 "]
    with run_stream(agent, "go") as result:
        assert [*result.stream_output(debounce_by=None)][-1] == "0 1 2 "
        result.cancel("too late")
    with run_stream(agent, "go") as result:
        assert [*result.stream_response(debounce_by=None)][-1].state == "complete"
    assert not result.cancelled
    assert result.cancel_reason is None
    assert result.usage.provenance == "reported"
    assert [message.kind for message in result.new_messages()] == ["request", "response"]
    for dumped in (result.all_messages_json(), result.new_messages_json()):
        assert len(ModelMessagesTypeAdapter.validate_json(dumped)) == 2
    if asyncio.get_event_loop() is result._session._place.loop:
        assert agent.run_sync("go").output == "0 1 2 ", "it is on the same loop, so the connections serve both"
    check_serves(agent)


@pytest.mark.parametrize("inside", [False, True])
def test_before_it_is_entered(inside: bool, make_agent: MakeAgent, server: ScriptedServer) -> None:
    """Nothing is sent, and the stream is empty."""
    run = run_stream(make_agent(server), "go")
    if inside:
        run.cancel("early")
    else:
        in_thread(lambda: run.cancel("early"))
    with run as result:
        assert [*result.stream_text()] == []
        with pytest.raises(IncompleteOutputError, match="early"):
            result.get_output()
    assert (run.cancelled, run.cancel_reason) == (True, "early")
    assert run.usage.requests == 0
    assert server.records == ()


@pytest.mark.parametrize("how", ["thread", "signal"])
def test_while_the_server_is_silent(how: str, make_agent: MakeAgent, server: ScriptedServer) -> None:
    """A loop that waits ends at once, without an error, and the server is told."""
    agent = make_agent(server)
    run = run_stream(agent, "go")
    with on_signal(lambda: run.cancel("enough")) as send, run as result:
        read: list[str] = []
        stopping: Running[None] | None = None
        for text in pieces(result):
            read.append(text)
            if len(read) == 3:
                stopping = soon(send if how == "signal" else lambda: run.cancel("enough"))
        assert stopping is not None
        stopping.result()
    assert read == ["0 ", "1 ", "2 "]
    server.records[0].wait_disconnected(LIMIT)
    check_cut(run, "0 1 2 ", "enough")
    assert run.usage.output.low >= 3
    check_serves(agent)


@pytest.mark.parametrize("how", ["thread", "signal"])
def test_while_it_waits_for_headers(how: str, make_agent: MakeAgent, scripted_server: StartServer) -> None:
    """Entering returns, the stream is empty, the server is told, and the request counts."""
    server = scripted_server(NO_HEADERS, WHOLE)
    agent = make_agent(server)
    run = run_stream(agent, "go")

    def stop() -> None:
        server.wait_request(0, LIMIT)
        send() if how == "signal" else run.cancel("enough")

    with on_signal(lambda: run.cancel("enough")) as send:
        stopping = Running(stop)
        with run as result:
            assert [*pieces(result)] == []
        stopping.result()
    server.records[0].wait_disconnected(LIMIT)
    check_cut(run, None, "enough")
    assert run.usage.requests == 1
    assert run.usage.input.low == 0 < run.usage.input_tokens
    check_serves(agent)


def test_during_a_tool(make_agent: MakeAgent, scripted_server: StartServer) -> None:
    """A tool that waits is cancelled, and nothing further is asked of the model."""
    server = scripted_server(Answer(ToolCall("wait", "{}")), WHOLE)
    agent = make_agent(server)
    started = threading.Event()

    @agent.tool_plain
    async def wait() -> str:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError("it waits for ever")

    run = run_stream(agent, "go")
    stopping = Running(lambda: started.wait(LIMIT) and run.cancel("enough"))
    with run as result:
        assert [*pieces(result)] == []
    stopping.result()
    assert (run.cancelled, run.cancel_reason) == (True, "enough")
    assert len(server.records) == 1


@pytest.mark.parametrize("who", ["this thread", "another", "a signal"])
def test_between_two_pulls(who: str, make_agent: MakeAgent, server: ScriptedServer) -> None:
    """The server is told within the call, whatever the loop's body goes on to do, and the loop ends after it."""
    agent = make_agent(server)
    run = run_stream(agent, "go")
    with on_signal(lambda: run.cancel("enough")) as send, run as result:
        read: list[str] = []
        for text in pieces(result):
            read.append(text)
            if text == "1 ":
                called = time.monotonic()
                match who:
                    case "this thread":
                        run.cancel("enough")
                    case "another":
                        in_thread(lambda: run.cancel("enough"))
                    case _:
                        send()
                assert server.records[0].wait_disconnected(LIMIT) - called < LIMIT / 2
        assert read == ["0 ", "1 "]
        assert [*result.stream_text()] == []
        with pytest.raises(IncompleteOutputError):
            result.get_output()
    assert server.records[0].disconnect == "FIN"
    assert run.cancel_reason == "enough"
    assert run.response.state == "interrupted"
    check_serves(agent)


def test_when_the_loop_has_just_stopped(
    make_agent: MakeAgent, server: ScriptedServer, scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancel that finds the loop being driven for another run leaves the telling to the thread that drives it."""
    agent = make_agent(scripted_server(WHOLE))
    with run_stream(make_agent(server), "go") as result, run_stream(agent, "go") as other:
        assert next(pieces(result)) == "0 "
        texts = pieces(other)
        assert next(texts) == "0 "
        arrive = Reply.set

        def overtaken(reply: Reply[Any], value: object) -> None:
            in_thread(lambda: result.cancel("enough"))
            arrive(reply, value)

        monkeypatch.setattr(Reply, "set", overtaken)
        assert next(texts) == "1 "
        monkeypatch.undo()
        server.records[0].wait_disconnected(LIMIT)
    assert result.cancel_reason == "enough"
    assert other.cancel_reason == "left"


def test_a_piece_that_was_on_its_way(
    make_agent: MakeAgent, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another thread's cancel overtakes is dropped."""
    with run_stream(make_agent(server), "go") as result:
        texts = pieces(result)
        assert next(texts) == "0 "
        arrive = Reply.set

        def overtaken(reply: Reply[Any], value: object) -> None:
            in_thread(lambda: result.cancel("enough"))
            arrive(reply, value)

        monkeypatch.setattr(Reply, "set", overtaken)
        assert [*texts] == []
        monkeypatch.undo()
    server.records[0].wait_disconnected(LIMIT)
    check_cut(result, result.response.text, "enough")


def test_break(make_agent: MakeAgent, server: ScriptedServer) -> None:
    """Leaving early closes the connection, and keeps what arrived."""
    agent = make_agent(server)
    with run_stream(agent, "go") as result:
        for _ in pieces(result):
            break
    server.records[0].wait_disconnected(LIMIT)
    assert result.cancelled
    assert result.cancel_reason == "left"
    assert result.response.state == "interrupted"
    assert (result.response.text or "").startswith("0 ")
    check_serves(agent)


def test_ctrl_c(make_agent: MakeAgent, server: ScriptedServer) -> None:
    """A `KeyboardInterrupt` in a pull is nobody's to swallow; everything is closed all the same."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    agent = make_agent(server)
    with on_signal(interrupt) as send, run_stream(agent, "go") as result:
        texts = pieces(result)
        assert [next(texts) for _ in range(3)] == ["0 ", "1 ", "2 "]
        sending = soon(send)
        with pytest.raises(KeyboardInterrupt):
            next(texts)
        sending.result()
    server.records[0].wait_disconnected(LIMIT)
    assert result.cancelled
    assert result.response.state == "interrupted"
    check_serves(agent)


def test_many_threads_cancel(make_agent: MakeAgent, server: ScriptedServer) -> None:
    """The first reason counts, whoever comes after."""
    agent = make_agent(server)
    run = run_stream(agent, "go")
    together = threading.Barrier(8)

    def cancel(number: int) -> None:
        together.wait(LIMIT)
        run.cancel(f"thread {number}")

    with run as result:
        texts = pieces(result)
        assert next(texts) == "0 "
        cancelling = [Running(lambda number=number: cancel(number)) for number in range(8)]
        assert set(texts) <= {"1 ", "2 "}
        for each in cancelling:
            each.result()
        reason = run.cancel_reason
        run.cancel("once more")
    assert reason is not None
    assert reason.startswith("thread ")
    assert run.cancel_reason == reason
    check_serves(agent)


async def test_where_an_event_loop_runs() -> None:
    """Blocking would stop that loop, so it is refused, and the message names what to use."""
    run = run_stream(Agent(TestModel()), "go")
    with pytest.raises(RuntimeError, match=r"async with cancelstream\.run_stream"), run:
        pass


def test_misuse(thread_loop: asyncio.AbstractEventLoop) -> None:
    """What was not entered cannot be read, a run happens once, and an agent is an agent."""
    run = run_stream(Agent(TestModel()), "go")
    with pytest.raises(RuntimeError, match=r"use `with run_stream\(\.\.\.\) as result:`"):
        run.stream_text()
    with pytest.raises(RuntimeError, match="not entered"):
        run.get_output()
    with run:
        pass
    with pytest.raises(RuntimeError, match="call run_stream\\(\\) again"), run:
        pass
    with pytest.raises(TypeError, match="pydantic-ai Agent"):
        run_stream("agent", "go")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="pass a string"):
        run.cancel(42)  # type: ignore[arg-type]
