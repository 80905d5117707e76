"""The server's life, its waits and its gates."""

import asyncio
import contextlib
import gc
import re
import ssl
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from raw_client import CHAT, connected, read_to_end, read_until, request, stream

from cancelstream.testing import Answer, Cut, Gate, Record, ScriptedServer, Silence, Text
from cancelstream.testing import _connection as connection_module
from cancelstream.testing import _serving as serving_module


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ScriptedServer"]


# --- life ---------------------------------------------------------------------------------------------------------


def test_not_running() -> None:
    """Before and after its life a server has no address, and says how to start it."""
    server = ScriptedServer(Answer(Text("Hi")))
    with pytest.raises(RuntimeError, match=re.escape("use `with ScriptedServer(...) as server:`")):
        _ = server.base_url
    server.close()  # nothing to close
    with server:
        assert server.base_url == f"{server.url}/v1"
        assert len(threads()) == 1
    assert threads() == []
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url
    with pytest.raises(RuntimeError, match="runs once"):
        server.start()
    server.close()


def test_two_servers() -> None:
    """Each has its own port and thread."""
    with ScriptedServer(Answer(Text("one"))) as one, ScriptedServer(Answer(Text("two"))) as two:
        assert one.url != two.url
        with connected(one) as a, connected(two) as b:
            a.sendall(stream())
            b.sendall(stream())
            assert b"one" in read_until(a, b"0\r\n\r\n")
            assert b"two" in read_until(b, b"0\r\n\r\n")


def test_closing_in_the_middle_of_everything() -> None:
    """Clients connected, sending, waiting, not reading, scripts at a gate: all ends, nothing leaks."""
    gate = Gate()
    turns = (
        Answer(Text("Hi"), Silence()),
        Answer(Text("Hi", gate)),
        Answer(Text(*["x" * 2**20] * 64)),
        Answer(before_headers=Silence()),
    )
    server = ScriptedServer(*turns)
    with server, connected(server) as idle, connected(server) as half:
        half.sendall(stream()[:20])
        with connected(server) as a, connected(server) as b, connected(server) as c, connected(server) as d:
            for index, sock in enumerate((a, b, c, d)):
                sock.sendall(stream())
                server.wait_request(index)
            gate.wait_reached()
            server.records[2].wait_chunks(1)
            started = time.monotonic()
            server.close()
            assert time.monotonic() - started < 5
            assert threads() == []
            assert [record.ended_by for record in server.records] == ["server"] * 4
            assert {record.disconnect for record in server.records} == {None}
            assert server.open_connections == 0
            for sock in (idle, half, a):
                assert_closed(sock)
    gc.collect()  # an unclosed socket would warn now, and warnings are errors


def assert_closed(sock: Any) -> None:
    with contextlib.suppress(ConnectionResetError):
        read_to_end(sock)


def test_closing_while_clients_connect() -> None:
    """No moment of a client's life is a bad one to close the server."""
    for _ in range(10):
        server = ScriptedServer(Answer(Text("Hi"), Silence()), repeat=True)
        server.start()
        stop = threading.Event()

        def client(server: ScriptedServer = server, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                try:
                    with connected(server) as sock:
                        sock.sendall(stream())
                        sock.recv(1000)
                except (OSError, RuntimeError):
                    return

        clients = [threading.Thread(target=client) for _ in range(4)]
        for thread in clients:
            thread.start()
        server.wait_request(3)
        server.close()
        stop.set()
        for thread in clients:
            thread.join(5)
        assert threads() == []
        assert {record.ended_by for record in server.records} <= {"server", "client"}
    gc.collect()


@pytest.mark.parametrize("debug", ["", "1"])
def test_closing_in_the_middle_of_a_tls_handshake(
    server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, debug: str
) -> None:
    """A client that never says hello is closed like any other; asyncio's debug mode changes nothing."""
    monkeypatch.setenv("PYTHONASYNCIODEBUG", debug)
    with ScriptedServer(Answer(Text("Hi")), ssl_context=server_tls) as server, connected(server) as sock:
        with connected(server) as impatient:
            impatient.sendall(b"not TLS at all")
            assert impatient.recv(100) == b""
        server.close()
        assert threads() == []
        assert_closed(sock)
    gc.collect()


def test_a_server_that_has_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even a loop: the reason is raised all the same."""

    def refuse() -> None:
        raise OSError("no more files")

    monkeypatch.setattr(asyncio, "SelectorEventLoop", refuse)
    server = ScriptedServer(Answer(Text("Hi")))
    with pytest.raises(OSError, match="no more files"):
        server.start()
    server.close()
    assert threads() == []


def test_a_server_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason is raised where it was started, and no thread stays."""

    async def refuse(*_: object, **__: object) -> None:
        raise OSError("no more sockets")

    monkeypatch.setattr(asyncio.SelectorEventLoop, "create_server", refuse)
    server = ScriptedServer(Answer(Text("Hi")))
    with pytest.raises(OSError, match="no more sockets"):
        server.start()
    server.close()
    assert threads() == []


def test_a_bug_of_the_server_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its own code raises ends the connection, and is raised when the server is closed."""

    def broken(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(connection_module.Connection, "write", broken)
    server = ScriptedServer(Answer(Text("Hi")))
    server.start()
    with connected(server) as sock:
        sock.sendall(stream())
        assert_closed(sock)
    server.records[0].wait_ended()
    assert server.records[0].ended_by == "server"
    with pytest.raises(ExceptionGroup, match="the scripted server failed") as caught:
        server.close()
    assert isinstance(caught.value.exceptions[0], LookupError)


def test_a_bug_in_a_callback_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is what asyncio would only log."""

    def broken(*_: object) -> None:
        raise LookupError("a bug")

    monkeypatch.setattr(serving_module.Serving, "arrived", broken)
    server = ScriptedServer(Answer(Text("Hi")))
    server.start()
    with connected(server) as sock:
        sock.sendall(stream())
        assert_closed(sock)
    with pytest.raises(ExceptionGroup) as caught:
        server.close()
    assert isinstance(caught.value.exceptions[0], LookupError)


def test_a_thread_that_hangs_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing has a limit, and says so."""
    monkeypatch.setattr(serving_module, "_START_AND_STOP", 0.01)
    go_on = threading.Event()

    def stuck(*_: object) -> None:
        go_on.wait(5)

    with ScriptedServer(Answer(Text("Hi"))) as server, connected(server) as sock:
        monkeypatch.setattr(serving_module.Serving, "arrived", stuck)
        sock.sendall(stream())
        while server.open_connections == 0:
            pass
        with pytest.raises(TimeoutError, match=r"did not end within 0\.01 s"):
            server.close()
        monkeypatch.undo()
        go_on.set()
        with pytest.raises(ExceptionGroup):  # what `stuck` returned is no answer
            server.close()


def test_a_process_that_ends_with_the_server_running() -> None:
    """The thread is a daemon: a program that forgets to close it still ends, without a word."""
    program = (
        "from cancelstream.testing import *\n"
        "import socket\n"
        "server = ScriptedServer(Answer(Silence()))\n"
        "server.start()\n"
        "host, port = server.url.removeprefix('http://').split(':')\n"
        "sock = socket.create_connection((host, int(port)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=30, check=True)
    assert done.stderr == b""


def test_it_needs_no_pytest() -> None:
    """Only the plugin imports pytest: a program may use the server without it."""
    program = (
        "import sys\n"
        "import cancelstream.testing\n"
        "assert not any(name.partition('.')[0] == '_pytest' for name in sys.modules), 'pytest'\n"
    )
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


# --- waiting ------------------------------------------------------------------------------------------------------


def test_waits_have_limits() -> None:
    """Each says what it waited for and how far that came."""
    gate = Gate()
    with ScriptedServer(Answer(Text("Hi", Gate()))) as server, connected(server) as sock:
        with pytest.raises(ValueError, match="the first is 0"):
            server.wait_request(-1)
        with pytest.raises(TimeoutError, match=r"waited 0\.01 s for request 0: 0 have arrived"):
            server.wait_request(timeout=0.01)
        sock.sendall(stream())
        record = server.wait_request()
        record.wait_chunks(1)
        told = r"of request 0 \(/v1/chat/completions\), 1 chunks generated, still running"
        with pytest.raises(TimeoutError, match=f"waited 0 s for chunk 2 {told}"):
            record.wait_chunks(2, timeout=0)
        with pytest.raises(TimeoutError, match="for the client to leave request 0"):
            record.wait_disconnected(0.01)
        with pytest.raises(TimeoutError, match="for the end of request 0"):
            record.wait_ended(0.01)
        with pytest.raises(TimeoutError, match="for the script to reach a gate"):
            gate.wait_reached(0.01)


async def test_awaited_waits_have_limits() -> None:
    """The same for coroutines."""
    gate = Gate()
    with ScriptedServer(Answer(Text("Hi", Gate()))) as server, connected(server) as sock:
        with pytest.raises(TimeoutError, match=r"waited 0\.01 s for request 0: 0 have arrived"):
            await server.until_request(timeout=0.01)
        sock.sendall(stream())
        record = await server.until_request()
        await record.until_chunks(1)
        with pytest.raises(TimeoutError, match="for chunk 2 of request 0"):
            await record.until_chunks(2, timeout=0)
        with pytest.raises(TimeoutError, match="for the client to leave request 0"):
            await record.until_disconnected(0.01)
        with pytest.raises(TimeoutError, match="for the end of request 0"):
            await record.until_ended(0.01)
        with pytest.raises(TimeoutError, match="for the script to reach a gate"):
            await gate.until_reached(0.01)


async def test_a_limit_of_the_callers_is_the_callers() -> None:
    """A timeout around a wait is raised as it is, and a wait that is cancelled leaves nothing behind."""
    gate = Gate()
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            await gate.until_reached()
    assert str(caught.value) == ""
    assert gate._listeners == []


def test_waits_that_cannot_come_true() -> None:
    """Such a wait fails at once, and says why."""
    with ScriptedServer(Answer(Text("a", "b")), Answer(Cut("eof"))) as server:
        with connected(server) as sock:
            sock.sendall(stream())
            read_until(sock, b"0\r\n\r\n")
        record = server.records[0]
        assert record.wait_ended() == record.ended_at
        record.wait_chunks(2)
        with pytest.raises(
            RuntimeError, match=r"chunk 3 was never generated: .* 2 chunks generated, ended by 'complete'"
        ):
            record.wait_chunks(3)
        with pytest.raises(RuntimeError, match=r"did not leave before the end: .*'complete'"):
            record.wait_disconnected()
        with connected(server) as sock:
            sock.sendall(stream())
            read_to_end(sock)
        with pytest.raises(RuntimeError, match=r"did not leave before the end: .*'script'"):
            server.records[1].wait_disconnected()


async def test_waiting_does_not_block_the_loop() -> None:
    """While a coroutine waits, its loop runs what it waits for."""
    gate = Gate()
    with ScriptedServer(Answer(Text("a", gate, "b"))) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.rpartition(":")[2]))
        writer.write(stream())
        record = await server.until_request()
        await gate.until_reached()
        assert record.chunks_generated == 1
        gate.open()
        await record.until_chunks(2)
        await record.until_ended()
        assert record.ended_by == "complete"
        assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        await writer.wait_closed()


def test_many_waiters() -> None:
    """Threads and loops may all wait for one thing."""
    gate = Gate()
    passed: list[Record] = []
    with ScriptedServer(Answer(Text("a", gate))) as server, connected(server) as sock:

        def blocking() -> None:
            passed.append(server.wait_request())
            passed[0].wait_ended()

        def looping() -> None:
            async def main() -> None:
                passed.append(await server.until_request())
                await passed[0].until_ended()

            asyncio.run(main())

        waiting = [threading.Thread(target=target) for target in (blocking, looping) * 4]
        for thread in waiting:
            thread.start()
        sock.sendall(stream())
        gate.wait_reached()
        gate.open()
        for thread in waiting:
            thread.join(10)
        assert len(passed) == 8
        assert len(set(passed)) == 1


def test_a_loop_that_closed_while_it_waited() -> None:
    """A waiter whose loop is gone is no obstacle to the others."""
    gate = Gate()

    async def wait() -> None:
        await gate.until_reached()

    loop = asyncio.new_event_loop()
    coroutine = wait()
    task = loop.create_task(coroutine)
    loop.run_until_complete(asyncio.sleep(0))
    loop.stop()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # left pending on purpose
    loop.close()
    assert len(gate._listeners) == 1
    gate.open()  # wakes the listener, whose loop is closed


# --- gates --------------------------------------------------------------------------------------------------------


def test_an_open_gate_is_passed_by_all() -> None:
    """It holds each request that comes while it is closed, and none after."""
    gate = Gate()
    turn = Answer(Text("a", gate, "b"))
    with ScriptedServer(turn, repeat=True) as server, connected(server) as one, connected(server) as two:
        one.sendall(stream())
        two.sendall(stream())
        server.wait_request(1).wait_chunks(1)
        gate.wait_reached()
        assert repr(gate) == "<Gate reached>"
        assert [record.ended_by for record in server.records] == [None, None]
        gate.open()
        read_until(one, b"0\r\n\r\n")
        read_until(two, b"0\r\n\r\n")
        one.sendall(stream())
        read_until(one, b"0\r\n\r\n")


def test_gaps_take_their_time() -> None:
    """A gap comes before each chunk."""
    with ScriptedServer(Answer(Text("a", "b", "c", gap=0.02))) as server, connected(server) as sock:
        sock.sendall(stream())
        read_until(sock, b"0\r\n\r\n")
        record = server.records[0]
        assert record.wait_ended() - record.started_at >= 0.06


def test_slow_headers_and_whole_answers() -> None:
    """Gates hold headers, and documents, too."""
    before, within = Gate(), Gate()
    with ScriptedServer(Answer(Text("a", within), before_headers=before)) as server, connected(server) as sock:
        sock.sendall(request(CHAT, {}))
        before.wait_reached()
        assert server.records[0].chunks_generated == 0
        before.open()
        within.wait_reached()
        assert server.records[0].chunks_generated == 1
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        sock.settimeout(5)
        within.open()
        assert b'"content": "a"' in read_until(sock, b"}}}")
