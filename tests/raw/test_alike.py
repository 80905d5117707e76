"""An event that is known without being parsed says what parsing it would find; everything else is parsed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import openai
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cancelstream._openai import _transcript
from cancelstream._openai._alike import recogniser
from cancelstream._openai._pieces import CHAT, RESPONSES
from cancelstream._response import CancellableStreamedResponse
from cancelstream._sse import EventDecoder, decoded

from .support import LAST, Sent, chat, delta, stream_of

Known = Callable[[bytes], str | None]
"""The text of an event that is read by itself, `None` if it is not known."""


def event(text: Any, *, separators: tuple[str, str] = (",", ":"), name: str = "content", **fields: Any) -> bytes:
    """A text event, its JSON as OpenAI writes it."""
    data = json.loads(chat({"index": 0, "delta": {name: text}, "logprobs": None, "finish_reason": None}, **fields))
    return b"data: " + json.dumps(data, separators=separators, ensure_ascii=False).encode()


def response_event(text: str, number: int, *, sort: bool = False, **fields: Any) -> bytes:
    """A text event of the Responses API, as OpenAI writes it; some hosts sort its keys."""
    data = {"type": "response.output_text.delta", "sequence_number": number, "item_id": "msg_1", "output_index": 0}
    data |= {"content_index": 0, "delta": text, "logprobs": [], **fields}
    line = json.dumps(data, separators=(",", ":"), sort_keys=sort, ensure_ascii=False)
    return f"event: response.output_text.delta\ndata: {line}".encode()


def made_of(before: bytes, after: bytes) -> Known | None:
    """The recogniser of two events, which carry on the same run."""
    grammar = RESPONSES if b"sequence_number" in before else CHAT
    piece = grammar.piece(decoded(before))
    assert piece is not None
    follows = grammar.follows(piece, decoded(before))
    text = follows(decoded(after))
    assert text is not None, "these two do not even carry on"
    found = recogniser(before, after, text, decoded, follows)
    return None if found is None else partial(known_by, found)


def known_by(found: Callable[[EventDecoder], str | None], one: bytes) -> str | None:
    """What it finds in this event, between two others; that it steps over it then, and otherwise stays."""
    events = EventDecoder()
    events.feed(b"data: {}\n\n" + one + b"\n\ndata: {}\n\n")
    assert events.take() is not None
    at = events.at
    text = found(events)
    step = len(EventDecoder().newlines(one + b"\n\n"))  # a CR at its end makes one newline with the LF behind it
    assert events.at == (at if text is None else at + step)
    return text


PADDED = made_of(event(" a", obfuscation="kBz3"), event(" few", obfuscation="kQ"))
assert PADDED is not None


LIKE: dict[str, Callable[[str, int], bytes]] = {
    "nothing else": lambda text, _: event(text),
    "spaces": lambda text, _: event(text, separators=(", ", ": ")),
    "no space before the data": lambda text, _: event(text).replace(b"data: ", b"data:"),
    "padding": lambda text, number: event(text, obfuscation="kBz3x7"[number:]),
    "two paddings": lambda text, number: event(text, p="ab" * (number + 1), q="c" * (number + 1)),
    "a time": lambda text, number: event(text, created=1_750_000_000 + number),
    "a counter": lambda text, number: event(text, n=8 + number),
    "reasoning": lambda text, _: event(text, name="reasoning_content", obfuscation="x"),
    "a refusal": lambda text, _: event(text, name="refusal"),
    "the text's key in another string": lambda text, _: event(text, id="content"),
    "Responses": lambda text, number: response_event(text, 8 + number, obfuscation="kBz3x7"[number:]),
    "Responses, sorted": lambda text, number: response_event(text, 8 + number, sort=True, obfuscation="kBz3"[number:]),
}


@pytest.mark.parametrize("name", LIKE)
def test_events_like_the_two_before_are_known(name: str) -> None:
    """Whatever else providers have differ from event to event, if nobody who reads the text asks for it."""
    made = LIKE[name]
    known = made_of(made(" a", 0), made(" few", 1))
    assert known is not None
    for text in (" words", "wörld", "😀", "7", "a: {b}", "'", " ", "content"):
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
    "an empty padding": [event("a", p="x"), event("b", p="")],
    "null for a padding": [event("a", p="x"), event("b", p=None)],
    "one more field": [event("a"), event("b", p="x")],
    "one field less": [event("a", p="x"), event("b")],
    "the same text twice": [event("a"), event("a")],
    "a padding that is the whole of one": [event("a"), event("b", p="x")],
    "a key for each": [event("a", k1="aa"), event("b", k2="ab")],
    "a key for each, with spaces": [event(word, **{word: word}, separators=(" , ", " : ")) for word in ("a", "b")],
    # The first of two counts for nothing.
    "the same key twice": [event(word).replace(b'"content"', b'"content":"x","content"') for word in ("x", "x")],
}


@pytest.mark.parametrize("name", UNLIKE)
def test_two_that_are_not_alike_make_nothing(name: str) -> None:
    """What differs between two events has to be the text, and one padding that nobody reads."""
    assert made_of(*UNLIKE[name]) is None


async def test_a_key_is_no_value() -> None:
    """Keys that differ from event to event do not let an error pass for text."""
    keys = ({"k1": "aa"}, {"k2": "ab"}, {"k3": "ac"}, {"error": "boom"}, {"k4": "ad"})
    sent = Sent("keys", tuple(chat(delta(content=word), **key) for word, key in zip("abcde", keys, strict=True)))
    async with CancellableStreamedResponse.from_openai(await stream_of(sent.sse())) as response:
        texts = response.stream_text(delta=True)
        assert [await anext(texts) for _ in range(3)] == ["a", "b", "c"]
        with pytest.raises(openai.APIError):
            await anext(texts)


def test_nothing_may_follow_an_event_without_padding() -> None:
    """Letters and digits are allowed as padding only, not behind the JSON."""
    known = made_of(event("a"), event("b"))
    assert known is not None
    assert (known(event("c")), known(event("c") + b"7")) == ("c", None)


def test_what_is_read_is_no_padding() -> None:
    """A field that decides whether a chunk carries on is not taken for padding, not even if it could be."""

    def made(text: str, tier: str) -> bytes:
        body = f'{{"choices":[{{"index":0,"delta":{{"content":"{text}"}}}}],"id":"c","service_tier":"{tier}"}}'
        return f"data: {body}".encode()

    first = decoded(made("a", "flex"))
    piece = CHAT.piece(first)
    assert piece is not None
    follows = CHAT.follows(piece, first)
    assert recogniser(made("a", "flex"), made("b", "default"), "b", decoded, follows) is None
    assert recogniser(made("a", "flex"), made("b", "flex"), "b", decoded, follows) is not None


def damaged(data: bytes, places: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, put in places:
        at %= len(data) + 1
        data = data[:at] + put + data[at + length :]
    return data


PUT = st.sampled_from([b"", b'"', b"\\", b'","', b'":"', b"}", b"\xc3", b"null", b'"error":"x",']) | st.binary(
    max_size=3
)


NUMBERS = st.integers().map(str) | st.sampled_from(["", "0", "07", "1.5", "1e3", "0x1", "\N{ARABIC-INDIC DIGIT ONE}"])


@settings(max_examples=1000, deadline=None)
@given(
    text=st.text(max_size=8),
    padding=st.text(max_size=6),
    number=NUMBERS,
    places=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 12), PUT), max_size=3),
    escaped=st.booleans(),
)
@example(text='","content":"x', padding="x", number="1", places=[], escaped=False)
@example(text="x", padding='x","model":"y', number="1", places=[], escaped=False)
@example(text="x", padding="x", number="1" * 5000, places=[], escaped=False)
@example(text="x", padding="x", number="07", places=[], escaped=False)
@example(text="x", padding="x", number='1,"delta":2', places=[], escaped=False)
@example(text="0", padding="0", number="0", places=[(199, 0, b"\r")], escaped=False)
def test_what_is_known_is_what_parsing_finds(
    text: str, padding: str, number: str, places: list[tuple[int, int, bytes]], escaped: bool
) -> None:
    """Whatever the bytes are: an event that is known parses, and carries on with the very same text."""
    for name in ("padding", "Responses"):
        made = LIKE[name]
        first = made(" a", 0)
        known = made_of(first, made(" few", 1))
        assert known is not None
        data = made("TEXT", 2).decode().replace("z3x7", "PADDING").replace(":10,", ":NUMBER,")
        for word, value in (("TEXT", text), ("PADDING", padding)):
            data = data.replace(word, json.dumps(value, ensure_ascii=False)[1:-1] if escaped else value)
        one = damaged(data.replace("NUMBER", number).encode("utf-8", "surrogatepass"), places)
        found = known(one)
        if found is not None:
            grammar = RESPONSES if name == "Responses" else CHAT
            piece = grammar.piece(decoded(first))
            assert piece is not None
            assert grammar.follows(piece, decoded(first))(decoded(one)) == found


def count_learning(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def learn(*arguments: Any) -> Any:
        found.append(recogniser(*arguments))
        return found[-1]

    monkeypatch.setattr(_transcript, "recogniser", learn)
    return found


async def test_what_is_never_alike_is_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider whose events differ in more is read all the same, and is not slowed down by it for long."""
    learned = count_learning(monkeypatch)
    words = [f" word{number}" for number in range(100)]
    sent = Sent("unlike", tuple(chat(delta(content=word), extra={"x": [word]}) for word in words))
    async with CancellableStreamedResponse.from_openai(await stream_of(sent.sse())) as response:
        assert [piece async for piece in response.stream_text(delta=True)] == words
    assert learned == [None] * _transcript.TRIES


async def test_an_escape_anywhere_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an event has a backslash, no likeness is looked for."""
    learned = count_learning(monkeypatch)
    words = [f" word{number}" for number in range(9)]
    sent = Sent("escaped", tuple(chat(delta(content=word), system_fingerprint="C:\\x") for word in words))
    async with CancellableStreamedResponse.from_openai(await stream_of(sent.sse())) as response:
        assert [piece async for piece in response.stream_text(delta=True)] == words
    assert learned == []


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
        decode = EventDecoder.decode
        monkeypatch.setattr(EventDecoder, "decode", lambda self, event: parsed.append(event) or decode(self, event))
        pieces += [piece async for piece in reading]
    assert pieces == words
    assert response.get().text == "".join(words)
    assert response.usage.output.low >= 1000
    assert len(parsed) <= 8


LINE_ENDS = {
    "LF": ["\n\n"] * 9,
    "a CRLF on the way": ["\n\n"] * 5 + ["\r\n\r\n"] + ["\n\n"] * 3,
    "CRLF from then on": ["\n\n"] * 5 + ["\r\n\r\n"] * 4,
    "more blank lines": ["\n\n"] * 4 + ["\n\n\n", "\n\n\n\n"] + ["\n\n"] * 3,
}


@pytest.mark.parametrize("name", LINE_ENDS)
async def test_known_events_may_be_cut_anywhere(name: str) -> None:
    """Whatever a read begins and ends with, and whatever ends a line, the same text is found."""
    words = [" some", " words", " of", " a", " longer", " text", "\n", "that", " flows"]
    events = [event(word, obfuscation="kBz3"[n % 3 :]) for n, word in enumerate(words)]
    parts = [one + end.encode() for one, end in zip(events, LINE_ENDS[name], strict=True)]
    data = b"".join(parts)
    first = len(b"".join(parts[:4]))
    cuts = range(first, first + len(parts[4]) + len(parts[5]))
    for reads in (*([data[:cut], data[cut:]] for cut in cuts), [data[at : at + 1] for at in range(len(data))]):
        async with CancellableStreamedResponse.from_openai(await stream_of(reads)) as response:
            assert [piece async for piece in response.stream_text(delta=True)] == words
        assert response.get().text == "".join(words)
