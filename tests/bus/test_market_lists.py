"""The universe over Redis: the leader's list of markets reaches every process, and their feeds follow it."""

import asyncio
import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import asyncio as aioredis

from candled.bus.codec import (
    MAX_LISTED,
    BadMessage,
    Names,
    decode_market_list,
    encode_market_list,
    encode_notice,
)
from candled.bus.redis.leases import LeaseState
from candled.model import Market, MarketKey, Position, Symbol
from candled.universe import STEP_MARKETS, small_steps
from tests.bus.rig import BTC, CLOCK, ETH, new_prefix, process, until
from tests.proxy import Proxy
from tests.redis_servers import own_redis, shared_redis

SOL = MarketKey("bitget", Symbol("SOL", "USDT"))
CHOSEN = {"chosen": {"bitget"}}
AT = Position("0.1760000000000000", 1)


@pytest.fixture
def prefix() -> str:
    return new_prefix()


def facts(symbol: Symbol, volume: int = 5) -> Market:
    return Market(
        symbol=symbol,
        price_decimals=2,
        volume_decimals=6,
        tick_size=Decimal("0.01"),
        status="suspended",
        listed_ms=1_500_000_000_000,
        quote_volume_24h=Decimal(volume),
    )


def choose(one, *markets: MarketKey) -> None:
    one.universe.set_markets(
        "bitget", [key.symbol for key in markets], {key.symbol: facts(key.symbol) for key in markets}
    )


@pytest.mark.usefixtures("redis")
async def test_a_serve_process_follows_the_leaders_markets_and_their_feeds_without_a_pause(prefix):
    url = shared_redis()
    async with (
        process(url, prefix, ingests=True, markets=(BTC,), **CHOSEN) as leader,
        process(url, prefix, markets=(), **CHOSEN) as serving,
    ):
        await until(lambda: leader.state is LeaseState.LEADER)
        choose(leader, BTC, ETH)
        await until(lambda: serving.universe.markets == (BTC, ETH))
        assert serving.universe.facts(ETH) == facts(ETH.symbol)
        await until(lambda: serving.is_ready)
        candle = leader.publish(ETH)
        await until(lambda: serving.listener.newest.get(ETH) == candle)
        leader.publish(BTC)
        read = sum(serving.bus.describe()["healed"].values())

        choose(leader, BTC, SOL)
        await until(lambda: serving.universe.markets == (BTC, SOL))
        await until(lambda: sum(serving.bus.describe()["healed"].values()) > read)  # the minutes of SOL were read
        for number in range(3):
            candle = leader.publish(SOL, number)
            other = leader.publish(BTC, number)
            await until(lambda candle=candle: serving.listener.newest.get(SOL) == candle)
            await until(lambda other=other: serving.listener.newest.get(BTC) == other)
        assert serving.listener.open_gaps == set()
        assert serving.bus.describe()["generation"] == 1  # no connection was replaced
        assert serving.bus.describe().get("trouble") is None


@pytest.mark.usefixtures("redis")
async def test_a_process_starts_from_the_kept_list_while_no_leader_runs(prefix):
    url = shared_redis()
    async with process(url, prefix, ingests=True, markets=(BTC,), **CHOSEN) as leader:
        await until(lambda: leader.state is LeaseState.LEADER)
        choose(leader, BTC, ETH)
        await until(lambda: leader.parts.lists._published)
    async with process(url, prefix, markets=(), **CHOSEN) as serving:
        assert serving.universe.markets == (BTC, ETH)
        async with process(url, prefix, ingests=True, markets=(), **CHOSEN) as second:
            assert second.universe.markets == (BTC, ETH)
            await until(lambda: second.state is LeaseState.LEADER)
            choose(second, ETH)
            await until(lambda: serving.universe.markets == (ETH,))


@pytest.mark.usefixtures("redis")
async def test_without_any_list_a_serve_process_reports_that_it_knows_no_markets(prefix):
    url = shared_redis()
    async with process(url, prefix, markets=(), **CHOSEN) as serving:
        assert serving.bus.describe()["connected"] is False
        assert "no process has published the list of bitget" in serving.bus.describe()["trouble"]
        async with process(url, prefix, ingests=True, markets=(), **CHOSEN) as leader:
            await until(lambda: leader.state is LeaseState.LEADER)
            await CLOCK.sleep(1.0)
            assert serving.universe.markets == ()  # the leader has not chosen yet
            choose(leader, BTC)
            await until(lambda: serving.bus.describe()["connected"])
            assert serving.universe.markets == (BTC,)


@pytest.mark.usefixtures("redis")
async def test_a_market_that_returns_continues_its_numbers(prefix):
    url = shared_redis()
    async with (
        process(url, prefix, ingests=True, markets=(BTC, ETH)) as leader,
        process(url, prefix, markets=(BTC, ETH)) as serving,
    ):
        await until(lambda: leader.state is LeaseState.LEADER and serving.is_ready)
        for number in range(3):
            candle = leader.publish(ETH, number)
        await until(lambda: serving.listener.newest.get(ETH) == candle)
        choose(leader, BTC)
        await until(lambda: serving.universe.markets == (BTC,))
        leader.publish(ETH, 3)  # of work that began before
        choose(leader, BTC, ETH)
        await until(lambda: serving.universe.markets == (BTC, ETH))
        candle = leader.publish(ETH, 4)
        await until(lambda: serving.listener.newest.get(ETH) == candle)
        assert serving.listener.at[ETH].seq == 4
        assert leader.bus.describe()["ignored"]["removed"] == 1
        await CLOCK.sleep(3.0)
        assert "reset" not in serving.bus.describe()["healed"]
        assert [one.bus.describe().get("trouble") for one in (leader, serving)] == [None, None]


@pytest.mark.usefixtures("redis")
async def test_many_changes_in_a_row_and_some_while_redis_is_cut_off_end_with_the_right_feeds(prefix):
    draw = random.Random(7)
    coins = [MarketKey("bitget", Symbol(f"COIN{number}", "USDT")) for number in range(12)]
    with own_redis() as server, Proxy(("127.0.0.1", server.port)) as proxy:
        url = f"redis://127.0.0.1:{proxy.address[1]}/0"
        async with (
            process(server.url, prefix, ingests=True, markets=(BTC,), **CHOSEN) as leader,
            process(url, prefix, markets=(), **CHOSEN) as serving,
        ):
            await until(lambda: leader.state is LeaseState.LEADER)
            for step in range(40):
                choose(leader, BTC, *draw.sample(coins, draw.randrange(len(coins))))
                leader.publish(BTC, step)
                if step == 20:
                    proxy.reset_existing()
                await asyncio.sleep(draw.choice([0, 0, 0.02, 0.3]))
            served = leader.universe.markets
            await until(lambda: serving.universe.markets == served)
            sent = {market: leader.publish(market, 40) for market in served}
            await until(lambda: sent.items() <= serving.listener.newest.items())
            await until(lambda: serving.bus.describe()["connected"])
            await CLOCK.sleep(2.5)
            assert serving.bus.describe().get("trouble") is None
            assert set(serving.bus._channels.values()) == set(served)
            assert serving.bus._tracker.stale_markets() == set()


@pytest.mark.usefixtures("redis")
async def test_a_process_that_ingests_follows_the_leader_too_whatever_its_own_settings_are(prefix):
    url = shared_redis()
    async with process(url, prefix, ingests=True, markets=(BTC,)) as leader:
        await until(lambda: leader.state is LeaseState.LEADER and leader.parts.lists._published)
        async with process(url, prefix, ingests=True, markets=(BTC, ETH)) as second:
            assert second.universe.markets == (BTC,)
            choose(leader, SOL, BTC)
            await until(lambda: second.universe.facts(SOL) == facts(SOL.symbol))
            assert second.universe.markets == (SOL, BTC)
            await leader.parts.stop()
            await until(lambda: second.state is LeaseState.LEADER)
            await until(lambda: second.parts.lists._published)
            assert list(second.parts.lists._published["bitget"]) == [SOL.symbol, BTC.symbol]


@pytest.mark.usefixtures("redis")
async def test_the_leader_writes_its_list_again_after_redis_lost_or_changed_it(prefix):
    with own_redis() as server:
        async with (
            process(server.url, prefix, ingests=True, markets=(BTC,)) as leader,
            process(server.url, prefix, markets=(BTC,)) as serving,
            aioredis.Redis.from_url(server.url) as client,
        ):
            names = Names(prefix, "bitget", 1)
            key = names.markets_key("bitget")
            await until(lambda: leader.state is LeaseState.LEADER)
            choose(leader, BTC, ETH)
            await until(lambda: serving.universe.markets == (BTC, ETH))
            await client.set(names.markets_fence_key("bitget"), "9999999999999999 1")
            for forged in (b"{}", b"[" * 9999, encode_market_list("okx", AT, {BTC.symbol: None}), b"x" * 5_000_000):
                await client.set(key, forged)
                await client.publish(names.markets_channel("bitget"), encode_notice("bitget", Position("0.1", 7)))
                await client.publish(names.markets_channel("bitget"), forged[:1000])
            await asyncio.sleep(0.6)
            assert serving.universe.markets == (BTC, ETH)
            leader.parts.lists._repeat()
            await until(lambda: serving.bus.describe()["ignored"]["unreadable"] >= 4)
            await until(lambda: leader.parts.lists._to_publish == {})
            await asyncio.sleep(0.6)
            kept = decode_market_list("bitget", await client.get(key))
            assert list(kept.markets) == [BTC.symbol, ETH.symbol]
            assert leader.state is LeaseState.LEADER


numbers = st.lists(st.integers(0, 400), unique=True, max_size=300)


@given(numbers, numbers)
def test_a_list_is_applied_in_small_steps_that_end_with_it(before, after):
    before, after = ([Symbol(f"C{number}", "USDT") for number in chosen] for chosen in (before, after))
    known = set(before)
    for step in small_steps(before, after):
        assert len(known - set(step)) <= STEP_MARKETS
        assert len(set(step) - known) <= STEP_MARKETS
        assert known & set(after) <= set(step)  # no market that stays is missing in between
        known = set(step)
    assert step == tuple(after)


def test_the_markets_for_which_clients_wait_are_added_in_the_first_step():
    after = tuple(Symbol(f"S{number}", "USDT") for number in range(4 * STEP_MARKETS))
    first, *_, last = small_steps((), after, after[-2:])
    assert set(after[-2:]) <= set(first)
    assert last == after


# ---------------------------------------------------------------- the form

amounts = st.decimals(min_value=0, max_value=10**20, places=12)
listed = st.builds(
    lambda base, settle, facts: (Symbol(base, "USDT", settle), facts),
    st.text("ABCabc1.é", min_size=1, max_size=5),
    st.sampled_from(["", "USDT", "BTC-261225"]),
    st.none()
    | st.fixed_dictionaries(
        {
            "status": st.sampled_from(["upcoming", "trading", "suspended", "delisted"]),
            "price_decimals": st.none() | st.integers(0, 49),
            "volume_decimals": st.none() | st.integers(0, 49),
            "tick_size": st.none() | amounts,
            "listed_ms": st.none() | st.integers(0, 253_402_300_799_999),
            "delisted_ms": st.none() | st.integers(0, 253_402_300_799_999),
            "quote_volume_24h": st.none() | amounts,
            "former": st.none() | st.just(Symbol("OLD", "USDT", "USDT")),
        }
    ),
)


@pytest.mark.slow
@given(st.lists(listed, max_size=5))
def test_a_list_is_read_back_exactly_and_in_its_order(chosen):
    markets = {symbol: None if known is None else Market(symbol=symbol, **known) for symbol, known in chosen}
    read = decode_market_list("bitget", encode_market_list("bitget", AT, markets))
    assert read.position == AT
    assert list(read.markets) == list(markets)
    for symbol, market in markets.items():
        again = read.markets[symbol]
        if market is None:
            assert again is None
            continue
        shown = ("status", "tick_size", "listed_ms", "delisted_ms", "quote_volume_24h", "former", "decimals")
        assert [getattr(again, name) for name in shown] == [getattr(market, name) for name in shown]


@pytest.mark.parametrize(
    "markets",
    [
        '[{"symbol":"BTC"}]',
        '[{"symbol":"BTC/USDT"},{"symbol":"BTC/USDT"}]',
        '[{"symbol":"BTC/USDT","status":"open"}]',
        '[{"symbol":"BTC/USDT","status":"trading","tickSize":-1}]',
        '[{"symbol":"BTC/USDT","status":"trading","tickSize":1e999}]',
        '[{"symbol":"BTC/USDT","status":"trading","quoteVolume24h":"NaN"}]',
        '[{"symbol":"BTC/USDT","status":"trading","priceDecimals":51}]',
        '[{"symbol":"BTC/USDT","status":"trading","listed":"soon"}]',
        f"[{','.join(['{}'] * (MAX_LISTED + 1))}]",
        "{}",
    ],
    ids=lambda text: text[:60],
)
def test_a_list_in_another_form_is_rejected(markets):
    text = f'{{"exchange":"bitget","epoch":"{AT.epoch}","seq":1,"markets":{markets}}}'
    with pytest.raises(BadMessage):
        decode_market_list("bitget", text.encode())
