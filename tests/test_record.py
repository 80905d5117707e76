"""One record format: where it is kept, which version it has, and that a version that is not known reads as unknown."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_ai.messages import ModelResponse, TextPart

from cancelstream import StreamUsage, is_incomplete
from cancelstream._record import read_record, with_record


def test_what_is_written_is_read():
    """The rest of the metadata stays as it was, and so do the record's other entries."""
    metadata = with_record({"mine": 1}, reason="user_stop")
    assert metadata == {"mine": 1, "cancelstream": {"v": 1, "reason": "user_stop"}}
    assert with_record(metadata, usage={}) == {"mine": 1, "cancelstream": {"v": 1, "reason": "user_stop", "usage": {}}}
    assert read_record(metadata) == {"v": 1, "reason": "user_stop"}


@pytest.mark.parametrize("metadata", [None, {}, {"mine": 1}, {"cancelstream": None}, {"cancelstream": "mine"}])
def test_no_record(metadata: dict[str, Any] | None):
    """A message without a record, or with something else in its place, has none."""
    assert read_record(metadata) is None


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_version(version: object):
    """A record of another version is there and says nothing: its message is still cut, its usage is unknown."""
    metadata = {"cancelstream": {"v": version, "reason": "user_stop", "salvage": {}, "usage": {}}}
    assert read_record(metadata) == {}
    message = ModelResponse(parts=[TextPart("a")], state="interrupted", metadata=metadata)
    assert is_incomplete(message)
    assert StreamUsage.of(message).provenance == "unknown"


def test_another_version_in_strands():
    """A message that was flagged by another version is not flagged again."""
    messages = pytest.importorskip("cancelstream.strands._messages")
    message: Any = {"role": "assistant", "content": [{"text": "a"}], "metadata": {"custom": {"cancelstream": {"v": 2}}}}
    assert messages.is_flagged(message)
    del message["metadata"]
    assert not messages.is_flagged(message)
    messages.flag(message, reason="user_stop", usage=None, dropped=["b"])
    custom = message["metadata"]["custom"]
    assert custom == {"cancelstream": {"v": 1, "reason": "user_stop", "salvage": {"dropped": ["b"]}}}
