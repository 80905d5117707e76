"""The command, as a person runs it, read by what it prints and how it exits.

In a process of its own where that is what is looked at, else in this one, which has everything imported.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading

import pytest

from cancelstream.__main__ import main
from cancelstream.testing import Answer, HttpError, Text
from cancelstream.testing._plugin import StartServer

LIMIT = 60


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "cancelstream", *arguments],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        env=environ,
        check=False,
    )


def rows(output: str) -> dict[str, str]:
    return dict(re.findall(r"^(\S.*?)  +(\S.*)$", output, re.MULTILINE))


def test_demo_stops_by_itself_and_says_what_was_stopped():
    """The whole account is there, the cut answer is refused, and salvaged it goes on."""
    done = run("demo", "--after", "5")
    assert (done.returncode, done.stderr) == (0, "")
    said = rows(done.stdout)
    assert said["stopped"] == "enough"
    assert said["text kept"] == "23 characters, 5 words"
    assert said["state"] == "interrupted"
    assert said["output tokens"].startswith("5 ")
    assert "estimated" in said["output tokens"]
    assert float(said["server saw the disconnect after"].removesuffix(" ms")) < 5000
    assert said["chunks it generated after the call"].isdigit()
    assert "IncompleteHistoryError: message 1 of the history" in done.stdout
    assert done.stdout.rstrip().endswith("the lowest way becomes a valley.")


def test_demo_to_the_end(capsys: pytest.CaptureFixture[str]):
    """An answer that nobody stops is whole, and its usage is reported."""
    status = main(["demo", "--after", "1000"])
    printed = capsys.readouterr().out
    said = rows(printed)
    assert (status, said["state"], said["usage"]) == (0, "complete", "reported")
    assert said["stopped"] == "no: the answer had ended"
    assert "IncompleteHistoryError" not in printed


def test_demo_stops_on_ctrl_c():
    """Ctrl-C is a cancel: the account is printed, and the exit is a normal one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cancelstream", "demo", "--after", "1000"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    timer = threading.Timer(LIMIT, process.kill)
    timer.start()
    assert process.stdout is not None
    seen = ""
    while "A river" not in seen:
        seen += process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    seen += process.stdout.read()
    process.stdout.close()
    assert process.wait(LIMIT) == 0
    timer.cancel()
    assert rows(seen)["stopped"] == "Ctrl-C"


def test_demo_with_a_real_provider(
    scripted_server: StartServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """With `--model` the same code runs, and what only a server can see is not observable."""
    server = scripted_server(Answer(Text.words("one two three four five six", gap=0.02)), repeat=True)
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    status = main(["demo", "--after", "2", "--model", "some-model", "--base-url", server.base_url])
    printed = capsys.readouterr()
    said = rows(printed.out)
    assert (status, printed.err, said["stopped"]) == (0, "", "enough")
    assert said["server saw the disconnect after"] == "not observable"
    assert said["chunks it generated after the call"] == "not observable"
    assert server.records[0].json["model"] == "some-model"


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize(("trouble", "named"), [("no key", "OPENAI_API_KEY"), ("refused", "onnection"), ("401", "401")])
def test_demo_in_trouble(
    scripted_server: StartServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
    named: str,
):
    """A missing key, a refused connection, a provider's refusal: one line, exit 2."""
    server = scripted_server(HttpError(401), repeat=True)
    url = f"http://127.0.0.1:{unused_port()}/v1" if trouble == "refused" else server.base_url
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    if trouble != "no key":
        monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert main(["demo", "--model", "some-model", "--base-url", url]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("cancelstream: ")
    assert len(printed.splitlines()) == 1
    assert named in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["demo", "--after", "0"], "less than 1"),
        (["demo", "--base-url", "http://127.0.0.1:9"], "--base-url needs --model"),
        (["serve", "--workers", "2"], "--workers N needs --redis"),
    ],
)
def test_misuse(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    """The line says what is missing."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert says in capsys.readouterr().err
