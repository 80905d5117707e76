"""What every test is held to: nothing it started outlives it."""

from __future__ import annotations

import asyncio
import asyncio.constants
import gc
import inspect
import os
import ssl
from collections.abc import AsyncIterator, Callable, Generator

import hypothesis  # noqa: F401 - it looks for referrers as it is imported, which a freeze hides
import pytest
import pytest_asyncio
import trustme
from hypothesis import HealthCheck, settings
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.models.instrumented import InstrumentationSettings

from cancelstream import _tokens

# A busy machine may need any time for an example. `--hypothesis-profile=long` tries many more of them.
settings.register_profile("short", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("long", settings.get_profile("short"), max_examples=5000)
settings.load_profile("short")


# In debug mode every future and callback keeps the stack that made it, which is most of what the tests would wait for.
asyncio.constants.DEBUG_STACK_DEPTH = 3


def _eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined, unused-ignore]
    return loop


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that CANCELSTREAM_TEST_LOOP names: asyncio (the default), eager (Python 3.12) or uvloop."""
    match os.environ.get("CANCELSTREAM_TEST_LOOP", "asyncio"):
        case "eager":
            return {"eager": _eager_loop}
        case "uvloop":
            import uvloop

            return {"uvloop": uvloop.new_event_loop}
        case _:
            return {"asyncio": asyncio.new_event_loop}


def pytest_collection_finish() -> None:
    """Keep what the imports made out of every later collection: the tests ask for many, to find what they leaked."""
    _keep_out_of_collections()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """The same for what the tests of a file have imported."""
    yield
    if nextitem is not None and nextitem.path != item.path:
        _keep_out_of_collections()


def _keep_out_of_collections() -> None:
    gc.collect()
    gc.freeze()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Hold every async test, and only those, to `nothing_is_left_running`."""
    if inspect.iscoroutinefunction(getattr(item, "function", None)):
        item.fixturenames.insert(0, "nothing_is_left_running")  # type: ignore[attr-defined]


@pytest_asyncio.fixture
async def nothing_is_left_running() -> AsyncIterator[None]:
    """Fail a test that leaves a task behind; what it leaves open warns, and warnings are errors."""
    before = asyncio.all_tasks()
    yield
    gc.collect(1)  # what the test made is young; the imports are not looked at again after every test
    # What was only just closed may need a few turns of the loop to be gone.
    for _ in range(50):
        left = {task for task in asyncio.all_tasks() - before if task is not asyncio.current_task()}
        if not left:
            return
        await asyncio.sleep(0)
    _, left = await asyncio.wait(left, timeout=2)
    assert not left, f"left running: {left}"


@pytest.fixture(scope="session")
def vocabularies() -> dict[str, _tokens.Tokenizer | None]:
    """Every vocabulary that the extra `tokens` brings."""
    pytest.importorskip("splintr", reason="the extra `tokens` is not installed")
    return {name: _tokens.load(name) for name in _tokens.VOCABULARIES}


@pytest.fixture
def nothing_is_loading() -> None:
    """No vocabulary that an earlier test asked for turns up in the middle of this one."""
    for thread in list(_tokens._loading.values()):
        if thread.is_alive():
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def tokenizers(
    monkeypatch: pytest.MonkeyPatch, vocabularies: dict[str, _tokens.Tokenizer | None], nothing_is_loading: None
) -> None:
    """The tokenizer extra, with everything loaded."""
    monkeypatch.setattr(_tokens, "_loaded", vocabularies)


@pytest.fixture
def no_tokenizers(monkeypatch: pytest.MonkeyPatch, nothing_is_loading: None) -> None:
    """No tokenizer at hand."""
    monkeypatch.setattr(_tokens, "_loaded", dict.fromkeys(_tokens.VOCABULARIES))


@pytest.fixture(scope="session")
def certificates() -> tuple[Callable[[], ssl.SSLContext], ssl.SSLContext]:
    """Makes the server's context, and the clients'."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")

    def server() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        return context

    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


class Spans:
    """What pydantic-ai reports of the runs of an agent that has `instrumentation` among its capabilities."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.instrumentation = Instrumentation(settings=InstrumentationSettings(tracer_provider=provider))

    def named(self, start: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name.startswith(start)]


@pytest.fixture
def spans() -> Spans:
    """The spans of a test's runs."""
    return Spans()
