"""A tokenizer, if one is at hand: loaded in the background, never fetched.

Two packages can count, and neither is required. `splintr-rs` (the extra `tokens`) brings its vocabularies with it.
`tiktoken` is installed with pydantic-ai's openai extra, but downloads its vocabularies when it is asked for one, so it
is only asked for a file that is already in its cache and has the hash that tiktoken expects. A vocabulary is used only
if it splits a probe as it should: a tokenizer that is silently wrong is worse than none.

`tokenizer()` never waits. It returns what has been loaded, and `preload()` starts the loading in a thread; until that
is done, and where nothing can be loaded, `approximate()` stands in.

Known limits: both packages hold the interpreter while they build a vocabulary, 15 to 70 ms for splintr and a few
hundred for tiktoken, once per process and vocabulary. That is why loading starts when a model is wrapped or, at the
latest, when a request goes out, and not when a number is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

__all__ = (
    "STAND_IN",
    "VOCABULARIES",
    "Tokenizer",
    "approximate",
    "load",
    "most_at_once",
    "preload",
    "tokenizer",
    "well_formed",
)

Tokenizer = Callable[[str], int]
"""Says how many tokens a text is; a special token spelled out in it is ordinary text."""

PROBE: Final = "Ünïted 12345 tokens, don't\n\treturn x**2; 你好世界 🙂"

VOCABULARIES: Final = {
    "o200k_base": 20,
    "cl100k_base": 24,
    "llama3": 21,
    "deepseek_v3": 21,
    "mistral_v3": 26,
    "qwen3": 24,
    "glm4": 21,
    "kimi_k2": 20,
    "gemma3": 26,
}
"""The vocabularies we ask for, by their names in splintr, and how many tokens the probe is in each."""

STAND_IN: Final = "o200k_base"
"""The vocabulary that stands in for one that is not at hand: the nearest to most others."""

_TIKTOKEN_HASHES: Final = {
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
}
"""The vocabularies that tiktoken may have on disk, with their SHA-256 as in `tiktoken_ext.openai_public`."""

_TIKTOKEN_ADDRESS: Final = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"
"""tiktoken names a cached file after the SHA-1 of this; it is only ever hashed here."""

_loaded: dict[str, Tokenizer | None] = {}
"""The tokenizers that were loaded; `None` for one that could not be."""

_loading: dict[str, threading.Thread] = {}

_one_at_a_time = threading.Lock()
"""Held while a vocabulary is built, which holds the interpreter anyway: two builders would only do it twice."""


def tokenizer(name: str) -> Tokenizer | None:
    """The tokenizer of that vocabulary if it is loaded by now, else `None`. Never waits; any thread may call it."""
    return _loaded.get(name)


def preload(name: str) -> None:
    """Start loading a vocabulary in the background, or what stands in for it. Returns at once."""
    if name not in _loaded and name not in _loading:
        thread = threading.Thread(target=_load_something, args=(name,), name=f"cancelstream-{name}", daemon=True)
        # Two threads may come here together; only the first one's loading is started.
        if _loading.setdefault(name, thread) is thread:
            thread.start()


def load(name: str) -> Tokenizer | None:
    """Load a vocabulary now and return its tokenizer, or `None` where nothing at hand has it.

    Blocks: for a command, a benchmark or a thread, never for an event loop.
    """
    if name not in _loaded:
        with _one_at_a_time:
            # Another thread may have loaded it meanwhile: its own loader, or another vocabulary's, to stand in.
            if name not in _loaded:
                _loaded[name] = _checked(_from_splintr(name), name) or _checked(_from_tiktoken(name), name)
    return _loaded[name]


def _load_something(name: str) -> None:
    if load(name) is None:
        load(STAND_IN)


def most_at_once(name: str) -> int:
    """How many characters can be counted by that vocabulary, or what stands in for it, while an event loop waits.

    That is a few milliseconds for prose, and up to ten for what takes tokenizers longest: random letters, emoji, texts
    without spaces.
    """
    if _loaded.get(name) is None and _loaded.get(STAND_IN) is None:
        return _BY_WORDS
    return _SLOW if name in _SLOW_ONES else _FAST


def approximate(text: str) -> tuple[int, int, int]:
    """About how many tokens a text is in a large modern vocabulary, with a lower and an upper bound.

    For want of a tokenizer. Words are counted, not characters, which comes close in English, JSON and code. Other
    scripts than Latin are guesswork, and their bounds say so.
    """
    value = low = high = 0.0
    for match in _PIECES.finditer(text):
        length = match.end() - match.start()
        tokens = _WEIGH[match.lastgroup or ""](length)
        value += tokens
        if match.lastgroup == "other":
            # From four letters to a token (Greek, Cyrillic) to three tokens for one sign (emoji, rare scripts).
            low += 0.25 * length
            high += 3 * length
        else:
            low += 0.75 * tokens
            high += 1.35 * tokens
    return round(value), int(low), -int(-high // 1)


_FAST: Final = 40_000
_SLOW: Final = 12_000
_BY_WORDS: Final = 12_000
_SLOW_ONES: Final = frozenset({"gemma3", "mistral_v3"})

_PIECES: Final = re.compile(
    r"(?P<word>[A-Za-z]+)|(?P<number>[0-9]+)|(?P<lines>\n+)|(?P<signs>[!-/:-@\[-`{-~]+)|(?P<other>[^\x00-\x7f]+)"
)

_WEIGH: Final[dict[str, Callable[[int], float]]] = {
    "word": lambda length: 1 + 0.2 * max(0, length - 8),
    "number": lambda length: 1.3 * ((length + 2) // 3),
    "lines": lambda _: 0.5,
    "signs": lambda length: 0.85 + 0.3 * (length - 1),
    "other": lambda length: 0.5 * length,
}
"""Tokens of a piece by its length, rounded from a least-squares fit to o200k."""


def well_formed(text: str) -> str:
    """The text with the two halves of a character put together, where they came apart, and a mark for a lone half.

    A server may cut a character that takes two escapes in JSON in two deltas. Each half is a surrogate, which is no
    text: nothing can encode it.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _from_splintr(name: str) -> Tokenizer | None:
    try:
        from splintr import Tokenizer as Splintr  # pyright: ignore

        encode = Splintr.from_pretrained(name).encode_ordinary
    except Exception:  # noqa: BLE001 - not installed, or of a version that has changed: there are other ways to count
        return None
    return lambda text: len(encode(well_formed(text)))


def _from_tiktoken(name: str) -> Tokenizer | None:
    try:
        if not _is_on_disk(name):
            return None
        from tiktoken import get_encoding

        encode = get_encoding(name).encode_ordinary
    except Exception:  # noqa: BLE001 - as above
        return None
    return lambda text: len(encode(well_formed(text)))


def _is_on_disk(name: str) -> bool:
    """Whether tiktoken would find this vocabulary in its cache and so not reach for the network."""
    if name not in _TIKTOKEN_HASHES:
        return False
    # As tiktoken.load.read_file_cached looks for it; an empty directory name turns its cache off.
    directory = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if directory is None:
        directory = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    if not directory:
        return False
    key = hashlib.sha1(_TIKTOKEN_ADDRESS.format(name).encode(), usedforsecurity=False).hexdigest()
    path = Path(directory) / key
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == _TIKTOKEN_HASHES[name]


def _checked(count: Tokenizer | None, name: str) -> Tokenizer | None:
    """The tokenizer, if it splits the probe as that vocabulary does."""
    try:
        return count if count is not None and count(PROBE) == VOCABULARIES.get(name) else None
    except Exception:  # noqa: BLE001 - one that fails on ordinary text is none
        return None


def _forget_unfinished() -> None:
    """A forked child has no loader threads, whatever this table says, and no thread that releases the lock."""
    global _one_at_a_time
    _one_at_a_time = threading.Lock()
    for name in [name for name, thread in _loading.items() if name not in _loaded and not thread.is_alive()]:
        del _loading[name]


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows
    os.register_at_fork(after_in_child=_forget_unfinished)
