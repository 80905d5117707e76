"""The errors say what was tried and what to do instead."""

import copy
import pickle

import pytest

from cancelstream._errors import (
    CancellationUnsupported,
    CancelStreamError,
    IncompleteHistoryError,
    IncompleteOutputError,
)


def test_one_base_catches_them_all():
    """`except CancelStreamError` is enough for everything the package raises itself."""
    for error in (IncompleteHistoryError, IncompleteOutputError, CancellationUnsupported):
        assert issubclass(error, CancelStreamError)
    assert issubclass(CancellationUnsupported, NotImplementedError)
    assert issubclass(IncompleteHistoryError, ValueError)


@pytest.mark.parametrize(
    "error",
    [
        IncompleteHistoryError(3, "interrupted", "client_disconnect"),
        IncompleteHistoryError(3, "interrupted", None, lacks_prompt=True),
        IncompleteOutputError("left"),
    ],
)
def test_an_error_survives_a_process_boundary(error: CancelStreamError):
    """A worker pool or a task queue hands the error on whole."""
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == str(error)
        assert vars(twin) == vars(error)


def test_a_refused_history_names_the_message_and_the_remedy():
    """Which message, in which state, and the call that mends it."""
    error = IncompleteHistoryError(3, "interrupted", "client_disconnect")
    assert (error.index, error.state, error.reason) == (3, "interrupted", "client_disconnect")
    assert "message 3" in str(error)
    assert "salvage(messages)" in str(error)
    assert "reason" not in str(IncompleteHistoryError(0, "incomplete", None))


def test_an_output_that_never_came_says_where_the_partial_one_is():
    """The reason, and the names that hold what arrived."""
    assert "reason 'timeout'" in str(IncompleteOutputError("timeout"))
    assert "all_messages()" in str(IncompleteOutputError("timeout"))
