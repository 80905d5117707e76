"""Fixtures of the strands tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# What the tests here share is a module beside them. This folder cannot be a package: it would pass for `strands`.
# The server for HTTP/2 is the engine tests', and the one for applications is the web tests'.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "engine"), str(HERE.parent / "web")]

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "true"  # or importing it asks the network for prices
