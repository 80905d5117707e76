"""Run the snippets of the README and the guides, against a provider on this machine."""

from __future__ import annotations

import os
from typing import Any

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


def _setup(namespace: dict[str, Any]) -> None:
    """The names that the snippets use for a provider lead to a scripted one."""
    server = namespace["_server"] = ScriptedServer(ANSWER, repeat=True)
    server.start()
    namespace["_environ"] = dict(os.environ)
    os.environ.update(OPENAI_API_KEY="not-a-key", OPENAI_BASE_URL=server.base_url)


def _teardown(namespace: dict[str, Any]) -> None:
    os.environ.clear()
    os.environ.update(namespace["_environ"])
    namespace["_server"].close()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md"],
    setup=_setup,
    teardown=_teardown,
).pytest()
