"""Never run: the type checkers must refuse the mistakes that they refuse in pydantic-ai's own methods.

Each mistake has a comment that ignores it, and both checkers complain of one that is not needed.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack, assert_type

from pydantic import BaseModel
from pydantic_ai import Agent, ModelMessage, RunContext, ToolOutput, UsageLimits

from cancelstream import CancellableRun, CancellableRunEvents, RunOptions, run_stream, run_stream_events, sync


@dataclass
class Deps:
    name: str


class Reply(BaseModel):
    answer: str


def name_of(context: RunContext[Deps]) -> dict[str, str]:
    return {"name": context.deps.name}


def right(agent: Agent[Deps, Reply], deps: Deps, history: list[ModelMessage]) -> None:
    options: RunOptions[Deps] = {"deps": deps, "message_history": history, "timeout": 3.0}
    assert_type(run_stream(agent, "prompt", **options), CancellableRun[Reply])
    assert_type(run_stream(agent, deps=deps, usage_limits=UsageLimits(), metadata=name_of), CancellableRun[Reply])
    assert_type(run_stream(agent, "prompt", output_type=None, deps=deps), CancellableRun[Reply])
    assert_type(run_stream(agent, "prompt", output_type=ToolOutput(int), deps=deps), CancellableRun[int])
    assert_type(run_stream_events(agent, "prompt", **options), CancellableRunEvents[Reply])
    assert_type(run_stream_events(agent, final_turn_only="retract", output_type=int), CancellableRunEvents[int])
    assert_type(sync.run_stream(agent, "prompt", **options).get_output(), Reply)


def passed_on(agent: Agent[Deps, Reply], **options: Unpack[RunOptions[Deps]]) -> CancellableRun[Reply]:
    return run_stream(agent, "prompt", **options)


def wrong(agent: Agent[Deps, Reply], deps: Deps) -> None:
    run_stream(agent, "prompt", deps="not deps")  # type: ignore[misc]
    run_stream(agent, "prompt", dep=deps)  # type: ignore[call-overload]
    run_stream(agent, "prompt", message_histroy=[])  # type: ignore[call-overload]
    run_stream(agent, "prompt", usage_limits=3)  # type: ignore[call-overload]
    run_stream_events(agent, "prompt", deps="not deps")  # type: ignore[misc]
    run_stream_events(agent, "prompt", dep=deps)  # type: ignore[call-overload]
    run_stream_events(agent, "prompt", event_stream_handler=None)  # type: ignore[call-overload]
    run_stream_events(agent, "prompt", usage_limits=3)  # type: ignore[call-overload]
    sync.run_stream(agent, "prompt", deps="not deps")  # type: ignore[misc]
    sync.run_stream(agent, "prompt", dep=deps)  # type: ignore[call-overload]
    sync.run_stream(agent, "prompt", message_histroy=[])  # type: ignore[call-overload]
    sync.run_stream(agent, "prompt", usage_limits=3)  # type: ignore[call-overload]
    passed_on(agent, dep=deps)  # type: ignore[call-arg]
