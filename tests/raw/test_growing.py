"""Joining an answer's pieces, whole each time."""

from __future__ import annotations

import sys
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cancelstream._openai import Growing


@given(pieces=st.lists(st.text(max_size=5)))
def test_every_text_is_right_and_stays_so(pieces: list[str]) -> None:
    """Whether or not the texts are kept, each is all pieces so far: what was handed out never changes."""
    kept, dropped = Growing(), Growing()
    texts = [kept.add(piece) for piece in pieces]
    assert texts == list(accumulate(pieces))
    for piece, text in zip(pieces, texts, strict=True):
        assert dropped.add(piece) == text


@pytest.mark.skipif("coverage" in sys.modules, reason="CPython appends in place only where nothing traces it")
def test_a_text_that_is_not_kept_is_not_copied() -> None:
    """A long text grows where it is: of two strings that grow in turn, only a few ever move."""
    growing = Growing()
    growing.add("x" * 1_000_000)
    growing.add("x")
    places = {id(growing.add(" word")) for _ in range(1000)}
    assert len(places) < 100
