"""`candled move`: SQLite and PostgreSQL in both directions, beside a writer, interrupted, and on a target in use."""

import re
import threading

import pytest
import yaml

from candled.cli import main
from candled.model import DEFAULT_INTERVALS, MINUTE, MINUTE_MS, WEEK, Interval
from candled.store import make_store
from candled.store.interface import SEQ_UNPUBLISHED
from candled.tools.move import Mover
from tests.store.contract import gap, span
from tests.store.rows import BTC, ETH, MONDAY_MS, minute
from tests.tools.tables import new_tables

DAY = Interval.parse("1D")
WEEK_MINUTES = WEEK.ms // MINUTE_MS

pytestmark = pytest.mark.usefixtures("postgres")


@pytest.fixture(params=[1, -1], ids=["to-postgresql", "to-sqlite"])
def urls(request, tmp_path):
    """The addresses of a source and an empty target."""
    with new_tables("postgresql", tmp_path) as database:
        both = (f"sqlite:///{tmp_path}/candled.db", database.url)[:: request.param]
        opened(both[1]).close()
        yield both


def opened(url, intervals=DEFAULT_INTERVALS):
    store = make_store(url, intervals)
    store.open()
    return store


@pytest.fixture
def source(urls):
    store = opened(urls[0])
    yield store
    store.close()


@pytest.fixture
def config(urls, tmp_path):
    return write_settings(tmp_path, urls[0])


def write_settings(directory, url):
    path = directory / "candled.yaml"
    settings = {"exchanges": {"bitget": {"symbols": ["BTC/USDT"]}}, "store": {"url": url}}
    path.write_text(yaml.safe_dump(settings), "utf-8")
    return str(path)


def everything(store, market):
    """All that a store knows about a market."""
    bars = {one: store.read_bars_between(market, one, 0, 2**52) for one in (MINUTE, *store.intervals())}
    facts = store.complete_from(market), store.known_gaps(market), store.read_forming(market)
    return bars, facts, store.feed_log(market), store.kept_from()


def contents(url):
    store = opened(url, None)
    found = {market: everything(store, market) for market in store.markets()}
    store.close()
    return found


def fill(store):
    """Two markets with everything that a store can have about one."""
    store.register_feed([BTC, ETH], "first")
    store.write_minutes([(BTC, minute(at, quote="3.50", src="live", as_of_ms=10 + at)) for at in range(-300, 300)])
    store.write_minutes([(BTC, minute(5, "3", src="rest", as_of_ms=MONDAY_MS * 2))])  # a revision
    store.write_minutes([(BTC, minute(300, final=False)), (ETH, minute(0, "1.50e0"))])
    store.save_known_gaps(BTC, [gap(1000, 1010)])
    store.set_complete_from(BTC, MONDAY_MS)
    store.log_changes(BTC, "first", [(7, span(1, 3)), (9, span(5, 6)), (SEQ_UNPUBLISHED, span(8, 9))])
    store.register_feed([BTC], "second")


def test_a_target_gets_all_that_the_source_has_beside_a_writer(urls, source, config, capsys):
    fill(source)
    is_over, has_written = threading.Event(), threading.Event()

    def write():
        at = 300
        while not is_over.is_set():
            source.log_changes(BTC, "second", [(at, span(at, at + 1))])
            revised = minute(at % 100, str(2 + at % 7), src="rest", as_of_ms=MONDAY_MS * 2 + at)
            source.write_minutes([(BTC, minute(at)), (BTC, revised)])
            at += 1
            has_written.set()
            is_over.wait(0.2)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert has_written.wait(30)
        assert main(["move", urls[1], "--config", config]) == 0
    finally:
        is_over.set()
        writer.join()
    printed = capsys.readouterr().out
    line = r"^bitget:BTC/USDT: [\d,]+ minutes and [\d,]+ longer bars before 2025-\S+, sha256 \w{64}$"
    assert re.search(line, printed, re.MULTILINE)
    assert f"set store.url to {urls[1]}" in printed
    assert contents(urls[1])[BTC][0][MINUTE][600].open_ms == minute(300).open_ms  # one of those written meanwhile
    assert main(["move", urls[1], "--config", config]) == 0
    assert contents(urls[1]) == contents(urls[0])
    assert contents(urls[1])[BTC][0][MINUTE][305].rev > 0


def test_an_interrupted_move_continues(urls, source, config, monkeypatch):
    source.write_minutes([(BTC, minute(at)) for at in range(0, 5 * WEEK_MINUTES, 60)])
    copy, copied = Mover._copy_page, []

    def count(mover, market, page):
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(copy(mover, market, page))
        return copied[-1]

    monkeypatch.setattr(Mover, "_copy_page", count)
    main(["move", urls[1], "--config", config])
    assert copied == [168, 168, 168]
    copied.clear()
    monkeypatch.setattr(Mover, "_copy_page", lambda *page: copied.append(copy(*page)) or copied[-1])
    assert main(["move", urls[1], "--config", config]) == 0
    assert copied[:5] == [0, 0, 0, 168, 168]
    assert contents(urls[1]) == contents(urls[0])


def test_bars_whose_minutes_are_not_kept_are_copied_as_they_are(urls, source, config):
    source.write_minutes([(BTC, minute(at)) for at in range(0, 3 * WEEK_MINUTES, 600)])
    source.set_kept_from(MONDAY_MS + WEEK.ms)
    assert main(["move", urls[1], "--config", config]) == 0
    given, copied = contents(urls[0])[BTC], contents(urls[1])[BTC]
    assert copied[3] == MONDAY_MS + WEEK.ms
    assert copied[0].pop(MINUTE)[0].open_ms == MONDAY_MS + WEEK.ms + 120 * MINUTE_MS
    given[0].pop(MINUTE)
    assert copied == given
    assert copied[0][WEEK][0].open_ms == MONDAY_MS


def test_a_target_in_use_keeps_its_own_facts_and_gets_what_is_missing(urls, source, config):
    fill(source)
    assert main(["move", urls[1], "--config", config]) == 0
    source.write_minutes([(BTC, minute(at)) for at in range(300, 305)])
    daemon = opened(urls[1])
    try:
        daemon.register_feed([BTC, ETH], "third")
        daemon.write_minutes([(BTC, minute(303, "3", as_of_ms=MONDAY_MS * 2)), (BTC, minute(305))])
        daemon.save_known_gaps(BTC, [gap(1000, 1020)])
        assert main(["move", urls[1], "--source", urls[0], "--config", config]) == 0
        bars, facts, log, _ = everything(daemon, BTC)
        assert [one.open_ms for one in bars[MINUTE][-6:]] == [minute(at).open_ms for at in range(300, 306)]
        assert str(bars[MINUTE][-3].close) == "3"
        assert facts[1] == [gap(1000, 1020)]
        stored = [(minute(start).open_ms, minute(end).open_ms) for start, end in ((300, 303), (304, 305))]
        assert log["third"] == [(SEQ_UNPUBLISHED, one) for one in stored]
    finally:
        daemon.close()


def test_other_minutes_in_the_target_give_way_and_a_wrong_bar_of_the_source_is_named(urls, source, config, capsys):
    fill(source)
    target = opened(urls[1])
    target.write_minutes(
        [(BTC, minute(5, "8", as_of_ms=MONDAY_MS * 3)), (BTC, minute(-5, "8", as_of_ms=MONDAY_MS * 3))]
    )
    target.close()
    assert main(["move", urls[1], "--config", config]) == 0
    assert contents(urls[1]) == contents(urls[0])
    [*_, last] = source.read_bars_between(BTC, DAY, 0, MONDAY_MS)
    source.put_bars(BTC, DAY, [last._replace(volume=last.volume + 1)])
    capsys.readouterr()
    assert main(["move", urls[1], "--config", config]) == 1
    assert "bitget:BTC/USDT: the 1D bars from 2025-05-26" in capsys.readouterr().out


def test_a_target_without_tables_or_an_interval_is_refused_unchanged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = write_settings(tmp_path, "sqlite:///candled.db")
    three = Interval.parse("3m")
    opened("sqlite:///candled.db", [*DEFAULT_INTERVALS, three]).close()
    new = "sqlite:///new.db"
    assert main(["move", new, "--config", config]) == 2
    assert (
        f"run `candled init-db`, or start the daemon (store.init), with CANDLED_STORE__URL={new} in its environment"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "new.db").exists()
    with monkeypatch.context() as patch:
        patch.setenv("CANDLED_STORE__URL", new)
        assert main(["init-db", "--config", config]) == 0
    assert main(["move", new, "--config", config]) == 2
    assert "keeps no bars of 3m, which the source keeps" in capsys.readouterr().err
    store = opened(new, None)
    assert three not in store.intervals()
    store.close()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["sqlite:///candled.db"], "both stores are sqlite:///candled.db; expected another one as TARGET"),
        (["mysql://host/name"], "expected an address of one of these stores"),
        (["sqlite:///nowhere/new.db"], "there is no such file yet"),
        (["sqlite:///notes.txt"], "move: notes.txt: file is not a database"),
        (["postgresql://candled:secret@127.0.0.1:1/none"], "run it again to continue"),
        (["sqlite:///new.db", "--source", "sqlite:///none.db"], "there is no such file yet"),
    ],
)
def test_mistakes_are_one_line_each_and_touch_no_store(tmp_path, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(tmp_path)
    opened("sqlite:///candled.db").close()
    (tmp_path / "notes.txt").write_text("# no database\n" * 100)
    assert main(["move", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line
    assert ("init-db" in line) == ("no such file" in line)
    assert "secret" not in line
    assert not (tmp_path / "new.db").exists()
