"""An event that is known without being parsed says what parsing it would find; everything else is parsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jiter import from_json

from cancelstream._openai._alike import recogniser
from cancelstream._openai._pieces import CHAT
from cancelstream._response import CancellableStreamedResponse

from .support import LAST, Sent, chat, delta, stream_of

Known = Callable[[bytes], str | None]

SPACED = (", ", ": ")
TIGHT = (",", ":")


def event(text: Any, *, separators: tuple[str, str] = TIGHT, name: str = "content", **fields: Any) -> bytes:
    """A text event, its JSON as OpenAI writes it."""
    data = json.loads(chat({"index": 0, "delta": {name: text}, "logprobs": None, "finish_reason": None}, **fields))
    return b"data: " + json.dumps(data, separators=separators, ensure_ascii=False).encode()


def parse(event: bytes) -> Any:
    return from_json(event.removeprefix(b"data:").lstrip())


def made_of(before: bytes, after: bytes, name: str = "content") -> Known | None:
    """The recogniser of two events, which carry on the same run."""
    piece = CHAT.piece(parse(before))
    assert piece is not None
    follows = CHAT.follows(piece, parse(before))
    text = follows(parse(after))
    assert text is not None, "these two do not even carry on"
    return recogniser(before, after, name, text, follows)


PADDED = made_of(event(" a", obfuscation="kBz3"), event(" few", obfuscation="kQ"))
assert PADDED is not None


@pytest.mark.parametrize("separators", [TIGHT, SPACED], ids=["tight", "spaced"])
@pytest.mark.parametrize("name", ["content", "reasoning_content", "reasoning", "refusal"])
@pytest.mark.parametrize("paddings", [(), ("kBz3", "kQ", "x7")], ids=["plain", "padded"])
def test_events_like_the_two_before_are_known(separators: Any, name: str, paddings: tuple[str, ...]) -> None:
    """With padding and without, whatever the text's field is called, with spaces in the JSON and without."""

    def made(text: str, number: int) -> bytes:
        fields = {"obfuscation": paddings[number]} if paddings else {}
        return event(text, separators=separators, name=name, **fields)

    known = made_of(made(" a", 0), made(" few", 1), name)
    assert known is not None
    for text in (" words", "wörld", "😀", "7", "a: {b}", "'", " "):
        assert known(made(text, 2)) == text


OTHERS = {
    "a line break": event("\n", obfuscation="x"),
    "a quote": event('say "no"', obfuscation="x"),
    "a backslash": event("C:\\", obfuscation="x"),
    "a control character": event("x", obfuscation="x").replace(b'"x"', b'"\t"', 1),
    "no UTF-8": event("x", obfuscation="x").replace(b'"x"', b'"\xff"', 1),
    "no text": event("", obfuscation="x"),
    "a tag": event("<think>", obfuscation="x"),
    "null": event(None, obfuscation="x"),
    "a list": event([{"type": "text", "text": "x"}], obfuscation="x"),
    "another id": event("x", id="chatcmpl-2", obfuscation="x"),
    "another model": event("x", model="gpt-5", obfuscation="x"),
    "usage": event("x", usage={"completion_tokens": 1}, obfuscation="x"),
    "no padding": event("x"),
    "padding that is no string": event("x", obfuscation=7),
    "padding with an escape": event("x", obfuscation='"'),
    "more after it": event("x", obfuscation="x", more="x"),
    "a finish reason": event("x", obfuscation="x").replace(b'"finish_reason":null', b'"finish_reason":"stop"'),
    "another choice": event("x", obfuscation="x").replace(b'"index":0', b'"index":1'),
    "a second line": event("x", obfuscation="x") + b"\nretry: 1",
    "cut": event("x", obfuscation="x")[:-1],
    "another end": event("x", obfuscation="x")[:-1] + b"]",
    "nothing": b"",
    "the end": b"data: [DONE]",
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_event_that_is_not_like_them_is_not_known(name: str) -> None:
    """Where anything else differs, or could be read in another way, the event is left to be parsed."""
    assert PADDED is not None
    assert PADDED(event("x", obfuscation="x")) == "x"
    assert PADDED(OTHERS[name]) is None


UNLIKE = {
    "a fingerprint for each": [event(word, system_fingerprint=f"fp_{word}-{word}") for word in ("a", "b")],
    "a time for each": [event(word, created=number) for number, word in enumerate(("a", "b"), 100)],
    "two paddings": [event(word, p=word, q=word * 2) for word in ("a", "b")],
    "a padding that needs an escape": [event(word, p=f"{word}\n") for word in ("a", "b")],
    "a number for padding": [event(word, p=number) for number, word in enumerate(("a", "b"))],
    "a padding that is the whole of one": [event("a"), event("b", p="x")],
    "a text with an escape": [event("a"), event("b\n")],
    "a data line of another look": [each.replace(b"data: ", b"data:") for each in (event("a"), event("b"))],
    # The first of two counts for nothing.
    "the same key twice": [event(word).replace(b'"content"', b'"content":"x","content"') for word in ("x", "x")],
}


@pytest.mark.parametrize("name", UNLIKE)
def test_two_that_are_not_alike_make_nothing(name: str) -> None:
    """What differs between two events has to be the text, and one padding that nobody reads."""
    assert made_of(*UNLIKE[name]) is None


def test_nothing_may_follow_an_event_without_padding() -> None:
    """Letters and digits are allowed as padding only, not behind the JSON."""
    known = made_of(event("a"), event("b"))
    assert known is not None
    assert (known(event("c")), known(event("c") + b"7")) == ("c", None)


def test_a_key_that_is_quoted_is_none() -> None:
    """What looks like the text's key in a string before it is passed over."""
    quoted = '"content": "x'
    known = made_of(event("a", id=quoted), event("b", id=quoted))
    assert known is not None
    assert known(event("c", id=quoted)) == "c"


def test_what_is_read_is_no_padding() -> None:
    """A field that decides whether a chunk carries on is not taken for padding, not even if it could be."""

    def made(text: str, tier: str) -> bytes:
        body = f'{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}],"id":"c","service_tier":"{tier}"}}'
        return f"data: {body}".encode()

    first = parse(made("a", "flex"))
    piece = CHAT.piece(first)
    assert piece is not None
    follows = CHAT.follows(piece, first)
    assert recogniser(made("a", "flex"), made("b", "default"), "content", "b", follows) is None
    assert recogniser(made("a", "flex"), made("b", "flex"), "content", "b", follows) is not None


def damaged(data: bytes, places: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, put in places:
        at %= len(data) + 1
        data = data[:at] + put + data[at + length :]
    return data


PUT = st.sampled_from([b"", b'"', b"\\", b'","', b'":"', b"}", b"\xc3", b"null", b'"error":"x",']) | st.binary(
    max_size=3
)


@settings(max_examples=1000, deadline=None)
@given(
    text=st.text(max_size=8),
    padding=st.text(max_size=6),
    places=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 12), PUT), max_size=3),
    escaped=st.booleans(),
)
@example(text='","content":"x', padding="x", places=[], escaped=False)
@example(text="x", padding='x","model":"y', places=[], escaped=False)
def test_what_is_known_is_what_parsing_finds(
    text: str, padding: str, places: list[tuple[int, int, bytes]], escaped: bool
) -> None:
    """Whatever the bytes are: an event that is known parses, and carries on with the very same text."""
    assert PADDED is not None
    data = event("TEXT", obfuscation="PADDING").decode()
    for word, value in (("TEXT", text), ("PADDING", padding)):
        data = data.replace(word, json.dumps(value, ensure_ascii=False)[1:-1] if escaped else value)
    one = damaged(data.encode("utf-8", "surrogatepass"), places)
    known = PADDED(one)
    if known is not None:
        first = parse(event(" a", obfuscation="kBz3"))
        piece = CHAT.piece(first)
        assert piece is not None
        assert CHAT.follows(piece, first)(parse(one)) == known


async def test_a_plain_answer_is_hardly_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thousand plain events a handful is parsed; an escape costs its own event, and a new id three more."""
    words = [f" word{number}" for number in range(1000)]
    words[500] = "\n"
    ids = ["chatcmpl-1" if number < 700 else "chatcmpl-2" for number in range(1000)]
    paddings = ["x" * (number % 7 + 1) for number in range(1000)]
    chunks = [
        chat(delta(content=word), id=id_, obfuscation=padding)
        for word, id_, padding in zip(words, ids, paddings, strict=True)
    ]
    sent = Sent("long", (*chunks, LAST))
    async with CancellableStreamedResponse.from_openai(await stream_of(sent.sse())) as response:
        parsed: list[bytes] = []
        pieces: list[str] = []
        reading = response.stream_text(delta=True)
        pieces.append(await anext(reading))
        lane = response._lane
        decode = lane.decode
        monkeypatch.setattr(lane, "decode", lambda event: parsed.append(event) or decode(event))
        pieces += [piece async for piece in reading]
    assert pieces == words
    assert response.get().text == "".join(words)
    assert response.usage.output.low >= 1000
    assert len(parsed) <= 8
