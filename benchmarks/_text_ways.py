"""The ways to read a text stream, one of them in this process: `text_stream.py` starts one for each.

    python benchmarks/_text_ways.py WAY --chunks 5000 --in-a-read 1 --rounds 5 [--responses]

Prints a line of JSON: the versions that took part, and the processor time of each round in us a chunk, of the way and
of the raw stream of the openai that is installed beside it, in turn; of the way alone where several numbers of chunks
are given. It needs cancelstream for its own ways only, so it runs in the environment of any peer. The source is in
memory: every read comes after one wait, as from a socket, and its bytes are made before anything is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.metadata
import itertools
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai

if int(openai.__version__.partition(".")[0]) >= 3:
    import httpx2 as http
else:
    import httpx as http

URL = "http://localhost/v1"
MODEL = "gpt-4o"
MESSAGES: Any = [{"role": "user", "content": "Tell me about rivers."}]


def chat(chunks: int) -> list[bytes]:
    """The events of a chat completion as OpenAI sends them."""

    def event(*choices: dict[str, Any], **more: Any) -> bytes:
        envelope = {
            "id": "chatcmpl-C1a2b3c4d5e6f7g8h9",
            "object": "chat.completion.chunk",
            "created": 1750000000,
            "model": "gpt-4o-2024-08-06",
            "service_tier": "default",
            "system_fingerprint": "fp_07871e2ad8",
            "choices": choices,
            "usage": None,
        }
        return b"data: " + json.dumps(envelope | more, separators=(",", ":")).encode() + b"\n\n"

    def choice(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}

    events = [event(choice({"role": "assistant", "content": "", "refusal": None}))]
    events += [event(choice({"content": f" word{number % 100}"}), obfuscation="kBz3") for number in range(chunks)]
    usage = {"prompt_tokens": 12, "completion_tokens": chunks, "total_tokens": chunks + 12}
    return [*events, event(choice({}, "stop")), event(usage=usage), b"data: [DONE]\n\n"]


def responses(chunks: int) -> list[bytes]:
    """The events of a response as OpenAI's Responses API sends them."""
    numbers = itertools.count()

    def event(kind: str, **fields: Any) -> bytes:
        data = {"type": kind, "sequence_number": next(numbers), **fields}
        return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()

    def response(status: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        base = {"id": "resp_68af40", "object": "response", "created_at": 1750000000, "model": "gpt-4o-2024-08-06"}
        asked = {"output": [], "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
        return {**base, **asked, "status": status, "usage": usage}

    item = {"type": "message", "id": "msg_68af40", "status": "in_progress", "role": "assistant", "content": []}
    place = {"item_id": "msg_68af4030baa48193b0b43b4c2a176a1a", "output_index": 0, "content_index": 0}
    events = [event("response.created", response=response("in_progress", None))]
    events.append(event("response.output_item.added", output_index=0, item=item))
    for number in range(chunks):
        text = f" word{number % 100}"
        events.append(event("response.output_text.delta", **place, delta=text, logprobs=[], obfuscation="kBz3"))
    usage = {"input_tokens": 12, "output_tokens": chunks, "total_tokens": chunks + 12}
    details = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
    return [*events, event("response.completed", response=response("completed", {**usage, **details}))]


class Body(http.AsyncByteStream):
    def __init__(self, reads: list[bytes]) -> None:
        self._left = iter(reads)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        for read in self._left:
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            await future
            yield read


class Source:
    """A provider in memory, and the clients that lead to it."""

    def __init__(self, events: list[bytes], chunks: int, in_a_read: int) -> None:
        self.chunks = chunks
        self._is_responses = events[0].startswith(b"event: ")
        reads = [b"".join(events[start : start + in_a_read]) for start in range(0, len(events), in_a_read)]

        def answer(_: Any) -> Any:
            return http.Response(200, headers={"content-type": "text/event-stream"}, stream=Body(reads))

        self.http = http.AsyncClient(transport=http.MockTransport(answer))
        self.openai = openai.AsyncOpenAI(api_key="none", base_url=URL, http_client=self.http, max_retries=0)

    async def stream(self) -> Any:
        if self._is_responses:
            return await self.openai.responses.create(model=MODEL, input="Tell me about rivers.", stream=True)
        return await self.openai.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True)


async def texts(pieces: AsyncIterator[Any]) -> str:
    """Read them all; the last one."""
    last = ""
    async for piece in pieces:
        last = piece
    return last


# --- ours, and what is below ----------------------------------------------------------------------------------------


async def only_bytes(source: Source) -> None:
    async with source.http.stream("POST", f"{URL}/chat/completions") as response:
        async for _ in response.aiter_raw():
            pass


async def raw(source: Source) -> None:
    async for _ in await source.stream():
        pass


async def delta(source: Source) -> None:
    from cancelstream import CancellableStreamedResponse

    async with CancellableStreamedResponse.from_openai(await source.stream()) as response:
        assert (await texts(response.stream_text(delta=True))).startswith(" word")
        assert response.usage.output_tokens == source.chunks


async def whole(source: Source) -> None:
    from cancelstream import CancellableStreamedResponse

    async with CancellableStreamedResponse.from_openai(await source.stream()) as response:
        assert (await texts(response.stream_text())).count("word") == source.chunks


async def objects(source: Source) -> None:
    from cancelstream import CancellableStreamedResponse

    async with CancellableStreamedResponse.from_openai(await source.stream()) as response:
        async for _ in response.chunks():
            pass
        assert response.usage.output_tokens == source.chunks


# --- peers ----------------------------------------------------------------------------------------------------------


async def pydantic_ai(source: Source) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    agent = Agent(OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=source.openai)))
    async with agent.run_stream("Tell me about rivers.") as result:
        await texts(result.stream_text(delta=True, debounce_by=None))


async def openai_agents(source: Source) -> None:
    from agents import Agent, OpenAIChatCompletionsModel, Runner, set_tracing_disabled

    set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel(model=MODEL, openai_client=source.openai)
    result = Runner.run_streamed(Agent(name="a", model=model), "Tell me about rivers.")
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            _ = event.data.delta


async def langchain(source: Source) -> None:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(
        model=MODEL, api_key="none", base_url=URL, http_async_client=source.http, max_retries=0, stream_usage=True
    )
    async for chunk in model.astream("Tell me about rivers."):
        _ = chunk.content


async def llama_index(source: Source) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai import OpenAI

    model = OpenAI(model=MODEL, api_key="none", api_base=URL, async_http_client=source.http, max_retries=0)
    async for chunk in await model.astream_chat([ChatMessage(role="user", content="Tell me about rivers.")]):
        _ = chunk.delta


async def litellm(source: Source) -> None:
    import litellm

    stream: Any = await litellm.acompletion(
        model=f"openai/{MODEL}", messages=MESSAGES, stream=True, client=source.openai, max_retries=0
    )
    async for chunk in stream:
        _ = chunk.choices[0].delta.content if chunk.choices else None


async def strands(source: Source) -> None:
    from strands import Agent
    from strands.models.openai import OpenAIModel

    arguments = {"api_key": "none", "base_url": URL, "http_client": source.http}
    agent = Agent(model=OpenAIModel(client_args=arguments, model_id=MODEL), callback_handler=None)
    async for event in agent.stream_async("Tell me about rivers."):
        _ = event.get("data")


WAYS: dict[str, Callable[[Source], Awaitable[None]]] = {
    "bytes": only_bytes,
    "raw": raw,
    "delta": delta,
    "whole": whole,
    "objects": objects,
    "pydantic-ai": pydantic_ai,
    "openai-agents": openai_agents,
    "langchain-openai": langchain,
    "llama-index-llms-openai": llama_index,
    "litellm": litellm,
    "strands-agents": strands,
}

DISTRIBUTIONS = {"pydantic-ai": "pydantic-ai-slim"}


async def once(way: Callable[[Source], Awaitable[None]], events: list[bytes], chunks: int, in_a_read: int) -> float:
    """Us a chunk. The source is new each time: a peer may close its client."""
    source = Source(events, chunks, in_a_read)
    gc.collect()
    gc.disable()
    started = time.process_time_ns()
    await way(source)
    took = time.process_time_ns() - started
    gc.enable()
    await source.http.aclose()
    return took / chunks / 1000


async def measure(
    names: list[str], sizes: list[int], in_a_read: int, rounds: int, api: Callable[[int], list[bytes]]
) -> dict[str, list[float]]:
    """Everything in turn, so that a slow moment strikes all alike; one round is thrown away."""
    events = {size: api(size) for size in sizes}
    found: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name in names:
            for size in sizes:
                took = await once(WAYS[name], events[size], size, in_a_read)
                if turn:
                    found.setdefault(f"{name} {size}", []).append(took)
    return found


def versions(name: str) -> str:
    names = [DISTRIBUTIONS.get(name, name)] if name in list(WAYS)[5:] else []
    return ", ".join(f"{each} {importlib.metadata.version(each)}" for each in [*names, "openai"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=list(WAYS))
    parser.add_argument("--chunks", type=int, nargs="+", default=[5_000])
    parser.add_argument("--in-a-read", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--responses", action="store_true", help="the Responses API, and not chat completions")
    arguments = parser.parse_args()
    os.environ.update(OPENAI_API_KEY="none", LITELLM_LOCAL_MODEL_COST_MAP="True")
    way: str = arguments.way
    beside = [] if len(arguments.chunks) > 1 else ["raw"]
    names = list(dict.fromkeys([way, *beside]))
    api = responses if arguments.responses else chat
    times = asyncio.run(measure(names, arguments.chunks, arguments.in_a_read, arguments.rounds, api))
    print(json.dumps({"versions": versions(way), "times": times}))
