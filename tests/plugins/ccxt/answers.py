"""Answers with minute candles as each exchange's API writes them, made up in the form that ccxt's source documents.

They prove that the plugin asks with ccxt's address and reads ccxt's values. They are no recordings: only
`test_ccxt_static_files.py` and the frames of other plugins have those.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from string import Template
from typing import NamedTuple


class Row(NamedTuple):
    """A minute as an exchange prints it. More digits than a float has."""

    open_ms: int
    open: str
    high: str
    low: str
    close: str
    volume: str


def rows_from(first_ms: int, count: int) -> list[Row]:
    return [
        Row(first_ms + n * 60_000, "1.00000000000000000001", "3.5", "0.99", "2.500", f"12345678901.{n}2345678901")
        for n in range(count)
    ]


def answer(exchange: str, rows: Sequence[Row]) -> str:
    """The body of an answer, in the exchange's order of rows."""
    envelope, row, newest_first = SHAPES[exchange]
    texts = [Template(row).substitute(_times(one.open_ms), **one._asdict()) for one in rows]
    return envelope.replace("ROWS", ",".join(reversed(texts) if newest_first else texts))


def _times(open_ms: int) -> dict[str, object]:
    iso = datetime.fromtimestamp(open_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return {"ms": open_ms, "s": open_ms // 1000, "end": open_ms + 59_999, "iso": iso}


_LIST = "[ROWS]"
_BINANCE = '[$ms,"$open","$high","$low","$close","$volume",$end,"1",8,"1","1","0"]'
_NUMBERS = "[$ms,$open,$high,$low,$close,$volume]"

#: By ccxt's id: the body around the rows, a row, and whether the newest row is first.
SHAPES: dict[str, tuple[str, str, bool]] = {
    "binance": (_LIST, _BINANCE, False),
    "bitbank": (
        '{"success":1,"data":{"candlestick":[{"type":"1min","ohlcv":[ROWS]}],"timestamp":1}}',
        '["$open","$high","$low","$close","$volume",$ms]', False,
    ),
    "bitfinex": (_LIST, "[$ms,$open,$close,$high,$low,$volume]", True),
    "bitget": (
        '{"code":"00000","msg":"success","requestTime":1,"data":[ROWS]}',
        '["$ms","$open","$high","$low","$close","$volume","1","1"]', False,
    ),
    "bitso": (
        '{"success":true,"payload":[ROWS]}',
        '{"bucket_start_time":$ms,"first_rate":"$open","last_rate":"$close","min_rate":"$low","max_rate":"$high",'
        '"trade_count":8,"volume":"$volume","vwap":"1"}', False,
    ),
    "bitstamp": (
        '{"data":{"pair":"BTC/USDT","ohlc":[ROWS]}}',
        '{"high":"$high","timestamp":"$s","volume":"$volume","low":"$low","close":"$close","open":"$open"}', False,
    ),
    "bitvavo": (_LIST, '[$ms,"$open","$high","$low","$close","$volume"]', True),
    "btcmarkets": (_LIST, '["${iso}.000000Z","$open","$high","$low","$close","$volume"]', True),
    "bybit": (
        '{"retCode":0,"retMsg":"OK","result":{"symbol":"BTCUSDT","category":"spot","list":[ROWS]},"time":1}',
        '["$ms","$open","$high","$low","$close","$volume","1"]', True,
    ),
    "coinbaseexchange": (_LIST, "[$s,$low,$high,$open,$close,$volume]", True),
    "cryptocom": (
        '{"id":-1,"method":"public/get-candlestick","code":0,"result":{"interval":"1m","data":[ROWS]}}',
        '{"o":"$open","h":"$high","l":"$low","c":"$close","v":"$volume","t":$ms}', False,
    ),
    "gate": (_LIST, '["$s","1","$close","$high","$low","$open","$volume","true"]', False),
    "gemini": (_LIST, _NUMBERS, True),
    "hitbtc": (
        _LIST,
        '{"timestamp":"${iso}.000Z","open":"$open","close":"$close","min":"$low","max":"$high","volume":"$volume",'
        '"volume_quote":"1"}', False,
    ),
    "htx": (
        '{"status":"ok","ch":"market.btcusdt.kline.1min","ts":1,"data":[ROWS]}',
        '{"id":$s,"open":$open,"close":$close,"low":$low,"high":$high,"amount":$volume,"vol":1,"count":8}', True,
    ),
    "hyperliquid": (
        _LIST,
        '{"t":$ms,"T":$end,"s":"BTC","i":"1m","o":"$open","c":"$close","h":"$high","l":"$low","v":"$volume","n":8}',
        False,
    ),
    "kraken": (
        '{"error":[],"result":{"BTCUSDT":[ROWS],"last":1}}',
        '[$s,"$open","$high","$low","$close","1","$volume",8]', False,
    ),
    "kucoin": ('{"code":"200000","data":[ROWS]}', '["$s","$open","$close","$high","$low","$volume","1"]', True),
    "kucoinfutures": ('{"code":"200000","data":[ROWS]}', "[$ms,$open,$high,$low,$close,$volume,1]", False),
    "lbank": ('{"result":"true","data":[ROWS]}', "[$s,$open,$high,$low,$close,$volume]", False),
    "mexc": (_LIST, '[$ms,"$open","$high","$low","$close","$volume",$end,"1"]', False),
    "ndax": (_LIST, "[$ms,$high,$low,$open,$close,$volume,1,1,8,$ms]", False),
    "okx": (
        '{"code":"0","msg":"","data":[ROWS]}',
        '["$ms","$open","$high","$low","$close","$volume","1","1","1"]', True,
    ),
    "poloniex": (
        _LIST,
        '["$low","$high","$open","$close","1","$volume","1","1",8,$ms,"1","MINUTE_1",$ms,$end]', False,
    ),
    "upbit": (
        _LIST,
        '{"market":"USDT-BTC","candle_date_time_utc":"$iso","candle_date_time_kst":"$iso","opening_price":$open,'
        '"high_price":$high,"low_price":$low,"trade_price":$close,"timestamp":$ms,"candle_acc_trade_price":1,'
        '"candle_acc_trade_volume":$volume,"unit":1}', True,
    ),
    "whitebit": (
        '{"success":true,"message":"","result":[ROWS]}',
        '[$s,"$open","$close","$high","$low","$volume","1"]', False,
    ),
    "xt": (
        '{"rc":0,"mc":"SUCCESS","ma":[],"result":[ROWS]}',
        '{"t":$ms,"o":"$open","c":"$close","h":"$high","l":"$low","q":"$volume","v":"1"}', False,
    ),
}  # fmt: skip
