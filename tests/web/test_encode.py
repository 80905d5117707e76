"""What is sent of the items of a stream: structured outputs as JSON, and an end for one that cannot be encoded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, DeferredToolRequests, NativeOutput, TextOutput
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.providers.openai import OpenAIProvider
from test_sources import LIMIT, Request, Source

from cancelstream import CancellableStreamedResponse, MemoryStopRegistry, run_stream, run_stream_events
from cancelstream.starlette import CancellableEventResponse, EventEncoder
from cancelstream.starlette import _outbox as outbox
from cancelstream.testing import Answer, Gate, ScriptedServer, Text, ToolCall


class City(BaseModel):
    name: str = ""
    rivers: list[str] = []


class Town(BaseModel):
    name: str
    rivers: list[str]


def shout(text: str) -> str:
    return text.upper()


async def serve(response: CancellableEventResponse) -> Request:
    request = Request()
    await request.serve(response)
    return request


def sent(request: Request, name: str) -> list[Any]:
    data = [json.loads(line[6:]) for line in request.text.split("\n") if line.startswith("data: ")]
    return [told[name] for told in data if name in told]


# --- structured output -------------------------------------------------------------------------------------------

RUNS = pytest.mark.parametrize("run", [run_stream, run_stream_events])

WHOLE = {"name": "Wien", "rivers": ["Donau", "Wien"]}


@RUNS
async def test_partial_outputs_are_sent_as_json(run: Any) -> None:
    """By default, each time the whole of it so far; the last one is the validated output."""
    gates = [Gate(), Gate()]
    pieces = ['{"name":"Wi', gates[0], 'en","rivers":["Don', gates[1], 'au","Wien"]}']
    with ScriptedServer(Answer(ToolCall("final_result", *pieces))) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client)), output_type=City)
            ended: list[Any] = []
            response = CancellableEventResponse(lambda: run(agent, "hi"), on_end=ended.append, ping=None)
            request = Request()
            serving = asyncio.create_task(request.serve(response))
            for gate in gates:
                await gate.until_reached()
                await request.until_sent('"output"')
                gate.open()
            await serving
    outputs = sent(request, "output")
    assert outputs[0]["name"] == "Wi"
    assert outputs[-1] == WHOLE
    assert request.end["state"] == "complete"
    assert sent(request, "delta") == []
    assert len(ended) == 1


@RUNS
@pytest.mark.parametrize(
    ("output_type", "whole"),
    [
        (list[Town], [{"name": "a", "rivers": ["a"]}]),
        ([Town, int], {"name": "a", "rivers": ["a"]}),
        (int, 0),
        (NativeOutput(Town), {"name": "a", "rivers": ["a"]}),
    ],
)
async def test_outputs_of_every_kind(run: Any, output_type: Any, whole: Any) -> None:
    model = TestModel(custom_output_text=json.dumps(whole)) if isinstance(output_type, NativeOutput) else TestModel()
    if isinstance(output_type, NativeOutput):
        model.profile = {**(model.profile or {}), "supports_json_schema_output": True}  # type: ignore[assignment]
    agent: Agent[None, Any] = Agent(model, output_type=output_type)
    request = await serve(CancellableEventResponse(lambda: run(agent, "hi"), ping=None))
    outputs = sent(request, "output")
    assert outputs[-1] == whole
    assert {type(output) for output in outputs} == {type(whole)}
    assert sent(request, "delta") == []
    assert request.end["state"] == "complete"


@RUNS
@pytest.mark.parametrize("output_type", [str, [str, DeferredToolRequests], TextOutput(shout)])
async def test_output_that_is_text_is_sent_in_pieces(run: Any, output_type: Any) -> None:
    agent: Agent[None, Any] = Agent(TestModel(custom_output_text="one two"), output_type=output_type)
    request = await serve(CancellableEventResponse(lambda: run(agent, "hi"), ping=None))
    assert "".join(sent(request, "delta")) == "one two"
    assert sent(request, "output") == []


async def test_text_beside_a_structured_output_is_sent_too() -> None:
    """Of the events, in which it can be told apart; where the output turns out to be text, it is not sent twice."""

    async def say(messages: Any, info: Any) -> AsyncGenerator[str]:
        yield "one "
        yield "two"

    agent: Agent[None, Any] = Agent(FunctionModel(stream_function=say), output_type=[str, Town])
    request = await serve(CancellableEventResponse(lambda: run_stream_events(agent, "hi"), ping=None))
    assert "".join(sent(request, "delta")) == "one two"
    assert sent(request, "output") == []


@RUNS
async def test_an_output_that_is_cut(run: Any) -> None:
    """What had come of it is sent, then the end of a cut stream."""
    registry, gate, request = MemoryStopRegistry(), Gate(), Request()
    call = ToolCall("final_result", '{"name":"Wi', 'en","rivers":["Do', gate, 'nau"]}')
    with ScriptedServer(Answer(call)) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            agent = Agent(OpenAIChatModel("m", provider=OpenAIProvider(openai_client=client)), output_type=City)
            response = CancellableEventResponse(lambda: run(agent, "hi"), registry=registry, owner="me", ping=None)
            serving = asyncio.create_task(request.serve(response))
            await request.until_sent('"Wi')
            await gate.until_reached()
            assert response.stop_id is not None
            await registry.stop(response.stop_id, owner="me")
            await serving
            gate.open()
    assert request.end["state"] == "interrupted"
    assert sent(request, "output")[-1]["name"].startswith("Wi")


async def test_a_format_of_ones_own_for_outputs() -> None:
    class Upper(EventEncoder):
        def output(self, output: Any) -> str:
            return self.event({"city": output.name.upper()}) if isinstance(output, Town) else ""

    agent = Agent(TestModel(), output_type=Town)
    request = await serve(CancellableEventResponse(lambda: run_stream(agent, "hi"), encode=Upper(), ping=None))
    assert sent(request, "city")[-1] == "A"


# --- an item that cannot be encoded ------------------------------------------------------------------------------


class Broken(EventEncoder):
    """Fails for the piece that says so."""

    def item(self, item: Any) -> str:
        if item == "secret":
            raise LookupError(f"no place for {item}")
        return "\ud800" if item == "half" else super().item(item)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bad", ["secret", "half"])
async def test_an_item_that_cannot_be_encoded(bad: str, last: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The client gets an end, `on_end` is told that it failed, the source is left, and no error holds the answer."""
    source = Source("Hel", bad, *([] if last else ["lo"]), forever=not last)
    states: list[Any] = []
    response = CancellableEventResponse(
        lambda: source, encode=Broken(), ping=None, on_end=lambda _: states.append(response.end)
    )
    request = await serve(response)
    assert sent(request, "delta") == ["Hel"]
    assert (request.end["state"], request.end["reason"]) == ("failed", None)
    assert source.left
    assert [end.state for end in states] == ["failed"]
    error = states[0].error
    assert error.__context__ is error.__cause__ is None
    assert "Broken.item() raised" in str(error)
    assert "for an item of type str, in " in str(error)
    assert "secret" not in caplog.text + repr(error)


async def test_a_client_that_is_gone_needs_no_encoding() -> None:
    """`continue` reads to the end for `on_end`, whatever the format could not have sent."""
    source, request = Source("Hel", forever=True), Request()
    response = CancellableEventResponse(lambda: source, encode=Broken(), ping=None, on_disconnect="continue")
    serving = asyncio.create_task(request.serve(response))
    await source.given.wait()
    request.gone.set()
    async with asyncio.timeout(LIMIT):
        while response._stream is None or not response._stream.outbox.dropping:
            await asyncio.sleep(0)
    source.items = ("secret",)
    source.forever = False
    source.cancel()
    await serving
    assert response.end is not None
    assert response.end.error is None


async def test_an_item_that_is_no_text_names_encode() -> None:
    request = await serve(CancellableEventResponse(lambda: Source({"any": "secret"}, forever=False), ping=None))
    assert request.end["state"] == "failed"
    with pytest.raises(TypeError, match="encode=") as caught:
        EventEncoder().item({"any": "secret"})
    assert "secret" not in str(caught.value)


# --- what is given in place of a factory -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run_stream", "run_stream_events"])
@pytest.mark.parametrize("own", [True, False])
async def test_a_run_in_place_of_a_factory(name: str, own: bool) -> None:
    """It is told at construction what to write; pydantic-ai's own from a factory, when it is made."""
    agent = Agent(TestModel(custom_output_text="secret"))
    make = {"run_stream": run_stream, "run_stream_events": run_stream_events}[name]
    run: Any = getattr(agent, name)("secret") if own else make(agent, "secret")
    with pytest.raises(TypeError, match=rf"write `lambda: {name}\(agent, prompt\)`") as caught:
        CancellableEventResponse(run)
    assert "secret" not in str(caught.value)
    if own:
        with pytest.raises(TypeError, match=rf"write `lambda: {name}\(agent, prompt\)`"):
            await Request().serve(CancellableEventResponse(lambda: run, ping=None))


async def test_a_response_in_place_of_a_factory_is_closed() -> None:
    with ScriptedServer(Answer(Text("Hel"), Gate())) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none") as client:
            messages: Any = [{"role": "user", "content": "hi"}]
            stream = await client.chat.completions.create(model="m", messages=messages, stream=True)
            opened: Any = CancellableStreamedResponse.from_openai(stream)
            with pytest.raises(TypeError, match="factory is a function"):
                CancellableEventResponse(opened)
            await model.records[0].until_disconnected()
            await opened.close()


# --- the outbox --------------------------------------------------------------------------------------------------


async def test_the_outbox_holds_its_limit_back_and_not_more() -> None:
    """The 64th item waits until the client takes them."""
    box = outbox.Outbox()
    for number in range(outbox.LIMIT - 1):
        await asyncio.wait_for(box.put(number), LIMIT)
    waiting = asyncio.create_task(box.put("last"))
    done, _ = await asyncio.wait([waiting], timeout=0.05)
    assert not done
    assert len(await anext(box)) == outbox.LIMIT == 64
    await asyncio.wait_for(waiting, LIMIT)


async def test_what_waits_for_a_client_that_has_gone_is_dropped() -> None:
    """At once, and not when the stream has ended."""
    box = outbox.Outbox()
    for number in range(3):
        await box.put(number)
    box.drop()
    await box.put("more")
    box.close(outbox.StreamEnd("complete", None, None, "unknown", 0))
    assert [batch async for batch in box] == []
