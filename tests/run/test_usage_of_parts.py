"""The usage of an answer that comes in parts: each part counts; of several looks at one job the last one does."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic_ai import Agent, RunUsage
from pydantic_ai.models import Model, StreamedResponse
from pydantic_ai.usage import RequestUsage

from cancelstream import run_stream, run_stream_events

PARTS = 3


@dataclass
class Part(StreamedResponse):
    """One part of an answer; a job's parts have one id, and each tells all of the job's usage."""

    number: int = 0
    is_job: bool = False
    reports: bool = True
    model_name = "gpt-4o"
    provider_name = "openai"
    provider_url = "https://api.openai.com/v1"
    timestamp = datetime(2026, 1, 1, tzinfo=UTC)

    def __post_init__(self) -> None:
        self.provider_response_id = "job" if self.is_job else f"part-{self.number}"
        self.state = "complete" if self.number == PARTS else "suspended"
        self._usage_received = False

    async def _get_event_iterator(self) -> AsyncIterator[Any]:
        for event in self._parts_manager.handle_text_delta(vendor_part_id=0, content=f"part {self.number} "):
            yield event
        if self.reports:
            times = self.number if self.is_job else 1
            self._add_usage(RequestUsage(input_tokens=10 * times, output_tokens=5 * times), reported=True)

    async def close_stream(self) -> None:
        """Nothing is open."""


class Parts(Model):
    """A model that answers in parts."""

    model_name = "gpt-4o"
    system = "openai"

    def __init__(self, *, is_job: bool, reports: bool) -> None:
        super().__init__()
        self._options = {"is_job": is_job, "reports": reports}
        self._asked = 0

    async def request(self, *_: Any) -> Any:
        raise NotImplementedError

    @asynccontextmanager
    async def request_stream(self, *asked: Any) -> AsyncGenerator[StreamedResponse]:
        self._asked += 1
        yield Part(asked[2], number=self._asked, **self._options)


@pytest.mark.parametrize("door", [run_stream, run_stream_events])
@pytest.mark.parametrize("is_job", [True, False])
@pytest.mark.parametrize("reports", [True, False])
async def test_the_usage_of_parts(door: Any, is_job: bool, reports: bool):
    """In the run's own usage as in pydantic-ai's sum, which has nothing of what was not reported."""
    plain, used = RunUsage(input_tokens=100, requests=1), RunUsage(input_tokens=100, requests=1)
    async with Agent(Parts(is_job=is_job, reports=reports)).run_stream("hi", usage=plain) as alone:
        await alone.get_output()
    in_flight: list[int] = []
    async with door(Agent(Parts(is_job=is_job, reports=reports)), "hi", usage=used) as run:
        async for _ in run.stream_text():
            in_flight.append(run.usage.output_tokens)
            assert run.usage.output.low <= run.usage.output_tokens
    for name in ("input_tokens", "output_tokens", "unmeasured_requests", "requests"):
        assert getattr(used, name) == getattr(plain, name)
    usage = run.usage
    assert in_flight == sorted(in_flight)
    assert usage.output.value == usage.output_tokens
    assert usage.input.value == usage.input_tokens > 100
    assert usage.requests == 2
    assert usage.complete
    if reports:
        assert (usage.input_tokens, usage.output_tokens, usage.provenance) == (130, 15, "reported")
    else:
        assert usage.output.low >= (1 if is_job else PARTS)
