"""What a run has beside pydantic-ai's own: the same members with the same arguments, as the table in the guide says."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.agent import AgentRunEvents
from pydantic_ai.exceptions import UserError
from pydantic_ai.models.test import TestModel
from pydantic_ai.result import StreamedRunResult, StreamedRunResultSync

from cancelstream import (
    CancellableRun,
    CancellableRunEvents,
    IncompleteOutputError,
    run_stream,
    run_stream_events,
    sync,
)
from cancelstream.sync._run import BlockingRun

PAIRS: list[tuple[type[Any], type[Any]]] = [
    (StreamedRunResult, CancellableRun),
    (AgentRunEvents, CancellableRunEvents),
    (StreamedRunResultSync, BlockingRun),
]


def public(kind: type[Any]) -> set[str]:
    return {name for name in [*dir(kind), *inspect.get_annotations(kind)] if not name.startswith("_")}


def table() -> dict[str, list[str]]:
    """The rows of the guide's table: a member, and what each column says."""
    page = (Path(__file__).parents[2] / "docs" / "drop-in.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", page, re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in rows}


def test_the_table_of_members():
    """It says of every member of pydantic-ai's runs and ours who has it, and nothing else."""
    said = {(True, True): "yes", (False, True): "more", (True, False): "no", (False, False): "-"}
    names = sorted(set[str]().union(*(public(kind) for pair in PAIRS for kind in pair)))
    assert table() == {
        name: [said[name in public(plain), name in public(ours)] for plain, ours in PAIRS] for name in names
    }
    assert "no" not in {cell for cells in table().values() for cell in cells}


@pytest.mark.parametrize(("plain", "ours"), PAIRS, ids=[ours.__name__ for _, ours in PAIRS])
def test_the_arguments_of_members(plain: type[Any], ours: type[Any]):
    """A member is a method or a property on both sides, and a method takes what pydantic-ai's takes."""
    for name in public(plain):
        theirs, mine = inspect.getattr_static(plain, name, None), inspect.getattr_static(ours, name)
        assert callable(theirs) == callable(mine), name
        if callable(theirs):
            for parameter in inspect.signature(theirs).parameters.values():
                same = inspect.signature(mine).parameters[parameter.name]
                assert (same.kind, same.default) == (parameter.kind, parameter.default), (name, parameter)


AGENT = Agent(TestModel(custom_output_text="hello"), name="agent", metadata={"who": "me"})
MEMBERS = ("run_id", "conversation_id", "metadata", "is_complete")


async def test_their_values_without_a_stop():
    """Before the answer was read and after it, they are what pydantic-ai's result of the same run says."""
    seen: list[Any] = []
    options: Any = {"run_id": "run-1", "conversation_id": "conversation-1"}
    for opened in (AGENT.run_stream("go", **options), run_stream(AGENT, "go", **options)):
        async with opened as result:
            before = [getattr(result, name) for name in MEMBERS]
            with pytest.raises(UserError, match="no settled result yet"):
                _ = result.result
            snapshots = [snapshot async for snapshot in result.stream_response(debounce_by=None)]
            validated = await result.validate_response_output(snapshots[-1])
            seen.append((before, [getattr(result, name) for name in MEMBERS], validated))
            assert result.timestamp == result.response.timestamp == snapshots[0].timestamp
            assert type(result.workspace).__name__ == "Workspace"
            assert result.result.output == "hello"
            assert result.result.run_id == result.run_id
            for method in ("all_messages", "new_messages", "all_messages_json", "new_messages_json"):
                assert getattr(result, method)(output_tool_return_content=None) == getattr(result, method)()
                with pytest.raises(NotImplementedError):
                    getattr(result, method)(output_tool_return_content="done")
    assert seen[0] == seen[1]
    assert seen[0][:2] == (
        ["run-1", "conversation-1", {"who": "me"}, False],
        ["run-1", "conversation-1", {"who": "me"}, True],
    )


async def test_their_values_in_a_run_that_is_cut():
    """The run keeps its ids; it is not complete, has no result, and validates what arrived."""
    async with run_stream(AGENT, "go") as result:
        async for _ in result.stream_text(debounce_by=None):
            result.cancel()
    assert result.run_id is not None
    assert result.new_messages()[-1].run_id == result.run_id
    assert result.conversation_id is not None
    assert result.metadata == {"who": "me"}
    assert not result.is_complete
    assert result.timestamp == result.response.timestamp
    with pytest.raises(IncompleteOutputError, match="cancelled"):
        _ = result.result


async def test_their_values_in_a_run_that_never_began():
    """There is no id and no workspace; nothing that describes the run raises but the workspace."""
    run = run_stream(AGENT, "go")
    assert run.run_id is None
    with pytest.raises(RuntimeError, match="not entered"):
        _ = run.is_complete
    run.cancel()
    async with run as result:
        assert [getattr(result, name) for name in MEMBERS] == [None, None, None, False]
        assert result.timestamp.tzinfo is not None
        with pytest.raises(RuntimeError, match="no workspace yet"):
            _ = result.workspace
        with pytest.raises(IncompleteOutputError):
            await result.validate_response_output(result.response)


@pytest.mark.usefixtures("own_loop")
def test_their_values_in_a_blocking_run():
    """They are those of the run; validating happens on its loop."""
    seen: list[Any] = []
    options: Any = {"run_id": "run-1", "conversation_id": "conversation-1"}
    for opened in (AGENT.run_stream_sync("go", **options), sync.run_stream(AGENT, "go", **options)):
        with opened as result:
            snapshots = list(result.stream_response(debounce_by=None))
            validated = result.validate_response_output(snapshots[-1])
            seen.append(([getattr(result, name) for name in MEMBERS], validated))
            assert result.timestamp == snapshots[0].timestamp
            assert type(result.workspace).__name__ == "Workspace"
            for method in ("all_messages", "new_messages", "all_messages_json", "new_messages_json"):
                with pytest.raises(NotImplementedError):
                    getattr(result, method)(output_tool_return_content="done")
    assert seen[0] == seen[1] == (["run-1", "conversation-1", {"who": "me"}, True], "hello")


async def test_closing_the_events():
    """`aclose()` does what leaving the block does, at any moment and any number of times."""
    async with run_stream_events(AGENT, "go") as events:
        await anext(events)
        await events.aclose()
        await events.aclose()
        assert events.cancel_reason == "left"
        with pytest.raises(StopAsyncIteration):
            await anext(events)
    unread = run_stream_events(AGENT, "go")
    await unread.aclose()
    assert unread.cancelled
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
