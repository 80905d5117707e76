"""The examples about histories and the final turn run as their docstrings say, and show what they promise."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the example prints, run here: in a process of its own nearly all the time would go into imports."""
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_continue_after_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """Both halves together are the answer; the cut one was refused before it was salvaged."""
    first, stopped, refused, rest, states = run("continue_after_stop.py", capsys)
    assert first + rest == "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."
    assert stopped == "-- stopped --"
    assert refused == "refused: message 1 is 'interrupted' (seen enough)"
    assert states == "['complete', 'interrupted', 'complete', 'complete']"


def test_final_answer_only(capsys: pytest.CaptureFixture[str]) -> None:
    """Held, the preamble never shows; retracted, it shows and goes."""
    lines = run("final_answer_only.py", capsys)
    at = lines.index("-- retracted --")
    assert lines[:at] == ["-- held --", "22 degrees, and sunny."]
    assert lines[at + 1 :] == [
        "[Let me look]",
        "[Let me look that up.]",
        "[]",
        "[22 degrees,]",
        "[22 degrees, and sunny.]",
    ]
