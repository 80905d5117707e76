"""How many tokens a request is, as its provider counts them.

For OpenAI's models the wire format is known well enough to count to the token: so many around each message, so many
around the whole, functions as TypeScript (`_schema.py`). For others the text is counted with the nearest vocabulary,
and the interval allows for the prompts that a maker or a host adds. What cannot be seen from here (media, the
provider's own tools, a conversation stored on its side) leaves a lower bound and no value.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Final

from ._count import Count
from ._families import Family, Tokens
from ._prompt import Api, Prompt, Turn
from ._schema import compact, declarations, response_format

__all__ = ("count_prompt",)

_SYSTEM: Final = 3
"""Tokens of the system message that OpenAI's chat API makes for functions when there is none."""

_AROUND_RETURNS: Final = {(True, False): 1, (True, True): 11, (False, False): 4, (False, True): 11}
"""The same of what a function returned, where the request offers functions."""

_FORCED: Final = 6
"""Tokens, beside its name, that a function takes which the model has to call."""

_FORMAT: Final = 5
"""Tokens around a response schema."""

_AROUND_TOOLS: Final = {(True, False): 0, (True, True): 82, (False, False): -3, (False, True): 3}
"""Tokens around functions, however many there are: in the chat API or in Responses, and for models that reason.

gpt-5 is told in its system message where calls have to go, but only by the chat API.
"""

_SEALED: Final = (10, 1200, 6)
"""Reasoning that is sent back encrypted: tokens around it, characters of the envelope, characters for each token."""

_PARALLEL: Final = 17
"""Tokens around calls that were made in parallel and are sent back."""


def count_prompt(prompt: Prompt, family: Family, api: Api | None) -> Count:
    """Estimate the tokens of a request that its provider has not counted.

    Args:
        prompt: What is sent.
        family: Whose model reads it.
        api: Which of OpenAI's interfaces it goes through; `None` for any other.
    """
    total = _openai(prompt, family, api) if family.is_openai else _other(prompt, family)
    method = total.method or "nothing_asked"
    if prompt.unseen or not family.name:
        return Count.unknown(int(total.low), None, method)
    return Count.estimated(round(total.value), int(total.low), ceil(total.high + family.slack), method)


def _openai(prompt: Prompt, family: Family, api: Api | None) -> Tokens:
    chat = api != "openai-responses"
    reasons = family.name == "openai-reasoning"
    total = Tokens(family.opening, family.opening, family.opening, "", True)
    with_tools = _AROUND_RETURNS[chat, reasons] if prompt.tools else 0
    for turn in prompt.turns:
        total += _turn(turn, family, with_tools=with_tools)
    if not chat:
        for length in prompt.sealed:
            value = _SEALED[0] + max(0, length - _SEALED[1]) / _SEALED[2]
            total += Tokens(value, 0, 2 * value + 100, "", True)
    system = any(turn.kind == "system" for turn in prompt.turns)
    if prompt.tools:
        text, correction = declarations(prompt.tools)
        around = _AROUND_TOOLS[chat, reasons] + (_SYSTEM if chat and not system else 0)
        total += _widened(family.count(text), correction + around, 0.1 if chat or reasons else 0.2, 4)
    if prompt.schema is not None:
        wanted = prompt.schema
        around = _FORMAT + (_SYSTEM if chat and not (system or prompt.tools) else 0)
        if not chat and not prompt.tools:
            around -= 2 if system else 5
        count = family.count(response_format(wanted.name, wanted.description, wanted.schema))
        total += _widened(count, around, 0.15, 6)
    if prompt.forced is not None and not reasons:
        total += _widened(family.count(prompt.forced), _FORCED, 0, 8)
    return total


def _turn(turn: Turn, family: Family, *, with_tools: int) -> Tokens:
    """One message as OpenAI's models read it; `with_tools` is what functions add to the answer to a call."""
    text = family.count(turn.text)
    if turn.kind == "call":
        around = family.turn + (_PARALLEL if turn.follows else 0)
        # Arguments may be written anew, without the space that they came with.
        return _widened(text + family.count(f" to=functions.{turn.name}"), around, 0.15, 3 + around)
    if turn.kind == "return":
        return _widened(text + family.count(f"functions.{turn.name}"), family.turn - 1 + with_tools, 0, 6)
    # A name has a token of its own around it, unless it is the role's.
    around = family.turn + (1 if turn.name and turn.name != turn.kind else 0)
    return text + family.count(turn.name) + Tokens(around, around, around, "", True)


def _other(prompt: Prompt, family: Family) -> Tokens:
    each, around_tools = family.tool
    around = family.turn * len(prompt.turns) + family.opening
    total = Tokens(around, 0, 2 * around, "", True)
    for text in _texts(prompt.turns):
        total += family.count(text)
    for tool in prompt.tools:
        shown = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        total += _as_json(shown, family, each)
    if prompt.tools:
        total += Tokens(around_tools, 0, 2 * around_tools + 100, "", True)
    if prompt.schema is not None:
        each, around_schema = family.schema
        total += _as_json(prompt.schema.schema, family, each)
        total += Tokens(around_schema, 0, 2 * around_schema + 100, "", True)
    return total


def _as_json(value: object, family: Family, each: float) -> Tokens:
    """A function or a schema, shown in a way that is not known: somewhere around its JSON."""
    count = family.count(compact(value))
    return Tokens(count.value * each, 0.2 * count.low * min(1, each), 2.5 * count.high, count.method, False)


def _texts(turns: Iterable[Turn]) -> Iterable[str]:
    for turn in turns:
        yield turn.text
        if turn.kind in ("call", "return"):
            yield turn.name


def _widened(count: Tokens, extra: float, share: float, margin: float) -> Tokens:
    """A count with something added, and room on either side of it."""
    value = count.value + extra
    room = share * count.value + margin
    return Tokens(value, max(0, count.low + extra - room), count.high + extra + room, count.method, count.exact)
