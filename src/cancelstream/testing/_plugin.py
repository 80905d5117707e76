"""The pytest plugin: the fixture `scripted_server`. The one module here that imports pytest."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator

import pytest

from ._script import Turn
from ._server import ScriptedServer, StartServer

__all__ = ("scripted_server",)


@pytest.fixture
def scripted_server() -> Iterator[StartServer]:
    """Start a `ScriptedServer` by calling this with its turns; each is closed when the test has ended."""
    with contextlib.ExitStack() as servers:

        def start(*turns: Turn, repeat: bool = False, ssl_context: ssl.SSLContext | None = None) -> ScriptedServer:
            return servers.enter_context(ScriptedServer(*turns, repeat=repeat, ssl_context=ssl_context))

        yield start
