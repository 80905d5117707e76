"""The recipes in docs/web.md for other frameworks, as they stand there: stop, leave, the server's end, the save."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from web_support import LIMIT, AppServer, Client

from cancelstream import MemoryStopRegistry
from cancelstream.testing import Answer, ScriptedServer, Silence, Text

DOCS = Path(__file__).parents[2] / "docs" / "web.md"


class Application:
    """What a recipe takes from its application: an agent, a registry, and where answers are saved."""

    def __init__(self, client: AsyncOpenAI, registry: MemoryStopRegistry) -> None:
        self.agent = Agent(OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client)))
        self.registry = registry
        self.saved: list[tuple[Any, Any, Any]] = []

    async def save(self, run: Any) -> None:
        await asyncio.sleep(0)
        self.saved.append((run.response.text, run.response.state, run.cancel_reason))

    def recipe(self, name: str, **more: Any) -> dict[str, Any]:
        found = re.search(
            rf"<!-- recipe: {name} -->\n(?:<!-- skip[^\n]*\n)?```python\n(.*?)```", DOCS.read_text(), re.DOTALL
        )
        assert found is not None
        namespace = {
            "__name__": "recipe", "agent": self.agent, "registry": self.registry, "save": self.save, **more,
        }  # fmt: skip
        exec(found[1], namespace)
        return namespace

    async def until_saved(self, number: int) -> None:
        async with asyncio.timeout(LIMIT):
            while len(self.saved) < number:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def aiohttp_server(application: Application) -> AsyncGenerator[int]:
    web = pytest.importorskip("aiohttp.web", reason="aiohttp is missing")
    runner = web.AppRunner(application.recipe("aiohttp")["site"], handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def django_server(application: Application) -> AsyncGenerator[int]:
    django = pytest.importorskip("django", reason="django is missing: `pip install django`")
    from django.conf import settings
    from django.urls import path

    recipe = application.recipe("django")
    if not settings.configured:
        settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="x", USE_TZ=True, LOGGING_CONFIG=None)
        django.setup()
    from django.urls import clear_url_caches, set_urlconf

    urls = type("urls", (), {"urlpatterns": [path("chat", recipe["chat"]), path("stop/<str:stop_id>", recipe["stop"])]})
    settings.ROOT_URLCONF = urls
    clear_url_caches()
    set_urlconf(None)
    with AppServer(application.recipe("django-asgi")["application"]) as server:
        yield server.port


@pytest.fixture(params=["memory", "redis"])
def registry(request: pytest.FixtureRequest) -> MemoryStopRegistry:
    """One of each kind; that on Redis takes no stream before the recipe has entered it."""
    if request.param == "memory":
        return MemoryStopRegistry()
    door = pytest.importorskip("cancelstream.redis", reason="needs cancelstream[redis]")
    made: MemoryStopRegistry = door.RedisStopRegistry.from_url(request.getfixturevalue("redis_server").url)
    return made


@pytest.mark.parametrize("framework", [aiohttp_server, django_server])
async def test_recipe(framework: Any, registry: MemoryStopRegistry) -> None:
    """Stop: the end is sent. Leave: the model's server is told, while it is silent too. Both are saved as cut."""
    with ScriptedServer(Answer(Text("Hel", "lo"), Silence()), repeat=True) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            application = Application(client, registry)
            body = json.dumps({"prompt": "hi"}).encode()
            async with framework(application) as port:
                async with Client.post(port, "/chat", body, x_user="ada") as asked:
                    assert await asked.event() == ("message", {"delta": "Hello"})
                    stop = f"/stop/{asked.headers['x-stop-id']}"
                    for user in ("eve", "ada"):
                        async with Client.post(port, stop, x_user=user) as button:
                            assert button.status == 202
                    assert await asked.event() == ("end", {"state": "interrupted", "reason": "user"})
                    assert await asked.events() == []
                await model.records[0].until_disconnected()
                async with Client.post(port, "/chat", body, x_user="ada") as asked:
                    assert await asked.event() == ("message", {"delta": "Hello"})
                await model.records[1].until_disconnected()
                await application.until_saved(2)
            assert [saved[:2] for saved in application.saved] == [("Hello", "interrupted")] * 2
            assert application.saved[0][2] == "user"
            assert application.registry._live == {}


async def test_aiohttp_ends_while_an_answer_runs() -> None:
    """Before it waits for its handlers, the answer is stopped, sends its end and is saved."""
    with ScriptedServer(Answer(Text("Hel", "lo"), Silence())) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            application = Application(client, MemoryStopRegistry())
            async with contextlib.AsyncExitStack() as clients, asyncio.timeout(LIMIT):
                async with aiohttp_server(application) as port:
                    body = json.dumps({"prompt": "hi"}).encode()
                    asked = await clients.enter_async_context(Client.post(port, "/chat", body, x_user="ada"))
                    assert await asked.event() == ("message", {"delta": "Hello"})
                assert await asked.event() == ("end", {"state": "interrupted", "reason": "server_shutdown"})
            assert application.saved == [("Hello", "interrupted", "server_shutdown")]


async def test_over_a_websocket() -> None:
    """Stop, leave, and the end of the server: each is sent where somebody is there to read it, and saved."""
    websockets = pytest.importorskip("websockets.asyncio.client", reason="websockets is missing")
    from fastapi import FastAPI

    with ScriptedServer(Answer(Text("Hel", "lo"), Silence()), repeat=True) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            application, app = Application(client, MemoryStopRegistry()), FastAPI()
            application.recipe("websocket", app=app)
            with AppServer(app) as server:
                url, who = f"ws://127.0.0.1:{server.port}/talk", {"cookie": "user=ada"}
                for reason in ("user", "client_disconnect", "server_shutdown"):
                    async with asyncio.timeout(LIMIT), websockets.connect(url, additional_headers=who) as socket:
                        await socket.send("hi")
                        assert json.loads(await socket.recv()).keys() == {"stop_id"}
                        assert json.loads(await socket.recv()) == {"delta": "Hello"}
                        if reason == "user":
                            await socket.send("stop")
                        elif reason == "server_shutdown":
                            application.registry.drain()
                        if reason != "client_disconnect":
                            assert json.loads(await socket.recv()) == {"state": "interrupted", "reason": reason}
                    await application.until_saved(len(application.saved) or 1)
                await application.until_saved(3)
            assert [saved[:2] for saved in application.saved] == [("Hello", "interrupted")] * 3
            assert {saved[2] for saved in application.saved} == {"user", "client_disconnect", "server_shutdown"}
            assert application.registry._live == {}
