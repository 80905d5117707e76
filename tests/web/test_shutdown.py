"""A server that is told to end: every stream ends with its last event and its save, and the server does not wait."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h11
import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

import web_processes
from web_processes import LONG, ServerProcess, on_uvicorn, on_uvicorn_with_workers
from web_support import Client

from cancelstream import MemoryStopRegistry
from cancelstream.starlette import lifespan
from cancelstream.testing import Answer, Gate, ScriptedServer, Silence, Text


@pytest.mark.parametrize(
    ("uvicorn", "number"),
    [
        (on_uvicorn, signal.SIGTERM),
        (on_uvicorn, signal.SIGINT),
        (on_uvicorn_with_workers, signal.SIGTERM),
    ],
)
async def test_uvicorn_is_told_to_end(
    tmp_path: Path, uvicorn: Callable[[socket.socket], None], number: signal.Signals
) -> None:
    """One stream emits, one is silent, one has no headers yet: all end, are saved, and the model's server is told."""
    emitting = Text(*("word " for _ in range(10_000)), gap=0.002)
    with (
        ScriptedServer(Answer(emitting), Answer(Text("Hello"), Silence()), Answer(before_headers=Silence())) as model,
        ServerProcess(model.base_url, tmp_path / "saved", server=uvicorn) as server,
    ):
        async with server.post("/chat") as a:
            await (await model.until_request(0)).until_chunks(2)
            async with server.post("/chat") as b:
                await (await model.until_request(1)).until_chunks(1)
                async with server.post("/chat") as c:
                    await model.until_request(2)
                    assert [(await client.event())[0] for client in (b, b)] == ["start", "message"]
                    await asyncio.to_thread(server.end, number)
                    ends = [(await client.events())[-1] for client in (a, b, c)]
        for record in model.records:
            await record.until_disconnected()
    assert [(name, told["state"], told["reason"]) for name, told in ends] == [
        ("end", "interrupted", "server_shutdown")
    ] * 3
    assert [saved["reason"] for saved in server.saves()] == ["server_shutdown"] * 3
    assert sorted(saved["text"] or "" for saved in server.saves())[:2] == ["", "Hello"]
    assert "Traceback" not in server.said()


@pytest.mark.parametrize(
    "server",
    [
        web_processes.on_uvicorn_for_two_requests,
        web_processes.on_uvicorn_with_workers_for_two_requests,
        web_processes.on_gunicorn_for_two_requests,
    ],
)
async def test_a_process_that_is_recycled_without_a_signal(
    tmp_path: Path, server: Callable[[socket.socket], None]
) -> None:
    """The server is seen to have stopped serving."""
    if "gunicorn" in server.__name__:
        pytest.importorskip("uvicorn_worker", reason="needs gunicorn and uvicorn-worker")
    with (
        ScriptedServer(Answer(Text("Hello"), Silence())) as model,
        ServerProcess(model.base_url, tmp_path / "saved", server=server) as process,
    ):
        async with process.post("/chat") as client:
            assert [(await client.event())[0] for _ in range(2)] == ["start", "message"]
            # Until the worker that streams has had its two, whichever of the workers is asked.
            while process.saves() == []:
                with contextlib.suppress(OSError, ExceptionGroup, h11.RemoteProtocolError):
                    async with Client.post(process.port, "/worker", method="GET", connection="close") as other:
                        await other.body()
            [(name, told)] = await client.events()
        assert (name, told["state"], told["reason"]) == ("end", "interrupted", "server_shutdown")
        await model.records[0].until_disconnected()
    assert [saved["text"] for saved in process.saves()] == ["Hello"]


@pytest.mark.parametrize(
    ("server", "number"),
    [
        (web_processes.on_gunicorn, signal.SIGTERM),
        (web_processes.on_gunicorn, signal.SIGQUIT),
        (web_processes.on_gunicorn_alone, signal.SIGTERM),
        (web_processes.on_granian, signal.SIGTERM),
    ],
)
async def test_other_servers_are_told_to_end(
    tmp_path: Path, server: Callable[[socket.socket], None], number: signal.Signals
) -> None:
    """gunicorn, with uvicorn in its worker and alone, gently and in a hurry; and granian."""
    pytest.importorskip(server.__name__.split("_")[1], reason="this server is not installed")
    if server is web_processes.on_gunicorn:
        pytest.importorskip("uvicorn_worker", reason="needs uvicorn-worker")
    with (
        ScriptedServer(Answer(Text("Hello"), Silence())) as model,
        ServerProcess(model.base_url, tmp_path / "saved", server=server) as process,
    ):
        async with asyncio.timeout(LONG):
            while True:
                with contextlib.suppress(OSError):  # granian binds a socket of its own
                    async with Client.post(process.port, "/worker", method="GET", limit=LONG):
                        break
        async with process.post("/chat") as client:
            assert [(await client.event())[0] for _ in range(2)] == ["start", "message"]
            ending = asyncio.create_task(asyncio.to_thread(process.end, number))
            [(name, told)] = await client.events()
        await ending
        await model.records[0].until_disconnected()
    assert (name, told["state"], told["reason"]) == ("end", "interrupted", "server_shutdown")
    assert [saved["text"] for saved in process.saves()] == ["Hello"]


async def test_answers_may_finish_within_the_grace(tmp_path: Path) -> None:
    """uvicorn is told to end, the answer goes on to its end, and then uvicorn ends."""
    gate = Gate()
    with (
        ScriptedServer(Answer(Text("Hel", gate, "lo"))) as model,
        ServerProcess(model.base_url, tmp_path / "saved", GRACE="60") as process,
    ):
        async with process.post("/chat") as client:
            await gate.until_reached()
            ending = asyncio.create_task(asyncio.to_thread(process.end, signal.SIGTERM))
            with contextlib.suppress(ConnectionRefusedError):
                while True:  # until it has stopped to serve
                    (await asyncio.open_connection("127.0.0.1", process.port))[1].close()
                    await asyncio.sleep(0.01)
            gate.open()
            assert (await client.events())[-1][1]["state"] == "complete"
        await ending
    assert [saved["text"] for saved in process.saves()] == ["Hello"]


@pytest.mark.parametrize("how", ["the grace is over", "a second signal", "the application ends first"])
async def test_the_grace_ends(how: str) -> None:
    """Then streams are stopped as without one; a second signal does not wait for it."""
    registry, stopped = MemoryStopRegistry(), asyncio.Event()
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        async with lifespan(registry, grace=0.2 if how == "the grace is over" else 60)(None):
            registry.register("a", stopped.set, owner="me")
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(0)
            assert not stopped.is_set()
            if how == "a second signal":
                signal.raise_signal(signal.SIGTERM)
            if how != "the application ends first":
                await asyncio.wait_for(stopped.wait(), 10)
        assert stopped.is_set() is (how != "the application ends first")
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_grace_is_a_time() -> None:
    with pytest.raises(ValueError, match="grace"):
        lifespan(MemoryStopRegistry(), grace=-1)


async def test_the_signals_are_the_servers_again_afterwards() -> None:
    """Ours stand before the server's while the application lives, and in nobody's place."""
    registry, calls = MemoryStopRegistry(), []

    def servers(number: int, frame: Any) -> None:
        calls.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        signal.signal(signal.SIGTERM, servers)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stopped = asyncio.Event()
        async with lifespan(registry)(None):
            registry.register("a", stopped.set, owner="me")
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
            signal.raise_signal(signal.SIGTERM)
            await asyncio.wait_for(stopped.wait(), 5)
        assert calls == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is servers
        async with lifespan(registry)(None):
            signal.signal(signal.SIGTERM, servers)  # somebody else's, which stays
        assert signal.getsignal(signal.SIGTERM) is servers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_in_a_thread_that_is_not_the_main_one_there_are_no_signals() -> None:
    before = signal.getsignal(signal.SIGTERM)
    errors: list[BaseException] = []

    async def live() -> None:
        async with lifespan(MemoryStopRegistry())(None):
            assert signal.getsignal(signal.SIGTERM) is before

    def run() -> None:
        try:
            asyncio.run(live())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert errors == []
