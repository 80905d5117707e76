"""The Stop button of a web application, for Starlette and FastAPI.

Needs the extra `cancelstream[starlette]`.

`CancellableEventResponse` streams a run and stops it when the client leaves, `stop_endpoint` is what the Stop button
calls, `lifespan` starts the registry and ends all streams properly when the server is told to end, and
`cancel_on_disconnect` is for handlers that do not stream.
"""

from ._adapter import run_adapter as run_adapter
from ._disconnect import cancel_on_disconnect as cancel_on_disconnect
from ._encode import EventEncoder as EventEncoder
from ._endpoint import stop_endpoint as stop_endpoint
from ._lifespan import lifespan as lifespan
from ._outbox import StreamEnd as StreamEnd
from ._response import CancellableEventResponse as CancellableEventResponse

__all__ = (
    "CancellableEventResponse",
    "EventEncoder",
    "StreamEnd",
    "cancel_on_disconnect",
    "lifespan",
    "run_adapter",
    "stop_endpoint",
)
