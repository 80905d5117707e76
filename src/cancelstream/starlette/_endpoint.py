"""The endpoint that the Stop button calls.

One answer for everything that may be: a stream that was stopped, one that lives on another machine, an id that never
was, another owner's stream, one that has ended. So a stranger learns nothing by asking, not even from the time it
takes, which is that of a stop that is passed on for all but the owner's own.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from .._errors import named
from .._stops import StopRegistry

__all__ = ("stop_endpoint",)

logger = logging.getLogger("cancelstream")

Owner = Callable[[Request], str | None] | Callable[[Request], Awaitable[str | None]]


def stop_endpoint(registry: StopRegistry, *, owner: Owner) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of a route that stops a stream, whose path has a `{stop_id}`.

    For Starlette `Route("/stop/{stop_id}", stop_endpoint(...), methods=["POST"])`, for FastAPI
    `app.add_api_route("/stop/{stop_id}", stop_endpoint(...), methods=["POST"])`.

    It answers 202 with one body for every id and owner, whatever became of it. It answers 503 if the registry cannot
    say that the stop was taken; asking again is safe.

    Args:
        registry: Where the streams are.
        owner: Gives the authenticated user's id for a request, as it was given to the response that streams; may be a
            coroutine function. It may raise Starlette's `HTTPException` for a request without a user; `None` or an
            empty id answer 403.
    """

    async def stop(request: Request) -> Response:
        if request.method != "POST":
            # A route that forgot its methods would let a link or an image stop things.
            return JSONResponse({"detail": "stopping takes a POST"}, 405, {"allow": "POST"})
        asked = owner(request)
        who = await asked if inspect.isawaitable(asked) else asked
        if not who:
            logger.warning("nothing was stopped: owner= has to give a user, and gave %s for a stop request", named(who))
            return JSONResponse({"detail": "not authenticated"}, 403)
        if await registry.stop(request.path_params["stop_id"], owner=who) == "unavailable":
            return JSONResponse({"status": "unknown"}, 503, {"retry-after": "1"})
        return JSONResponse({"status": "accepted"}, 202)

    return stop
