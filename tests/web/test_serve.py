"""`cancelstream serve` without a browser: its routes, who may read what, and what it says when it cannot start."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from web_support import AppServer, Client, RedisServer, free_port

from cancelstream._demo import chat as chat_room
from cancelstream._demo import serve
from cancelstream._demo.chat import chat_application
from cancelstream.testing import Answer, Cut, ScriptedServer, Silence, Text


async def get(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    async with Client.post(port, path, method="GET", **headers) as client:
        return client.status, client.headers, await client.body()


async def ask(port: int, asked: Any, **headers: str) -> tuple[int, Any]:
    async with Client.post(port, "/chat", json.dumps(asked).encode(), **headers) as client:
        if client.status != 200:
            return client.status, await client.body()
        return 200, await client.events()


async def past(port: int, conversation: str, cookie: str) -> Any:
    return json.loads((await get(port, f"/chat/{conversation}", cookie=cookie))[2])


@pytest.mark.parametrize("shared", [False, True])
async def test_a_conversation(shared: bool, request: pytest.FixtureRequest) -> None:
    """It is kept under its visitor, with what was cut, and goes on; a turn that failed leaves nothing."""
    redis = None
    if shared:
        pytest.importorskip("redis", reason="needs cancelstream[redis]")
        redis = request.getfixturevalue("redis_server").url
    turns = [Answer(Text("Hello"), Silence()), Answer(Text(" world")), Answer(Text("x"), Cut("reset"))]
    with ScriptedServer(*turns) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
            with AppServer(chat_application(agent, redis=redis)) as server:
                port = server.port
                status, headers, page = await get(port, "/")
                cookie = headers["set-cookie"].split(";")[0]
                assert (status, b'<button id="stop"' in page) == (200, True)
                assert "HttpOnly" in headers["set-cookie"]
                assert "SameSite=strict" in headers["set-cookie"]
                assert "script-src 'self'" in headers["content-security-policy"]
                assert "set-cookie" not in (await get(port, "/", cookie=cookie))[1]
                assert (await get(port, "/page/chat.js"))[0] == 200
                assert await past(port, "c", cookie) == []

                asked = json.dumps({"conversation": "c", "prompt": "hi"}).encode()
                async with Client.post(port, "/chat", asked, cookie=cookie) as streaming:
                    stop = f"/stop/{streaming.headers['x-stop-id']}"
                    assert [(await streaming.event())[0] for _ in range(2)] == ["start", "message"]
                    async with Client.post(port, stop, cookie=cookie) as button:
                        assert button.status == 202
                    [(_, end)] = await streaming.events()
                assert (end["state"], end["reason"]) == ("interrupted", "user")
                assert end["cost"]["low"] is not None

                _, events = await ask(port, {"conversation": "c", "prompt": ""}, cookie=cookie)
                assert events[-1][1]["state"] == "complete"
                said = [message["content"] for message in model.records[1].json["messages"]]
                assert said == ["hi", "Hello", chat_room.GO_ON]
                kept = await past(port, "c", cookie)
                assert [(turn["role"], turn["text"]) for turn in kept] == [
                    ("user", "hi"), ("assistant", "Hello"), ("user", chat_room.GO_ON), ("assistant", " world"),
                ]  # fmt: skip
                assert [turn.get("state") for turn in kept] == [None, "interrupted", None, "complete"]
                assert (kept[1]["reason"], kept[3]["reason"]) == ("user", None)
                assert kept[3]["provenance"] == "reported"

                _, events = await ask(port, {"conversation": "c", "prompt": "again"}, cookie=cookie)
                assert events[-1][1]["state"] == "failed"
                assert await past(port, "c", cookie) == kept
                assert await past(port, "c", "cancelstream_visitor=somebody-else") == []


async def test_what_is_no_question_is_refused() -> None:
    with AppServer(chat_application(Agent("test"))) as server:
        cookie = "cancelstream_visitor=me"
        wrong: list[Any] = [
            7,
            {},
            {"conversation": "c"},
            {"conversation": "c" * 65, "prompt": "hi"},
            {"conversation": "c", "prompt": 7},
        ]
        for asked in wrong:
            assert (await ask(server.port, asked, cookie=cookie))[0] == 422
        assert (await ask(server.port, {"conversation": "c", "prompt": "hi"}))[0] == 401
        assert (await get(server.port, "/chat/c"))[0] == 401
        async with Client.post(server.port, "/chat", b"no json", cookie=cookie) as client:
            assert client.status == 422
        async with Client.post(server.port, "/stop/x") as client:
            assert client.status == 401


async def test_a_process_keeps_the_conversations_that_were_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_room, "CONVERSATIONS_KEPT", 2)
    kept = chat_room.InMemory()
    for name in ("a", "b", "a", "c"):
        await kept.save("me", name, name.encode())
    assert [await kept.load("me", name) for name in "abc"] == [b"a", None, b"c"]


# --- starting ----------------------------------------------------------------------------------------------------

HERE: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "model": None, "base_url": None, "redis": None, "workers": 1}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What uvicorn would be started with; the application is built as a worker builds it."""
    calls: list[dict[str, Any]] = []

    def run(application: str, **settings: Any) -> None:
        assert application == "cancelstream._demo.serve:application"
        calls.append({**settings, "routes": [route.path for route in serve.application().routes]})

    monkeypatch.setattr(serve.uvicorn, "run", run)
    monkeypatch.setenv(serve.SETTINGS, "")
    return calls


def test_it_serves_the_scripted_model(started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert serve.main(**{**HERE, "port": port}) == 0
    assert started[0]["routes"] == ["/", "/chat", "/chat/{conversation}", "/stop/{stop_id}", "/page"]
    assert (started[0]["host"], started[0]["port"], started[0]["workers"]) == ("127.0.0.1", port, 1)
    said = capsys.readouterr()
    assert f"http://127.0.0.1:{port}/" in said.out
    assert said.err == ""


def test_it_warns_when_others_can_reach_it(started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert serve.main(**{**HERE, "host": "0.0.0.0"}) == 0
    assert "knows no passwords" in capsys.readouterr().err


def test_it_serves_a_real_model_and_several_workers(started: list[dict[str, Any]], redis_server: RedisServer) -> None:
    pytest.importorskip("redis", reason="needs cancelstream[redis]")
    assert serve.main(**{**HERE, "model": "test", "redis": redis_server.url, "workers": 2}) == 0
    assert started[0]["workers"] == 2


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"model": "no-such-provider:model"}, "no-such-provider"),
        ({"redis": "redis://me:secret@127.0.0.1:{port}/0?password=secret"}, "the Redis at 127.0.0.1:"),
        ({"redis": "redis://:secret:secret@127.0.0.1:{port}x"}, "--redis takes redis://"),
        ({"redis": "unix://me:secret@/no/such.sock"}, "the Redis at /no/such.sock does not answer"),
    ],
)
def test_it_says_what_is_missing(
    started: list[dict[str, Any]], wrong: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line, before any worker is started."""
    if "redis" in wrong:
        pytest.importorskip("redis", reason="needs cancelstream[redis]")
        wrong = {"redis": wrong["redis"].format(port=free_port())}
    assert serve.main(**{**HERE, **wrong}) == 2
    assert started == []
    error = capsys.readouterr().err
    assert told in error
    assert "secret" not in error
    assert error.count("\n") == 1


def test_it_says_that_redis_is_not_installed(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "redis", None)
    assert serve.main(**{**HERE, "redis": "redis://127.0.0.1"}) == 2
    assert "cancelstream[redis]" in capsys.readouterr().err
