"""The server and the page of docs/web.md, pasted as they stand there, in a real Chromium."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from test_page import CHROMIUM, FLAGS, NO_CHROMIUM
from web_support import AppServer, Client

from cancelstream.testing import Answer, Gate, ScriptedServer, Text

DOCS = (Path(__file__).parents[2] / "docs" / "web.md").read_text()


def block(after: str, language: str) -> str:
    found = re.search(rf"^{re.escape(after)}\n.*?^```{language}\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


class Pasted:
    """The server of the docs, which serves the page of the docs."""

    def __init__(self, model: ScriptedServer) -> None:
        self.model = model
        self.names: dict[str, Any] = {"__name__": "pasted"}
        exec(block("## The whole of it", "python"), self.names)


@pytest.fixture
def pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Pasted]:
    (tmp_path / "page.html").write_text(block("## The page", "html"))
    monkeypatch.chdir(tmp_path)
    gate = Gate()
    with ScriptedServer(Answer(Text("Hel", "lo", gate)), repeat=True) as model:
        monkeypatch.setenv("OPENAI_API_KEY", "none")
        monkeypatch.setenv("OPENAI_BASE_URL", model.base_url)
        yield Pasted(model)
        gate.open()


async def test_the_server_of_the_docs_knows_the_visitors_of_its_page(pasted: Pasted) -> None:
    """The page sets the cookie by which both the question and the stop are known; without it both are refused."""
    with AppServer(pasted.names["app"]) as server:
        async with Client.post(server.port, "/", method="GET") as page:
            cookie = page.headers["set-cookie"].split(";")[0]
            assert b"<script" in await page.body()
        asked = b'{"prompt": "hi"}'
        for cookies, status in ({}, 401), ({"cookie": cookie}, 200):
            async with Client.post(server.port, "/chat", asked, content_type="application/json", **cookies) as chat:
                assert chat.status == status
                if cookies:
                    stop = f"/stop/{chat.headers['x-stop-id']}"
                    async with Client.post(server.port, stop) as nobody:
                        assert nobody.status == 401
                    async with Client.post(server.port, stop, **cookies) as button:
                        assert button.status == 202
                    assert (await chat.events())[-1][1]["reason"] == "user"


@pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)
def test_the_page_of_the_docs_asks_and_stops(pasted: Pasted) -> None:
    """Also when the first answers to its stop are 503: it asks again. And it stops the answer when it is left."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing")
    registry, taken = pasted.names["registry"], []
    really = registry.stop

    async def at_the_third_time(stop_id: str, **more: Any) -> str:
        taken.append(stop_id)
        return "unavailable" if len(taken) < 3 else await really(stop_id, **more)

    registry.stop = at_the_third_time
    with AppServer(pasted.names["app"]) as server, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        tab = browser.new_page()
        tab.set_default_timeout(30_000)
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(f"http://127.0.0.1:{server.port}/")
        for number in range(2):
            tab.locator("input").fill("hi")
            tab.get_by_role("button", name="Send").click()
            tab.get_by_text("Hello").wait_for()
            record = pasted.model.wait_request(number)
            if number == 0:
                tab.get_by_role("button", name="Stop").click()
                tab.get_by_text("Hello (not a whole answer: user)").wait_for()
            else:
                tab.goto("about:blank")
            record.wait_disconnected()
        browser.close()
    assert len(taken) == 3
    assert errors == []
