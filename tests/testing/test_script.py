"""Scripts are values, and one that makes no sense is refused on the line that wrote it."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from cancelstream.testing import (
    Answer,
    Burst,
    Cut,
    ErrorEvent,
    Event,
    Gap,
    Gate,
    HttpError,
    Reasoning,
    Replay,
    ScriptedServer,
    Silence,
    Text,
    ToolCall,
    Usage,
)

ANY: Any = object()
A_STRING: Any = "Hello"
A_STEP: Any = Text("Hello")


@pytest.mark.parametrize(
    ("build", "error", "says"),
    [
        (lambda: ScriptedServer(), ValueError, r"give it a turn, such as Answer\(Text\('Hello'\)\)"),
        (lambda: ScriptedServer(A_STRING), TypeError, r"say Answer\(Text\('Hello'\)\)"),
        (lambda: ScriptedServer(A_STEP), TypeError, r"say Answer\(Text\("),
        (lambda: ScriptedServer(ANY), TypeError, "each an Answer, Replay or HttpError, not <object"),
        (lambda: ScriptedServer(Answer(), ssl_context=ANY), TypeError, r"an ssl\.SSLContext, not <object"),
        (lambda: Answer(A_STRING), TypeError, r"not 'Hello': say Text\('Hello'\)"),
        (lambda: Answer(ANY), TypeError, "takes steps such as"),
        (lambda: Answer(usage=ANY), TypeError, "a Usage or None"),
        (lambda: Answer(finish=ANY), ValueError, "one of .*'length'"),
        (lambda: Answer(before_headers=ANY), TypeError, "a Gap, Gate, Silence or Cut"),
        (lambda: Answer(before_headers=Cut("end")), ValueError, "no body to cut: 'reset' or 'eof'"),
        (lambda: Answer(Text("a"), before_headers=Silence()), ValueError, "can never be sent: Silence"),
        (lambda: Answer(Text("a"), before_headers=Cut("reset")), ValueError, "can never be sent: Cut"),
        (lambda: Answer(Silence(), Text("a")), ValueError, r"'a'.* can never be sent: Silence\(\)"),
        (lambda: Answer(Cut("eof"), Gap(1)), ValueError, r"Gap\(seconds=1\) can never be sent"),
        (lambda: Answer(ErrorEvent(), Text("a")), ValueError, "can never be sent: ErrorEvent"),
        (lambda: Answer(Text("a", Silence()), Text("b")), ValueError, "can never be sent"),
        (lambda: Answer(ToolCall("f", Cut("reset"), "{}")), ValueError, "can never be sent"),
        (lambda: Text(), ValueError, "nothing to say"),
        (lambda: Text(""), ValueError, "empty chunk: leave it out, or send it with Event"),
        (lambda: Text(ANY), TypeError, "takes strings, Gap, Gate, Silence and Cut"),
        (lambda: Text("a", gap=-1), ValueError, r"Text\(gap\) is a number of seconds, not -1"),
        (lambda: Text.words(""), ValueError, "nothing to say"),
        (lambda: Reasoning(), ValueError, "nothing to say"),
        (lambda: ToolCall(""), TypeError, "the name of a tool, not ''"),
        (lambda: ToolCall(ANY), TypeError, "the name of a tool"),
        (lambda: Gap(0), ValueError, "use a Gate"),
        (lambda: Gap(math.inf), ValueError, r"Silence\(\) waits for ever"),
        (lambda: Gap(math.nan), ValueError, "a number of seconds"),
        (lambda: Gap(ANY), ValueError, "a number of seconds"),
        (lambda: Cut(ANY), ValueError, "'reset', 'eof', 'end' or 'truncated'"),
        (lambda: Event(ANY), TypeError, "a string or JSON"),
        (lambda: Event("x", "a\nb"), ValueError, "one line of text"),
        (lambda: Event("x", ""), ValueError, "one line of text"),
        (lambda: Burst(), ValueError, "the steps that go out in one write"),
        (lambda: Burst(ANY), TypeError, "Text, Reasoning, ToolCall and Event"),
        (lambda: Burst(Text("a", gap=0.1)), ValueError, "nothing in it can wait"),
        (lambda: Burst(Text("a", Gate())), ValueError, "nothing in it can wait"),
        (lambda: Usage(when=ANY), ValueError, r"Answer\(usage=None\) reports none"),
        (lambda: Usage(-1), ValueError, "a number of tokens, not -1"),
        (lambda: Usage(output_tokens=ANY), ValueError, "a number of tokens"),
        (lambda: Usage(1, cached_tokens=2), ValueError, "part of the input: 2 of 1"),
        (lambda: Answer(Text("a"), usage=Usage(reasoning_tokens=2)), ValueError, "part of the output: 2 of 1"),
        (lambda: Answer(Text("a"), usage=Usage(1, 3, reasoning_tokens=4)), ValueError, "part of the output: 4 of 3"),
        (lambda: Answer(Text("a", "b"), usage=Usage(1, 1, when="every")), ValueError, "2 in all, and cannot end at 1"),
        (lambda: Replay("data"), TypeError, r"not one: Replay\(\['data'\]\)"),
        (lambda: Replay({"type": "x"}), TypeError, "a list of payloads, not one"),  # type: ignore[dict-item]
        (lambda: Replay([]), ValueError, "sends nothing"),
        (lambda: Replay([ANY]), TypeError, "takes strings, JSON objects"),
        (lambda: Replay(["a"], gap=-1), ValueError, "a number of seconds"),
        (lambda: Replay([Silence(), "a"]), ValueError, "can never be sent"),
        (lambda: Replay(["a"], before_headers=ANY), TypeError, "a Gap or a Gate here"),
        (lambda: HttpError(200), ValueError, "400 to 599, not 200"),
        (lambda: HttpError(ANY), ValueError, "400 to 599"),
        (lambda: HttpError(500, before_headers=ANY), TypeError, r"say Answer\(before_headers=Silence\(\)\)"),
        (lambda: HttpError(500, headers={"Content-Length": "3"}), ValueError, "the server's to say"),
        (lambda: HttpError(500, headers={"a b": "c"}), ValueError, "cannot be sent: {'a b': 'c'}"),
        (lambda: HttpError(500, headers={"a": ANY}), ValueError, "cannot be sent"),
    ],
)
def test_nonsense_is_refused(build: Callable[[], object], error: type[Exception], says: str) -> None:
    """A script that makes no sense raises where it is built, and says what to do instead."""
    with pytest.raises(error, match=says):
        build()


def test_words() -> None:
    """A word with the space before it is a chunk; nothing is lost."""
    assert Text.words("Hello  big world", gap=0.5) == Text("Hello", " ", " big", " world", gap=0.5)


def test_values() -> None:
    """Equal scripts are equal, and their repr says what they are."""
    assert Answer(Text("a"), Gap(0.1)) == Answer(Text("a"), Gap(0.1))
    assert repr(Text("a")) == "Text(pieces=('a',), gap=0.0)"
    assert Answer(Text("a")).finish == "stop"
    assert Answer(Burst(ToolCall("f"))).finish == "tool_calls"
    assert Answer(ToolCall("f"), finish="stop").finish == "stop"


def test_a_gate_says_where_it_is() -> None:
    """A gate that nothing has come to is closed; one that was opened is open."""
    gate = Gate()
    assert repr(gate) == "<Gate closed>"
    gate.open()
    assert repr(gate) == "<Gate open>"
