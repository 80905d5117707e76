"""A Redis that loses, refuses or moves: a stop that was taken arrives, and one that cannot arrive is not promised."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import tracemalloc
from pathlib import Path

import pytest

pytest.importorskip("redis", reason="needs cancelstream[redis]")

from redis_support import LIMIT, Address, Stream, fence, workers
from web_support import RedisServer, free_port

from cancelstream.redis import RedisStopRegistry, _client, _follow

KEY = "cancelstream:stops:v1"

DOCS = Path(__file__).parents[2] / "docs" / "web.md"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that looks around soon after it has read nothing."""
    monkeypatch.setattr(_follow, "BLOCK", 0.1)


# --- lost --------------------------------------------------------------------------------------------------------


EVICTED = ["CONFIG SET maxmemory-policy allkeys-random", "CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"]


@pytest.mark.parametrize("loss", [[f"DEL {KEY}"], ["FLUSHDB"], [f"RENAME {KEY} elsewhere"], EVICTED])
async def test_a_key_that_is_lost_after_an_entry_ahead_of_the_clock(
    redis_server: RedisServer, loss: list[str], impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a clock that was put back, or a restored dump: what is written next has smaller ids, and arrives."""
    caplog.set_level(logging.INFO, "cancelstream")
    async with workers(redis_server.url) as (a, b):
        redis_server.command("XADD", KEY, f"{int((time.time() + 3600) * 1000)}-1", "any", "thing")
        await fence(a, b)
        for command in loss:
            redis_server.command(*command.split())
        async with asyncio.timeout(LIMIT):
            while redis_server.command("EXISTS", KEY) != b":0\r\n":
                await asyncio.sleep(0.01)
        await fence(a, b)
        await fence(b, a)
    # Told once by each of the two, who were not cut off.
    assert caplog.text.count("is gone from there") == 2
    assert "cut off" not in caplog.text


async def test_a_key_that_is_lost_with_nothing_strange_about_it(redis_server: RedisServer, impatient: None) -> None:
    async with workers(redis_server.url) as (a, b):
        for _ in range(2):
            await fence(a, b)
            redis_server.command("FLUSHALL")


async def test_a_clock_that_is_put_back_before_anything_was_read(
    redis_server: RedisServer, impatient: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The place of `ttl` ago was ahead of what is written now."""
    real = _client.server_milliseconds

    async def ahead(client: _client.Client) -> int:
        return (await real(client) or 0) + 3_600_000

    with monkeypatch.context() as before:
        before.setattr(_follow, "server_milliseconds", ahead)
        async with workers(redis_server.url) as (a, b):
            before.undo()
            monkeypatch.setattr(_follow, "BLOCK", 0.1)
            await fence(a, b)
    assert "clock that went back" in caplog.text


async def test_an_entry_that_is_still_there_is_read_on_from(
    redis_server: RedisServer, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is told and nothing read again, however long it is quiet."""
    async with workers(redis_server.url) as (a, b):
        redis_server.command("XADD", KEY, f"{int((time.time() + 3600) * 1000)}-0", "any", "thing")
        await fence(a, b)
        assert a._follower is not None
        place, looks = a._follower._place, 0
        confirmed = a._follower._confirmed

        async def counted(asked: _follow.Place) -> _follow.Place:
            nonlocal looks
            looks += 1
            return await confirmed(asked)

        a._follower._confirmed = counted  # type: ignore[method-assign]
        async with asyncio.timeout(LIMIT):
            while looks < 3:
                await asyncio.sleep(0.01)
        assert a._follower._place == place
    assert caplog.text == ""


def test_the_place_before_a_place() -> None:
    assert _follow._before((7, 3)) == (7, 2)
    assert _follow._before((7, 0)) == (6, 2**64 - 1)


# --- what others write -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("small_ones_first", "limit"), [(0, 9_000_000), (3, 15_000_000)])
async def test_entries_of_any_size_are_read_a_few_at_a_time(
    redis_server: RedisServer, small_ones_first: int, limit: int
) -> None:
    """20 entries of 1 MB that somebody else wrote under our key cost workers that start the memory of a few."""
    for _ in range(small_ones_first):
        redis_server.command("XADD", KEY, "*", "any", "thing")
    for _ in range(20):
        redis_server.command("XADD", KEY, "*", "any", b"x" * 1_000_000)
    tracemalloc.start()
    try:
        async with workers(redis_server.url, stop_timeout=LIMIT) as (a, b):
            await fence(a, b)
            _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit


def test_more_are_asked_for_as_long_as_they_are_small() -> None:
    small = [((1, 0), {b"k": b"v"})] * 200
    big = [((1, 0), {b"k": b"v" * 300_000})]
    assert _follow._next_count(2, small[:1]) == 1  # all are read
    assert [_follow._next_count(n, small[:n]) for n in (1, 4, 100)] == [2, 8, _follow.AT_ONCE]
    assert _follow._next_count(8, small[:7] + big) == 3
    assert _follow._next_count(1, [((1, 0), {b"k": b"v" * 5_000_000})]) == 1


# --- refused -----------------------------------------------------------------------------------------------------


def user(server: RedisServer, *rules: str) -> str:
    assert server.command("ACL", "SETUSER", "app", "reset", "on", ">secret", f"~{KEY}", *rules) == b"+OK\r\n"
    return f"redis://app:secret@127.0.0.1:{server.port}/0"


async def test_without_the_permission_for_time_every_stop_arrives(redis_server: RedisServer, impatient: None) -> None:
    """Also one that came early, and after the key was lost."""
    async with workers(user(redis_server, "+xadd", "+xread")) as (a, b):
        assert await b.stop("early", owner="me") == "requested"
        await fence(a, b)
        async with RedisStopRegistry.from_url(user(redis_server, "+xadd", "+xread")) as late:
            stream = Stream()
            late.register("early", stream.cancel, owner="me")
            assert stream.reasons == ["user"]
        redis_server.command("XADD", KEY, f"{int((time.time() + 3600) * 1000)}-1", "any", "thing")
        await fence(a, b)
        redis_server.command("DEL", KEY)
        await fence(a, b)


async def test_the_user_of_the_docs_may_do_all_that_is_needed(redis_server: RedisServer, impatient: None) -> None:
    """On a database of its own, too; and Redis refuses nothing, however long it is followed."""
    [rules] = re.findall(r"^ACL SETUSER stops (.*)$", DOCS.read_text(), re.MULTILINE)
    assert redis_server.command("ACL", "SETUSER", "stops", *rules.split()) == b"+OK\r\n"
    async with workers(f"redis://stops:password@127.0.0.1:{redis_server.port}/1") as (a, b):
        await fence(a, b)
        redis_server.command("FLUSHALL")
        await fence(a, b)
    assert redis_server.command("ACL", "LOG") == b"*0\r\n"


async def test_a_user_that_may_not_read_is_an_error_until_it_may(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No stop is promised meanwhile; what was asked for arrives when the user may read."""
    monkeypatch.setattr(_follow, "REPEAT", 0.05)
    async with workers(user(redis_server, "+xadd", "+time"), stop_timeout=0.3) as (a, b):
        stream = Stream()
        a.register("a", stream.cancel, owner="me")
        assert await b.stop("a", owner="me") == "unavailable"
        async with asyncio.timeout(LIMIT):
            while len(refusals(caplog)) < 5:
                await asyncio.sleep(0.01)
        assert "xread" in refusals(caplog)[0]
        assert "+xadd +xread +time" in refusals(caplog)[0]
        user(redis_server, "+xadd", "+time", "+xread")
        await stream.until_stopped()
        async with asyncio.timeout(LIMIT):
            while await b.stop("b", owner="me") != "requested":
                pass


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


async def test_a_refusal_is_not_told_at_every_try(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async with workers(user(redis_server, "+xadd"), stop_timeout=0.5):
        pass
    assert len(refusals(caplog)) == 2  # one for each of the two


async def test_a_user_that_may_not_write_is_told_at_once(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with workers(user(redis_server, "+xread", "+time"), stop_timeout=60) as (_, b):
        assert await asyncio.wait_for(b.stop("a", owner="me"), LIMIT) == "unavailable"
    assert "xadd" in refusals(caplog)[0]


async def test_a_key_that_somebody_else_uses_is_a_refusal(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.command("SET", KEY, "mine")
    async with workers(redis_server.url, stop_timeout=0.2) as (_, b):
        assert await b.stop("a", owner="me") == "unavailable"
    assert "WRONGTYPE" in refusals(caplog)[0]


# --- moved -------------------------------------------------------------------------------------------------------


async def test_a_fail_over_behind_one_address(redis_server: RedisServer, impatient: None) -> None:
    """The old primary lives on as a replica, with its connections: the first stop afterwards is taken and arrives."""
    with RedisServer() as new:
        async with Address(redis_server.port) as address, workers(address.url) as (a, b):
            # Connections that are idle when it happens, more than one of them.
            await asyncio.gather(*(b.stop(str(number), owner="me") for number in range(5)))
            await fence(a, b)
            stream = Stream()
            a.register("a", stream.cancel, owner="me")
            address.leads_to = new.port
            redis_server.command("REPLICAOF", "127.0.0.1", new.port)
            assert await b.stop("a", owner="me") == "requested"
            await stream.until_stopped()
            assert new.command("XLEN", KEY) != b":0\r\n"


async def test_a_follower_that_is_connected_to_a_replica_asks_the_address_again(
    redis_server: RedisServer, impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The replica may be cut off from its primary, and what is written there never comes."""
    caplog.set_level(logging.INFO, "cancelstream")
    redis_server.command("REPLICAOF", "127.0.0.1", free_port())
    with RedisServer() as new:
        async with Address(redis_server.port) as address, RedisStopRegistry.from_url(address.url) as a:
            address.leads_to = new.port
            async with RedisStopRegistry.from_url(new.url) as b:
                await fence(a, b)
    assert "is a replica now" in caplog.text
    assert "cut off" not in caplog.text
