"""The page of `cancelstream serve` in a real Chromium: Stop, Esc, Continue, and every way to leave it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from web_processes import Page
from web_support import RedisServer

from cancelstream.testing import Answer, Record, ScriptedServer, Text

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NO_CHROMIUM = "Chromium is missing: `apt-get install chromium chromium-driver`"

LONG = Answer(Text(*(f"word{number} " for number in range(3000)), gap=0.01))

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)


@pytest.fixture(scope="module")
def browser() -> Generator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: `pip install playwright`")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def model() -> Generator[ScriptedServer]:
    """A model that talks for half a minute."""
    with ScriptedServer(LONG, repeat=True) as server:
        yield server


@pytest.fixture(scope="module")
def served(model: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Generator[Page]:
    with Page(tmp_path_factory.mktemp("page") / "output", model.base_url) as page:
        yield page


@pytest.fixture
def tab(browser: Any, served: Page) -> Generator[Any]:
    """A visitor's first tab, which fails the test for any error of the page's and any request to elsewhere."""
    context = browser.new_context()
    context.set_default_timeout(30_000)
    tab = context.new_page()
    errors: list[str] = []
    asked: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(served.url)
    yield tab
    context.close()
    assert errors == []
    assert all(url.startswith((served.url, "about:")) for url in asked)


def send(tab: Any, model: ScriptedServer) -> Record:
    """Send a message and return when some of the answer has come, with what the model's server has of it."""
    before = len(model.records)
    tab.get_by_label("Your message").fill("Tell me about rivers.")
    tab.get_by_role("button", name="Send").click()
    tab.get_by_text("word3 ").last.wait_for()
    return model.wait_request(before)


def last_answer(tab: Any) -> Any:
    return tab.locator("article.assistant").last


def test_the_stop_button_and_continue(tab: Any, model: ScriptedServer) -> None:
    """The answer is marked as cut, with its usage and cost; Continue goes on from it, as `salvage` allows."""
    record = send(tab, model)
    stop = tab.get_by_role("button", name="Stop")
    assert not tab.get_by_role("button", name="Send").is_enabled()
    stop.click()
    record.wait_disconnected()
    cut = last_answer(tab)
    cut.get_by_text("Not a whole answer: stopped by you").wait_for()
    assert "cut" in cut.get_attribute("class").split()
    assert " tokens" in cut.locator(".usage").inner_text()
    assert cut.locator(".cost").inner_text() != ""
    assert tab.get_by_role("status").inner_text() == "Not a whole answer: stopped by you."
    assert not stop.is_enabled()
    assert tab.evaluate("document.activeElement.id") == "prompt"
    text = cut.locator(".text").inner_text()

    before = len(model.records)
    cut.get_by_role("button", name="Continue").click()
    tab.wait_for_function("document.querySelectorAll('article.assistant').length === 2")
    again = model.wait_request(before)
    said = [(message["role"], message["content"]) for message in again.json["messages"]]
    assert said[0] == ("user", "Tell me about rivers.")
    assert said[1][0] == "assistant"
    # What is kept may be ahead of what was shown by the piece that was in flight when it was stopped.
    assert said[1][1].startswith(text.strip())
    assert said[2] == ("user", "Go on from where you were stopped.")
    assert cut.get_by_role("button", name="Continue").count() == 0
    tab.keyboard.press("Escape")
    again.wait_disconnected()


def test_escape_stops_and_enter_sends(tab: Any, model: ScriptedServer) -> None:
    """By keyboard alone."""
    before = len(model.records)
    prompt = tab.get_by_label("Your message")
    prompt.focus()
    prompt.fill("")
    tab.keyboard.type("Tell me")
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.type("about rivers.")
    tab.keyboard.press("Enter")
    record = model.wait_request(before)
    assert record.json["messages"][-1]["content"] == "Tell me\nabout rivers."
    tab.get_by_text("word3 ").last.wait_for()
    tab.keyboard.press("Escape")
    record.wait_disconnected()
    last_answer(tab).get_by_text("stopped by you").wait_for()


def test_reload(tab: Any, model: ScriptedServer) -> None:
    """The model's server is told, and the page shows what had arrived as cut."""
    record = send(tab, model)
    tab.reload()
    record.wait_disconnected()
    # Saved when the stream had ended, which may have been a moment after the page asked.
    tab.wait_for_function(
        """async () => {
            const past = await fetch('chat/' + sessionStorage.conversation);
            return (await past.json()).at(-1)?.state === 'interrupted';
        }"""
    )
    tab.reload()
    cut = last_answer(tab)
    cut.get_by_text("Not a whole answer: cut off: the page was left").wait_for()
    assert cut.locator(".text").inner_text().startswith("word0 word1")
    assert cut.get_by_role("button", name="Continue").is_visible()


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda tab: tab.close(), id="close the tab"),
        pytest.param(lambda tab: tab.goto("about:blank"), id="navigate away"),
    ],
)
def test_leaving(tab: Any, model: ScriptedServer, leave: Callable[[Any], None]) -> None:
    record = send(tab, model)
    leave(tab)
    record.wait_disconnected()


def test_a_second_visitor_sees_nothing_of_the_first(
    tab: Any, browser: Any, served: Page, model: ScriptedServer
) -> None:
    """Not with the same conversation's id either: it is kept under the cookie."""
    record = send(tab, model)
    tab.keyboard.press("Escape")
    record.wait_disconnected()
    last_answer(tab).get_by_text("stopped by you").wait_for()
    conversation = tab.evaluate("sessionStorage.conversation")
    other = browser.new_context()
    page = other.new_page()
    page.goto(served.url)
    assert page.evaluate("async (id) => (await fetch('chat/' + id)).json()", conversation) == []
    assert len(tab.evaluate("async (id) => (await fetch('chat/' + id)).json()", conversation)) == 2
    other.close()


@pytest.fixture
def workers(model: ScriptedServer, redis_server: RedisServer, tmp_path: Path) -> Generator[Page]:
    with Page(tmp_path / "output", model.base_url, "--workers", "2", "--redis", redis_server.url) as served:
        yield served


def test_several_workers(browser: Any, model: ScriptedServer, workers: Page) -> None:
    """Whichever worker has the stream and whichever gets the stop; and any of them has the conversation."""
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(workers.url)
    for _ in range(6):
        record = send(tab, model)
        tab.get_by_role("button", name="Stop").click()
        last_answer(tab).get_by_text("Not a whole answer: stopped by you").wait_for()
        record.wait_disconnected()
        assert last_answer(tab).locator(".usage").inner_text() != ""  # told by the server's last event
    tab.reload()
    tab.get_by_text("stopped by you").last.wait_for()
    assert tab.locator("article.cut").count() == 6
    context.close()


@pytest.mark.soak
def test_several_workers_and_a_redis_that_hangs(
    browser: Any, model: ScriptedServer, workers: Page, redis_server: RedisServer
) -> None:
    """A stop may come to the worker that has the stream, which needs no Redis; if not, the page hangs up in the end."""
    context = browser.new_context()
    tab = context.new_page()
    tab.goto(workers.url)
    record = send(tab, model)
    redis_server.freeze()
    tab.get_by_role("button", name="Stop").click()
    record.wait_disconnected(15)
    redis_server.thaw()
    last_answer(tab).get_by_text("stopped by you").wait_for()
    context.close()


@pytest.mark.skipif(CHROMEDRIVER is None, reason=NO_CHROMIUM)
def test_a_page_that_the_browser_keeps_frozen(served: Page, model: ScriptedServer, tmp_path: Path) -> None:
    """Chromium keeps a page that was left, with its connections, in case the user comes back (bfcache): the page hangs
    up itself. Driven by Selenium, because Playwright switches that cache off."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: `pip install selenium`")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ["--headless", f"--user-data-dir={tmp_path / 'profile'}", *FLAGS]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    try:
        driver.get(served.url)
        driver.execute_script("addEventListener('pageshow', (event) => { window.cameBack = event.persisted })")
        before = len(model.records)
        driver.find_element(By.ID, "send").click()
        wait = WebDriverWait(driver, 30)
        wait.until(lambda driver: "word3" in driver.find_element(By.ID, "transcript").text)
        driver.get(f"{served.url}page/icon.svg")
        model.wait_request(before).wait_disconnected()
        driver.back()
        wait.until(lambda driver: driver.execute_script("return window.cameBack") is True)
        assert "Not a whole answer" in driver.find_element(By.ID, "transcript").text
    finally:
        driver.quit()
