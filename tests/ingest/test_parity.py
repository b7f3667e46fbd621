from candled.ingest.parity import Parity

HOUR_MS = 3_600_000
START_MS = 489_000 * HOUR_MS


def test_before_anything_was_compared_there_is_no_ratio():
    assert Parity().describe(START_MS) == {"checked24h": 0, "mismatched24h": 0, "ratio": None}


def test_minutes_of_the_last_day_are_counted_and_older_ones_are_not():
    parity = Parity()
    for hour in range(30):
        parity.count_checked(START_MS + hour * HOUR_MS + 5, 60, 1 if hour in (2, 20) else 0)
    now_ms = START_MS + 29 * HOUR_MS + 10
    assert parity.describe(now_ms) == {"checked24h": 24 * 60, "mismatched24h": 1, "ratio": round(1439 / 1440, 6)}
    assert parity.describe(now_ms + 15 * HOUR_MS)["mismatched24h"] == 0
    assert parity.describe(now_ms + 24 * HOUR_MS)["checked24h"] == 0
