"""The chart page, and the clients of the API documentation, in a real browser against the real daemon."""

import json
import mimetypes
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest

from candled.model import parse_iso_ms
from tests import deadlines
from tests.system.daemon import Daemon
from tests.tiers import CHROMIUM_OPTIONS

playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[test]'")
websockets = pytest.importorskip("websockets.sync.client", reason="needs websockets: pip install -e '.[test]'")

pytestmark = pytest.mark.usefixtures("browser", "daemon")

SECONDS = float(os.environ.get("CANDLED_TEST_BROWSER_SECONDS", "0"))
HARNESS = Path(__file__).parent / "browser"
MOST_BARS = 1000  # of one `initial`
RECORDINGS = {
    "BTC/USDT": "bundled:binance-spot-btcusdt",
    "ETH/USDT": "bundled:bitget-futures-ethusdt",
    "BTC/USDT:USDT": "bundled:bitget-futures-ethusdt",
}
LIVE = "document.getElementById('state').dataset.state === 'live'"
LOST = "document.getElementById('state').dataset.state === 'lost'"


@pytest.fixture(scope="module")
def browser(browser: None) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(**CHROMIUM_OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def config(folder: Path) -> dict[str, Any]:
    # so that there is a second exchange
    unreachable = {
        "ws_url": "ws://127.0.0.1:9/",
        "rest_url": "http://127.0.0.1:9",
    }
    return {
        "exchanges": {
            "replay": {"symbols": list(RECORDINGS), "files": RECORDINGS, "speed": 20},
            "bitget": {"symbols": ["LTC/USDT", "BTC/USDT"], **unreachable},
        },
        "ingest": {"backfill": "2d"},
        "store": {"url": f"sqlite:///{folder / 'candled.db'}"},
        "limits": {"api_requests": 10_000},
    }


@pytest.fixture(scope="module")
def daemon(folder: Path, config: dict[str, Any]) -> Iterator[Daemon]:
    with Daemon(folder) as daemon:
        daemon.start(config)
        yield daemon


class Tab:
    """One page with everything it asked for and complained about."""

    def __init__(self, browser: Any, **options: Any) -> None:
        # Playwright's `wait_for_function` needs eval, which the page's policy forbids
        self.page = browser.new_page(**{"bypass_csp": True, **options})
        self.page.set_default_timeout(15_000)
        self.requests: list[str] = []
        self.problems: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._note)

    def __enter__(self) -> "Tab":
        return self

    def __exit__(self, *_: object) -> None:
        self.page.close()

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    @property
    def hosts(self) -> set[str]:
        return {urlsplit(url).netloc for url in self.requests}

    def bars(self) -> list[dict[str, Any]]:
        """The bars the chart page draws: `time` in seconds, open, high, low, close."""
        bars: list[dict[str, Any]] = self.page.evaluate("candled.bars()")
        return bars

    def listed(self) -> list[dict[str, Any]]:
        """The bars a harness page lists."""
        texts = self.page.evaluate("Array.from(document.querySelectorAll('#bars li'), (item) => item.textContent)")
        return [json.loads(text) for text in texts]


def subscribed(daemon: Daemon, interval: str, bars: int, symbol: str = "BTC/USDT") -> list[dict[str, Any]]:
    """The bars of a fresh subscription as of its first update, which all clients of the room are sent together."""
    with websockets.connect(daemon.ws_url) as socket:
        subscription = {"type": "subscribe", "symbol": symbol, "interval": interval, "initialBars": bars}
        socket.send(json.dumps(subscription))
        message = json.loads(socket.recv(timeout=60))
        assert message["type"] == "initial", message
        received = {bar["time"]: bar for bar in message["bars"]}
        while (message := json.loads(socket.recv(timeout=60)))["type"] != "update":
            pass
        received[message["bar"]["time"]] = message["bar"]
        return [received[time] for time in sorted(received)][-bars:]


def wait_until_equal(shown: Callable[[], list[Any]], fresh: Callable[[int], list[Any]], within_s: float = 60.0) -> None:
    """The forming bar moves once a second, so both are read again until both readings fall between two moves.

    If no two do, as on a slow machine, all bars that both have but the two newest are compared. Bars begin with their
    times.
    """
    deadline = deadlines.now() + within_s
    while True:
        expected = fresh(min(len(shown()), MOST_BARS))
        actual = shown()[-len(expected) :]
        if actual == expected:
            return
        if deadlines.now() > deadline:
            known = {bar[0]: bar for bar in expected}
            both = [(bar, known[bar[0]]) for bar in actual[1:-2] if bar[0] in known]
            assert len(both) > len(actual) / 2
            assert [pair for pair in both if pair[0] != pair[1]] == []
            return
        time.sleep(0.1)


def drawn(bars: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Bars of the wire or of the chart page, in one form."""
    return [(_seconds(bar["time"]), *(bar[key] for key in ("open", "high", "low", "close"))) for bar in bars]


def _seconds(at: str | float) -> float:
    return parse_iso_ms(at) / 1000 if isinstance(at, str) else at


# ---------------------------------------------------------------- the chart page


def test_the_page_draws_a_moving_chart_from_its_own_server_only(browser: Any, daemon: Daemon) -> None:
    with Tab(browser, bypass_csp=False) as tab:
        tab.page.goto(daemon.url + "/")
        tab.page.locator('#state[data-state="live"]').wait_for()
        assert tab.page.locator("#simulated").inner_text() == "Replay"
        before, picture = tab.bars(), tab.page.locator("#chart").screenshot()
        tab.page.wait_for_timeout(3000)  # a market minute
        deadline = deadlines.now() + 60
        while (after := tab.bars())[-1]["time"] <= before[-1]["time"]:
            assert deadlines.now() < deadline, "no new bar"
            tab.page.wait_for_timeout(100)
        # early in a week the bars of the week before come too, with an `initial` that may begin elsewhere
        shown = {bar["time"]: bar for bar in after}
        both = [bar for bar in before[:-1] if bar["time"] in shown]
        assert both
        assert [shown[bar["time"]] for bar in both] == both
        assert tab.page.locator("#chart").screenshot() != picture
        assert [bar["time"] for bar in after] == sorted({bar["time"] for bar in after})
        wait_until_equal(lambda: drawn(tab.bars()), lambda count: drawn(subscribed(daemon, "1m", count)))
        assert tab.hosts == {urlsplit(daemon.url).netloc}
        assert tab.problems == []


def test_the_page_returns_by_itself_when_the_daemon_was_restarted(
    browser: Any, daemon: Daemon, config: dict[str, Any]
) -> None:
    with Tab(browser) as tab:
        tab.page.goto(daemon.url + "/#ETH/USDT/1m")
        tab.page.wait_for_function(LIVE)
        assert tab.problems == []
        before = tab.bars()
        assert daemon.stop() == 0
        tab.page.wait_for_function(LOST)
        assert "trying again in" in tab.page.inner_text("#state")
        daemon.start(config)
        tab.page.wait_for_function(LIVE, timeout=60_000)
        tab.page.wait_for_function(f"candled.bars().at(-1).time > {before[-1]['time']}")
        wait_until_equal(lambda: drawn(tab.bars()), lambda count: drawn(subscribed(daemon, "1m", count, "ETH/USDT")))
        # except the lines of the browser itself while no server listens
        assert [text for text in tab.problems if not re.match("WebSocket connection to .* failed", text)] == []


def test_market_and_interval_are_chosen_by_keyboard_and_kept_in_the_address(browser: Any, daemon: Daemon) -> None:
    with Tab(browser) as tab:
        tab.page.goto(daemon.url + "/#BTC/USDT/5m")
        tab.page.wait_for_function(LIVE)
        assert spacing(tab) == 300
        tab.page.keyboard.press("]")
        tab.page.wait_for_function("candled.bars().length > 1 && " + LIVE)
        assert spacing(tab) == 900
        tab.page.focus("input[value='15m']")
        tab.page.keyboard.press("ArrowLeft")
        tab.page.wait_for_function("candled.bars().length > 1 && " + LIVE)
        assert spacing(tab) == 300
        tab.page.keyboard.press("3")
        tab.page.keyboard.press("/")
        tab.page.keyboard.type("eth")
        tab.page.keyboard.press("Enter")
        tab.page.wait_for_function("candled.bars().length > 1 && " + LIVE)
        assert tab.page.url == daemon.url + "/#ETH/USDT/15m"
        tab.page.reload()
        tab.page.wait_for_function("candled.bars().length > 1 && " + LIVE)
        assert tab.page.inner_text("#market-symbol") == "ETH/USDT"
        wait_until_equal(lambda: drawn(tab.bars()), lambda count: drawn(subscribed(daemon, "15m", count, "ETH/USDT")))
        assert tab.problems == []


def spacing(tab: Tab) -> int:
    """Seconds between the last two bars."""
    older, newer = tab.bars()[-2:]
    return int(newer["time"] - older["time"])


def test_a_market_is_found_by_letters_of_its_symbol_or_exchange(browser: Any, daemon: Daemon) -> None:
    with Tab(browser) as tab:
        tab.page.goto(daemon.url + "/")
        tab.page.wait_for_function(LIVE)
        tab.page.click("#market")
        assert found(tab, "") == ["BTC/USDT", "ETH/USDT", "BTC/USDT:USDT", "bitget:LTC/USDT", "bitget:BTC/USDT"]
        assert found(tab, "btc") == ["BTC/USDT", "BTC/USDT:USDT", "bitget:BTC/USDT"]
        assert found(tab, "btc/usdt:") == found(tab, "btcusdtusdt") == ["BTC/USDT:USDT"]
        assert found(tab, "bitget btc") == ["bitget:BTC/USDT"]
        assert found(tab, "ltcusdt") == ["bitget:LTC/USDT"]
        assert found(tab, "doge") == []
        assert tab.page.inner_text("#search-more") == "No market fits"
        tab.page.keyboard.press("Escape")
        assert not tab.page.is_visible("#search")
        for name in ("ETH/USDT", "BTC/USDT:USDT"):
            tab.page.click("#market")
            tab.page.click(f"#search-list li[data-name='{name}']")
            tab.page.wait_for_function("candled.bars().length > 1 && " + LIVE)
            assert tab.page.url == daemon.url + f"/#{name}/1m"
        tab.page.reload()
        tab.page.wait_for_function("candled.bars().length > 1 && " + LIVE)
        assert tab.page.inner_text("#market-symbol") == "BTC/USDT:USDT"
        assert tab.problems == []


def found(tab: Tab, text: str) -> list[str]:
    """The markets that the search window lists for a text."""
    tab.page.fill("#search-text", text)
    names: list[str] = tab.page.eval_on_selector_all("#search-list li", "all => all.map((item) => item.dataset.name)")
    return names


def test_a_market_that_is_not_served_is_reported_and_another_is_shown(browser: Any, daemon: Daemon) -> None:
    with Tab(browser) as tab:
        tab.page.goto(daemon.url + "/#DOGE/USDT/5m")
        tab.page.wait_for_function(LIVE)
        assert "DOGE/USDT is not served here; this is BTC/USDT." in tab.page.inner_text("#problem")
        tab.page.click("#problem-close")
        assert not tab.page.is_visible("#problem")


def test_a_feed_without_candles_is_shown_as_stale(browser: Any, daemon: Daemon) -> None:
    with Tab(browser) as tab:
        tab.page.goto(daemon.url + "/#bitget:LTC/USDT/5m")
        tab.page.wait_for_function("document.getElementById('state').dataset.state === 'stale'")
        assert re.fullmatch(r"Stale since (\d{4}-\d\d-\d\d )?\d\d:\d\d", tab.page.inner_text("#state"))
        assert "The stream is not connected." in tab.page.get_attribute("#state", "title")
        assert tab.page.inner_text("#price") == "–"


def test_scrolling_back_loads_history_to_its_beginning_and_says_so(browser: Any, daemon: Daemon) -> None:
    with Tab(browser) as tab:
        tab.page.goto(daemon.url + "/#BTC/USDT/5m")
        tab.page.wait_for_function(LIVE)
        count = len(tab.bars())
        tab.page.wait_for_function("document.getElementById('newest').hidden")
        for _ in range(60):
            tab.page.keyboard.press("Home")
            if "Nothing older exists" in tab.page.inner_text("#past"):
                break
            tab.page.wait_for_timeout(50)
        assert tab.page.inner_text("#past").startswith("Nothing older exists than ")
        assert len(tab.bars()) > count
        times = [bar["time"] for bar in tab.bars()]
        assert times == [times[0] + 300 * number for number in range(len(times))]
        over = len(times) - 1
        everything = drawn(candles(daemon, "BTC/USDT", "5m"))[:over]
        wait_until_equal(lambda: drawn(tab.bars())[:over], lambda _: everything)
        assert tab.page.is_visible("#newest")
        tab.page.keyboard.press("End")
        tab.page.wait_for_function("document.getElementById('newest').hidden")
        assert tab.problems == []


def candles(daemon: Daemon, symbol: str, interval: str) -> list[dict[str, Any]]:
    """Every bar there is, by HTTP."""
    path: str | None = f"/api/candles?symbol={symbol}&interval={interval}&from=0&limit=1000"
    bars: list[dict[str, Any]] = []
    while path:
        page = daemon.get(path)
        bars += page["bars"]
        path = page["next"] and urljoin(path, page["next"])
    return bars


def test_coverage_tells_day_by_day_what_is_missing_and_why(browser: Any, tmp_path: Path) -> None:
    recording = tmp_path / "quiet.csv"
    recording.write_text("time_ms,open,high,low,close,volume\n" + "".join(map(row, range(1440))))
    config = {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"], "files": {"BTC/USDT": str(recording)}}},
        "ingest": {"backfill": "3d"},
        "store": {"url": f"sqlite:///{tmp_path / 'candled.db'}"},
    }
    with Daemon(tmp_path) as daemon, Tab(browser) as tab:
        daemon.start(config)
        deadline = deadlines.now() + 20
        while daemon.get("/health?verbose")["exchanges"]["replay"]["symbols"]["BTC/USDT"].get("missingMinutes", 1):
            assert deadlines.now() < deadline
            time.sleep(0.2)
        tab.page.goto(daemon.url + "/#BTC/USDT/1m/coverage")
        tab.page.wait_for_selector("#months button")
        facts = daemon.get("/api/coverage?symbol=BTC/USDT")["days"]
        assert tab.page.locator("#months button").count() == len(facts)
        name = facts[-2]["day"]  # yesterday
        tab.page.focus("#months button[tabindex='0']")
        tab.page.keyboard.press("End")
        tab.page.keyboard.press("ArrowLeft")
        assert tab.page.inner_text("#day h3") == name
        assert tab.page.inner_text("#day p") == "1,403 of 1,440 minutes, 1 gap."
        gap = tab.page.inner_text("#day li")
        assert gap.split("\n") == [f"{name} 05:00 – 05:37", "37 minutes", "nothing was traded"]
        assert tab.page.get_attribute(f"#months [data-day='{name}']", "data-level") == "calm"
        assert tab.hosts == {urlsplit(daemon.url).netloc}
        assert tab.problems == []


def row(minute: int) -> str:
    """A minute of a recorded day that was silent from 05:00 to 05:37."""
    if 300 <= minute < 337:
        return ""
    return f"{1_751_846_400_000 + minute * 60_000},100,101,99,100,1\n"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(browser: Any, daemon: Daemon, scheme: str) -> None:
    with Tab(browser, viewport={"width": 360, "height": 640}, color_scheme=scheme) as tab:
        tab.page.goto(daemon.url + "/")
        tab.page.wait_for_function(LIVE)
        assert fits(tab)
        chart = tab.page.locator("#chart").bounding_box()
        assert chart["height"] > 250
        assert ground(tab) == GROUND[scheme]
        tab.page.keyboard.press("c")
        tab.page.wait_for_selector("#months button")
        assert fits(tab)
        tab.page.click("#theme")
        assert ground(tab) == GROUND["dark" if scheme == "light" else "light"]


GROUND = {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 26)"}


def ground(tab: Tab) -> str:
    return str(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))


def fits(tab: Tab) -> bool:
    """Whether nothing of the page lies outside of a phone's window."""
    root = "document.documentElement"
    return bool(tab.page.evaluate(f"{root}.scrollWidth === 360 && {root}.scrollHeight === 640"))


# ---------------------------------------------------------------- the clients of the documentation


def replaced(source: str, changes: dict[str, str]) -> str:
    """Make each change exactly once, so that a changed example cannot slip through."""
    for old, new in changes.items():
        assert source.count(old) == 1, f"expected once: {old!r}"
        source = source.replace(old, new)
    return source


def documented_client(daemon: Daemon) -> str:
    return replaced(
        (HARNESS / "documented-client.js").read_text("utf-8"),
        {
            "ws://localhost:7000": f"ws://127.0.0.1:{daemon.port}",
            "// Initialize your chart with message.bars": "chart.initialize(message.bars);",
            "// Update your chart with the new/updated candle": "chart.update(message.bar);",
        },
    )


def documented_hook(daemon: Daemon) -> str:
    source = (HARNESS / "documented-hook.ts").read_text("utf-8")
    without_interface, count = re.subn(r"interface UseWebSocketCandlesOptions \{.*?\n\}\n", "", source, flags=re.DOTALL)
    assert count == 1
    return replaced(
        without_interface,
        {
            "ws://localhost:7000": f"ws://127.0.0.1:{daemon.port}",
            "import { useEffect, useRef, useState } from 'react';": "const { useEffect, useRef, useState } = React;",
            "export const": "const",
            "}: UseWebSocketCandlesOptions)": "})",
            "useState<Candle[]>": "useState",
            "useRef<WebSocket | null>": "useRef",
        },
    )


@contextmanager
def harness(made: dict[str, str]) -> Iterator[str]:
    """Serve the harness folder, and what is `made` from it, from an origin of its own; the address ends with `/`.

    A real server, because Chromium lets no page into the local network that did not come from there.
    """
    files = {path.relative_to(HARNESS).as_posix(): path.read_text("utf-8") for path in HARNESS.rglob("*.*")}

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.removeprefix("/")
            text = (files | made).get(name)
            self.send_response(HTTPStatus.OK if text is not None else HTTPStatus.NO_CONTENT)
            self.send_header("Content-Type", mimetypes.guess_type(name)[0] or "text/plain")
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_the_page_of_the_tutorial_draws_loads_history_and_returns_after_a_restart(
    browser: Any, daemon: Daemon, config: dict[str, Any]
) -> None:
    tutorial = (HARNESS.parents[2] / "docs" / "tutorial.md").read_text("utf-8")
    chart = tutorial.split("```html\n")[1].split("```")[0].replace("localhost:7000", f"127.0.0.1:{daemon.port}")
    with harness({"chart.html": chart}) as address, Tab(browser) as tab:
        tab.page.goto(address + "chart.html")
        is_live = "document.getElementById('state').textContent === 'live'"
        tab.page.wait_for_function(is_live)
        assert tab.page.evaluate("stream.bars.length") >= 200
        tab.page.evaluate("stream.loadOlder(500)")
        assert tab.page.evaluate("stream.bars.length") >= 700
        assert tab.problems == []
        newest = tab.page.evaluate("stream.bar.time")
        assert daemon.stop() == 0
        tab.page.wait_for_function("document.getElementById('state').textContent === 'lost'")
        daemon.start(config)
        tab.page.wait_for_function(is_live, timeout=60_000)
        tab.page.wait_for_function(f"stream.bar.time > '{newest}'")
        wait_until_equal(
            lambda: drawn(tab.page.evaluate("stream.bars")), lambda count: drawn(subscribed(daemon, "1m", count))
        )
        assert tab.page.inner_text("#price") != ""


def test_what_the_documented_clients_show_in_the_end_is_what_a_fresh_subscription_gets(
    browser: Any, daemon: Daemon
) -> None:
    made = {"client.js": documented_client(daemon), "hook.js": documented_hook(daemon)}
    with harness(made) as address, Tab(browser) as client, Tab(browser) as hook:
        client.page.goto(address + "client.html")
        hook.page.goto(address + "hook.html")
        for tab in (client, hook):
            tab.page.wait_for_selector("#bars li", state="attached")  # hidden: a layout for each update costs seconds
        counts = len(client.listed()), len(hook.listed())
        # a market minute takes three seconds
        bars = max(1, int(SECONDS / 15) - 1), max(3, int(SECONDS / 3) - 2)

        client.page.wait_for_timeout(SECONDS * 1000)
        for tab, count in zip((client, hook), (counts[0] + bars[0], counts[1] + bars[1]), strict=True):
            listed = f"document.querySelectorAll('#bars li').length >= {count}"
            tab.page.wait_for_function(listed, timeout=60_000)

        wait_until_equal(client.listed, lambda count: subscribed(daemon, "5m", count))
        wait_until_equal(hook.listed, lambda count: subscribed(daemon, "1m", count))
        assert client.problems == hook.problems == []
