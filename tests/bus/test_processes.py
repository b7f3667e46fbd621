"""The list of all processes: each announces itself on a real Redis, and is gone when it stops or is killed."""

import pytest
from redis import asyncio as aioredis

from candled.bus.codec import Names
from candled.bus.processes import decode_process, encode_process
from tests.bus.rig import make_facts, new_prefix, process, until
from tests.redis_servers import own_redis, shared_redis

pytestmark = pytest.mark.usefixtures("redis")


def start(one, **more) -> str:
    name = one.parts.processes.process
    one.parts.processes.start(lambda: make_facts(name, **more))
    return name


def others(one) -> dict[str, int]:
    return {facts.process: facts.clients for facts in one.parts.processes.others}


async def test_processes_of_all_roles_know_each_other_until_they_stop():
    prefix, url = new_prefix(), shared_redis()
    async with process(url, prefix, ingests=True) as leader, process(url, prefix) as serving:
        names = start(leader, roles=("ingest",)), start(serving, clients=7)
        await until(lambda: others(leader) == {names[1]: 7} and others(serving) == {names[0]: 1}, 20)
        assert leader.leases.describe()[0]["leader"] in ("", names[0]), "the name in leases"
        async with process(url, prefix) as third:
            name = start(third)
            await until(lambda: name in others(leader), 20)
            await third.parts.stop()
        await until(lambda: others(leader) == {names[1]: 7}, 20)


async def test_a_killed_process_expires_and_foreign_texts_are_left_out():
    prefix, url = new_prefix(), shared_redis()
    names = Names(prefix, "bitget", 1)
    async with process(url, prefix) as one, aioredis.Redis.from_url(url) as client:
        key = names.processes_list_key
        await client.zadd(key, {"killed": 2**60, "gone": 2**60, "forged": 2**60, "../x": 2**60, b"\xff": 2**60})
        await client.set(names.process_key("killed"), encode_process(make_facts("killed")), px=3000)
        await client.set(names.process_key("forged"), b"{" * 5000)
        start(one)
        await until(lambda: list(others(one)) == ["killed"], 20)
        await until(lambda: not others(one), 30)
        ttl_ms = await client.pttl(names.process_key(one.parts.processes.process))
        assert 0 < ttl_ms <= 15_000


async def test_without_redis_a_process_knows_only_itself():
    with own_redis() as server:
        async with process(server.url, "") as one, process(server.url, "") as other:
            start(one)
            name = start(other)
            await until(lambda: name in others(one), 20)
            server.kill()
            await until(lambda: not others(one), 40)
            assert "announcing processes" in one.bus.describe()["trouble"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"[]",
        b"{}",
        b"\xff",
        encode_process(make_facts("x" * 257)),
        encode_process(make_facts("x", clients=-1)),
    ],
)
def test_other_forms_are_refused(data):
    assert decode_process(data) is None
