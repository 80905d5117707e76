"""What waits for a slow client is bounded, by number and by size."""

from __future__ import annotations

import asyncio

import pytest

from cancelstream.starlette._outbox import LIMIT, SIZE_LIMIT, Outbox, StreamEnd

END = StreamEnd(state="complete", reason=None, usage=None, provenance="unknown", characters=0)


@pytest.mark.parametrize(("item", "number"), [("x", LIMIT), ("x" * 1000, SIZE_LIMIT // 1000 + 1), (7, LIMIT)])
async def test_the_reader_waits(item: object, number: int) -> None:
    """It puts so many items, and then none until the client has taken them; a stop lifts the limit."""
    outbox = Outbox()
    put = 0

    async def read() -> None:
        nonlocal put
        while True:
            put += 1
            await outbox.put(item)

    reader = asyncio.create_task(read())
    for _ in range(2):
        for _ in range(5):
            await asyncio.sleep(0)
        assert put == number
        assert await anext(outbox) == [item] * number
        put = 0
    reader.cancel()
    await asyncio.wait([reader])


async def test_a_lifted_limit_and_a_client_that_is_gone() -> None:
    """Neither of them waits any more; of a client that is gone nothing is kept."""
    outbox = Outbox()
    outbox.lift()
    for _ in range(3):
        await outbox.put("x" * SIZE_LIMIT)
    assert len(await anext(outbox)) == 3
    outbox.drop()
    await outbox.put("x" * SIZE_LIMIT)
    outbox.close(END)
    assert [batch async for batch in outbox] == []
