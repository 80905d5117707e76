"""`RunOptions`: what a run takes, for type checkers and editors, and what happens with it at the call.

The names and types are pydantic-ai's, and a test holds them against the installed one. At run time an agent's own
method decides: what it takes is taken, so a newer pydantic-ai's arguments, or a subclass's, pass before they are here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypedDict

from pydantic_ai.agent import AbstractAgent
from pydantic_ai.tools import AgentDepsT

from .._upstream.python import caller

if TYPE_CHECKING:
    from pydantic_ai import (
        AgentCapability,
        AgentRetries,
        AgentSpec,
        CancellationToken,
        Conversation,
        DeferredToolResults,
        ModelMessage,
        RunContext,
        RunUsage,
        UsageLimits,
    )
    from pydantic_ai.agent import AgentModelSettings
    from pydantic_ai.models import KnownModelName, Model
    from pydantic_ai.toolsets import AbstractToolset
    from pydantic_ai.workspaces import WorkspaceBackend, WorkspaceRef

    from .._upstream.pydantic_ai import AgentInstructions

__all__ = ("RunOptions", "accept_options")


class RunOptions(TypedDict, Generic[AgentDepsT], total=False):
    """The keyword options of `run_stream`, `run_stream_events` and `sync.run_stream`, as pydantic-ai's own methods do.

    Each is described at pydantic-ai's `Agent.run_stream`. To pass options through a function of yours, annotate it
    with `**options: Unpack[RunOptions[YourDeps]]`.
    """

    conversation: Conversation | None
    message_history: Sequence[ModelMessage] | None
    deferred_tool_results: DeferredToolResults | None
    conversation_id: str | None
    run_id: str | None
    model: Model | KnownModelName | str | None
    instructions: AgentInstructions[AgentDepsT]
    deps: AgentDepsT
    model_settings: AgentModelSettings[AgentDepsT] | None
    usage_limits: UsageLimits | None
    cancellation_token: CancellationToken | None
    timeout: float | None
    usage: RunUsage | None
    metadata: dict[str, Any] | Callable[[RunContext[AgentDepsT]], dict[str, Any]] | None
    retries: int | AgentRetries | None
    infer_name: bool
    toolsets: Sequence[AbstractToolset[AgentDepsT]] | None
    capabilities: Sequence[AgentCapability[AgentDepsT]] | None
    workspace: WorkspaceBackend | WorkspaceRef | Literal["new"] | None
    spec: dict[str, Any] | AgentSpec | None


_KNOWN: Final = frozenset(RunOptions.__annotations__) | {"output_type", "event_stream_handler"}


def accept_options(agent: AbstractAgent[Any, Any], method: str, options: Mapping[str, Any]) -> None:
    """Check the names of the options that a door was called with, and name an agent that has no name.

    pydantic-ai names an agent after the variable that holds it where it is first run, which is where the door was
    called: this function has to be called by the door itself.

    Args:
        agent: The agent.
        method: Which of its methods the door stands for, the door's own name.
        options: What the door was called with, by keyword.

    Raises:
        TypeError: If the agent's own method does not take one of them; the error says which names are like it.
    """
    if not _KNOWN.issuperset(options):
        _refuse_unknown(inspect.signature(getattr(agent, method)).parameters, method, options)
    if agent.name is None and options.get("infer_name", True):
        # Never our own frame: in one of its variables it would be a cycle that keeps the run.
        _name_after_variable(agent, caller(2))


def _refuse_unknown(parameters: Mapping[str, inspect.Parameter], method: str, options: Mapping[str, Any]) -> None:
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in options:
        if name not in parameters:
            near = get_close_matches(name, parameters, n=2)
            hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"it takes {', '.join(parameters)}"
            raise TypeError(f"{method}() takes no argument {name!r}: {hint}")


def _name_after_variable(agent: AbstractAgent[Any, Any], frame: FrameType | None) -> None:
    for variables in () if frame is None else (frame.f_locals, frame.f_globals):
        for name, value in variables.items():
            if value is agent:
                agent.name = name
                return
