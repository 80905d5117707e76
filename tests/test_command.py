"""The command, as a person runs it, read by what it prints and how it exits.

In a process of its own where that is what is looked at, else in this one, which has everything imported.
"""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from importlib.metadata import version
from typing import Any

import pytest

from cancelstream.__main__ import main
from cancelstream._demo import stop as stop_demo
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


class Started:
    """The command in a process of its own, which is killed if it does not end."""

    def __init__(self, *arguments: str, **environ: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cancelstream", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environ},
        )
        self._timer = threading.Timer(LIMIT, self._process.kill)
        self._timer.start()
        self.seen = ""

    def interrupt_after(self, text: str) -> None:
        """Press Ctrl-C when this was printed."""
        assert self._process.stdout is not None
        while text not in self.seen:
            self.seen += self._process.stdout.read(1)
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        assert self._process.stdout is not None
        self.seen += self._process.stdout.read()
        self._process.stdout.close()
        status = self._process.wait(LIMIT)
        self._timer.cancel()
        return status


def test_demo_stops_on_ctrl_c():
    """Ctrl-C is a cancel, in the second answer too: the account is printed, and the exit is a normal one."""
    demo = Started("demo", "--after", "1000")
    demo.interrupt_after("A river")
    demo.interrupt_after("Going on")
    assert demo.end() == 0
    assert rows(demo.seen)["stopped"] == "Ctrl-C"
    assert "Traceback" not in demo.seen
    assert not demo.seen.rstrip().endswith("the lowest way becomes a valley.")


def test_demo_stops_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Ctrl-C that comes that early stops a run of which the server never hears."""
    print_answer = stop_demo._print

    async def stopped_first(answer: Any, watch: Any) -> None:
        answer.cancel("Ctrl-C")
        await print_answer(answer, watch)

    monkeypatch.setattr(stop_demo, "_print", stopped_first)
    assert main(["demo"]) == 0
    said = rows(capsys.readouterr().out)
    assert (said["stopped"], said["text kept"]) == ("Ctrl-C", "0 characters, 0 words")
    assert said["server saw the disconnect after"] == "never: it was not asked"


@pytest.mark.parametrize("command", ["demo", "serve"])
def test_ctrl_c_while_it_starts(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """It ends at once, as shells expect it, and says nothing."""
    pytest.importorskip("uvicorn", reason="needs cancelstream[serve]")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    for module in ("stop", "serve"):
        monkeypatch.setattr(f"cancelstream._demo.{module}.provider_model", interrupted)
    assert main([command]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", ["cancelstream demo --after 3", "echo '[]' | cancelstream usage -"])
def test_a_reader_that_has_enough(command: str):
    """A closed pipe ends the command without a word."""
    command = command.replace("cancelstream", f"{sys.executable} -m cancelstream")
    done = subprocess.run(
        ["/bin/bash", "-c", f"set -o pipefail; {command} | exec 0<&-"],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "")


def test_a_terminal_with_few_characters():
    """What it cannot show is replaced, and does not end the command."""
    demo = Started("demo", "--after", "3", PYTHONIOENCODING="ascii")
    assert demo.end() == 0
    assert "A river begins [cut]\n" in demo.seen


def test_the_version(capsys: pytest.CaptureFixture[str]):
    """It is the one of the installed package."""
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"cancelstream {version('cancelstream')}\n"


def test_usage_of_the_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """`-` reads it."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[]")))
    assert main(["usage", "-"]) == 0
    assert capsys.readouterr().out == "no responses in these messages\n"


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


@pytest.mark.parametrize(("trouble", "named"), [("refused", "onnection"), ("401", "401")])
def test_demo_in_trouble(
    scripted_server: StartServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
    named: str,
):
    """A refused connection, a provider's refusal: one line, exit 2."""
    server = scripted_server(HttpError(401), repeat=True)
    url = f"http://127.0.0.1:{unused_port()}/v1" if trouble == "refused" else server.base_url
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)  # a server of one's own may ask for none
    assert main(["demo", "--model", "some-model", "--base-url", url]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("cancelstream: ")
    assert len(printed.splitlines()) == 1
    assert named in printed


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("some-model", "OPENAI_API_KEY"),
        ("openai:some-model", "OPENAI_API_KEY"),
        ("no-such-provider:model", "Unknown model: no-such-provider:model"),
    ],
)
def test_demo_and_serve_take_the_same_models(
    model: str, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """They fail alike: the same line, before anything is started, exit 2."""
    pytest.importorskip("uvicorn", reason="needs cancelstream[serve]")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    told: list[str] = []
    for command in ("demo", "serve"):
        assert main([command, "--model", model]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        told.append(printed.err)
    assert told[0] == told[1]
    assert told[0].startswith("cancelstream: ")
    assert told[0].count("\n") == 1
    assert named in told[0]


@pytest.mark.parametrize(("host", "named"), [("127.0.0.1", "Address already in use"), ("192.0.2.1", "192.0.2.1")])
def test_serve_where_it_cannot_listen(host: str, named: str, capsys: pytest.CaptureFixture[str]):
    """One line says so, and no address is printed that nobody serves."""
    pytest.importorskip("uvicorn", reason="needs cancelstream[serve]")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--host", host, "--port", str(taken.getsockname()[1])]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"cancelstream: cannot listen on {host}, port ")
    assert named in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "COMMAND"),
        (["demo", "--after", "0"], "'0' is not a whole number of at least 1"),
        (["demo", "--after", "many"], "'many' is not a whole number of at least 1"),
        (["serve", "--port", "99999"], "'99999' is not a whole number from 1 to 65535"),
        (["serve", "--workers", "two"], "'two' is not a whole number of at least 1"),
        (["demo", "--base-url", "http://127.0.0.1:9"], "--base-url needs --model"),
        (["serve", "--workers", "2"], "--workers N needs --redis"),
    ],
)
def test_misuse(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]):
    """The line says what is missing."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert says in capsys.readouterr().err
