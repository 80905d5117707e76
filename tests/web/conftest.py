"""Fixtures of the web tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# What the tests here share is a module beside them, and the import mode adds no folder to the path.
sys.path.insert(0, str(Path(__file__).parent))

import web_processes
from web_support import RedisServer


@pytest.fixture(scope="session", autouse=True)
def _imports() -> None:
    """Made beside the first tests, for those that start processes."""
    web_processes.prepare()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A redis-server of the test's own; the test is skipped where none is installed."""
    with RedisServer() as server:
        yield server
