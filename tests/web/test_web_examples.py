"""The examples about the web run as their docstrings say, and show what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs cancelstream[starlette]")

from web_processes import LONG, Script
from web_support import RedisServer

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(output: Path, name: str, *arguments: str) -> list[str]:
    with Script(output, EXAMPLES / name, *arguments) as script:
        script.wait(LONG)
        assert script.process.exitcode == 0, script.said()
    return script.said().splitlines()


def test_fastapi_chat(tmp_path: Path) -> None:
    """Five deltas, the stop, and the end; and what was shown was saved as cut."""
    lines = run(tmp_path / "output", "fastapi_chat.py")
    assert lines[0] == "event: start"
    assert "-> stop: 202 {'status': 'accepted'}" in lines
    end = json.loads(lines[lines.index("event: end") + 1].removeprefix("data: "))
    assert (end["state"], end["reason"]) == ("interrupted", "user")
    saved = json.loads(lines[-1].removeprefix("saved: "))
    assert saved["state"] == "interrupted"
    assert saved["text"].startswith("A river begins as water")


def test_stop_across_workers(redis_server: RedisServer, tmp_path: Path) -> None:
    """A stranger gets the same answer as the owner, and stops nothing."""
    pytest.importorskip("redis", reason="needs cancelstream[redis]")
    text = "\n".join(run(tmp_path / "output", "stop_across_workers.py", redis_server.url))
    stranger = text.index("a stranger stops it: requested")
    owner = text.index("its owner stops it: requested")
    assert "river" in text[stranger:owner]
    assert text.endswith("worker A: interrupted, reason 'user'")
