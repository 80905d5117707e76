"""A blocking stream is stopped from anywhere, at once, and nothing else on its client notices."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI

from cancelstream._upstream import http
from cancelstream.sync import CancellableStream, _grip, _stream
from cancelstream.testing import Answer, Burst, ErrorEvent, Replay, Silence, Text, Usage

from .conftest import ASK, H1, LIMIT, SILENT, WHOLE, Wire
from .threads import Reader, Running, in_thread, on_signal, soon

MakeWire = Callable[..., Wire]

on_every_h1 = pytest.mark.parametrize("wire", H1, indirect=True)


class Telling:
    """A lock that tells when somebody comes who waits for it, or when somebody went who does not."""

    def __init__(self, lock: Any, came: threading.Event) -> None:
        self._lock, self._came = lock, came

    def acquire(self, *, timeout: float) -> bool:
        if timeout:
            self._came.set()
        got: bool = self._lock.acquire(timeout=timeout)
        self._came.set()
        return got

    def release(self) -> None:
        self._lock.release()


def read_three(stream: CancellableStream[Any]) -> Any:
    """Read what there is of a server that falls silent; what it returns would wait."""
    texts = stream.stream_text(delta=True)
    assert [next(texts) for _ in range(3)] == ["0 ", "1 ", "2 "]
    return texts


def check_cut(stream: CancellableStream[Any], reason: str) -> None:
    """Nothing is left out of the message and the count of what arrived."""
    assert stream.cancelled
    assert stream.cancel_reason == reason
    message = stream.get()
    assert (message.text, message.state) == ("0 1 2 ", "interrupted")
    assert message.metadata is not None
    assert message.metadata["cancelstream"]["reason"] == reason
    assert stream.usage.output.low >= 3
    assert stream.usage.output.high is not None
    assert stream.usage() is stream.usage is message.usage


class TestCancel:
    @on_every_h1
    def test_from_another_thread(self, wire: Wire) -> None:
        """A blocked read ends at once, without an error; the server sees FIN, and the client goes on."""
        with wire.open() as stream:
            reader = Reader(stream.stream_text(delta=True))
            reader.wait(3)
            called = time.monotonic()
            stream.cancel("enough")
            assert wire.record.wait_disconnected(LIMIT) - called < LIMIT / 2
            assert reader.result() == ["0 ", "1 ", "2 "]
        assert wire.record.disconnect == "FIN"
        check_cut(stream, "enough")
        wire.serves()

    @on_every_h1
    def test_from_a_signal_handler(self, wire: Wire) -> None:
        """The thread that is interrupted is the one that reads."""
        with wire.open() as stream, on_signal(lambda: stream.cancel("signal")) as send:
            texts = read_three(stream)
            sending = soon(send)
            assert [*texts] == []
            sending.result()
        assert wire.record.wait_disconnected(LIMIT)
        check_cut(stream, "signal")
        wire.serves()

    @on_every_h1
    @pytest.mark.parametrize("reading", ["events", "chunks", "text"])
    def test_in_the_loop(self, wire: Wire, reading: str) -> None:
        """The server is told within the call, and the loop ends after the item that it is at."""
        with wire.open() as stream:
            source: Any = {"events": stream, "chunks": stream.chunks(), "text": stream.stream_text()}[reading]
            read: list[Any] = []
            for item in source:
                read.append(item)
                if "1 " in repr(item):
                    stream.cancel()
                    wire.record.wait_disconnected(LIMIT)
            assert "2 " not in repr(read)
            assert [*source] == []
        assert stream.cancel_reason == "cancelled"
        assert stream.get().text == "0 1 "
        wire.serves()

    def test_before_the_first_read(self, wire: Wire) -> None:
        """Nothing is handed out, the server is told, and what had arrived is at most counted."""
        with wire.open() as stream:
            stream.cancel()
            assert [*stream] == []
            assert [*stream.chunks()] == []
            assert [*stream.stream_text()] == []
        wire.record.wait_disconnected(LIMIT)
        assert (stream.get().text, stream.get().state) == (None, "interrupted")
        assert stream.usage.input.value
        wire.serves()

    def test_after_the_end(self, make_wire: MakeWire) -> None:
        """A whole answer stays whole, with the usage that was reported."""
        with make_wire("httpx2", WHOLE).open() as stream:
            assert [*stream.stream_text(delta=True)] == ["0 ", "1 ", "2 "]
            stream.cancel("too late")
        assert not stream.cancelled
        assert stream.cancel_reason is None
        assert stream.get().state == "complete"
        assert stream.usage.provenance == "reported"
        assert stream.usage.complete

    def test_twice_and_by_many(self, wire: Wire) -> None:
        """The first reason counts, whoever comes after, and nobody gets an error."""
        with wire.open() as stream:
            reader = Reader(stream.stream_text(delta=True))
            reader.wait(3)
            together = threading.Barrier(8)

            def cancel(number: int) -> None:
                together.wait(LIMIT)
                stream.cancel(f"thread {number}")

            for running in [Running(lambda number=number: cancel(number)) for number in range(8)]:
                running.result()
            reason = stream.cancel_reason
            stream.cancel("once more")
            assert reader.result() == ["0 ", "1 ", "2 "]
        assert reason is not None
        assert reason.startswith("thread ")
        check_cut(stream, reason)
        wire.serves()

    def test_a_reason_that_is_none(self, wire: Wire) -> None:
        """A wrong reason is the caller's mistake, and changes nothing."""
        with wire.open() as stream:
            with pytest.raises(TypeError, match="pass a string"):
                stream.cancel(42)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="at most 200"):
                stream.cancel("x" * 201)
            assert not stream.cancelled

    def test_a_signal_handler_in_the_middle_of_a_cut(self, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        """It takes no lock that its own thread holds: it gives up, and the cut goes on where it was."""
        shutdown = http.shut_socket

        def interrupted(response: Any) -> bool:
            stream._grip.cut()  # what a handler would come to
            stream.cancel("the handler's")
            return shutdown(response)

        monkeypatch.setattr(http, "shut_socket", interrupted)
        with wire.open() as stream:
            read_three(stream)
            stream.cancel("first")
            wire.record.wait_disconnected(LIMIT)
        assert stream.cancel_reason == "first"

    @pytest.mark.parametrize("text", [None, "read"])
    def test_while_it_is_looked_at(self, wire: Wire, text: str | None) -> None:
        """Whoever cancels may look at once, from its own thread, whatever the reader is doing."""
        with wire.open() as stream:
            reader = Reader(stream.stream_text(delta=True) if text else stream.chunks())
            reader.wait(3 if text else 4)  # the first chunk says who speaks
            for _ in range(20):
                assert stream.get().state == "incomplete"
                assert stream.usage.output.low >= 1
            stream.cancel()
            assert stream.get().state == "interrupted"
            reader.result()
        assert stream.get().text == "0 1 2 "


class TestLeave:
    @on_every_h1
    def test_break(self, wire: Wire) -> None:
        """Leaving the block early closes the connection, and keeps what arrived."""
        with wire.open() as stream:
            for _ in stream.stream_text():
                break
        assert stream.cancelled
        assert stream.cancel_reason == "left"
        assert wire.record.wait_disconnected(LIMIT)
        assert stream.get().text == "0 "
        assert stream.get().state == "interrupted"
        wire.serves()

    def test_after_the_end(self, make_wire: MakeWire) -> None:
        """Leaving a stream that was read whole is not leaving early."""
        wire = make_wire("httpx2", WHOLE, WHOLE)
        with wire.open() as stream:
            for _ in stream:
                pass
        assert not stream.cancelled
        wire.serves()

    def test_a_cancel_after_leaving_gives_the_reason(self, wire: Wire) -> None:
        """What was left can still be said to have been cancelled; nothing is touched."""
        with wire.open() as stream:
            read_three(stream)
        stream.cancel("and this is why")
        check_cut(stream, "and this is why")
        wire.serves()

    def test_close_while_another_thread_reads(self, wire: Wire) -> None:
        """The reader's loop ends, and the reader closes."""
        stream = wire.open()
        reader = Reader(stream.stream_text(delta=True))
        reader.wait(3)
        stream.close()
        assert reader.result() == ["0 ", "1 ", "2 "]
        check_cut(stream, "left")
        wire.serves()

    def test_an_error_in_the_block(self, wire: Wire) -> None:
        """It goes on its way, and the stream is closed."""
        stream = wire.open()

        def fail() -> None:
            with stream:
                _ = len([*zip(stream, [1], strict=False)]) / 0

        with pytest.raises(ZeroDivisionError):
            fail()
        assert stream.cancel_reason == "left"
        assert wire.record.wait_disconnected(LIMIT)
        wire.serves()

    def test_ctrl_c(self, wire: Wire) -> None:
        """A `KeyboardInterrupt` in a blocked read is nobody's to swallow, and what is left is no whole answer."""

        def interrupt() -> None:
            raise KeyboardInterrupt

        with on_signal(interrupt) as send, wire.open() as stream:
            texts = read_three(stream)
            sending = soon(send)
            with pytest.raises(KeyboardInterrupt):
                next(texts)
            sending.result()
            assert [*stream] == []
        assert stream.cancel_reason == "left"
        assert stream.get().state == "interrupted"
        assert wire.record.wait_disconnected(LIMIT)
        wire.serves()

    def test_a_forgotten_close_warns(self, wire: Wire) -> None:
        """A stream that is dropped open is closed, and says so; one that was cancelled is closed."""
        stream: CancellableStream[Any] | None = wire.open()
        read_three(stream)
        with pytest.warns(ResourceWarning, match="dropped without being closed"):
            stream = None
        wire.record.wait_disconnected(LIMIT)
        cancelled: CancellableStream[Any] | None = wire.open()
        cancelled.cancel()
        cancelled = None

    def test_one_thread_reads(self, wire: Wire) -> None:
        """A second reader is told so, and the first one does not notice."""
        with wire.open() as stream:
            reader = Reader(stream.stream_text(delta=True))
            reader.wait(3)
            while not stream._turn.locked():  # the reader is on its way into the next read
                time.sleep(0)
            with pytest.raises(RuntimeError, match="one reads, any may cancel"):
                next(iter(stream))
            stream.cancel()
            assert reader.result() == ["0 ", "1 ", "2 "]


class TestThePool:
    """A connection that has gone back to its pool is never touched."""

    # Its response ends with its last byte, so the connection is used again.
    ENDS = Replay([{"choices": [{"index": 0, "delta": {"content": "0 "}}], "id": "c", "model": "m", "created": 0}])

    @pytest.mark.parametrize("name", ["httpx2", "httpx"])
    def test_the_end_comes_first(self, name: str, make_wire: MakeWire) -> None:
        """Cancelled when its connection is just being given back, a stream leaves that connection alone."""
        wire = make_wire(name, self.ENDS, WHOLE)
        stream = wire.open()
        body = stream._response.stream
        give_back = body.close

        def cancel_and_give_back() -> None:
            in_thread(lambda: stream.cancel("late"))
            give_back()

        body.close = cancel_and_give_back
        with stream:
            assert [*stream.stream_text()] == ["0 "]
        assert stream.cancel_reason == "late"
        assert not stream._grip.was_cut
        wire.serves()
        assert wire.server.connections == 1, "the next request had the same connection"

    @pytest.mark.parametrize("name", ["httpx2", "httpx"])
    def test_the_cut_comes_first(self, name: str, make_wire: MakeWire, monkeypatch: pytest.MonkeyPatch) -> None:
        """Whoever cuts is waited for, and a dead connection does not pass for idle, not even for a moment.

        Another thread that asks its pool in that moment would be given it.
        """
        wire = make_wire(name, self.ENDS, WHOLE)
        stream = wire.open()
        cutting, cut = threading.Event(), threading.Event()
        shutdown = http.shut_socket

        def slowly(response: Any) -> bool:
            cutting.set()
            assert cut.wait(LIMIT)
            return shutdown(response)

        monkeypatch.setattr(http, "shut_socket", slowly)
        close, closing = stream._grip._close, threading.Event()

        def note_and_close() -> None:
            closing.set()
            close()

        stream._response.close = note_and_close
        connection, idle = http._stream_of(stream._response)._connection, list[bool]()
        response_closed = connection._response_closed

        def note_whether_idle() -> None:
            response_closed()
            idle.append(connection.is_idle())

        connection._response_closed = note_whether_idle
        cancelling = Running(lambda: stream.cancel("early"))
        assert cutting.wait(LIMIT)
        stream._life._end.clear()  # for the reader it is alive, as if it had looked just before
        reader = Reader(stream.stream_text())
        assert closing.wait(LIMIT)
        assert not stream._response.is_closed
        cut.set()
        cancelling.result()
        assert reader.result() == ["0 "]
        stream.close()
        assert idle == [False]
        monkeypatch.undo()
        wire.serves()
        assert wire.server.connections == 2, "the next request had a connection of its own"

    def test_a_cut_under_way_is_waited_for(self, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        """A reader that is cancelled while the socket is being shut waits for that, and reads what is left."""
        shut, came = threading.Event(), threading.Event()
        shutdown = http.shut_socket

        def slowly(response: Any) -> bool:
            done = shutdown(response)
            shut.set()
            assert came.wait(LIMIT)
            return done

        with wire.open() as stream:
            read_three(stream)
            monkeypatch.setattr(http, "shut_socket", slowly)
            cancelling = Running(lambda: stream.cancel("early"))
            assert shut.wait(LIMIT)
            lock = stream._grip._lock
            stream._grip._lock = Telling(lock, came)
            assert [*stream] == []
            cancelling.result()
        assert stream.usage.output.high is not None, "what had arrived was not looked at"

    def test_a_pool_that_is_not_known(self) -> None:
        """Where the way to a connection has moved, its pool's own look at the socket is all there is."""
        http.discard_from_pool(object())

    def test_a_cut_that_never_ends_is_not_waited_for(self, wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
        """An exception in a signal handler can end a cut anywhere: closing has its limit."""
        monkeypatch.setattr(_grip, "PATIENCE", 0.01)
        with wire.open() as stream:
            stream._grip._lock.acquire()
        wire.serves()

    def test_a_descriptor_that_changed_hands(self, wire: Wire) -> None:
        """A socket that another thread closes between the look and the act is not cut, nor who has its number now."""
        with wire.open() as stream:
            sock = stream._response.extensions["network_stream"].get_extra_info("socket")

            class Closing:
                """Has its number, and then none."""

                def __init__(self) -> None:
                    self.numbers = [sock.fileno(), -1]

                def fileno(self) -> int:
                    return self.numbers.pop(0)

            class Network:
                def get_extra_info(self, name: str) -> Closing:
                    return closing

            closing = Closing()
            network = stream._response.extensions["network_stream"]
            stream._response.extensions["network_stream"] = Network()
            assert not http.shut_socket(stream._response)
            assert closing.numbers == []
            stream._response.extensions["network_stream"] = network
            assert wire.record.disconnect is None


class TestUsage:
    @pytest.mark.parametrize("name", H1)
    def test_what_had_arrived_is_counted(self, name: str, make_wire: MakeWire) -> None:
        """Of a burst everything counts, though only its beginning was handed out."""
        wire = make_wire(name, Answer(Burst(Text(*["word "] * 100)), Text(Silence())))
        with wire.open() as stream:
            texts = stream.stream_text(delta=True)
            next(texts)
            stream.cancel()
            assert [*texts] == []
        assert stream.get().text == "word "
        assert stream.usage.output.low >= 99
        assert stream.usage.output.high is not None

    def test_what_was_too_much_to_read_is_known_to_be_lost(
        self, make_wire: MakeWire, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody waits for a large buffer to be counted; what is left of it has no upper bound."""
        monkeypatch.setattr(_stream, "LATE_LIMIT", 20)
        wire = make_wire("httpx2", Answer(Burst(Text(*["word "] * 2_000)), Text(Silence())))
        with wire.open() as stream:
            for chunk in stream.chunks():
                if chunk.choices[0].delta.content:
                    stream.cancel()
        assert 20 <= stream.usage.output.low < 1_500
        assert stream.usage.output.high is None

    def test_it_is_one_object_and_final(self, make_wire: MakeWire) -> None:
        """It is brought up to date in place, and does not change after the end."""
        wire = make_wire("httpx2", Answer(Text("0 ", "1 "), usage=Usage(120, 40)))
        with wire.open() as stream:
            usage = stream.usage
            seen = [usage.output.low for _ in stream if stream.usage is usage]
        assert seen == sorted(seen)
        assert (usage.input_tokens, usage.output_tokens) == (120, 40)

    def test_whoever_holds_it_need_not_ask_again_after_a_cancel(self, make_wire: MakeWire) -> None:
        """It is final when the loop ends, whether or not the stream is asked for it, closed or left."""
        stream = make_wire("httpx2", SILENT).open()
        usage = stream.usage
        texts = read_three(stream)
        assert usage.output_tokens == 0
        stream.cancel()
        assert [*texts] == []
        assert usage.output.low >= 3
        assert usage.output_tokens >= 3
        before = usage.record()
        stream.close()
        assert stream.usage.record() == before

    def test_the_request_as_it_was_given(self, make_wire: MakeWire) -> None:
        """What was sent is read by itself, or taken as it is given."""
        wire = make_wire("httpx2", SILENT, repeat=True)
        plain = wire.client.chat.completions.create(**ASK)
        with CancellableStream(plain, {**ASK, "messages": [{"role": "user", "content": "word " * 50}]}) as stream:
            read_three(stream)
        assert stream.usage.input.low > 30
        with pytest.raises(TypeError, match="mapping"), wire.client.chat.completions.create(**ASK) as raw:
            CancellableStream(raw, ["not a mapping"])  # type: ignore[arg-type]


class TestWhereTheSocketIsNotOurs:
    @pytest.mark.parametrize("name", ["httpx2-h2", "httpx-h2", "httpx2-h2-tls"])
    def test_http2_in_the_loop(self, name: str, make_wire: MakeWire) -> None:
        """The stream is reset, the connection stays, and what was lost is not called known."""
        wire = make_wire(name)
        with wire.open("drip:400") as stream:
            for _ in stream.stream_text():
                stream.cancel()
            told = wire.server.streams[0]
        wire.serves()
        assert told.reset == 8
        assert len({each.connection for each in wire.server.streams}) == 1
        assert stream.usage.output.high is None

    def test_http2_from_another_thread(self, make_wire: MakeWire) -> None:
        """The reader sees it with the next chunk."""
        wire = make_wire("httpx2-h2")
        with wire.open("drip:4000") as stream:
            reader = Reader(stream.stream_text(delta=True))
            reader.wait(3)
            stream.cancel("enough")
            assert len(reader.result()) < 4000
        wire.serves()
        assert wire.server.streams[0].reset == 8
        assert stream.get().state == "interrupted"

    def test_http2_on_a_silent_server(self, make_wire: MakeWire) -> None:
        """Where no chunk comes the client's own read timeout is the limit, and even that is no error."""
        wire = make_wire("httpx2-h2", read=0.2)
        with wire.open("silent:3") as stream:
            texts = read_three(stream)
            in_thread(stream.cancel)
            assert [*texts] == []
        check_cut_without_bounds(stream)

    def test_a_transport_without_a_socket(self) -> None:
        """A cancel is seen with the next chunk; what was not handed out is counted as far as it is known."""
        sent = [b'data: {"choices": [{"index": 0, "delta": {"content": "%d "}}]}\n\n' % number for number in range(9)]
        client, body = client_of(sent)
        with client, CancellableStream(client.chat.completions.create(**ASK)) as stream:
            read = []
            for text in stream.stream_text(delta=True):
                read.append(text)
                if text == "2 ":
                    in_thread(stream.cancel)
        assert read == ["0 ", "1 ", "2 "]
        assert body.closed
        check_cut_without_bounds(stream)

    def test_a_body_that_is_in_memory(self) -> None:
        """A mock's whole body has arrived: all of it is counted, nothing has to be told to anybody."""
        data = b"".join(b'data: {"choices": [{"index": 0, "delta": {"content": "%d "}}]}\n\n' % n for n in range(9))
        headers = {"content-type": "text/event-stream"}
        transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers=headers, content=data))
        client = OpenAI(api_key="none", http_client=httpx2.Client(transport=transport))
        with client, CancellableStream(client.chat.completions.create(**ASK)) as stream:
            next(stream.stream_text())
            stream.cancel()
        assert stream.get().text == "0 "
        assert stream.usage.output.low >= 9


def check_cut_without_bounds(stream: CancellableStream[Any]) -> None:
    assert stream.get().text == "0 1 2 "
    assert stream.get().state == "interrupted"
    assert stream.usage.output.high is None


class Body(httpx2.SyncByteStream):
    """A body that comes read by read, from no socket."""

    def __init__(self, reads: list[bytes]) -> None:
        self.reads = reads
        self.closed = False

    def __iter__(self) -> Any:
        yield from self.reads

    def close(self) -> None:
        self.closed = True


def client_of(reads: list[bytes], media: str = "text/event-stream") -> tuple[OpenAI, Body]:
    body = Body(reads)
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, headers={"content-type": media}, stream=body))
    return OpenAI(api_key="none", http_client=httpx2.Client(transport=transport), max_retries=0), body


class TestErrors:
    def test_an_error_event(self, make_wire: MakeWire) -> None:
        """The provider's error comes as the SDK raises it; what came before it is kept, and is not whole."""
        wire = make_wire("httpx2", Answer(Text("0 "), ErrorEvent("overloaded")), WHOLE)
        with wire.open() as stream, pytest.raises(openai.APIError, match="overloaded"):
            [*stream.stream_text()]
        assert stream.get().text == "0 "
        assert stream.get().state == "incomplete"
        assert not stream.cancelled
        wire.serves()

    @pytest.mark.parametrize("reading", ["chunks", "text"])
    def test_a_broken_connection(self, reading: str, make_wire: MakeWire) -> None:
        """An error that is not ours is raised, in the SDK's words, and ends the stream."""
        wire = make_wire("httpx2", SILENT, WHOLE)
        with wire.open() as stream:
            source = stream.chunks() if reading == "chunks" else stream.stream_text()
            next(source)
            wire.server.close()
            with pytest.raises(openai.APIConnectionError):
                list(source)
            assert [*stream] == []
        assert not stream.cancelled
        assert stream.get().state == "incomplete"

    def test_a_client_that_checks_every_chunk(self, make_wire: MakeWire) -> None:
        """What a client's option leaves to the SDK is read by the SDK, and says the same."""
        wire = make_wire("httpx2", WHOLE)
        wire.client._strict_response_validation = True
        with wire.open() as stream:
            assert stream._lane is None
            assert [*stream.stream_text(delta=True)] == ["0 ", "1 ", "2 "]

    def test_an_asynchronous_stream(self) -> None:
        """The message names what takes it."""
        with pytest.raises(TypeError, match="from_openai"):
            CancellableStream(openai.AsyncStream.__new__(openai.AsyncStream))  # type: ignore[arg-type]

    @pytest.mark.parametrize("given", [None, iter(()), [], "stream"])
    def test_another_librarys(self, given: Any) -> None:
        """Whatever it is, it is refused before it is touched."""
        with pytest.raises(TypeError, match=r"expected openai's Stream, as `create\(stream=True\)` returns it"):
            CancellableStream(given)

    def test_one_that_was_read_or_closed(self, make_wire: MakeWire) -> None:
        """What was read before cannot be counted, so it is refused."""
        wire = make_wire("httpx2", SILENT, repeat=True)
        with wire.client.chat.completions.create(**ASK) as read:
            next(read)
            with pytest.raises(ValueError, match="was read from before"):
                CancellableStream(read)
        with wire.client.chat.completions.create(**ASK) as closed:
            closed.close()
        with pytest.raises(ValueError, match="was closed before"):
            CancellableStream(closed)

    def test_what_is_no_event_stream(self) -> None:
        """A server that does not stream is named as the reason."""
        client, _ = client_of([b"{}"], media="application/json")
        with client, client.chat.completions.create(**ASK) as stream, pytest.raises(ValueError, match="stream=True"):
            CancellableStream(stream)

    def test_another_endpoint(self) -> None:
        """Of other APIs' streams nobody knows what they say."""
        client, _ = client_of([b"data: {}\n\n"])
        completions = client.completions.create(model="m", prompt="x", stream=True)
        with client, completions, pytest.raises(TypeError, match="only chat completions and Responses"):
            CancellableStream(completions)
