"""Tests for the author of a plugin, to be collected by pytest."""

import asyncio
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from candled.errors import ExchangeError
from candled.exchange import Candles, Exchange, SocketFeed
from candled.model import Symbol
from candled.plugins import check_exchange

from .findings import CHECKS, FINDINGS, Finding, judge_replay
from .modules import make_exchange
from .recording import read_recording
from .replayed import RecordedClock, replay_recording

_NOW_MS = 1_788_000_000_000  # in 2026
_SYMBOL = Symbol("BASE", "QUOTE")  # a plugin can ask for any symbol
# Frames that no exchange documents.
_GARBAGE = ("{", "[]", "null", "{}", "[[[[", '{"candled":[1,2]}')


class ExchangeTests:
    """The tests of one exchange, which `exchange_tests` chooses."""

    exchange: ClassVar[type[Exchange]]
    #: The settings of the exchange that differ from its defaults, as `KEY=VALUE`.
    settings: ClassVar[tuple[str, ...]] = ()
    #: The folder with recordings. None: there are no tests of recordings.
    recordings: ClassVar[Path | None] = None

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Make a test for each frame, and for each finding of each recording."""
        if "frame" in metafunc.fixturenames:
            metafunc.parametrize("frame", _GARBAGE)
        if "file" in metafunc.fixturenames:
            files = self._list_files()
            metafunc.parametrize("file", files, ids=[file.name for file in files])
            metafunc.parametrize("name", FINDINGS)

    def test_the_plugin_keeps_the_rules_of_the_hooks(self) -> None:
        """Check the class, and the defaults of its settings."""
        check_exchange(self.exchange)
        self._make_exchange()

    def test_it_subscribes_with_text_frames(self) -> None:
        """Check the frames that subscribe."""
        frames = self._make_feed().subscribe([_SYMBOL])
        assert frames, "expected one frame or more, got none"
        assert all(isinstance(frame, str) for frame in frames), f"expected text, got {frames!r}"

    def test_a_frame_that_is_not_documented_is_an_exchange_error(self, frame: str) -> None:
        """Read a frame of no exchange. A plugin may ignore it, too."""
        try:
            events = self._make_feed().read_frame(frame)
        except ExchangeError:
            return
        assert not any(isinstance(event, Candles) for event in events), f"expected no candle, got {events!r}"

    def test_there_is_a_recording(self) -> None:
        """Look for recordings: without one, the tests show little."""
        command = f"candled plugin record {self.exchange.name} BTC/USDT --minutes 2"
        found = self.recordings is None or self._list_files()
        assert found, f"expected a recording in {self.recordings}, got none: make one with `{command}`"

    def test_recording(self, file: Path, name: str) -> None:
        """Check one finding of one recording."""
        finding = _find(self.exchange, self.settings, file)[name]
        if finding.is_right is None:
            _skip(finding.detail or "the recording does not show it")
        assert finding.is_right, f"{finding.detail}; {CHECKS[name][1]}"

    def _list_files(self) -> list[Path]:
        return [] if self.recordings is None else sorted(self.recordings.glob("*.jsonl*"))

    def _make_exchange(self) -> Exchange:
        made = make_exchange(self.exchange, self.settings, RecordedClock(_NOW_MS))
        made.resume_after(None)
        return made

    def _make_feed(self) -> SocketFeed:
        feed = self._make_exchange().make_feed([_SYMBOL])
        if not isinstance(feed, SocketFeed):
            _skip("the feed is no SocketFeed")
        assert isinstance(feed, SocketFeed)
        return feed


def exchange_tests(
    exchange: type[Exchange], *, recordings: Path | None = None, settings: Iterable[str] = ()
) -> type[ExchangeTests]:
    """Return a class of tests for pytest, about a plugin's exchange.

    Assign it to a name that begins with `Test`. `recordings` is a folder with files of `candled plugin record`, each of
    which is played to the plugin. `settings` are assignments such as `rest_url=https://…`.
    """
    members = {"exchange": exchange, "recordings": recordings, "settings": tuple(settings)}
    return type("ExchangeTests", (ExchangeTests,), members)


@cache
def _find(exchange: type[Exchange], settings: tuple[str, ...], file: Path) -> dict[str, Finding]:
    """Play a recording; return the findings by their names."""
    recording, clock = read_recording(file), RecordedClock()
    made = make_exchange(exchange, settings, clock)
    replay = asyncio.run(replay_recording(recording, made, clock))
    return {finding.name: finding for finding in judge_replay(recording, made, replay)}


def _skip(reason: str) -> None:
    import pytest  # only tests need it

    pytest.skip(reason)
