"""`stop_endpoint`: one answer for everything that may be, and none to a request without a user."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from web_support import AppServer, Client

from cancelstream import MemoryStopRegistry
from cancelstream.starlette import stop_endpoint


class Away(MemoryStopRegistry):
    async def stop(self, stop_id: str, *, owner: str, reason: str = "user") -> Any:
        return "unavailable"


def user(request: Request) -> str | None:
    return request.headers.get("user")


def application(registry: Any, owner: Any = user, methods: list[str] | None = None) -> Starlette:
    return Starlette(
        routes=[Route("/stop/{stop_id}", stop_endpoint(registry, owner=owner), methods=methods or ["POST"])]
    )


async def ask(app: Any, stop_id: str, **more: Any) -> tuple[int, bytes, dict[str, str]]:
    with AppServer(app, lifespan="off") as server:
        async with Client.post(server.port, f"/stop/{stop_id}", **more) as client:
            body = await client.body()
            headers = {name: value for name, value in client.headers.items() if name != "date"}
            return client.status, body, headers


async def test_one_answer_for_everything_that_may_be() -> None:
    """Status, headers and body are the same to the byte."""
    registry = MemoryStopRegistry()
    registry.register("mine", lambda: None, owner="me")
    registry.register("ended", lambda: None, owner="me").close()
    app = application(registry)
    answers = [
        await ask(app, stop_id, user=who)
        for stop_id, who in (
            ("mine", "me"),
            ("mine", "her"),
            ("ended", "me"),
            ("unknown", "me"),
            ("%00%ff" * 100, "me"),
        )
    ]
    assert all(answer == answers[0] for answer in answers)
    assert answers[0][:2] == (202, b'{"status":"accepted"}')


async def test_only_the_owner_stops_it() -> None:
    registry, stopped = MemoryStopRegistry(), []
    registry.register("mine", lambda reason: stopped.append(reason), owner="me")
    app = application(registry)
    await ask(app, "mine", user="her")
    assert stopped == []
    await ask(app, "mine", user="me")
    assert stopped == ["user"]


async def test_it_says_when_it_is_not_known_whether_the_stop_was_taken() -> None:
    status, body, headers = await ask(application(Away()), "a", user="me")
    assert (status, body, headers["retry-after"]) == (503, b'{"status":"unknown"}', "1")


@pytest.mark.parametrize("more", [{}, {"user": ""}])
async def test_a_request_without_a_user_stops_nothing(more: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    registry, stopped = MemoryStopRegistry(), []
    registry.register("a", lambda: stopped.append(1), owner="me")
    status, _, _ = await ask(application(registry), "a", **more)
    assert (status, stopped) == (403, [])
    assert "owner= has to give a user" in caplog.text


async def test_the_owner_may_be_a_coroutine_function_and_may_refuse() -> None:
    async def session(request: Request) -> str:
        if "user" not in request.headers:
            raise HTTPException(401, "who are you?")
        return request.headers["user"]

    app = application(MemoryStopRegistry(), session)
    assert (await ask(app, "a", user="me"))[0] == 202
    assert (await ask(app, "a"))[:2] == (401, b"who are you?")


async def test_a_route_that_forgot_its_methods_is_not_reached_by_a_link() -> None:
    registry, stopped = MemoryStopRegistry(), []
    registry.register("a", lambda: stopped.append(1), owner="me")
    status, _, headers = await ask(application(registry, methods=["GET"]), "a", method="GET", user="me")
    assert (status, headers["allow"], stopped) == (405, "POST", [])


async def test_as_a_route_of_fastapi() -> None:
    registry, stopped = MemoryStopRegistry(), []
    registry.register("a", lambda: stopped.append(1), owner="me")
    app = FastAPI()
    app.add_api_route("/stop/{stop_id}", stop_endpoint(registry, owner=user), methods=["POST"])
    assert (await ask(app, "a", user="me"))[:2] == (202, b'{"status":"accepted"}')
    assert stopped == [1]
