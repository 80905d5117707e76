"""The request that a meter counts: how far it came, whom it asked, who answers, and how large it is.

Which model answers is known for certain only once the stream is open: a fallback, a router or a deployment may have any
name of its own. So all that follows from the model (how to count, what it costs) is looked up when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .._counting import UNKNOWN, Api, Count, Family, Prompt, count_prompt, family_of
from ._boundary import attempt
from ._record import bare_url
from ._stage import STEPS, Stage, Step

__all__ = ("Request",)


class Request:
    """One request to a model, as far as it is known.

    Args:
        model: The name of the model that is asked.
        provider: The provider's name.
        provider_url: The provider's base URL.
        read: Makes the `Prompt` of what is sent; called at most once, and only if the request has to be estimated.
        api: Which of OpenAI's interfaces it goes through, if any.

    Attributes:
        stage: How far it came.
        told: The model's name, as the chunks of a raw stream have told it.
    """

    def __init__(
        self,
        *,
        model: str | None,
        provider: str | None,
        provider_url: str | None,
        read: Callable[[], Prompt] | None,
        api: Api | None,
    ) -> None:
        self.stage = Stage.UNSENT
        self.told: str | None = None
        self.provider: str | None = provider
        self.api: Api | None = api
        self._model = model
        self._served: str | None = None
        self._provider_url = bare_url(provider_url)
        self._read = read
        self._prompt: Prompt | None = None
        self._count: Count | None = None
        self._count_family = UNKNOWN

    def apply(self, step: Step) -> None:
        """Take a step; one that the table does not list changes nothing."""
        self.stage = STEPS[self.stage].get(step, self.stage)

    @property
    def is_nothing(self) -> bool:
        """Whether it counts nothing: it was not sent, or it was refused."""
        return self.stage in (Stage.UNSENT, Stage.REFUSED)

    def served(self, *, model: str | None, provider: str | None, provider_url: str | None, api: Api | None) -> None:
        """Note who answers; see `Meter.served`."""
        # A last chunk with the usage may have the name that was asked for again.
        if model and (self._served is None or family_of(model) is not UNKNOWN):
            self._served = model
        self.provider, self._provider_url = provider or self.provider, bare_url(provider_url) or self._provider_url
        self.api = api or self.api

    def asked(self, read: Callable[[], Prompt], *, api: Api, model: str | None, url: str | None) -> None:
        """Note what was sent, in place of what was thought to be sent; see `Meter.asked`."""
        if self._count is None:
            self._read, self._prompt = read, None
            self._model, self._provider_url, self.api = model or self._model, bare_url(url), api

    @property
    def model(self) -> str | None:
        """The model that answers, by its own account; by the request where that is no name that is known here."""
        served = self._served or self.told
        if served is None or (family_of(served) is UNKNOWN and family_of(self._model) is not UNKNOWN):
            return self._model
        return served

    @property
    def family(self) -> Family:
        """The family of the model that answers."""
        return family_of(self.model)

    def names(self) -> dict[str, Any]:
        """The names that a record is priced by."""
        return {"model": self.model, "provider": self.provider, "provider_url": self._provider_url}

    def prompt(self) -> Prompt | None:
        """The prompt, read once; `None` where it is not known."""
        if self._prompt is None and self._read is not None:
            self._prompt = attempt(self._read, None)
            if self._prompt is None:
                self._read = None
        return self._prompt

    def count(self) -> Count:
        """Its tokens, estimated once, and again where another model turns out to answer."""
        family = self.family
        if self._count is None or family is not self._count_family:
            prompt = self.prompt()
            api, url = self.api, self._provider_url
            counted = None if prompt is None else attempt(lambda: count_prompt(prompt, family, api, url), None)
            self._count, self._count_family = counted or Count.unknown(), family
        # Until a status comes the request may still be refused, and then counts nothing.
        return replace(self._count, low=0) if self.stage is Stage.SENT else self._count

    def forget(self) -> None:
        """Let go of what was asked, which is needed only to count."""
        self._read = self._prompt = None
