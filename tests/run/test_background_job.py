"""A provider's job that goes on without its stream (`state='suspended'`): leaving leaves it, `cancel()` cancels it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic_ai import ModelMessage, capture_run_messages
from pydantic_ai.messages import ModelRequest, ModelResponse, ModelResponseStreamEvent
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse

from cancelstream import CancellableModel, is_incomplete, run_stream, sync

from .doors import EVENT_DOORS, STREAM_DOORS, plain_agent

WORDS = ("some ", "words ", "more ")


@dataclass
class Part(StreamedResponse):
    """One part of the answer: three words, and whether it is the last."""

    done: bool = False

    def __post_init__(self) -> None:
        self.state = "complete" if self.done else "suspended"

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        for word in WORDS:
            for event in self._parts_manager.handle_text_delta(vendor_part_id=0, content=word):
                yield event

    async def close_stream(self) -> None:
        pass

    @property
    def model_name(self) -> str:
        return "job"

    @property
    def provider_name(self) -> str:
        return "test"

    @property
    def provider_url(self) -> str:
        return "test"

    @property
    def timestamp(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class Jobs(Model):
    """A model whose answer is done at the third part: of one job, or of several that go on with each other."""

    ids: list[str] = field(default_factory=lambda: ["job-1"])
    asked: list[list[ModelMessage]] = field(default_factory=list)
    cancelled: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @property
    def model_name(self) -> str:
        return "job"

    @property
    def system(self) -> str:
        return "test"

    async def request(self, *_: Any) -> ModelResponse:  # type: ignore[override]
        raise NotImplementedError

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: Any,
        model_request_parameters: ModelRequestParameters,
        run_context: Any = None,
    ) -> AsyncGenerator[StreamedResponse]:
        self.asked.append(messages)
        part = Part(model_request_parameters, done=len(self.asked) == 3)
        part.provider_response_id = self.ids[(len(self.asked) - 1) % len(self.ids)]
        yield part

    async def cancel_suspended_response(self, response: ModelResponse) -> None:
        self.cancelled.append(response.provider_response_id)

    def continuation_delay(self, response: ModelResponse) -> float:
        return 0


@dataclass
class Outcome:
    """What came of a run: the jobs that were cancelled on the server, and the answer that is kept."""

    cancelled: list[str | None]
    state: str
    text: str | None

    @classmethod
    def of(cls, model: Jobs, messages: list[ModelMessage]) -> Outcome:
        response = messages[-1]
        assert isinstance(response, ModelResponse)
        return cls(model.cancelled, response.state, response.text)


def own_messages(run: Any, captured: list[ModelMessage]) -> list[ModelMessage]:
    """A run of this package has the cut answer itself, pydantic-ai's result does not."""
    messages = list(run.all_messages())
    return messages if isinstance(messages[-1], ModelResponse) else captured


@pytest.mark.parametrize("ids", [["job-1"], ["job-1", "job-2", "job-3"]], ids=["polled", "gone on with"])
@pytest.mark.parametrize("pieces", [1, 3, 4, 5])
async def test_leaving_the_answer_leaves_the_job(pieces: int, ids: list[str]):
    """`break` in the first part, at its end and in the second: the job goes on, and all of the answer is kept."""
    outcomes: dict[str, Outcome] = {}
    for name, door in STREAM_DOORS.items():
        model, taken = Jobs(ids), 0
        with capture_run_messages() as captured:
            async with door(model) as result:
                async for _ in result.stream_text(delta=True, debounce_by=None):
                    if (taken := taken + 1) == pieces:
                        break
        outcomes[name] = Outcome.of(model, own_messages(result, list(captured)))
    assert outcomes["run_stream"] == outcomes["capability"] == outcomes["plain"]
    assert outcomes["plain"].cancelled == []
    assert outcomes["plain"].state == "suspended"


async def test_leaving_the_last_part():
    """A part that ends the answer is no job any more: what was left of it is a cut answer, with all earlier parts."""
    model, taken = Jobs(["job-1", "job-2", "job-3"]), 0
    async with run_stream(plain_agent(model), "go") as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            if (taken := taken + 1) == 7:
                break
    assert Outcome.of(model, result.all_messages()) == Outcome([], "interrupted", "".join([*WORDS, *WORDS, "some "]))


@pytest.mark.parametrize("ids", [["job-1"], ["job-1", "job-2", "job-3"]], ids=["polled", "gone on with"])
@pytest.mark.parametrize("events", [2, 4, 5, 6, 9])
async def test_leaving_the_events_leaves_the_job(events: int, ids: list[str]):
    """So it is with the events of all turns, where pydantic-ai cancels the job; the answer is that of its run."""
    outcomes: dict[str, Outcome] = {}
    for name, door in EVENT_DOORS.items():
        model, taken = Jobs(ids), 0
        with capture_run_messages() as captured:
            async with door(model) as run:
                async for _ in run:
                    if (taken := taken + 1) == events:
                        break
        outcomes[name] = Outcome.of(model, own_messages(run, list(captured)))
    assert outcomes["capability"] == outcomes["plain"]
    assert outcomes["run_stream_events"] == Outcome([], "suspended", outcomes["plain"].text)


class OwnError(Exception):
    """The consumer's own."""


async def fail(opened: Any, ran: list[Any]) -> None:
    """A consumer that fails at the first piece."""
    async with opened as run:
        ran.append(run)
        async for _ in run.stream_response(debounce_by=None) if hasattr(run, "stream_response") else run:
            raise OwnError


@pytest.mark.parametrize("name", [*STREAM_DOORS, "run_stream_events"])
async def test_an_error_in_the_block_cancels_the_job(name: str):
    """As in pydantic-ai: a consumer that fails does not come back for the answer."""
    model, ran = Jobs(), list[Any]()
    with pytest.raises(OwnError):
        await fail((STREAM_DOORS | EVENT_DOORS)[name](model), ran)
    assert model.cancelled == ["job-1"]
    if name.startswith("run_"):
        assert ran[0].response.state == "interrupted"
        assert is_incomplete(ran[0].all_messages()[-1])


async def test_a_job_that_was_left_is_resumed():
    """Its answer is a history that goes on: the next run takes the job up, and ends with all of it."""
    model = Jobs()
    async with run_stream(plain_agent(model), "go") as result:
        async for _ in result.stream_text(delta=True, debounce_by=None):
            break
    assert result.cancel_reason == "left"
    messages = result.all_messages()
    assert not is_incomplete(messages[-1])
    async with run_stream(plain_agent(model), message_history=messages) as again:
        assert await again.get_output() == "".join(WORDS)
    assert again.response.state == "complete"
    assert model.cancelled == []


@pytest.mark.parametrize("pieces", [1, 3, 4])
async def test_cancelling_the_answer_cancels_the_job(pieces: int):
    """`cancel()` cancels it on the server, once, and the answer is cut."""
    outcomes: dict[str, Outcome] = {}
    for name, door in STREAM_DOORS.items():
        model, taken = Jobs(), 0
        async with door(model) as result:
            async for _ in result.stream_text(delta=True, debounce_by=None):
                if (taken := taken + 1) == pieces:
                    await result.cancel()
        outcomes[name] = Outcome.of(model, result.all_messages())
    assert outcomes["run_stream"] == outcomes["capability"] == outcomes["plain"]
    assert outcomes["plain"].cancelled == ["job-1"]
    assert outcomes["plain"].state == "interrupted"


@pytest.mark.parametrize("events", [2, 4, 6])
async def test_cancelling_the_events_cancels_the_job(events: int):
    """So it is with the events of all turns."""
    model, taken = Jobs(), 0
    async with EVENT_DOORS["run_stream_events"](model) as run:
        async for _ in run:
            if (taken := taken + 1) == events:
                await run.cancel()
    outcome = Outcome.of(model, run.all_messages())
    assert outcome.cancelled == ["job-1"]
    assert outcome.state == "interrupted"


@pytest.mark.parametrize("stop", ["left", "cancelled"])
async def test_a_model_of_its_own(stop: str):
    """So it is with a `CancellableModel` without an agent."""
    model = Jobs()
    messages: list[ModelMessage] = [ModelRequest.user_text_prompt("go")]
    async with CancellableModel(model).request_stream(messages, None, ModelRequestParameters()) as stream:
        async for _ in stream:
            if stop == "cancelled":
                await stream.cancel()
            break
    assert stream.get().state == ("suspended" if stop == "left" else "interrupted")
    assert model.cancelled == ([] if stop == "left" else ["job-1"])


@pytest.mark.usefixtures("own_loop")
@pytest.mark.parametrize("stop", ["left", "cancelled"])
def test_a_blocking_run(stop: str):
    """A blocking run leaves the job and cancels it as the others do."""
    model = Jobs()
    with sync.run_stream(plain_agent(model), "go") as result:
        for _ in result.stream_text(delta=True, debounce_by=None):
            if stop == "left":
                break
            result.cancel()
    outcome = Outcome.of(model, result.all_messages())
    assert outcome.state == ("suspended" if stop == "left" else "interrupted")
    assert outcome.cancelled == ([] if stop == "left" else ["job-1"])
