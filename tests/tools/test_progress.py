"""The progress line: what it says, how often, and when it is silent."""

import io

from candled.tools.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        return [line for line in self.getvalue().replace("\033[K", "").replace("\n", "\r").split("\r") if line]


class Watch:
    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_it_says_count_share_rate_and_time_left():
    out, watch = Terminal(), Watch()
    progress = Progress("import", 40_000, out=out, now=watch)
    watch.seconds += 10
    progress.advance(10_000)
    assert out.lines() == ["import: 10,000 of 40,000 (25%), 1,000/s, 30 s left"]


def test_a_total_nobody_knows_is_left_out():
    out, watch = Terminal(), Watch()
    progress = Progress("import", None, out=out, now=watch)
    watch.seconds += 185
    progress.advance(370)
    assert out.lines() == ["import: 370, 2/s, 3:05"]


def test_it_writes_at_most_five_times_a_second_and_always_the_end():
    out, watch = Terminal(), Watch()
    progress = Progress("import", 100, out=out, now=watch)
    for _ in range(100):
        watch.seconds += 0.01
        progress.advance(1)
    assert len(out.lines()) <= 6
    progress.finish_line()
    assert out.lines()[-1] == "import: 100 of 100 (100%), 100/s, 1 s"
    assert out.getvalue().endswith("\n")


def test_it_is_silent_where_no_terminal_is():
    out = io.StringIO()
    progress = Progress("import", 100, out=out)
    progress.advance(100)
    progress.clear_line()
    progress.finish_line()
    assert out.getvalue() == ""


def test_it_is_silent_on_a_terminal_when_asked_to_be():
    out = Terminal()
    progress = Progress("import", 100, out=out, enabled=False)
    progress.advance(100)
    progress.finish_line()
    assert out.getvalue() == ""


def test_it_makes_way_for_other_lines():
    out, watch = Terminal(), Watch()
    progress = Progress("verify", 100, out=out, now=watch)
    progress.advance(1)
    progress.clear_line()
    assert out.getvalue().endswith("\r\033[K")
