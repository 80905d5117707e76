"""How the models of each maker count: one table, a row for each kind of model, with the traffic that it rests on.

A family is found by the model's name, wherever it is hosted. The figures were fitted to recorded provider traffic, with
the recordings of one project at a time held back to see that they carry over; `benchmarks/usage_accuracy.py` measures
them on any recordings. To add a maker, add a row: a pattern for its names, and what of it is known. What is not known
keeps its default, and wide bounds.

Known limits: a name says what a model is, not what a host does to it. A fine-tuned or renamed model counts as
`UNKNOWN`, whose counts have no upper bound.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import lru_cache
from typing import Final

from ._family import Calls, Family

__all__ = ("FAMILIES", "UNKNOWN", "family_of")

UNKNOWN: Final = Family("", own=False, scale=(1.1, 0.5, 2.5))

_OPEN: Final = (1.0, 0.9, 1.12)
"""Own vocabularies of open-weight models: template tokens and tokenizer versions differ by a little."""

_NEAR: Final = (1.05, 0.7, 1.6)
"""A vocabulary of the size and age of o200k's, where the maker's own is not at hand."""

_OPENAI: Final = Family(
    "openai",
    "text: 115 of 115 within 2 tokens; one call: 236 of 245 within 1, and 5 of the rest at + 16",
    ending=0,
    hosts=("openai.com", "azure.com"),
    calls=Calls(each=6, first=1, parallel=15, closing=0, forced=0, room=20),
)

_REASONING: Final = replace(
    _OPENAI,
    name="openai-reasoning",
    source="calls: 10 around one in 38 of 60 that did not reason, 16 in the rest",
    thinking="summary",
    hides=True,
    ending=6,
    turn=3,
    own_turn=4,
    system=1,
    calls=Calls(each=10, parallel=12, closing=0, room=60),
)

_CLAUDE: Final = Family(
    "claude",
    "text: 10 of 11 within 10 %; dashes and emoji take several tokens each",
    own=False,
    scale=(1.41, 0.95, 2.1),
    symbols=5,
    thinking="summary",
    hides=True,
    citation=15,
    ending=3,
    turn=2,
    opening=6,
    slack=900,
    tool=(1.6, 600),
    schema=(1.6, 250),
    hosts=("anthropic.com", "amazonaws.com", "googleapis.com"),
    calls=Calls(each=26, first=16, argument=12, closing=8, forced=15, room=60),
    opens="plain",
)
"""Anthropic publishes no vocabulary: the scale is what its counts are to those of one that is at hand."""

_CLAUDE_4: Final = replace(
    _CLAUDE,
    name="claude-4",
    source="text: 94 of 98 within 10 %; one call: two thirds within 10 %",
    vocabulary="cl100k_base",
    scale=(1.08, 0.9, 1.35),
    lines=0.6,
    symbols=0,
    hides=False,
    tool=(1.25, 430),
    schema=(1.25, 170),
    calls=Calls(each=18, first=16, argument=9, closing=8, forced=13, room=40),
)

_GEMINI: Final = Family(
    "gemini",
    "text: 105 of 110 within 3 %; one call: 6 to 8 tokens around it in 130 of 148",
    vocabulary="gemma3",
    scale=_OPEN,
    thinking="summary",
    hides=True,
    turn=0,
    opening=1,
    slack=900,
    tool=(0.9, 0),
    schema=(0, 0),
    hosts=("googleapis.com",),
    calls=Calls(each=6.5, argument=0.5, closing=1, room=20),
    opens="bound",
)

_QWEN: Final = Family(
    "qwen",
    "text: 20 of 22 within 3 % or 5 tokens; calls: 9 of 9 within 2",
    vocabulary="qwen3",
    scale=_OPEN,
    ending=4,
    slack=300,
    tool=(1, 150),
    hosts=("aliyuncs.com",),
    calls=Calls(each=12, first=4.5, closing=4),
)

_DEEPSEEK: Final = Family(
    "deepseek",
    "calls as the template of V3 writes them: 1 of 2",
    vocabulary="deepseek_v3",
    scale=_OPEN,
    turn=2,
    slack=300,
    tool=(1, 250),
    hosts=("deepseek.com",),
    calls=Calls(each=9, first=3, closing=4, forced=2, room=40),
)

_MISTRAL: Final = Family(
    "mistral",
    "text: 47 of 48 within 3 %; calls: 43 of 46 with 1 + 2 for each",
    vocabulary="mistral_v3",
    scale=(1.0, 0.8, 1.15),
    turn=2,
    opening=1,
    slack=100,
    tool=(1, 15),
    hosts=("mistral.ai",),
    calls=Calls(each=2, first=1, closing=1, room=16),
)

_LLAMA: Final = Family(
    "llama",
    "text: 34 of 36 within 3 %; one call: 9 around it in 5 of 12, 3 to 16 in the rest",
    vocabulary="llama3",
    scale=_OPEN,
    turn=5,
    opening=30,
    slack=700,
    calls=Calls(each=9, closing=2, room=20),
)

_GROK: Final = Family(
    "grok",
    "text: 38 of 38 within 5 %; one call: 20 of 22 within 2",
    own=False,
    scale=(1.0, 0.9, 1.12),
    hides=True,
    thinking="summary",
    turn=3,
    opening=120,
    slack=900,
    tool=(1, 150),
    hosts=("x.ai",),
    calls=Calls(each=2, argument=1.7, closing=1, room=20),
    limited=False,
)
"""xAI's models reason unless they are told not to, and do not keep to a request's limit (16 against 112)."""

_GROK_FAST: Final = replace(
    _GROK,
    source="text: 11 of 11 within 2 %; calls: 11 of 11 within 1",
    calls=Calls(each=12, argument=6, closing=6, room=30),
)

_OTHER: Final = Family("other", own=False, scale=_NEAR, slack=900, calls=Calls(each=12, room=40))
"""Makers of whom a few answers were seen: a delta is a token, and the bounds are wide."""

FAMILIES: Final[dict[str, Family]] = {
    # OpenAI. Of what reasons, nothing but the sum of answer and reasoning is ever reported.
    r"gpt-oss": Family(
        "gpt-oss",
        "text: 9 around it in 14 of 17; calls: 4 of 6 with 18, 2 with 11",
        scale=_OPEN,
        ending=9,
        opening=65,
        slack=300,
        calls=Calls(each=18, closing=1, room=15),
    ),
    r"gpt-5\.[1-9](?!.*-chat)": replace(_REASONING, shares=False),
    r"gpt-[5-9](?!.*-chat)|codex|computer-use": _REASONING,
    r"o\d(-|$)": replace(_REASONING, source="requests: 5 of 6 within 1 token", own_turn=0),
    r"gpt-4o|chatgpt-4o|gpt-4\.[15]|gpt-[5-9].*-chat": _OPENAI,
    r"gpt-3\.5-turbo-0301": replace(_OPENAI, vocabulary="cl100k_base", turn=5),
    r"gpt-4|gpt-3\.?5|davinci|babbage": replace(_OPENAI, vocabulary="cl100k_base"),
    # Anthropic. Claude 4 streams a summary of its reasoning; later ones may reason without being asked.
    r"claude-(2|3|instant|v\d)": replace(
        _CLAUDE_4,
        name="claude-3",
        source="text: 33 of 36 within 10 %",
        scale=(1.1, 0.92, 1.5),
        thinking="counted",
        tool=(1.25, 260),
    ),
    r"claude-(sonnet|opus|haiku)-4(?![-.][7-9])|claude-4": _CLAUDE_4,
    r"claude|fable|mythos": _CLAUDE,
    # Google, which reports with every chunk: these matter for requests that were cut before the first.
    r"gemini-(1|2\.0)": replace(
        _GEMINI,
        source="text: 73 of 73 within 3 %; one call: 3 fewer than its JSON in 13 of 13",
        thinking="counted",
        hides=False,
        slack=100,
        calls=Calls(each=-3, closing=0, room=20),
        opens="nothing",
    ),
    r"gemini-2\.5": replace(_GEMINI, opens="plain"),
    r"gemini": _GEMINI,
    r"gemma": replace(_GEMINI, name="gemma", source="", thinking="counted", hides=False, turn=4, opens="count"),
    # Open weights: their hosts put prompts of their own around a request.
    r"deepseek-(v4|v3\.2|reasoner)": replace(
        _DEEPSEEK,
        source="text: 45 of 47 within 3 %; calls: 27 of 28 within 2",
        opening=80,
        calls=Calls(each=11, first=14, argument=10, closing=13),
    ),
    r"deepseek(?!.*(llama|qwen))": _DEEPSEEK,
    r"llama-?4": replace(
        _LLAMA,
        source="text: 6 of 7 within 3 %; one call: 17 to 22 around it in 5 of 6",
        scale=(1.0, 0.85, 1.2),
        turn=4,
        opening=3,
        slack=900,
        calls=Calls(each=21, closing=2, room=30),
    ),
    r"llama": _LLAMA,
    r"qwen-?3\.[5-9]|qwen-?3-coder": replace(
        _QWEN,
        source="text: 2 of 5 within 3 %; calls: 10 of 11 within 2",
        calls=Calls(each=12, first=4, argument=5, closing=8),
    ),
    r"qwen|qwq": _QWEN,
    r"ministral": replace(
        _MISTRAL, source="text: 8 of 8 within 4 tokens; calls: 3 to 6 around them in 6 of 6", scale=(1.05, 0.8, 1.3)
    ),
    r"mi[sx]tral|magistral|codestral|devstral|pixtral|voxtral": _MISTRAL,
    r"kimi|moonshot": Family(
        "kimi",
        "text: 9 of 13 within 3 %; calls: 21 around two in 2 of 2",
        vocabulary="kimi_k2",
        scale=_OPEN,
        ending=4,
        slack=300,
        hosts=("moonshot.ai", "moonshot.cn"),
        calls=Calls(each=10, closing=3),
    ),
    r"glm": Family(
        "glm",
        "text: 6 of 7 within 6 %; calls: 6 of 8 within 2",
        vocabulary="glm4",
        scale=_OPEN,
        ending=2,
        turn=3,
        slack=300,
        tool=(1, 150),
        hosts=("z.ai", "bigmodel.cn"),
        calls=Calls(each=3, argument=2, closing=2),
    ),
    # xAI.
    r"grok.*non-reasoning": replace(_GROK_FAST, hides=False),
    r"grok-(4-fast|4[-.]1|code)": _GROK_FAST,
    r"grok-(2|3(?!-mini))": replace(_GROK, source="text: none yet; one call", hides=False),
    r"grok": _GROK,
    # A few answers each, or none.
    r"sonar|pplx": replace(_OTHER, name="sonar", source="text: 7 of 9 within 5 %; two hid 326 and 424", unseen=500),
    r"palmyra|nova-|command-|phi-?\d|nemotron|granite|jamba": _OTHER,
}
"""The families by a pattern that begins anywhere a word of the model's name does; the first that matches counts."""

_PATTERNS: Final = tuple((re.compile(rf"\b(?:{pattern})"), family) for pattern, family in FAMILIES.items())


@lru_cache(maxsize=256)
def family_of(model: str | None) -> Family:
    """The family that a model's name belongs to; `UNKNOWN` for any other."""
    name = (model or "").lower()
    return next((family for pattern, family in _PATTERNS if pattern.search(name)), UNKNOWN)
