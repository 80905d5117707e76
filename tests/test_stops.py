"""Stops in one process: found by id and owner, early ones kept, floods bounded."""

import asyncio
import gc
import logging
import secrets
import tracemalloc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai import CancellationToken

from cancelstream import _stops
from cancelstream._stops import MemoryStopRegistry, StopRegistry, _early, _stopper


class Stream:
    """Something to stop, which notes the reasons it was stopped for."""

    def __init__(self) -> None:
        self.reasons: list[str | None] = []

    def cancel(self, reason: str | None = None) -> None:
        self.reasons.append(reason)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that is moved by hand."""
    now = 1000.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(_early.time, "monotonic", lambda: now)
    return advance


async def test_a_stop_reaches_the_stream_of_its_id_and_owner_and_no_other() -> None:
    """Of three streams only the one that was asked for is stopped, with the reason that was given."""
    registry = MemoryStopRegistry()
    mine, other, hers = Stream(), Stream(), Stream()
    registry.register("a", mine.cancel, owner="me")
    registry.register("b", other.cancel, owner="me")
    registry.register("a", hers.cancel, owner="her")
    assert await registry.stop("a", owner="me", reason="enough") == "stopped"
    assert (mine.reasons, other.reasons, hers.reasons) == (["enough"], [], [])


async def test_the_default_reason_says_that_a_user_stopped_it() -> None:
    registry, stream = MemoryStopRegistry(), Stream()
    registry.register("a", stream.cancel, owner="me")
    await registry.stop("a", owner="me")
    assert stream.reasons == ["user"]


async def test_a_wrong_owner_an_unknown_id_and_an_ended_stream_get_one_answer() -> None:
    """Nobody learns from the answer whether a stream exists, and nobody but its owner stops it."""
    registry, stream, ended = MemoryStopRegistry(), Stream(), Stream()
    registry.register("a", stream.cancel, owner="me")
    registry.register("ended", ended.cancel, owner="me").close()
    answers = {
        await registry.stop("a", owner="her"),
        await registry.stop("nothing", owner="me"),
        await registry.stop("ended", owner="me"),
    }
    assert answers == {"requested"}
    assert stream.reasons == ended.reasons == []
    assert await registry.stop("a", owner="me") == "stopped"


async def test_a_wrong_owners_early_stop_neither_stops_nor_hides_the_right_one() -> None:
    """Both orders: a stranger's stop before the owner's, and after it."""
    for first, second in (("her", "me"), ("me", "her")):
        registry, stream = MemoryStopRegistry(), Stream()
        await registry.stop("a", owner=first, reason=first)
        await registry.stop("a", owner=second, reason=second)
        registry.register("a", stream.cancel, owner="me")
        assert stream.reasons == ["me"]


async def test_a_stop_before_its_stream_stops_it_when_it_registers() -> None:
    registry, stream = MemoryStopRegistry(), Stream()
    assert await registry.stop("a", owner="me", reason="early") == "requested"
    registry.register("a", stream.cancel, owner="me")
    assert stream.reasons == ["early"]


async def test_a_stop_before_its_stream_is_kept_for_ttl_and_not_longer(clock: Callable[[float], None]) -> None:
    registry, in_time, late = MemoryStopRegistry(ttl=60), Stream(), Stream()
    await registry.stop("a", owner="me")
    await registry.stop("b", owner="me")
    clock(59.9)
    registry.register("a", in_time.cancel, owner="me")
    clock(0.2)
    registry.register("b", late.cancel, owner="me")
    assert (in_time.reasons, late.reasons) == (["user"], [])


async def test_a_stop_that_is_asked_again_is_kept_from_the_last_time(clock: Callable[[float], None]) -> None:
    registry, stream = MemoryStopRegistry(ttl=60), Stream()
    await registry.stop("a", owner="me")
    clock(40)
    await registry.stop("a", owner="me")
    clock(40)
    registry.register("a", stream.cancel, owner="me")
    assert stream.reasons == ["user"]


async def test_a_stop_is_given_to_its_stream_once() -> None:
    """A second stop still answers, but calls nothing: a second `task.cancel` would hurt the cleaning up."""
    registry, stream = MemoryStopRegistry(), Stream()
    registry.register("a", stream.cancel, owner="me")
    answers = [await registry.stop("a", owner="me"), await registry.stop("a", owner="me")]
    registry.drain()
    assert answers == ["stopped", "stopped"]
    assert stream.reasons == ["user"]


async def test_an_id_is_free_again_when_its_stream_has_ended() -> None:
    """Also when an old registration is closed twice: it must not forget the new stream of the same id."""
    registry, old, new = MemoryStopRegistry(), Stream(), Stream()
    with (
        registry.register("a", old.cancel, owner="me") as registration,
        pytest.raises(ValueError, match="'a' is in use"),
    ):
        registry.register("a", new.cancel, owner="me")
    registry.register("a", new.cancel, owner="me")
    registration.close()
    await registry.stop("a", owner="me")
    assert (old.reasons, new.reasons) == ([], ["user"])


async def test_an_id_that_the_library_makes_has_144_random_bits() -> None:
    registry = MemoryStopRegistry()
    ids = {registry.register(None, Stream().cancel, owner="me").stop_id for _ in range(100)}
    assert len(ids) == 100
    assert {len(made) for made in ids} == {24}  # 144 bits, six to a character


async def test_cancel_callables_of_others_are_taken_as_they_are() -> None:
    """`CancellationToken.cancel` takes nothing, `task.cancel` a message that is not a reason."""
    registry, token = MemoryStopRegistry(), CancellationToken()
    task = asyncio.create_task(asyncio.Event().wait())
    registry.register("token", token.cancel, owner="me")
    registry.register("task", task.cancel, owner="me")
    assert await registry.stop("token", owner="me") == "stopped"
    assert await registry.stop("task", owner="me") == "stopped"
    assert token.cancelled
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ()


async def test_only_a_named_reason_is_passed() -> None:
    """Not into `**kwargs`, and by name when it is keyword-only."""
    seen: list[Any] = []

    def anything(**kwargs: Any) -> None:
        seen.append(kwargs)

    def named(*, reason: str) -> None:
        seen.append(reason)

    registry = MemoryStopRegistry()
    for cancel in (anything, named):
        registry.register(cancel.__name__, cancel, owner="me")
        await registry.stop(cancel.__name__, owner="me", reason="why")
    assert seen == [{}, "why"]


async def test_a_builtin_that_hides_its_arguments_is_called_without_any() -> None:
    registry, events = MemoryStopRegistry(), iter([1, 2])
    registry.register("a", partial(next, events), owner="me")
    assert await registry.stop("a", owner="me") == "stopped"
    assert next(events) == 2


@pytest.mark.parametrize("cancel", [lambda why: None, lambda a, reason: None, None, "cancel"])
async def test_a_callable_that_could_not_be_called_is_refused_when_it_is_registered(cancel: Any) -> None:
    registry = MemoryStopRegistry()
    with pytest.raises(TypeError):
        registry.register("a", cancel, owner="me")
    assert await registry.stop("a", owner="me") == "requested"


async def test_a_coroutine_that_cancel_returns_is_run() -> None:
    """pydantic-ai's own `result.cancel` is a coroutine function."""
    done = asyncio.Event()

    async def cancel() -> None:
        await asyncio.sleep(0)
        done.set()

    registry = MemoryStopRegistry()
    registry.register("a", cancel, owner="me")
    assert await registry.stop("a", owner="me") == "stopped"
    await asyncio.wait_for(done.wait(), 5)


async def test_a_cancel_that_raises_is_logged_and_harms_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever presses Stop is not the one to be told of it, and a drain goes on to the next stream."""

    def broken() -> None:
        raise NotImplementedError("cannot be stopped")

    registry, stream = MemoryStopRegistry(), Stream()
    registry.register("broken", broken, owner="me")
    registry.register("a", stream.cancel, owner="me")
    assert await registry.stop("broken", owner="me") == "requested"
    assert registry.drain() == 2
    assert stream.reasons == ["server_shutdown"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


async def test_a_cancel_coroutine_that_raises_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    async def broken() -> None:
        ended.set()
        raise OSError("gone")

    registry = MemoryStopRegistry()
    registry.register("broken", broken, owner="me")
    assert await registry.stop("broken", owner="me") == "stopped"
    await asyncio.wait_for(ended.wait(), 5)
    await asyncio.wait_for(asyncio.gather(*_stopper._cancelling), 5)
    assert "coroutine raised" in caplog.text


async def test_drain_stops_what_lives_and_what_still_registers() -> None:
    registry, live, late, next_life = MemoryStopRegistry(), Stream(), Stream(), Stream()
    registry.register("a", live.cancel, owner="me")
    assert registry.drain() == 1
    registry.register("b", late.cancel, owner="me")
    async with registry:
        registry.register("c", next_life.cancel, owner="me")
    assert live.reasons == late.reasons == ["server_shutdown"]
    assert next_life.reasons == []


async def test_the_users_own_stop_comes_before_the_drain() -> None:
    """Of a stream that registers while the server ends, and was stopped before it came."""
    registry, stream = MemoryStopRegistry(), Stream()
    await registry.stop("a", owner="me", reason="enough")
    registry.drain()
    registry.register("a", stream.cancel, owner="me")
    assert stream.reasons == ["enough"]


@pytest.mark.parametrize(("owner", "error"), [("", ValueError), (None, TypeError), (7, TypeError), (b"me", TypeError)])
async def test_an_owner_is_required(owner: Any, error: type[Exception]) -> None:
    """There is no stream that anyone may stop: the mistake is refused on both sides."""
    registry = MemoryStopRegistry()
    with pytest.raises(error, match="owner"):
        registry.register("a", Stream().cancel, owner=owner)
    with pytest.raises(error, match="owner"):
        await registry.stop("a", owner=owner)


async def test_a_reason_has_a_limit() -> None:
    registry = MemoryStopRegistry()
    with pytest.raises(ValueError, match="201 characters"):
        await registry.stop("a", owner="me", reason="x" * 201)
    with pytest.raises(ValueError, match="201 characters"):
        registry.drain("x" * 201)


@pytest.mark.parametrize("ttl", [0, -1])
def test_a_ttl_is_a_time(ttl: float) -> None:
    with pytest.raises(ValueError, match="ttl"):
        MemoryStopRegistry(ttl=ttl)


@given(st.text(), st.text(min_size=1), st.text(), st.text(min_size=1))
@settings(max_examples=60, deadline=None)
def test_two_streams_share_a_key_only_if_id_and_owner_are_both_the_same(
    id_a: str, owner_a: str, id_b: str, owner_b: str
) -> None:
    """Whatever strangers send, lone surrogates included: nothing is read across the border of the two."""
    same = (id_a, owner_a) == (id_b, owner_b)
    assert (_stops.keys(id_a, owner_a) == _stops.keys(id_b, owner_b)) is same


def test_lone_surrogates_are_an_id_like_any_other() -> None:
    assert _stops.keys("\ud800", "me") != _stops.keys("\ud801", "me")


async def test_one_owners_flood_pushes_out_only_that_owners_stops() -> None:
    """The newest of the flood are kept, and so is the stop of somebody else that came before it."""
    registry, hers, newest, oldest = MemoryStopRegistry(), Stream(), Stream(), Stream()
    await registry.stop("early", owner="her")
    for number in range(_early.EARLY_PER_OWNER + 1):
        await registry.stop(str(number), owner="flood")
    registry.register("early", hers.cancel, owner="her")
    registry.register("0", oldest.cancel, owner="flood")
    registry.register(str(_early.EARLY_PER_OWNER), newest.cancel, owner="flood")
    assert (hers.reasons, oldest.reasons, newest.reasons) == (["user"], [], ["user"])


async def test_many_owners_early_stops_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner who has been quiet for longest makes room, and one who asks again counts as new."""
    monkeypatch.setattr(_early, "EARLY_IN_ALL", 3)
    registry = MemoryStopRegistry()
    for owner in ("first", "second", "first", "third", "fourth"):
        await registry.stop(f"of {owner}", owner=owner)
    kept: dict[str, list[str | None]] = {}
    for owner in ("first", "second", "third", "fourth"):
        stream = Stream()
        registry.register(f"of {owner}", stream.cancel, owner=owner)
        kept[owner] = stream.reasons
    assert kept == {"first": ["user"], "second": [], "third": ["user"], "fourth": ["user"]}


async def test_what_has_expired_is_let_go_by_the_next_stop(clock: Callable[[float], None]) -> None:
    registry = MemoryStopRegistry(ttl=60)
    for number in range(1000):
        await registry.stop("a", owner=str(number))
    clock(61)
    await registry.stop("a", owner="me")
    assert registry._early._count == 1


@pytest.mark.parametrize(
    ("stops", "kept"),
    [
        pytest.param(3000, 1024, id="3 thousand"),
        pytest.param(
            1_000_000, _early.EARLY_IN_ALL, id="1 million", marks=[pytest.mark.soak, pytest.mark.timeout(600)]
        ),
    ],
)
async def test_a_flood_of_random_ids_costs_bounded_memory(
    stops: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether one stranger sends them or a new one each time; and a stream that lives meanwhile is stopped as ever."""
    monkeypatch.setattr(_early, "EARLY_IN_ALL", kept)
    registry, stream = MemoryStopRegistry(), Stream()
    registry.register("a", stream.cancel, owner="me")
    for owner in (lambda number: "one", str):
        gc.collect()
        tracemalloc.start()
        for number in range(stops):
            await registry.stop(secrets.token_urlsafe(18), owner=owner(number))
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 740 * kept
        tracemalloc.stop()
    assert registry._early._count == kept
    assert await registry.stop("a", owner="me") == "stopped"
    assert stream.reasons == ["user"]


async def test_stopping_and_registering_leave_nothing_behind() -> None:
    registry = MemoryStopRegistry()
    for early in (True, False):
        if early:
            await registry.stop("a", owner="me")
        with registry.register("a", Stream().cancel, owner="me"):
            await registry.stop("a", owner="me")
    assert (registry._live, registry._early._owners, registry._early._count) == ({}, {}, 0)


def test_it_is_the_protocol_that_others_write() -> None:
    registry: StopRegistry = MemoryStopRegistry()
    assert registry.register("a", Stream().cancel, owner="me").stop_id == "a"
