"""How many tokens an answer is, from what of it arrived.

Two things are known of an answer that its provider has not counted: how many deltas it came in, each of them one token
at least, and its text. Where the two agree the deltas are the tokens, and the count is good to a token; where a host
sends several tokens to a delta, the text is counted. Calls of functions have tokens around them that do not stream,
and so has the end of an answer; those are added once the call, or the answer, is whole.

It counts what was *delivered*. Reasoning that the client was not shown has no value here, only a lower bound; so has
an answer in which the provider's own tools took part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from math import ceil
from typing import Final, NamedTuple, cast

from ._count import Count
from ._delivered import Delivered
from ._family import NO_TOKENS, Family, Tokens
from ._prompt import Api, Prompt

__all__ = ("Answer", "count_answer")


_MUCH: Final = 100_000
"""Characters of JSON that an event loop has the time to read."""


class Answer(NamedTuple):
    """The counts of an answer, and whether there may be reasoning that it does not show."""

    output: Count
    reasoning: Count
    hidden: bool

    def not_below(self, before: Answer) -> Answer:
        """This answer, but not below an earlier estimate of it: a tokenizer loaded in between may count fewer."""
        if before.output.plain <= self.output.plain:
            return self
        return self._replace(output=self.output.at_least(before.output.low, before.output.value))


_NO_REASONING: Final = Count.estimated(0, 0, 0, "none_shown")


def count_answer(
    seen: Delivered,
    *,
    deltas: int,
    family: Family,
    prompt: Prompt | None = None,
    api: Api | None = None,
    thinking: bool | None = None,
    ended: bool = False,
    at_limit: bool = False,
    lost: bool = False,
) -> Answer:
    """Estimate an answer that its provider has not counted.

    Args:
        seen: What arrived.
        deltas: In how many pieces it arrived.
        family: Whose answer it is.
        prompt: What was asked, where that is known.
        api: Which of OpenAI's interfaces it came through.
        thinking: Whether the provider said that the model reasons, if it did.
        ended: Whether it came to its natural end.
        at_limit: Whether that was the limit that the request sets.
        lost: Whether more of it had arrived than could be read.
    """
    whole = family.count(seen.text[0] if len(seen.text) == 1 else "".join(seen.text))
    reasoned = NO_TOKENS
    if seen.choices:
        whole = sum((family.count("".join(choice)) for choice in seen.choices.values()), whole)
    if seen.thinking and family.thinking == "counted":
        reasoned = family.count("".join(seen.thinking))
        whole += reasoned
    if not seen.calls:
        whole = _reconciled(whole, deltas)
    else:
        pieces = sum(len(call) - 1 for call in seen.calls.values())
        whole = _reconciled(whole, deltas - pieces) + _calls(seen, family, prompt, api)
    if seen.cited and family.citation:
        number = len(seen.cited)
        whole += Tokens(family.citation * number, 0, 3 * family.citation * number, "", False)
    if ended and not at_limit and (seen.text or not seen.calls):
        whole += _ending(seen, family, prompt, api)
    asked = prompt.thinking if prompt is not None and prompt.thinking is not None else thinking
    hidden = _hides(seen, family, asked)
    limit = prompt.limit if prompt is not None and family.limited else None
    method = whole.method or "nothing_arrived"
    if hidden or seen.natives:
        # Of what the provider's own tools made, the text that arrived may not even be billed as output.
        low = round(min(deltas, whole.low)) if seen.natives else int(whole.low)
        return Answer(Count.unknown(low, limit, method), Count.unknown(0, limit), hidden)
    value, low, high = round(whole.value), int(whole.low), ceil(whole.high)  # in order, since these are
    if limit is not None:
        # A length that ended the answer may also be the context's, which is far beyond the text.
        reached = at_limit and limit <= 2 * high
        value, high = max(low, limit if reached else min(value, limit)), max(high, limit) if reached else high
    if lost or not family.name or not deltas or _unseen_tools(prompt, api):
        # More had arrived, or the model is not known, or nothing visible came: only the limit bounds it.
        most = limit
    else:
        most = high + family.unseen if limit is None or ended else min(high + family.unseen, limit)
    output = Count(value, low, most if most is None or most > value else value, "estimated", method)
    if reasoned is NO_TOKENS:
        return Answer(output, _NO_REASONING, False)
    thought = Count.estimated(round(reasoned.value), int(reasoned.low), ceil(reasoned.high), method)
    return Answer(output, thought, False)


def _reconciled(counted: Tokens, deltas: int) -> Tokens:
    """The text's tokens, having been counted both as text and as deltas."""
    if deltas > 2 * counted.high + 8:
        return counted  # split finer than tokens, by a proxy or a test: the pieces say nothing
    if deltas and deltas >= 0.9 * counted.value:
        # One delta, one token. A vocabulary of the model's own knows of tokens that share a delta.
        value = counted.value if counted.exact and counted.value > deltas else deltas
        return Tokens(value, deltas, value * 1.01 + 0.7, counted.method if counted.exact else "deltas", True)
    return Tokens(
        max(counted.value, deltas), max(counted.low, deltas), max(counted.high, deltas), counted.method, counted.exact
    )


def _calls(seen: Delivered, family: Family, prompt: Prompt | None, api: Api | None) -> Tokens:
    around, number = family.calls, len(seen.calls)
    # A model writes no more than the arguments of a call that it had to make.
    forced = around.forced if prompt is not None and prompt.only_call(api) is not None and number == 1 else None
    first = around.first if forced is None else forced
    first += (around.parallel if number > 1 else 0) + (api == "openai-responses")
    total = Tokens(first, 0, first, "", True)
    text = ""
    for name, *pieces in seen.calls.values():
        text = "".join(pieces)
        named, arguments = family.count(name), family.count(text)
        more = around.each + around.argument * (_arguments(text) if around.argument else 0)
        high = named.high + arguments.high + more + around.room
        if forced is None:
            value, low = named.value + arguments.value + more, float(len(pieces))
        else:
            value = arguments.value + more - around.each
            low = max(float(len(pieces)), arguments.low)
        total += Tokens(max(value, low), low, max(value, high), arguments.method or named.method, named.exact)
    if around.closing and not _is_json(text):
        total += Tokens(-min(around.closing, total.value - total.low), 0, 0, "", True)
    return total


def _unseen_tools(prompt: Prompt | None, api: Api | None) -> bool:
    """Whether tools of the provider's own may have taken part without a trace, as they do in the chat API."""
    return api == "openai-chat" and prompt is not None and prompt.native


def _ending(seen: Delivered, family: Family, prompt: Prompt | None, api: Api | None) -> Tokens:
    """Tokens at the end of an answer, which are not there yet when it is cut."""
    if family.name != "openai":
        return Tokens(family.ending, 0, family.ending + 2, "", True)
    ending = int(api == "openai-responses")
    if prompt is not None and prompt.tools:
        ending += 1 if prompt.schema is None else 5 * max(len(seen.messages), _documents("".join(seen.text)))
    return Tokens(ending, max(0, ending - 1), ending + (api is None), "", True)


def _hides(seen: Delivered, family: Family, asked: bool | None) -> bool:
    """Whether this answer may have more to it than was shown."""
    if seen.sealed or (seen.thinking and family.thinking == "summary"):
        return True
    if asked is None:
        return family.hides
    return asked and family.thinking == "summary"


def _is_json(text: str) -> bool:
    """Whether arguments are whole; those too long to be read while an event loop waits are judged by their end."""
    if len(text) > _MUCH:
        return text.rstrip().endswith("}")
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _arguments(text: str) -> int:
    """How many arguments a call has; those of a call that was cut, or is very long, are counted by their colons."""
    if len(text) <= _MUCH:
        with suppress(ValueError, RecursionError):
            arguments = json.loads(text)
            return len(cast("Mapping[str, object]", arguments)) if isinstance(arguments, Mapping) else 1
    return text.count('":')


def _documents(text: str) -> int:
    """How many JSON documents a text consists of: a model may answer a schema more than once."""
    if len(text) > _MUCH:
        return 1
    decoder, position, found = json.JSONDecoder(), 0, 0
    while (position := _end_of_space(text, position)) < len(text):
        try:
            _, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        found += 1
    return max(1, found)


def _end_of_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position
