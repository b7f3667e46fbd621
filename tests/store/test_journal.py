"""The journal's lines without a disk, and its file on a real one, whole, damaged, full, and of the old form."""

import errno
import logging
import os
import resource
import subprocess
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from candled.errors import Unavailable
from candled.model import Candle, MarketKey, Symbol
from candled.store import journal as journal_module
from candled.store.batch import SOURCES
from candled.store.journal import Journal
from candled.store.journal_lines import HEADERS, decode, encode
from tests.store.rows import BTC, ETH, MONDAY_MS, minute

ROOT = Path(__file__).parents[2]

decimals = st.decimals(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(exclude_characters="/:", exclude_categories=["Z", "C"]), min_size=1)
parts = names.filter(lambda name: len(name) <= 32)
symbols = st.builds(Symbol, parts, parts, st.just("") | parts)
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
rows = st.tuples(st.builds(MarketKey, st.text(st.characters(exclude_categories=["Cs"]), max_size=20), symbols), candles)


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
    """All but the journal's own."""
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("journal.db"))


def disk_bytes(directory):
    return sum(path.stat().st_size for path in directory.iterdir())


def test_rows_come_back_in_the_order_they_went(open_journal, directory):
    journal = open_journal()
    assert journal.append_rows(some(0, 10)) == 10
    assert journal.append_rows(some(0, 3, ETH)) == 3
    assert journal.row_count == 13
    assert drained(journal) == some(0, 10) + some(0, 3, ETH)
    assert (journal.row_count, journal.is_empty, journal.describe()["bytes"]) == (0, True, 0)
    assert disk_bytes(directory) < 64 * 1024


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
    assert drained(open_journal()) == some(4, 10)


def test_rows_appended_while_others_are_read_come_after_them(open_journal):
    journal = open_journal()
    journal.append_rows(some(0, 10))
    first = journal.next_rows(4)
    journal.append_rows(some(10, 15))
    assert first + drained(journal)[4:] == some(0, 15)


def test_rows_appended_after_the_last_page_was_read_are_not_done_with_it(open_journal):
    journal = open_journal()
    journal.append_rows(some(0, 10))
    assert journal.next_rows(20) == some(0, 10)
    journal.append_rows(some(10, 15))
    journal.mark_done()
    assert drained(journal) == some(10, 15)


@pytest.mark.slow
def test_what_is_done_frees_its_space_for_further_rows(open_journal, directory):
    journal = open_journal(limit_bytes=200_000)
    taken = journal.append_rows(some(0, 5000))
    size = disk_bytes(directory)
    done = 0
    for _ in range(20):
        for row in journal.next_rows(100):
            assert row == some(done, done + 1)[0]
            done += 1
        journal.mark_done()
        assert journal.append_rows(some(taken, taken + 100)) > 80
        taken = done + journal.row_count
    assert journal.describe()["bytes"] <= 200_000
    journal.close()
    assert disk_bytes(directory) < size + 50_000


@pytest.mark.slow
@pytest.mark.parametrize("limit_bytes", [64_000, 1_000_000, 10_000_000])
def test_the_limit_is_the_size_on_disk(open_journal, directory, limit_bytes):
    journal = open_journal(limit_bytes=limit_bytes)
    while journal.append_rows(some(journal.row_count, journal.row_count + 5000)) == 5000:
        pass
    assert limit_bytes - 200 < journal.describe()["bytes"] <= limit_bytes
    journal.close()
    assert 0.9 * limit_bytes < disk_bytes(directory) <= limit_bytes + 3 * 4096  # of the file's own pages


def test_when_it_is_full_the_oldest_rows_are_kept_and_it_warns_before(open_journal, caplog):
    caplog.set_level(logging.INFO)
    journal = open_journal(limit_bytes=8000)
    taken, warned_at = 0, None
    while (kept := journal.append_rows(some(taken, taken + 7))) == 7:
        taken += kept
        if caplog.messages and warned_at is None:
            warned_at = journal.describe()["bytes"]
    taken += kept
    assert 0.8 * 8000 <= warned_at < 8000
    assert 7900 - 90 < journal.describe()["bytes"] <= 8000
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
    assert [record.levelname for record in caplog.records if "kept as" in record.message] == ["ERROR"] * len(names)


def truncate(data):
    del data[len(data) // 2 :]


def zero_the_header(data):
    data[:100] = bytes(100)


def overwrite_a_row(data):
    at = data.index(b'"4.01"')
    data[at : at + 3] = b"\0\n\xff"


def drop_cells(data):
    """Let the page of the rows claim to have fewer of them."""
    at = data.rindex(b"\x0d\0\0\0", 0, data.index(b'"bitget"'))
    data[at + 4] -= 3


DAMAGES = [truncate, zero_the_header, overwrite_a_row, drop_cells, bytearray.clear]


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_file_is_put_aside_and_its_readable_rows_are_saved(open_journal, directory, caplog, harm):
    open_journal().append_rows(some(0, 300))
    open_journal().close()
    path = directory / "journal.db"
    data = bytearray(path.read_bytes())
    harm(data)
    path.write_bytes(data)
    intact = {row: None for line in bytes(data).split(b"\n") if (row := decode(line[line.find(b" [") - 8 :] + b"\n"))}
    journal = open_journal()
    saved = drained(journal, 40)
    assert set(saved) >= set(intact)
    assert set(saved) <= set(some(0, 300))
    if data:  # an empty file is a new one
        expect_aside(directory, caplog, "00000001.rows.damaged")
        assert (directory / "00000001.rows.damaged").read_bytes() == data
        assert f"{len(saved)} rows are saved; it is kept as 00000001.rows.damaged" in journal.describe()["lastError"]
    assert journal.append_rows(some(300, 303)) == 3
    assert drained(open_journal()) == some(300, 303)


@pytest.mark.parametrize("text", [b"PK\3\4" + bytes(range(256)) * 9000, b"a,b\n1,2\n", b"\0" * 5000])
def test_a_foreign_file_is_put_aside(open_journal, directory, caplog, text):
    directory.mkdir()
    (directory / "journal.db").write_bytes(text)
    journal = open_journal()
    journal.append_rows(some(10, 12))
    assert drained(journal) == some(10, 12)
    expect_aside(directory, caplog, "00000001.rows.damaged")


def test_damage_noticed_while_it_is_read_or_written_is_repaired_too(open_journal, directory):
    journal = open_journal()
    journal.append_rows(some(0, 10))
    broken = "UPDATE rows SET line = CAST('nothing' AS BLOB) WHERE id = 3"
    with journal._connection as connection:
        connection.execute(broken)
    assert sorted(drained(journal)) == some(0, 2) + some(3, 10)
    assert files(directory)[0] == "00000001.rows.damaged"


def test_a_write_ahead_log_after_a_crash_is_saved_with_its_damaged_file(open_journal, directory):
    open_journal().append_rows(some(0, 300))
    journal = open_journal()
    journal.append_rows(some(300, 340))
    copies = {path.name: bytearray(path.read_bytes()) for path in directory.iterdir()}
    journal.close()
    copies["journal.db"][2 * 4096 : 3 * 4096] = b"x" * 4096
    for name, data in copies.items():
        (directory / name).write_bytes(data)
    saved = drained(open_journal())
    assert set(some(0, 340)) > set(saved) >= set(some(300, 340))
    assert len(set(saved)) > 290
    assert files(directory)[0] == "00000001.rows.damaged"


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 3 * 4096), st.integers(1, 255)), min_size=1, max_size=6))
def test_however_bytes_are_flipped_no_wrong_row_comes_out_and_untouched_rows_are_saved(tmp_path_factory, flips):
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal(directory)
    journal.open()
    journal.append_rows(some(0, 40))
    journal.close()
    data = bytearray((directory / "journal.db").read_bytes())
    for at, change in flips:
        data[at % len(data)] ^= change
    (directory / "journal.db").write_bytes(data)
    journal.open()
    saved = drained(journal)
    journal.close()
    assert set(saved) <= set(some(0, 40))
    assert set(saved) >= {row for row in some(0, 40) if encode(row) in data}


def test_other_files_in_the_directory_are_left_alone(open_journal, directory):
    directory.mkdir()
    (directory / "notes.txt").write_text("mine")
    (directory / "00000007.rows").mkdir()
    journal = open_journal()
    journal.append_rows(some(0, 3))
    assert drained(journal) == some(0, 3)
    assert files(directory) == ["00000007.rows", "notes.txt"]


def test_files_that_are_put_aside_never_replace_each_other(open_journal, directory):
    for number in range(1, 4):
        open_journal().close()
        (directory / "journal.db").write_bytes(b"damage" * number)
        assert drained(open_journal()) == []
        assert files(directory) == [f"{at:08d}.rows.damaged" for at in range(1, number + 1)]


def test_rows_that_the_store_refuses_are_kept_in_a_file_that_can_be_put_back(open_journal, directory):
    journal = open_journal()
    journal.append_rows(some(0, 3))
    journal.next_rows(9)
    journal.mark_done(some(1, 3))
    assert (journal.is_empty, files(directory)) == (True, ["rejected"])
    assert "they are kept in rejected" in journal.describe()["lastError"]
    (directory / "rejected").rename(directory / "00000001.rows")
    assert drained(open_journal()) == some(1, 3)


FEW_DESCRIPTORS = """
import resource, sys
from pathlib import Path
from candled.errors import Unavailable
from candled.store.journal import Journal
journal = Journal(Path(sys.argv[1]))
for most in range(3, 8):
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, 4096))
    try:
        journal.open()
    except Unavailable:
        journal.close()
    else:
        sys.exit(f"opened with {most} descriptors")
"""


@pytest.mark.slow
def test_a_process_without_free_descriptors_does_not_call_its_files_damaged(open_journal, directory):
    open_journal().append_rows(some(0, 3))
    open_journal().close()
    (directory / "00000009.rows").write_bytes(WHOLE)
    subprocess.run([sys.executable, "-c", FEW_DESCRIPTORS, str(directory)], check=True, cwd=ROOT)
    assert set(drained(open_journal())) >= set(some(0, 12))
    assert files(directory) == []


# ---------------------------------------------------------------- journals of the old form

WHOLE = HEADERS[1] + b"".join(map(encode, some(0, 12)))
ROWS_1 = (
    b'candled journal 1\ncb0ea006 ["bitget","BTC/USDT",1748822400000,"2.50","9","1","2","1.0E-7",null,7,true]\n',
    [(BTC, Candle.parse(MONDAY_MS, "2.50", "9", "1", "2", "0.00000010", None, as_of_ms=7, final=True))],
)


@pytest.mark.parametrize(("text", "expected"), [ROWS_1, (WHOLE, some(0, 12)), (HEADERS[1], []), (b"", [])])
def test_a_text_file_of_an_earlier_version_is_moved_into_the_journal(open_journal, directory, text, expected):
    directory.mkdir()
    (directory / "00000007.rows").write_bytes(text)
    journal = open_journal()
    assert (journal.row_count, files(directory)) == (len(expected), [])
    journal.append_rows(some(50, 52))
    assert drained(open_journal()) == expected + some(50, 52)


def test_text_files_come_in_their_order(open_journal, directory):
    directory.mkdir()
    for number in (2, 1, 3):
        (directory / f"0000000{number}.rows").write_bytes(
            HEADERS[1] + b"".join(map(encode, some(number * 10, number * 10 + 10)))
        )
    assert drained(open_journal()) == some(10, 40)


@pytest.mark.slow
def test_a_text_file_longer_than_a_block_of_reading_is_read_whole(open_journal, directory):
    directory.mkdir()
    expected = some(0, 20_000)
    (directory / "00000001.rows").write_bytes(HEADERS[1] + b"".join(map(encode, expected)))
    journal = open_journal()
    assert (drained(journal, 1000), files(directory)) == (expected, [])


def test_a_move_that_was_interrupted_is_repeated(open_journal, directory, monkeypatch):
    directory.mkdir()
    (directory / "00000001.rows").write_bytes(WHOLE)
    reading = journal_module.find_lines

    def interrupted(path):
        for number, line in enumerate(reading(path)):
            if number == 5:
                raise OSError(errno.EMFILE, "killed")
            yield line

    monkeypatch.setattr(journal_module, "find_lines", interrupted)
    with pytest.raises(Unavailable, match="killed"):
        open_journal()
    monkeypatch.undo()
    assert drained(open_journal()) == some(0, 12)
    assert files(directory) == []


def test_a_file_that_cannot_be_read_is_put_aside(open_journal, directory, caplog):
    open_journal().append_rows(some(0, 10))
    (directory / "00000000.rows").symlink_to("/proc/self/mem")  # opens, and fails when read
    assert drained(open_journal()) == some(0, 10)
    expect_aside(directory, caplog, "00000000.rows.damaged")
    assert os.strerror(errno.EIO) in caplog.text


def lines_of(text):
    return [line + b"\n" for line in text.split(b"\n")[:-1]]


@pytest.mark.slow
@given(st.integers(0, len(WHOLE)))
def test_however_a_text_file_is_cut_every_whole_row_before_the_cut_is_saved(tmp_path_factory, at):
    assert read_back(tmp_path_factory, WHOLE[:at]) == some(0, max(0, WHOLE[:at].count(b"\n") - 1))


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), max_size=6))
def test_however_bytes_of_a_text_file_are_flipped_untouched_lines_are_saved(tmp_path_factory, flips):
    text = bytearray(WHOLE)
    for at, change in flips:
        text[at] ^= change
    intact, start = [], 0
    for number, line in enumerate(lines_of(WHOLE)):
        before_is_whole = start == 0 or text[start - 1] == ord("\n")
        if number and before_is_whole and text[start : start + len(line)] == line:
            intact.append(some(number - 1, number)[0])
        start += len(line)
    saved = read_back(tmp_path_factory, bytes(text))
    assert set(intact) <= set(saved) <= set(some(0, 12))


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


def log_bytes(directory):
    return (directory / "journal.db-wal").stat().st_size


def test_rows_that_do_not_fit_on_the_disk_are_not_kept_in_part(open_journal, directory):
    journal = open_journal()
    journal.append_rows(some(0, 10))
    size = journal.describe()["bytes"]
    with (
        file_size(log_bytes(directory) + 5000),
        pytest.raises(Unavailable, match=r"candled\.journal cannot be written: (disk I/O error|.*full)"),
    ):
        journal.append_rows(some(10, 300))
    assert (journal.row_count, journal.describe()["bytes"]) == (10, size)
    assert "cannot be written" in journal.describe()["lastError"]
    assert drained(open_journal()) == some(0, 10)


def test_a_journal_that_cannot_be_created_can_be_once_there_is_room(open_journal, directory):
    directory.mkdir()
    with file_size(100), pytest.raises(Unavailable):
        open_journal()
    assert open_journal().append_rows(some(0, 10)) == 10


def test_once_there_is_room_again_it_goes_on(open_journal, directory):
    journal = open_journal()
    journal.append_rows(some(0, 10))
    with file_size(log_bytes(directory) + 50), pytest.raises(Unavailable):
        journal.append_rows(some(10, 20))
    assert journal.append_rows(some(10, 20)) == 10
    assert drained(journal) == some(0, 20)


def test_a_full_disk_does_not_keep_rows_from_being_done(open_journal, directory, caplog):
    """Rows that cannot be deleted are only stored once more after a restart."""
    journal = open_journal()
    journal.append_rows(some(0, 20))
    assert journal.next_rows(10) == some(0, 10)
    with file_size(log_bytes(directory)):
        journal.mark_done()
        assert journal.next_rows(20) == some(10, 20)
        journal.mark_done()
    assert (journal.is_empty, journal.next_rows(20)) == (True, [])
    assert "cannot be emptied" in caplog.text
    journal.append_rows(some(20, 25))
    assert drained(journal) == some(20, 25)
    assert drained(open_journal()) == []


def test_rows_count_only_once_the_disk_confirmed_them(open_journal):
    """SQLite syncs the log before a commit returns."""
    connection = open_journal()._connection
    values = [
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "fullfsync")
    ]
    assert values == ["wal", 2, 1]
