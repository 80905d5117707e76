"""Stop an answer, keep what arrived, and let the model go on from there.

    python examples/continue_after_stop.py

It needs no key: the provider is a scripted one on this machine. With your own, leave out `ScriptedServer` and give the
agent any model.
"""

from __future__ import annotations

import asyncio

from openai import AsyncOpenAI
from pydantic_ai import Agent, ModelMessage
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from cancelstream import IncompleteHistoryError, run_stream, salvage
from cancelstream.testing import Answer, ScriptedServer, Text

GO_ON = "Your last answer was interrupted. Go on exactly where it stops, without repeating any of it."


async def ask(agent: Agent, question: str, enough: str) -> list[ModelMessage]:
    """Ask, stop the answer as soon as it says `enough`, and return the messages so far."""
    async with run_stream(agent, question) as result:
        async for text in result.stream_text(delta=True, debounce_by=None):
            print(text, end="", flush=True)
            if enough in text:
                result.cancel("seen enough")
    return result.all_messages()


async def go_on(agent: Agent, messages: list[ModelMessage]) -> list[ModelMessage]:
    """Let the model go on, and return the whole conversation."""
    async with run_stream(agent, GO_ON, message_history=messages) as result:
        async for text in result.stream_text(delta=True, debounce_by=None):
            print(text, end="", flush=True)
    return result.all_messages()


async def main(base_url: str) -> None:
    async with AsyncOpenAI(base_url=base_url, api_key="not-a-key") as client:
        model = OpenAIChatModel("gpt-5-mini", provider=OpenAIProvider(openai_client=client))
        agent = Agent(model)

        messages = await ask(agent, "Name the planets.", enough="Mars")
        print("\n-- stopped --")
        try:
            await go_on(agent, messages)
        except IncompleteHistoryError as error:
            print(f"refused: message {error.index} is {error.state!r} ({error.reason})")

        messages = await go_on(agent, salvage(messages))
        print()
        print([message.state for message in messages])


if __name__ == "__main__":
    planets = Text.words("Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.", gap=0.02)
    rest = Text.words(" Jupiter, Saturn, Uranus and Neptune.", gap=0.02)
    with ScriptedServer(Answer(planets), Answer(rest)) as server:
        asyncio.run(main(server.base_url))
