"""The kept texts of bars are those of the bars as they are now, whatever happened, within their bytes."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.model import MINUTE, Candle, MarketKey, Symbol, Topic
from candled.protocol.messages import FINAL, REV, bar_text
from candled.rooms import encoded_bars
from candled.rooms.encoded_bars import EncodedBarCache, EncodedBars, fields_printer
from tests.rows import minute

BTC = MarketKey("replay", Symbol.parse("BTC/USDT"))
TOPIC = Topic(BTC, MINUTE)


class Memory:
    """Bars as `LiveBars` keeps them: with a revision that counts changes of the past; final in order, but for gaps."""

    def __init__(self) -> None:
        self.cached: dict[int, Candle] = {}
        self.count = 0
        self.revised: list[int] = []  # where each revision was
        self.watermark_ms = 0
        self.gap: set[int] = set()
        self.finality_count = 0
        self.made = 0  # bars that were asked for

    def put(self, bar: Candle) -> bool:
        """Whether it is a change of the past."""
        is_past = bool(self.cached) and bar.open_ms < max(self.cached)
        self.count += is_past
        self.revised += [bar.open_ms] if is_past else []
        self.cached[bar.open_ms] = bar
        return is_past

    def newest_times(self, key, interval, count):
        return sorted(self.cached)[-count:] if count else []

    def get_bar(self, key, interval, open_ms):
        self.made += 1
        return self.cached.get(open_ms)

    def bars_between(self, key, interval, start_ms, end_ms):
        found = [self.cached[at] for at in sorted(self.cached) if start_ms <= at < end_ms]
        self.made += len(found)
        return found

    def revision_of(self, key, interval):
        return self.count

    def revised_from(self, key, interval, revision):
        return min(self.revised[revision:], default=2**62) if revision >= 0 else 0

    def is_final(self, key, interval, bar):
        return bar.open_ms < self.watermark_ms and bar.open_ms not in self.gap


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["append", "append", "grow", "past", "insert", "settle", "gap", "heal", "drop", "read", "told"]
        ),
        st.integers(0, 40),
    ),
    max_size=60,
)


@given(
    events=EVENTS,
    fields=st.sampled_from([0, FINAL, FINAL | REV]),
    closed=st.booleans(),
    most=st.sampled_from([None, 3, 40]),
    capacity=st.sampled_from([2500, 20]),
)
def test_cached_texts_are_those_of_a_fresh_encoding(events, fields, closed, most, capacity):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_bars, "_MAX_BARS", capacity)
        follow(events, fields, closed, most)


def follow(events: list[tuple[str, int]], fields: int, closed: bool, most: int | None) -> None:
    memory, form, number = Memory(), EncodedBars(TOPIC, fields_printer(fields), closed), 50
    for at in range(0, 50, 2):
        memory.put(minute(at))
    for what, at in events:
        happen(memory, form, what, at, number)
        number += what == "append"
        if what in ("read", "settle", "heal"):
            check(memory, form, fields, closed, at, most)
    check(memory, form, fields, closed, 1000, most)


def happen(memory: Memory, form: EncodedBars, what: str, at: int, number: int) -> None:
    times = sorted(memory.cached)
    chosen = times[at % len(times)]
    if what == "append":
        memory.put(minute(number))
    elif what == "grow":
        memory.put(memory.cached[times[-1]]._replace(volume=Decimal(at + 2)))
    elif what in ("past", "told"):
        bar = memory.cached[chosen]._replace(volume=Decimal(at + 100), rev=at)
        if memory.put(bar) and what == "told":
            form.drop_from(bar.open_ms, memory.count)
    elif what == "insert":
        memory.put(minute(2 * (at % 24) + 1))
    elif what == "settle":
        memory.watermark_ms = max(memory.watermark_ms, chosen)
    elif what == "gap" and chosen >= memory.watermark_ms:
        memory.gap.add(chosen)
    elif what == "heal":
        memory.gap.clear()
    elif what == "drop" and len(times) > 10:
        for open_ms in times[: at % 5]:
            del memory.cached[open_ms]
    memory.finality_count += what in ("settle", "heal")


def check(memory: Memory, form: EncodedBars, fields: int, closed: bool, count: int, most: int | None) -> None:
    """All bars but the newest, at most `count`, encoded in slices of `most`."""
    times = memory.newest_times(*TOPIC, count + 1)
    for _ in range(1 if most is None else len(times) // most + 1):
        made, opened = memory.made, len(form.open)  # the open ones are read to see if they are final
        is_ready = form.encode_bars(memory, times, len(times) - 1, memory.finality_count, most)
        assert most is None or memory.made - made <= most + opened
    assert is_ready
    bars = [memory.cached[open_ms] for open_ms in times[:-1]]
    shown = [bar for bar in bars if not closed or memory.is_final(*TOPIC, bar)]
    expected = b"".join(
        bar_text(bar, fields, final=bool(fields & FINAL) and memory.is_final(*TOPIC, bar)).encode() + b","
        for bar in shown
    )
    first_ms, cached, texts = form.newest_text(count, times[0], times[-1])
    assert (first_ms, cached, bytes(texts)) == (shown[0].open_ms if shown else None, len(shown), expected)
    texts.release()
    for bar in shown:
        assert form.bar_text(bar.open_ms) + b"," in expected


def test_bars_that_did_not_change_are_not_made_again():
    memory, form = Memory(), EncodedBars(TOPIC, fields_printer(0))
    for number in range(1000):
        memory.put(minute(number))
    form.encode_bars(memory, memory.newest_times(*TOPIC, 1000), 999, 0)
    memory.made = 0
    memory.put(minute(1000))
    form.encode_bars(memory, memory.newest_times(*TOPIC, 1000), 999, 0)
    assert memory.made == 1
    memory.put(minute(998, volume="7"))
    form.drop_from(minute(998).open_ms, memory.count)
    form.encode_bars(memory, memory.newest_times(*TOPIC, 1000), 999, 0)
    assert memory.made == 3  # this one and the one behind it
    memory.put(minute(500, volume="7"))  # nobody said so
    form.encode_bars(memory, memory.newest_times(*TOPIC, 1000), 999, 0)
    assert memory.made == 3 + 500  # it and those behind it, but for the newest


@pytest.mark.slow
def test_all_rooms_together_stay_within_their_bytes_and_the_least_recently_used_goes_first():
    memory, texts = Memory(), EncodedBarCache(most_bytes=200_000)
    for number in range(200):
        memory.put(minute(number))
    topics = [Topic(MarketKey("replay", Symbol("S", str(number))), MINUTE) for number in range(50)]
    for round_ in range(3):
        for topic in topics:
            form = texts.get_form(topic, fields_printer(0))
            form.encode_bars(memory, memory.newest_times(*topic, 200), 199, 0)
            texts.mark_used(form)
            assert texts.bytes <= 200_000 or round_ == 0
        kept = [topic for topic in topics if texts.find_form(topic, 0, False) is not None]
        assert 5 <= len(kept) < 20
        assert kept == topics[-len(kept) :]
        assert texts.bytes == sum(texts.find_form(topic, 0, False).size_bytes for topic in kept)


def test_a_message_is_kept_while_nothing_changes():
    form = EncodedBars(TOPIC, fields_printer(0))
    form.keep_message("key", 1, (b"frame", "more"))
    assert form.kept_message("key", 1) == (b"frame", "more")
    assert form.kept_message("key", 2) is None
    assert form.kept_message("other", 1) is None
    for number in range(10):
        form.keep_message(number, 1, (b"x" * 1000,))
    assert form.size_bytes < 5_000


def test_a_bar_is_sent_as_it_is_except_for_its_finality():
    memory, form = Memory(), EncodedBars(TOPIC, fields_printer(FINAL))
    for number in range(3):
        memory.put(minute(number))
    form.encode_bars(memory, memory.newest_times(*TOPIC, 3), 2, 0)
    assert form.is_current(minute(1))
    assert not form.is_current(minute(1, volume="2"))
    assert not form.is_current(minute(2))
    assert form.last_ms == minute(1).open_ms
