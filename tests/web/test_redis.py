"""Stops across processes on a real redis-server, and what becomes of them when it fails.

Two registries with connections of their own are two workers here: A has the streams, B gets the stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time

import pytest

pytest.importorskip("redis", reason="needs cancelstream[redis]")

from redis.asyncio import Redis
from redis_support import LIMIT, Stream, fence, workers
from web_support import RedisServer, free_port

from cancelstream._stops import keys
from cancelstream.redis import RedisStopRegistry, _client, _follow, _write

SOON = 5.0
"""Seconds that something takes at most which is to be over in tenths, on a machine that may be busy."""


# --- the way it goes --------------------------------------------------------------------------------------------


async def test_a_stop_on_one_worker_stops_the_stream_on_another(redis_server: RedisServer) -> None:
    """With the reason that was given, and none but the stream that was asked for."""
    async with workers(redis_server.url) as (a, b):
        mine, other = Stream(), Stream()
        a.register("mine", mine.cancel, owner="me")
        a.register("other", other.cancel, owner="me")
        assert await b.stop("mine", owner="me", reason="enough") == "requested"
        await mine.until_stopped()
        await fence(a, b)
        assert (mine.reasons, other.reasons) == (["enough"], [])


async def test_a_wrong_owner_gets_the_answer_of_an_unknown_id_and_stops_nothing(redis_server: RedisServer) -> None:
    async with workers(redis_server.url) as (a, b):
        stream = Stream()
        a.register("a", stream.cancel, owner="me")
        assert {await b.stop("a", owner="her"), await b.stop("unknown", owner="me")} == {"requested"}
        await fence(a, b)
        assert stream.reasons == []
        assert await b.stop("a", owner="me") == "requested"
        await stream.until_stopped()


async def test_what_is_written_tells_neither_id_nor_owner(redis_server: RedisServer) -> None:
    async with workers(redis_server.url) as (_, b):
        await b.stop("a-stop-id", owner="somebody@example.org", reason="enough")
        written = redis_server.command("XRANGE", "cancelstream:stops:v1", "-", "+")
        assert b"enough" in written
        assert b"a-stop-id" not in written
        assert b"somebody" not in written


async def test_a_prefix_keeps_two_applications_apart(redis_server: RedisServer) -> None:
    async with (
        workers(redis_server.url) as (a, b),
        RedisStopRegistry.from_url(redis_server.url, prefix="other") as other,
    ):
        stream = Stream()
        a.register("a", stream.cancel, owner="me")
        await other.stop("a", owner="me")
        await fence(a, b)
        assert stream.reasons == []


async def test_a_stop_of_a_stream_in_this_process_needs_no_redis(redis_server: RedisServer) -> None:
    """It writes nothing, and works when Redis is gone."""
    async with workers(redis_server.url) as (a, _):
        for number in range(2):
            stream = Stream()
            a.register(str(number), stream.cancel, owner="me")
            assert await a.stop(str(number), owner="me") == "stopped"
            assert stream.reasons == ["user"]
            if number == 0:
                assert redis_server.command("XLEN", "cancelstream:stops:v1") == b":0\r\n"
                redis_server.kill()


async def test_a_stop_before_its_stream_on_another_worker_is_kept(redis_server: RedisServer) -> None:
    async with workers(redis_server.url) as (a, b):
        stream = Stream()
        assert await b.stop("a", owner="me", reason="early") == "requested"
        await fence(a, b)
        a.register("a", stream.cancel, owner="me")
        assert stream.reasons == ["early"]


async def test_a_stop_before_its_worker_even_started_is_kept(redis_server: RedisServer) -> None:
    """A registry that nobody entered can still tell the others to stop."""
    b = RedisStopRegistry.from_url(redis_server.url)
    assert await b.stop("a", owner="me") == "requested"
    await b.__aexit__(None, None, None)
    async with RedisStopRegistry.from_url(redis_server.url) as a:
        stream = Stream()
        a.register("a", stream.cancel, owner="me")
        assert stream.reasons == ["user"]


async def test_a_worker_that_starts_reads_back_ttl_and_not_further(redis_server: RedisServer) -> None:
    now = int(time.time() * 1000)
    for stop_id, age in (("old", 70_000), ("recent", 50_000)):
        owner_key, key = keys(stop_id, "me")
        written = redis_server.command(
            "XADD", "cancelstream:stops:v1", f"{now - age}-0", "o", owner_key, "k", key, "r", "user"
        )
        assert written.startswith(b"$")
    async with workers(redis_server.url, ttl=60) as (a, _):
        old, recent = Stream(), Stream()
        a.register("old", old.cancel, owner="me")
        a.register("recent", recent.cancel, owner="me")
        assert (old.reasons, recent.reasons) == ([], ["user"])


async def test_what_others_write_under_our_key_is_passed_over(redis_server: RedisServer) -> None:
    async with workers(redis_server.url) as (a, b):
        redis_server.command("XADD", "cancelstream:stops:v1", "*", "hello", "world")
        owner_key, key = keys("a", "me")
        stream = Stream()
        a.register("a", stream.cancel, owner="me")
        redis_server.command(
            "XADD", "cancelstream:stops:v1", "*", "o", owner_key, "k", key, "r", b"\xff" * 300, "more", "in v1.1"
        )
        await fence(a, b)
        assert stream.reasons == ["�" * 200]


async def test_many_stops_at_once_arrive_and_open_few_connections(redis_server: RedisServer) -> None:
    async with workers(redis_server.url, stop_timeout=30) as (a, b):
        streams = [Stream() for _ in range(4 * _client.WRITERS)]
        ids = [a.register(None, stream.cancel, owner="me").stop_id for stream in streams]
        answers = await asyncio.gather(*(b.stop(stop_id, owner="me") for stop_id in ids))
        assert set(answers) == {"requested"}
        for stream in streams:
            await stream.until_stopped()
        assert [stream.reasons for stream in streams] == [["user"]] * len(streams)
        connections = redis_server.command("CLIENT", "LIST").count(b"id=")
        assert connections <= _client.WRITERS + 3  # with the two followers and the one that asks here


async def test_a_unix_socket_will_do(redis_server: RedisServer) -> None:
    async with workers(f"unix://{redis_server.socket}") as (a, b):
        await fence(a, b)


@pytest.mark.parametrize(
    "reply",
    [
        [[b"key", [(b"1-0", {b"k": b"v"}), (None, None)]]],
        {b"key": [(b"1-0", {b"k": b"v"}), (None, None)]},
        {b"key": [[(b"1-0", {b"k": b"v"}), (None, None)]]},
    ],
)
def test_all_shapes_that_redis_py_gives_a_reply_are_read(reply: object) -> None:
    assert list(_follow._entries(reply)) == [((1, 0), {b"k": b"v"})]


@pytest.mark.parametrize("nothing", [None, [], {}])
def test_no_news_is_read(nothing: object) -> None:
    assert list(_follow._entries(nothing)) == []


# --- mistakes ----------------------------------------------------------------------------------------------------


async def test_a_registry_that_was_not_entered_takes_no_streams() -> None:
    """It would never hear of their stops, and nobody would notice before a user did."""
    registry = RedisStopRegistry.from_url("redis://127.0.0.1:1")
    with pytest.raises(RuntimeError, match="async with registry"):
        registry.register("a", Stream().cancel, owner="me")


async def test_a_registry_is_entered_once_at_a_time(redis_server: RedisServer) -> None:
    registry = RedisStopRegistry.from_url(redis_server.url)
    for _ in range(2):
        async with registry:
            with pytest.raises(RuntimeError, match="already"):
                await registry.__aenter__()
            async with RedisStopRegistry.from_url(redis_server.url) as b:
                await fence(registry, b)


def test_a_registry_is_for_one_event_loop_after_another(redis_server: RedisServer) -> None:
    """A module's registry serves every test of a suite, with more stops at once than there are connections."""
    a, b = (RedisStopRegistry.from_url(redis_server.url) for _ in range(2))

    async def live() -> None:
        async with a, b:
            await fence(a, b)
            await asyncio.gather(*(b.stop(str(number), owner="me") for number in range(3 * _client.WRITERS)))

    for _ in range(2):
        asyncio.run(live())


def test_an_application_is_entered_by_each_test_of_its_suite(redis_server: RedisServer) -> None:
    """A registry in a module, and a `TestClient` for each test, which has a loop of its own."""
    testclient = pytest.importorskip("starlette.testclient", reason="needs cancelstream[starlette]")
    from fastapi import FastAPI

    from cancelstream.starlette import lifespan, stop_endpoint

    registry = RedisStopRegistry.from_url(redis_server.url)
    app = FastAPI(lifespan=lifespan(registry))
    app.add_api_route("/stop/{stop_id}", stop_endpoint(registry, owner=lambda request: "me"), methods=["POST"])
    for _ in range(3):
        with testclient.TestClient(app) as client:
            assert client.post("/stop/a").status_code == 202


async def test_a_registry_that_nobody_enters_stops_from_one_event_loop_after_another(redis_server: RedisServer) -> None:
    b = RedisStopRegistry.from_url(redis_server.url)

    async def stop() -> str:
        try:
            return await b.stop("a", owner="me")
        finally:
            await b.__aexit__(None, None, None)

    answers = [await asyncio.to_thread(asyncio.run, stop()) for _ in range(2)]
    assert answers == ["requested"] * 2


async def test_clients_that_are_made_otherwise(redis_server: RedisServer) -> None:
    """Given as they are, or as functions, with either protocol."""
    for protocol in (2, 3):

        def make(protocol: int = protocol) -> Redis:
            return Redis.from_url(redis_server.url, socket_timeout=5, protocol=protocol)

        async with RedisStopRegistry(make(), make()) as a, RedisStopRegistry(make, make) as b:
            for _ in range(2):
                await fence(a, b)
                await fence(b, a)


def test_a_client_that_decodes_is_refused() -> None:
    """It would be deaf, as digests are bytes."""
    with pytest.raises(ValueError, match="decode_responses"):
        RedisStopRegistry.from_url("redis://127.0.0.1:1?decode_responses=True")
    with pytest.raises(ValueError, match="decode_responses"):
        RedisStopRegistry(Redis(decode_responses=True), Redis)


async def test_an_own_stream_that_cannot_be_stopped_is_not_asked_for_elsewhere(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Its cancel raises here, and no other worker has it: nothing is written."""

    def broken() -> None:
        raise NotImplementedError("cannot be stopped")

    async with workers(redis_server.url) as (a, _):
        a.register("a", broken, owner="me")
        assert await a.stop("a", owner="me") == "requested"
        assert redis_server.command("XLEN", "cancelstream:stops:v1") == b":0\r\n"
    assert "cancel callable raised" in caplog.text


def test_times_are_above_zero() -> None:
    for wrong in ({"stop_timeout": 0}, {"ttl": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            RedisStopRegistry.from_url("redis://127.0.0.1:1", **wrong)
    with pytest.raises(ValueError, match="scheme"):
        RedisStopRegistry.from_url("http://127.0.0.1:1")


# --- faults ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [20, pytest.param(100, marks=pytest.mark.soak)])
async def test_no_stop_is_lost_when_all_connections_are_cut_and_it_comes_at_once(
    redis_server: RedisServer, times: int
) -> None:
    async with workers(redis_server.url) as (a, b):
        for number in range(times):
            stream = Stream()
            with a.register(str(number), stream.cancel, owner="me"):
                redis_server.cut_all_connections()
                assert await b.stop(str(number), owner="me") == "requested"
                await stream.until_stopped()
                assert stream.reasons == ["user"]


async def test_a_worker_hears_of_a_stop_that_came_while_it_was_cut_off(redis_server: RedisServer) -> None:
    """A's follower is kept away while B stops; also when that takes longer than `ttl`."""
    async with workers(redis_server.url, ttl=0.05) as (a, b):
        stream = Stream()
        a.register("a", stream.cancel, owner="me")
        await fence(a, b)
        assert a._follower is not None
        assert a._follower._place is not None
        read_to, _ = a._follower._place
        await a._follower.stop()
        assert await b.stop("a", owner="me") == "requested"
        assert stream.reasons == []
        while redis_server_ms(redis_server) - read_to < 100:
            await asyncio.sleep(0.01)
        a._follower.start()
        await stream.until_stopped()


def redis_server_ms(server: RedisServer) -> int:
    _, _, seconds, _, micros, _ = server.command("TIME").split(b"\r\n")
    return int(seconds) * 1000 + int(micros) // 1000


async def test_redis_killed_and_restarted_empty(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """Streams live on, a stop that cannot be taken says so, local stops work, and what is taken afterwards arrives."""
    caplog.set_level(logging.INFO, "cancelstream")
    async with workers(redis_server.url, stop_timeout=0.3) as (a, b):
        stream, local = Stream(), Stream()
        a.register("a", stream.cancel, owner="me")
        a.register("local", local.cancel, owner="me")
        await fence(a, b)
        redis_server.kill()
        started = time.monotonic()
        assert await b.stop("a", owner="me") == "unavailable"
        assert time.monotonic() - started < SOON
        assert await a.stop("local", owner="me") == "stopped"
        assert (stream.reasons, local.reasons) == ([], ["user"])
        redis_server.start()
        while (answer := await b.stop("a", owner="me", reason="again")) == "unavailable":
            pass
        assert answer == "requested"
        await stream.until_stopped()
        assert stream.reasons == ["again"]
        while caplog.text.count("following the stops") < 4:
            await asyncio.sleep(0.01)
    # One line when it is cut off and one when it is back, for each of the two, however often they tried.
    assert caplog.text.count("cut off") == 2
    assert caplog.text.count("following the stops") == 4


async def test_a_server_whose_clock_is_behind_takes_over(redis_server: RedisServer) -> None:
    """Its new entries have smaller ids than those that were read before, and are news all the same."""
    async with workers(redis_server.url) as (a, b):
        ahead = int((time.time() + 3600) * 1000)
        redis_server.command("XADD", "cancelstream:stops:v1", f"{ahead}-0", "any", "thing")
        await fence(a, b)
        assert a._follower is not None
        assert (a._follower._place or (0, 0))[0] >= ahead
        redis_server.kill()
        redis_server.start()
        await fence(a, b)


async def frozen(server: RedisServer, seconds: float) -> None:
    async with workers(server.url, stop_timeout=0.3) as (a, b):
        stream, local = Stream(), Stream()
        a.register("a", stream.cancel, owner="me")
        a.register("local", local.cancel, owner="me")
        await fence(a, b)
        server.freeze()
        started = time.monotonic()
        assert await b.stop("a", owner="me", reason="frozen") == "unavailable"
        assert time.monotonic() - started < SOON
        # Many at once end in time too, and do not pile up connections.
        assert set(await asyncio.gather(*(b.stop("x", owner=str(n)) for n in range(100)))) == {"unavailable"}
        assert await a.stop("local", owner="me") == "stopped"
        await asyncio.sleep(max(0.0, started + seconds - time.monotonic()))
        assert stream.reasons == []
        server.thaw()
        while await b.stop("a", owner="me", reason="again") == "unavailable":
            pass
        await fence(a, b)
        # The first was taken although nobody knew, unless this machine was too slow to send it: either way it is one.
        assert stream.reasons in (["frozen"], ["again"])


async def test_redis_frozen_for_longer_than_the_follower_waits(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop meanwhile answers in time that it is not known, streams live on, and nothing is mixed up afterwards."""
    monkeypatch.setattr(_client, "READ_TIMEOUT", 0.4)
    monkeypatch.setattr(_follow, "BLOCK", 0.2)
    await frozen(redis_server, 1.0)


@pytest.mark.soak
async def test_redis_frozen_for_8_seconds(redis_server: RedisServer) -> None:
    await frozen(redis_server, 8.0)


async def test_redis_that_is_away_at_the_start_is_waited_for_and_then_followed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The application starts without it, and says so."""
    with RedisServer() as server:
        server.kill()
        async with workers(server.url, stop_timeout=0.2) as (a, b):
            while "cut off from the stops in Redis" not in caplog.text:
                await asyncio.sleep(0.01)
            assert await b.stop("a", owner="me") == "unavailable"
            server.start()
            while await b.stop("a", owner="me") == "unavailable":
                pass
            await fence(a, b)
            stream = Stream()
            a.register("a", stream.cancel, owner="me")
            assert stream.reasons == ["user"]


async def test_a_wrong_password_is_told_and_harms_no_stream(caplog: pytest.LogCaptureFixture) -> None:
    with RedisServer() as server:
        server.kill()
        server.start("--requirepass", "right")
        async with workers(f"redis://:wrong@127.0.0.1:{server.port}/0", stop_timeout=0.2) as (a, b):
            stream = Stream()
            a.register("a", stream.cancel, owner="me")
            assert await b.stop("a", owner="me") == "unavailable"
            assert await a.stop("a", owner="me") == "stopped"
        assert "password" in caplog.text
        async with workers(f"redis://:right@127.0.0.1:{server.port}/0") as (a, b):
            await fence(a, b)


async def test_a_follower_outlives_whatever_a_reply_holds(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody thought of costs a new connection, not every stop until the worker is restarted."""
    async with workers(redis_server.url) as (a, b):
        await fence(a, b)
        with monkeypatch.context() as broken:
            broken.setattr(_follow, "_entries", lambda reply: 1 / 0)
            await b.stop("x", owner="me")
            while "cut off" not in caplog.text:
                await asyncio.sleep(0.01)
        await fence(a, b)


async def test_a_stop_ends_in_time_even_if_redis_py_loses_its_cancellation(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it can before Python 3.12: the timeout interrupts once, and nothing comes of it."""

    async def lost(*_: object, **__: object) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        raise ConnectionError("as if nothing had been")

    async with workers(redis_server.url, stop_timeout=0.1) as (_, b):
        monkeypatch.setattr(b._writing(), "xadd", lost)
        assert await asyncio.wait_for(b.stop("a", owner="me"), LIMIT) == "unavailable"


async def test_leaving_does_not_wait_for_a_frozen_redis(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_client, "READ_TIMEOUT", 60)
    async with workers(redis_server.url, stop_timeout=0.2) as (a, b):
        await fence(a, b)
        redis_server.freeze()
        started = time.monotonic()
    assert time.monotonic() - started < SOON
    redis_server.thaw()


async def test_a_start_that_is_cancelled_leaves_nothing() -> None:
    """The application gives up while the registry still waits for Redis."""
    registry = RedisStopRegistry.from_url(f"redis://127.0.0.1:{free_port()}", stop_timeout=30)
    entering = asyncio.create_task(registry.__aenter__())
    while registry._follower is None:
        await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert registry._follower is None


# --- floods ------------------------------------------------------------------------------------------------------


async def test_redis_holds_a_bounded_number_of_stops(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis trims whole nodes of a hundred entries, so it is about that many."""
    monkeypatch.setattr(_write, "KEPT", 100)
    async with workers(redis_server.url) as (a, b):
        flood = "for i = 1, 500 do redis.call('XADD', KEYS[1], '*', 'o', 'x', 'k', 'x', 'r', 'x') end"
        redis_server.command("EVAL", flood, 1, "cancelstream:stops:v1")
        await fence(a, b)
        assert int(redis_server.command("XLEN", "cancelstream:stops:v1")[1:]) < 250


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_a_million_random_stops_cost_redis_and_the_workers_bounded_memory(redis_server: RedisServer) -> None:
    """And a stop by somebody else that came before the flood is still kept for its stream."""
    async with workers(redis_server.url, ttl=3600) as (a, b):
        await b.stop("early", owner="me")
        # As `stop()` writes them, but by Redis itself, ten thousand at a time.
        owner_key, _ = keys("", "flood")
        flood = (
            "for i = 1, 10000 do redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'o', ARGV[2], "
            "'k', string.sub(redis.sha1hex(ARGV[3] .. i), 1, 16), 'r', 'user') end"
        )
        for _ in range(100):
            await b._writing().eval(flood, 1, b._key, _write.KEPT, owner_key, secrets.token_urlsafe(18))
        await fence(a, b, 600)
        used = redis_server.command("MEMORY", "USAGE", b._key, "SAMPLES", 0)
        assert int(used[1:]) < 10_000_000
        assert a._early._count < 100
        stream = Stream()
        a.register("early", stream.cancel, owner="me")
        assert stream.reasons == ["user"]
