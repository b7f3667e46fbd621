"""The progress of long commands: what is drawn, and where nothing is."""

import io
import sys

import pytest

from candled.tools.progress import show_progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("NO_COLOR", raising=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("total", "done", "drawn"), [(40_000, 10_000, "10,000 of 40,000"), (None, 1370, "1,370")], ids=["total", "endless"]
)
def test_a_terminal_shows_the_label_and_the_count_while_it_lasts(monkeypatch, total, done, drawn):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress("import [bold]", total) as advance:
        advance(done)
    assert "import [bold]" in terminal.getvalue()
    assert drawn in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is cleared


@pytest.mark.parametrize(("out", "quiet"), [(io.StringIO(), False), (Terminal(), True)], ids=["no terminal", "quiet"])
def test_nothing_is_drawn_elsewhere_or_when_asked_to_be_quiet(monkeypatch, out, quiet):
    monkeypatch.setattr(sys, "stderr", out)
    with show_progress("import", 100, quiet=quiet) as advance:
        advance(100)
    assert out.getvalue() == ""


def test_output_to_a_file_stays_as_it_is_beside_the_bar(monkeypatch):
    terminal, file = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", file)
    with show_progress("verify", 100) as advance:
        advance(50)
        print("a finding")
    assert file.getvalue() == "a finding\n"
    assert "a finding" not in terminal.getvalue()


def test_other_lines_of_the_terminal_appear_above_the_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress("backfill", 100) as advance:
        advance(50)
        print("candled: a remark", file=sys.stderr)
    assert "candled: a remark\n" in terminal.getvalue()


def test_a_bar_ends_with_a_command_that_fails(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(KeyboardInterrupt), show_progress("backfill", 100):
        raise KeyboardInterrupt
    assert "\x1b[?25h" in terminal.getvalue()  # the cursor is visible again
    assert sys.stderr is terminal
