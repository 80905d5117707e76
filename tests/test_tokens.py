"""The tokenizer: loaded in the background, checked before it is used, and never fetched."""

from __future__ import annotations

import base64
import hashlib
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from cancelstream import _tokens

LIMIT = 20
TEXTS = {
    "English": "The quick brown fox, who wasn't lazy, jumped over 12 dogs; nobody had asked it to do that at all.",
    "JSON": '{"name": "get_weather", "arguments": {"city": "Paris", "days": 14, "units": ["C", "F"]}}\n' * 3,
    "code": "def f(x: int) -> int:\n    return sum(i**2 for i in range(x) if i % 3 == 0)\n" * 4,
    "Chinese": "你好,世界。今天天气怎么样?我们去公园散步吧。" * 3,
    "Russian": "Съешь же ещё этих мягких французских булок да выпей чаю." * 3,
    "emoji": "🙂🎉👩‍👩‍👧‍👦" * 5,
    "nothing": "",
}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, nothing_is_loading: None) -> Iterator[None]:
    """Nothing is loaded yet, and no loading outlives the test."""
    monkeypatch.setattr(_tokens, "_loaded", {})
    monkeypatch.setattr(_tokens, "_loading", {})
    yield
    for name, thread in _tokens._loading.items():
        if thread.is_alive():
            wait_until_loaded(name)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every attempt to reach a network, each of which fails."""
    attempts: list[object] = []

    def refuse(*arguments: object, **options: object) -> None:
        attempts.append(arguments)
        raise OSError("a test tried to reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


@pytest.fixture
def no_splintr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "splintr", None)


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """tiktoken's cache, which is empty."""
    monkeypatch.delenv("DATA_GYM_CACHE_DIR", raising=False)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def o200k(vocabularies: dict[str, _tokens.Tokenizer | None]) -> _tokens.Tokenizer:
    """The tokenizer that an approximation is of."""
    count = vocabularies["o200k_base"]
    assert count is not None
    return count


@pytest.fixture(scope="session")
def o200k_file() -> bytes:
    """The file that tiktoken would have downloaded, made of the vocabulary that splintr brings."""
    splintr = pytest.importorskip("splintr", reason="the extra `tokens` is not installed")
    tokenizer = splintr.Tokenizer.from_pretrained("o200k_base")
    lines = (base64.b64encode(tokenizer.decode_token_bytes(rank)) + b" %d\n" % rank for rank in range(199_998))
    data = b"".join(lines)
    assert hashlib.sha256(data).hexdigest() == _tokens._TIKTOKEN_HASHES["o200k_base"]
    return data


def cached_as(name: str) -> str:
    """The name that tiktoken gives a file in its cache."""
    address = f"https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
    return hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest()


def wait_until_loaded(name: str) -> None:
    thread = _tokens._loading[name]
    thread.join(LIMIT)
    assert not thread.is_alive()


# --- splintr ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", _tokens.VOCABULARIES)
def test_every_vocabulary_we_ask_for_is_there(name: str, no_network: list[object]):
    """The extra brings each vocabulary, as we know it, with no network."""
    pytest.importorskip("splintr", reason="the extra `tokens` is not installed")
    count = _tokens.load(name)
    assert count is not None
    assert count(_tokens.PROBE) == _tokens.VOCABULARIES[name]
    assert count("") == 0
    assert not no_network


def test_special_tokens_are_text(o200k: _tokens.Tokenizer):
    """A special token that somebody typed is counted as what they typed."""
    assert o200k("<|endoftext|>") > 1


@pytest.mark.usefixtures("no_cache")
def test_nothing_at_hand(no_splintr: None, no_network: list[object]):
    """Without either package's vocabulary there is no tokenizer, and nobody tries to download one."""
    assert _tokens.load("o200k_base") is None
    assert _tokens.tokenizer("o200k_base") is None
    assert not no_network


@pytest.mark.usefixtures("no_cache")
@pytest.mark.parametrize(
    "encode",
    [lambda text: [0] * 99, lambda text: list(text.encode()), lambda text: 1 / 0, lambda text: None],
    ids=["wrong", "bytes", "raises", "nothing"],
)
def test_a_tokenizer_that_is_silently_wrong_is_not_used(monkeypatch: pytest.MonkeyPatch, encode: object):
    """A vocabulary that does not split the probe as it should is none."""
    tokenizer = SimpleNamespace(from_pretrained=lambda name: SimpleNamespace(encode_ordinary=encode))
    monkeypatch.setitem(sys.modules, "splintr", SimpleNamespace(Tokenizer=tokenizer))
    assert _tokens.load("o200k_base") is None


@pytest.mark.usefixtures("no_cache")
def test_a_package_that_has_changed_is_not_used(monkeypatch: pytest.MonkeyPatch):
    """A splintr without what we call is as good as no splintr."""
    monkeypatch.setitem(sys.modules, "splintr", SimpleNamespace())
    assert _tokens.load("o200k_base") is None


# --- tiktoken -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", None])
def test_tiktoken_from_its_cache(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    o200k_file: bytes,
    no_splintr: None,
    no_network: list[object],
    variable: str | None,
):
    """A vocabulary that tiktoken has on disk is used from there, wherever tiktoken keeps it."""
    registry = pytest.importorskip("tiktoken.registry")
    monkeypatch.setattr(registry, "ENCODINGS", {})
    for name in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    directory = tmp_path if variable else tmp_path / "data-gym-cache"
    directory.mkdir(exist_ok=True)
    if variable:
        monkeypatch.setenv(variable, str(directory))
    else:
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (directory / cached_as("o200k_base")).write_bytes(o200k_file)

    count = _tokens.load("o200k_base")

    assert count is not None
    assert count(_tokens.PROBE) == _tokens.VOCABULARIES["o200k_base"]
    assert count("<|endoftext|>") > 1
    assert not no_network


def test_a_broken_file_in_the_cache_is_left_alone(no_cache: Path, no_splintr: None, no_network: list[object]):
    """tiktoken would delete it and download it again; we do neither."""
    broken = no_cache / cached_as("o200k_base")
    broken.write_bytes(b"IQ== 0\n")
    assert _tokens.load("o200k_base") is None
    assert broken.read_bytes() == b"IQ== 0\n"
    assert not no_network


@pytest.mark.usefixtures("no_cache")
def test_a_cache_that_is_turned_off(monkeypatch: pytest.MonkeyPatch, no_splintr: None, no_network: list[object]):
    """An empty directory name makes tiktoken download every time; so it is not asked."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert _tokens.load("o200k_base") is None
    assert not no_network


@pytest.mark.usefixtures("no_cache")
def test_vocabularies_that_tiktoken_has_not(no_splintr: None, no_network: list[object]):
    """Other makers' vocabularies are splintr's alone."""
    assert _tokens.load("llama3") is None
    assert not no_network


def test_a_tiktoken_that_fails(monkeypatch: pytest.MonkeyPatch, no_splintr: None):
    """A file that is there, and a package that is not, or has changed."""
    monkeypatch.setattr(_tokens, "_is_on_disk", lambda name: True)
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert _tokens.load("o200k_base") is None


# --- loading ------------------------------------------------------------------------------------------------------


def test_loading_happens_behind_the_back(monkeypatch: pytest.MonkeyPatch):
    """`preload()` returns at once, and until it is done there is no tokenizer, and nobody waits for it."""
    begun, go = threading.Event(), threading.Event()

    def slow(name: str) -> _tokens.Tokenizer:
        begun.set()
        assert go.wait(LIMIT)
        return lambda text: _tokens.VOCABULARIES[name]

    monkeypatch.setattr(_tokens, "_from_splintr", slow)
    _tokens.preload("o200k_base")
    assert begun.wait(LIMIT)
    assert _tokens.tokenizer("o200k_base") is None
    go.set()
    wait_until_loaded("o200k_base")
    count = _tokens.tokenizer("o200k_base")
    assert count is not None
    assert count("anything") == 20


def test_a_vocabulary_is_loaded_once(monkeypatch: pytest.MonkeyPatch):
    """Many requests at once start one thread, and a vocabulary that is there is not loaded again."""
    go, loads = threading.Event(), []

    def slow(name: str) -> None:
        loads.append(name)
        assert go.wait(LIMIT)

    monkeypatch.setattr(_tokens, "_from_splintr", slow)
    monkeypatch.setattr(_tokens, "_from_tiktoken", lambda name: None)
    for _ in range(5):
        _tokens.preload("o200k_base")
        _tokens.preload("llama3")
    go.set()
    wait_until_loaded("o200k_base")
    wait_until_loaded("llama3")
    _tokens.preload("o200k_base")
    assert _tokens.load("o200k_base") is None
    assert not _tokens._loading["o200k_base"].is_alive()
    assert sorted(loads) == ["llama3", "o200k_base"]


def test_a_stand_in_that_is_loading_already(monkeypatch: pytest.MonkeyPatch):
    """A loader that needs the stand-in waits for the thread that is loading it, and so does `load()`."""
    begun, go, loads = threading.Event(), threading.Event(), []

    def slow(name: str) -> _tokens.Tokenizer | None:
        loads.append(name)
        if name != _tokens.STAND_IN:
            return None
        begun.set()
        assert go.wait(LIMIT)
        return lambda text: _tokens.VOCABULARIES[name]

    monkeypatch.setattr(_tokens, "_from_splintr", slow)
    monkeypatch.setattr(_tokens, "_from_tiktoken", lambda name: None)
    _tokens.preload(_tokens.STAND_IN)
    assert begun.wait(LIMIT)
    _tokens.preload("llama3")
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(_tokens.load, _tokens.STAND_IN)
        go.set()
        assert asked.result(LIMIT) is not None
    wait_until_loaded("llama3")
    assert loads == [_tokens.STAND_IN, "llama3"]


def test_two_threads_that_ask_at_once(monkeypatch: pytest.MonkeyPatch):
    """Of two that find it not loading, the second to say so starts nothing."""
    first = threading.Thread(target=lambda: None)

    class Late(dict[str, threading.Thread]):
        def __contains__(self, name: object) -> bool:
            return False

    monkeypatch.setattr(_tokens, "_loading", Late(o200k_base=first))
    monkeypatch.setattr(_tokens, "load", lambda name: pytest.fail("loaded twice"))
    _tokens.preload("o200k_base")
    assert _tokens._loading["o200k_base"] is first


def test_another_vocabulary_stands_in(monkeypatch: pytest.MonkeyPatch):
    """Where a model's own vocabulary is not at hand, the one that is nearest to most is loaded instead."""
    monkeypatch.setattr(_tokens, "_from_splintr", lambda name: None)
    monkeypatch.setattr(_tokens, "_from_tiktoken", lambda name: (lambda text: 20) if name == "o200k_base" else None)
    _tokens.preload("llama3")
    wait_until_loaded("llama3")
    assert _tokens.tokenizer("llama3") is None
    assert _tokens.tokenizer(_tokens.STAND_IN) is not None


def test_a_forked_child_loads_again(monkeypatch: pytest.MonkeyPatch):
    """The threads of the parent are gone in a child, with what they held; what they had not finished is begun anew."""
    gone = threading.Thread(target=lambda: None)
    gone.start()
    gone.join(LIMIT)
    _tokens._loading.update(half=gone, whole=gone)
    _tokens._loaded["whole"] = None
    held = threading.Lock()
    monkeypatch.setattr(_tokens, "_one_at_a_time", held)
    with held:
        _tokens._forget_unfinished()
        assert list(_tokens._loading) == ["whole"]
        assert _tokens.load("half") is None


# --- without a tokenizer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_an_approximation_holds_the_count(text: str, o200k: _tokens.Tokenizer):
    """The bounds of a guess hold what the tokenizer counts, in any script."""
    value, low, high = _tokens.approximate(text)
    assert low <= value <= high
    assert low <= o200k(text) <= high


@pytest.mark.parametrize("name", ["English", "JSON", "code"])
def test_an_approximation_is_close(name: str, o200k: _tokens.Tokenizer):
    """In English, JSON and code the guess itself is within a fifth."""
    assert _tokens.approximate(TEXTS[name])[0] == pytest.approx(o200k(TEXTS[name]), rel=0.2)


def test_what_an_event_loop_has_time_for(monkeypatch: pytest.MonkeyPatch):
    """A slow vocabulary counts less at once than a fast one, and so do words where there is no vocabulary."""
    monkeypatch.setattr(_tokens, "_loaded", {"o200k_base": len, "gemma3": len})
    assert _tokens.most_at_once("gemma3") < _tokens.most_at_once("o200k_base") == _tokens.most_at_once("qwen3")
    monkeypatch.setattr(_tokens, "_loaded", {})
    assert _tokens.most_at_once("o200k_base") < 20_000
