"""An application that is mounted in another one: its streams are stopped in every way there is."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")
pytest.importorskip("uvicorn", reason="needs cancelstream[serve]")

from web_processes import ServerProcess, on_uvicorn_mounted

from cancelstream.testing import Answer, ScriptedServer, Silence, Text

PIECES = [("message", {"delta": "Hel"}), ("message", {"delta": "lo"})]


async def test_a_mounted_application(tmp_path: Path) -> None:
    """Its client leaves, its stop endpoint is called, its server is told to end: the lifespan is that of the outer."""
    with (
        ScriptedServer(Answer(Text("Hel", "lo", Silence())), repeat=True) as model,
        ServerProcess(model.base_url, tmp_path / "saved", server=on_uvicorn_mounted) as server,
    ):
        async with server.post("/inner/chat") as leaving:
            assert [await leaving.event() for _ in range(3)][1:] == PIECES
        await server.until_saved(1)
        async with server.post("/inner/chat") as stopped:
            assert [await stopped.event() for _ in range(3)][1:] == PIECES
            async with server.post(f"/inner/stop/{stopped.headers['x-stop-id']}") as asking:
                assert asking.status == 202
            [(name, told)] = await stopped.events()
        assert (name, told["state"], told["reason"]) == ("end", "interrupted", "user")
        async with server.post("/inner/chat") as ended:
            assert [await ended.event() for _ in range(3)][1:] == PIECES
            await asyncio.to_thread(server.end, signal.SIGTERM)
            [(name, told)] = await ended.events()
        assert (name, told["state"], told["reason"]) == ("end", "interrupted", "server_shutdown")
        for record in model.records:
            await record.until_disconnected()
    assert server.saves() == [
        {"text": "Hello", "state": "interrupted", "reason": reason}
        for reason in ("client_disconnect", "user", "server_shutdown")
    ]
    assert "Traceback" not in server.said()
