"""The recipes in docs/web.md for other frameworks, as they stand there: stop, leave, and what is saved."""

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

    def __init__(self, client: AsyncOpenAI) -> None:
        self.agent = Agent(OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=client)))
        self.registry = MemoryStopRegistry()
        self.saved: list[tuple[Any, Any, Any]] = []

    async def save(self, run: Any) -> None:
        await asyncio.sleep(0)
        self.saved.append((run.response.text, run.response.state, run.cancel_reason))

    def recipe(self, name: str) -> dict[str, Any]:
        found = re.search(rf"<!-- recipe: {name} -->\n(?:<!--.*-->\n)?```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
        assert found is not None
        namespace = {"__name__": "recipe", "agent": self.agent, "registry": self.registry, "save": self.save}
        exec(found[1], namespace)
        return namespace

    async def until_saved(self, number: int) -> None:
        async with asyncio.timeout(LIMIT):
            while len(self.saved) < number:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def aiohttp_server(application: Application) -> AsyncGenerator[int]:
    web = pytest.importorskip("aiohttp.web", reason="aiohttp is missing")
    recipe = application.recipe("aiohttp")
    app = web.Application()
    app.add_routes([web.post("/chat", recipe["chat"]), web.post("/stop/{stop_id}", recipe["stop"])])
    runner = web.AppRunner(app, handler_cancellation=True)
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
    from django.core.asgi import get_asgi_application
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
    with AppServer(get_asgi_application(), lifespan="off") as server:
        yield server.port


@pytest.mark.parametrize("framework", [aiohttp_server, django_server])
async def test_recipe(framework: Any) -> None:
    """Stop: the end is sent. Leave: the model's server is told, while it is silent too. Both are saved as cut."""
    with ScriptedServer(Answer(Text("Hel", "lo"), Silence()), repeat=True) as model:
        async with AsyncOpenAI(base_url=model.base_url, api_key="none", max_retries=0) as client:
            application = Application(client)
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
