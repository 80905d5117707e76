"""A blocking run whose request failed before its answer counts nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from pydantic_ai import Agent, RunUsage
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream.sync import run_stream
from cancelstream.testing import Answer, Cut, HttpError
from cancelstream.testing._plugin import StartServer


@pytest.mark.parametrize("kind", ["429", "nobody listens", "lost"])
def test_a_blocking_run(scripted_server: StartServer, thread_loop: asyncio.AbstractEventLoop, kind: str) -> None:
    """Neither in the shared sum nor in the run's own usage: refused is nothing, lost is unknown."""
    answer: Any = Answer(before_headers=Cut("eof")) if kind == "lost" else HttpError(429, "slow down")
    url = "http://127.0.0.1:9/v1" if kind == "nobody listens" else scripted_server(answer).base_url
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    agent = Agent(OpenAIChatModel("gpt-4o", provider=OpenAIProvider(openai_client=client)))
    used = RunUsage()
    run = run_stream(agent, "Tell me about rivers.", usage=used)
    with pytest.raises(ModelAPIError), run:
        pass
    thread_loop.run_until_complete(client.close())
    assert used == RunUsage()
    assert run.usage.input.high == (None if kind == "lost" else 0)
    assert run.usage.input.low == run.usage.input_tokens == 0
