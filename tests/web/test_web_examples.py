"""The examples about the web run as their docstrings say, and show what they promise."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from web_support import RedisServer

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_fastapi_chat() -> None:
    """Five deltas, the stop, and the end; and what was shown was saved as cut."""
    lines = run("fastapi_chat.py")
    assert lines[0] == "event: start"
    assert "-> stop: 202 {'status': 'accepted'}" in lines
    end = json.loads(lines[lines.index("event: end") + 1].removeprefix("data: "))
    assert (end["state"], end["reason"]) == ("interrupted", "user")
    saved = json.loads(lines[-1].removeprefix("saved: "))
    assert saved["state"] == "interrupted"
    assert saved["text"].startswith("A river begins as water")


def test_stop_across_workers(redis_server: RedisServer) -> None:
    """A stranger gets the same answer as the owner, and stops nothing."""
    pytest.importorskip("redis", reason="needs cancelstream[redis]")
    text = "\n".join(run("stop_across_workers.py", redis_server.url))
    stranger = text.index("a stranger stops it: requested")
    owner = text.index("its owner stops it: requested")
    assert "river" in text[stranger:owner]
    assert text.endswith("worker A: interrupted, reason 'user'")
