"""Show a user the final answer, and nothing that the model says on the way to it.

    python examples/final_answer_only.py

The model says "Let me look that up." before it calls its tool. Held, nobody sees that; retracted, everybody sees it
until the answer begins. It needs no key: the provider is a scripted one on this machine.
"""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import run_stream_events
from cancelstream.testing import Answer, ScriptedServer, Text, ToolCall


def weather(city: str) -> str:
    """The weather in a city."""
    return f"22 degrees and sunny in {city}"


async def held(agent: Agent) -> None:
    """One loop over the text: the preamble is held, and dropped when the next turn begins."""
    async with run_stream_events(agent, "What is it like in Paris?", final_turn_only=True) as events:
        async for text in events.stream_text(delta=True):
            print(text, end="", flush=True)
    print()


async def retracted(agent: Agent) -> None:
    """What a page would show, one line for each change: nothing waits, and the preamble goes again."""
    async with run_stream_events(agent, "What is it like in Paris?", final_turn_only="retract") as events:
        async for page in events.stream_text():
            print(f"[{page}]")


async def main(base_url: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="not-a-key") as client:
        model = OpenAIChatModel("gpt-5-mini", provider=OpenAIProvider(openai_client=client))
        agent = Agent(model, tools=[weather])
        print("-- held --")
        await held(agent)
        print("-- retracted --")
        await retracted(agent)


if __name__ == "__main__":
    look = Answer(Text("Let me look", " that up."), ToolCall("weather", '{"city": "Paris"}'))
    answer = Answer(Text("22 degrees,", " and sunny."))
    with ScriptedServer(look, answer, look, answer) as server:
        asyncio.run(main(server.base_url))
