from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.errors import InvalidCandle
from candled.model import MINUTE_MS, Candle, Market, Symbol, are_valid, decimal_text, fold, iso_ms, parse_iso_ms
from tests.rows import minute

PRICES = st.decimals("0.00000001", "1000000", places=8)
VOLUMES = st.decimals("0", "999999999999", places=12)


def test_what_the_exchange_printed_is_what_comes_out():
    candle = Candle.parse("60000", "67234.50", "67340.00", "67200", "67310.25", "0.00000001", "352892.715820802517")
    assert candle.quote_volume == Decimal("352892.715820802517")
    assert decimal_text(candle.volume) == "0.00000001"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        ("67234.50", "67234.5"),
        ("100", "100"),
        ("1E+3", "1000"),
        ("1E-8", "0.00000001"),
        ("0.000", "0"),
        ("-0", "0"),
        ("0", "0"),
    ],
)
def test_numbers_print_in_shortest_form_without_exponent(number, text):
    assert decimal_text(Decimal(number)) == text


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_a_printed_number_is_exact_and_has_no_zero_too_many(number):
    text = decimal_text(number)
    assert Decimal(text) == number
    assert "E" not in text
    assert "." not in text or text[-1] != "0"


@pytest.mark.parametrize(
    "row",
    [
        ("60001", "1", "1", "1", "1", "1"),
        ("-60000", "1", "1", "1", "1", "1"),
        ("60000", "1", "0.9", "1", "1", "1"),
        ("60000", "1", "2", "1.5", "1.7", "1"),
        ("60000", "1", "2", "1", "3", "1"),
        ("60000", "0", "0", "0", "0", "1"),
        ("60000", "1", "1", "1", "1", "-1"),
        ("60000", "NaN", "1", "1", "1", "1"),
        ("60000", "1", "Infinity", "1", "1", "1"),
        ("60000", "1", "1", "1", "1", ""),
        ("60000", "1e999999999", "1e999999999", "1e999999999", "1e999999999", "1"),
        ("60000", "1", "1", "1e-999999999", "1", "1"),
        ("60000", "1", "1", "1", "1", "1e50"),
        ("60000", "1", "1", "1", "1", "1e-50"),
        ("60000", "1", "1", "1", "1", "0e-50"),
        ("60000", "1", "1", "1", "1", "0e999999999"),
        ("60000", "1", "1", "1", "1", "1", "1e999999999"),
        ("60000", "1", "1", "1", "1", "1." + "1" * 50),
        ("60000", "1" * 10_000, "1" * 10_000, "1" * 10_000, "1" * 10_000, "1"),
        ("60000", "1", "1", "1", "1", "sNaN"),
        ("253402300800000", "1", "1", "1", "1", "1"),
        ("9" * 5000, "1", "1", "1", "1", "1"),
        ("soon", "1", "1", "1", "1", "1"),
        ("60000", None, "1", "1", "1", "1"),
    ],
)
def test_an_impossible_candle_is_refused(row):
    with pytest.raises(InvalidCandle) as error:
        Candle.parse(*row)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("number", ["1e49", "1e-49", "0e-49", "0E+9", "9" * 50, "0." + "9" * 49, "1." + "9" * 49])
def test_a_number_within_the_bounds_is_accepted(number):
    assert Candle.parse(0, "1", "1", "1", "1", number).volume == Decimal(number)


@pytest.mark.parametrize(
    ("places", "believed"), [(0, 0), (49, 49), (50, None), (-1, None), (10**9, None), (None, None)]
)
def test_impossible_decimals_of_a_market_are_unknown(places, believed):
    market = Market(symbol=Symbol("BTC", "USDT"), price_decimals=places, volume_decimals=places)
    assert market.decimals == (believed, believed)


@pytest.mark.parametrize(
    ("tick", "places"),
    [("0.01", 2), ("0.50", 1), ("1", 0), ("25", 0), ("1E-8", 8), ("1e-50", None), ("0", None), ("-1", None)],
)
def test_the_decimals_of_prices_follow_from_the_tick_unless_they_are_stated(tick, places):
    assert Market(symbol=Symbol("BTC", "USDT"), tick_size=Decimal(tick)).decimals.price == places
    assert Market(symbol=Symbol("BTC", "USDT"), tick_size=Decimal(tick), price_decimals=3).decimals.price == 3


@pytest.mark.parametrize(("step", "places"), [("0.00010", 4), ("100", 0), ("1e-50", None), ("0", None), ("NaN", None)])
def test_the_decimals_of_volumes_follow_from_the_step_unless_they_are_stated(step, places):
    assert Market(symbol=Symbol("BTC", "USDT"), volume_step=Decimal(step)).decimals == (None, places)
    assert Market(symbol=Symbol("BTC", "USDT"), volume_step=Decimal(step), volume_decimals=3).decimals.volume == 3


def test_a_tick_that_is_no_number_is_unknown():
    assert Market(symbol=Symbol("BTC", "USDT"), tick_size=Decimal("NaN")).decimals.price is None


@pytest.mark.parametrize("number", ["1e999999999", "1e-999999999", "NaN", "-Infinity", "-1", "1" * 10_000])
def test_impossible_numbers_of_a_market_are_unknown(number):
    market = Market(symbol=Symbol("BTC", "USDT"), tick_size=Decimal(number), quote_volume_24h=Decimal(number))
    assert (market.tick_size, market.quote_volume_24h, market.decimals) == (None, None, (None, None))


@pytest.mark.parametrize(("listed_ms", "known"), [(0, 0), (-1, None), (10**18, None), (2**47, 2**47)])
def test_an_impossible_start_of_trading_is_unknown(listed_ms, known):
    assert Market(symbol=Symbol("BTC", "USDT"), listed_ms=listed_ms).listed_ms == known
    assert Market(symbol=Symbol("BTC", "USDT"), delisted_ms=listed_ms).delisted_ms == known


@pytest.mark.parametrize("status", ["upcoming", "suspended", "delisted"])
def test_only_a_trading_market_is_active(status):
    assert Market(symbol=Symbol("BTC", "USDT")).active
    assert not Market(symbol=Symbol("BTC", "USDT"), status=status).active


@pytest.mark.slow
@given(st.lists(st.tuples(PRICES, VOLUMES, st.none() | VOLUMES), min_size=1, max_size=50))
def test_folding_adds_exactly(rows):
    parts = [
        Candle(number * MINUTE_MS, price, price, price, price, volume, quote)
        for number, (price, volume, quote) in enumerate(rows)
    ]
    bar = fold(parts, 0)
    assert Fraction(bar.volume) == sum(Fraction(volume) for _, volume, _ in rows)
    assert (bar.open, bar.close) == (rows[0][0], rows[-1][0])
    assert (bar.high, bar.low) == (max(row[0] for row in rows), min(row[0] for row in rows))
    quotes = [quote for _, _, quote in rows]
    assert bar.quote_volume == (None if None in quotes else bar.quote_volume)
    if None not in quotes:
        assert Fraction(bar.quote_volume) == sum(map(Fraction, quotes))


def test_a_statement_made_after_the_end_replaces_any_made_before():
    before, after = minute(0, volume="9", as_of=59_999), minute(0, volume="8", as_of=60_000)
    assert after.supersedes(before)
    assert not before.supersedes(after)


VERSIONS = st.builds(
    minute, st.just(0), st.sampled_from(["9", "10", "11"]), st.sampled_from("123"), as_of=st.integers(0, 120_000)
)


@pytest.mark.slow
@given(st.lists(VERSIONS, min_size=2))
def test_versions_are_in_a_total_order(versions):
    def newest(order):
        kept = order[0]
        for version in order[1:]:
            kept = version if version.supersedes(kept) else kept
        return kept

    assert newest(versions) == newest(versions[::-1])


@given(st.integers(0, 4_000_000_000_000))
def test_times_print_and_parse_back(at_ms):
    assert parse_iso_ms(iso_ms(at_ms)) == at_ms


def test_times_have_milliseconds_and_z():
    assert iso_ms(1_729_764_000_000) == "2024-10-24T10:00:00.000Z"
    assert iso_ms(1_729_814_339_999) == "2024-10-24T23:58:59.999Z"
    assert iso_ms(1_729_814_340_000) == "2024-10-24T23:59:00.000Z"
    assert parse_iso_ms("2024-10-24T12:00:00.5+02:00") == 1_729_764_000_500
    assert parse_iso_ms("2024-10-24") == parse_iso_ms("2024-10-24T00:00:00Z")


ANY_NUMBERS = st.one_of(
    st.sampled_from(["0", "1", "2", "-1", "NaN", "sNaN", "Infinity", "1E+50", "1E-49", "1E-50", "0." + 50 * "7"]),
    st.decimals().map(str),
).map(Decimal)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, MINUTE_MS, 1, -MINUTE_MS, 10**15]),
            st.lists(ANY_NUMBERS | st.sampled_from([Decimal(1), Decimal(2)]), min_size=5, max_size=5),
            st.none() | ANY_NUMBERS,
        ),
        max_size=3,
    )
)
def test_candles_are_valid_together_if_each_of_them_is(rows):
    candles = [Candle(open_ms, *numbers, quote) for open_ms, numbers, quote in rows]

    def is_accepted(candle):
        try:
            return candle.checked() is candle
        except InvalidCandle:
            return False

    assert are_valid(candles) is all(map(is_accepted, candles))
