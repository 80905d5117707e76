"""Blocking runs where hosts drive them: a threaded WSGI server, a thread pool behind ASGI, a fork, and the exit."""

from __future__ import annotations

import http.client
import io
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream.sync import _loops, run_stream
from cancelstream.sync._run import BlockingRun
from cancelstream.testing import Answer, ScriptedServer, StartServer, Text

from .conftest import LIMIT, SILENT
from .threads import on_loop

WORDS = [f"{number} " for number in range(20)]
FLOWING = Answer(Text(*WORDS, gap=0.005))

Answering = Callable[[], tuple[BlockingRun[str], Iterator[bytes]]]
"""What a view makes for a request: a run, and a plain generator that reads it."""


@pytest.fixture
def agent_for() -> Iterator[Callable[[ScriptedServer], Agent[None, str]]]:
    """Make one agent for all requests, as a module of a web app does."""
    clients: list[AsyncOpenAI] = []

    def make(server: ScriptedServer) -> Agent[None, str]:
        clients.append(AsyncOpenAI(api_key="none", base_url=server.base_url, max_retries=0))
        return Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=clients[-1])))

    yield make
    for client in clients:
        on_loop(client.close, _loops._shared_loop().loop)


def answering(agent: Agent[None, str], runs: list[BlockingRun[str]]) -> Answering:
    def answer() -> tuple[BlockingRun[str], Iterator[bytes]]:
        run = run_stream(agent, "go")
        runs.append(run)

        def texts() -> Iterator[bytes]:
            with run as result:
                for text in result.stream_text(delta=True, debounce_by=None):
                    yield text.encode()

        return run, texts()

    return answer


@contextmanager
def wsgi(answer: Answering) -> Iterator[int]:
    """A WSGI server with a thread for each request; gives its port."""

    class Handler(WSGIRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def get_stderr(self) -> Any:
            return io.StringIO()  # the traceback of a broken pipe

    class Server(socketserver.ThreadingMixIn, WSGIServer):
        daemon_threads = True

    def application(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("content-type", "text/plain")])
        return answer()[1]

    with Server(("127.0.0.1", 0), Handler) as server:
        server.set_app(application)
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        serving.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            serving.join(LIMIT)


@contextmanager
def asgi(answer: Answering) -> Iterator[int]:
    """FastAPI on uvicorn, with a plain `def` view; gives its port. Each piece is read in any thread of its pool."""
    import uvicorn
    from fastapi import FastAPI
    from starlette.background import BackgroundTask
    from starlette.responses import StreamingResponse

    app = FastAPI()

    @app.get("/")
    def view() -> Any:
        run, texts = answer()
        # Of a client that left, Starlette drops the generator, and Python's garbage collector closes it some time.
        return StreamingResponse(texts, background=BackgroundTask(run.cancel, "left"))

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="none"))
    started = threading.Event()
    startup = server.startup

    async def start(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = start  # type: ignore[method-assign]
    serving = threading.Thread(target=server.run)
    serving.start()
    try:
        assert started.wait(LIMIT)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        serving.join(LIMIT)
        assert not serving.is_alive()


@contextmanager
def ask(port: int) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT)
    connection.request("GET", "/")
    response = connection.getresponse()
    try:
        yield response
    finally:
        response.close()
        connection.close()


@pytest.mark.parametrize("host", [wsgi, asgi])
def test_clients_at_once(host: Any, agent_for: Any, scripted_server: StartServer) -> None:
    """Each gets its whole answer, from one agent."""
    answer = answering(agent_for(scripted_server(FLOWING, repeat=True)), [])

    def read(port: int) -> str:
        with ask(port) as response:
            return response.read().decode()

    with host(answer) as port, ThreadPoolExecutor(4) as clients:
        assert [*clients.map(read, [port] * 4)] == ["".join(WORDS)] * 4


@pytest.mark.parametrize("host", [wsgi, asgi])
def test_a_client_that_leaves(host: Any, agent_for: Any, scripted_server: StartServer) -> None:
    """The host lets go of the generator in some thread, and the provider is told."""
    server = scripted_server(Answer(Text(*["word "] * 2000, gap=0.005)))
    runs: list[BlockingRun[str]] = []
    with host(answering(agent_for(server), runs)) as port:
        with ask(port) as response:
            assert response.read(5) == b"word "
        record = server.records[0]
        record.wait_disconnected(LIMIT)
    assert record.chunks_generated < 2000
    [run] = runs
    assert (run.cancelled, run.cancel_reason, run.response.state) == (True, "left", "interrupted")


SCRIPT = """
import os, sys, threading, time, warnings
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from cancelstream.sync import run_stream

client = AsyncOpenAI(api_key="none", base_url=sys.argv[1], max_retries=0)
agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))

def answer(agent=agent):
    with run_stream(agent, "go") as result:
        return result.get_output()

def in_thread(function):
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(function()))
    thread.start()
    thread.join()
    return outcome[0]
"""


def run_script(code: str, server: ScriptedServer) -> str:
    """What the script printed; it ends by itself, well, and says nothing else."""
    command = [sys.executable, "-c", SCRIPT + code, server.base_url]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


def test_the_exit_of_the_interpreter(scripted_server: StartServer) -> None:
    """No thread keeps it, nothing is printed, and a provider that still sends is told."""
    server = scripted_server(FLOWING, SILENT, SILENT)
    printed = run_script(
        """
print(in_thread(answer))

def read():
    with run_stream(agent, "go") as result:
        for text in result.stream_text(delta=True, debounce_by=None):
            if text == "2 ":
                reached.set()

def texts(run):
    with run as result:
        yield from result.stream_text(delta=True, debounce_by=None)

reached = threading.Event()
threading.Thread(target=read, daemon=True).start()
assert reached.wait(20)
kept = texts(run_stream(agent, "go"))  # as a host may keep one in a global variable
in_thread(lambda: next(kept))
""",
        server,
    )
    assert printed == "".join(WORDS) + "\n"
    for record in server.records[1:]:
        record.wait_disconnected(LIMIT)


def test_after_a_fork(scripted_server: StartServer) -> None:
    """The child has a loop of its own, lets go of its parent's run, and the parent goes on."""
    server = scripted_server(FLOWING, repeat=True)
    printed = run_script(
        """
warnings.simplefilter("ignore", DeprecationWarning)  # of a fork while there are threads
before = [answer(), in_thread(lambda: answer(Agent(agent.model.__class__("gpt-4o", provider=OpenAIProvider(
    openai_client=AsyncOpenAI(api_key="none", base_url=sys.argv[1], max_retries=0))))))]
shared = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(
    openai_client=AsyncOpenAI(api_key="none", base_url=sys.argv[1], max_retries=0))))
opened = run_stream(shared, "go")
in_thread(opened.__enter__)
texts = opened.stream_text(delta=True, debounce_by=None)
first = next(texts)
def fresh():
    return Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(
        openai_client=AsyncOpenAI(api_key="none", base_url=sys.argv[1], max_retries=0))))

child = os.fork()
if child == 0:
    assert answer(fresh()) == in_thread(lambda: answer(fresh())) == before[0]
    try:
        next(texts)
    except RuntimeError as error:
        assert "parent process" in str(error), error
    else:
        raise AssertionError("it was read")
    opened.__exit__(None, None, None)
    print("child", flush=True)
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
assert first + "".join(texts) == before[0] == before[1]
opened.__exit__(None, None, None)
assert opened.response.state == "complete"
assert in_thread(lambda: answer(shared)) == before[0]
print("parent")
""",
        server,
    )
    assert printed == "child\nparent\n"
