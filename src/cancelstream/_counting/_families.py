"""How the models of each maker count: one table, fitted to recorded traffic.

A family is found by the model's name, wherever it is hosted, and says which vocabulary to count with, how its own
counts relate to that, and what a stream of it leaves unsaid. The figures were fitted to recorded provider traffic, with
the recordings of one project at a time held back to see that they carry over (`benchmarks/usage_accuracy.py`). A
family without a comment of its own has few recordings, and wide bounds for it.

Known limits: a name says what a model is, not what a host does to it. A fine-tuned or renamed model counts as
`UNKNOWN`, whose counts have no upper bound.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

from .. import _tokens

__all__ = ("UNKNOWN", "Family", "Tokens", "family_of")


@dataclass(slots=True)
class Tokens:
    """A number of tokens as it was counted, with bounds, before it is anybody's `Count`.

    Attributes:
        value: The number.
        low: A lower bound.
        high: An upper bound.
        method: How it was counted.
        exact: Whether it was counted with the model's own vocabulary.
    """

    value: float
    low: float
    high: float
    method: str
    exact: bool

    def __add__(self, other: Tokens) -> Tokens:
        if other is NO_TOKENS:
            return self
        return Tokens(
            self.value + other.value,
            self.low + other.low,
            self.high + other.high,
            self.method or other.method,
            self.exact and other.exact,
        )


NO_TOKENS: Final = Tokens(0, 0, 0, "", True)


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of one maker's models.

    Attributes:
        name: The family's name.
        vocabulary: The vocabulary to count with.
        own: Whether that is the models' own, or only the nearest at hand.
        scale: What a token of that vocabulary is worth: the value, and its bounds.
        thinking: Whether reasoning that streams is what was billed, or a summary of it.
        hides: Whether these models may reason where nobody sees it, unless they are told not to.
        ending: Tokens that end an answer, and are counted when it came to its end.
        turn: Tokens around each message of a prompt.
        opening: Tokens around a whole prompt.
        slack: Tokens that the maker or the host may add to a prompt.
        tool: What a token of a function's JSON is worth in a prompt, and the tokens around all functions.
        schema: The same of a response schema.
        call: Tokens around a call, beside its name and arguments; OpenAI's are in `_output.py`.
    """

    name: str
    vocabulary: str = _tokens.STAND_IN
    own: bool = True
    scale: tuple[float, float, float] = (1.0, 0.97, 1.03)
    thinking: Literal["counted", "summary"] = "counted"
    hides: bool = False
    ending: int = 1
    turn: float = 4
    opening: float = 3
    slack: int = 0
    tool: tuple[float, float] = (1, 100)
    schema: tuple[float, float] = (1, 0)
    call: int = 25

    @property
    def is_openai(self) -> bool:
        """Whether these are OpenAI's hosted models."""
        return self.name.startswith("openai")

    @property
    def is_claude(self) -> bool:
        """Whether these are Anthropic's models."""
        return self.name.startswith("claude")

    def count(self, text: str) -> Tokens:
        """How many of this family's tokens a text is; never waits for a tokenizer."""
        if not text:
            return NO_TOKENS
        name = self.vocabulary
        count = _tokens.tokenizer(name)
        if count is not None:
            number = count(text)
            value, low, high = self.scale
            method = f"bpe:{name}" if self.own else f"ratio:{self.name}"
            return Tokens(number * value, number * low, number * high, method, self.own)
        return self._guess(text)

    def _guess(self, text: str) -> Tokens:
        """Without the right vocabulary: by another one, or by no vocabulary at all."""
        value, low, high = self.scale
        count = _tokens.tokenizer(_tokens.STAND_IN)
        if count is None:
            number, least, most = _tokens.approximate(text)
            return Tokens(number * value, least * low, most * high, "words", False)
        number = count(text)
        return Tokens(number * value * 1.05, number * low * 0.7, number * high * 1.5, f"ratio:{self.name}", False)


UNKNOWN: Final = Family("", own=False, scale=(1.1, 0.5, 2.5))

_FOREIGN: Final = (1.0, 0.9, 1.12)
"""Own vocabularies of open-weight models: template tokens and tokenizer versions differ by a little."""

_CLAUDE: Final = Family(
    "claude",
    own=False,
    scale=(1.2, 0.85, 2.0),
    thinking="summary",
    hides=True,
    ending=3,
    turn=2,
    opening=6,
    slack=900,
    tool=(1.25, 430),
    schema=(1.25, 170),
)
"""Anthropic publishes no vocabulary: the scale is what its counts are to o200k's, as fitted to recorded answers."""

_GEMINI: Final = Family(
    "gemini",
    vocabulary="gemma3",
    scale=_FOREIGN,
    turn=0,
    opening=1,
    slack=100,
    tool=(0.9, 0),
    schema=(0, 0),
)

_FAMILIES: Final[dict[str, Family]] = {
    # OpenAI. Of what reasons, nothing but the sum of answer and reasoning is ever reported.
    r"gpt-5(?!.*-chat)|o\d(-|$)|codex|computer-use": Family(
        "openai-reasoning", thinking="summary", hides=True, ending=6, turn=3
    ),
    r"gpt-4o|chatgpt-4o|gpt-4\.[15]|gpt-5.*-chat": Family("openai", ending=0),
    r"gpt-3\.5-turbo-0301": Family("openai", vocabulary="cl100k_base", ending=0, turn=5),
    r"gpt-4|gpt-3\.?5|davinci|babbage": Family("openai", vocabulary="cl100k_base", ending=0),
    r"gpt-oss": Family("gpt-oss", scale=_FOREIGN, ending=9, opening=65, slack=300),
    # Anthropic. Claude 4 streams a summary of its reasoning; later ones may reason without being asked.
    r"claude-(2|3|instant|v\d)": replace(
        _CLAUDE, name="claude-3", scale=(1.18, 0.92, 1.5), thinking="counted", hides=False, tool=(1.25, 260)
    ),
    r"claude-(sonnet|opus|haiku)-4": replace(_CLAUDE, name="claude-4", scale=(1.12, 0.9, 1.4), hides=False),
    r"claude|fable|mythos": _CLAUDE,
    # Google, which reports with every chunk: these matter for requests that were cut before the first.
    r"gemini-(1|2\.0)": _GEMINI,
    r"gemini": replace(_GEMINI, thinking="summary", hides=True, slack=900),
    r"gemma": replace(_GEMINI, name="gemma", turn=4),
    # Open weights: their hosts put prompts of their own around a request.
    r"deepseek-v4": Family(
        "deepseek", vocabulary="deepseek_v3", scale=_FOREIGN, opening=80, turn=2, slack=300, tool=(1, 250)
    ),
    r"deepseek(?!.*(llama|qwen))": Family(
        "deepseek", vocabulary="deepseek_v3", scale=_FOREIGN, turn=2, slack=300, tool=(1, 250)
    ),
    r"llama-?4": Family("llama", vocabulary="llama3", scale=(1.0, 0.85, 1.2), slack=900),
    r"llama": Family("llama", vocabulary="llama3", scale=_FOREIGN, turn=5, opening=30, slack=700),
    r"qwen|qwq": Family("qwen", vocabulary="qwen3", scale=_FOREIGN, ending=4, slack=300, tool=(1, 150)),
    r"mi[sx]tral|magistral|codestral|devstral|pixtral": Family(
        "mistral", vocabulary="mistral_v3", scale=(1.0, 0.8, 1.15), turn=2, opening=1, slack=100, tool=(1, 15)
    ),
    r"kimi|moonshot": Family("kimi", vocabulary="kimi_k2", scale=_FOREIGN, ending=4, slack=300),
    r"glm": Family("glm", vocabulary="glm4", scale=_FOREIGN, ending=2, turn=3, slack=300, tool=(1, 150)),
}
"""The families by a pattern that begins anywhere a word of the model's name does; the first that matches counts."""

_PATTERNS: Final = tuple((re.compile(rf"\b(?:{pattern})"), family) for pattern, family in _FAMILIES.items())


@lru_cache(maxsize=256)
def family_of(model: str | None) -> Family:
    """The family that a model's name belongs to; `UNKNOWN` for any other."""
    name = (model or "").lower()
    return next((family for pattern, family in _PATTERNS if pattern.search(name)), UNKNOWN)
