"""The bytes that the cache of encoded bars counts are those that Python allocates for real bars, and stay limited."""

import tracemalloc

import pytest

from candled.api.printers import CSV, json_printer, klines_printer, udf_printer
from candled.model import MINUTE, MarketKey, Symbol, Topic
from candled.protocol.messages import FINAL
from candled.rooms.encoded_bars import EncodedBarCache, fields_printer
from tests.store.rows import recorded

PRINTERS = [klines_printer(MINUTE), json_printer(), udf_printer(), CSV, fields_printer(FINAL)]
BARS = 200


class Recorded:
    """Every market has the same final bars."""

    def __init__(self) -> None:
        self.bars = recorded("bitget-usdt-futures-ethusdt.csv.gz")[:BARS]
        self.by_time = {bar.open_ms: bar for bar in self.bars}
        self.times = [bar.open_ms for bar in self.bars]

    def newest_times(self, key, interval, count):
        return self.times[-count:]

    def get_bar(self, key, interval, open_ms):
        return self.by_time.get(open_ms)

    def bars_between(self, key, interval, start_ms, end_ms):
        return [bar for bar in self.bars if start_ms <= bar.open_ms < end_ms]

    def revision_of(self, key, interval):
        return 0

    def revised_from(self, key, interval, revision):
        return 0

    def is_final(self, key, interval, bar):
        return True


@pytest.mark.slow  # counts the allocations of encoding twelve thousand bars
@pytest.mark.parametrize("limit", [10**9, 1_500_000])
def test_the_counted_bytes_are_the_allocated_ones(limit):
    source, cache = Recorded(), EncodedBarCache(limit)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(12):
        topic = Topic(MarketKey("replay", Symbol(f"M{number}", "USDT")), MINUTE)
        for printer in PRINTERS:
            form = cache.get_form(topic, printer)
            form.encode_bars(source, source.times, BARS - 1, 1)
            cache.mark_used(form)
            body = b"".join(form.columns(0, 10**15))
            for key in range(4):  # bodies of four requests
                cache.keep_body(topic, printer, key, "tag", b"[%b%d]" % (body, key))
    for number in range(100):
        cache.keep_page(number, bytes(10_000), 10_000)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert cache.bytes <= limit
    assert 0.85 * cache.bytes < after - before < 1.15 * cache.bytes
