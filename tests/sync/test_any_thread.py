"""A blocking run may be entered, read, stopped and left in any thread, and threads may share an agent."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream.sync import _loops, run_stream
from cancelstream.testing import Answer, StartServer, Text

from .conftest import LIMIT, SILENT, WHOLE
from .threads import Running, in_thread, left_on, on_loop, soon

MakeAgent = Callable[..., Agent[None, str]]


@pytest.fixture
def make_agent(thread_loop: asyncio.AbstractEventLoop) -> Iterator[MakeAgent]:
    """Make an agent for runs of other threads; what they left running in the loop they share fails the test."""
    clients: list[AsyncOpenAI] = []
    shared = _loops._shared_loop().loop

    def make(server: Any, **http: Any) -> Agent[None, str]:
        http_client = httpx2.AsyncClient(timeout=httpx2.Timeout(30, pool=LIMIT), **http)
        client = AsyncOpenAI(api_key="none", base_url=server.base_url, max_retries=0, http_client=http_client)
        clients.append(client)
        return Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))

    yield make
    for client in clients:
        on_loop(client.close, shared)
    assert not left_on(shared)
    assert not left_on(thread_loop)


class Threads:
    """Three threads, and the main one by the name of `main`."""

    def __init__(self, stack: ExitStack) -> None:
        self._pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]

    def call(self, where: int | str, function: Callable[[], Any]) -> Any:
        """What the function returns in that thread."""
        return function() if where == "main" else self._pools[int(where)].submit(function).result(LIMIT)


@pytest.fixture
def threads() -> Iterator[Threads]:
    with ExitStack() as stack:
        yield Threads(stack)


@pytest.mark.parametrize(
    ("enter", "read", "leave"), [(0, [0], 0), (0, [1, 2, "main"], 1), ("main", [0, 1], 2), ("main", [0], "main")]
)
def test_a_whole_run_in_many_threads(
    enter: int | str,
    read: list[int | str],
    leave: int | str,
    threads: Threads,
    make_agent: MakeAgent,
    scripted_server: StartServer,
    thread_loop: asyncio.AbstractEventLoop,
) -> None:
    """Each item may be pulled by another thread, and the run be left in one more."""
    agent = make_agent(scripted_server(WHOLE))
    run = run_stream(agent, "go")
    threads.call(enter, run.__enter__)
    texts = run.stream_text(delta=True, debounce_by=None)
    for number, text in enumerate(["0 ", "1 ", "2 ", None]):
        assert threads.call(read[number % len(read)], lambda: next(texts, None)) == text
    assert threads.call(read[0], lambda: run.response.text) == "0 1 2 "
    threads.call(leave, lambda: run.__exit__(None, None, None))
    assert (run.cancelled, run.response.state, run.usage.provenance) == (False, "complete", "reported")
    if enter == "main":
        on_loop(agent.model.client.close, thread_loop)  # type: ignore[union-attr]


@pytest.mark.parametrize("enter", [0, "main"])
@pytest.mark.parametrize("how", ["close", "drop", "throw"])
def test_a_generator_that_another_thread_ends(
    how: str, enter: int | str, threads: Threads, make_agent: MakeAgent, scripted_server: StartServer
) -> None:
    """The provider is told, and the run is left, in whichever thread the host lets go of the generator."""
    server = scripted_server(SILENT, WHOLE)
    agent = make_agent(server)
    run = run_stream(agent, "go")

    def answer() -> Iterator[str]:
        with run as result:
            yield from result.stream_text(delta=True, debounce_by=None)

    made = [answer()]
    assert [threads.call(enter, lambda: next(made[0])) for _ in range(3)] == ["0 ", "1 ", "2 "]
    match how:
        case "close":
            threads.call(1, made[0].close)
        case "drop":
            threads.call(1, made.clear)
        case _:
            with pytest.raises(ZeroDivisionError):
                threads.call(1, lambda: made[0].throw(ZeroDivisionError))
    assert server.records[0].wait_disconnected(LIMIT)
    assert (run.cancelled, run.cancel_reason, run.response.state) == (True, "left", "interrupted")
    assert run.response.text == "0 1 2 "
    if enter != "main":
        with run_stream(agent, "again") as again:
            assert threads.call(enter, again.get_output) == "0 1 2 "


def test_threads_share_an_agent(make_agent: MakeAgent, scripted_server: StartServer) -> None:
    """The second round uses the connections of the first one, in other threads."""
    server = scripted_server(Answer(Text(*(f"{number} " for number in range(20)), gap=0.002)), repeat=True)
    agent = make_agent(server)

    def answer() -> str:
        with run_stream(agent, "go") as result:
            return "".join(result.stream_text(delta=True, debounce_by=None))

    for _ in range(2):
        assert {each.result() for each in [Running(answer) for _ in range(6)]} == {"".join(f"{n} " for n in range(20))}


def test_a_silent_run_keeps_no_other_from_going_on(make_agent: MakeAgent, scripted_server: StartServer) -> None:
    """The threads wait, each for its own run, and a stop of one leaves the others alone."""
    server = scripted_server(SILENT, WHOLE)
    agent = make_agent(server)
    silent = run_stream(agent, "go")

    def read() -> list[str]:
        with silent as result:
            return [*result.stream_text(delta=True, debounce_by=None)]

    reading = Running(read)
    server.wait_request(0, LIMIT).wait_chunks(3, LIMIT)

    def answer() -> str:
        with run_stream(agent, "go") as result:
            return result.get_output()

    assert in_thread(answer) == "0 1 2 "
    silent.cancel("enough")
    assert "".join(reading.result()) == silent.response.text == "0 1 2 "
    server.records[0].wait_disconnected(LIMIT)


def test_http2_between_two_pulls(make_agent: MakeAgent) -> None:
    """The loop goes on while no thread pulls, so an HTTP/2 server, too, is told at once."""
    from h2_server import H2Server

    with H2Server() as server:
        agent = make_agent(server, http1=False, http2=True, headers={"x-play": "silent:3"})
        run = run_stream(agent, "go")

        def answer() -> Iterator[str]:
            with run as result:
                yield from result.stream_text(delta=True, debounce_by=None)

        texts = answer()
        assert in_thread(lambda: next(texts)) == "0 "
        run.cancel("enough")
        with server.changed:
            assert server.changed.wait_for(lambda: server.streams[0].reset is not None, LIMIT)
        assert server.streams[0].reset == 8
        assert in_thread(lambda: [*texts]) == []
        on_loop(agent.model.client.close, _loops._shared_loop().loop)  # type: ignore[union-attr]


def test_ctrl_c_while_the_main_thread_reads_a_run_of_another(
    make_agent: MakeAgent, scripted_server: StartServer
) -> None:
    """It ends the pull, comes out of the block, and the run is left."""
    server = scripted_server(SILENT)
    run = run_stream(make_agent(server), "go")
    in_thread(run.__enter__)
    texts = run.stream_text(delta=True, debounce_by=None)
    assert [next(texts) for _ in range(3)] == ["0 ", "1 ", "2 "]
    main = threading.get_ident()
    sending = soon(lambda: signal.pthread_kill(main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        next(texts)
    sending.result()
    run.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    server.records[0].wait_disconnected(LIMIT)
    assert run.response.state == "interrupted"


async def test_where_an_event_loop_runs(make_agent: MakeAgent, scripted_server: StartServer) -> None:
    """A run of another thread is not read there, and can be left: that does not wait."""
    server = scripted_server(SILENT)
    run = run_stream(make_agent(server), "go")
    await asyncio.to_thread(run.__enter__)
    texts = run.stream_text(delta=True, debounce_by=None)
    assert await asyncio.to_thread(next, texts) == "0 "
    with pytest.raises(RuntimeError, match=r"asyncio\.to_thread"):
        next(texts)
    assert (run.response.text or "").startswith("0 ")
    run.__exit__(None, None, None)
    await asyncio.to_thread(server.records[0].wait_disconnected, LIMIT)


def test_a_run_that_is_forgotten(make_agent: MakeAgent, scripted_server: StartServer) -> None:
    """It warns, names what to write, and is left soon after."""
    server = scripted_server(SILENT)
    agent = make_agent(server)

    def forget() -> None:
        run = run_stream(agent, "go")
        run.__enter__()
        assert next(run.stream_text(delta=True, debounce_by=None)) == "0 "
        del run
        gc.collect()

    with pytest.warns(ResourceWarning, match=r"made at .*test_any_thread\.py.*use `with run_stream\(\.\.\.\)"):
        in_thread(forget)
    server.records[0].wait_disconnected(LIMIT)


# --- without a server -----------------------------------------------------------------------------------------------

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


def test_context_variables() -> None:
    """The run has those of the thread that enters it, and a stream those of the thread that begins it."""
    seen: list[str] = []

    async def say(messages: list[Any], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        seen.append(VARIABLE.get())
        if len(messages) == 1:
            yield {0: DeltaToolCall("look", "{}")}
            return
        yield "a"
        seen.append(VARIABLE.get())
        yield "b"

    agent = Agent(FunctionModel(stream_function=say))

    @agent.tool_plain
    def look() -> str:
        seen.append(VARIABLE.get())
        return "seen"

    def answer() -> None:
        VARIABLE.set("entering")
        with run_stream(agent, "go") as result:
            VARIABLE.set("reading")
            assert "".join(result.stream_text(delta=True, debounce_by=None)) == "ab"
        assert VARIABLE.get() == "reading"

    in_thread(answer)
    assert seen == ["entering", "entering", "entering", "reading"]


def test_a_tool_that_exits() -> None:
    """Its run raises what the tool raised, and all others go on."""

    async def say(messages: list[Any], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        if info.function_tools and len(messages) == 1:
            yield {0: DeltaToolCall("leave", "{}")}
        else:
            yield "here"

    agent, other = Agent(FunctionModel(stream_function=say)), Agent(FunctionModel(stream_function=say))

    @agent.tool_plain
    async def leave() -> str:
        raise SystemExit(3)

    def answer(agent: Agent[None, str]) -> str:
        with run_stream(agent, "go") as result:
            return result.get_output()

    with pytest.raises(SystemExit, match="3"):
        in_thread(lambda: answer(agent))
    assert in_thread(lambda: answer(other)) == "here"


def test_a_run_inside_a_tool_of_a_run() -> None:
    """A plain tool function is in a thread of its own, and may use a blocking run itself."""

    async def say(messages: list[Any], info: AgentInfo) -> AsyncIterator[str | dict[int, DeltaToolCall]]:
        if info.function_tools and len(messages) == 1:
            yield {0: DeltaToolCall("ask", "{}")}
        else:
            yield "inner" if not info.function_tools else str(messages[-1].parts[0].content)

    outer, inner = Agent(FunctionModel(stream_function=say)), Agent(FunctionModel(stream_function=say))

    def answer(agent: Agent[None, str]) -> str:
        with run_stream(agent, "go") as result:
            return result.get_output()

    @outer.tool_plain
    def ask() -> str:
        return answer(inner)

    assert in_thread(lambda: answer(outer)) == "inner"


def test_two_streams_of_a_run() -> None:
    """One that was left by `break` is closed before the next one reads on."""

    async def say(messages: list[Any], info: AgentInfo) -> AsyncIterator[str]:
        for word in ("a", "b", "c"):
            yield word

    def answer() -> list[str]:
        with run_stream(Agent(FunctionModel(stream_function=say)), "go") as result:
            for _ in result.stream_text(delta=True, debounce_by=None):
                break
            return [*result.stream_text(debounce_by=None)][-1:]

    assert in_thread(answer) == ["abc"]


def test_after_it_was_left() -> None:
    """There is nothing to read any more, and the error says where to read."""

    async def say(messages: list[Any], info: AgentInfo) -> AsyncIterator[str]:
        yield "a"

    def answer() -> Any:
        with run_stream(Agent(FunctionModel(stream_function=say)), "go") as result:
            result.get_output()
        return result

    result = in_thread(answer)
    with pytest.raises(RuntimeError, match="inside its `with` block"):
        next(result.stream_text())
    with pytest.raises(RuntimeError, match="inside its `with` block"):
        result.get_output()
    assert result.all_messages()[-1].text == "a"


@pytest.mark.parametrize("how", ["whole", "cut", "left"])
@pytest.mark.parametrize("where", ["main", "thread"])
def test_what_has_ended_is_gone(how: str, where: str, thread_loop: asyncio.AbstractEventLoop) -> None:
    """Once its last name is gone nothing holds a run any more; the collector need not look for it."""

    async def say(messages: list[Any], info: AgentInfo) -> AsyncIterator[str]:
        for word in ("a", "b", "c"):
            yield word

    agent = Agent(FunctionModel(stream_function=say))

    def answer() -> list[weakref.ref[Any]]:
        with run_stream(agent, "go") as result:
            for _ in result.stream_text(delta=True, debounce_by=None):
                if how == "left":
                    break
                if how == "cut":
                    result.cancel()
        return [weakref.ref(result), weakref.ref(result._session)]

    gc.collect()
    gc.disable()
    try:
        held = answer() if where == "main" else in_thread(answer)
        assert not left_on(_loops._shared_loop().loop)
        assert [each() for each in held] == [None, None]
    finally:
        gc.enable()
