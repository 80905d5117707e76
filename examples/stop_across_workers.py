"""Stop a stream from another process, through Redis.

    python examples/stop_across_workers.py [redis://...]

One process streams an answer, another one stops it, as two workers of a web application do when the Stop button's
request comes to the other one. Without a URL it starts a redis-server of its own. It needs no key: the provider is a
scripted one on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.synchronize import Event

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import run_stream
from cancelstream.redis import RedisStopRegistry
from cancelstream.testing import Answer, ScriptedServer, Text

OWNER = "ada"


async def stream(redis: str, stop_ids: multiprocessing.Queue[str], word: Event) -> str:
    """The worker that has the stream; returns how it ended."""
    # More than is read before the stop comes, on a machine however busy.
    words = "A river begins as water that has nowhere else to go. " * 200
    with ScriptedServer(Answer(Text.words(words.strip(), gap=0.05))) as provider:
        async with (
            AsyncOpenAI(base_url=provider.base_url, api_key="none") as client,
            RedisStopRegistry.from_url(redis) as registry,
        ):
            agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
            run = run_stream(agent, "Tell me about rivers.")
            with registry.register(None, run.cancel, owner=OWNER) as registration:
                stop_ids.put(registration.stop_id)
                async with run as result:
                    async for text in result.stream_text(delta=True):
                        print(text, end="", flush=True)
                        word.set()
            return f"\nworker A: {result.response.state}, reason {result.cancel_reason!r}"


async def stop(redis: str, stop_id: str, word: Event) -> None:
    """The worker that gets the stop."""
    async with RedisStopRegistry.from_url(redis) as registry:
        wait_for_words(word)
        # Each line is written at once: worker A writes to the same terminal.
        stopped = await registry.stop(stop_id, owner="somebody else")
        print(f"\nworker B: a stranger stops it: {stopped}", flush=True)
        wait_for_words(word)
        stopped = await registry.stop(stop_id, owner=OWNER)
        print(f"\nworker B: its owner stops it: {stopped}", end="", flush=True)


def wait_for_words(word: Event) -> None:
    for _ in range(12):
        word.clear()
        word.wait(30)


def worker_b(redis: str, stop_ids: multiprocessing.Queue[str], word: Event, ready: Event) -> None:
    ready.set()
    asyncio.run(stop(redis, stop_ids.get(timeout=30), word))


@contextlib.contextmanager
def a_redis() -> Iterator[str]:
    """A redis-server for a moment, which keeps nothing."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("There is no redis-server here: install one (apt-get install redis-server), or give a URL.")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            next(line for line in process.stdout if "eady to accept connections" in line)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()


def main() -> None:
    with contextlib.nullcontext(sys.argv[1]) if len(sys.argv) > 1 else a_redis() as redis:
        context = multiprocessing.get_context("spawn")
        stop_ids, word, ready = context.Queue(), context.Event(), context.Event()
        other = context.Process(target=worker_b, args=(redis, stop_ids, word, ready))
        other.start()
        ready.wait(60)
        end = asyncio.run(stream(redis, stop_ids, word))
        other.join(30)
        print(end)


if __name__ == "__main__":
    main()
