"""A server that is told to end: every stream ends with its last event and its save, and the server does not wait."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from web_processes import ServerProcess, on_uvicorn, on_uvicorn_with_workers

from cancelstream import MemoryStopRegistry
from cancelstream.starlette import lifespan
from cancelstream.testing import Answer, ScriptedServer, Silence, Text


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
