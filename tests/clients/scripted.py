"""A server that speaks the documented protocol over bars that the test moves by hand, and that fails on command."""

import asyncio
import contextlib
import json
import random
from collections import deque
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application, RequestHandler, StaticFileHandler
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from candled.api.catalog import tradingview_name
from candled.model import Interval, Symbol, iso_ms, parse_iso_ms

Bar = dict[str, Any]
Topic = tuple[str, str]  # symbol, interval

ROOT = Path(__file__).parents[2]
FOLDERS = {  # what a page of the tests may load from here
    "clients": ROOT / "clients" / "js",
    "pages": ROOT / "tests" / "clients" / "pages",
    "react": ROOT / "tests" / "system" / "browser" / "vendor",
    "vendor": ROOT / "candled" / "serve" / "static" / "vendor" / "lightweight-charts",
}
START_MS = parse_iso_ms("2026-10-05T00:00:00.000Z")  # a Monday
TRUTH = ("time", "open", "high", "low", "close", "volume")
NUMBERS = TRUTH[1:]
EXTRA = ("final", "rev", "src")


class Scripted:
    """One market price per topic, moved by `trade`, `open_next`, `correct` and `fill`; `fresh` is the truth.

    `extended` False: a server that knows nothing but the original protocol and ignores every other key.
    `silent` True: connections stay open and nothing is answered. `misorders` True: every update is followed by one
    of an older bar, as no server should send. `delay_s` holds back every message. `refuses` maps a topic to the
    error of its subscription.
    """

    def __init__(self, *, extended: bool = True, seed: int = 1) -> None:
        self.extended = extended
        self.silent = self.misorders = False
        self.delay_s = 0.0
        self.refuses: dict[Topic, tuple[str, int]] = {}
        self.requests: list[Bar] = []
        self.connections = 0
        self.state = ("live", START_MS)
        self._draw = random.Random(seed)
        self._bars: dict[Topic, list[Bar]] = {}
        self._log: list[tuple[str, int, Topic, str]] = []  # epoch, seq, topic, time of what changed
        self._epoch_names = (f"e{number}" for number in count(1))  # none is used again
        self._epochs = [next(self._epoch_names)]
        self._seq = 0
        self._handlers: set[_Handler] = set()
        self._http: HTTPServer | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self._port}/ws"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def connected(self) -> int:
        """How many clients are there now; `connections` counts all that ever were."""
        return len(self._handlers)

    # ------------------------------------------------------------ life

    async def start(self) -> "Scripted":
        """Listen, on the port of before if there was one."""
        facts = {"server": self}
        routes: list[Any] = [("/ws", _Handler, facts), (r"/((?:api|udf)/\w+)", _Facts, facts)]
        routes += [(f"/{name}/(.*)", StaticFileHandler, {"path": str(folder)}) for name, folder in FOLDERS.items()]
        self._http = HTTPServer(Application(routes))
        if self._port:
            self._http.listen(self._port, "127.0.0.1")
        else:
            listening, self._port = bind_unused_port()
            self._http.add_socket(listening)
        return self

    async def stop(self, *, bye_ms: int | None = None) -> None:
        """Stop listening and close every connection with 1001."""
        if self._http is None:
            return
        self._http.stop()
        for handler in list(self._handlers):
            if bye_ms is not None and self.extended:
                handler.send_json({"type": "bye", "reconnectAfterMs": bye_ms})
            handler.close(1001, "the server is stopping")
        await asyncio.sleep(0.02)
        self.drop()
        await self._http.close_all_connections()
        self._http = None
        await asyncio.sleep(0.02)

    def drop(self) -> None:
        """Cut every connection without a word."""
        for handler in list(self._handlers):
            handler.cut()

    def begin_epoch(self, *, forget: bool) -> None:
        """As a restart does; with `forget` what changed before is no longer known."""
        self._epochs.append(next(self._epoch_names))
        self._seq = 0
        if forget:
            self._log.clear()
            del self._epochs[:-1]

    # ------------------------------------------------------------ the market

    def make(self, symbol: str, interval: str, count: int) -> None:
        """Have `count` bars of a topic, the last one running."""
        step = Interval.parse(interval).ms
        bars = [self._bar(iso_ms(START_MS + at * step), 100.0 + at, at < count - 1) for at in range(count)]
        self._bars[symbol, interval] = bars

    def trade(self, topic: Topic) -> Bar:
        """Move the running bar."""
        bar = dict(self._bars[topic][-1])
        bar["close"] = round(bar["close"] + self._draw.uniform(-1, 1), 2)
        bar["high"], bar["low"] = max(bar["high"], bar["close"]), min(bar["low"], bar["close"])
        bar["volume"] = round(bar["volume"] + self._draw.uniform(0.01, 1), 4)
        return self._publish(topic, bar)

    def open_next(self, topic: Topic, *, skip: int = 0) -> Bar:
        """End the running bar and open the next; with `skip` that many bars are left out in between."""
        last = self._bars[topic][-1]
        self._publish(topic, last | {"final": True})
        step = Interval.parse(topic[1]).ms
        time = iso_ms(parse_iso_ms(last["time"]) + (1 + skip) * step)
        return self._publish(topic, self._bar(time, last["close"], False))

    def correct(self, topic: Topic, at: int) -> Bar:
        """Revise the bar at that place of the list."""
        bar = self._bars[topic][at]
        revised = bar | {"volume": round(bar["volume"] + 1, 4), "rev": bar["rev"] + 1, "src": "rest"}
        return self._publish(topic, revised)

    def fill(self, topic: Topic, time: str) -> Bar:
        """A bar that was missing came from REST after all."""
        return self._publish(topic, self._bar(time, 50.0, True) | {"src": "rest"})

    def turn(self, state: str) -> None:
        """Change the state of the feed."""
        self.state = (state, self.state[1] + 60_000)
        for handler in list(self._handlers):
            handler.send_states()

    def fresh(self, topic: Topic, count: int) -> list[Bar]:
        """What a fresh subscription would get."""
        return [{key: bar[key] for key in TRUTH} for bar in self._bars[topic][-count:]]

    def finals(self, topic: Topic) -> list[str]:
        """The opening times of the bars that are over."""
        return [bar["time"] for bar in self._bars[topic] if bar["final"]]

    # ------------------------------------------------------------ for the handlers

    def position(self) -> Bar:
        return {"epoch": self._epochs[-1], "seq": self._seq}

    def symbols(self) -> list[str]:
        return sorted({symbol for symbol, _ in self._bars})

    def bars(self, topic: Topic) -> list[Bar]:
        return self._bars[topic]

    def changed_since(self, topic: Topic, resume: Bar) -> list[Bar] | None:
        """The bars that changed after a position, or None if they are unknown."""
        if resume["epoch"] not in self._epochs:
            return None
        after = (self._epochs.index(resume["epoch"]), resume["seq"])
        times = {
            time for epoch, seq, about, time in self._log if (self._epochs.index(epoch), seq) > after and about == topic
        }
        return [bar for bar in self._bars[topic] if bar["time"] in times]

    def entered(self, handler: "_Handler") -> None:
        self.connections += 1
        self._handlers.add(handler)

    def left(self, handler: "_Handler") -> None:
        self._handlers.discard(handler)

    def _bar(self, time: str, price: float, final: bool) -> Bar:
        values = {"open": price, "high": price + 1, "low": price - 1, "close": price, "volume": 1.5}
        return {"time": time, **values, "final": final, "rev": 0, "src": "live"}

    def _publish(self, topic: Topic, bar: Bar) -> Bar:
        bars = self._bars[topic]
        newest = bars[-1]["time"]
        self._bars[topic] = sorted([*(one for one in bars if one["time"] != bar["time"]), bar], key=_time)
        self._seq += 1
        self._log.append((self._epochs[-1], self._seq, topic, bar["time"]))
        for handler in list(self._handlers):
            handler.publish(topic, bar, is_old=bar["time"] < newest)
        return bar


def _time(bar: Bar) -> str:
    return str(bar["time"])


class _Facts(RequestHandler):
    """What a datafeed asks for by HTTP, shortened to what it reads."""

    def initialize(self, server: Scripted) -> None:
        self.server = server

    def get(self, name: str) -> None:
        self.set_header("Access-Control-Allow-Origin", "*")
        match name:
            case "api/symbols":
                self.write({"symbols": [_market(symbol) for symbol in self.server.symbols()]})
            case "udf/config":
                exchanges = [{"value": "DEMO", "name": "Demo", "desc": "Demo"}]
                more = {"symbols_types": [{"name": "Crypto", "value": "crypto"}], "supports_search": True}
                self.write({"supported_resolutions": ["1", "5", "1D"], "exchanges": exchanges, **more})
            case "udf/time":
                self.write(str(START_MS // 1000))


def _market(symbol: str) -> Bar:
    names = {"exchange": "demo", "symbol": symbol, "ticker": f"DEMO:{tradingview_name(Symbol.parse(symbol))}"}
    return {**names, "priceDecimals": None if symbol.startswith("ETH") else 2, "volumeDecimals": None}


class _Handler(WebSocketHandler):
    def initialize(self, server: Scripted) -> None:
        self.server = server
        self.rooms: dict[Topic, Bar] = {}  # with the request that entered it
        self._delayed: deque[str] = deque()

    def check_origin(self, origin: str) -> bool:
        return True

    def open(self) -> None:
        self.server.entered(self)

    def on_close(self) -> None:
        self.server.left(self)

    def cut(self) -> None:
        self.server.left(self)
        if self.ws_connection is not None:
            self.ws_connection._abort()

    def send_json(self, message: Bar) -> None:
        if self.server.silent:
            return
        self._delayed.append(json.dumps(message))
        if self.server.delay_s or len(self._delayed) > 1:  # none overtakes another: a connection keeps their order
            asyncio.get_running_loop().call_later(self.server.delay_s, self._write_next)
        else:
            self._write_next()

    def _write_next(self) -> None:
        text = self._delayed.popleft()
        with contextlib.suppress(WebSocketClosedError):
            self.write_message(text).add_done_callback(lambda future: future.cancelled() or future.exception())

    # ------------------------------------------------------------ requests

    def on_message(self, message: str | bytes) -> None:
        request = json.loads(message)
        self.server.requests.append(request)
        if self.server.silent:
            return
        if not self.server.extended:
            request = {key: value for key, value in request.items() if key in _DOCUMENTED}
        match request["type"]:
            case "ping":
                self.send_json({"type": "pong"})
            case "subscribe":
                self._subscribe(request)
            case "unsubscribe":
                self.rooms.pop((request["symbol"], request["interval"]), None)
            case "history" if self.server.extended:
                self._history(request)
            case other:
                self.send_json({"type": "error", "message": f"Unknown message type: {other}"})

    def _subscribe(self, request: Bar) -> None:
        topic = request["symbol"], request["interval"]
        refusal = self.server.refuses.get(topic)
        if refusal:
            message, code = refusal
            extra = {"id": request["id"], "code": code, "temporary": code in (100, 111)} if "id" in request else {}
            self.send_json({"type": "error", "message": message, **extra})
            return
        if self.server.misorders:  # as no server should
            self.send_json(self._update(topic, self.server.bars(topic)[-1], request))
        if "id" in request:
            self.send_json({"type": "subscribed", "id": request["id"], "symbol": topic[0], "interval": topic[1]})
        changed = self.server.changed_since(topic, request["resume"]) if "resume" in request else None
        if changed is not None:
            body: Bar = {"type": "resumed", "recovered": True, "bars": self._shown(changed, request)}
        else:
            bars = self.server.bars(topic)[-request["initialBars"] :]
            recovered = {"recovered": False} if "resume" in request else {}
            body = {"type": "initial", **recovered, "bars": self._shown(bars, request)}
        self.send_json(body | {"symbol": topic[0], "interval": topic[1]} | self._position(request))
        self.rooms[topic] = request
        self.send_states()

    def _history(self, request: Bar) -> None:
        topic = request["symbol"], request["interval"]
        before = request.get("before", "9999")
        before = iso_ms(before) if isinstance(before, int) else before
        older = [bar for bar in self.server.bars(topic) if bar["time"] < before]
        page = older[-request["limit"] :]
        body = {"bars": self._shown(page, request), "end": len(page) == len(older)}
        self.send_json({"type": "history", "id": request["id"], "symbol": topic[0], "interval": topic[1], **body})

    # ------------------------------------------------------------ answers

    def publish(self, topic: Topic, bar: Bar, *, is_old: bool) -> None:
        request = self.rooms.get(topic)
        if request is None:
            return
        if not is_old:
            self.send_json(self._update(topic, bar, request))
            if self.server.misorders:
                self.send_json(self._update(topic, self.server.bars(topic)[-3] | {"close": 1.0}, request))
        elif request.get("corrections"):
            self.send_json(self._update(topic, bar, request) | {"type": "correction"})
        else:
            bars = self._shown(self.server.bars(topic)[-request["initialBars"] :], request)
            self.send_json({"type": "initial", "symbol": topic[0], "interval": topic[1], "bars": bars})

    def send_states(self) -> None:
        state, since_ms = self.server.state
        for symbol in {symbol for (symbol, _), request in self.rooms.items() if request.get("status")}:
            self.send_json({"type": "status", "symbol": symbol, "state": state, "since": iso_ms(since_ms)})

    def _update(self, topic: Topic, bar: Bar, request: Bar) -> Bar:
        (shown,) = self._shown([bar], request)
        return {"type": "update", "symbol": topic[0], "interval": topic[1], "bar": shown, **self._position(request)}

    def _shown(self, bars: Iterable[Bar], request: Bar) -> list[Bar]:
        keys = [*TRUTH, *(key for key in EXTRA if key in request.get("fields", ()))]
        shown = [{key: bar[key] for key in keys} for bar in bars]
        if request.get("numbers") != "string":
            return shown
        return [{key: str(value) if key in NUMBERS else value for key, value in bar.items()} for bar in shown]

    def _position(self, request: Bar) -> Bar:
        return self.server.position() if "seq" in request.get("fields", ()) else {}


_DOCUMENTED = {"type", "symbol", "interval", "initialBars", "exchange"}
