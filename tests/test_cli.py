"""The command line: what each command prints, and with which status it ends."""

import asyncio
import contextlib
import io
import json
import logging
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, TextIO
from unittest.mock import patch

import pytest
import yaml
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.web import Application
from tornado.websocket import WebSocketHandler

from candled import __version__
from candled.cli import main, parse
from candled.client import Bar
from candled.model import Symbol
from candled.plugins import discover
from candled.tools.tail import Printer, line, tail
from tests import deadlines
from tests.ports import free_port
from tests.system.daemon import ROOT, Daemon

BAR = {
    "time": "2024-10-24T10:00:00.000Z",
    "open": 67234.5,
    "high": 67340,
    "low": 67200,
    "close": 67310.25,
    "volume": 0.00000001,
    "quoteVolume": 9772345.67,
}
NEXT = BAR | {"time": "2024-10-24T10:05:00.000Z"}


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """An empty current directory, no settings in the environment, and logging as it was."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.upper().startswith("CANDLED_")]:
        monkeypatch.delenv(name)
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str, env: dict[str, str] | None = None) -> Ended:
    """The command in this process, with pipes for its output."""
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    status = _status(arguments, out, err, env or {})
    texts = []
    for stream in (out, err):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return Ended(status, *texts)


def _status(arguments: Sequence[str], out: TextIO, err: TextIO, env: dict[str, str]) -> int:
    """Run a command as a new process would, its log to its own standard error; return its exit status."""
    root = logging.getLogger()
    before, root.handlers[:] = root.handlers[:], []
    try:
        with patch.dict(os.environ, env), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            return main(arguments)
    except SystemExit as ended:  # of completion
        return int(ended.code or 0)
    finally:
        root.handlers[:] = before


def processed(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a process."""
    return subprocess.run(
        [sys.executable, "-m", "candled", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=30,
    )


# ---------------------------------------------------------------- check-config


@pytest.mark.slow
def test_check_config_prints_settings_that_read_back(capsys, tmp_path):
    assert main(["check-config", "--config", str(ROOT / "candled" / "demo.yaml")]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["store"]["url"] == "sqlite:///candled-demo.db"
    (tmp_path / "again.yaml").write_text(printed, "utf-8")
    assert main(["--config", "again.yaml", "check-config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.slow
def test_check_config_reads_the_file_of_the_current_directory(capsys, tmp_path):
    (tmp_path / "candled.yaml").write_text("server: {port: 7123}", "utf-8")
    assert main(["check-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["server"]["port"] == 7123


@pytest.mark.slow
def test_check_config_without_a_file_prints_the_defaults(capsys):
    assert main(["check-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["server"]["port"] == 7000


@pytest.mark.slow
def test_check_config_warns_of_what_works_in_one_process_alone(capsys, tmp_path):
    (tmp_path / "candled.yaml").write_text("bus: {url: redis://h}\n", "utf-8")
    assert main(["check-config"]) == 0
    assert capsys.readouterr().err.startswith("candled: warning: store.url: SQLite is one process's file")


@pytest.mark.slow
def test_a_file_of_tls_that_is_not_there_is_found_by_check_config_and_at_the_start(capsys, tmp_path):
    (tmp_path / "candled.yaml").write_text("bus: {url: 'rediss://localhost?ca=nothing.crt'}", "utf-8")
    for command in (["check-config"], []):
        assert main(command) == 2
        assert "candled: bus.url: ca: nothing.crt: No such file or directory" in capsys.readouterr().err.splitlines()


@pytest.mark.slow
def test_check_config_names_the_proxy_of_each_exchange(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://ann:s3cret@proxy:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://ann:s3cret@proxy:3128")
    (tmp_path / "candled.yaml").write_text("exchanges: {bitget: {}, replay: {proxy: direct}}")
    assert main(["check-config"]) == 0
    printed = capsys.readouterr().out
    assert "# proxy of exchanges.bitget: http://proxy:3128 as ann, from the environment\n" in printed
    assert "# proxy of exchanges.replay: direct, from the settings\n" in printed
    assert "s3cret" not in printed


@pytest.mark.slow
def test_check_config_does_not_print_passwords(capsys, tmp_path):
    (tmp_path / "candled.yaml").write_text("exchanges: {bitget: {ws_url: 'wss://me:hunter2@proxy/ws'}}", "utf-8")
    assert main(["check-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["exchanges"]["bitget"]["ws_url"] == "wss://me:***@proxy/ws"


@pytest.mark.slow
def test_problems_are_a_line_each_and_status_2(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("CANDLED_SERVER__PROT", "1")
    (tmp_path / "candled.yaml").write_text("store: {flush_intervall: 1s}\ningest: {grace_period: -1s}", "utf-8")
    assert main(["check-config"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "candled: CANDLED_SERVER__PROT: no such setting, did you mean CANDLED_SERVER__PORT?",
        "candled: candled.yaml:1: store.flush_intervall: unknown setting, did you mean flush_interval?",
        "candled: candled.yaml:2: ingest.grace_period: at least 0s, was -1s",
    ]


def test_a_recording_that_cannot_be_read_is_found_before_the_daemon_runs(capsys, tmp_path):
    (tmp_path / "candled.yaml").write_text("exchanges: {replay: {files: {BTC/USDT: none.csv}}}", "utf-8")
    assert main(["check-config"]) == 2
    assert capsys.readouterr().err == "candled: none.csv: cannot be read: No such file or directory\n"


# ---------------------------------------------------------------- the daemon


def test_the_daemon_does_not_start_on_a_mistake():
    ended = run(env={"CANDLED_SERVER__PORT": "99999"})
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "candled: server.port (CANDLED_SERVER__PORT): at most 65535, was 99999\n"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["server: &s {host: *s}", "server: " + "[" * 3000])
def test_settings_without_an_end_are_a_line_and_status_2(text, tmp_path):
    (tmp_path / "candled.yaml").write_text(text, "utf-8")
    ended = run()
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("candled: candled.yaml:1: not valid YAML: nested too deeply")
    assert ended.stderr.count("\n") == 1


ACME = """
from candled import Exchange, Settings, hookimpl

class Acme(Exchange):
    name = "acme"
    Settings = Settings
    def __init__(self, settings, clock): raise OSError("no card in the reader")
    async def fetch_markets(self, http): return []
    def make_feed(self, symbols): raise NotImplementedError
    async def fetch_history(self, http, symbol, start_ms, end_ms): return []

class Other(Acme):
    name = "other"
    def __init__(self, settings, clock): raise ValueError("not on Sundays")

@hookimpl
def candled_exchanges(): return [Acme, Other]
"""


@pytest.fixture
def install(tmp_path, monkeypatch) -> Iterator[Callable[[str, str | None], None]]:
    """Install a plugin of one module (None: it is missing) until the test ends."""
    modules: list[str] = []

    def install(module: str, source: str | None) -> None:
        modules.append(module)
        info = tmp_path / f"candled_{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: candled-{module}\nVersion: 1.0\n", "utf-8")
        (info / "entry_points.txt").write_text(f"[candled]\n{module} = {module}\n", "utf-8")
        if source is not None:
            (tmp_path / f"{module}.py").write_text(source, "utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for module in modules:
        sys.modules.pop(module, None)


@pytest.mark.slow
@pytest.mark.parametrize("command", [["check-config"], []], ids=["check-config", "run"])
def test_exchanges_that_cannot_be_made_are_a_line_each_and_status_2(command, tmp_path, install):
    install("acme", ACME)
    (tmp_path / "candled.yaml").write_text("server: {port: 0}\nexchanges: {acme: , replay: , other: }", "utf-8")
    ended = run(*command)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.splitlines() == [
        "candled: exchanges.acme: OSError: no card in the reader",
        "candled: exchanges.other: ValueError: not on Sundays",
    ]


@pytest.mark.slow
def test_a_broken_plugin_that_is_not_used_is_one_warning(install):
    install("broken", "1 / 0")
    ended = run("check-config")
    assert ended.returncode == 0
    assert ended.stderr == (
        "candled: plugin broken (candled-broken 1.0) is not used: ZeroDivisionError: division by zero\n"
    )


@pytest.mark.slow
def test_a_password_of_the_store_is_in_no_line(tmp_path):
    for url in ("mysql://me:hunter2@host/db", "me:hunter2@host", "sqlite://me:hunter2@host/db"):
        ended = run("check-config", env={"CANDLED_STORE__URL": url, "CANDLED_LOG__LEVEL": "debug"})
        assert ended.returncode == 2
        assert "store.url (CANDLED_STORE__URL): " in ended.stderr
        assert "hunter2" not in ended.stdout + ended.stderr


@pytest.mark.usefixtures("daemon")
def test_the_demo_obeys_the_environment_except_for_its_port(tmp_path):
    ended = processed("demo", "--port", "0", env={"CANDLED_SERVER__PORT": "7", "CANDLED_INTERVALS": "[]"})
    assert ended.returncode == 2
    assert ended.stderr.startswith("candled: intervals (CANDLED_INTERVALS): ")
    assert len(ended.stderr.splitlines()) == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.usefixtures("daemon")
def test_the_daemon_does_not_start_without_the_file_it_was_given():
    ended = processed("--config", "none.yaml")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "candled: none.yaml: cannot be read: No such file or directory\n"


@pytest.mark.usefixtures("daemon")
def test_a_port_in_use_is_a_line_and_status_2():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = processed("demo", "--port", str(port))
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert last == f"candled: server: cannot listen on 127.0.0.1:{port}: the port is in use"


# ---------------------------------------------------------------- Windows

ON_WINDOWS = """
import signal, sys

for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None  # an import of it fails
for name in ("SIGCHLD", "SIGHUP", "SIGKILL", "pthread_sigmask"):
    delattr(signal, name)

import candled.client, candled.model
from candled.__main__ import main

sys.platform = "win32"  # after asyncio, which would look for modules that are only there
sys.exit(main())
"""


@pytest.mark.usefixtures("daemon")
def test_windows_has_the_client_and_a_clear_refusal_of_commands():
    ended = subprocess.run([sys.executable, "-c", ON_WINDOWS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("candled: expected Linux or macOS, got Windows")
    assert len(ended.stderr.splitlines()) == 1


# ---------------------------------------------------------------- help


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"candled {__version__}\n"


def test_help_lists_commands_under_headings_environment_and_statuses(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for word in (
        "Daemon:\n  demo",
        "plugins",
        "tail",
        "Store:\n  init-db",
        "Store and exchange:\n  backfill",
        "Files:\n  export",
        "--config",
        "--version",
        "--show-completion",
        "CANDLED_SERVER__PORT=7001",
        "Exit status",
    ):
        assert word in text


def test_every_command_and_option_is_on_the_page():
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8")
    commands = ([], ["demo"], ["check-config"], ["plugins"], ["tail"])
    help_text = "".join(run(*command, "--help").stdout for command in commands)
    options = set(re.findall(r"--[a-z-]+", help_text))
    assert {"--config", "--url", "--bars"} < options
    assert [option for option in sorted(options) if option not in page] == []


def test_the_statuses_of_the_page_are_those_of_the_help():
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d) \| (.+) \|$", page, re.MULTILINE)
    help_text = " ".join(run("--help").stdout.split())
    assert [number for number, _ in rows] == ["0", "1", "2"]
    for number, meaning in rows:
        assert f"{number} {meaning}" in help_text


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["stop"], "No such command 'stop'."),
        (["verif"], "Did you mean 'verify'?"),
        (["gaps", "--exchang", "bitget"], "(Possible options: --exchange)"),
        (["tail", "BTC/USDT"], "Missing argument 'INTERVAL'."),
        (["tail", "BTC/USDT", "1m", "2m"], "Got unexpected extra argument(s) (2m)"),
        (["tail", "BTC/USDT", "1m", "--bars", "-1"], "Invalid value for '--bars'"),
        (["tail", "BTC/USDT", "1m", "--bars", "x"], "Invalid value for '--bars'"),
        (["tail", "BTC/USDT", "1m", "--url", "http://localhost"], "expected ws://HOST:PORT/ws or wss://HOST/ws"),
        (["tail", "BTC/USDT", "1m", "--url", "ws://"], "expected ws://HOST:PORT/ws or wss://HOST/ws"),
        (["tail", "BTC/USDT", "1m", "--url", "ws://localhost:99999/"], "got 'ws://localhost:99999/'"),
        (["verify", "--memory", "http://me:hunter2@h/?token=hunter2"], "Invalid value for '--memory'"),
        (["gaps", "BTC"], "Invalid value for 'SYMBOL': expected BASE/QUOTE"),
        (["repair", "--from", "noon"], "'--from': expected a time such as 2026-11-01T12:00Z, got 'noon'"),
        (["init-db", "--drop-interval", "7m"], "Invalid value for '--drop-interval': 7m cannot be aligned"),
        (["verify", "--exchange-check", "0"], "'--exchange-check': expected a whole number from 1, or all, got '0'"),
        (["export", "BTC/USDT", "--format", "xml"], "'--format': 'xml' is not one of 'csv', 'parquet'."),
        (["import", "f.csv"], "Missing option '--symbol'"),
        (["--config"], "Option '--config' requires an argument."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_arguments_are_a_line_that_names_them_and_status_2(arguments, problem, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    named, see = printed.err.splitlines()
    assert named.startswith("candled: ")
    assert problem in named
    assert re.fullmatch(r"candled: see candled( [a-z-]+)? --help", see)
    assert "hunter2" not in printed.err


@pytest.mark.parametrize(
    ("words", "windows", "symbols"),
    [
        (["--exchange-check"], 10, None),
        (["--exchange-check", "--repair"], 10, None),
        (["--exchange-check", "3"], 3, None),
        (["--exchange-check=3"], 3, None),
        (["--exchange-check", "all"], "all", None),
        (["--exchange-check", "BTC/USDT"], 10, [Symbol("BTC", "USDT")]),
        ([], None, None),
    ],
)
def test_the_number_of_windows_may_be_left_out(words, windows, symbols):
    command = parse(["verify", *words])
    assert command is not None
    assert (command.keywords["exchange_check"], command.keywords["symbols"]) == (windows, symbols)


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["gaps"], None),
        (["gaps", "--config", "one.yaml"], "one.yaml"),
        (["--config", "one.yaml", "gaps"], "one.yaml"),
        (["--config", "one.yaml", "gaps", "--config", "two.yaml"], "two.yaml"),
    ],
)
def test_the_settings_are_named_before_or_after_the_command(words, file):
    command = parse(words)
    assert command is not None
    assert command.keywords["config"] == (None if file is None else Path(file))


# ---------------------------------------------------------------- terminals


def on_terminal(*arguments: str, env: dict[str, str] | None = None) -> str:
    """The output of a command in this process on a terminal of 100 columns, standard error too."""
    reading_end, writing_end = pty.openpty()
    parts: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # the end of a terminal
            while part := os.read(reading_end, 65_536):
                parts.append(part)

    reader = Thread(target=read)
    reader.start()
    try:
        with os.fdopen(writing_end, "w", encoding="utf-8") as terminal:
            _status(arguments, terminal, terminal, {"TERM": "xterm-256color", "COLUMNS": "100", **(env or {})})
    finally:
        reader.join()
        os.close(reading_end)
    return b"".join(parts).decode()


DRAWN = re.compile("[\x1b\u2500-\u257f]")  # colours and movements, lines of boxes


@pytest.mark.parametrize("arguments", [["--help"], ["verify", "--help"], ["plugins"], ["stop"]], ids=" ".join)
def test_there_are_plain_lines_where_no_terminal_is(arguments, monkeypatch):
    monkeypatch.setattr("typer.rich_utils.FORCE_TERMINAL", True)  # as Typer reads FORCE_COLOR when it is imported
    ended = run(*arguments, env={"TERM": "xterm-256color", "FORCE_COLOR": "1"})
    assert ended.stdout + ended.stderr
    assert not DRAWN.search(ended.stdout + ended.stderr)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--help"], ["Store and exchange", "backfill", "CANDLED_EXCHANGES__BITGET__SYMBOLS='[BTC/USDT, ETH/USDT]'"]),
        (["gaps", "--help"], ["[default: (all in the settings)]", "not fetched yet"]),
        (["plugins"], ["bitget", f"candled {__version__}"]),
    ],
    ids=["help", "command-help", "plugins"],
)
def test_a_terminal_shows_tables_and_panels_of_the_same_facts(arguments, facts):
    text = on_terminal(*arguments)
    assert DRAWN.search(text)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    for fact in facts:
        assert fact in plain


@pytest.mark.slow
def test_the_markup_of_rich_in_a_fact_is_text(install):
    install("x", "raise ValueError('no [bold]luck[/bold]')")
    assert "no [bold]luck[/bold]" in on_terminal("plugins", env={"COLUMNS": "200"})


MOVES = re.compile("\x1b\\[[0-9;?]*[a-zA-Z]")


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """The place of a store that the first test fills."""
    return tmp_path_factory.mktemp("filled") / "candled.db"


@pytest.fixture
def stored(tmp_path, filled):
    """A store of 5,000 minutes of BTC/USDT, with two gaps, in the current directory."""
    (tmp_path / "candled.yaml").write_text("exchanges: {replay: {symbols: [BTC/USDT]}}\ningest: {backfill: 0s}\n")
    if filled.exists():
        shutil.copy(filled, tmp_path)
        return
    minutes = [minute for minute in range(5_000) if minute not in (1000, 2000)]
    rows = "".join(f"{1_700_000_040_000 + 60_000 * minute},1,1,1,1,1\n" for minute in minutes)
    (tmp_path / "in.csv").write_text(f"time_ms,open,high,low,close,volume\n{rows}")
    assert main(["init-db"]) == 0
    assert main(["import", "in.csv", "--symbol", "BTC/USDT", "--quiet"]) == 0
    shutil.copy("candled.db", filled)


@pytest.mark.usefixtures("daemon", "stored")
def test_export_into_a_pipe_that_closes_ends_without_a_traceback():
    with subprocess.Popen(
        [sys.executable, "-m", "candled", "export", "BTC/USDT"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as export:
        assert export.stdout is not None
        assert export.stderr is not None
        assert export.stdout.readline().startswith("time_ms,open")
        export.stdout.close()
        assert (export.wait(timeout=60), export.stderr.read()) == (0, "")


@pytest.mark.slow
@pytest.mark.usefixtures("stored")
def test_gaps_are_plain_lines_in_a_pipe_and_a_table_on_a_terminal():
    lines = run("gaps").stdout.splitlines()
    assert (
        lines[1]
        == "  2023-11-15T14:54:00.000Z to 2023-11-15T14:55:00.000Z         1 min  missing         not asked for yet"
    )
    rows = [line.split() for line in MOVES.sub("", on_terminal("gaps")).splitlines()]
    assert ["from", "to", "minutes", "reason", "asked", "for"] in rows
    assert [
        "2023-11-15T14:54:00.000Z",
        "2023-11-15T14:55:00.000Z",
        "1",
        "missing",
        "not",
        "asked",
        "for",
        "yet",
    ] in rows


@pytest.mark.slow
@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("command", [["gaps", "--json"], ["verify", "--json"], ["export", "BTC/USDT"]], ids=" ".join)
def test_json_and_bars_are_the_same_bytes_in_a_pipe_and_on_a_terminal(command):
    command = [*command, "--quiet"] if command[0] == "verify" else command
    piped = run(*command).stdout
    shown = on_terminal(*command).replace("\r\n", "\n")
    if command[0] == "gaps":  # its end is the present
        piped, shown = (re.sub(r'"(to|minutes|missing)": [^,]+', "", text) for text in (piped, shown))
    assert piped
    assert shown == piped


@pytest.mark.slow
@pytest.mark.usefixtures("stored")
def test_a_long_command_draws_a_bar_on_a_terminal_and_nothing_elsewhere():
    command = ["export", "BTC/USDT", "--output", "out.csv"]
    ended = run(*command)
    assert (ended.stdout, ended.stderr) == ("", "")
    text = on_terminal(*command)
    assert "of 5,000" in text
    assert text.endswith("\x1b[2K")  # the line of the bar is cleared
    assert on_terminal(*command, "--quiet") == ""


# ---------------------------------------------------------------- completion


def in_bash(command: str, home: Path) -> str:
    """What a command prints that is given to an interactive shell of this home."""
    script = f'PS1=; candled() {{ {sys.executable} -m candled "$@"; }}; {command}; true'
    ended = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.usefixtures("daemon")
def test_the_completion_script_of_the_shell_is_printed(tmp_path):
    script = in_bash("candled --show-completion", tmp_path)
    assert "_CANDLED_COMPLETE=complete_bash" in script
    assert "complete -o default -F _candled_completion candled" in script


@pytest.mark.usefixtures("daemon")
def test_completion_is_installed_for_the_shell(tmp_path):
    assert "completion installed" in in_bash("candled --install-completion", tmp_path)
    assert "_CANDLED_COMPLETE" in (tmp_path / ".bash_completions" / "candled.sh").read_text("utf-8")
    assert "candled.sh" in (tmp_path / ".bashrc").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["candled", "backf"], {"backfill"}),
        (["candled", "re"], {"reload", "repair", "restore"}),
        (["candled", "backfill", "--dr"], {"--dry-run"}),
        (["candled", "--config", "x.yaml", "check"], {"check-config"}),
        (["candled", "export", "BTC/USDT", "--format", ""], {"csv", "parquet"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_words_are_completed(words, expected):
    completing = {"_CANDLED_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words)}
    ended = run(env={**completing, "COMP_CWORD": str(len(words) - 1)})
    assert (set(ended.stdout.split()), ended.stderr) == (expected, "")


# ---------------------------------------------------------------- what is loaded


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(
    ("program", "unwanted"),
    [
        (
            "main(['--version']); main(['--help'])",
            {"asyncio", "pydantic", "redis", "rich", "tornado", "yaml"},
        ),
        ("main(['check-config'])", {"rich", "candled.app", "candled.tools.session"}),
        ("parse([]); import candled.app", {"psycopg2", "redis", "rich", "candled.tools.session"}),
    ],
    ids=["version and help", "check-config", "daemon"],
)
def test_a_command_loads_only_the_libraries_that_it_needs(program, unwanted):
    script = f"from candled.cli import main, parse; {program}; import sys; print(*sys.modules, file=sys.stderr)"
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    loaded = set(ended.stderr.split())
    assert "candled.cli" in loaded
    assert loaded & unwanted == set()


# ---------------------------------------------------------------- plugins


@pytest.mark.slow
def test_plugins_are_listed(capsys):
    assert main(["plugins"]) == (0 if all(status.ok for status in discover().statuses) else 1)
    assert f"bitget (candled {__version__}): exchanges: bitget (bronze)\n" in capsys.readouterr().out


@pytest.mark.slow
def test_a_broken_plugin_is_listed_with_its_reason_and_status_1(install):
    install("absent", None)
    ended = run("plugins")
    assert ended.returncode == 1
    reason = "absent (candled-absent 1.0): cannot be used: ModuleNotFoundError: No module named 'absent'"
    assert reason in ended.stdout.splitlines()
    assert "Traceback" not in ended.stderr
    assert "Traceback" in run("plugins", env={"CANDLED_LOG__LEVEL": "debug"}).stderr  # for its author


# ---------------------------------------------------------------- tail: formatting


def test_a_bar_is_a_line_with_all_its_digits():
    (bar,) = parsed([BAR])
    assert line(bar) == "2024-10-24 10:00  O 67234.5  H 67340  L 67200  C 67310.25  V 0.00000001"


def parsed(bars: list[dict[str, Any]]) -> list[Bar]:
    return [Bar.from_wire(bar) for bar in json.loads(json.dumps(bars), parse_float=Decimal, parse_int=Decimal)]


def printed(in_place: bool, *batches: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    printer = Printer(out, in_place=in_place)
    for bars in batches:
        printer.print_bars(parsed(bars))
    return out.getvalue()


def test_on_a_terminal_a_moving_bar_stays_on_its_line():
    text = printed(True, [BAR], [BAR | {"close": 67311}], [NEXT])
    assert [part.count("\r\x1b[K") for part in text.split("\n")] == [2, 1]
    assert not text.endswith("\n")


def test_elsewhere_each_change_is_a_line():
    lines = printed(False, [BAR], [BAR | {"close": 67311}], [NEXT]).splitlines()
    assert [text[:16] for text in lines] == ["2024-10-24 10:00", "2024-10-24 10:00", "2024-10-24 10:05"]


def test_a_bar_whose_line_did_not_change_is_not_printed_again():
    assert printed(False, [BAR, NEXT], [BAR | {"final": True}, NEXT]) == printed(False, [BAR, NEXT])


def test_a_remark_does_not_overwrite_the_bar_or_steer_the_terminal():
    out = io.StringIO()
    printer = Printer(out, in_place=True)
    printer.print_bars(parsed([BAR]))
    printer.print_note("Gone\x1b[2J\r\nfor\x07 go\u202eod\x9b1m")
    assert out.getvalue().endswith("V 0.00000001\n-- Gone[2J for good1m\n")


def test_what_was_printed_long_ago_is_forgotten():
    others = [BAR | {"time": f"2024-10-25T{hour:02}:{minute:02}Z"} for hour in range(20) for minute in range(60)]
    lines = printed(False, [BAR], others[:10], [BAR], others, [BAR]).splitlines()
    assert lines.count(lines[0]) == 2


# ---------------------------------------------------------------- tail: against a server


LAST = BAR | {"time": "2030-01-01T00:00:00.000Z"}


class Server:
    """A WebSocket server that answers each subscription with the next of its scripts, and then closes."""

    def __init__(self, *scripts: list[str]) -> None:
        self.scripts = list(scripts)
        self.requests: list[dict[str, Any]] = []
        listening, port = bind_unused_port()
        self.url = f"ws://127.0.0.1:{port}/ws"
        self._http = HTTPServer(Application([("/ws", _Handler, {"server": self})]))
        self._http.add_socket(listening)

    async def stop(self) -> None:
        self._http.stop()
        await self._http.close_all_connections()
        await asyncio.sleep(0.02)  # so that the client's end of the loopback hears of it and is closed too


class _Handler(WebSocketHandler):
    def initialize(self, server: Server) -> None:
        self.server = server

    async def on_message(self, message: str | bytes) -> None:
        self.server.requests.append(json.loads(message))
        script = self.server.scripts.pop(0) if self.server.scripts else []  # asked again after an error that passes
        for text in script:
            await self.write_message(text)
        if self.server.scripts:
            self.close()
        else:
            await self.write_message(update(LAST))


def initial(*bars: dict[str, Any]) -> str:
    return json.dumps({"type": "initial", "symbol": "BTC/USDT", "interval": "5m", "bars": bars})


def update(bar: dict[str, Any]) -> str:
    return json.dumps({"type": "update", "symbol": "BTC/USDT", "interval": "5m", "bar": bar})


def error(message: str, **more: Any) -> str:
    return json.dumps({"type": "error", "message": message, **more})


class Impatient:
    """A clock on which every wait is over at once; `slept` has the seconds asked for."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now_ms(self) -> int:
        return 0

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)


class Stopped(Impatient):
    """A clock on which no wait ever ends."""

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.Event().wait()


async def output_until(text: str, url: str, clock: Impatient, exchange: str | None = None) -> str:
    """The output of `tail` until it contains a text."""
    out = io.StringIO()
    following = asyncio.ensure_future(tail(url, "BTC/USDT", "5m", exchange, 2, out=out, clock=clock))
    async with deadlines.timeout(10):
        while text not in out.getvalue():
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    return out.getvalue()


async def followed(url: str, exchange: str | None = None) -> tuple[list[str], list[float]]:
    """The lines of `tail` before the last bar of all scripts, and how long it waited between connections."""
    clock = Impatient()
    output = await output_until("2030-01-01 00:00", url, clock, exchange)
    return output.splitlines()[:-1], clock.slept


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*scripts: list[str]) -> Server:
        servers.append(Server(*scripts))
        return servers[-1]

    yield start
    for server in servers:
        await server.stop()


@pytest.mark.parametrize("exchange", [None, "replay"])
async def test_tail_prints_what_there_is_and_then_what_comes(serve, exchange):
    # another bar: two states of one bar that arrive together are printed once
    server = serve([initial(BAR, NEXT), update(NEXT | {"time": "2024-10-24T10:10:00.000Z"})])
    lines, waits = await followed(server.url, exchange)
    assert [text[:16] for text in lines] == ["2024-10-24 10:00", "2024-10-24 10:05", "2024-10-24 10:10"]
    assert waits == []
    (request,) = server.requests
    expected = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "5m", "initialBars": 2}
    assert request.items() >= expected.items()
    assert request.get("exchange") == exchange


async def test_tail_connects_and_subscribes_again_and_prints_only_what_is_new(serve):
    server = serve([initial(BAR)], [initial(BAR, NEXT)])
    lines, (wait_s,) = await followed(server.url)
    lost = f"-- {server.url}: the connection was closed; connecting again in {wait_s:.1f} s"
    assert [text[:16] for text in lines] == ["2024-10-24 10:00", lost[:16], "2024-10-24 10:05"]
    assert lines[1] == lost
    assert len(server.requests) == 2


async def test_tail_waits_longer_after_each_failure_and_starts_over_after_a_success(serve):
    nothing: list[str] = []
    server = serve(nothing, nothing, nothing, [initial(BAR)], [initial(NEXT)])
    _, waits = await followed(server.url)
    for wait, limit in zip(waits, [0.5, 1, 2, 0.5], strict=True):
        assert limit / 2 <= wait <= limit


async def test_an_error_that_will_pass_is_a_remark(serve):
    server = serve([error("Failed to subscribe", id=1, code=100, temporary=True), initial(BAR)])
    lines, _ = await followed(server.url)
    assert lines[0] == "-- Failed to subscribe"
    assert lines[1].startswith("2024-10-24 10:00")


async def test_tail_does_not_print_the_password_of_its_address():
    url = f"ws://me:hunter2@127.0.0.1:{free_port()}/ws?token=hunter2"
    output = await output_until("connecting again", url, Stopped())
    assert "me:***@127.0.0.1" in output
    assert "hunter2" not in output


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"type": "update", "bar": {}}',
        '{"type": "error"}',
        "7",
        "[" * 100_000,
        f"[1e{'9' * 30}]",
        initial(BAR | {"time": "2024\x1b]0;oh\x07"}),
    ],
    ids=range(8),
)
async def test_a_server_that_says_something_else_is_tried_again(serve, text):
    server = serve([text], [initial(BAR)])
    lines, _ = await followed(server.url)
    assert "the server does not speak candled's protocol" in lines[0]
    assert lines[-1].startswith("2024-10-24 10:00")


@pytest.mark.parametrize("control", ["", "\x1b\x07\u202e"])
@pytest.mark.parametrize("more", [{}, {"id": 1, "code": 102, "temporary": False}])
async def test_a_refusal_ends_tail_with_status_2(serve, control, more, capsys):
    server = serve([error(f"Invalid interval: 7m. {control}Valid: 1m, 5m", **more)])
    assert await tail(server.url, "BTC/USDT", "7m", None, 2, out=io.StringIO(), clock=Impatient()) == 2
    assert capsys.readouterr().err == "candled: Invalid interval: 7m. Valid: 1m, 5m\n"


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[Daemon]:
    """A daemon that is followed."""
    with Daemon(tmp_path_factory.mktemp("followed")) as daemon:
        daemon.start({"exchanges": {"replay": {"symbols": ["BTC/USDT"]}}, "ingest": {"backfill": "0s"}})
        yield daemon


@pytest.mark.usefixtures("daemon")
def test_tail_follows_a_daemon_until_ctrl_c(running):
    tail = started("BTC/USDT", "1m", "--url", running.ws_url, "--bars", "2")
    assert tail.stdout is not None
    first = tail.stdout.readline()
    tail.send_signal(signal.SIGINT)
    _, errors = tail.communicate(timeout=60)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d  O \d", first)
    assert (tail.returncode, errors) == (0, "")


@pytest.mark.usefixtures("daemon")
def test_tail_into_a_pipe_that_closes_ends_without_a_traceback(running):
    tail = started("BTC/USDT", "1m", "--url", running.ws_url, "--bars", "2")
    assert tail.stdout is not None
    tail.stdout.readline()
    tail.stdout.close()
    assert tail.wait(timeout=60) == 0
    assert tail.stderr is not None
    with tail.stderr:
        assert tail.stderr.read() == ""


@pytest.mark.usefixtures("daemon")
def test_tail_keeps_trying_while_no_server_listens():
    tail = started("BTC/USDT", "1m", "--url", f"ws://127.0.0.1:{free_port()}/ws")
    assert tail.stdout is not None
    printed = tail.stdout.readline()
    tail.send_signal(signal.SIGINT)
    tail.communicate(timeout=60)
    assert "connecting again in" in printed
    assert tail.returncode == 0


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "candled", "tail", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
