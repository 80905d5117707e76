"""The names that other libraries keep private are still there, and a lost one is said once.

A failure of a canary after an upgrade means that the function it names falls back. The canaries of the HTTP libraries
need live connections: they are in `engine/test_transport.py`.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import weakref
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx2
import openai
import pytest
from openai import _streaming
from pydantic_ai import Agent, CallToolsNode, ModelRequestNode, RunContext
from pydantic_ai._cancel import RunCancellation
from pydantic_ai.messages import ModelRequest, ModelResponse, TextPart
from pydantic_ai.models import CompletedStreamedResponse, ModelRequestParameters, StreamedResponse, _continuation
from pydantic_ai.models.openai import OpenAIResponsesStreamedResponse, OpenAIStreamedResponse
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RequestUsage, RunUsage

from cancelstream import _upstream
from cancelstream._upstream import openai as upstream_openai
from cancelstream._upstream import pydantic_ai_streams as streams
from cancelstream._upstream.anyio import is_from_scope
from cancelstream._upstream.pydantic_ai import (
    continued,
    keep_last_total,
    may_have_output_validators,
    next_request_of,
    was_cancelled_by_its_own_handle,
)
from cancelstream._upstream.python import caller, line_outside, unmark_awaited
from cancelstream._upstream.strands import wants_output
from cancelstream._upstream.uvicorn import abort_connection, server_stopping


def test_a_lost_name_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """The log names the library, its version, the name and what is done without it, once for each name."""
    monkeypatch.setattr(_upstream, "_told", set[tuple[str, str]]())
    with caplog.at_level(logging.WARNING, "cancelstream"):
        for _ in range(2):
            _upstream.missing("anyio", "hidden thing", "nothing is hidden")
        _upstream.missing("no-such-library", "thing", "nothing is done")
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("anyio 4.")
    assert "has no hidden thing any more, so nothing is hidden" in first
    assert second.startswith("no-such-library (not installed under that name)")


async def test_anyio_names_its_scope_in_a_cancellation():
    """`is_from_scope` tells a scope's cancellation from a `task.cancel()`."""
    caught: list[bool] = []

    async def wait() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as error:
            caught.append(is_from_scope(error))
            raise

    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        await wait()
    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert caught == [True, False]


class TestPython:
    def test_the_frame_of_a_caller(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """`caller` counts from the function that asks; without `sys._getframe` there is no frame, and no line."""

        def asked(depth: int) -> str:
            return caller(depth).f_code.co_name

        assert asked(0) == "asked"
        assert asked(1) == inspect.currentframe().f_code.co_name
        assert line_outside().startswith(f"{__file__}:")
        monkeypatch.delattr("sys._getframe")
        assert caller(0) is None
        assert line_outside() == "an unknown line"

    async def test_the_mark_of_an_awaited_future(self) -> None:
        """A future that was yielded to a task is marked so until the mark is taken back, if it has one."""
        for future in (asyncio.get_running_loop().create_future(), asyncio.create_task(asyncio.sleep(0))):
            awaiting = future.__await__()
            assert next(awaiting) is future
            assert future._asyncio_future_blocking
            unmark_awaited(future)
            assert not future._asyncio_future_blocking
            awaiting.close()
            future.cancel()
        unmark_awaited(object())
        await asyncio.sleep(0)


class TestOpenAI:
    @pytest.mark.parametrize("kind", [openai.AsyncStream, openai.Stream])
    def test_the_methods_that_chunks_pass_through(self, kind: type[Any]) -> None:
        """A stream is a generator of `__stream__`, which reads `_iter_events`: these are what tracers patch."""
        own = upstream_openai._OWN[kind]
        assert {"__stream__", "_iter_events"} < own.keys()
        assert len(own) == 4
        assert all(upstream_openai._is_the_sdks(method) for method in own.values())

    def test_the_iterator_and_its_decoder(self) -> None:
        """A stream has its generator in `_iterator`, its decoder in `_decoder`, its client in `_client`."""
        source = inspect.getsource(openai.AsyncStream.__init__)
        assert "self._iterator = self.__stream__()" in source
        for name in ("_options", "_client", "_decoder", "_cast_to"):
            assert f"self.{name} = " in source
        assert type(openai.AsyncOpenAI(api_key="none")._make_sse_decoder()).__module__ == _streaming.__name__

    @pytest.mark.parametrize("kind", ["Async", ""])
    def test_the_object_of_a_chunk(
        self, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A client makes it in `_process_response_data`; without the name the SDK reads, and the log says so."""
        monkeypatch.setattr(_upstream, "_told", set[tuple[str, str]]())
        asked = getattr(openai, f"{kind}OpenAI")(api_key="none")
        made = getattr(openai, f"{kind}Stream")(cast_to=dict, response=httpx2.Response(200), client=asked)
        assert upstream_openai.client_of(made) is asked
        assert upstream_openai.client_behind(asked.responses.create) is asked
        assert upstream_openai.client_behind(print) is None
        build = upstream_openai.builder_of(made)
        assert build is not None
        assert build(data={"one": 1}) == {"one": 1}
        assert caplog.text == ""
        del made._cast_to
        assert upstream_openai.builder_of(made) is None
        assert "openai" in caplog.text
        assert "has no _cast_to any more" in caplog.text
        del made._client
        assert upstream_openai.client_of(made) is None
        assert f"{kind}Stream._client" in caplog.text
        caplog.clear()
        made._client = object()
        assert upstream_openai.builder_of(made) is None
        assert upstream_openai.client_of(object()) is None
        assert caplog.text == ""


class TestPydanticAI:
    def test_the_request_that_follows_tool_calls(self) -> None:
        """A finished `CallToolsNode` has the request with the results in `_next_node`."""
        node: CallToolsNode[None, str] = CallToolsNode(ModelResponse(parts=[]))
        assert next_request_of(node) is None
        node._next_node = ModelRequestNode(ModelRequest(parts=[]))
        assert next_request_of(node) is node._next_node.request

    def test_a_run_says_whether_its_handle_was_used(self) -> None:
        """A `RunContext` has the run's cancellation in `_cancellation`, which says whether it was asked for."""
        cancellation = RunCancellation()
        context = RunContext(deps=None, model=TestModel(), usage=RunUsage(), _cancellation=cancellation)
        assert not was_cancelled_by_its_own_handle(context)
        cancellation.cancel()
        assert was_cancelled_by_its_own_handle(context)
        assert not was_cancelled_by_its_own_handle(None)

    def test_a_stream_keeps_the_last_total(self) -> None:
        """A `StreamedResponse` adds its usage up in `_add_usage`: what repeats the usage before is a total."""

        def total(*usages: tuple[int, int], before: int = 0) -> tuple[int, int]:
            response = ModelResponse(parts=[])
            stream = CompletedStreamedResponse(response, model_request_parameters=ModelRequestParameters())
            stream._usage_received = False
            for number, (asked, answered) in enumerate(usages):
                if number == before:
                    keep_last_total(stream)
                stream._add_usage(RequestUsage(input_tokens=asked, output_tokens=answered), reported=True)
                stream._add_usage(RequestUsage(), reported=False)
            gone = weakref.ref(stream)
            usage = stream._usage
            del stream
            assert gone() is None
            return usage.input_tokens, usage.output_tokens

        assert total((10, 1), (10, 2), (10, 2)) == (10, 2)
        assert total((10, 0), (12, 5)) == (12, 5)
        assert total((10, 1), (0, 1), (0, 1)) == (10, 3)
        assert total((0, 1), (0, 1)) == (0, 2)
        assert total((10, 1), (10, 2), (10, 3), before=2) == (10, 3)

    def test_without_the_names(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lost, they are done without, and the log says what is missing then."""
        monkeypatch.setattr(_upstream, "_told", set[tuple[str, str]]())
        bare: Any = object()
        with caplog.at_level(logging.WARNING, "cancelstream"):
            assert next_request_of(bare) is None
            assert not was_cancelled_by_its_own_handle(bare)
            keep_last_total(bare)
        assert all(name in caplog.text for name in ("_next_node", "_cancellation", "_add_usage"))
        assert ["_next_node" in caplog.text, "_cancellation" in caplog.text] == [True, True]


class TestPydanticAIsStreams:
    """The canary of `read_directly` needs a stream: `run/test_providers.py::test_chunks_are_pulled_directly`."""

    def test_what_is_kept_on_a_stream(self, caplog: pytest.LogCaptureFixture) -> None:
        """A stream has its deadline, its first chunk's time, its usage, and the iterator that a fallback replaces."""
        stream: Any = CompletedStreamedResponse(
            ModelResponse(parts=[]), model_request_parameters=ModelRequestParameters()
        )
        for name in ("_event_iterator", "_first_chunk_monotonic", "_request_deadline", "_usage_received"):
            assert getattr(StreamedResponse, name) is None
        assert streams.other_iterator_of(stream) is None
        stream._event_iterator = iterator = aiter(stream)
        assert streams.other_iterator_of(stream) is iterator
        assert streams.reported_by(stream) == RequestUsage()
        stream._usage_received = False
        assert streams.reported_by(stream) is None
        deadline = object()
        fresh: Any = CompletedStreamedResponse(
            ModelResponse(parts=[]), model_request_parameters=ModelRequestParameters()
        )
        streams.enforce_deadline(fresh, deadline)
        assert fresh._request_deadline is deadline
        assert caplog.text == ""

    def test_an_iteration_notes_and_enforces(self) -> None:
        """What `keep_timing` replaces is what pydantic-ai's iteration sets and reads."""
        source = inspect.getsource(StreamedResponse.__aiter__)
        assert "self._first_chunk_monotonic = time.perf_counter()" in source
        assert "self._request_deadline.iterate(" in source

    @pytest.mark.parametrize("kind", [OpenAIStreamedResponse, OpenAIResponsesStreamedResponse])
    def test_a_response_for_openai_is_made(
        self, kind: type[StreamedResponse], caplog: pytest.LogCaptureFixture
    ) -> None:
        """`openai_response` makes one of the fields that it has, and `name_model` and `details_of` find theirs."""
        response: Any = streams.openai_response(
            kind,
            source=SimpleNamespace(response="http"),
            model="asked",
            provider_name="openai",
            provider_url="http://x",
        )
        assert (response.model_name, response.provider_name, response.provider_url) == ("asked", "openai", "http://x")
        streams.name_model(response, "answers")
        assert response.model_name == "answers"
        assert response.canonical_system == "openai"
        assert streams.http_response_of(response) == "http"
        names = {field.name for field in fields(kind)}
        assert "_refusal_text" in names
        assert ("_logprobs" in names) == (kind is OpenAIStreamedResponse)
        assert not any(streams.details_of(response).values())
        assert caplog.text == ""

    def test_other_fields_are_refused_before_anything_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error says what to install."""
        monkeypatch.setattr(_upstream, "_told", set[tuple[str, str]]())

        class Renamed(OpenAIStreamedResponse):
            def __init__(self, *, model: str) -> None: ...

        with pytest.raises(TypeError, match="install a version of pydantic-ai that cancelstream was tested with"):
            streams.openai_response(Renamed, source=None, model="", provider_name="", provider_url="")

    def test_without_the_names(self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
        """Lost, they are done without, and the log says what is missing then."""
        monkeypatch.setattr(_upstream, "_told", set[tuple[str, str]]())
        bare: Any = SimpleNamespace(usage=RequestUsage(input_tokens=1))
        assert streams.other_iterator_of(bare) is None
        streams.enforce_deadline(bare, None)
        assert streams.reported_by(bare) == RequestUsage(input_tokens=1)
        assert streams.details_of(bare) == {"refusal": None, "logprobs": None}
        assert streams.http_response_of(bare) is None

        class Peekable: ...

        bare._response = Peekable()
        monkeypatch.setattr(streams, "_Wrapper", Peekable)
        streams.read_directly(bare)
        assert type(bare._response) is Peekable
        monkeypatch.setattr(streams, "_Wrapper", object)
        streams.read_directly(bare)
        names = ("_event_iterator", "_enforce_request_deadline", "_usage", "_refusal_text", "_source_iter")
        assert all(name in caplog.text for name in names)
        monkeypatch.setattr(streams, "StreamedResponse", object)
        kept = type("Kept", (), {})
        streams.keep_timing(kept, first_chunk_at=1, deadline=2)
        assert (kept._first_chunk_monotonic, kept._request_deadline) == (1, 2)
        assert "_request_deadline any more" in caplog.text

    def test_an_agent_has_its_validators(self) -> None:
        """`may_have_output_validators` is true of an agent that has one, and of an unknown one."""
        agent = Agent(TestModel())
        assert not may_have_output_validators(agent)
        agent.output_validator(lambda text: text)
        assert may_have_output_validators(agent)
        assert may_have_output_validators(object())


class TestUvicorn:
    @pytest.mark.parametrize("module", ["h11_impl", "httptools_impl"])
    def test_a_request_has_its_connection(self, module: str) -> None:
        """`abort_connection` finds it by these; that it works is held in `web/test_response.py`."""
        protocol = pytest.importorskip(f"uvicorn.protocols.http.{module}", reason="not installed")
        assert {"transport", "response_complete"} <= set(protocol.RequestResponseCycle.__init__.__code__.co_names)

    def test_a_server_has_its_sockets(self) -> None:
        """`server_stopping` looks at these; that it works is held in `web/test_shutdown.py`."""
        uvicorn = pytest.importorskip("uvicorn", reason="not installed")
        server = uvicorn.Server(uvicorn.Config(app=None))
        assert "servers" in uvicorn.Server.startup.__code__.co_names
        stopping = server_stopping(server.handle_exit)
        assert stopping is not None
        assert not stopping()
        server.should_exit = True
        assert stopping()

    def test_of_another_server_nothing_is_known(self) -> None:
        """No connection to abort, and only its signals are heard."""

        async def receive() -> None: ...

        assert not abort_connection(receive)
        assert server_stopping(receive) is None

    def test_a_middleware_that_leads_round_in_circles(self) -> None:
        class Around:
            async def receive(self) -> None: ...

            @property
            def _receive(self) -> Any:
                return self.receive

        assert not abort_connection(Around().receive)


class TestPydanticAIsParts:
    def test_the_parts_of_an_answer_are_merged(self) -> None:
        """`continued` merges as pydantic-ai does: parts of another response are added, those of the same replaced."""
        earlier = ModelResponse(parts=[TextPart("some ")], provider_response_id="1", state="suspended")
        later = ModelResponse(parts=[TextPart("words")], provider_response_id="2")
        assert continued(earlier, later).parts == [*earlier.parts, *later.parts]
        again = replace(later, provider_response_id="1")
        assert continued(earlier, again).parts == again.parts

    def test_without_it_the_latest_part_is_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An upgrade that has removed `merge_responses` costs the earlier parts of a cut answer, and no more."""
        monkeypatch.setattr(_upstream, "_told", set[tuple[str, str]]())
        monkeypatch.delattr(_continuation, "merge_responses")
        later = ModelResponse(parts=[TextPart("words")])
        assert continued(ModelResponse(parts=[TextPart("some ")]), later) is later


class TestStrands:
    @pytest.mark.parametrize(("module", "names"), [("openai", {"tool_calls", "response"}), ("litellm", {"tool_calls"})])
    def test_a_model_class_has_its_variables(self, module: str, names: set[str]) -> None:
        """`gathered_calls` and `http_response_of` look at these; that they are found is held in `strands/`."""
        pytest.importorskip("strands", reason="needs cancelstream[strands]")
        spec = find_spec(f"strands.models.{module}")  # what it needs takes seconds to import, and is not looked at
        assert spec is not None
        assert spec.origin is not None
        entries = ("stream", "_handle_streaming_response")
        nodes = [*ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))]
        generators = [node for node in nodes if isinstance(node, ast.AsyncFunctionDef) and node.name in entries]
        set_there = {node.id for each in generators for node in ast.walk(each) if isinstance(node, ast.Name)}
        assert names <= set_there

    def test_an_agent_knows_that_it_is_to_give_an_output(self) -> None:
        """`wants_output` sees the agent's own model of an output, and a run's."""
        strands = pytest.importorskip("strands", reason="needs cancelstream[strands]")
        assert not wants_output(strands.Agent(callback_handler=None), {})
        assert wants_output(strands.Agent(callback_handler=None), {"structured_output_model": object})
        assert wants_output(strands.Agent(callback_handler=None, structured_output_model=object), {})

    def test_without_it_only_the_run_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An upgrade that has renamed the attribute leaves the run's own argument."""
        monkeypatch.setattr(_upstream, "_told", set[tuple[str, str]]())
        assert not wants_output(object(), {})
        assert wants_output(object(), {"structured_output_model": object})
