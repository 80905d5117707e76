"""How the models of each maker count: one table, a row for each kind of model, with the traffic that it rests on.

A family is found by the model's name, wherever it is hosted. The figures were fitted to recorded provider traffic, with
the recordings of one project at a time held back to see that they carry over; `benchmarks/usage_accuracy.py` measures
them on any recordings. A row's source says how many recorded answers of text come within 3 % or 2 tokens of their final
count (Claude's: of 30 tokens or more, within 10 %), and how many with calls within 10 % or 2 tokens.

To add a maker, add a row: a pattern for its names, and what of it is known. The rest keeps its default, and wide
bounds.

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
    "text 706 of 708, calls 302 of 320, of 28 projects; 5 single calls through Responses have 16 more",
    ending=0,
    hosts=("openai.com", "azure.com"),
    calls=Calls(each=6, first=1, parallel=15, closing=0, forced=0, room=20),
)

_REASONING: Final = replace(
    _OPENAI,
    name="openai-reasoning",
    source="text 14 of 59, calls 15 of 37, of 12 projects: of what they reasoned not all is told apart",
    thinking="summary",
    hides=True,
    ending=6,
    turn=3,
    own_turn=4,
    system=1,
    calls=Calls(each=16, parallel=12, closing=0, room=60),
)

_CLAUDE: Final = Family(
    "claude",
    "text 16 of 16, calls 2 of 4, of 4 projects; dashes and emoji take several tokens each",
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
    source="text 116 of 124, calls 115 of 170, of 16 projects",
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
    "text 29 of 32, calls 8 of 9, of 10 projects; 10 of 27 first counts of the input grew",
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
    "text 24 of 34, calls 6 of 6, of 4 projects; llama.cpp counts 5 at the end, other hosts 1",
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
    "text 2 of 2, calls 5 of 5, of 2 projects",
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
    "text 55 of 55, calls 40 of 46, of 9 projects; one older model takes 10 more around a call",
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
    "text 31 of 34, calls 6 of 12, of 12 projects: hosts differ",
    vocabulary="llama3",
    scale=_OPEN,
    turn=5,
    opening=30,
    slack=700,
    calls=Calls(each=9, closing=2, room=20),
)

_GROK: Final = Family(
    "grok",
    "text 21 of 24, calls 18 of 21, of 4 projects",
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
    source="text 12 of 15, calls 10 of 10, of 2 projects",
    calls=Calls(each=12, argument=6, closing=6, room=30),
)

_OTHER: Final = Family("other", own=False, scale=_NEAR, slack=900, calls=Calls(each=12, room=40))
"""Makers of whom a few answers were seen: a delta is a token, and the bounds are wide."""

FAMILIES: Final[dict[str, Family]] = {
    # OpenAI. Of what reasons, nothing but the sum of answer and reasoning is ever reported.
    r"gpt-oss": Family(
        "gpt-oss",
        "text 14 of 17, calls 4 of 6, of 5 projects",
        scale=_OPEN,
        ending=9,
        opening=65,
        slack=300,
        calls=Calls(each=18, closing=1, room=15),
    ),
    r"gpt-5\.[1-9](?!.*-chat)": replace(
        _REASONING,
        source="text 74 of 92, calls 36 of 37, of 7 projects",
        ending=5,
        unseen=4,
        shares=False,
        calls=Calls(each=10, parallel=12, closing=0, room=60),
    ),
    r"gpt-[5-9](?!.*-chat)|codex|computer-use": _REASONING,
    r"o\d(-|$)": replace(_REASONING, source="text 3 of 25, calls 2 of 9, of 7 projects: as above", own_turn=0),
    r"gpt-[5-9].*-chat": replace(_OPENAI, source="1 request of 1, to the token", turn=3),
    r"gpt-4o|chatgpt-4o|gpt-4\.[15]": _OPENAI,
    r"gpt-3\.5-turbo-0301": replace(_OPENAI, source="OpenAI's own cookbook", vocabulary="cl100k_base", turn=5),
    r"gpt-4|gpt-3\.?5|davinci|babbage": replace(
        _OPENAI, source="text 86 of 87, calls 13 of 22, of 10 projects", vocabulary="cl100k_base"
    ),
    # Anthropic. Claude 4 streams a summary of its reasoning; later ones may reason without being asked.
    r"claude-(2|3|instant|v\d)": replace(
        _CLAUDE_4,
        name="claude-3",
        source="text 37 of 39, calls 13 of 28, of 15 projects",
        scale=(1.1, 0.92, 1.5),
        thinking="counted",
        tool=(1.25, 260),
    ),
    r"claude-(sonnet|opus|haiku)-4(?![-.][7-9])|claude-4": _CLAUDE_4,
    r"claude|fable|mythos": _CLAUDE,
    # Google, which reports with every chunk: these matter for requests that were cut before the first.
    r"gemini-(1|2\.0)": replace(
        _GEMINI,
        source="text 72 of 73, calls 20 of 23, of 7 projects; 7 of 7 first counts of the input moved, 6 of them down",
        thinking="counted",
        hides=False,
        slack=100,
        calls=Calls(each=-3, closing=0, room=20),
        opens="nothing",
    ),
    r"gemini-2\.5": replace(
        _GEMINI,
        source="text 204 of 220, calls 96 of 114, of 15 projects; of 24 plain first counts none moved",
        opens="plain",
    ),
    r"gemini": _GEMINI,
    r"gemma": replace(_GEMINI, name="gemma", source="", thinking="counted", hides=False, turn=4, opens="count"),
    # Open weights: their hosts put prompts of their own around a request.
    r"deepseek-(v4|v3\.2|reasoner)": replace(
        _DEEPSEEK,
        source="text 52 of 52, calls 29 of 32, of 5 projects",
        opening=80,
        calls=Calls(each=11, first=14, argument=10, closing=13),
    ),
    r"deepseek(?!.*(llama|qwen))": _DEEPSEEK,
    r"llama-?4": replace(
        _LLAMA,
        source="text 5 of 6, calls 4 of 6, of 1 project",
        scale=(1.0, 0.85, 1.2),
        turn=4,
        opening=3,
        slack=900,
        calls=Calls(each=21, closing=2, room=30),
    ),
    r"llama": _LLAMA,
    r"qwen-?3\.[5-9]|qwen-?3-coder": replace(
        _QWEN,
        source="text 2 of 4, calls 7 of 8, of 1 project",
        ending=1,
        unseen=4,
        calls=Calls(each=12, first=4, argument=5, closing=8),
    ),
    r"qwen|qwq": _QWEN,
    r"ministral": replace(_MISTRAL, source="text 7 of 8, calls 6 of 6, of 2 projects", scale=(1.05, 0.8, 1.3)),
    r"mi[sx]tral|magistral|codestral|devstral|pixtral|voxtral": _MISTRAL,
    r"kimi|moonshot": Family(
        "kimi",
        "text 10 of 13, calls 2 of 2, of 2 projects",
        vocabulary="kimi_k2",
        scale=_OPEN,
        unseen=4,
        slack=300,
        hosts=("moonshot.ai", "moonshot.cn"),
        calls=Calls(each=10, closing=3),
    ),
    r"glm": Family(
        "glm",
        "text 7 of 7, calls 8 of 8, of 2 projects",
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
    r"grok-(2|3(?!-mini))": replace(_GROK, source="calls 0 of 1", hides=False),
    r"grok": _GROK,
    # A few answers each, or none.
    r"sonar|pplx": replace(
        _OTHER, name="sonar", source="text 6 of 9, of 5 projects; two hid 326 and 424 tokens", unseen=500
    ),
    r"palmyra|nova-|command-|phi-?\d|nemotron|granite|jamba": _OTHER,
}
"""The families by a pattern that begins anywhere a word of the model's name does; the first that matches counts."""

_PATTERNS: Final = tuple((re.compile(rf"\b(?:{pattern})"), family) for pattern, family in FAMILIES.items())


@lru_cache(maxsize=256)
def family_of(model: str | None) -> Family:
    """The family that a model's name belongs to; `UNKNOWN` for any other."""
    name = (model or "").lower()
    return next((family for pattern, family in _PATTERNS if pattern.search(name)), UNKNOWN)
