"""The names that other libraries keep private are still there, and a lost one is said once.

A failure of a canary after an upgrade means that the function it names falls back. The canaries of the HTTP libraries
need live connections: they are in `engine/test_transport.py`.
"""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest

from cancelstream import _upstream
from cancelstream._upstream.anyio import is_from_scope


def test_a_lost_name_is_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """The log names the library, its version, the name and what is done without it, once for each name."""
    monkeypatch.setattr(_upstream, "_told", set[tuple[str, str]]())
    with caplog.at_level(logging.WARNING, "cancelstream"):
        for _ in range(2):
            _upstream.missing("anyio", "hidden thing", "nothing is hidden")
        _upstream.missing("no-such-library", "thing", "nothing is done")
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("anyio 4.")
    assert "has no hidden thing any more, so nothing is hidden" in first
    assert second.startswith("no-such-library (not installed under that name)")


async def test_anyio_names_its_scope_in_a_cancellation():
    """`is_from_scope` tells a scope's cancellation from a `task.cancel()`."""
    caught: list[bool] = []

    async def wait() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as error:
            caught.append(is_from_scope(error))
            raise

    with anyio.CancelScope() as scope:
        asyncio.get_running_loop().call_soon(scope.cancel)
        await wait()
    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert caught == [True, False]
