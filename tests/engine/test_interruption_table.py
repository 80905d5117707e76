"""How far an interruption has come: the table is walked cell by cell, with no task in sight."""

from __future__ import annotations

import asyncio

import pytest

from cancelstream._interrupt import Interrupted, Pull
from cancelstream._interrupt._table import LOOKS, TRANSITIONS, Request, Stage

# What the table must say, written down a second time and in another form.
EXPECTED = {
    (Stage.QUIET, Request.INTERRUPT): Stage.PENDING,
    (Stage.QUIET, Request.REARM): Stage.PENDING,
    (Stage.QUIET, Request.ABANDON): Stage.ABANDONED,
    (Stage.PENDING, Request.SEND): Stage.SENT,
    (Stage.PENDING, Request.ABANDON): Stage.ABANDONED,
    (Stage.SENT, Request.REARM): Stage.PENDING,
    (Stage.SENT, Request.ABANDON): Stage.ABANDONED,
}


def ignore(_value: object) -> None:
    """Nothing is discarded here."""


@pytest.mark.parametrize("request_", Request)
@pytest.mark.parametrize("stage", Stage)
def test_every_cell_of_the_table(stage: Stage, request_: Request) -> None:
    """A request leads where the table says, and an empty cell changes nothing."""
    pull = Pull(ignore)
    pull._stage = stage
    pull._apply(request_)
    assert pull._stage is EXPECTED.get((stage, request_), stage)
    assert pull._looks is (pull._stage in LOOKS)


def test_the_table_has_a_row_for_every_stage_and_nothing_leaves_the_last() -> None:
    """No stage is forgotten, and a pull that was let go stays let go."""
    assert set(TRANSITIONS) == set(Stage)
    assert [stage for stage, row in TRANSITIONS.items() if not row] == [Stage.ABANDONED]


async def test_each_stage_does_what_it_says() -> None:
    """One source in a row: it runs, is interrupted once, is not interrupted in its cleanup, and is let go."""
    loop = asyncio.get_running_loop()
    waits = [loop.create_future() for _ in range(3)]
    reached: list[int] = []

    async def source() -> None:
        try:
            reached.append(0)
            await waits[0]
        finally:
            reached.append(1)
            await waits[1]  # its cleanup
            reached.append(2)
            await waits[2]

    pull = Pull(ignore)
    pull.stopping = True
    task = asyncio.ensure_future(pull.run(source()))
    await asyncio.sleep(0)
    assert (reached, pull._stage) == ([0], Stage.QUIET)
    pull.interrupt()
    assert waits[0].cancelled()
    assert pull._stage is Stage.SENT
    await asyncio.sleep(0)
    pull.interrupt()
    assert (reached, waits[1].cancelled()) == ([0, 1], False)
    waits[1].set_result(None)
    await asyncio.sleep(0)
    pull.abandon()
    assert reached == [0, 1, 2]
    assert waits[2].cancelled()
    with pytest.raises(Interrupted):
        await task
