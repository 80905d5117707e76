"""For handlers that do not stream: be cancelled when the client leaves, which no server does by itself.

As `asyncio.timeout` works, with the client's leaving in place of the time: the task is cancelled once, and at the end
of the block that cancellation is taken back and becomes an HTTP exception, unless other code cancelled too. Once,
so that an `await` in a `finally` of the block still works.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from starlette.exceptions import HTTPException
from starlette.requests import Request

__all__ = ("cancel_on_disconnect",)

CLIENT_CLOSED_REQUEST = 499
"""nginx's status for it. No client reads it, but a handler must end somehow, and this one is not logged as an error."""


@asynccontextmanager
async def cancel_on_disconnect(request: Request) -> AsyncGenerator[None]:
    """Cancel the block when the client of this request leaves.

    `async with cancel_on_disconnect(request): output = (await agent.run(prompt)).output`. The request's body is read
    first. Not for a handler that is a plain `def`, which runs in a thread that cannot be stopped.

    Raises:
        HTTPException: With status 499, at the end of a block that was cancelled so.
    """
    await request.body()
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("cancel_on_disconnect() needs a task: use it in an async handler")
    before = task.cancelling()
    left = False

    async def listen() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    listener = asyncio.create_task(listen(), name="cancelstream: listen for the client's leaving")
    cancelled: asyncio.CancelledError | None = None
    try:
        yield
    except asyncio.CancelledError as error:
        cancelled = error
    finally:
        listener.cancel()
        only_ours = left and task.uncancel() <= before
    if cancelled is not None:
        if not only_ours:
            raise cancelled
        raise HTTPException(CLIENT_CLOSED_REQUEST, "client closed request") from None
