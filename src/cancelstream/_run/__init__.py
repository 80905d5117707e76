"""Runs of an agent that can be stopped from the moment they are made.

`_handle.py` is what every run has: its life, `cancel()`, its account of usage. `_result.py` is `run_stream()`, which
streams the final answer; `_events.py` is `run_stream_events()`, which streams every turn. `_options.py` is what both
take, and `_members.py` is what pydantic-ai's result says besides.
"""

from ._events import CancellableRunEvents as CancellableRunEvents
from ._events import run_stream_events as run_stream_events
from ._handle import shut_socket_now as shut_socket_now
from ._options import RunOptions as RunOptions
from ._options import accept_options as accept_options
from ._result import CancellableRun as CancellableRun
from ._result import run_stream as run_stream
from ._text import RunningText as RunningText
from ._text import TextSoFar as TextSoFar
from ._text import pieces_of as pieces_of
from ._text import texts_of as texts_of

__all__ = (
    "CancellableRun",
    "CancellableRunEvents",
    "RunOptions",
    "RunningText",
    "TextSoFar",
    "accept_options",
    "pieces_of",
    "run_stream",
    "run_stream_events",
    "shut_socket_now",
    "texts_of",
)
