"""strands: what an agent was made with, and what its model classes keep in local variables.

It is only looked at here; the door imports the library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, cast

from . import missing

__all__ = ("gathered_calls", "http_response_of", "wants_output")

_GONE: Any = object()


def wants_output(agent: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a run of the agent is to end in a structured output, which strands may ask for behind a whole answer.

    Without `_default_structured_output_model` only a run's own argument counts: a run that is stopped between the
    answer and the output then says that it is whole.

    Args:
        agent: A strands `Agent`.
        kwargs: What its `stream_async` is called with.
    """
    if kwargs.get("structured_output_model") is not None:
        return True
    default = getattr(agent, "_default_structured_output_model", _GONE)
    if default is _GONE:
        missing("strands-agents", "Agent._default_structured_output_model", "a stop before an output may say complete")
        return False
    return default is not None


def http_response_of(chunks: Any) -> Any:
    """The HTTP response of a model's chunks, where their generator keeps the SDK's stream in the variable `response`.

    strands' OpenAI class does. Of others it is `None`: the stream is interrupted, without an HTTP/2 reset.
    """
    frame = getattr(chunks, "ag_frame", None)
    return None if frame is None else getattr(frame.f_locals.get("response"), "response", None)


def gathered_calls(traceback: TracebackType | None) -> list[dict[str, Any]]:
    """The tool uses that a class of strands was gathering where this error passed.

    strands' OpenAI and LiteLLM classes gather a tool call in the variable `tool_calls`, and hand it out when the whole
    answer has come. Other classes have none, and a class that has renamed it looks like them: what it had gathered of
    a cut answer is not kept and not counted.

    Args:
        traceback: Of the error that interrupted the class.
    """
    for frame in _frames(traceback):
        gathered = frame.f_locals.get("tool_calls")
        if str(frame.f_globals.get("__name__")).startswith("strands.models.") and isinstance(gathered, dict):
            with suppress(Exception):  # another version's variable of that name
                return [_tool_use(deltas) for deltas in cast("dict[int, list[Any]]", gathered).values()]
    return []


def _frames(traceback: TracebackType | None) -> Iterator[Any]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _tool_use(deltas: Sequence[Any]) -> dict[str, Any]:
    first = deltas[0]
    arguments = "".join(delta.function.arguments or "" for delta in deltas)
    return {"toolUseId": first.id or "", "name": first.function.name or "", "input": arguments}
