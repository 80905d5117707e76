"""The server sees its client leave at once, and says when and how."""

import ssl
import threading
import time
from typing import Any

import pytest
from raw_client import CHAT, close_with_reset, connected, read_until, request, stream

from cancelstream.testing import Answer, Burst, Gap, Gate, Replay, ScriptedServer, Silence, Text, Turn

SILENT: list[Turn] = [
    Answer(Text("Hi"), Silence()),
    Answer(Text("Hi"), Gap(30)),
    Answer(Text("Hi", Gate())),
    Replay(["Hi", Silence()]),
]


@pytest.mark.parametrize("turn", SILENT, ids=["silence", "gap", "gate", "replay"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_leaves_while_the_server_is_silent(turn: Turn, how: str) -> None:
    """Seen at once, timed between the call and now on the monotonic clock, and told apart."""
    with ScriptedServer(turn) as server, connected(server) as sock:
        sock.sendall(stream())
        read_until(sock, b"Hi")
        (record,) = server.records
        assert (record.ended_by, record.ended_at, record.disconnect, record.disconnected_at) == (None,) * 4
        before = time.monotonic()
        sock.close() if how == "FIN" else close_with_reset(sock)
        seen = record.wait_disconnected(2)
        assert before <= seen <= time.monotonic()
        assert (record.ended_by, record.disconnect) == ("client", how)
        assert record.ended_at == record.disconnected_at == seen
        assert record.chunks_generated == 1
        assert record.chunks_after(before) == 0


def test_unread_data_makes_a_close_a_reset() -> None:
    """What the operating system sends for such a close is what is recorded."""
    with ScriptedServer(Answer(Burst(Text(*["x" * 1000] * 20)), Silence())) as server, connected(server) as sock:
        sock.sendall(stream())
        server.wait_request().wait_chunks(20)
        assert sock.recv(1)
        sock.close()
        server.records[0].wait_disconnected()
        assert server.records[0].disconnect == "RST"


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_a_client_that_leaves_while_chunks_flow(how: str) -> None:
    """Generation stops with the client, and what was generated after a moment can be asked."""
    with ScriptedServer(Answer(Text(*["tok "] * 100_000, gap=0.001))) as server, connected(server) as sock:
        sock.sendall(stream())
        record = server.wait_request()
        record.wait_chunks(20)
        before = time.monotonic()
        so_far = record.chunks_generated
        sock.close() if how == "FIN" else close_with_reset(sock)
        seen = record.wait_disconnected()
        assert seen >= before
        generated = record.chunks_generated
        assert so_far <= generated < 100_000
        assert record.chunks_after(before) <= generated - 20
        assert record.chunks_after(seen) == 0
        assert record.chunks_after(record.started_at) == generated


def test_a_client_that_leaves_before_the_headers() -> None:
    """A request that is not answered yet is seen to be given up."""
    gate = Gate()
    with ScriptedServer(Answer(Text("Hi"), before_headers=gate)) as server, connected(server) as sock:
        sock.sendall(stream())
        gate.wait_reached()
        sock.close()
        record = server.records[0]
        record.wait_disconnected()
        assert (record.disconnect, record.chunks_generated) == ("FIN", 0)


def test_a_client_that_leaves_with_its_request() -> None:
    """Request and FIN in one breath: still on record, and gone."""
    with ScriptedServer(Answer(Silence()), repeat=True) as server:
        for index in range(20):
            with connected(server) as sock:
                sock.sendall(stream())
            server.wait_request(index).wait_disconnected()


def test_a_client_that_leaves_in_the_middle_of_its_request() -> None:
    """There was no request."""
    with ScriptedServer(Answer(Silence())) as server:
        with connected(server) as sock:
            sock.sendall(stream()[:-5])
        with connected(server) as sock:
            sock.sendall(stream())
            record = server.wait_request()
        record.wait_disconnected()
        assert len(server.records) == 1


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_after_the_end(streamed: bool) -> None:
    """An answer that was sent whole is complete, however soon the client closes."""
    with ScriptedServer(Answer(Text("Hi")), repeat=True) as server:
        for index in range(50):
            with connected(server) as sock:
                sock.sendall(request(CHAT, {"stream": streamed}))
                read_until(sock, b"0\r\n\r\n" if streamed else b"}}}")
            record = server.records[index]
            record.wait_ended()
            assert (record.ended_by, record.disconnect) == ("complete", None)


def test_a_client_that_does_not_read() -> None:
    """The server waits for it as the network makes it wait, and still sees it go."""
    megabytes = 64
    with ScriptedServer(Answer(Text(*["x" * 2**20] * megabytes))) as server, connected(server) as sock:
        sock.sendall(stream())
        record = server.wait_request()
        record.wait_chunks(1)
        with pytest.raises(TimeoutError, match="chunk 64 of request 0"):
            record.wait_chunks(megabytes, timeout=0.5)
        assert record.ended_by is None
        close_with_reset(sock)
        record.wait_disconnected()
        assert record.disconnect == "RST"
        assert record.chunks_generated < megabytes


def test_a_client_that_reads_late() -> None:
    """A server that had to wait goes on where it stood."""
    with ScriptedServer(Answer(Text(*["x" * 2**20] * 8))) as server, connected(server) as sock:
        sock.sendall(stream())
        server.wait_request().wait_chunks(1)
        got = read_until(sock, b"0\r\n\r\n")
        assert got.count(b"x" * 2**20) == 8
        server.records[0].wait_ended()
        assert server.records[0].ended_by == "complete"


@pytest.mark.parametrize("how", ["FIN", "close_notify", "RST"])
def test_over_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, how: str) -> None:
    """The same over HTTPS, with and without the goodbye of TLS."""
    with ScriptedServer(Answer(Text("Hi"), Silence()), ssl_context=server_tls) as server:
        assert server.base_url.startswith("https://127.0.0.1:")
        with connected(server, client_tls) as sock:
            sock.sendall(stream())
            read_until(sock, b"Hi")
            before = time.monotonic()
            if how == "close_notify":
                assert isinstance(sock, ssl.SSLSocket)
                sock.unwrap().close()
            elif how == "FIN":
                sock.close()
            else:
                close_with_reset(sock)
            record = server.records[0]
            assert record.wait_disconnected() >= before
            assert record.disconnect == ("RST" if how == "RST" else "FIN")


def test_large_answers_over_tls(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext) -> None:
    """A client that reads late over TLS gets everything."""
    turn = Answer(Text(*["x" * 2**20] * 8))
    with ScriptedServer(turn, ssl_context=server_tls) as server, connected(server, client_tls) as sock:
        sock.sendall(stream())
        server.wait_request().wait_chunks(1)
        assert read_until(sock, b"0\r\n\r\n").count(b"x" * 2**20) == 8


def test_two_clients_do_not_disturb_each_other() -> None:
    """One leaves; the other's answer goes on."""
    gate = Gate()
    turns = Answer(Text("Hi"), Silence()), Answer(Text("Hi", gate, " there"))
    with ScriptedServer(*turns) as server, connected(server) as first, connected(server) as second:
        first.sendall(stream())
        read_until(first, b"Hi")
        second.sendall(stream())
        read_until(second, b"Hi")
        assert (server.connections, server.open_connections) == (2, 2)
        first.close()
        server.records[0].wait_disconnected()
        gate.open()
        assert b" there" in read_until(second, b"0\r\n\r\n")
        assert (server.connections, server.open_connections) == (2, 1)
        assert server.records[0].connection != server.records[1].connection


def test_the_main_thread_is_busy() -> None:
    """The server sees what another thread does while this one is blocked for good."""
    with ScriptedServer(Answer(Text("Hi"), Silence())) as server, connected(server) as sock:
        sock.sendall(stream())
        read_until(sock, b"Hi")
        left: list[float] = []

        def leave() -> None:
            left.append(time.monotonic())
            sock.close()

        thread = threading.Thread(target=leave)
        thread.start()
        seen: Any = server.records[0].wait_disconnected()
        thread.join()
        assert seen >= left[0]
