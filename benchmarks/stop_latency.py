"""How long a Stop button takes: from the client's leaving, or its stop, until it has effect.

Everything is real and in processes of its own: a scripted model server, two uvicorn workers, a redis-server, and this
one as the client. All clocks are the machine's monotonic one. What is compared is taken in turn within one run, so
that a slow moment strikes both alike.

1. The client leaves -> the model's server sees it. Against a plain Starlette `StreamingResponse` whose generator reads
   the raw openai stream, on the same worker: while the model writes, while it is silent, before it has sent headers,
   and with a client that does not read. Counted besides: whether what had arrived was saved.
2. Stop at worker B -> the last event at the client of worker A. Against a bare XADD -> XREAD on the same Redis plus a
   stop at the same worker; alone, and with other live streams on worker A.
3. All those other streams stopped at once at worker B.

    python benchmarks/stop_latency.py [--trials 40] [--streams 1000]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Any

import uvicorn
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cancelstream import open_stream, run_stream
from cancelstream.redis import RedisStopRegistry
from cancelstream.starlette import CancellableEventResponse, lifespan, stop_endpoint
from cancelstream.testing import Answer, ScriptedServer, Silence, Text

MOMENTS = {
    "emitting": Answer(Text(*["word "] * 4000, gap=0.005)),
    "silent": Answer(Text(*["word "] * 5), Silence()),
    "no headers": Answer(before_headers=Silence()),
    "client stalls": Answer(Text(*["word " * 800] * 400), Silence()),
}
LIVE = Answer(Text(*["word "] * 1000, gap=5.0))
"""What the other streams do: a piece every five seconds each."""

WAYS = {"plain": "/plain", "open_stream": "/raw", "run_stream": "/run"}
MESSAGES: Any = [{"role": "user", "content": "go"}]


# --- the processes -----------------------------------------------------------------------------------------------


def serve_model(moment: str, pipe: Connection) -> None:
    """Tells its address, and for each request that it is asked about when its client was gone."""
    answer = LIVE if moment == "live" else MOMENTS[moment]
    with ScriptedServer(answer, repeat=True) as server:
        pipe.send(server.base_url)
        while (index := pipe.recv()) is not None:
            record = server.wait_request(index, 20)
            pipe.send("asked")
            if pipe.recv() == "gone?":
                pipe.send(record.wait_disconnected(20))


def serve_worker(listening: socket.socket, redis: str) -> None:  # noqa: C901 - five routes that share a little
    registry = RedisStopRegistry.from_url(redis, stop_timeout=10)
    clients: dict[str, AsyncOpenAI] = {}
    saved = 0

    def client(request: Request) -> AsyncOpenAI:
        url = request.headers["model"]
        if url not in clients:
            clients[url] = AsyncOpenAI(base_url=url, api_key="k", max_retries=0, timeout=120)
        return clients[url]

    def save(_: object) -> None:
        nonlocal saved
        saved += 1

    async def plain(request: Request) -> Response:
        async def read() -> AsyncIterator[str]:
            stream = await client(request).chat.completions.create(model="gpt-4o", messages=MESSAGES, stream=True)
            async for chunk in stream:
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    yield f"data: {json.dumps({'delta': text})}\n\n"

        return StreamingResponse(read(), media_type="text/event-stream")

    def ours(factory: Any) -> Response:
        return CancellableEventResponse(factory, registry=registry, owner="me", on_end=save)

    async def raw(request: Request) -> Response:
        create = client(request).chat.completions.create
        return ours(lambda: open_stream(create, model="gpt-4o", messages=MESSAGES))

    async def run(request: Request) -> Response:
        agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client(request))))
        return ours(lambda: run_stream(agent, "go"))

    async def count(_: Request) -> Response:
        return JSONResponse(saved)

    app = Starlette(
        routes=[
            Route("/plain", plain, methods=["POST"]),
            Route("/raw", raw, methods=["POST"]),
            Route("/run", run, methods=["POST"]),
            Route("/saved", count, methods=["POST"]),
            Route("/stop/{stop_id}", stop_endpoint(registry, owner=lambda _: "me"), methods=["POST"]),
        ],
        lifespan=lifespan(registry),
    )
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run([listening])


class Model:
    """The model's process, and which of its requests is next."""

    def __init__(self, moment: str) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self._process = multiprocessing.get_context("spawn").Process(
            target=serve_model, args=(moment, theirs), daemon=True
        )
        self._process.start()
        self.url = self._pipe.recv()
        self._next = 0

    async def until_asked(self) -> None:
        self._pipe.send(self._next)
        self._next += 1
        await asyncio.to_thread(self._pipe.recv)

    async def until_gone(self) -> float:
        self._pipe.send("gone?")
        return await asyncio.to_thread(self._pipe.recv)

    def go_on(self) -> None:
        self._pipe.send("never mind")

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(20)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def redis_server():
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        program = os.environ.get("CANCELSTREAM_REDIS_SERVER") or shutil.which("redis-server") or "redis-server"
        where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"]
        process = subprocess.Popen([program, *where], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        next(line for line in process.stdout if "eady to accept connections" in line)
        try:
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def workers(redis: str):
    context = multiprocessing.get_context("spawn")
    with socket.socket() as a, socket.socket() as b:
        for listening in (a, b):
            # The connections have it from these: a client that does not read is felt soon, not after some megabytes.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
            listening.bind(("127.0.0.1", 0))
            listening.listen(4096)
        ports = [listening.getsockname()[1] for listening in (a, b)]
        processes = [context.Process(target=serve_worker, args=(listening, redis), daemon=True) for listening in (a, b)]
        for process in processes:
            process.start()
    try:
        yield ports
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(20)


# --- the client --------------------------------------------------------------------------------------------------


class Client:
    """A request that is answered with events; reads no more than it must."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.stop_id = ""

    @classmethod
    async def ask(cls, port: int, path: str, model: str = "", *, window: int | None = None) -> Client:
        raw = socket.socket()
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if window is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
        client = cls(*await asyncio.open_connection(sock=raw, limit=window or 65536))
        client.writer.write(
            f"POST {path} HTTP/1.1\r\nhost: bench\r\nmodel: {model}\r\ncontent-length: 0\r\n\r\n".encode()
        )
        return client

    async def head(self) -> None:
        head = await self.reader.readuntil(b"\r\n\r\n")
        for line in head.decode().split("\r\n"):
            name, _, value = line.partition(": ")
            if name == "x-stop-id":
                self.stop_id = value

    async def until(self, text: bytes) -> bytes:
        async with asyncio.timeout(60):
            seen = b""
            while text not in seen:
                got = await self.reader.read(65536)
                if not got:
                    raise EOFError(seen[-200:])
                seen = seen[-4096:] + got
            return seen

    async def until_end(self) -> bytes:
        """The data of the last event."""
        end = (await self.until(b"event: end")).partition(b"event: end")[2]
        return end if b"\n\n" in end else end + await self.until(b"\n\n")

    def close(self) -> None:
        self.writer.close()


async def post(port: int, path: str) -> bytes:
    client = await Client.ask(port, path)
    try:
        await client.head()
        return await client.reader.read(4096)
    finally:
        client.close()


async def saved(port: int) -> int:
    return int((await post(port, "/saved")).split(b"\r\n")[-1] or b"0")


# --- what is measured --------------------------------------------------------------------------------------------


async def leaving(port: int, trials: int) -> bool:
    """The client leaves -> the model's server sees it; whether all of it is within bounds."""
    print("The client leaves -> the model's server sees it (ms)\n")
    print(f"{'':14}{'':14}{'p50':>8}{'p95':>8}{'max':>8}{'of plain':>10}{'saved':>10}")
    reached = True
    for moment in MOMENTS:
        model = Model(moment)
        times: dict[str, list[float]] = {way: [] for way in WAYS}
        before = await saved(port)
        count = trials if moment != "client stalls" else max(8, trials // 4)
        for trial in range(-2, count):
            for way, path in WAYS.items():
                client = await Client.ask(port, path, model.url, window=4096 if moment == "client stalls" else None)
                await model.until_asked()
                if moment == "client stalls":
                    await asyncio.sleep(1.0)  # until everything between is full
                elif moment != "no headers":
                    await client.until(b"word ")
                    await asyncio.sleep(0.02)
                left = time.monotonic()
                client.close()
                gone = await model.until_gone()
                if trial >= 0:
                    times[way].append((gone - left) * 1000)
        expected = 2 * (count + 2)
        for _ in range(50):
            if (kept := await saved(port) - before) == expected:
                break
            await asyncio.sleep(0.1)
        for way, took in times.items():
            ratio = statistics.median(took) / statistics.median(times["plain"])
            told = "" if way == "plain" else f"{ratio:9.2f}x{f'{kept}/{expected}':>10}"
            print(f"{moment if way == 'plain' else '':14}{way:14}{spread(took)}{told}")
            reached &= ratio <= 3 and kept == expected
        model.close()
    print(f"\nat most 3 times of plain, and everything saved: {'reached' if reached else 'NOT REACHED'}\n")
    return reached


async def bare_redis(url: str, trials: int) -> list[float]:
    """XADD on one connection -> XREAD on another."""
    took: list[float] = []
    async with Redis.from_url(url, protocol=2) as writer, Redis.from_url(url, protocol=2) as reader:
        await writer.delete("bench")
        last = b"0-0"
        for trial in range(-5, trials):
            reading = asyncio.create_task(reader.xread({"bench": last}, block=5000))
            await asyncio.sleep(0.005)
            began = time.monotonic()
            await writer.xadd("bench", {"k": b"x" * 16, "o": b"x" * 8, "r": b"user"})
            [[_, [(last, _)]]] = await reading
            if trial >= 0:
                took.append((time.monotonic() - began) * 1000)
    return took


async def one_stop(a: int, at: int, model: Model) -> float:
    client = await Client.ask(a, "/run", model.url)
    await client.head()
    await model.until_asked()
    model.go_on()
    await client.until(b"word ")
    began = time.monotonic()
    stopping = asyncio.create_task(post(at, f"/stop/{client.stop_id}"))
    end = await client.until(b"event: end")
    took = (time.monotonic() - began) * 1000
    assert b"202" not in end, "the end of a stream, not of the stop"
    await stopping
    client.close()
    return took


async def stopping(ports: list[int], redis: str, trials: int, streams: int) -> bool:
    """Stop at one worker -> the end at the client of the other, alone and among many; then all at once."""
    a, b = ports
    print("Stop -> the last event at the client (ms)\n")
    print(f"{'':44}{'p50':>8}{'p95':>8}{'max':>8}{'of base':>10}")
    model, live = Model("silent"), Model("live")
    reached = True
    others: list[Client] = []
    for number in (0, streams):
        while len(others) < number:
            batch = await asyncio.gather(*(Client.ask(a, "/run", live.url) for _ in range(50)))
            for client in batch:
                await client.head()
            others += batch
        same: list[float] = []
        other: list[float] = []
        for trial in range(-3, trials):
            took = [await one_stop(a, at, model) for at in (a, b)]
            if trial >= 0:
                same.append(took[0])
                other.append(took[1])
        bare = await bare_redis(redis, trials)
        base = statistics.median(bare) + statistics.median(same)
        ratio = statistics.median(other) / base
        with_others = f", {number} other live streams" if number else ""
        print(f"{'bare XADD -> XREAD':44}{spread(bare)}")
        print(f"{'same worker' + with_others:44}{spread(same)}")
        print(f"{'other worker' + with_others:44}{spread(other)}{ratio:9.2f}x")
        reached &= ratio <= 3
    print(f"\nat most 3 times of the two above it together: {'reached' if reached else 'NOT REACHED'}\n")

    began = time.monotonic()
    ends = asyncio.gather(*(client.until_end() for client in others))
    answers = await asyncio.gather(*(post(b, f"/stop/{client.stop_id}") for client in others))
    accepted, took = sum(b"accepted" in answer for answer in answers), time.monotonic() - began
    stopped = sum(b'"reason":"user"' in end for end in await ends)
    ended = time.monotonic() - began
    print(f"{streams} streams stopped at once at the other worker: {accepted} accepted after {took:.2f} s, ", end="")
    print(f"{stopped} of {streams} ended after {ended:.2f} s")
    for client in others:
        client.close()
    model.close()
    live.close()
    return reached and stopped == streams


def spread(took: list[float]) -> str:
    took = sorted(took)
    return f"{statistics.median(took):8.2f}{took[int(len(took) * 0.95) - 1]:8.2f}{took[-1]:8.2f}"


async def main() -> bool:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--streams", type=int, default=1000)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))  # inherited by the workers
    with redis_server() as redis, workers(redis) as ports:
        left = await leaving(ports[0], given.trials)
        stopped = await stopping(ports, redis, given.trials, given.streams)
    return left and stopped


if __name__ == "__main__":
    raise SystemExit(0 if asyncio.run(main()) else 1)
