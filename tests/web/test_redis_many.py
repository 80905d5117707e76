"""A Redis of several servers: a cluster, and a primary that Sentinel names."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("redis", reason="needs cancelstream[redis]")

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.sentinel import Sentinel
from redis_support import LIMIT, fence
from web_support import RedisServer, free_port

from cancelstream.redis import RedisStopRegistry, _follow


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that looks around soon after it has read nothing."""
    monkeypatch.setattr(_follow, "BLOCK", 0.1)


async def test_a_cluster() -> None:
    """Its client finds the server that has the key; and what is lost there is noticed as ever."""
    with RedisServer() as server:
        server.kill()
        server.port = free_port(below=55_536)  # a cluster listens 10,000 above as well
        server.start("--cluster-enabled", "yes")
        assert server.command("CLUSTER", "ADDSLOTSRANGE", 0, 16383) == b"+OK\r\n"
        while b"cluster_state:ok" not in server.command("CLUSTER", "INFO"):
            await asyncio.sleep(0.05)

        def client() -> RedisCluster:
            return RedisCluster.from_url(f"redis://127.0.0.1:{server.port}", socket_timeout=5)

        async with RedisStopRegistry(client, client) as a, RedisStopRegistry(client, client) as b:
            await fence(a, b)
            server.command("FLUSHALL")
            await fence(b, a)


async def test_a_primary_that_sentinel_names(redis_server: RedisServer) -> None:
    """And the one that it names after a fail-over."""
    with RedisServer() as replica, RedisServer() as sentinel:
        redis_server.command("CONFIG", "SET", "repl-diskless-sync-delay", "0")  # five seconds, for further replicas
        replica.command("REPLICAOF", "127.0.0.1", redis_server.port)
        async with asyncio.timeout(LIMIT):
            while b"master_link_status:up" not in replica.command("INFO", "replication"):
                await asyncio.sleep(0.05)
        sentinel.kill()
        sentinel.start_as_sentinel(redis_server.port)

        asked = Sentinel([("127.0.0.1", sentinel.port)], socket_timeout=1)

        def client() -> Redis:
            return asked.master_for("stops", socket_timeout=5)

        async with asyncio.timeout(3 * LIMIT):
            while b"num-slaves\r\n$1\r\n1" not in sentinel.command("SENTINEL", "MASTER", "stops"):
                await asyncio.sleep(0.05)
            async with RedisStopRegistry(client, client) as a, RedisStopRegistry(client, client) as b:
                await fence(a, b)
                while sentinel.command("SENTINEL", "FAILOVER", "stops") != b"+OK\r\n":
                    await asyncio.sleep(0.05)  # it does not know yet that the replica is well
                while b"role:master" not in replica.command("INFO", "replication"):
                    await fence(a, b)
                await fence(a, b)
        for connected in asked.sentinels:
            await connected.aclose()
