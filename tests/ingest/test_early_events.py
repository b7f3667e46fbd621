"""Events of markets that are not open yet: in order, and never more rows than there is room for."""

from hypothesis import given
from hypothesis import strategies as st

from candled.exchange import Candles, InvalidRow, SubscriptionRejected
from candled.ingest.early_events import EarlyEvents
from candled.model import Symbol
from tests.rows import minute
from tests.tiers import few_examples

SYMBOLS = [Symbol(name, "USDT") for name in ("A", "B", "C")]


def push(symbol: Symbol, rows: int) -> Candles:
    return Candles(symbol, (), invalid=tuple(InvalidRow(None, "") for _ in range(rows)))


@given(
    st.lists(st.tuples(st.sampled_from(SYMBOLS), st.integers(0, 12), st.booleans()), max_size=200),
    st.integers(1, 8),
    st.integers(1, 60),
)
@few_examples
def test_the_newest_events_are_kept_within_the_limits(steps, most_events, most_rows):
    early, sent = EarlyEvents(most_events, most_rows), {symbol: [] for symbol in SYMBOLS}
    for number, (symbol, rows, is_taken) in enumerate(steps):
        if is_taken:
            taken = early.take_events(symbol)
            assert list(taken) == sent[symbol][len(sent[symbol]) - len(taken) :]
            sent[symbol] = []
        sent[symbol].append((push(symbol, rows), number))
        early.add_event(*sent[symbol][-1])
        assert early.rows <= most_rows
    taken = early.take_all()
    for symbol in SYMBOLS:
        events = [event for event in taken if event.symbol == symbol]
        assert len(events) <= most_events
        assert events == [event for event, _ in sent[symbol][len(sent[symbol]) - len(events) :]]
    assert early.rows == 0


def test_a_snapshot_keeps_its_newest_minutes_when_there_is_no_room():
    early, minutes = EarlyEvents(1000, 110), tuple(minute(number) for number in range(90))
    for symbol in SYMBOLS:
        early.add_event(Candles(symbol, minutes, snapshot=True), 1)
        early.add_event(Candles(symbol, minutes[-1:]), 2)
    taken = {symbol: early.take_events(symbol) for symbol in SYMBOLS}
    kept = [tuple(event.candles for event, _ in taken[symbol]) for symbol in SYMBOLS]
    assert kept == [(minutes[-3:], minutes[-1:])] * 2 + [(minutes, minutes[-1:])]
    assert early.rows == 0


def test_a_market_with_many_rows_does_not_cost_others_their_events():
    early = EarlyEvents(1000, 100)
    early.add_event(SubscriptionRejected(SYMBOLS[1], "no"), None)
    for number in range(500):
        early.add_event(push(SYMBOLS[0], 20), number)
    early.add_event(push(SYMBOLS[2], 10), 500)
    early.forget_markets([SYMBOLS[0]])
    assert [received_ms for _, received_ms in early.take_events(SYMBOLS[0])] == []
    assert len(early.take_events(SYMBOLS[1])) == 1
    assert len(early.take_events(SYMBOLS[2])) == 1
    assert early.rows == 0
