"""Several server processes on one Redis: a stop reaches the stream wherever it runs, and a worker that dies takes only
its own streams with it."""

from __future__ import annotations

import asyncio
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")
pytest.importorskip("redis", reason="needs cancelstream[redis]")

from web_processes import ServerProcess
from web_support import RedisServer

from cancelstream.testing import Answer, Gate, ScriptedServer, Silence, Text


async def test_a_stop_on_another_worker(redis_server: RedisServer, tmp_path: Path) -> None:
    """By the owner, not by somebody else; and a worker that is killed harms no stream of the other."""
    gate = Gate()
    hello = Answer(Text("Hello"), Silence())
    with ScriptedServer(hello, Answer(Text("Hel", gate, "lo")), hello) as model, ExitStack() as stack:
        # Both are started before the first is waited for.
        servers = [ServerProcess(model.base_url, tmp_path / name, redis=redis_server.url) for name in ("a", "b")]
        a, b = [stack.enter_context(server) for server in servers]
        async with a.post("/chat") as client:
            assert [(await client.event())[0] for _ in range(2)] == ["start", "message"]
            stop = f"/stop/{client.headers['x-stop-id']}"
            for user in ("her", "me"):
                async with b.post(stop, user=user) as button:
                    assert (button.status, await button.body()) == (202, b'{"status":"accepted"}')
                assert a.saves() == [] or user == "me"
            [(name, told)] = await client.events()
        assert (name, told["state"], told["reason"]) == ("end", "interrupted", "user")
        assert await a.until_saved(1) == [{"text": "Hello", "state": "interrupted", "reason": "user"}]
        await model.records[0].until_disconnected()

        async with b.post("/chat") as survivor:
            await gate.until_reached()
            async with a.post("/chat") as victim:
                assert [(await victim.event())[0] for _ in range(2)] == ["start", "message"]
                await asyncio.to_thread(a.end, signal.SIGKILL)
                # The system closes what the worker had open: the model's server is told even so.
                await model.records[2].until_disconnected()
                async with b.post(f"/stop/{victim.headers['x-stop-id']}") as button:
                    assert button.status == 202
            gate.open()
            assert (await survivor.events())[-1][1]["state"] == "complete"
