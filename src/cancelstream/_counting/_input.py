"""How many tokens a request is, as its provider counts them.

For OpenAI's models the wire format is known well enough to count to the token: so many around each message, so many
around the whole, functions as TypeScript (`_schema.py`). For others the text is counted with the nearest vocabulary,
and the interval allows for the prompts that a maker or a host adds. Content that cannot be seen from here (media, the
provider's own tools, a conversation stored on its side) leaves a lower bound and no value.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import ceil, inf
from typing import Final
from urllib.parse import urlsplit

from .. import _tokens
from ._count import Count
from ._family import NO_TOKENS, Family, Tokens
from ._prompt import Api, Prompt, Turn
from ._schema import compact, declarations, response_format

__all__ = ("count_prompt",)

_SYSTEM: Final = 3
"""Tokens of the system message that OpenAI's chat API makes for functions or a schema when there is none."""

_AROUND_RETURNS: Final = {(True, False): 1, (True, True): 11, (False, False): 3, (False, True): 11}
"""The same of what a function returned, where the request offers functions."""

_PARALLEL: Final = {(True, False): 25, (True, True): 25, (False, False): 5, (False, True): 0}
"""The same around calls that were made in parallel and are sent back, however many there are."""

_FORCED: Final = 6
"""Tokens, beside its name, that a function takes which the model has to call."""

_AROUND_SCHEMA: Final = {(True, False): 4, (True, True): 4, (False, False): 1, (False, True): 0}
"""Tokens around a response schema: in the chat API or in Responses, and for models that reason."""

_AROUND_TOOLS: Final = {(True, False): 0, (True, True): 4, (False, False): -3, (False, True): 3}
"""The same around functions, however many there are."""

_CALLS_GO: Final = 79
"""Tokens that tell gpt-5 where its calls go: only OpenAI's own chat API adds them."""

_HIDDEN: Final = {(True, False): 0, (True, True): 0, (False, False): 20, (False, True): 20}
"""Tokens that some requests have beside what was sent: 18 in the first weeks of Responses, 7 of 7, and no later."""

_HIDDEN_TOOLS: Final = {(True, False): 40, (True, True): 40, (False, False): 220, (False, True): 80}
"""The same of requests with functions: 216 and more in 4 of those weeks, and 78 in one of gpt-5's."""

_SEALED: Final = (10, 1200, 6)
"""Reasoning that is sent back encrypted: tokens around it, characters of the envelope, characters for each token."""

_THOUGHT: Final = "</think>"
"""Where reasoning that an open-weight model wrote into its answer ends."""

_HOST: Final = 2000
"""Tokens that a host which is not the maker may put around a request: 39 of 51 of one host's had 900 to 1,600."""


def count_prompt(prompt: Prompt, family: Family, api: Api | None, url: str | None = None) -> Count:
    """Estimate the tokens of a request that its provider has not counted.

    Args:
        prompt: What is sent.
        family: Whose model reads it.
        api: Which of OpenAI's interfaces it goes through; `None` for any other.
        url: The base URL that it goes to, where that is known: gateways do not add what OpenAI itself adds.
    """
    host = urlsplit(url).hostname if url else None
    own = host is None or host.endswith(family.hosts)
    texts = [turn.text for turn in prompt.turns]
    said = NO_TOKENS
    if sum(map(len, texts)) > _tokens.most_at_once(family.vocabulary):
        # Too long to be counted turn by turn: its text is counted as one, by a part of it, and then what is around it.
        said = family.count("".join(texts))
        prompt = replace(prompt, turns=tuple(replace(turn, text="") for turn in prompt.turns))
    total = said + (_openai(prompt, family, api, own=own) if family.is_openai else _other(prompt, family))
    method = total.method or "nothing_asked"
    if prompt.unseen or not family.name:
        # With tools of the provider's own there may be less around the messages, too.
        around = family.opening + family.turn * len(prompt.turns) if prompt.native else 0
        return Count.unknown(max(0, int(total.low - around)), None, method)
    slack = family.slack if own else max(family.slack, _HOST)
    high = None if total.high == inf else ceil(total.high + slack)
    return Count.estimated(round(total.value), int(total.low), high, method)


def _openai(prompt: Prompt, family: Family, api: Api | None, *, own: bool) -> Tokens:
    chat = api != "openai-responses"
    reasons = family.name == "openai-reasoning"
    through = (chat, reasons)
    system = any(turn.kind == "system" for turn in prompt.turns)
    answers = sum(turn.kind == "assistant" for turn in prompt.turns)
    opening = family.opening + family.own_turn * answers + (family.system if system else 0)
    total = Tokens(opening, family.opening, opening + _HIDDEN[through], "", True)
    for turns in _together(prompt.turns) if chat or family.shares else ([turn] for turn in prompt.turns):
        total += _turns(turns, family, through, with_tools=bool(prompt.tools))
    if not chat:
        for length in prompt.sealed:
            value = _SEALED[0] + max(0, length - _SEALED[1]) / _SEALED[2]
            total += Tokens(value, 0, 2 * value + 100, "", True)
    if prompt.tools:
        text, correction, whole = declarations(prompt.tools)
        around = _AROUND_TOOLS[through] + (_SYSTEM if chat and (reasons or not system) else 0)
        count = _widened(family.count(text), correction + around, 0.1 if chat or reasons else 0.2, 4)
        more = _CALLS_GO if chat and own and family.own_turn else 0
        room = _HIDDEN_TOOLS[through] if whole else inf
        total += count + Tokens(more, 0, more + room, "", True)
    if prompt.schema is not None:
        wanted = prompt.schema
        around = _AROUND_SCHEMA[through] + (_SYSTEM if chat and not (reasons or system or prompt.tools) else 0)
        count = family.count(response_format(wanted.name, wanted.description, wanted.schema))
        total += _widened(count, around, 0.15, 6)
    if (only := prompt.only_call(api)) is not None and not reasons:
        total += _widened(family.count(only), _FORCED, 0, 8)
    return total


def _together(turns: Iterable[Turn]) -> Iterable[list[Turn]]:
    """The turns, with calls that were made in parallel in one list, and so what they returned."""
    group: list[Turn] = []
    for turn in turns:
        if group and not (turn.kind in ("call", "return") and turn.kind == group[-1].kind):
            yield group
            group = []
        group.append(turn)
    if group:
        yield group


def _turns(turns: list[Turn], family: Family, through: tuple[bool, bool], *, with_tools: bool) -> Tokens:
    """A message as OpenAI's models read it, or several that go together."""
    kind = turns[0].kind
    total = NO_TOKENS
    if kind == "call":
        for turn in turns:
            # Arguments may be written anew, without the space that they came with.
            total += _widened(family.count(turn.text) + family.count(f" to=functions.{turn.name}"), 0, 0.15, 3)
        around = family.turn + (_PARALLEL[through] if len(turns) > 1 else 0)
        return total + Tokens(around, 0, 2 * around + 5 * len(turns), "", True)
    if kind == "return":
        for turn in turns:
            total += _widened(family.count(turn.text) + family.count(f"functions.{turn.name}"), -1, 0, 6)
        around = family.turn + (_AROUND_RETURNS[through] if with_tools else 0)
        return total + Tokens(around, 0, around * len(turns), "", True)
    # A name has a token of its own around it, unless it is the role's.
    turn = turns[0]
    around = family.turn + (1 if turn.name and turn.name != turn.kind else 0)
    return family.count(turn.text) + family.count(turn.name) + Tokens(around, around, around, "", True)


def _other(prompt: Prompt, family: Family) -> Tokens:
    each, around_tools = family.tool
    around = family.turn * len(prompt.turns) + family.opening
    total = Tokens(around, 0, 2 * around, "", True)
    for turn in prompt.turns:
        # Templates leave out what an earlier answer had thought.
        thought, _, text = turn.text.rpartition(_THOUGHT) if turn.kind == "assistant" else ("", "", turn.text)
        total += family.count(text)
        if thought:
            total += Tokens(0, 0, family.count(thought).high, "", True)
        if turn.kind in ("call", "return"):
            total += family.count(turn.name)
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
    """A function or a schema, shown in a way that is not known, if it is shown: somewhere around its JSON."""
    count = family.count(compact(value))
    return Tokens(count.value * each, 0, 2.5 * count.high, count.method, False)


def _widened(count: Tokens, extra: float, share: float, margin: float) -> Tokens:
    """A count with something added, and room on either side of it."""
    value = count.value + extra
    room = share * count.value + margin
    return Tokens(value, max(0, count.low + extra - room), count.high + extra + room, count.method, count.exact)
