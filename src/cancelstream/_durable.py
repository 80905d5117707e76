"""Durable execution by DBOS, Prefect or Temporal: which way of it a stop can reach, and what is said of the others.

pydantic-ai has two ways. A capability (`DBOSDurability`) works together with `Cancellable`, if the agent has both when
it is made. A wrapper of the agent (`DBOSAgent`) sends each request in a step of its own, and takes neither a model
that is wrapped nor a stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from pydantic_ai.agent import WrapperAgent
from pydantic_ai.exceptions import UserError
from pydantic_ai.models.wrapper import WrapperModel

from ._upstream.pydantic_ai import durable_engine

__all__ = ("refuse_per_run", "refuse_wrapper")


def refuse_wrapper(wrapper: object) -> None:
    """Raise a `UserError` for an agent, or a model, that a durable engine has wrapped, below other wrappers too."""
    engine = durable_engine(wrapper)
    while engine is None and isinstance(wrapper, WrapperAgent | WrapperModel):
        wrapper = cast("object", wrapper.wrapped)
        engine = durable_engine(wrapper)
    if engine is not None:
        raise UserError(
            f"{engine}Agent sends each request in a step of its own, where Cancellable cannot stop it: use the agent "
            f"itself, and give it both when it is made, as in {_recipe(engine)}"
        )


def refuse_per_run(capabilities: Iterable[object]) -> None:
    """Raise a `UserError` if one of the agent's capabilities makes the run durable, here and now.

    Inside a workflow nothing can be added to a run, and without `Cancellable` a run cannot be stopped.
    """
    for capability in capabilities:
        engine = durable_engine(capability)
        if engine is not None and getattr(capability, "in_durable_context", False):
            raise UserError(
                f"inside a workflow of {engine} a run cannot be given Cancellable any more: give it to the agent when "
                f"it is made, as in {_recipe(engine)}"
            )


def _recipe(engine: str) -> str:
    return f"Agent(..., capabilities=[{engine}Durability(), Cancellable()])"
