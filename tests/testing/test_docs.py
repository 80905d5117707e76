"""The tests that the guide shows are tests that run; its other snippets run with all the documentation's."""

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

GUIDE = Path(__file__).parents[2] / "docs" / "testing.md"


def test_the_guides_own_tests(pytester: pytest.Pytester) -> None:
    """What the guide shows for pytest passes as it stands."""
    snippets = re.findall(r"^```python\n(.*?)^```$", GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    shown = [snippet for snippet in snippets if "def test_" in snippet]
    assert len(shown) == 1
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(shown[0])
    pytester.runpytest_inprocess("-W", "error").assert_outcomes(passed=2)
