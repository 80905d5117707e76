"""A provider may send anything: what the SDK hands out, every door hands out, and the account makes of it what it can.

The streams here hold half characters, arguments nested thousands deep, and values of a type that no API has in their
place. Each is stopped at every item, and everything that can be asked of a response is asked.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import openai
import pytest
from pydantic_ai import ModelMessagesTypeAdapter
from pydantic_ai.messages import ModelRequest, ToolCallPart
from pydantic_ai.models import ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import CancellableModel, CancellableStreamedResponse, StreamUsage, is_incomplete, salvage
from cancelstream.sync import CancellableStream

from .support import (
    ASK,
    ASK_RESPONSES,
    COMPLETED,
    FIRST,
    LAST,
    MESSAGE,
    Sent,
    call,
    chat,
    client_of,
    created,
    delta,
    event,
    item,
    stream_of,
    texts,
)

pytestmark = [
    pytest.mark.usefixtures("without_debug"),
    # pydantic and pydantic-ai say so where a value has a type that they did not expect.
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

DONE = b"data: [DONE]\n\n"
DEEP = '{"a":' * 3000
HALVES = ("\\ud83d", "\\ude00")


def half(chunk: str, number: int) -> str:
    """The chunk with half a character in place of its `X`, as JSON escapes it."""
    return chunk.replace("X", HALVES[number])


def argued(name: Any, *arguments: Any) -> tuple[str, ...]:
    first = {"index": 0, "id": "c", "type": "function", "function": {"name": name, "arguments": ""}}
    return (chat(delta(tool_calls=[first])), *(chat(delta(tool_calls=[call(0, piece)])) for piece in arguments), LAST)


FUNCTION = event(
    "response.output_item.added",
    2,
    output_index=0,
    item=item("function_call", call_id="c", name="look", arguments=""),
)


def arguments(piece: Any) -> str:
    return event("response.function_call_arguments.delta", 3, item_id="function_call_1", output_index=0, delta=piece)


SENT = (
    Sent(
        "an emoji in two deltas",
        (FIRST, half(chat(delta(content="aX")), 0), half(chat(delta(content="Xb")), 1), chat(delta(content="c")), LAST),
    ),
    Sent("half a character", (FIRST, half(chat(delta(content="aX")), 0), chat(delta(content="c")), LAST)),
    Sent("half characters in a call", (half(chat(delta(content="X")), 1), *(half(c, 0) for c in argued("fX", "X")))),
    Sent("half characters in thoughts", (half(chat(delta(reasoning_content="X")), 1), chat(delta(content="c")), LAST)),
    Sent("arguments nested 3,000 deep", argued("f", DEEP, "1" + "}" * 3000)),
    Sent("a text nested 5,000 deep", (FIRST, chat(delta(content="[" * 5000)), chat(delta(content="]" * 5000)), LAST)),
    Sent(
        "deltas that are no text",
        (*created(), MESSAGE, *texts("a"), *texts(*[["x"], {"y": 1}, 7]), *texts("b"), COMPLETED),
        True,
    ),  # type: ignore[arg-type]
    Sent("arguments that are no text", (*created(), FUNCTION, arguments(["a"]), arguments("{}"), COMPLETED), True),
    Sent("arguments that are an object", (FIRST, *argued("f", {"a": [1]}, "{}"))),
    Sent("a name that is a number", argued(7, "{}")),
    Sent("content of other types", (FIRST, *(chat(delta(content=c)) for c in (5, {"a": 1}, True, "x")), LAST)),
    Sent("reasoning of other types", (chat(delta(reasoning=["a"], reasoning_content={"b": 1})), *argued("f", "{}"))),
    Sent("an end that is a list", (chat(delta(content="x", finish_reason=["stop"])), LAST)),  # type: ignore[arg-type]
    Sent("an index that is an object", (chat({"index": {"a": 1}, "delta": {"content": "q"}}), LAST)),
    Sent("usage that is a word", (chat(delta(content="x")), LAST, chat(usage="many"))),
    Sent(
        "counts of other types",
        (
            chat(delta(content="x")),
            LAST,
            chat(usage={"prompt_tokens": "9", "completion_tokens": [4], "total_tokens": None}),
            chat(usage={"prompt_tokens": 10**30, "completion_tokens": -5, "total_tokens": 1e300}),
            chat(usage={"prompt_tokens": float("inf"), "completion_tokens": 1.5, "total_tokens": float("nan")}),
        ),
    ),
    Sent("names that are none", (chat(delta(content="x"), model=["a"]), chat(delta(content="x"), id=[4]), LAST)),
    Sent("events about nothing", (event("response.created", 0, response=None), *texts("a"), COMPLETED), True),
    Sent("types that are none", (*created(), *texts("a"), '{"type": ["x"], "delta": "a"}', COMPLETED), True),
    Sent("items that are none", (*created(), FUNCTION.replace('"item": {', '"item": "", "x": {'), COMPLETED), True),
    Sent("places that are none", (*created(), *texts("a", "b", item_id=["x"], content_index={}), COMPLETED), True),
)


TEXTS = ("content", "args", "tool_name", "tool_call_id", "signature", "id", "model_name", "provider_response_id")


def ask_everything(response: Any, where: object) -> None:
    """Nothing that can be asked of a response raises, and what it is asked for can be stored and read again."""
    message = response.get()
    for count in (response.usage.input, response.usage.output):
        assert count.low >= 0, where
        assert count.value is None or count.low <= count.value <= (count.high or count.value), where
    assert repr(message)
    assert repr(response.usage.cost_range)
    assert is_incomplete(message) == (message.state in ("interrupted", "incomplete")), where
    json.dumps((message.metadata or {}).get("cancelstream"), allow_nan=False)
    assert StreamUsage.of(message).output == response.usage.output or not response.cancelled, where
    salvage([ModelRequest.user_text_prompt("Hi"), message])


def round_trip(response: Any, where: object) -> None:
    """A message whose parts are texts goes through JSON, and keeps what was said."""
    message = response.get()
    values = [value for node in (message, *message.parts) for name, value in vars(node).items() if name in TEXTS]
    if all(isinstance(value, str | None) for value in values):
        (again,) = ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json([message]))
        assert [getattr(part, "content", "") for part in again.parts] == [
            getattr(part, "content", "") for part in message.parts
        ], where


async def errors_of(source: AsyncIterator[Any]) -> tuple[int, set[str]]:
    """How many items there are, and the type of the error that they end in."""
    number = 0
    try:
        async for _ in source:
            number += 1
    except Exception as error:
        return number, {type(error).__name__}
    return number, set()


def model_of(sent: Sent) -> Any:
    kind: Any = OpenAIResponsesModel if sent.responses else OpenAIChatModel
    return kind("gpt-4o", provider=OpenAIProvider(openai_client=client_of(sent.sse() + DONE)))


def requested(model: Any) -> Any:
    return model.request_stream([ModelRequest.user_text_prompt("Hi")], None, ModelRequestParameters())


async def pydantic_ais_own(sent: Sent) -> set[str]:
    """The error that pydantic-ai's own stream of this ends in."""
    try:
        async with requested(model_of(sent)) as stream:
            _, errors = await errors_of(aiter(stream))
    except Exception as error:
        return {type(error).__name__}
    return errors


def read(response: CancellableStreamedResponse, reading: str) -> AsyncIterator[Any]:
    readings = {"chunks": response.chunks, "text": lambda: response.stream_text(delta=True)}
    return readings.get(reading, lambda: aiter(response))()


@pytest.mark.parametrize(
    ("reading", "how"), [("chunks", "cancel"), ("chunks", "leave"), ("events", "cancel"), ("text", "leave")]
)
@pytest.mark.parametrize("strange", SENT, ids=lambda sent: sent.name)
async def test_raw_streams(strange: Sent, reading: str, how: str) -> None:
    """The reading ends in an error only where the SDK's, or pydantic-ai's, does; a stop and the account in none."""
    sdk = await errors_of(await stream_of(strange.sse() + DONE, responses=strange.responses))
    assert sdk == (len(strange.data), set())
    allowed = set() if reading == "chunks" else await pydantic_ais_own(strange)
    errors: set[str] = set()
    for cut in range(1, len(strange.data) + 2):
        stream = await stream_of(strange.sse() + DONE, responses=strange.responses)
        number = 0
        async with CancellableStreamedResponse.from_openai(stream) as response:
            try:
                async for _ in read(response, reading):
                    number += 1
                    if number == cut:
                        ask_everything(response, (reading, "live", number))
                        if how == "leave":
                            break
                        response.cancel("enough")
            except Exception as error:
                errors.add(type(error).__name__)
        ask_everything(response, (reading, cut))
        round_trip(response, (reading, cut))
    assert errors <= allowed
    assert reading != "chunks" or number == len(strange.data)


class Body(httpx2.SyncByteStream):
    def __init__(self, data: bytes) -> None:
        self._data = data

    def __iter__(self) -> Iterator[bytes]:
        yield self._data


_bodies: list[bytes] = []


def _answer(_: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(_bodies.pop()))


_client = openai.OpenAI(
    base_url="http://provider.example/v1",
    api_key="none",
    max_retries=0,
    http_client=httpx2.Client(transport=httpx2.MockTransport(_answer)),
)


@pytest.mark.parametrize("reading", ["chunks", "text"])
async def test_blocking_streams(reading: str) -> None:
    """The same for a blocking client."""
    for sent in SENT:
        allowed = set() if reading == "chunks" else await pydantic_ais_own(sent)
        errors: set[str] = set()
        for cut in range(1, len(sent.data) + 2):
            _bodies.append(sent.sse() + DONE)
            made: Any = (
                _client.responses.create(**ASK_RESPONSES, stream=True)
                if sent.responses
                else _client.chat.completions.create(**ASK, stream=True)
            )
            with CancellableStream(made) as stream:
                try:
                    for number, _ in enumerate(stream.chunks() if reading == "chunks" else stream.stream_text(), 1):
                        if number == cut:
                            stream.cancel("enough")
                except Exception as error:
                    errors.add(type(error).__name__)
            ask_everything(stream, (sent.name, cut))
            round_trip(stream, (sent.name, cut))
        assert errors <= allowed, sent.name


@pytest.mark.parametrize("how", ["cancel", "leave"])
async def test_a_models_streams(how: str) -> None:
    """The same for a stream of pydantic-ai's own, whose message is pydantic-ai's to make while it is whole."""
    for sent in SENT:
        allowed = await pydantic_ais_own(sent)
        errors: set[str] = set()
        for cut in range(1, len(sent.data) + 2):
            number = 0
            try:
                async with requested(CancellableModel(model_of(sent))) as response:
                    async for _ in response:
                        number += 1
                        assert response.usage.output.low >= 0
                        if number == cut:
                            if how == "leave":
                                break
                            response.cancel("enough")
            except Exception as error:
                errors.add(type(error).__name__)
                continue
            if response.cancelled:
                ask_everything(response, (sent.name, cut))
        assert errors <= allowed, sent.name


async def test_what_is_known_of_it() -> None:
    """An emoji that came in two halves is one; what cannot be counted has bounds; what cannot be parsed stays text."""

    async def cut(name: str, end: int | None = None) -> CancellableStreamedResponse:
        sent = next(Sent(name, sent.data[:end], sent.responses) for sent in SENT if sent.name == name)
        stream = await stream_of(sent.sse(), responses=sent.responses)
        async with CancellableStreamedResponse.from_openai(stream) as response:
            async for n in _numbered(response.chunks()):
                if n == len(sent.data) - (end is None):
                    response.cancel()
        return response

    assert (await cut("an emoji in two deltas")).get().text == "a😀bc"
    assert (await cut("half a character")).get().text == "a\N{REPLACEMENT CHARACTER}c"
    (deep,) = (await cut("arguments nested 3,000 deep")).get().parts
    assert isinstance(deep, ToolCallPart)
    assert deep.args == DEEP + "1" + "}" * 3000
    strange = await cut("deltas that are no text", -1)
    assert strange.get().text == "ab"
    assert (strange.usage.output.low, strange.usage.output.high) == (2, None)


async def _numbered(items: AsyncIterator[Any]) -> AsyncIterator[int]:
    number = 0
    async for _ in items:
        number += 1
        yield number
