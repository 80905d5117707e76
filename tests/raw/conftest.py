"""Every stream there is to try."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio

from .support import RECORDINGS, WHY_SKIPPED, WRITTEN, Sent, recorded


def _id(sent: Sent) -> str:
    return f"{'responses' if sent.responses else 'chat'}-{sent.name}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `sent` runs for each written stream, one that takes `recorded_sent` for each recorded one."""
    if "sent" in metafunc.fixturenames:
        metafunc.parametrize("sent", WRITTEN, ids=_id)
    if "recorded_streams" in metafunc.fixturenames:
        streams = recorded()
        mark = pytest.mark.skipif(RECORDINGS is None, reason=WHY_SKIPPED)
        metafunc.parametrize("recorded_streams", [pytest.param(streams, marks=mark, id=f"{len(streams)}")])


@pytest_asyncio.fixture
async def without_debug() -> None:
    """For streams by the thousand, in memory: debug mode looks after tasks and waits, and takes most of the time."""
    asyncio.get_running_loop().set_debug(False)
