"""The life of a request, as its meter sees it: the table is walked cell by cell, and errors are read."""

from __future__ import annotations

from typing import Any

import httpx
import httpx2
import openai
import pytest
from pydantic_ai.exceptions import (
    FallbackExceptionGroup,
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    ModelRequestTimeout,
)

from cancelstream import Count
from cancelstream._usage import Meter
from cancelstream._usage._stage import STEPS, Stage, Step, step_of

# What the table must say, written down a second time and in another form.
EXPECTED = {
    (Stage.UNSENT, Step.SEND): Stage.SENT,
    (Stage.SENT, Step.OPEN): Stage.OPEN,
    (Stage.SENT, Step.END): Stage.ENDED,
    (Stage.SENT, Step.REFUSE): Stage.REFUSED,
    (Stage.SENT, Step.LOSE): Stage.LOST,
    (Stage.OPEN, Step.END): Stage.ENDED,
}

REQUEST = httpx2.Request("POST", "http://127.0.0.1/v1/chat/completions")
LEGACY = httpx.Request("POST", "http://127.0.0.1/v1/chat/completions")


def meter() -> Meter:
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Tell me a story."}]}
    return Meter.for_openai(body, api="openai-chat")


def refused() -> openai.APIStatusError:
    return openai.RateLimitError("slow down", response=httpx2.Response(429, request=REQUEST), body=None)


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def botocore_error(status: int) -> BaseException:
    error: Any = Exception("throttled")
    error.response = {"ResponseMetadata": {"HTTPStatusCode": status}}
    return error


def in_stream(status: int) -> ModelHTTPError:
    return ModelHTTPError(status, "gpt-4o", in_stream=True)


WAYS: dict[Stage, list[str]] = {
    Stage.UNSENT: [],
    Stage.SENT: ["send"],
    Stage.OPEN: ["send", "open"],
    Stage.ENDED: ["send", "open", "end"],
    Stage.REFUSED: ["send", "refuse"],
    Stage.LOST: ["send", "lose"],
}


@pytest.mark.parametrize("step", Step)
@pytest.mark.parametrize("stage", Stage)
def test_every_cell_of_the_table(stage: Stage, step: Step):
    """A step leads where the table says, and an empty cell changes nothing: in the table and in a meter."""
    expected = EXPECTED.get((stage, step), stage)
    assert STEPS[stage].get(step, stage) is expected
    one = meter()
    take = {
        "send": one.sent,
        "open": one.opened,
        "end": lambda: one._request.apply(Step.END),
        "refuse": lambda: one.failed(refused()),
        "lose": lambda: one.failed(httpx2.ReadError("gone")),
    }
    for name in WAYS[stage]:
        take[name]()
    assert one._request.stage is stage
    take[step.value]()
    assert one._request.stage is expected


def test_no_stage_is_forgotten():
    """The table has a row for every stage."""
    assert set(STEPS) == set(Stage) == set(WAYS)


@pytest.mark.parametrize(
    "error",
    [
        refused(),
        openai.InternalServerError("broken", response=httpx2.Response(503, request=REQUEST), body=None),
        ModelHTTPError(401, "gpt-4o"),
        ModelConnectionError("gpt-4o", "refused", phase="connect"),
        ModelConnectionError("gpt-4o", "no connection is free", phase="pool"),
        caused(openai.APIConnectionError(request=REQUEST), httpx2.ConnectError("TLS")),
        caused(openai.APITimeoutError(request=REQUEST), httpx2.ConnectTimeout("slow")),
        caused(openai.APITimeoutError(request=REQUEST), httpx.PoolTimeout("full", request=LEGACY)),
        caused(ModelAPIError("gpt-4o", "no"), httpx.UnsupportedProtocol("ftp", request=LEGACY)),
        httpx2.HTTPStatusError("no", request=REQUEST, response=httpx2.Response(500, request=REQUEST)),
        caused(Exception("a framework's own"), botocore_error(400)),
        FallbackExceptionGroup("all failed", [ModelHTTPError(503, "a"), ModelHTTPError(429, "b")]),
    ],
    ids=lambda error: f"{type(error).__name__}-{type(error.__cause__).__name__}",
)
def test_a_refusal_counts_nothing(error: BaseException):
    """An HTTP error status, or a connection that never came, however it is wrapped: certainly nothing."""
    assert step_of(error) is Step.REFUSE
    one = meter()
    one.sent()
    one.failed(error)
    one.settle(ended=False)
    usage = one.usage
    assert (usage.input.high, usage.output.high, usage.cost_range.high) == (0, 0, 0)
    assert not usage.has_values()
    assert (usage.unmeasured_requests, usage.estimated_requests, usage._counts, usage.complete) == (0, 0, False, False)


@pytest.mark.parametrize(
    "error",
    [
        caused(openai.APIConnectionError(request=REQUEST), httpx2.ReadError("gone")),
        caused(openai.APITimeoutError(request=REQUEST), httpx2.ReadTimeout("slow")),
        httpx.RemoteProtocolError("closed without a response", request=LEGACY),
        httpx2.WriteTimeout("half of it was sent"),
        ModelConnectionError("gpt-4o", "gone", phase="read"),
        ModelConnectionError("gpt-4o", "gone"),
        ModelRequestTimeout("gpt-4o", 3),
        in_stream(529),
        caused(in_stream(429), refused()),
        Exception("anything"),
        botocore_error(200),
        FallbackExceptionGroup("all failed", [ModelHTTPError(503, "a"), ModelConnectionError("b", "", phase="read")]),
    ],
    ids=lambda error: f"{type(error).__name__}-{type(error.__cause__).__name__}",
)
def test_a_lost_request_is_unknown(error: BaseException):
    """The request went out and no status came: nothing is known of it, and nothing is guessed."""
    assert step_of(error) is Step.LOSE
    one = meter()
    one.sent()
    one.failed(error)
    one.settle(ended=False)
    unknown = Count.unknown()
    assert (one.usage.input, one.usage.output) == (unknown, unknown)
    assert one.usage.provenance == "unknown"
    assert (one.usage.input_tokens, one.usage.output_tokens) == (0, 0)
    assert (one.usage.cost_range.low, one.usage.cost_range.value, one.usage.cost_range.high) == (0, None, None)


def test_causes_that_go_in_a_circle():
    """A strange chain of causes ends."""
    first, second = Exception("a"), Exception("b")
    first.__cause__, second.__cause__ = second, first
    assert step_of(first) is Step.LOSE


def test_a_connection_that_the_cut_broke():
    """A request that was stopped while it waited counts as asked, whatever its connection raises then."""
    one = meter()
    one.sent()
    one.failed(httpx2.ReadError("we closed it"), cut=True)
    assert one.usage.input.low == 0 < (one.usage.input.value or 0)
    one.failed(refused(), cut=True)
    assert one.usage.input.high == 0


def test_until_a_status_comes_nothing_is_certain():
    """A request that waits for its status has a value and no lower bound; accepted, it has both."""
    one = meter()
    one.sent()
    assert one.usage.input.low == 0 < (one.usage.input.value or 0)
    one.opened()
    assert 0 < one.usage.input.low <= (one.usage.input.value or 0)


def test_aiohttp_and_its_connector():
    """openai's aiohttp transport may let its own errors through."""
    aiohttp = pytest.importorskip("aiohttp")
    key: Any = aiohttp.client_reqrep.ConnectionKey("127.0.0.1", 9, False, True, None, None, None)
    error = aiohttp.ClientConnectorError(key, OSError(111, "refused"))
    assert step_of(error) is Step.REFUSE
