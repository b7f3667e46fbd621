"""Tests for the author of a plugin, to be collected by pytest."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from candled.errors import ExchangeError
from candled.exchange import Candles, Exchange, SocketFeed
from candled.model import Symbol
from candled.plugins import check_exchange

from .modules import make_exchange
from .recording import Recording, read_recording
from .replayed import RecordedClock

if TYPE_CHECKING:
    from .kit import Result

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
        """Make a test for each frame, and for each check of the conformance kit if there are recordings."""
        if "frame" in metafunc.fixturenames:
            metafunc.parametrize("frame", _GARBAGE)
        if "check" in metafunc.fixturenames:
            from .kit import CHECKS  # the kit reads much of the ingest

            metafunc.parametrize("check", [check.name for check in CHECKS] if self._list_files() else [])

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

    def test_conformance(self, check: str) -> None:
        """Run one check of the conformance kit. It is skipped only with a reason of the plugin."""
        from .kit import format_result

        result = _results_of(self.exchange, self.settings, tuple(self._list_files()))[check]
        if result.outcome == "skipped":
            _skip(result.detail)
        assert result.outcome != "failed", format_result(result)

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
def _results_of(exchange: type[Exchange], settings: tuple[str, ...], files: tuple[Path, ...]) -> "dict[str, Result]":
    from .kit import run_checks

    recordings: dict[str, Recording] = {file.name: read_recording(file) for file in files}
    return {result.check.name: result for result in run_checks(exchange, recordings, settings)}


def _skip(reason: str) -> None:
    import pytest  # only tests need it

    pytest.skip(reason)
