"""What goes over the wire: both OpenAI APIs, streamed and whole, errors, usage, replay."""

import json
import socket
from typing import Any

import pytest
from raw_client import CHAT, RESPONSES, connected, payloads, read_to_end, read_until, request, stream

from cancelstream.testing import (
    Answer,
    Burst,
    Cut,
    ErrorEvent,
    Event,
    HttpError,
    Reasoning,
    Replay,
    ScriptedServer,
    Silence,
    Text,
    ToolCall,
    Turn,
    Usage,
)

CLOSE = "connection: close\r\n"


def ask(turn: Turn, path: str = CHAT, *, streamed: bool = True) -> tuple[bytes, bytes]:
    """The head and body that a turn makes, body as HTTP/1.0 frames it: until the end."""
    with ScriptedServer(turn) as server, connected(server) as sock:
        body = json.dumps({"model": "m", "stream": streamed}).encode()
        sock.sendall(f"POST {path} HTTP/1.0\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        head, _, rest = read_to_end(sock).partition(b"\r\n\r\n")
        return head, rest


def test_chat_chunks() -> None:
    """Role, deltas by kind, tool calls by index, finish, usage, `[DONE]`."""
    turn = Answer(
        Reasoning("hm"),
        Text("Hi", "!"),
        ToolCall("f", '{"a"', ":1}"),
        ToolCall("g", id="mine"),
        usage=Usage(7, cached_tokens=3, reasoning_tokens=1),
    )
    head, body = ask(turn)
    assert b" 200 " in head.split(b"\r\n")[0]
    assert b"text/event-stream" in head
    *chunks, done = payloads(body)
    assert done == "[DONE]"
    assert {(c["id"], c["object"], c["model"]) for c in chunks} == {("chatcmpl-0", "chat.completion.chunk", "m")}
    deltas = [c["choices"][0]["delta"] for c in chunks[:-1]]
    assert deltas == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"content": "Hi"},
        {"content": "!"},
        {
            "tool_calls": [
                {"index": 0, "id": "call_0_0", "type": "function", "function": {"name": "f", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
        {"tool_calls": [{"index": 1, "id": "mine", "type": "function", "function": {"name": "g", "arguments": ""}}]},
        {},
    ]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:-1]] == [None] * 8 + ["tool_calls"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 7,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 1},
    }
    assert not any("usage" in c for c in chunks[:-1])


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, [None, None, None, None]),
        (Usage(3, when="every"), [0, 1, 2, 2, 2]),
        (Usage(3, 40, when="every"), [0, 1, 2, 2, 40]),
        (Usage(3, 40), [None, None, None, None, 40]),
    ],
)
def test_usage_in_chat(usage: Usage | None, expected: list[int | None]) -> None:
    """Never, on every chunk, at the end."""
    _, body = ask(Answer(Text("a", "b"), usage=usage))
    chunks = payloads(body)[:-1]
    assert [c["usage"]["completion_tokens"] if c.get("usage") else None for c in chunks] == expected


def test_an_empty_answer() -> None:
    """An answer that says nothing still has a role and an end."""
    _, body = ask(Answer(usage=None))
    role, finish, done = payloads(body)
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert done == "[DONE]"


def test_responses_events() -> None:
    """Every item is opened and closed, numbered in order, and repeated whole at the end."""
    turn = Answer(Reasoning("hm"), Text("Hi", "!"), ToolCall("f", "{}"), usage=Usage(7, when="every"))
    _, body = ask(turn, RESPONSES)
    events = payloads(body)
    names = [line[len(b"event: ") :].decode() for line in body.split(b"\n") if line.startswith(b"event: ")]
    assert names == [event["type"] for event in events]
    assert names == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["output_index"] for event in events[2:-1]] == [0] * 6 + [1] * 7 + [2] * 4
    whole = events[-1]["response"]
    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call"]
    assert whole["output"][1]["content"][0]["text"] == "Hi!"
    assert whole["output"][2]["arguments"] == "{}"
    assert (whole["usage"]["input_tokens"], whole["usage"]["output_tokens"]) == (7, 5)
    assert events[0]["response"]["usage"] is None


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_incomplete_response(finish: Any, reason: str) -> None:
    """The finish reasons that cut an answer are Responses' `incomplete`."""
    _, body = ask(Answer(Text("Hi"), finish=finish, usage=None), RESPONSES)
    last = payloads(body)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": reason}
    assert last["response"]["usage"] is None


def test_an_empty_response() -> None:
    """Nothing between the opening and the end."""
    _, body = ask(Answer(), RESPONSES)
    assert [event["type"].rpartition(".")[2] for event in payloads(body)] == ["created", "in_progress", "completed"]


def test_whole_documents() -> None:
    """The same script without `stream` is one document."""
    turn = Answer(Reasoning("hm"), Text("Hi"), Burst(Text("!"), Event("x")), ToolCall("f", "{}"), usage=Usage(7, 9))
    head, body = ask(turn, streamed=False)
    assert b"application/json" in head
    message = json.loads(body)["choices"][0]["message"]
    assert message["content"] == "Hi!"
    assert message["reasoning_content"] == "hm"
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert json.loads(body)["usage"]["completion_tokens"] == 9
    _, body = ask(turn, RESPONSES, streamed=False)
    response = json.loads(body)
    assert response["status"] == "completed"
    assert response["output"][1]["content"][0]["text"] == "Hi!"
    _, body = ask(Answer(Text("Hi"), usage=None, finish="length"), streamed=False)
    assert json.loads(body)["choices"][0]["finish_reason"] == "length"
    assert "usage" not in json.loads(body)
    assert "tool_calls" not in json.loads(body)["choices"][0]["message"]


def test_http_errors() -> None:
    """Status, headers and OpenAI's error body."""
    head, body = ask(HttpError(429, "slow down", code="rate_limit_exceeded", headers={"retry-after": "1"}))
    assert head.startswith(b"HTTP/1.1 429 ")
    assert b"retry-after: 1" in head.lower()
    error = json.loads(body)["error"]
    assert (error["message"], error["code"], error["type"]) == (
        "slow down",
        "rate_limit_exceeded",
        "rate_limit_exceeded",
    )


def test_errors_in_the_stream() -> None:
    """Each API has its own error event, and nothing follows it."""
    _, body = ask(Answer(Text("Hi"), ErrorEvent("broken", code="oops")))
    assert payloads(body)[-1] == {"error": {"message": "broken", "type": "oops", "param": None, "code": "oops"}}
    _, body = ask(Answer(ErrorEvent("broken", code="oops")), RESPONSES)
    assert payloads(body)[-1] == {
        "type": "error",
        "sequence_number": 2,
        "code": "oops",
        "message": "broken",
        "param": None,
    }
    head, body = ask(Answer(ErrorEvent("broken")), streamed=False)
    assert b" 500 " in head
    assert json.loads(body)["error"]["message"] == "broken"


def test_malformed_json() -> None:
    """An event with anything in it, and the stream goes on."""
    _, body = ask(Answer(Text("a"), Event('{"choices": ['), Text("b")))
    assert payloads(body)[2] == '{"choices": ['
    assert payloads(body)[-1] == "[DONE]"


@pytest.mark.parametrize(("how", "tail"), [("end", b"}\n\n\r\n"), ("truncated", b'\r\ndata: {"id": "half\r\n')])
def test_a_body_that_ends_early(how: Any, tail: bytes) -> None:
    """HTTP is in order, the stream is not; the connection can be used again."""
    with ScriptedServer(Answer(Text("Hi"), Cut(how)), Answer(Text("again"))) as server, connected(server) as sock:
        sock.sendall(stream())
        first = read_until(sock, b"0\r\n\r\n")
        assert b"[DONE]" not in first
        assert b'"finish_reason": "stop"' not in first
        assert b"Hi" in first
        assert first.endswith(tail + b"0\r\n\r\n")
        sock.sendall(stream())
        assert b"again" in read_until(sock, b"0\r\n\r\n")
        assert [r.ended_by for r in server.records] == ["script", "complete"]
        assert [r.connection for r in server.records] == [0, 0]


@pytest.mark.parametrize("streamed", [True, False])
def test_an_early_eof(streamed: bool) -> None:
    """The connection is closed in the middle of the body."""
    with ScriptedServer(Answer(Text("Hi"), Cut("eof"))) as server, connected(server) as sock:
        sock.sendall(request(CHAT, {"stream": streamed}))
        got = read_to_end(sock)
        assert not got.endswith(b"0\r\n\r\n")
        if streamed:
            assert b"Hi" in got
        else:
            head, _, body = got.partition(b"\r\n\r\n")
            assert f"content-length: {2 * len(body)}".encode()[:-1] in head.lower()
        server.records[0].wait_ended()
        assert (server.records[0].ended_by, server.records[0].disconnect) == ("script", None)


@pytest.mark.parametrize("streamed", [True, False])
def test_a_reset(streamed: bool) -> None:
    """The connection is reset."""
    with ScriptedServer(Answer(Text("Hi"), Cut("reset"))) as server, connected(server) as sock:
        sock.sendall(request(CHAT, {"stream": streamed}))
        with pytest.raises(ConnectionResetError):
            read_to_end(sock)
        server.records[0].wait_ended()
        assert (server.records[0].ended_by, server.records[0].disconnect) == ("script", None)


@pytest.mark.parametrize("how", ["end", "truncated"])
def test_half_a_document(how: Any) -> None:
    """Without `stream` it is the JSON that is malformed."""
    head, body = ask(Answer(Text("Hi"), Cut(how)), streamed=False)
    assert b" 200 " in head
    assert body.startswith(b'{"id": "chatcmpl-0"')
    with pytest.raises(ValueError):
        json.loads(body)


@pytest.mark.parametrize("how", ["reset", "eof"])
def test_no_response_at_all(how: Any) -> None:
    """The connection breaks before the headers."""
    with ScriptedServer(Answer(before_headers=Cut(how))) as server, connected(server) as sock:
        sock.sendall(stream())
        if how == "eof":
            assert sock.recv(1) == b""
        else:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        server.records[0].wait_ended()
        assert server.records[0].ended_by == "script"


def test_headers_that_never_come() -> None:
    """Nothing is sent, not even headers, until the client leaves."""
    with ScriptedServer(Answer(before_headers=Silence())) as server:
        with connected(server) as sock:
            sock.sendall(stream())
            record = server.wait_request()
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        record.wait_disconnected()


def test_a_burst_is_one_write() -> None:
    """All its events are in one chunk of the chunked body."""
    words = [f" w{i}" for i in range(200)]
    with (
        ScriptedServer(Answer(Text("a"), Burst(Text(*words), ToolCall("f", "{}")))) as server,
        connected(server) as sock,
    ):
        sock.sendall(stream())
        got = read_until(sock, b"0\r\n\r\n")
        together = [part for part in got.split(b"\r\n") if b'" w0"' in part]
        assert len(together) == 1
        assert b'" w199"' in together[0]
        assert b'"name": "f"' in together[0]
        assert server.records[0].chunks_generated == 203


def test_replay() -> None:
    """Payloads go out as they are, on any path; objects with a type are named after it."""
    turn = Replay(
        [
            '{"type": "message_start", "x": 1}',
            {"type": "ping"},
            {"candidates": []},
            '["no", "object"]',
            Event("multi\nline\r\nevent\rhere", "mine"),
            {"type": 3},
            "[DONE]",
        ]
    )
    head, body = ask(turn, "/any/where?alt=sse")
    assert b"text/event-stream" in head
    assert body.decode() == (
        'event: message_start\ndata: {"type": "message_start", "x": 1}\n\n'
        'event: ping\ndata: {"type": "ping"}\n\n'
        'data: {"candidates": []}\n\n'
        'data: ["no", "object"]\n\n'
        "event: mine\ndata: multi\ndata: line\ndata: event\ndata: here\n\n"
        'data: {"type": 3}\n\n'
        "data: [DONE]\n\n"
    )


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        (request("/v1/embeddings", {}), b"404", b"no path of OpenAI's"),
        (request(CHAT, b"{"), b"400", b"no JSON object"),
        (request(CHAT, [1]), b"400", b"no JSON object"),
        (b"GET /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n", b"400", b"no JSON object"),
    ],
)
def test_what_an_answer_is_not_for(raw: bytes, status: bytes, says: bytes) -> None:
    """A request that an `Answer` cannot answer is told why, and is on record."""
    with ScriptedServer(Answer(Text("Hi"))) as server, connected(server) as sock:
        sock.sendall(raw)
        got = read_until(sock, b"}}")
        assert got.split()[1] == status
        assert says in got
        assert len(server.records) == 1


def test_more_requests_than_turns() -> None:
    """One request too many is told so; with `repeat` the script begins again."""
    with ScriptedServer(Answer(Text("only"))) as server, connected(server) as sock:
        sock.sendall(stream() + stream())  # pipelined: the second waits for the first answer's end
        got = read_until(sock, b"repeat=True")
        assert b"only" in got
        assert b"this is request 2, and the script has 1 turn(s): add one" in got
    with ScriptedServer(Answer(Text("one")), Answer(Text("two")), repeat=True) as server, connected(server) as sock:
        for wanted in (b"one", b"two", b"one"):
            sock.sendall(stream())
            assert wanted in read_until(sock, b"0\r\n\r\n")


def test_what_is_recorded_of_a_request() -> None:
    """Method, path, query, headers and body, as they came."""
    with ScriptedServer(Replay(["x"])) as server, connected(server) as sock:
        sock.sendall(request("/v1/any?a=b&c", {"k": ["ä"]}, extra="X-Mine: 1\r\nx-mine: 2\r\n"))
        read_until(sock, b"0\r\n\r\n")
        (record,) = server.records
        assert (record.method, record.path, record.query) == ("POST", "/v1/any", "a=b&c")
        assert record.headers["x-mine"] == "1, 2"
        assert record.json == {"k": ["ä"]}
        assert json.loads(record.body) == {"k": ["ä"]}
        assert repr(record) == "<Record request 0 (/v1/any), 1 chunks generated, ended by 'complete'>"


def test_a_client_that_waits_to_be_asked_for_its_body() -> None:
    """`Expect: 100-continue` is answered, as curl wants it for large bodies."""
    with ScriptedServer(Answer(Text("Hi"))) as server, connected(server) as sock:
        head, _, body = request(CHAT, {"stream": True}, extra="expect: 100-continue\r\n").partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\n\r\n")
        assert read_until(sock, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        assert b"Hi" in read_until(sock, b"0\r\n\r\n")


@pytest.mark.parametrize("raw", [b"\x16\x03\x01 this is TLS\r\n\r\n", b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n"])
def test_what_is_not_spoken_here(raw: bytes) -> None:
    """It is closed without a word, and nothing is on record."""
    with ScriptedServer(Answer(Text("Hi"))) as server, connected(server) as sock:
        sock.sendall(raw)
        assert sock.recv(1) == b""
        assert server.records == ()


def test_a_request_in_pieces() -> None:
    """A request that arrives byte by byte is one request."""
    with ScriptedServer(Answer(Text("Hi"))) as server, connected(server) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in stream():
            sock.sendall(bytes([byte]))
        assert b"Hi" in read_until(sock, b"0\r\n\r\n")
        assert len(server.records) == 1
