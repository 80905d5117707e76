"""Stop a streaming LLM response anywhere, at once, and know exactly what was stopped.

Most users need five names: `run_stream`, `run_stream_events`, `Cancellable`, `salvage`, and in a web app
`cancelstream.starlette.CancellableEventResponse`. The rest is for building on.

A name is imported when it is first used. Whoever has this package installed starts pytest with its plugin, and should
not wait for openai and pydantic-ai to be imported each time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ._errors import CancellationUnsupported as CancellationUnsupported
    from ._errors import CancelStreamError as CancelStreamError
    from ._errors import IncompleteHistoryError as IncompleteHistoryError
    from ._errors import IncompleteOutputError as IncompleteOutputError
    from ._final_turn import FinalTurnFilter as FinalTurnFilter
    from ._final_turn import TextRetracted as TextRetracted
    from ._history import check_history as check_history
    from ._history import is_incomplete as is_incomplete
    from ._history import salvage as salvage
    from ._model import Cancellable as Cancellable
    from ._model import CancellableModel as CancellableModel
    from ._peekable import PeekableAsyncStream as PeekableAsyncStream
    from ._response import CancellableStreamedResponse as CancellableStreamedResponse
    from ._response import open_stream as open_stream
    from ._run import CancellableRun as CancellableRun
    from ._run import CancellableRunEvents as CancellableRunEvents
    from ._run import run_stream as run_stream
    from ._run import run_stream_events as run_stream_events
    from ._stops import MemoryStopRegistry as MemoryStopRegistry
    from ._stops import StopRegistry as StopRegistry
    from ._usage import CostRange as CostRange
    from ._usage import Count as Count
    from ._usage import ResponseUsage as ResponseUsage
    from ._usage import StreamUsage as StreamUsage

__all__ = (
    "CancelStreamError",
    "Cancellable",
    "CancellableModel",
    "CancellableRun",
    "CancellableRunEvents",
    "CancellableStreamedResponse",
    "CancellationUnsupported",
    "CostRange",
    "Count",
    "FinalTurnFilter",
    "IncompleteHistoryError",
    "IncompleteOutputError",
    "MemoryStopRegistry",
    "PeekableAsyncStream",
    "ResponseUsage",
    "StopRegistry",
    "StreamUsage",
    "TextRetracted",
    "check_history",
    "is_incomplete",
    "open_stream",
    "run_stream",
    "run_stream_events",
    "salvage",
)

_ROOMS: Final = {
    "CancelStreamError": "_errors",
    "Cancellable": "_model",
    "CancellableModel": "_model",
    "CancellableRun": "_run",
    "CancellableRunEvents": "_run",
    "CancellableStreamedResponse": "_response",
    "CancellationUnsupported": "_errors",
    "CostRange": "_usage",
    "Count": "_usage",
    "FinalTurnFilter": "_final_turn",
    "IncompleteHistoryError": "_errors",
    "IncompleteOutputError": "_errors",
    "MemoryStopRegistry": "_stops",
    "PeekableAsyncStream": "_peekable",
    "ResponseUsage": "_usage",
    "StopRegistry": "_stops",
    "StreamUsage": "_usage",
    "TextRetracted": "_final_turn",
    "check_history": "_history",
    "is_incomplete": "_history",
    "open_stream": "_response",
    "run_stream": "_run",
    "run_stream_events": "_run",
    "salvage": "_history",
}


def __getattr__(name: str) -> Any:
    room = _ROOMS.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{room}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
