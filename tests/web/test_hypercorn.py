"""Another server than uvicorn, which claims another ASGI version and tells a disconnect in its own way."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from web_processes import ServerProcess, on_hypercorn

from cancelstream.testing import Answer, ScriptedServer, Silence, Text


async def test_under_hypercorn(tmp_path: Path) -> None:
    """Stop, leave, and a handler that does not stream; and when it is told to end, which is heard of where the
    application is in its main process, every stream gets its end and is saved."""
    hello = Answer(Text("Hello"), Silence())
    with (
        ScriptedServer(hello, hello, Answer(before_headers=Silence()), hello) as model,
        ServerProcess(model.base_url, tmp_path / "saved", server=on_hypercorn) as server,
    ):
        async with server.post("/chat") as client:
            assert [(await client.event())[0] for _ in range(2)] == ["start", "message"]
            async with server.post(f"/stop/{client.headers['x-stop-id']}") as button:
                assert button.status == 202
            assert (await client.events())[-1][1]["reason"] == "user"
        await model.records[0].until_disconnected()

        async with server.post("/chat") as client:
            assert [(await client.event())[0] for _ in range(2)] == ["start", "message"]
        await model.records[1].until_disconnected()
        await server.until_saved(2)

        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST /answer HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n")
        record = await model.until_request(2)
        writer.close()
        await writer.wait_closed()
        await record.until_disconnected()

        async with server.post("/chat") as client:
            assert [(await client.event())[0] for _ in range(2)] == ["start", "message"]
            ending = asyncio.create_task(asyncio.to_thread(server.end, signal.SIGTERM))
            assert (await client.events())[-1][1]["reason"] == "server_shutdown"
        await ending
        await model.records[3].until_disconnected()
        saves = server.saves()
    assert [(saved["text"], saved["state"]) for saved in saves] == [("Hello", "interrupted")] * 3
    assert [saved["reason"] for saved in saves] == ["user", "client_disconnect", "server_shutdown"]
