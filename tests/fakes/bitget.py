"""A fake Bitget: the public part of its classic API (V2) on a real port, with the faults of the real one at hand.

It pushes minute candles only, and by REST has longer ones too, made from its minutes. What it does is what Bitget was
seen to do, including what its documentation leaves out; nothing here is shared with the plugin, so that a mistake in
one of them shows.
"""

import asyncio
import json
import random
import ssl
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from email.utils import formatdate
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from candled.exchange import Clock
from candled.model import MINUTE_MS, Candle, RangeSet, Symbol, decimal_text

from .tapes import Row, Synthetic, Tape, grown

SNAPSHOT_ROWS = 500
DAY_MS = 86_400_000
_INST_TYPES = {"SPOT", "USDT-FUTURES", "COIN-FUTURES", "USDC-FUTURES"}
_MOST_FRAME_BYTES = 4096
_MOST_CHANNELS = 1000
_MOST_MESSAGES_PER_S = 10
_MOST_SUBSCRIBES_PER_HOUR = 240
_MOST_OPEN, _MOST_ATTEMPTS, _ATTEMPTS_S = 100, 300, 300.0
_MOST_REQUESTS_PER_MINUTE = 6000
_TEXTS_KEPT = 3 * SNAPSHOT_ROWS


@dataclass(frozen=True, kw_only=True)
class FakeMarket:
    """One market, spot or of the USDT futures if its symbol is settled in something. There is nothing before
    `listed_ms` (UTC epoch ms), which the list of markets names with `names_listing`.

    `usdt_per_quote` is the price of the quote coin, for the column that holds the volume in USDT.
    """

    symbol: Symbol
    tape: Tape
    price_decimals: int = 2
    volume_decimals: int = 4
    active: bool = True
    listed_ms: int = 0
    names_listing: bool = True
    usdt_per_quote: Decimal = Decimal(1)
    quote_volume_24h: Decimal = Decimal(0)

    @property
    def inst_type(self) -> str:
        return "USDT-FUTURES" if self.symbol.settle else "SPOT"

    @property
    def inst_id(self) -> str:
        return f"{self.symbol.base}{self.symbol.quote}"

    @property
    def key(self) -> tuple[str, str]:
        return self.inst_type, self.inst_id


def synthetic_markets(count: int) -> list[FakeMarket]:
    """`count` made-up markets, `SYM000/USDT` and on."""
    return [FakeMarket(symbol=Symbol(f"SYM{number:03}", "USDT"), tape=Synthetic(number)) for number in range(count)]


@dataclass(frozen=True)
class RestRequest:
    """A request as it came, and the exchange's clock when it came (UTC epoch milliseconds)."""

    path: str
    query: Mapping[str, str]
    at_ms: int


@dataclass(frozen=True)
class Answer:
    status: int
    body: str
    headers: Mapping[str, str] = field(default_factory=dict)


class FakeBitget:
    """Bitget in this process, on a free port of 127.0.0.1.

    All time is the clock's: pushes come at most every `push_interval_s` of its seconds per channel, and pings, limits
    and lifetimes are counted by it. The attributes below may be set and the fault methods called at any moment.

    Attributes:
        skew_ms: how much the exchange's clock is ahead of `clock`.
        max_age_s: every connection is cut at this age. A fraction of a second makes a reconnect storm.
        ping_patience_s: a connection is cut when it sent no text `ping` for a time drawn from this range; None: never.
        enforce_limits: whether the limits on messages, subscriptions, connections and requests are enforced. Far
            above real time the jitter of the loop alone breaks limits per second.
        push_quiet_minutes: whether a minute without trades is pushed, or only found in snapshots and REST.
        duplicate_updates: every update is sent twice.
        holds_back: nothing is pushed; what there was to say meanwhile follows afterwards, in order.
        refuse_connections: WebSocket handshakes are cut before an answer.
        rest_down: requests are cut before an answer.
        rest_delay_s: how long an answer takes.
        recent_reach_ms: how far back `candles` goes; further back it answers an empty list.
        candles_take_in_end, history_takes_in_end: whether a page holds the minute that contains `endTime`.
        newest_first: pages begin with the newest minute.
        pages_count_rows: whether a page skips holes to reach `limit` rows, or covers `limit` minutes whatever is there.
        window_shift_ms: pages come from another window than asked for, this much later.
    """

    def __init__(
        self, clock: Clock, markets: Iterable[FakeMarket], *, push_interval_s: float = 0.5, skew_ms: int = 0
    ) -> None:
        self.clock = clock
        self.push_interval_s = push_interval_s
        self.skew_ms = skew_ms
        self.max_age_s = 86_400.0
        self.pong_within_s: tuple[float, float] | None = (120.0, 145.0)
        self.enforce_limits = True
        self.push_quiet_minutes = True
        self.duplicate_updates = False
        self.holds_back = False
        self.refuse_connections = False
        self.rest_down = False
        self.rest_delay_s = 0.0
        self.recent_reach_ms = 30 * DAY_MS
        self.candles_take_in_end = True
        self.history_takes_in_end = False
        self.pages_count_rows = False
        self.newest_first = False
        self.window_shift_ms = 0

        self.connections = 0
        self.refused_connections = 0
        self.subscribes: Counter[str] = Counter()
        self.frames: list[str] = []
        self.requests: list[RestRequest] = []

        self._channels = {market.key: _Channel(self, market) for market in markets}
        self._sockets: set[_Socket] = set()
        self._attempts: deque[float] = deque()
        self._windows: dict[str, deque[float]] = {}
        self._random = random.Random(2026)
        self._silent = False
        self._rest_fault: Callable[[], Answer] | None = None
        self._rest_faults_left: int | None = None
        self._server: HTTPServer | None = None
        self._ticking: asyncio.Task[None] | None = None
        self.port = 0

    # ------------------------------------------------------------ running

    async def start(self, port: int = 0, certificate: tuple[Path, Path] | None = None) -> None:
        """Listen; `port` 0 takes a free one, as `self.port` says afterwards. TLS needs the files of a certificate."""
        application = Application(
            [(r"/v2/ws/public", _Socket, {"fake": self}), (r".*", _Rest, {"fake": self})],
            log_function=lambda handler: None,
        )
        sockets = bind_sockets(port, "127.0.0.1")
        self.port = sockets[0].getsockname()[1]
        context = None
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
        self._server = HTTPServer(application, ssl_options=context)
        self._server.add_sockets(sockets)
        self._ticking = asyncio.create_task(self._tick_for_ever())

    async def close(self) -> None:
        """Stop listening and cut every connection."""
        if self._server is None or self._ticking is None:
            return
        self._ticking.cancel()
        with suppress(asyncio.CancelledError):
            await self._ticking
        self._server.stop()
        self.drop_all()
        await self._server.close_all_connections()
        self._server = self._ticking = None

    async def __aenter__(self) -> "FakeBitget":
        await self.start()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v2/ws/public"

    @property
    def rest_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def now_ms(self) -> int:
        """The exchange's clock, UTC epoch milliseconds."""
        return self.clock.now_ms() + self.skew_ms

    @property
    def open_connections(self) -> int:
        return len(self._sockets)

    def requests_to(self, endpoint: str) -> list[RestRequest]:
        """The requests to paths that end in `/endpoint`, for instance `candles` or `history-candles`."""
        return [request for request in self.requests if request.path.endswith(f"/{endpoint}")]

    def truth(self, symbol: Symbol | str, start_ms: int, end_ms: int) -> list[Candle]:
        """The final candles of the minutes `[start_ms, end_ms)` that are over and that the exchange has."""
        [channel] = self._find(symbol)
        end_ms = min(end_ms, _minute(self.now_ms()))
        minutes = range(_minute(start_ms + MINUTE_MS - 1), end_ms, MINUTE_MS)
        rows = ((open_ms, channel.row(open_ms)) for open_ms in minutes)
        return [row.candle(open_ms, final=True) for open_ms, row in rows if row is not None]

    # ------------------------------------------------------------ faults of the stream

    def silence_all(self, *, new_too: bool = False) -> None:
        """Send nothing but pongs on the connections that are open; with `new_too` also on later ones."""
        self._silent = new_too
        for socket in self._sockets:
            socket.silent = True

    def silence(self, symbol: Symbol | str) -> None:
        """Send nothing more to those who are subscribed to `symbol`; who subscribes again is served."""
        for channel in self._find(symbol):
            channel.subscribers = dict.fromkeys(channel.subscribers, True)

    def mute_subscription(self, symbol: Symbol | str, on: bool = True) -> None:
        """Acknowledge subscriptions of `symbol` and never send, not even a snapshot."""
        for channel in self._find(symbol):
            channel.muted = on

    def late_final(self, symbol: Symbol | str, by_s: float | None = 1.5) -> None:
        """Send the last version of each minute `by_s` after its end and after the next one's first row."""
        for channel in self._find(symbol):
            channel.late_by_s = by_s

    def skip_push(self, symbol: Symbol | str, on: bool = True) -> None:
        """Never push the last version of a minute."""
        for channel in self._find(symbol):
            channel.skips_last = on

    def half_open(self) -> None:
        """Neither read nor write on the open connections any more, but keep them: a peer that vanished."""
        for socket in self._sockets:
            socket.stall()

    def flood(self, text: str, times: int) -> None:
        """Send a text so many times on every open connection."""
        for socket in list(self._sockets):
            for _ in range(times):
                socket.send(text)

    def drop_all(self) -> None:
        """Cut every open connection without a close frame."""
        for socket in list(self._sockets):
            socket.cut()

    # ------------------------------------------------------------ faults of the candles

    def missing_minutes(self, symbol: Symbol | str, *ranges: tuple[int, int]) -> None:
        """Make the minutes of `ranges` ones the exchange itself does not have, neither live nor by REST."""
        for channel in self._find(symbol):
            for start_ms, end_ms in ranges:
                channel.missing.add(start_ms, end_ms)
            channel.forget_texts()

    def give_back_minutes(self, symbol: Symbol | str) -> None:
        """Have all minutes again."""
        for channel in self._find(symbol):
            channel.missing = RangeSet()
            channel.forget_texts()

    def revise(self, symbol: Symbol | str, open_ms: int, row: Row) -> None:
        """Have other values for one minute from now on; nothing is pushed."""
        for channel in self._find(symbol):
            channel.revised[open_ms] = row
            channel.forget_texts()

    def garble(
        self, symbol: Symbol | str, open_ms: int, change: Callable[[list[Any]], list[Any]] | None, *, live: bool = False
    ) -> None:
        """Send `change` of the row of one minute in its place, by REST or in the stream (`live`); None: its own again.

        `change` returns a list of rows.
        """
        for channel in self._find(symbol):
            garbled = channel.garbled_live if live else channel.garbled
            if change is None:
                garbled.pop(open_ms, None)
            else:
                garbled[open_ms] = change

    # ------------------------------------------------------------ faults of REST

    def html_instead_of_json(self, status: int = 200, times: int | None = None) -> None:
        """Answer the next `times` requests (None: all) with an error page of the content network."""
        page = "<html><head><title>Just a moment...</title></head><body>Checking your browser</body></html>"
        self._break_rest(lambda: Answer(status, page, {"Content-Type": "text/html"}), times)

    def rest_429(self, retry_after: int | None = None, times: int | None = None) -> None:
        """Answer the next `times` requests (None: all) with 429; Bitget documents no `Retry-After`."""
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self._break_rest(lambda: self._refusal("429", "Too Many Requests", 429, headers), times)

    def rest_error(self, code: str, message: str, status: int = 400, times: int | None = None) -> None:
        """Answer the next `times` requests (None: all) with an error of Bitget's own."""
        self._break_rest(lambda: self._refusal(code, message, status), times)

    def rest_nothing(self, times: int | None = None) -> None:
        """Answer the next `times` requests (None: all) with success and an empty list."""
        self._break_rest(lambda: self._envelope(200, "00000", "success", [], {}), times)

    def heal(self) -> None:
        """End every fault but changed candles. Connections that are half-open stay so."""
        self._silent = self.duplicate_updates = self.holds_back = False
        self.refuse_connections = self.rest_down = False
        self.window_shift_ms = 0
        self._rest_fault = None
        for socket in self._sockets:
            socket.silent = False
        for channel in self._channels.values():
            channel.heal()

    # ------------------------------------------------------------ inside

    def _find(self, symbol: Symbol | str) -> list["_Channel"]:
        found = [channel for channel in self._channels.values() if str(channel.market.symbol) == str(symbol)]
        if not found:
            raise KeyError(f"the fake has no market {symbol}")
        return found

    async def _tick_for_ever(self) -> None:
        while True:
            await self.clock.sleep(self.push_interval_s)
            monotonic, now_ms = self.clock.monotonic(), self.now_ms()
            for socket in list(self._sockets):
                socket.tick(monotonic)
            for channel in () if self.holds_back else self._channels.values():
                channel.tick(now_ms)

    def admits(self) -> bool:
        """Whether another connection is within the limits per address."""
        self.connections += 1
        full = len(self._sockets) >= _MOST_OPEN
        return not (_over(self._attempts, self.clock.monotonic(), _ATTEMPTS_S, _MOST_ATTEMPTS) or full) or (
            not self.enforce_limits
        )

    def opened(self, socket: "_Socket") -> None:
        socket.silent = self._silent
        socket.timeout_s = self._random.uniform(*self.pong_within_s) if self.pong_within_s else None
        self._sockets.add(socket)

    def on_close(self, socket: "_Socket") -> None:
        self._sockets.discard(socket)
        for channel in self._channels.values():
            channel.subscribers.pop(socket, None)

    def subscribe(self, socket: "_Socket", arg: Mapping[str, Any]) -> None:
        inst_type, name, inst_id = arg.get("instType"), arg.get("channel"), str(arg.get("instId")).upper()
        if name != "candle1m":
            socket.refuse(30016, "Param error", arg)
            return
        known = any(inst_id == known_id for _, known_id in self._channels)
        if inst_type not in _INST_TYPES or not known:
            reason = f"instType:{inst_type},channel:{name},instId:{inst_id},precision:null doesn't exist"
            socket.refuse(30001, reason, arg)
            return
        self.subscribes[inst_id] += 1
        socket.send_json({"event": "subscribe", "arg": {**arg, "instId": inst_id}})
        channel = self._channels.get((str(inst_type), inst_id))
        if channel is not None:  # a symbol that exists only under another instType is acknowledged all the same
            channel.join(socket)

    def unsubscribe(self, socket: "_Socket", arg: Mapping[str, Any]) -> None:
        inst_id = str(arg.get("instId")).upper()
        channel = self._channels.get((str(arg.get("instType")), inst_id))
        if channel is None:
            socket.refuse(30001, f"{inst_id} doesn't exist", arg)
            return
        channel.subscribers.pop(socket, None)
        socket.send_json({"event": "unsubscribe", "arg": {**arg, "instId": inst_id}})

    def channels_of(self, socket: "_Socket") -> int:
        return sum(socket in channel.subscribers for channel in self._channels.values())

    def _break_rest(self, fault: Callable[[], Answer], times: int | None) -> None:
        self._rest_fault, self._rest_faults_left = fault, times

    def answer(self, path: str, query: Mapping[str, str]) -> Answer:
        """Answer a GET request."""
        self.requests.append(RestRequest(path, query, self.now_ms()))
        if self._rest_fault is not None and self._rest_faults_left != 0:
            if self._rest_faults_left is not None:
                self._rest_faults_left -= 1
            return self._rest_fault()
        endpoint = _ENDPOINTS.get(path)
        if endpoint is None:
            return self._refusal("40404", "Request URL NOT FOUND")
        most = 10 if path == "/api/v2/public/time" else 20
        window = self._windows.setdefault(path, deque())
        now = self.clock.monotonic()
        crowded = _over(self._windows.setdefault("all", deque()), now, 60.0, _MOST_REQUESTS_PER_MINUTE)
        if (_over(window, now, 1.0, most) or crowded) and self.enforce_limits:
            return self._refusal("429", "Too Many Requests", 429)
        try:
            data = endpoint(self, query)
        except _Refused as refused:
            return self._refusal(refused.code, str(refused))
        left = {"x-mbx-used-remain-limit": str(max(0, most - len(window)))}
        return self._envelope(200, "00000", "success", data, left)

    def _refusal(self, code: str, message: str, status: int = 400, headers: Mapping[str, str] | None = None) -> Answer:
        return self._envelope(status, code, message, None, headers or {})

    def _envelope(self, status: int, code: str, message: str, data: Any, headers: Mapping[str, str]) -> Answer:
        body = {"code": code, "msg": message, "requestTime": self.now_ms(), "data": data}
        return Answer(status, json.dumps(body), {"Content-Type": "application/json;charset=UTF-8", **headers})

    # ------------------------------------------------------------ endpoints

    def _time(self, query: Mapping[str, str]) -> dict[str, str]:
        return {"serverTime": str(self.now_ms())}

    def _nothing(self, query: Mapping[str, str]) -> list[Any]:
        return []

    def _symbols(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        markets = self._listed("SPOT")
        wanted = query.get("symbol")
        if wanted is None:
            return [_spot_entry(market) for market in markets]
        found = [_spot_entry(market) for market in markets if market.inst_id == wanted]
        if not found:
            raise _Refused("40034", f"Parameter {wanted} does not exist")
        return found

    def _spot_tickers(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        return [_ticker(market) for market in self._listed("SPOT")]

    def _mix_tickers(self, query: Mapping[str, str]) -> list[dict[str, str]]:
        if "productType" not in query:
            raise _Refused("400172", "Parameter verification failed")
        usdt = query["productType"].upper() == "USDT-FUTURES"
        return [_ticker(market) for market in self._listed("USDT-FUTURES")] if usdt else []

    def _contracts(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        if "productType" not in query:
            raise _Refused("400172", "Parameter verification failed")
        usdt = query["productType"].upper() == "USDT-FUTURES"
        return [_contract_entry(market) for market in self._listed("USDT-FUTURES")] if usdt else []

    def _listed(self, inst_type: str) -> list[FakeMarket]:
        return [channel.market for channel in self._channels.values() if channel.market.inst_type == inst_type]

    def _spot_candles(self, query: Mapping[str, str]) -> list[list[str]]:
        channel, period = self._asked("SPOT", query)
        page = self._recent_page(channel, period, query)
        return channel.garble(period, [_rest_spot_row(*entry, channel.market) for entry in page])

    def _spot_history(self, query: Mapping[str, str]) -> list[list[str]]:
        channel, period = self._asked("SPOT", query)
        if "endTime" not in query:
            raise _Refused("400172", "Parameter verification failed")
        page = self._history_page(channel, period, query)
        return channel.garble(period, [_rest_spot_row(*entry, channel.market) for entry in page])

    def _mix_candles(self, query: Mapping[str, str]) -> list[list[str]]:
        channel, period = self._mix_asked(query)
        return channel.garble(period, [_row_text(*entry) for entry in self._recent_page(channel, period, query)])

    def _mix_history(self, query: Mapping[str, str]) -> list[list[str]]:
        channel, period = self._mix_asked(query)
        return channel.garble(period, [_row_text(*entry) for entry in self._history_page(channel, period, query)])

    def _mix_asked(self, query: Mapping[str, str]) -> "tuple[_Channel, _Period]":
        if query.get("productType", "").upper() != "USDT-FUTURES":
            raise _Refused("400172", "Parameter verification failed")
        if (
            "startTime" in query
            and "endTime" in query
            and _number(query, "endTime") - _number(query, "startTime") > (90 * DAY_MS)
        ):
            raise _Refused("400172", "Parameter verification failed")
        return self._asked("USDT-FUTURES", query)

    def _asked(self, inst_type: str, query: Mapping[str, str]) -> "tuple[_Channel, _Period]":
        if "symbol" not in query or "granularity" not in query:
            raise _Refused("400172", "Parameter verification failed")
        period = _PERIODS[inst_type].get(query["granularity"])
        if period is None:
            raise _Refused("400171", "Parameter verification failed granularity")
        channel = self._channels.get((inst_type, query["symbol"]))
        if channel is None:
            raise _Refused("40034", f"Parameter {query['symbol']} does not exist")
        return channel, period

    def _recent_page(self, channel: "_Channel", period: "_Period", query: Mapping[str, str]) -> list[tuple[int, Row]]:
        now_ms, limit = self.now_ms(), _limit(query, 1000)
        newest, oldest = period.floor(now_ms), _minute(now_ms) - self.recent_reach_ms
        if "startTime" in query and "endTime" not in query:
            start_ms = period.floor(_number(query, "startTime") + period.ms - 1)
            last = start_ms + (limit - 1) * period.ms
        else:
            last = self._last(period, query, now_ms, self.candles_take_in_end)
        return self._page(channel, period, last, limit, newest, oldest)

    def _history_page(self, channel: "_Channel", period: "_Period", query: Mapping[str, str]) -> list[tuple[int, Row]]:
        now_ms, limit = self.now_ms(), _limit(query, 200)
        last = self._last(period, query, now_ms, self.history_takes_in_end)
        return self._page(channel, period, last, limit, period.floor(now_ms) - period.ms, 0)

    def _last(self, period: "_Period", query: Mapping[str, str], now_ms: int, takes_in_end: bool) -> int:
        end_ms = period.floor(_number(query, "endTime") if "endTime" in query else now_ms)
        return end_ms if takes_in_end or "endTime" not in query else end_ms - period.ms

    def _page(
        self, channel: "_Channel", period: "_Period", last: int, limit: int, newest: int, oldest: int
    ) -> list[tuple[int, Row]]:
        last += self.window_shift_ms
        rows: list[tuple[int, Row]] = []
        oldest = max(oldest, period.floor(channel.market.listed_ms), last - _PAGE_REACH_MS)
        if not self.pages_count_rows:
            oldest = max(oldest, last - (limit - 1) * period.ms)
        for open_ms in range(min(last, newest), oldest - 1, -period.ms):
            row = period.row(channel, open_ms, self.now_ms())
            if row is not None:
                rows.append((open_ms, row))
            if len(rows) == limit:
                break
        return rows if self.newest_first else rows[::-1]


class _Period:
    """A length of bars, and where they begin: whole lengths from `origin_ms`."""

    def __init__(self, ms: int, origin_ms: int = 0) -> None:
        self.ms = ms
        self._origin_ms = origin_ms

    def floor(self, at_ms: int) -> int:
        return at_ms - (at_ms - self._origin_ms) % self.ms

    def row(self, channel: "_Channel", open_ms: int, now_ms: int) -> Row | None:
        """A bar as it stands, made from the minutes there are; None where there are none."""
        end_ms = min(open_ms + self.ms, now_ms + 1)
        start_ms = max(open_ms, channel.market.listed_ms)
        versions = (channel.version(minute_ms, now_ms) for minute_ms in range(start_ms, end_ms, MINUTE_MS))
        minutes = [minute for minute in versions if minute is not None]
        if not minutes:
            return None
        return Row(
            minutes[0].open,
            max(minute.high for minute in minutes),
            min(minute.low for minute in minutes),
            minutes[-1].close,
            sum((minute.volume for minute in minutes), Decimal(0)),
            sum((minute.quote_volume for minute in minutes), Decimal(0)),
        )


_HOUR_MS = 60 * MINUTE_MS
_CHINA_MS = -8 * _HOUR_MS  # where a day begins whose name does not say utc
_MONDAY_MS = 4 * DAY_MS  # the epoch was a Thursday
_UTC_PERIODS = {
    "6Hutc": _Period(6 * _HOUR_MS),
    "12Hutc": _Period(12 * _HOUR_MS),
    "1Dutc": _Period(DAY_MS),
    "1Wutc": _Period(7 * DAY_MS, _MONDAY_MS),
}
_PERIODS = {
    "SPOT": {
        **{f"{count}min": _Period(count * MINUTE_MS) for count in (1, 3, 5, 15, 30)},
        **{f"{count}h": _Period(count * _HOUR_MS) for count in (1, 4)},
        **{f"{count}h": _Period(count * _HOUR_MS, _CHINA_MS) for count in (6, 12)},
        "1day": _Period(DAY_MS, _CHINA_MS),
        "1week": _Period(7 * DAY_MS, _MONDAY_MS + _CHINA_MS),
        **_UTC_PERIODS,
    },
    "USDT-FUTURES": {
        **{f"{count}m": _Period(count * MINUTE_MS) for count in (1, 3, 5, 15, 30)},
        **{f"{count}H": _Period(count * _HOUR_MS) for count in (1, 2, 4)},
        **{f"{count}H": _Period(count * _HOUR_MS, _CHINA_MS) for count in (6, 12)},
        "1D": _Period(DAY_MS, _CHINA_MS),
        "1W": _Period(7 * DAY_MS, _MONDAY_MS + _CHINA_MS),
        **_UTC_PERIODS,
    },
}
_PAGE_REACH_MS = 90 * DAY_MS


_ENDPOINTS: dict[str, Callable[[FakeBitget, Mapping[str, str]], Any]] = {
    "/api/v2/public/time": FakeBitget._time,
    "/api/v2/spot/public/symbols": FakeBitget._symbols,
    "/api/v2/spot/market/tickers": FakeBitget._spot_tickers,
    "/api/v2/mix/market/tickers": FakeBitget._mix_tickers,
    "/api/v2/spot/market/candles": FakeBitget._spot_candles,
    "/api/v2/spot/market/history-candles": FakeBitget._spot_history,
    "/api/v2/mix/market/contracts": FakeBitget._contracts,
    "/api/v2/mix/market/candles": FakeBitget._mix_candles,
    "/api/v2/mix/market/history-candles": FakeBitget._mix_history,
    "/api/v2/margin/currencies": FakeBitget._nothing,
}


class _Channel:
    """The minute candles of one market: what they are, who hears them, and how they are pushed."""

    def __init__(self, fake: FakeBitget, market: FakeMarket) -> None:
        self.market = market
        self.subscribers: dict[_Socket, bool] = {}  # True: silenced
        self.missing = RangeSet()
        self.revised: dict[int, Row] = {}
        self.garbled: dict[int, Callable[[list[Any]], list[Any]]] = {}
        self.garbled_live: dict[int, Callable[[list[Any]], list[Any]]] = {}
        self._fake = fake
        self._texts: dict[int, list[str]] = {}
        self._minute: int | None = None
        self._pushed: tuple[int, Row] | None = None
        self._late: list[tuple[float, int]] = []
        self.heal()

    def heal(self) -> None:
        self.muted = self.skips_last = False
        self.late_by_s: float | None = None
        self.subscribers = dict.fromkeys(self.subscribers, False)

    def garble(self, period: "_Period", rows: list[list[str]]) -> list[Any]:
        """The rows of a page as they are sent."""
        if not self.garbled or period.ms != MINUTE_MS:
            return rows
        return [sent for row in rows for sent in self.garbled.get(int(row[0]), lambda row: [row])(row)]

    def forget_texts(self) -> None:
        self._texts.clear()

    def row(self, open_ms: int) -> Row | None:
        """The final values of a minute; None where the exchange has none."""
        if open_ms < self.market.listed_ms or open_ms in self.missing:
            return None
        return self.revised.get(open_ms) or self.market.tape.row(open_ms)

    def version(self, open_ms: int, now_ms: int) -> Row | None:
        """A minute as it stands."""
        row = self.row(open_ms)
        return None if row is None else grown(row, now_ms - open_ms)

    def join(self, socket: "_Socket") -> None:
        """Add a subscriber and send it the recent past; who is there already gets that once more."""
        if self.muted:
            return
        self.subscribers[socket] = False
        now_ms = self._fake.now_ms()
        running = _minute(now_ms)
        minutes = range(running - (SNAPSHOT_ROWS - 1) * MINUTE_MS, running, MINUTE_MS)
        rows = [text for open_ms in minutes if (text := self._final_text(open_ms))]
        newest = self.version(running, now_ms)
        if newest is not None:
            rows.append(self._text(running, newest))
        socket.push(self._frame("snapshot", rows, now_ms))

    def tick(self, now_ms: int) -> None:
        """Push what changed: first the last version of a minute that ended, the next minute at the next tick."""
        minute, known = _minute(now_ms), self._minute
        self._minute = minute
        if not self.subscribers:
            self._late.clear()
            return
        if known is not None and known < minute:
            for open_ms in range(known, minute, MINUTE_MS):
                self._finish(open_ms, now_ms)
            return
        self._push(minute, now_ms)
        self._push_late(now_ms)

    def _finish(self, open_ms: int, now_ms: int) -> None:
        if self.skips_last:
            return
        if self.late_by_s is None:
            self._push(open_ms, now_ms)
        else:
            self._late.append((open_ms + MINUTE_MS + self.late_by_s * 1000, open_ms))

    def _push_late(self, now_ms: int) -> None:
        newest = self._pushed[0] if self._pushed else 0
        due = [open_ms for due_ms, open_ms in self._late if due_ms <= now_ms and open_ms < newest]
        self._late = [entry for entry in self._late if entry[1] not in due]
        for open_ms in due:
            row = self.row(open_ms)
            if row is not None:
                self._send(open_ms, row, now_ms)

    def _push(self, open_ms: int, now_ms: int) -> None:
        row = self.version(open_ms, now_ms)
        if row is None or (open_ms, row) == self._pushed:
            return
        whole = self.row(open_ms)
        if whole is not None and not whole.volume and not self._fake.push_quiet_minutes:
            return
        self._pushed = (open_ms, row)
        self._send(open_ms, row, now_ms)

    def _send(self, open_ms: int, row: Row, now_ms: int) -> None:
        garble = self.garbled_live.get(open_ms, lambda row: [row])
        frame = self._frame("update", garble(self._text(open_ms, row)), now_ms)
        for socket, silenced in list(self.subscribers.items()):
            if silenced:
                continue
            socket.push(frame)
            if self._fake.duplicate_updates:
                socket.push(frame)

    def _frame(self, action: str, rows: Sequence[Sequence[str]], now_ms: int) -> str:
        inst_type, inst_id = self.market.key
        arg = {"instType": inst_type, "channel": "candle1m", "instId": inst_id}
        return json.dumps({"action": action, "arg": arg, "data": rows, "ts": now_ms}, separators=(",", ":"))

    def _final_text(self, open_ms: int) -> list[str] | None:
        text = self._texts.get(open_ms)
        if text is not None:
            return text
        row = self.row(open_ms)
        if row is None:
            return None
        if len(self._texts) >= _TEXTS_KEPT:
            self._texts.clear()
        self._texts[open_ms] = self._text(open_ms, row)
        return self._texts[open_ms]

    def _text(self, open_ms: int, row: Row) -> list[str]:
        return [*_row_text(open_ms, row), decimal_text(row.quote_volume * self.market.usdt_per_quote)]


class _Socket(WebSocketHandler):
    """One WebSocket connection of a client."""

    def initialize(self, fake: FakeBitget) -> None:
        self._fake = fake
        self.silent = self._stalled = False
        self.timeout_s: float | None = None

    def check_origin(self, origin: str) -> bool:
        return True

    def prepare(self) -> None:
        if self._fake.refuse_connections:
            self._fake.refused_connections += 1
            self.detach().close()
        elif not self._fake.admits():
            self._fake.refused_connections += 1
            self.send_error(429)

    def open(self) -> None:
        self.set_nodelay(True)
        self._opened = self._pinged = self._fake.clock.monotonic()
        self._messages: deque[float] = deque()
        self._subscribes: deque[float] = deque()
        self._fake.opened(self)

    def on_close(self) -> None:
        self._fake.on_close(self)

    def on_message(self, message: str | bytes) -> None:
        if self._stalled:
            return
        if len(message if isinstance(message, bytes) else message.encode()) > _MOST_FRAME_BYTES:
            self._expel(30007, "request frame too long")
        elif self._crowded(self._messages, 1.0, _MOST_MESSAGES_PER_S):
            self._expel(30006, "too many requests")
        elif message == "ping":
            self._pinged = self._fake.clock.monotonic()
            self.send("pong")
        else:
            self._fake.frames.append(str(message))
            self._obey(message)

    def _obey(self, message: str | bytes) -> None:
        try:
            command = json.loads(message)
        except ValueError:
            command = None
        if isinstance(message, bytes) or not isinstance(command, dict) or command.get("op") in (None, "ping"):
            self.refuse(30002, "Illegal request")
            return
        act = {"subscribe": self._fake.subscribe, "unsubscribe": self._fake.unsubscribe}.get(command["op"])
        if act is None:
            self.refuse(30003, "invalid op")
            return
        args = command.get("args")
        if not isinstance(args, list) or not all(isinstance(arg, dict) for arg in args):
            self.refuse(30016, "Param error")
            return
        if command["op"] == "subscribe" and self._crowded(self._subscribes, 3600.0, _MOST_SUBSCRIBES_PER_HOUR):
            self._expel(30007, "request over limit, connection close")
            return
        for arg in args:
            act(self, arg)
        if self._fake.channels_of(self) > _MOST_CHANNELS:
            self._expel(30007, "request over limit, connection close")

    def _crowded(self, window: deque[float], length_s: float, most: int) -> bool:
        return _over(window, self._fake.clock.monotonic(), length_s, most) and self._fake.enforce_limits

    def refuse(self, code: int, reason: str, arg: Mapping[str, Any] | None = None) -> None:
        about = {} if arg is None else {"arg": dict(arg), "op": "subscribe"}
        self.send_json({"event": "error", "code": code, "msg": reason, **about})

    def _expel(self, code: int, reason: str) -> None:
        self.refuse(code, reason)
        self.close()

    def tick(self, monotonic: float) -> None:
        """Cut the connection when its time has come."""
        if self._stalled:
            return
        too_old = monotonic - self._opened > self._fake.max_age_s
        if too_old or (self.timeout_s is not None and monotonic - self._pinged > self.timeout_s):
            self.cut()

    def push(self, frame: str) -> None:
        """Send candles, unless the connection is silenced."""
        if not self.silent:
            self.send(frame)

    def send_json(self, message: Mapping[str, Any]) -> None:
        self.send(json.dumps(message, separators=(",", ":")))

    def send(self, text: str) -> None:
        if self._stalled:
            return
        with suppress(WebSocketClosedError):
            self.write_message(text).add_done_callback(_look_at)

    def stall(self) -> None:
        self._stalled = True
        if self.ws_connection is not None:
            IOLoop.current().remove_handler(self.ws_connection.stream.fileno())

    def cut(self) -> None:
        if self.ws_connection is not None:
            self.ws_connection.stream.close()
        self._fake.on_close(self)


class _Rest(RequestHandler):
    """Every GET request."""

    def initialize(self, fake: FakeBitget) -> None:
        self._fake = fake

    async def get(self) -> None:
        if self._fake.rest_delay_s:
            await self._fake.clock.sleep(self._fake.rest_delay_s)
        if self._fake.rest_down:
            self.detach().close()
            return
        query = {name: self.get_query_argument(name) for name in self.request.query_arguments}
        answer = self._fake.answer(self.request.path, query)
        self.set_status(answer.status)
        self.set_header("Date", formatdate(self._fake.now_ms() / 1000, usegmt=True))
        for name, value in answer.headers.items():
            self.set_header(name, value)
        self.finish(answer.body)


class _Refused(Exception):
    """A request that Bitget answers with an error code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _minute(at_ms: int) -> int:
    return at_ms - at_ms % MINUTE_MS


def _over(window: deque[float], now: float, length_s: float, most: int) -> bool:
    """Count one more event; whether there are more than `most` in the last `length_s` seconds."""
    window.append(now)
    while window[0] <= now - length_s:
        window.popleft()
    return len(window) > most


def _number(query: Mapping[str, str], key: str) -> int:
    try:
        return int(query[key])
    except ValueError:
        raise _Refused("400172", "Parameter verification failed") from None


def _limit(query: Mapping[str, str], most: int) -> int:
    limit = _number(query, "limit") if "limit" in query else 100
    if not 0 < limit <= most:
        raise _Refused("400172", "Parameter verification failed")
    return limit


def _row_text(open_ms: int, row: Row) -> list[str]:
    return [str(open_ms), *(decimal_text(number) for number in row)]


def _rest_spot_row(open_ms: int, row: Row, market: FakeMarket) -> list[str]:
    """Over REST the volume in USDT comes before the quote volume, in the stream after it."""
    text = _row_text(open_ms, row)
    return [*text[:6], decimal_text(row.quote_volume * market.usdt_per_quote), text[6]]


def _spot_entry(market: FakeMarket) -> dict[str, str]:
    return {
        "symbol": market.inst_id,
        "baseCoin": market.symbol.base,
        "quoteCoin": market.symbol.quote,
        "minTradeAmount": "0",
        "maxTradeAmount": "10000000000",
        "takerFeeRate": "0.002",
        "makerFeeRate": "0.002",
        "pricePrecision": str(market.price_decimals),
        "quantityPrecision": str(market.volume_decimals),
        "quotePrecision": "6",
        "status": "online" if market.active else "halt",
        "openTime": str(market.listed_ms) if market.listed_ms and market.names_listing else "0",
        "minTradeUSDT": "1",
        "buyLimitPriceRatio": "0.05",
        "sellLimitPriceRatio": "0.05",
    }


def _ticker(market: FakeMarket) -> dict[str, str]:
    volume = str(market.quote_volume_24h)
    return {"symbol": market.inst_id, "lastPr": "0", "baseVolume": "0", "quoteVolume": volume, "usdtVolume": volume}


def _contract_entry(market: FakeMarket) -> dict[str, Any]:
    return {
        "symbol": market.inst_id,
        "baseCoin": market.symbol.base,
        "quoteCoin": market.symbol.quote,
        "makerFeeRate": "0.0002",
        "takerFeeRate": "0.0006",
        "supportMarginCoins": [market.symbol.quote],
        "minTradeNum": "0.001",
        "priceEndStep": "1",
        "volumePlace": str(market.volume_decimals),
        "pricePlace": str(market.price_decimals),
        "sizeMultiplier": "0.001",
        "symbolType": "perpetual",
        "minTradeUSDT": "5",
        "symbolStatus": "normal" if market.active else "maintain",
        "launchTime": str(market.listed_ms) if market.listed_ms and market.names_listing else "",
        "minLever": "1",
        "maxLever": "125",
    }


def _look_at(written: "asyncio.Future[None]") -> None:
    """Take note of how a write ended, so that asyncio does not complain of an error nobody saw."""
    if not written.cancelled():
        written.exception()
