"""`cancelstream usage FILE`: what stored messages took."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import TypeAdapter
from pydantic_ai.messages import ModelMessage, ModelMessagesTypeAdapter, ModelRequest, ModelResponse, TextPart
from pydantic_ai.usage import RequestUsage

from cancelstream._demo.usage_table import print_usage, usage_table

from .test_usage_objects import ESTIMATED, HIDDEN, WHOLE, response_of

MESSAGES: list[ModelMessage] = [
    ModelRequest(parts=[]),
    response_of(WHOLE, state="complete"),
    response_of(ESTIMATED),
    response_of(HIDDEN),
]


def test_the_table():
    """A line for each response and their sum: values, bounds, cost, and how sure it is."""
    assert usage_table(MESSAGES).splitlines() == [
        "     model       state        input           output     cost in USD                    source",
        "1    gpt-4o      complete     100             50         0.000725                       reported",
        "2    gpt-4o      interrupted  14 (13..15)     9 (8..10)  0.000125 (0.000096..0.000138)  estimated",
        "3    gpt-5-mini  interrupted  30              ? (8..)    ? (0.000024..)                 mixed",
        "sum                           144 (143..145)  ? (66..)   ? (0.000845..)                 mixed",
        "",
        "counts of what was delivered; a provider may bill more of an answer that was cut",
        "a model may have reasoned unseen: that is counted neither in tokens nor in dollars",
    ]


def test_a_certain_sum():
    """Where all was reported there is nothing to explain but what is counted."""
    lines = usage_table([response_of(WHOLE, state="complete")]).splitlines()
    assert lines[-1] == "counts of what was delivered; a provider may bill more of an answer that was cut"


def test_a_model_without_a_price():
    """What cannot be priced says why."""
    usage = RequestUsage(input_tokens=5, output_tokens=7)
    response = ModelResponse(parts=[], usage=usage, model_name="my-finetune")
    assert usage_table([response]).splitlines()[-1] == "cost: no price is known for the model 'my-finetune'"


def test_no_responses():
    """Messages without an answer took nothing."""
    assert usage_table([ModelRequest(parts=[])]) == "no responses in these messages"


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A conversation as `all_messages_json()` gives it, or a single message."""
    many, one = tmp_path / "many.json", tmp_path / "one.json"
    many.write_bytes(ModelMessagesTypeAdapter.dump_json(MESSAGES))
    one.write_bytes(TypeAdapter(ModelMessage).dump_json(MESSAGES[2]))
    assert print_usage(many) == 0
    assert capsys.readouterr().out == usage_table(MESSAGES) + "\n"
    assert print_usage(str(one)) == 0
    assert capsys.readouterr().out == usage_table(MESSAGES[2:3]) + "\n"


def test_messages_of_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What others stored is read as far as it can be trusted."""
    path = tmp_path / "theirs.json"
    cut = ModelResponse(parts=[TextPart("x")], usage=RequestUsage(input_tokens=5), state="interrupted")
    path.write_bytes(ModelMessagesTypeAdapter.dump_json([cut]))
    assert print_usage(path) == 0
    assert "? (5..)" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"not json", b'{"kind": "response"}', b"\xff"])
def test_files_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes):
    """Anything else is an error that says what was expected, and no traceback."""
    path = tmp_path / "other.json"
    path.write_bytes(content)
    assert print_usage(path) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert "does not hold messages as `all_messages_json()` gives them" in captured.err


def test_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A file that cannot be read says why."""
    assert print_usage(tmp_path / "none.json") == 2
    assert "cannot read" in capsys.readouterr().err
    assert print_usage(tmp_path) == 2
