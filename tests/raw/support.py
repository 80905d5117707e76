"""Streams of openai's SDK over bytes in memory, and the streams to try: written here, and recorded ones if at hand."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import openai
from openai import AsyncOpenAI

ASK: Any = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
ASK_RESPONSES: Any = {"model": "gpt-4o", "input": "Hi"}

RECORDINGS = os.environ.get("CANCELSTREAM_RECORDINGS") or None
WHY_SKIPPED = "set CANCELSTREAM_RECORDINGS to a file of recorded streams to try those too"


@dataclass(frozen=True)
class Sent:
    """What a server sent: the data of each event, and which API it is of."""

    name: str
    data: tuple[str, ...]
    responses: bool = False

    def sse(self, newline: str = "\n") -> bytes:
        """The bytes as a server would send them."""
        lines: list[str] = []
        for data in self.data:
            if self.responses and data.startswith("{") and isinstance(kind := json.loads(data).get("type"), str):
                lines.append(f"event: {kind}")
            lines += [f"data: {data}", ""]
        return "".join(line + newline for line in lines).encode()

    def with_data(self, *more: str) -> Sent:
        return Sent(self.name, (*self.data, *more), self.responses)


class Body(httpx2.AsyncByteStream):
    """A response's body, read by read; it may end in an error instead of its end, or not end, and say when it waits."""

    def __init__(
        self, reads: Iterable[bytes], failure: Exception | None = None, waits: asyncio.Event | None = None
    ) -> None:
        self._reads = iter(reads)  # a connection is read once, and the SDK looks into it again at `[DONE]`
        self._failure = failure
        self._waits = waits

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for data in self._reads:
            yield data
        if self._waits is not None:
            self._waits.set()
            await asyncio.get_running_loop().create_future()
        if self._failure is not None:
            raise self._failure


# One client for all: there is no connection, and making one takes longer than most streams.
_answers: list[httpx2.Response] = []
CLIENT = AsyncOpenAI(
    base_url="http://provider.example/v1",
    api_key="none",
    max_retries=0,
    http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: _answers.pop())),
)


def client_of(data: bytes | Body) -> AsyncOpenAI:
    """A client that is sent these bytes, once."""
    body = Body([data]) if isinstance(data, bytes) else data
    _answers.append(httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=body))
    return CLIENT


_created: dict[bool, openai.AsyncStream[Any]] = {}


async def stream_of(
    reads: bytes | Iterable[bytes],
    *,
    responses: bool = False,
    failure: Exception | None = None,
    media: str | None = "text/event-stream",
    encoding: str = "identity",
    request: httpx2.Request | None = None,
) -> openai.AsyncStream[Any]:
    """openai's own stream over these bytes, each read by itself; made as `create()` makes it, once it has answered."""
    if responses not in _created:
        client = client_of(b"")
        created: Any = (
            await client.responses.create(**ASK_RESPONSES, stream=True)
            if responses
            else await client.chat.completions.create(**ASK, stream=True)
        )
        await created.close()
        _created[responses] = created
    like = _created[responses]
    headers = {"content-encoding": encoding} | ({} if media is None else {"content-type": media})
    body = Body([reads] if isinstance(reads, bytes) else reads, failure)
    response = httpx2.Response(200, headers=headers, stream=body, request=request or like.response.request)
    return openai.AsyncStream(cast_to=like._cast_to, response=response, client=CLIENT, options=like._options)


def chat(*choices: dict[str, Any], **fields: Any) -> str:
    """A chat completion's chunk."""
    envelope = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_750_000_000, "model": "gpt-4o"}
    return json.dumps({**envelope, "choices": list(choices), **fields}, ensure_ascii=False)


def delta(index: int = 0, *, finish_reason: str | None = None, logprobs: Any = None, **fields: Any) -> dict[str, Any]:
    """A choice in a chunk."""
    return {"index": index, "delta": fields, "finish_reason": finish_reason, "logprobs": logprobs}


def call(index: int, arguments: str, *, id: str | None = None, name: str | None = None) -> dict[str, Any]:  # noqa: A002
    """A tool call in a delta."""
    function: dict[str, Any] = {"arguments": arguments}
    if name is not None:
        function["name"] = name
    return {"index": index, "function": function} | ({} if id is None else {"id": id, "type": "function"})


FIRST = chat(delta(role="assistant", content=""))
LAST = chat(delta(finish_reason="stop"))
USAGE = chat(usage={"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13})


def logprob(token: str) -> dict[str, Any]:
    return {"content": [{"token": token, "logprob": -0.1, "bytes": list(token.encode()), "top_logprobs": []}]}


CHATS = (
    Sent("text", (FIRST, *(chat(delta(content=w), obfuscation="x") for w in ("Hello", " wörld", "!", "\n")), LAST)),
    Sent(
        "a longer text",
        (
            FIRST,
            *(
                chat(delta(content=w), obfuscation="kBz3x7y"[n:])
                for n, w in enumerate(("I", " am", " a", "\n", " river", ",", "<think>"))
            ),
            *(chat(delta(content=w), obfuscation=w) for w in ("so", "on")),
            LAST,
        ),
    ),
    Sent("usage at the end", (FIRST, chat(delta(content="Hi")), chat(delta(content=" you")), LAST, USAGE)),
    Sent(
        "usage in every chunk",
        tuple(
            chat(delta(content=w), usage={"prompt_tokens": 9, "completion_tokens": n, "total_tokens": 9 + n})
            for n, w in enumerate(("a", "b", "c"), 1)
        ),
    ),
    Sent(
        "tool calls",
        (
            FIRST,
            chat(delta(tool_calls=[call(0, "", id="call_1", name="look")])),
            *(chat(delta(tool_calls=[call(0, piece)])) for piece in ('{"ci', 'ty":', ' "Paris"', "}")),
            chat(delta(tool_calls=[call(1, '{"a"', id="call_2", name="add")])),
            chat(delta(tool_calls=[call(1, ": 1"), call(0, "")])),
            chat(delta(tool_calls=[call(1, "}")])),
            chat(delta(finish_reason="tool_calls")),
        ),
    ),
    Sent(
        "text, a tool call, text",
        (
            *(chat(delta(content=w)) for w in ("Let", " me", " look.")),
            chat(delta(tool_calls=[call(0, "{}", id="call_1", name="look")])),
            *(chat(delta(content=w)) for w in ("Done", "?")),
            LAST,
        ),
    ),
    Sent(
        "reasoning",
        (
            *(chat(delta(reasoning_content=w, content=None)) for w in ("Hm", ", let", " me see")),
            *(chat(delta(reasoning=w, content="", reasoning_details=[{"text": w}])) for w in (" more", " of it")),
            *(chat(delta(content=w)) for w in ("It", " is", " 4")),
            LAST,
        ),
    ),
    Sent("thinking tags", tuple(chat(delta(content=w)) for w in ("<think>", "Hm", "m", "</think>", "It", " is", " 4"))),
    Sent("a tag in pieces", tuple(chat(delta(content=w)) for w in ("a", "<th", "ink>", "b", "</think>", "c"))),
    Sent("nothing but a tag in pieces", tuple(chat(delta(content=w)) for w in ("", "x", "<th", "ink>"))),
    Sent(
        "a tool call that begins empty",
        (
            FIRST,
            chat(delta(tool_calls=[call(0, "", id="call_1", name="look")])),
            *(chat(delta(tool_calls=[call(0, piece)])) for piece in ("", '{"ci', 'ty":', "", ' "Paris"', "}")),
        ),
    ),
    Sent("a refusal", (FIRST, *(chat(delta(refusal=w)) for w in ("I", " can't", " do that")), LAST)),
    Sent(
        "log probabilities",
        tuple(chat(delta(content=w, logprobs=logprob(w))) for w in ("one", " two")),
    ),
    Sent(
        "several choices",
        (
            chat(delta(0, role="assistant", content="")),
            chat(delta(1, role="assistant", content="")),
            *(chat(delta(n % 2, content=f"{n} ")) for n in range(8)),
            chat(delta(0, content="both"), delta(1, content="of them")),
            chat(delta(0, finish_reason="stop")),
            chat(delta(1, finish_reason="length")),
            USAGE,
        ),
    ),
    Sent(
        "Azure",
        (
            chat(prompt_filter_results=[{"prompt_index": 0}], id="", model="", created=0),
            FIRST,
            chat(delta(content="Hi")),
            chat({"index": 0, "delta": None, "finish_reason": None, "content_filter_offsets": {"check_offset": 1}}),
            chat(delta(content=" you") | {"content_filter_results": {"hate": {"filtered": False}}}),
            chat(delta() | {"content_filter_results": {}}),
            LAST,
        ),
    ),
    Sent(
        "a list of content parts",
        (
            chat(delta(content=[{"type": "text", "text": "Hi"}])),
            chat(delta(content=" you")),
            chat(delta(content=[{"type": "reference", "reference_ids": [1]}])),
            LAST,
        ),
    ),
    Sent(
        "a new id and model on the way",
        (chat(delta(content="a")), chat(delta(content="b"), id="chatcmpl-2", model="gpt-4o-mini"), LAST),
    ),
    Sent("no index", tuple(chat({"delta": {"content": w}, "finish_reason": None}) for w in ("a", "b", "c"))),
    Sent("another first index", tuple(chat(delta(1, content=w)) for w in ("a", "b", "c"))),
    Sent(
        "an old function call", (chat(delta(function_call={"name": "f", "arguments": "{"})), chat(delta(content="a")))
    ),
    Sent("service tier", (FIRST, chat(delta(content="a"), service_tier="flex"), chat(delta(content="b")), LAST)),
    Sent("nothing at all", (LAST,)),
    Sent("malformed chunks", ('{"choices": null}', '{"choices": {}}', "{}", '{"choices": [null]}', '{"choices": [7]}')),
    Sent(
        "annotations",
        (
            chat(delta(content="See")),
            chat(delta(content=" this", annotations=[])),
            chat(
                delta(
                    annotations=[
                        {
                            "type": "url_citation",
                            "url_citation": {"start_index": 0, "end_index": 8, "title": "T", "url": "http://t.example"},
                        }
                    ]
                )
            ),
            LAST,
        ),
    ),
)


def event(kind: str, number: int, **fields: Any) -> str:
    return json.dumps({"type": kind, "sequence_number": number, **fields}, ensure_ascii=False)


def response(status: str, **fields: Any) -> dict[str, Any]:
    base = {"id": "resp_1", "object": "response", "created_at": 1_750_000_000, "model": "gpt-4o-2024", "output": []}
    return {**base, "status": status, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, **fields}


def item(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, "id": f"{kind}_1", "status": "in_progress", **fields}


def created(**fields: Any) -> tuple[str, str]:
    return (
        event("response.created", 0, response=response("in_progress", **fields)),
        event("response.in_progress", 1, response=response("in_progress", **fields)),
    )


def texts(*words: str, start: int = 4, **fields: Any) -> tuple[str, ...]:
    place = {"item_id": "message_1", "output_index": 0, "content_index": 0, "logprobs": []}
    return tuple(
        event("response.output_text.delta", start + n, delta=word, **{**place, **fields})
        for n, word in enumerate(words)
    )


TOKENS = {
    "input_tokens": 9,
    "output_tokens": 4,
    "total_tokens": 13,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens_details": {"reasoning_tokens": 0},
}
MESSAGE = event("response.output_item.added", 2, output_index=0, item=item("message", role="assistant", content=[]))
COMPLETED = event("response.completed", 99, response=response("completed", usage=TOKENS))

RESPONSES = (
    Sent("text", (*created(), MESSAGE, *texts("Hello", " wörld", "", "!"), COMPLETED), responses=True),
    Sent("an empty beginning", (*created(), *texts("", "Hello", " wörld", "!"), COMPLETED), responses=True),
    Sent("an empty beginning, cut", (*created(), *texts("", "Hello", " wörld", "!")), responses=True),
    Sent("two parts", (*created(), *texts("a", "b"), *texts("c", "d", content_index=1), COMPLETED), responses=True),
    Sent(
        "a function call",
        (
            *created(),
            event(
                "response.output_item.added",
                2,
                output_index=0,
                item=item("function_call", call_id="call_1", name="look", arguments=""),
            ),
            *(
                event(
                    "response.function_call_arguments.delta",
                    3 + n,
                    item_id="function_call_1",
                    output_index=0,
                    delta=piece,
                )
                for n, piece in enumerate(('{"ci', 'ty":', ' "Paris"', "}"))
            ),
            event(
                "response.function_call_arguments.done",
                9,
                item_id="function_call_1",
                output_index=0,
                name="look",
                arguments='{"city": "Paris"}',
            ),
            COMPLETED,
        ),
        responses=True,
    ),
    Sent(
        "reasoning",
        (
            *created(),
            event(
                "response.output_item.added", 2, output_index=0, item={"type": "reasoning", "id": "rs_1", "summary": []}
            ),
            *(
                event(
                    "response.reasoning_summary_text.delta",
                    3 + n,
                    item_id="rs_1",
                    output_index=0,
                    summary_index=0,
                    delta=w,
                )
                for n, w in enumerate(("First", " I", " think"))
            ),
            *(
                event("response.reasoning_text.delta", 9 + n, item_id="rs_2", output_index=1, content_index=0, delta=w)
                for n, w in enumerate(("Raw", " thoughts"))
            ),
            *texts("So", " be", " it"),
            COMPLETED,
        ),
        responses=True,
    ),
    Sent(
        "a refusal",
        (
            *created(),
            *(
                event("response.refusal.delta", 3 + n, item_id="m", output_index=0, content_index=0, delta=w)
                for n, w in enumerate(("I", " can't", " do that"))
            ),
            COMPLETED,
        ),
        responses=True,
    ),
    Sent(
        "cut at a limit",
        (
            *created(),
            *texts("Hello", " you"),
            event(
                "response.incomplete",
                9,
                response=response("incomplete", incomplete_details={"reason": "max_output_tokens"}, usage=TOKENS),
            ),
        ),
        responses=True,
    ),
    Sent("no end", (*created(), *texts("Hello", " you")), responses=True),
    Sent("a delta of null", (*created(), texts("a")[0].replace('"a"', "null"), *texts("b", "c")), responses=True),
    Sent("in the background", (*created(background=True), *texts("Hello", " you")), responses=True),
    Sent(
        "a longer text in the background",
        (*created(background=True), *texts("I", " am", " a", "", " ri", "ver", "\n", "so", " on", obfuscation="kBz3")),
        responses=True,
    ),
    Sent(
        "failed",
        (
            *created(),
            *texts("Hello"),
            event(
                "response.failed",
                9,
                response=response("failed", error={"code": "server_error", "message": "It broke."}),
            ),
        ),
        responses=True,
    ),
    Sent(
        "an error event",
        (*created(), *texts("Hello"), event("error", 9, code="server_error", message="It broke.", param=None)),
        responses=True,
    ),
)

WRITTEN = (*CHATS, *RESPONSES)


def by_name(name: str, *, responses: bool = False) -> Sent:
    """One of the written streams."""
    return next(sent for sent in WRITTEN if sent.name == name and sent.responses == responses)


def recorded() -> tuple[Sent, ...]:
    """Every recorded stream of the two APIs; nothing where no recordings are at hand."""
    if RECORDINGS is None:
        return ()
    found: list[Sent] = []
    with Path(RECORDINGS).open(encoding="utf-8") as lines:
        for line in lines:
            stream = json.loads(line)
            if stream["api"] in ("openai-chat", "openai-responses"):
                name = f"{stream['host']}-{stream['id']}"
                found.append(Sent(name, tuple(stream["sse"]), responses=stream["api"] == "openai-responses"))
    return tuple(found)
