"""Which markets belong together, and who takes how many."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from candled.bus.shards import fair_share, shard_of, shard_of_exchange
from candled.model import MarketKey, Symbol


def test_a_market_stays_in_its_shard_forever():
    assert [shard_of(MarketKey("bitget", Symbol(base, "USDT")), 8) for base in ("BTC", "ETH", "SOL")] == [3, 1, 7]


def test_the_markets_of_an_exchange_are_chosen_in_the_same_shard_forever():
    assert [shard_of_exchange(name, 8) for name in ("bitget", "okx", "kraken")] == [7, 5, 7]


def test_markets_spread_over_the_shards():
    count = Counter(shard_of(MarketKey("bitget", Symbol(f"COIN{number}", "USDT")), 8) for number in range(1000))
    assert len(count) == 8
    assert max(count.values()) < 1.5 * 125


@given(st.integers(1, 100), st.integers(0, 100))
def test_fair_shares_cover_all_shards_with_none_to_spare(shards, processes):
    share = fair_share(shards, processes)
    assert share * max(1, processes) >= shards
    assert (share - 1) * max(1, processes) < shards
