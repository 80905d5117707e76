"""The examples about histories and the final turn run as their docstrings say, and show what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_continue_after_stop() -> None:
    """Both halves together are the answer; the cut one was refused before it was salvaged."""
    first, stopped, refused, rest, states = run("continue_after_stop.py")
    assert first + rest == "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."
    assert stopped == "-- stopped --"
    assert refused == "refused: message 1 is 'interrupted' (seen enough)"
    assert states == "['complete', 'interrupted', 'complete', 'complete']"


def test_final_answer_only() -> None:
    """Held, the preamble never shows; retracted, it shows and goes."""
    lines = run("final_answer_only.py")
    at = lines.index("-- retracted --")
    assert lines[:at] == ["-- held --", "22 degrees, and sunny."]
    assert lines[at + 1 :] == [
        "[Let me look]",
        "[Let me look that up.]",
        "[]",
        "[22 degrees,]",
        "[22 degrees, and sunny.]",
    ]
