"""Recorded frames and answers of the native plugins, read by ccxt: the same candles, value by value.

Where ccxt is known to read another value, the case says so and which one is right.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from candled import Candle, Candles, Interval, Symbol
from candled_plugins import binance, bitget, bybit, gate, htx, hyperliquid, kraken, kucoin, mexc, okx
from candled_plugins.ccxt.client import parse_exactly
from candled_plugins.ccxt.messages import read_row
from tests.clocks import START_MS, ManualClock
from tests.plugins.ccxt.known import make, market_of
from tests.plugins.local import FakeHttp, read_all, recorded

BTC, BTC_USD = Symbol("BTC", "USDT"), Symbol("BTC", "USD")
PERPETUAL, USDC_PERPETUAL = Symbol("BTC", "USDT", "USDT"), Symbol("BTC", "USDC", "USDC")
CONTRACTS = [{"name": "FRONT_USDT", "quanto_multiplier": "10"}]
HOUR = Interval.parse("1h")


@dataclass
class Case:
    """A recording, the native exchange that reads it, and ccxt's names of the same."""

    exchange: type
    file: str
    #: The exchange's names of the markets.
    names: dict[Symbol, str]
    ccxt_id: str = ""
    url: str = "wss://example.org/ws"
    settings: dict[str, Any] = field(default_factory=dict)
    #: The volume that ccxt reads, made from a native candle.
    volume: Callable[[Candle], Decimal | None] = lambda candle: candle.volume

    def __str__(self) -> str:
        return self.file

    def native(self) -> Any:
        return self.exchange(self.exchange.Settings(**self.settings), ManualClock(START_MS))

    def ccxt(self) -> Any:
        first = next(iter(self.names))
        made = make(self.ccxt_id or self.exchange.name, first)
        client = made._client
        client.set_markets(
            [{**market_of(client, symbol), "id": name, "baseName": symbol.base} for symbol, name in self.names.items()]
        )
        return client


def exchanges_of(plugin: Any) -> dict[str, type]:
    return {one.name: one for one in plugin.candled_exchanges()}


(OKX,) = okx.candled_exchanges()
BINANCE, USDM = exchanges_of(binance)["binance"], exchanges_of(binance)["binance-usdm"]
BYBIT = exchanges_of(bybit)
GATE, GATE_USDT = exchanges_of(gate)["gate"], exchanges_of(gate)["gate-usdt"]
(KRAKEN,), (HYPERLIQUID,) = kraken.candled_exchanges(), hyperliquid.candled_exchanges()
KUCOIN, HTX, MEXC = (exchanges_of(plugin)[plugin.__name__.rpartition(".")[2]] for plugin in (kucoin, htx, mexc))
(BITGET,) = bitget.candled_exchanges()


def names(form: str, *symbols: Symbol) -> dict[Symbol, str]:
    return {symbol: form.format(symbol=symbol) for symbol in symbols}


def pairs(text: str, settle: str = "") -> list[Symbol]:
    return [Symbol(*pair.split("/"), settle) for pair in text.split()]


SPOT_STREAM = "wss://stream.binance.com/stream"
JOINED, DASHED, UNDERLINED = (f"{{symbol.base}}{sign}{{symbol.quote}}" for sign in ("", "-", "_"))
SOCKETS = [
    Case(OKX, "okx/socket_spot.json", names(DASHED, BTC)),
    Case(BINANCE, "binance/socket_spot.txt", names(JOINED, *pairs("NKN/USDT LRC/BTC")), url=SPOT_STREAM),
    Case(
        BINANCE, "binance/boundary_spot.txt", names(JOINED, *pairs("BEL/BTC XEM/USDT ELF/BUSD LTC/BRL")),
        url=SPOT_STREAM,
    ),
    Case(USDM, "binance/socket_usdm.json", names(JOINED, PERPETUAL), "binanceusdm"),
    Case(USDM, "binance/boundary_usdm.txt", names(JOINED, *pairs("CTK/USDT AKRO/USDT", "USDT")), "binanceusdm"),
    Case(BYBIT["bybit"], "bybit/socket_spot.json", names(JOINED, BTC), url="wss://stream.bybit.com/v5/public/spot"),
    Case(KRAKEN, "kraken/socket.json", names("{symbol}", BTC_USD)),
    # of a spot pair, ccxt takes the quote volume: `v` divided by `a` is the price
    Case(GATE, "gate/socket_spot.json", names(UNDERLINED, BTC), volume=lambda one: one.quote_volume),
    # ccxt counts in contracts, of 10 coins each
    Case(
        GATE_USDT, "gate/socket_futures.txt", names(UNDERLINED, Symbol("FRONT", "USDT", "USDT")),
        "gate", volume=lambda one: one.volume / 10,
    ),
    Case(KUCOIN, "kucoin/socket.txt", names(DASHED, *pairs("DAPPT/BTC BCHSV/USDT"))),
    Case(HTX, "htx/socket.json", {BTC: "btcusdt"}),
    Case(BITGET, "bitget/snapshot_spot.json", names(JOINED, BTC)),
    Case(BITGET, "bitget/update_futures.json", names(JOINED, PERPETUAL), settings={"markets": ("usdt-futures",)}),
    Case(HYPERLIQUID, "hyperliquid/socket.json", {USDC_PERPETUAL: "BTC/USDC:USDC"}),
]  # fmt: skip


class Connection:
    """A connection of ccxt without a socket."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.subscriptions: dict[str, Any] = {}
        self.futures: dict[str, Any] = {}

    def resolve(self, result: Any, name: str = "") -> Any:
        return result

    def reject(self, error: Any, name: str = "") -> None:
        raise AssertionError(error)


def values_of(candles: list[Candle], volume: Callable[[Candle], Any]) -> dict[int, tuple[Any, ...]]:
    """The newest version of each minute."""
    return {one.open_ms: (one.open, one.high, one.low, one.close, volume(one)) for one in candles}


def path_of(file: str) -> Path:
    plugin, _, name = file.partition("/")
    return Path(__file__).parent.parent / plugin / "frames" / name


def frames_of(file: str) -> list[str]:
    """The messages of a recording; a file of Bitget has one."""
    return [path_of(file).read_text("utf-8")] if file.startswith("bitget/") else recorded(file)


@pytest.mark.parametrize("case", SOCKETS, ids=str)
async def test_frames_are_read_as_ccxt_reads_them(case):
    client, connection = case.ccxt(), Connection(case.url)
    feed = case.native().make_feed(list(case.names))
    if case.exchange is GATE_USDT:
        await feed.prepare_connection(FakeHttp(lambda path, query: CONTRACTS))
    feed.subscribe(list(case.names))
    seen: dict[Symbol, list[Candle]] = {symbol: [] for symbol in case.names}
    for frame in frames_of(case.file):
        for event in read_all(feed, [frame]):
            if isinstance(event, Candles):
                assert event.invalid == ()
                seen[event.symbol] += event.candles
        message = parse_exactly(frame)
        message = message.get("data", message) if case.exchange is BINANCE else message
        if message.get("subject") == "trade.candles.add":  # ccxt leaves out the first version of a minute of KuCoin
            message["subject"] = "trade.candles.update"
        if client.id == "htx" and "ping" in message:
            continue  # ccxt answers by its socket
        client.handle_message(connection, message)
        for symbol, candles in seen.items():  # after each frame
            rows = client.ohlcvs.get(str(symbol), {}).get("1m", ())
            assert values_of(candles, case.volume) == values_of(
                [read_row(list(row)) for row in rows], lambda one: one.volume
            )
    assert all(seen.values())


ANSWERS = [
    Case(OKX, "okx/rest_hours_spot.json", names(DASHED, BTC)),
    Case(BINANCE, "binance/rest_hours_spot.json", names(JOINED, BTC)),
    Case(BYBIT["bybit-linear"], "bybit/rest_hours_linear.json", names(JOINED, PERPETUAL), "bybit"),
    Case(KRAKEN, "kraken/rest_hours.json", names(JOINED, BTC)),
    Case(GATE, "gate/rest_hour_spot.json", names(UNDERLINED, BTC)),
    Case(KUCOIN, "kucoin/rest_hours.json", names(DASHED, BTC)),
    Case(HYPERLIQUID, "hyperliquid/rest_hours.json", {USDC_PERPETUAL: "BTC"}),
    Case(MEXC, "mexc/rest_hour.json", names(JOINED, BTC)),
    Case(BITGET, "bitget/rest_envelope.json", names(JOINED, PERPETUAL), settings={"markets": ("usdt-futures",)}),
]


def body_of(file: str) -> str:
    read = json.loads(path_of(file).read_text("utf-8"))
    return json.dumps(read.get("httpResponse", read))


@pytest.mark.parametrize("case", ANSWERS, ids=str)
async def test_answers_are_read_as_ccxt_reads_them(case):
    body, symbol = body_of(case.file), next(iter(case.names))
    client = case.ccxt()
    if client.id == "kraken":  # its answers name the market
        (name,) = (key for key in json.loads(body)["result"] if key != "last")
        client.set_markets([{**market_of(client, symbol), "id": name}])
    client.http = FakeHttp(lambda path, query: body)
    rows = [read_row(row) for row in await client.fetch_ohlcv(str(symbol), "1h")]
    assert rows
    http = FakeHttp(lambda path, query: json.loads(body, parse_float=Decimal))
    last_ms = max(row.open_ms for row in rows)
    bars = await case.native().fetch_bars(http, symbol, HOUR, min(row.open_ms for row in rows), last_ms + HOUR.ms)
    assert values_of(bars, case.volume) == values_of(rows, lambda one: one.volume)
