"""How long after `CancellableStream.cancel()` a blocked reader is free and the server sees the client go.

In one run, the ways taken in turn, so that a slow moment of the machine strikes them alike:

- `cancel()`: `cancelstream.sync.CancellableStream(stream).cancel()`, from another thread than the reader's;
- `socket.shutdown`: the bare socket of a raw openai stream, shut down from that thread: the least that can be done.

The server is in a process of its own and has fallen silent; both clocks are the monotonic one of the machine. After
each trial the next request has to be answered whole, on a client with room for one connection.

    python benchmarks/sync_cancel.py [--trials 200]

The exit status is 1 if a goal was missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

import httpx2
import openai
from openai import OpenAI

from cancelstream.sync import CancellableStream
from cancelstream.testing import Answer, ScriptedServer, Silence, Text

PIECES = 5
SILENT = Answer(Text(*["word "] * PIECES, Silence()))
WHOLE = Answer(Text(*["word "] * PIECES))
BLOCKED = 0.005
"""Seconds in which a reader that has the last piece comes to wait for the next one."""
GOAL = 3.0
"""At most so many times what `socket.shutdown` takes, by the median."""


def serve(pipe: Connection) -> None:
    """The server's process: tells its address, and for each request when its client was gone."""
    with ScriptedServer(SILENT, WHOLE, repeat=True) as server:
        pipe.send(server.base_url)
        while (index := pipe.recv()) is not None:
            pipe.send(server.wait_request(index, 10).wait_disconnected(10))


def ask(client: OpenAI) -> Any:
    return client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "go"}], stream=True)


def stop_reading(texts: Iterator[str], stop: Callable[[], object]) -> tuple[float, float]:
    """Read in a thread, stop it from this one, and return when it was asked to and when it had ended."""
    waiting, ended = threading.Event(), list[float]()

    def read() -> None:
        for number, _ in enumerate(texts, 1):
            if number == PIECES:
                waiting.set()
        ended.append(time.monotonic())

    reader = threading.Thread(target=read)
    reader.start()
    waiting.wait()
    time.sleep(BLOCKED)
    called = time.monotonic()
    stop()
    reader.join()
    return called, ended[0]


def by_cancel(client: OpenAI) -> tuple[float, float]:
    with CancellableStream(ask(client)) as stream:
        return stop_reading(stream.stream_text(delta=True), stream.cancel)


def by_shutdown(client: OpenAI) -> tuple[float, float]:
    def texts() -> Iterator[str]:
        try:
            for chunk in stream:
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    yield text
        except openai.APIConnectionError:
            return

    with ask(client) as stream:
        sock = stream.response.extensions["network_stream"].get_extra_info("socket")
        return stop_reading(texts(), lambda: sock.shutdown(socket.SHUT_RDWR))


WAYS: dict[str, Callable[[OpenAI], tuple[float, float]]] = {"cancel()": by_cancel, "socket.shutdown": by_shutdown}


def measure(trials: int) -> tuple[dict[str, list[tuple[float, float]]], dict[str, int]]:
    """For each way, how long the reader and the server took, in ms, and how many next requests were answered."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    http = httpx2.Client(limits=httpx2.Limits(max_connections=1), timeout=httpx2.Timeout(10, pool=1))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    answered = dict.fromkeys(WAYS, 0)
    with OpenAI(base_url=ours.recv(), api_key="k", max_retries=0, http_client=http) as client:
        request = 0
        for trial in range(-5, trials):
            for name, way in WAYS.items():
                called, ended = way(client)
                ours.send(request)
                request += 2
                gone = ours.recv()
                whole = sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in ask(client)) == PIECES
                if trial >= 0:  # the first ones warm up
                    times[name].append(((ended - called) * 1000, (gone - called) * 1000))
                    answered[name] += whole
    ours.send(None)
    process.join(10)
    return times, answered


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--trials", type=int, default=200)
    trials = parser.parse_args().trials
    times, answered = measure(trials)
    missed = [f"next requests after {name}" for name, number in answered.items() if number < trials]
    for number, until in enumerate(("the reader's end", "the server's notice")):
        print(f"\n{trials} trials: call to {until}, ms")
        print(f"{'':<18}{'p50':>8}{'p95':>8}{'max':>8}{'p50 / socket.shutdown':>24}")
        base = statistics.median(each[number] for each in times["socket.shutdown"])
        for name, pairs in times.items():
            values = [each[number] for each in pairs]
            p50, p95 = statistics.median(values), statistics.quantiles(values, n=20)[-1]
            print(f"{name:<18}{p50:>8.2f}{p95:>8.2f}{max(values):>8.2f}{p50 / base:>24.2f}")
            if p50 > GOAL * base:
                missed.append(f"{name} to {until}: {p50 / base:.2f} times, at most {GOAL}")
    print()
    for name, number in answered.items():
        print(f"next requests after {name}: {number} of {trials} answered whole")
    for miss in missed:
        print(f"MISSED: {miss}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
