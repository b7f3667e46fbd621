"""The chart page, and the clients of the API documentation, in a real browser against the real daemon."""

import json
import mimetypes
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import pytest

from candled.model import parse_iso_ms
from tests.system.daemon import Daemon

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip(
        "needs Chromium: apt-get install --no-install-recommends chromium fonts-liberation", allow_module_level=True
    )
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[test]'")
websockets = pytest.importorskip("websockets.sync.client", reason="needs websockets: pip install -e '.[test]'")

pytestmark = pytest.mark.browser

SECONDS = float(os.environ.get("CANDLED_TEST_BROWSER_SECONDS", "40"))
HARNESS = Path(__file__).parent / "browser"
MOST_BARS = 1000  # of one `initial`
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
LIVE = "document.getElementById('state').dataset.state === 'live'"
LOST = "document.getElementById('state').dataset.state === 'lost'"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return {
        "exchanges": {"replay": {"symbols": ["BTC/USDT", "ETH/USDT"], "speed": 20}},
        "store": {"url": f"sqlite:///{tmp_path / 'candled.db'}"},
    }


@pytest.fixture
def daemon(tmp_path: Path, config: dict[str, Any]) -> Iterator[Daemon]:
    with Daemon(tmp_path) as daemon:
        daemon.start(config)
        yield daemon


class Tab:
    """One page with everything it asked for and complained about."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.page = browser.new_page(**options)
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


def initial(daemon: Daemon, interval: str, bars: int, symbol: str = "BTC/USDT") -> list[dict[str, Any]]:
    """The bars of a fresh subscription."""
    with websockets.connect(daemon.ws_url) as socket:
        subscription = {"type": "subscribe", "symbol": symbol, "interval": interval, "initialBars": bars}
        socket.send(json.dumps(subscription))
        message = json.loads(socket.recv(timeout=10))
        assert message["type"] == "initial", message
        received: list[dict[str, Any]] = message["bars"]
        return received


def wait_until_equal(shown: Callable[[], list[Any]], fresh: Callable[[int], list[Any]], within_s: float = 20.0) -> None:
    """The running bar moves between the two readings, so they are repeated until both fall between two moves."""
    deadline = time.monotonic() + within_s
    while True:
        theirs = shown()[-MOST_BARS:]
        ours = fresh(len(theirs))
        if theirs == ours:
            return
        if time.monotonic() > deadline:
            assert theirs == ours
        time.sleep(0.05)


def drawn(bars: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Bars of the wire or of the chart page, in one form."""
    return [(_seconds(bar["time"]), *(bar[key] for key in ("open", "high", "low", "close"))) for bar in bars]


def _seconds(at: str | float) -> float:
    return parse_iso_ms(at) / 1000 if isinstance(at, str) else at


# ---------------------------------------------------------------- the chart page


def test_the_page_draws_a_moving_chart_from_its_own_server_only(browser: Any, daemon: Daemon) -> None:
    with Tab(browser) as tab:
        tab.page.goto(daemon.url + "/")
        tab.page.wait_for_function(LIVE)
        before, picture = tab.bars(), tab.page.locator("#chart").screenshot()
        tab.page.wait_for_function(f"candled.bars().length >= {len(before) + 2}")
        after = tab.bars()
        assert after[: len(before) - 1] == before[:-1]
        assert tab.page.locator("#chart").screenshot() != picture
        assert [bar["time"] for bar in after] == sorted({bar["time"] for bar in after})
        wait_until_equal(lambda: drawn(tab.bars()), lambda count: drawn(initial(daemon, "1m", count)))
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
        wait_until_equal(lambda: drawn(tab.bars()), lambda count: drawn(initial(daemon, "1m", count, "ETH/USDT")))
        # what the browser itself prints while nobody listens
        assert [text for text in tab.problems if not re.match("WebSocket connection to .* failed", text)] == []


def test_market_and_interval_are_chosen_by_keyboard_and_kept_in_the_address(browser: Any, daemon: Daemon) -> None:
    with Tab(browser) as tab:
        tab.page.goto(daemon.url + "/#BTC/USDT/5m")
        tab.page.wait_for_function(LIVE)
        assert spacing(tab) == 300
        tab.page.focus("input[value='5m']")
        tab.page.keyboard.press("ArrowRight")
        tab.page.wait_for_function("candled.bars().length > 1 && " + LIVE)
        assert spacing(tab) == 900
        tab.page.select_option("#market", "ETH/USDT")
        tab.page.wait_for_function("candled.bars().length > 1 && " + LIVE)
        assert tab.page.url == daemon.url + "/#ETH/USDT/15m"
        tab.page.reload()
        tab.page.wait_for_function("candled.bars().length > 1 && " + LIVE)
        assert tab.page.input_value("#market") == "ETH/USDT"
        wait_until_equal(lambda: drawn(tab.bars()), lambda count: drawn(initial(daemon, "15m", count, "ETH/USDT")))
        assert tab.problems == []


def spacing(tab: Tab) -> int:
    """Seconds between the last two bars."""
    older, newer = tab.bars()[-2:]
    return int(newer["time"] - older["time"])


def test_a_market_that_is_not_served_is_said_and_another_is_shown(browser: Any, daemon: Daemon) -> None:
    with Tab(browser) as tab:
        tab.page.goto(daemon.url + "/#DOGE/USDT/5m")
        tab.page.wait_for_function(LIVE)
        assert "DOGE/USDT is not served here; this is BTC/USDT." in tab.page.inner_text("#problem")
        tab.page.click("#problem-close")
        assert not tab.page.is_visible("#problem")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone_in_light_and_dark(browser: Any, daemon: Daemon, scheme: str) -> None:
    with Tab(browser, viewport={"width": 360, "height": 640}, color_scheme=scheme) as tab:
        tab.page.goto(daemon.url + "/")
        tab.page.wait_for_function(LIVE)
        assert tab.page.evaluate("document.documentElement.scrollWidth") == 360
        assert tab.page.evaluate("document.documentElement.scrollHeight") == 640
        chart = tab.page.locator("#chart").bounding_box()
        assert chart["height"] > 250
        ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 26)"}[scheme]


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


def test_what_the_documented_clients_show_in_the_end_is_what_a_fresh_subscription_gets(
    browser: Any, daemon: Daemon
) -> None:
    made = {"client.js": documented_client(daemon), "hook.js": documented_hook(daemon)}
    with harness(made) as address, Tab(browser) as client, Tab(browser) as hook:
        client.page.goto(address + "client.html")
        hook.page.goto(address + "hook.html")
        for tab in (client, hook):
            tab.page.wait_for_selector("#bars li")
        counts = len(client.listed()), len(hook.listed())

        client.page.wait_for_timeout(SECONDS * 1000)

        wait_until_equal(client.listed, lambda count: initial(daemon, "5m", count))
        wait_until_equal(hook.listed, lambda count: initial(daemon, "1m", count))
        # a market minute takes three seconds
        assert len(client.listed()) - counts[0] >= int(SECONDS / 15) - 1
        assert len(hook.listed()) - counts[1] >= int(SECONDS / 3) - 2
        assert client.problems == hook.problems == []
