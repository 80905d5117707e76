"""Stopping a strands agent: how long until the provider knows and the loop ends, and what is left of the answer.

In one run, the ways taken in turn, so that a slow moment of the machine strikes them alike:

- `stream.cancel()`: ours;
- `agent.cancel()`: strands' own, which looks at its flag when the next chunk comes;
- `task.cancel()`: the task that iterates strands' own `stream_async`.

Three moments: while a chunk comes every 5 ms; on a provider that has fallen silent for some seconds; and before its
headers. The server is in a process of its own; both clocks are the monotonic one of the machine. What strands' own
cancel needs is as long as the silence, so it gets few trials there.

Then the cost of a chunk, ours beside strands' own, over a model in memory.

    python benchmarks/strands_cancel.py [--trials 30] [--slow-trials 3] [--silence 3]
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from strands import Agent
from strands.models.model import Model
from strands.models.openai import OpenAIModel

from cancelstream.strands import stream_async
from cancelstream.testing import Answer, Gap, ScriptedServer, Text

PIECES = 5
CHUNKS = 5_000


def moments(silence: float) -> dict[str, Answer]:
    more = ["word "] * 4000
    return {
        "a chunk every 5 ms": Answer(Text(*more, gap=0.005)),
        "silent": Answer(Text(*["word "] * PIECES, Gap(silence)), Text(*more, gap=0.005)),
        "before the headers": Answer(Text(*more, gap=0.005), before_headers=Gap(silence)),
    }


@dataclass
class Stopped:
    """When it was asked for, when the loop had ended, and what was left."""

    called: float
    ended: float
    text: str
    output: str


# A way: read until the moment, stop, and say what came of it.
Way = Callable[[Agent, Callable[[], Awaitable[None]]], Awaitable[Stopped]]


def serve(answer: Answer, pipe: Connection) -> None:
    """The server's process: its address, then for each request when it came and when its client was gone."""
    with ScriptedServer(answer, repeat=True) as server:
        pipe.send(server.base_url)
        while (asked := pipe.recv()) is not None:
            what, index = asked
            record = server.wait_request(index, 30)
            pipe.send(record.started_at if what == "came" else record.wait_disconnected(30))


def left_of(agent: Agent) -> str:
    """The last answer in the history, if there is one."""
    last = agent.messages[-1]
    return "".join(block.get("text", "") for block in last["content"]) if last["role"] == "assistant" else ""


async def reading(events: Any, reached: asyncio.Event) -> None:
    pieces = 0
    async for event in events:
        pieces += "data" in event
        if pieces == PIECES:
            reached.set()


async def stopped(
    agent: Agent, events: Any, moment: Callable[[], Awaitable[None]], stop: Callable[[Any], Any]
) -> Stopped:
    reached = asyncio.Event()
    task = asyncio.create_task(reading(events, reached))
    waits = [asyncio.create_task(reached.wait()), asyncio.ensure_future(moment())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    called = time.monotonic()
    stop(task)
    with suppress(asyncio.CancelledError):
        await task
    ended = time.monotonic()
    counted = agent.event_loop_metrics.accumulated_usage
    return Stopped(called, ended, left_of(agent), f"{counted['outputTokens']} reported")


async def by_ours(agent: Agent, moment: Callable[[], Awaitable[None]]) -> Stopped:
    stream = stream_async(agent, "go")
    result = await stopped(agent, stream, moment, lambda _: stream.cancel())
    count = stream.usage.output
    result.output = f"{count.low} to {count.high}, {count.source}"
    return result


async def by_agent_cancel(agent: Agent, moment: Callable[[], Awaitable[None]]) -> Stopped:
    return await stopped(agent, agent.stream_async("go"), moment, lambda _: agent.cancel())


async def by_task_cancel(agent: Agent, moment: Callable[[], Awaitable[None]]) -> Stopped:
    return await stopped(agent, agent.stream_async("go"), moment, lambda task: task.cancel())


WAYS: dict[str, Way] = {
    "stream.cancel()": by_ours,
    "agent.cancel()": by_agent_cancel,
    "task.cancel()": by_task_cancel,
}


async def measure(name: str, answer: Answer, trials: int, slow_trials: int) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(answer, theirs), daemon=True)
    process.start()
    base_url = await asyncio.to_thread(ours.recv)
    told: dict[str, list[float]] = {way: [] for way in WAYS}
    ended: dict[str, list[float]] = {way: [] for way in WAYS}
    last: dict[str, Stopped] = {}
    index = 0
    for trial in range(-1, trials):
        for way, stop in WAYS.items():
            if way == "agent.cancel()" and name != "a chunk every 5 ms" and trial >= slow_trials:
                continue
            model = OpenAIModel(client_args={"api_key": "k", "base_url": base_url, "max_retries": 0}, model_id="gpt-4o")
            agent = Agent(model=model, callback_handler=None)
            request = index

            async def moment(request: int = request) -> None:
                if name == "before the headers":
                    ours.send(("came", request))
                    await asyncio.to_thread(ours.recv)
                else:
                    await asyncio.get_running_loop().create_future()

            result = last[way] = await stop(agent, moment)
            ours.send(("gone", index))
            index += 1
            gone = await asyncio.to_thread(ours.recv)
            if trial >= 0:  # the first warms up
                told[way].append((gone - result.called) * 1000)
                ended[way].append((result.ended - result.called) * 1000)
    ours.send(None)
    process.join(10)
    print(f"\n{name}")
    print(f"{'':18} {'n':>4} {'provider told, ms':>24} {'loop ended, ms':>24}  left in history; output tokens")
    for way in WAYS:
        left = last[way]
        text = f"{left.text[:24]!r}{'...' if len(left.text) > 24 else ''}"
        print(f"{way:18} {len(told[way]):4} {spread(told[way]):>24} {spread(ended[way]):>24}  {text}; {left.output}")
    ratio = statistics.median(told["agent.cancel()"]) / max(statistics.median(told["stream.cancel()"]), 0.01)
    print(f"{'':18} strands' own takes {ratio:.1f} times as long to tell the provider")


def spread(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} ({min(times):.2f} to {max(times):.2f})"


class InMemory(Model):
    """A model that costs nothing."""

    def update_config(self, **config: Any) -> None: ...

    def get_config(self) -> Any:
        return {"model_id": "none"}

    def structured_output(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    async def stream(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        yield {"messageStart": {"role": "assistant"}}
        for _ in range(CHUNKS):
            yield {"contentBlockDelta": {"delta": {"text": "word "}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn"}}
        yield {"metadata": {"usage": {"inputTokens": 1, "outputTokens": CHUNKS, "totalTokens": CHUNKS + 1}}}


async def cost_of_a_chunk() -> None:
    times: dict[str, list[float]] = {"strands' own": [], "ours": []}
    for repetition in range(-1, 5):
        for name, each in times.items():
            agent = Agent(model=InMemory(), callback_handler=None)
            began = time.perf_counter()
            async for _ in stream_async(agent, "go") if name == "ours" else agent.stream_async("go"):
                pass
            if repetition >= 0:
                each.append((time.perf_counter() - began) / CHUNKS * 1e6)
    print(f"\nmicroseconds for a chunk of a model in memory ({CHUNKS} chunks, 5 repetitions)")
    for name, each in times.items():
        print(f"{name:18} {spread(each):>29}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--slow-trials", type=int, default=3)
    parser.add_argument("--silence", type=float, default=3.0)
    options = parser.parse_args()
    for name, answer in moments(options.silence).items():
        await measure(name, answer, options.trials, options.slow_trials)
    await cost_of_a_chunk()


if __name__ == "__main__":
    asyncio.run(main())
