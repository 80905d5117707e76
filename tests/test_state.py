"""A stream's life: the table is walked cell by cell, with no stream in sight."""

import threading

import pytest

from cancelstream._state import ENDED, REASON_LIMIT, TRANSITIONS, Event, Life, State, checked_reason

# What the table must say, written down a second time and in another form.
EXPECTED = {
    (State.LIVE, Event.END): State.COMPLETE,
    (State.LIVE, Event.CANCEL): State.INTERRUPTED,
    (State.LIVE, Event.LEAVE): State.LEFT,
    (State.LIVE, Event.ERROR): State.FAILED,
    (State.LEFT, Event.CANCEL): State.INTERRUPTED,
}

WAY_TO = {
    State.LIVE: [],
    State.LEFT: [Event.LEAVE],
    State.COMPLETE: [Event.END],
    State.INTERRUPTED: [Event.CANCEL],
    State.FAILED: [Event.ERROR],
}


def life_in(state: State) -> Life:
    life = Life()
    for event in WAY_TO[state]:
        assert life.apply(event, "on the way")
    assert life.state is state
    return life


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_cell_of_the_table(state: State, event: Event):
    """An event leads where the table says, and an empty cell changes neither the state nor the reason."""
    life = life_in(state)
    before = life.reason
    target = EXPECTED.get((state, event))

    changed = life.apply(event, "now")

    assert changed is (target is not None)
    assert life.state is (target or state)
    assert life.reason == ("now" if changed else before)
    assert life.is_cut is (life.state in {State.INTERRUPTED, State.LEFT})


def test_the_table_has_a_row_for_every_state_and_nothing_leaves_an_end():
    """No state is forgotten, and an ended stream stays as it ended."""
    assert set(TRANSITIONS) == set(State)
    assert {state for state, row in TRANSITIONS.items() if not row} == set(ENDED)


def test_a_whole_answer_has_no_reason():
    """A reason is there only for a stream that was stopped or left."""
    assert Life().reason is None
    life = Life()
    life.apply(Event.END)
    assert life.reason is None


def test_leaving_without_a_reason_says_left():
    """A stream that was just left says so."""
    life = Life()
    life.apply(Event.LEAVE)
    assert (life.state, life.reason) == (State.LEFT, "left")


@pytest.mark.parametrize("event", [Event.CANCEL, Event.LEAVE])
def test_a_stop_of_a_whole_answer_is_its_end(event: Event):
    """A whole answer stays whole; one that was left before it was whole does not become whole by a second stop."""
    life = Life()
    assert life.stop(event, "enough", whole=True)
    assert (life.state, life.reason) == (State.COMPLETE, None)
    assert not life.stop(Event.CANCEL, "again", whole=True)

    life = Life()
    assert life.stop(event, "enough", whole=False)
    life.stop(Event.CANCEL, "again", whole=True)
    assert (life.state, life.reason) == (State.INTERRUPTED, "enough" if event is Event.CANCEL else "again")


def end_life(life: Life, start: threading.Barrier, winners: list[str], event: Event, name: str) -> None:
    start.wait(5)
    if life.apply(event, name):
        winners.append(name)


def test_of_many_threads_exactly_one_ends_a_life():
    """However many threads race to end a stream, one of them changed it, and its reason stands."""
    for _ in range(200):
        life = Life()
        start = threading.Barrier(4)
        winners: list[str] = []

        threads = [
            threading.Thread(target=end_life, args=(life, start, winners, *args))
            for args in [
                # The same reason in two threads: equal claims must not both count as the first.
                (Event.CANCEL, "same"),
                (Event.CANCEL, "same"),
                (Event.END, "end"),
                (Event.ERROR, "error"),
            ]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        assert len(winners) == 1
        assert life.reason == winners[0]


def test_reasons():
    """No reason reads as cancelled; a string up to the limit is kept as it is."""
    assert checked_reason(None) == checked_reason("") == "cancelled"
    assert checked_reason("x" * REASON_LIMIT) == "x" * REASON_LIMIT


def test_a_reason_that_is_not_a_string_is_refused():
    """The caller learns what was passed and what to pass instead."""
    with pytest.raises(TypeError, match=r"was given 42 as its reason: pass a string"):
        checked_reason(42)  # type: ignore[arg-type]


def test_a_reason_that_is_too_long_is_refused():
    """A reason is stored with every message it cut, so it stays short."""
    with pytest.raises(ValueError, match=r" 201 characters: pass at most 200, and keep the rest in your own log$"):
        checked_reason("x" * 201)
