"""strands: what an agent was made with. It is only looked at here; the door imports the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import missing

__all__ = ("wants_output",)

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
