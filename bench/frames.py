"""What a live frame of each native plugin costs to read, compared with one of Bitget, with many markets.

    python -m bench.frames [--markets 1000] [--rounds 7] [--plugins bitget okx …]

Each plugin's feeds carry the markets, as many on one feed as the plugin allows, and read frames of each market in turn:
in the form that the exchange sends, decompressed as the daemon does. The processor time is that of the process. Rounds
of all plugins alternate, so that the ratios of a round are of the same moment.
"""

import argparse
import asyncio
import gc
import gzip
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from candled.clock import SystemClock
from candled.exchange import Candles, Exchange, SocketFeed
from candled.ingest.decompression import decompress
from candled.model import MINUTE_MS, Symbol
from candled_plugins.binance.exchange import Binance, BinanceUsdm
from candled_plugins.bitget.exchange import Bitget
from candled_plugins.bybit.exchange import Bybit, BybitInverse, BybitLinear
from candled_plugins.coinbase.exchange import Coinbase
from candled_plugins.gate.exchange import Gateio, GateioUsdt
from candled_plugins.htx.exchange import Htx, HtxUsdt
from candled_plugins.hyperliquid.exchange import Hyperliquid
from candled_plugins.kraken.exchange import Kraken
from candled_plugins.kucoin.exchange import Kucoin, KucoinUsdt
from candled_plugins.kucoin.messages import name_of as kucoin_name
from candled_plugins.mexc.exchange import Mexc, MexcUsdt
from candled_plugins.okx.exchange import Okx

START_MS = 1_786_538_760_000  # 2026-08-12T12:46Z
TARGET = 1.5
_MOST_BYTES = 1024 * 1024


class Form(NamedTuple):
    """A plugin, and its frame of a market with a close and a volume, sent at a time in ms.

    `listing` is the answer that the plugin reads before it connects: contracts of 0.001 coins each.
    """

    exchange: type[Exchange]
    frame: Callable[[Symbol, str, str, int], Any]
    symbol: str = "{base}/USDT"
    pack: Callable[[str], str | bytes] = str
    listing: Callable[[Sequence[Symbol]], Any] | None = None


def _binance(symbol: Symbol, close: str, volume: str, at_ms: int) -> Any:
    name = symbol.base + symbol.quote
    kline = {
        "t": START_MS, "T": START_MS + 59_999, "s": name, "i": "1m", "f": 7967419367, "L": 7967420291, "o": "64049.30",
        "c": close, "h": "64949.30", "l": "64025.60", "v": volume, "n": 924, "x": False, "q": "2069200.98090",
        "V": "12.1", "Q": "775000.1", "B": "0",
    }  # fmt: skip
    return {"e": "kline", "E": at_ms, "s": name, "k": kline}


def _coinbase(symbol: Symbol, close: str, volume: str, at_ms: int) -> Any:
    moment = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
    trade = {
        "product_id": f"{symbol.base}-{symbol.quote}", "trade_id": str(at_ms), "price": close, "size": volume,
        "side": "BUY", "time": moment,
    }  # fmt: skip
    event = {"type": "update", "trades": [trade]}
    return {
        "channel": "market_trades", "client_id": "", "timestamp": moment, "sequence_num": at_ms - START_MS + 1,
        "events": [event],
    }  # fmt: skip


def _mexc(symbol: Symbol, close: str, volume: str, at_ms: int) -> Any:
    from candled_plugins.mexc.messages import channel_of
    from candled_plugins.mexc.pushes import make_push_class

    name = symbol.base + symbol.quote
    kline = {
        "interval": "Min1", "windowStart": START_MS // 1000, "openingPrice": "64049.30", "closingPrice": close,
        "highestPrice": "64949.30", "lowestPrice": "64025.60", "volume": volume, "amount": "2069200.98090",
    }  # fmt: skip
    push = make_push_class()(channel=channel_of(symbol), symbol=name, createTime=at_ms, publicSpotKline=kline)
    return push.SerializeToString()


def _kraken(symbol: Symbol, close: str, volume: str, at_ms: int) -> Any:
    row = {
        "symbol": str(symbol), "open": 64049.3, "high": 64949.3, "low": 64025.6, "close": float(close), "trades": 924,
        "volume": float(volume), "vwap": 64030.1, "interval_begin": "2026-08-12T12:46:00.000000000Z", "interval": 1,
        "timestamp": "2026-08-12T12:47:00.000000Z",
    }  # fmt: skip
    sent = datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
    return {"channel": "ohlc", "type": "update", "timestamp": sent, "data": [row]}


def _bybit(symbol: Symbol, close: str, volume: str, at_ms: int) -> Any:
    row = {
        "start": START_MS, "end": START_MS + 59_999, "interval": "1", "open": "64049.3", "close": close,
        "high": "64949.3", "low": "64025.6", "volume": volume, "turnover": "2069200.98", "confirm": False,
        "timestamp": at_ms,
    }  # fmt: skip
    return {"type": "snapshot", "topic": f"kline.1.{symbol.base}{symbol.quote}", "ts": at_ms, "data": [row]}


def _contracts(volume: str) -> int:
    return int(float(volume) * 1000)


def _opened_s(at_ms: int) -> int:
    return at_ms // MINUTE_MS * MINUTE_MS // 1000


def _gate_usdt(symbol: Symbol, close: str, volume: str, at_ms: int) -> Any:
    row = {
        "t": _opened_s(at_ms), "v": _contracts(volume), "c": close, "h": "64949.3", "l": "64025.6", "o": "64049.3",
        "n": f"1m_{symbol.base}_{symbol.quote}", "a": volume, "w": False,
    }  # fmt: skip
    return {
        "time": at_ms // 1000, "time_ms": at_ms, "channel": "futures.candlesticks", "event": "update", "result": [row],
    }  # fmt: skip


def _htx_usdt(symbol: Symbol, close: str, volume: str, at_ms: int) -> Any:
    tick = {
        "id": _opened_s(at_ms), "mrid": 131599726, "open": 64049.3, "close": float(close), "high": 64949.3,
        "low": 64025.6, "amount": float(volume), "vol": _contracts(volume), "trade_turnover": 2069200.98, "count": 924,
    }  # fmt: skip
    return {"ch": f"market.{symbol.base}-{symbol.quote}.kline.1min", "ts": at_ms, "tick": tick}


def _kucoin_usdt(symbol: Symbol, close: str, volume: str, at_ms: int) -> Any:
    name = kucoin_name(symbol)
    cells = [str(_opened_s(at_ms)), "64049.3", close, "64949.3", "64025.6", "2069200.98", str(_contracts(volume))]
    return {
        "topic": f"/contractMarket/limitCandle:{name}_1min", "type": "message", "subject": "candle.stick",
        "data": {"symbol": name, "candles": cells, "time": at_ms},
    }  # fmt: skip


def _kucoin_contracts(symbols: Sequence[Symbol]) -> Any:
    contract = {
        "quoteCurrency": "USDT", "settleCurrency": "USDT", "expireDate": None, "isInverse": False, "multiplier": 0.001,
    }  # fmt: skip
    return {"code": "200000", "data": [{**contract, "symbol": kucoin_name(one)} for one in symbols]}


def _mexc_usdt(symbol: Symbol, close: str, volume: str, at_ms: int) -> Any:
    name = f"{symbol.base}_{symbol.quote}"
    row = {
        "symbol": name, "interval": "Min1", "t": _opened_s(at_ms), "o": 64049.3, "c": float(close), "h": 64949.3,
        "l": 64025.6, "a": 2069200.98, "q": _contracts(volume), "ro": 64049.3, "rc": float(close), "rh": 64949.3,
        "rl": 64025.6,
    }  # fmt: skip
    return {"channel": "push.kline", "symbol": name, "ts": at_ms, "data": row}


FORMS: dict[str, Form] = {
    "bitget": Form(Bitget, lambda symbol, close, volume, at_ms: {
        "action": "update",
        "arg": {"instType": "SPOT", "channel": "candle1m", "instId": symbol.base + symbol.quote},
        "data": [[str(START_MS), "64049.30", "64949.30", "64025.60", close, volume, "2069200.98090", "2069200.98090"]],
        "ts": at_ms,
    }),
    "okx": Form(Okx, lambda symbol, close, volume, at_ms: {
        "arg": {"channel": "candle1m", "instId": f"{symbol.base}-{symbol.quote}"},
        "data": [[str(START_MS), "64049.3", "64949.3", "64025.6", close, volume, "2069200.98", "2069200.98", "0"]],
    }),
    "binance": Form(Binance, _binance),
    "binance-usdm": Form(BinanceUsdm, _binance, "{base}/USDT:USDT"),
    "bybit": Form(Bybit, _bybit),
    "bybit-linear": Form(BybitLinear, _bybit, "{base}/USDT:USDT"),
    "bybit-inverse": Form(BybitInverse, _bybit, "{base}/USD:{base}"),
    "kraken": Form(Kraken, _kraken, "{base}/USD"),
    "gate": Form(Gateio, lambda symbol, close, volume, at_ms: {
        "time": at_ms // 1000, "time_ms": at_ms, "channel": "spot.candlesticks", "event": "update",
        "result": {
            "t": str(START_MS // 1000), "v": "2069200.98", "c": close, "h": "64949.3", "l": "64025.6", "o": "64049.3",
            "n": f"1m_{symbol.base}_{symbol.quote}", "a": volume, "w": False,
        },
    }),
    "kucoin": Form(Kucoin, lambda symbol, close, volume, at_ms: {
        "topic": f"/market/candles:{symbol.base}-{symbol.quote}_1min", "type": "message",
        "subject": "trade.candles.update",
        "data": {
            "symbol": f"{symbol.base}-{symbol.quote}", "time": at_ms * 1_000_000,
            "candles": [str(START_MS // 1000), "64049.3", close, "64949.3", "64025.6", volume, "2069200.98"],
        },
    }),
    "htx": Form(Htx, lambda symbol, close, volume, at_ms: {
        "ch": f"market.{symbol.base}{symbol.quote}.kline.1min".lower(), "ts": at_ms,
        "tick": {
            "id": START_MS // 1000, "open": 64049.3, "close": float(close), "low": 64025.6, "high": 64949.3,
            "amount": float(volume), "vol": 2069200.98, "count": 924,
        },
    }, pack=lambda text: gzip.compress(text.encode())),
    "hyperliquid": Form(Hyperliquid, lambda symbol, close, volume, at_ms: {
        "channel": "candle", "data": {
            "t": START_MS, "T": START_MS + 59_999, "s": symbol.base, "i": "1m", "o": "64049.3", "c": close,
            "h": "64949.3", "l": "64025.6", "v": volume, "n": 924,
        },
    }, "{base}/USDC:USDC"),
    "coinbase": Form(Coinbase, _coinbase),
    "mexc": Form(Mexc, _mexc),
    "gate-usdt": Form(GateioUsdt, _gate_usdt, "{base}/USDT:USDT", listing=lambda symbols: [
        {"name": f"{one.base}_{one.quote}", "quanto_multiplier": "0.001"} for one in symbols
    ]),
    "htx-usdt": Form(HtxUsdt, _htx_usdt, "{base}/USDT:USDT", pack=lambda text: gzip.compress(text.encode())),
    "kucoin-usdt": Form(KucoinUsdt, _kucoin_usdt, "{base}/USDT:USDT", listing=_kucoin_contracts),
    "mexc-usdt": Form(MexcUsdt, _mexc_usdt, "{base}/USDT:USDT", listing=lambda symbols: {
        "success": True, "code": 0,
        "data": [{"symbol": f"{one.base}_{one.quote}", "contractSize": 0.001} for one in symbols],
    }),
}  # fmt: skip


class Plugin:
    """A plugin with all markets, and several frames of each market."""

    def __init__(self, name: str, markets: int, times: int) -> None:
        self.name, form = name, FORMS[name]
        self._exchange = form.exchange(form.exchange.Settings(), SystemClock())
        self._symbols = symbols = [symbol_of(name, f"C{number}") for number in range(markets)]
        size = self._exchange.limits.symbols_per_connection or markets
        self._carried = [symbols[first : first + size] for first in range(0, markets, size)]
        self._frames = [
            [frame_of(form, symbol, number) for number, symbol in enumerate(carried * times)]
            for carried in self._carried
        ]

    def _make_feed(self, carried: Sequence[Symbol]) -> SocketFeed:
        feed = self._exchange.make_feed(carried)
        assert isinstance(feed, SocketFeed)
        if (listing := FORMS[self.name].listing) is not None:
            asyncio.run(feed.prepare_connection(_Listing(listing(self._symbols))))  # type: ignore[arg-type]
        feed.subscribe(carried)  # after which it knows the names of its symbols
        return feed

    def cpu_per_frame(self) -> float:
        """The processor time of a frame, in µs, on feeds that are new.

        Raises:
            RuntimeError: a frame had no candle.
        """
        feeds = [self._make_feed(carried) for carried in self._carried]
        count, candles = sum(map(len, self._frames)), 0
        started = time.process_time()
        for feed, frames in zip(feeds, self._frames, strict=True):
            for frame in frames:
                candles += sum(len(event.candles) for event in _events(feed, frame) if isinstance(event, Candles))
        spent_s = time.process_time() - started
        if candles < count:
            raise RuntimeError(f"{self.name} read {candles} candles in {count} frames")
        return 1e6 * spent_s / count


class _Listing:
    """An `Http` that answers every request with the list of markets."""

    def __init__(self, answer: Any) -> None:
        self._answer = json.loads(json.dumps(answer), parse_float=Decimal)

    async def get_json(self, url: str, params: Any = None, **_: Any) -> Any:
        return self._answer

    async def post_json(self, url: str, body: Any = None, **_: Any) -> Any:
        server = {"endpoint": "ws://localhost", "pingInterval": 18_000, "pingTimeout": 10_000}
        return {"code": "200000", "data": {"token": "t", "instanceServers": [server]}}


def symbol_of(name: str, base: str) -> Symbol:
    """The market of a coin on an exchange."""
    return Symbol.parse(FORMS[name].symbol.format(base=base))


def frame_of(form: Form, symbol: Symbol, number: int) -> str | bytes:
    """The frame of a market as it is on the wire; the `number` of them that were sent before."""
    message = form.frame(symbol, f"64{100 + number % 800}.25", f"{1 + number % 97}.345", START_MS + number)
    return message if isinstance(message, bytes) else form.pack(json.dumps(message, separators=(",", ":")))


def _events(feed: SocketFeed, frame: str | bytes) -> Sequence[Any]:
    if feed.compression is not None and isinstance(frame, bytes):
        frame = decompress(frame, feed.compression, _MOST_BYTES)
    return feed.read_frame(frame)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = _options(arguments)
    plugins = [Plugin(name, options.markets, options.times) for name in dict.fromkeys(["bitget", *options.plugins])]
    gc.collect()
    gc.freeze()
    rounds = [{one.name: one.cpu_per_frame() for one in plugins} for _ in range(options.rounds)]
    print(
        f"{options.markets} markets, {options.rounds} rounds: µs a frame (minimum / median / maximum), ratio to Bitget"
    )
    for one in plugins:
        costs = [costs[one.name] for costs in rounds]
        ratio = statistics.median(costs[one.name] / costs["bitget"] for costs in rounds)
        spread = f"{min(costs):.1f} / {statistics.median(costs):.1f} / {max(costs):.1f}"
        mark = "" if ratio <= TARGET else f" above {TARGET}"
        print(f"| {one.name} | {spread} | {ratio:.2f}{mark} |", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markets", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=5, help="frames of each market in a round")
    parser.add_argument("--plugins", nargs="+", choices=list(FORMS), default=list(FORMS))
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
