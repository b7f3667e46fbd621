"""The journal's format without a disk, and its files on a real one, whole, damaged and full."""

import errno
import logging
import os
import resource
import zlib
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.errors import Unavailable
from candled.model import Candle, MarketKey, Symbol
from candled.store.batch import SOURCES
from candled.store.journal import HEADER, Journal, JournalSegment, decode, encode
from tests.store.rows import BTC, ETH, MONDAY_MS, minute

decimals = st.decimals(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(codec="utf-8", exclude_characters="/:", exclude_categories=["Z", "C"]), min_size=1)
symbols = st.builds(Symbol, names.filter(lambda name: len(name) <= 32), names.filter(lambda name: len(name) <= 32))
candles = st.builds(
    Candle,
    *[st.integers(0, 2**53)],
    *[decimals] * 5,
    st.none() | decimals,
    st.integers(0, 2**53),
    st.booleans(),
    st.integers(0, 2**31 - 1),
    st.sampled_from(SOURCES),
)
rows = st.tuples(st.builds(MarketKey, st.text(st.characters(codec="utf-8"), max_size=20), symbols), candles)


def some(start, end, market=BTC):
    """Final minutes that all differ."""
    return [(market, minute(at, volume=f"{at}.01", as_of_ms=MONDAY_MS + at)) for at in range(start, end)]


# ---------------------------------------------------------------- the format


@pytest.mark.slow
@given(rows)
def test_a_row_survives_the_journal_digit_for_digit(row):
    line = encode(row)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert repr(decode(line)) == repr(row)


def test_the_format_on_disk_stays_what_it_is():
    candle = Candle.parse(MONDAY_MS, "2.50", "9", "1", "2", "0.00000010", None, as_of_ms=7, final=True)
    row = (BTC, candle._replace(rev=3, src="rest"))
    line = b'63a0a2ff ["bitget","BTC/USDT",1748822400000,"2.50","9","1","2","1.0E-7",null,7,true,3,"rest"]\n'
    assert encode(row) == line
    assert decode(line) == row


def test_a_journal_of_the_first_version_is_read(tmp_path):
    line = b'cb0ea006 ["bitget","BTC/USDT",1748822400000,"2.50","9","1","2","1.0E-7",null,7,true]\n'
    (tmp_path / "00000007.rows").write_bytes(b"candled journal 1\n" + line)
    journal = Journal(tmp_path)
    journal.open()
    assert journal.row_count == 1
    candle = Candle.parse(MONDAY_MS, "2.50", "9", "1", "2", "0.00000010", None, as_of_ms=7, final=True)
    assert journal.next_rows(9) == [(BTC, candle)]
    journal.mark_done()
    assert (journal.is_empty, journal.last_error, list(tmp_path.iterdir())) == (True, None, [])
    journal.close()


@pytest.mark.slow
@given(rows, st.data())
def test_a_line_with_one_flipped_bit_is_no_row(row, data):
    line = bytearray(encode(row))
    bit = data.draw(st.integers(0, len(line) * 8 - 1))
    line[bit // 8] ^= 1 << bit % 8
    assert decode(bytes(line)) is None


@pytest.mark.parametrize("text", [b"[]", b"{}", b"", b'["bitget","BTC",1,"1","1","1","1","1",null,0,true]', b"\xff"])
def test_a_sound_checksum_over_something_else_is_no_row(text):
    assert decode(b"%08x %s\n" % (zlib.crc32(text), text)) is None


def test_a_segment_comes_in_pages():
    lines = [HEADER, *map(encode, some(0, 5))]
    segment = JournalSegment(lines)
    assert [segment.next_rows(2), segment.next_rows(2), segment.next_rows(2)] == [some(0, 2), some(2, 4), some(4, 5)]
    assert (segment.saved, segment.is_over, segment.is_damaged) == (5, True, False)


# ---------------------------------------------------------------- the files


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "candled.journal"


@pytest.fixture
def open_journal(directory):
    journals = []

    def open_again(**options):
        for earlier in journals:
            earlier.close()
        journals.append(Journal(directory, **options))
        journals[-1].open()
        return journals[-1]

    yield open_again
    for journal in journals:
        journal.close()


def drained(journal, limit=7):
    """Everything in the journal, taken out of it."""
    result = []
    while page := journal.next_rows(limit):
        assert len(page) <= limit
        result += page
        journal.mark_done()
    return result


def files(directory):
    return sorted(path.name for path in directory.iterdir())


def test_rows_come_back_in_the_order_they_went(open_journal, directory):
    journal = open_journal()
    assert journal.append_rows(some(0, 10)) == 10
    assert journal.append_rows(some(0, 3, ETH)) == 3
    assert journal.row_count == 13
    assert drained(journal) == some(0, 10) + some(0, 3, ETH)
    assert (journal.row_count, journal.is_empty, files(directory)) == (0, True, [])


def test_rows_come_back_after_a_restart(open_journal):
    open_journal().append_rows(some(0, 10))
    journal = open_journal()
    assert journal.row_count == 10
    journal.append_rows(some(10, 12))
    assert drained(journal) == some(0, 12)


def test_a_page_that_is_not_done_comes_again_also_after_a_restart(open_journal):
    journal = open_journal()
    journal.append_rows(some(0, 10))
    assert journal.next_rows(4) == journal.next_rows(4) == some(0, 4)
    journal.mark_done()
    assert (journal.next_rows(4), journal.row_count) == (some(4, 8), 6)
    assert drained(open_journal()) == some(0, 10)  # a segment goes as a whole


def test_rows_appended_while_others_are_read_come_after_them(open_journal):
    journal = open_journal()
    journal.append_rows(some(0, 10))
    first = journal.next_rows(4)
    journal.append_rows(some(10, 15))
    assert first + drained(journal)[4:] == some(0, 15)


def test_a_file_read_to_its_end_takes_no_more_rows_down_with_it(open_journal):
    journal = open_journal()
    journal.append_rows(some(0, 10))
    assert journal.next_rows(20) == some(0, 10)
    journal.append_rows(some(10, 15))
    journal.mark_done()
    assert drained(journal) == some(10, 15)


def test_what_is_done_frees_its_space_segment_by_segment(open_journal, directory):
    journal = open_journal(limit_bytes=6000)
    for at in range(0, 50, 10):
        journal.append_rows(some(at, at + 10))
    before = journal.describe()["bytes"]
    assert len(files(directory)) == 5
    assert before == sum(path.stat().st_size for path in directory.iterdir())
    assert journal.next_rows(11) == some(0, 10)
    assert len(files(directory)) == 5
    journal.mark_done()
    assert len(files(directory)) == 4
    assert journal.describe()["bytes"] == sum(path.stat().st_size for path in directory.iterdir()) < before


def test_when_it_is_full_the_oldest_rows_are_kept_and_it_warns_before(open_journal, directory, caplog):
    caplog.set_level(logging.INFO)
    journal = open_journal(limit_bytes=8000)
    taken, warned_at = 0, None
    while (kept := journal.append_rows(some(taken, taken + 7))) == 7:
        taken += kept
        if caplog.messages and warned_at is None:
            warned_at = journal.describe()["bytes"]
    taken += kept
    assert 0.8 * 8000 <= warned_at < 8000
    assert 7900 - 90 < journal.describe()["bytes"] == sum(path.stat().st_size for path in directory.iterdir()) <= 8000
    assert journal.append_rows(some(taken, taken + 7)) == 0
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert "is full" in journal.describe()["lastError"]
    assert drained(journal) == some(0, taken)
    assert journal.append_rows(some(0, 7)) == 7


def test_it_warns_at_start_when_an_earlier_run_left_it_nearly_full(open_journal, caplog):
    open_journal(limit_bytes=8000).append_rows(some(0, 100))
    caplog.clear()
    open_journal(limit_bytes=8000)
    assert [message for message in caplog.messages if "is almost full" in message]


def test_two_processes_do_not_share_it(open_journal, directory):
    open_journal()
    second = Journal(directory)
    with pytest.raises(Unavailable, match="another candled uses it"):
        second.open()
    with pytest.raises(Unavailable, match="not open"):
        second.append_rows(some(0, 1))
    assert "another candled" in second.describe()["lastError"]


@pytest.mark.parametrize("name", ["missing/candled.journal", "file"])
def test_a_path_that_cannot_be_a_journal_is_named_and_left_alone(tmp_path, name):
    (tmp_path / "file").write_text("store: {}\n")
    with pytest.raises(Unavailable, match=rf"{name} cannot be used: (No such file|Not a directory)"):
        Journal(tmp_path / name).open()
    assert (tmp_path / "file").read_text() == "store: {}\n"


# ---------------------------------------------------------------- damage


def expect_aside(directory, caplog, *names):
    assert files(directory) == list(names)
    assert [record.levelname for record in caplog.records if "damaged" in record.message] == ["ERROR"] * len(names)


def test_a_torn_last_row_costs_only_itself(open_journal, directory, caplog):
    open_journal().append_rows(some(0, 10))
    path = directory / "00000001.rows"
    os.truncate(path, path.stat().st_size - 5)
    assert drained(open_journal()) == some(0, 9)
    expect_aside(directory, caplog, "00000001.rows.damaged")


def test_damage_in_the_middle_costs_only_the_rows_it_touches(open_journal, directory, caplog):
    open_journal().append_rows(some(0, 10))
    path = directory / "00000001.rows"
    text = bytearray(path.read_bytes())
    at = text.index(b'"4.01"')
    text[at : at + 3] = b"\0\n\xff"
    path.write_bytes(text)
    assert drained(open_journal()) == some(0, 4) + some(5, 10)
    expect_aside(directory, caplog, "00000001.rows.damaged")
    assert path.with_name("00000001.rows.damaged").read_bytes() == text
    assert "9 rows could be read" in caplog.text


@pytest.mark.parametrize("text", [b"PK\3\4" + bytes(range(256)) * 9000, b"a,b\n1,2\n", b"\0" * 5000])
def test_a_foreign_file_is_put_aside_and_the_rows_around_it_are_saved(open_journal, directory, caplog, text):
    open_journal().append_rows(some(0, 10))
    (directory / "00000002.rows").write_bytes(text)
    journal = open_journal()
    journal.append_rows(some(10, 12))
    assert drained(journal) == some(0, 12)
    expect_aside(directory, caplog, "00000002.rows.damaged")


def test_a_file_that_cannot_be_read_is_put_aside(open_journal, directory, caplog):
    open_journal().append_rows(some(0, 10))
    (directory / "00000000.rows").symlink_to("/proc/self/mem")  # opens, and fails when read
    assert drained(open_journal()) == some(0, 10)
    expect_aside(directory, caplog, "00000000.rows.damaged")
    assert os.strerror(errno.EIO) in caplog.text


def test_other_files_in_the_directory_are_left_alone(open_journal, directory):
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    (directory / "00000007.rows").mkdir()
    journal = open_journal()
    journal.append_rows(some(0, 3))
    assert drained(journal) == some(0, 3)
    assert files(directory) == ["00000007.rows", "notes.txt"]


def test_rows_go_on_under_new_names_beside_what_was_put_aside(open_journal, directory):
    open_journal().append_rows(some(0, 3))
    os.truncate(directory / "00000001.rows", 30)
    assert drained(open_journal()) == []
    open_journal().append_rows(some(0, 3))
    assert files(directory) == ["00000001.rows.damaged", "00000002.rows"]


def test_rows_that_the_store_refuses_are_put_aside(open_journal, directory):
    journal = open_journal()
    journal.append_rows(some(0, 3))
    journal.next_rows(9)
    journal.mark_done(rejected=True)
    assert (journal.is_empty, files(directory)) == (True, ["00000001.rows.rejected"])


def test_a_process_without_free_descriptors_does_not_call_its_files_damaged(open_journal, directory):
    journal = open_journal()
    journal.append_rows(some(0, 3))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(directory, os.O_RDONLY)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(range(3, free + 1), default=free), hard))
        with pytest.raises(Unavailable, match="cannot be read now"):
            journal.next_rows(9)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert drained(journal) == some(0, 3)
    assert files(directory) == []


WHOLE = HEADER + b"".join(map(encode, some(0, 12)))


def lines_of(text):
    return [line + b"\n" for line in text.split(b"\n")[:-1]]


@given(st.integers(0, len(WHOLE)))
def test_however_it_is_cut_every_whole_row_before_the_cut_is_saved(tmp_path_factory, at):
    assert read_back(tmp_path_factory, WHOLE[:at]) == some(0, max(0, WHOLE[:at].count(b"\n") - 1))


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), max_size=6))
def test_however_bytes_are_flipped_no_wrong_row_comes_out_and_untouched_lines_are_saved(tmp_path_factory, flips):
    text = bytearray(WHOLE)
    for at, change in flips:
        text[at] ^= change
    lines = lines_of(WHOLE)
    intact, start = [], 0
    for number, line in enumerate(lines):
        before_is_whole = start == 0 or text[start - 1] == ord("\n")
        if number and before_is_whole and text[start : start + len(line)] == line:
            intact.append(some(number - 1, number)[0])
        start += len(line)
    assert read_back(tmp_path_factory, bytes(text)) == intact


def read_back(tmp_path_factory, text):
    directory = tmp_path_factory.mktemp("journal")
    (directory / "00000001.rows").write_bytes(text)
    journal = Journal(directory)
    journal.open()
    result = drained(journal)
    left = files(directory)
    journal.close()
    assert left == ([] if text in wholes() else ["00000001.rows.damaged"])
    return result


def wholes():
    """The texts without damage: nothing, or whole lines from the header on."""
    lines = lines_of(WHOLE)
    return [b"".join(lines[:count]) for count in range(len(lines) + 1)]


# ---------------------------------------------------------------- a disk that is full


@contextmanager
def file_size(most: int):
    """No file of this process grows beyond `most` bytes: a write is cut short there, the next one fails.

    The test run's own output may be such a file, so nothing may be printed meanwhile.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_that_do_not_fit_on_the_disk_are_not_kept_in_part(open_journal, directory):
    journal = open_journal()
    journal.append_rows(some(0, 10))
    size = journal.describe()["bytes"]
    with file_size(size + 200), pytest.raises(Unavailable, match=r"candled\.journal cannot be written: File too large"):
        journal.append_rows(some(10, 20))
    assert (journal.row_count, journal.describe()["bytes"]) == (10, size)
    assert [path.stat().st_size for path in directory.iterdir()] == [size]
    assert "File too large" in journal.describe()["lastError"]


def test_a_first_segment_that_does_not_fit_leaves_no_file(open_journal, directory):
    journal = open_journal()
    with file_size(100), pytest.raises(Unavailable):
        journal.append_rows(some(0, 10))
    assert (files(directory), journal.is_empty) == ([], True)


def test_once_there_is_room_again_it_goes_on(open_journal):
    journal = open_journal()
    journal.append_rows(some(0, 10))
    with file_size(journal.describe()["bytes"] + 50), pytest.raises(Unavailable):
        journal.append_rows(some(10, 20))
    assert journal.append_rows(some(10, 20)) == 10
    assert drained(journal) == some(0, 20)


def test_rows_count_only_once_the_disk_confirmed_them(open_journal, directory, monkeypatch):
    journal = open_journal()
    journal.append_rows(some(0, 10))

    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(Unavailable, match="Input/output error"):
        journal.append_rows(some(10, 20))
    monkeypatch.undo()
    assert journal.append_rows(some(20, 30)) == 10
    assert files(directory) == ["00000001.rows", "00000002.rows"]  # the kernel may have forgotten what failed
    assert drained(journal) == some(0, 10) + some(20, 30)
