"""docs/reference/bus.md: the programs on it run, its messages can be read, and its names are the real ones."""

import asyncio
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from redis import asyncio as aioredis

from candled.bus import HistoryChanged, MinuteChanged, StateChanged
from candled.bus.codec import Names, decode_heartbeat, decode_market_list, decode_message, decode_newest, decode_notice
from candled.bus.processes import decode_process
from candled.bus.redis.leases import LeaseState
from candled.model import STATES
from tests import deadlines
from tests.bus.rig import BTC, new_prefix, process, until
from tests.redis_servers import shared_redis

pytestmark = pytest.mark.usefixtures("redis")

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "bus.md").read_text("utf-8")
NAMES = Names("", "bitget", 1)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def objects(text: str) -> list[str]:
    """The JSON objects of a block, one after the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text.rstrip()):
        _, end = decoder.raw_decode(text, at)
        found.append(text[at:end])
        at = end + len(text[end:]) - len(text[end:].lstrip())
    return found


async def test_the_listening_program_prints_what_is_published(tmp_path):
    (program,) = blocks("python")
    (tmp_path / "listen.py").write_text(program)
    prefix, url = new_prefix(), shared_redis()
    async with process(url, prefix, ingests=True) as leader:
        await until(lambda: leader.state is LeaseState.LEADER)
        leader.publish(number=0, final=True)
        await until(lambda: leader.bus.describe()["published"] == 1)
        channel = Names(prefix, "bitget", 1).candles_channel(BTC)
        listening = await asyncio.create_subprocess_exec(
            sys.executable, str(tmp_path / "listen.py"), url, channel, stdout=asyncio.subprocess.PIPE
        )
        try:
            async with deadlines.timeout(10):
                assert await listening.stdout.readline() == b"2025-05-19T00:00:00.000Z 10 final\n"
                leader.publish(number=1)
                assert await listening.stdout.readline() == b"2025-05-19T00:01:00.000Z 10 forming\n"
        finally:
            listening.kill()
            await listening.wait()
            listening._transport.close()


async def test_the_publishing_command_is_understood():
    (command,) = blocks("sh")
    _, word, channel, text = shlex.split(command)
    assert channel == NAMES.candles_channel(BTC)
    prefix, url = new_prefix(), shared_redis()
    async with process(url, prefix) as one, aioredis.Redis.from_url(url) as client:
        await until(lambda: one.listener.states.get(BTC) == "stale", 6.0)
        await client.execute_command(word, prefix + channel, text)
        await until(lambda: one.listener.candles())
        assert str(one.listener.newest[BTC].close) == "1.5"


def test_the_messages_of_the_page_are_messages():
    messages, markets, key = blocks("json")
    read = [decode_message(BTC, text.encode()) for text in objects(messages)]
    assert [type(message) for message, _ in read] == [MinuteChanged, HistoryChanged, StateChanged]
    assert [position.seq for _, position in read] == [7, 8, 9]
    assert decode_newest(BTC, re.sub(r'"candles".*', '"candles": []}', key).encode()).state.state == "quiet"
    found = decode_market_list("bitget", markets.encode())
    assert [str(symbol) for symbol in found.markets] == ["BTC/USDT", "NEW/USDT"]
    assert found.markets[BTC.symbol].status == "trading"
    notice = re.search(r'`(\{"type": "markets".*?\})`', PAGE)
    assert decode_notice(notice[1].encode()).position == found.position
    heartbeat = re.search(r'`(\{"type": "heartbeat".*?\}\})`', PAGE)
    assert decode_heartbeat(heartbeat[1].encode()).seqs == {NAMES.candles_channel(BTC): 9}


def test_the_announcement_of_the_page_is_one():
    (text,) = blocks("text")
    assert decode_process(text.encode()).process == "5f0c2ab19d3e"


def test_the_names_of_the_page_are_the_names():
    documented = set(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))
    names = {
        NAMES.candles_channel(BTC),
        NAMES.newest_key(BTC),
        NAMES.fence_key(BTC),
        NAMES.lease_key(0),
        NAMES.token_key(0),
    }
    names |= {NAMES.markets_channel("bitget"), NAMES.markets_key("bitget")}
    names |= {
        NAMES.heartbeat_channel(0),
        NAMES.processes_key,
        NAMES.processes_list_key,
        NAMES.process_key("PROCESS"),
        NAMES.budget_key("HOST"),
        NAMES.count_key("…"),
    }
    assert names <= documented
    assert all(f"`{state}`" in PAGE for state in STATES)


@pytest.mark.parametrize("ingests", [True, False])
async def test_every_key_of_health_is_on_the_page(ingests):
    async with process(shared_redis(), new_prefix(), ingests=ingests) as one:
        await until(lambda: one.bus.describe()["connected"])
        section = PAGE.split("## `bus` in `/health`")[1]
        assert set(one.bus.describe()) - set(re.findall(r"`(\w+)`", section)) == set()
