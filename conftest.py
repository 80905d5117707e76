"""What all tests share: cheap clients; and the snippets of the README and the guides, run against a local provider."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trustme
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from cancelstream.testing import Answer, ScriptedServer, Text

ANSWER = Answer(
    Text.words(
        "A river begins as water that has nowhere else to go. That is enough about rivers. But there is more to say, "
        "and it goes on saying it.",
        gap=0.03,
    )
)


def pytest_configure(config: pytest.Config) -> None:
    """Have clients trust one certificate instead of all the world's.

    Every client loads its certificates anew, which took a quarter of the time of all tests. Nothing here leaves this
    machine, and what speaks TLS is told whom to trust.
    """
    folder = tempfile.TemporaryDirectory()
    config.add_cleanup(folder.cleanup)
    path = Path(folder.name) / "certificates.pem"
    trustme.CA().cert_pem.write_to_path(path)
    os.environ["SSL_CERT_FILE"] = str(path)


def _setup(namespace: dict[str, Any]) -> None:
    """The names that the snippets use for a provider lead to a scripted one."""
    server = namespace["_server"] = ScriptedServer(ANSWER, repeat=True)
    server.start()
    namespace["_environ"] = dict(os.environ)
    os.environ.update(OPENAI_API_KEY="not-a-key", OPENAI_BASE_URL=server.base_url)
    # Blocking snippets run on the thread's own loop, which in a script lives as long as the thread does.
    namespace["_loop"] = asyncio.new_event_loop()
    asyncio.set_event_loop(namespace["_loop"])


def _teardown(namespace: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(namespace["_environ"])
    asyncio.set_event_loop(None)
    namespace["_loop"].close()
    namespace["_server"].close()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    setup=_setup,
    teardown=_teardown,
).pytest()
