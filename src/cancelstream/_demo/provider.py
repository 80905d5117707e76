"""The model that `demo` and `serve` ask: which names they take, and how they say that it cannot be used."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

from openai import AsyncOpenAI, OpenAIError
from pydantic_ai.exceptions import AgentRunError, UserError
from pydantic_ai.models import Model, infer_model
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

__all__ = ("CannotStart", "explained", "provider_model")


class CannotStart(Exception):
    """Something that the command needs cannot be used; the text is one line that says why and what to do."""


def provider_model(name: str | None, base_url: str | None) -> Model:
    """Return the model of this name.

    Args:
        name: As pydantic-ai has it (`provider:model`), or the name alone for OpenAI, or for the server at `base_url`.
            `None` for a scripted server.
        base_url: Where an OpenAI-compatible server listens; it may ask for no key.

    Raises:
        CannotStart: There is no such model, or its key or its package is missing.
    """
    with explained():
        if name is not None and base_url is None and (":" in name or name == "test"):
            return infer_model(name)
        key = os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)
        if key is None:
            raise CannotStart("no key: set OPENAI_API_KEY, or name a server of your own with --base-url URL")
        client = AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0)
        return OpenAIChatModel(name or "gpt-4o", provider=OpenAIProvider(openai_client=client))


@contextmanager
def explained() -> Generator[None]:
    """Turn what a provider, its client or its absence raises into a `CannotStart` of one line."""
    try:
        yield
    except (AgentRunError, UserError, OpenAIError, ImportError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        told = str(error) if cause is error else f"{error} ({cause})"
        raise CannotStart(" ".join(told.split())) from None
