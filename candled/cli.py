"""The command line."""

import logging
import os
import sys
from collections.abc import Sequence
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from candled import __version__, signals
from candled.errors import ConfigError
from candled.logs import BoundedHandler
from candled.tools import commands, plugin_commands, token_commands
from candled.tools.options import ConfigFile, Outcome, declare, find_config, load_config, make_clock, parse_url

if TYPE_CHECKING:
    from candled.exchange import Exchange

_HELP = """\
A self-hosted candle server. Without a command it runs until Ctrl-C or SIGTERM.
"""
_NOTES = """\
\b
Settings:
  Without --config, ./candled.yaml is read if it exists; else every setting
  has its default. You can give each setting in the environment too, which
  overrides the file. Two underscores stand between section and key; values
  are YAML:
    CANDLED_SERVER__PORT=7001
    CANDLED_STORE__URL=sqlite:////var/lib/candled/candled.db
    CANDLED_INTERVALS='[1m, 5m]'
    CANDLED_EXCHANGES__BITGET__SYMBOLS='[BTC/USDT, ETH/USDT]'

\b
Exit status:
  0  ended normally (also by Ctrl-C or SIGTERM) and found no problem
  1  the daemon ended with candles it could not store, `candled plugins` found
     a plugin that cannot be used, `candled check-config --markets` could not
     read an exchange, `candled doctor` found a problem, `candled reload` found settings that need a restart,
     or a command on stored history found missing or wrong minutes
  2  a mistake in settings or arguments, a port in use, a file that cannot be
     read, a subscription that the server refused: a line for each on standard
     error
"""
_DAEMON = "Daemon"
_DEMO = Path(__file__).with_name("demo.yaml")


class _Commands(TyperGroup):
    """Lists commands under headings in plain help too; Typer does it only where rich draws the help."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command. Plugins are only loaded for names that are not candled's own."""
        if cmd_name not in self.commands:
            self._add_plugins()
        return super().get_command(ctx, cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """List the commands, with those of plugins."""
        self._add_plugins()
        return super().list_commands(ctx)

    def _add_plugins(self) -> None:
        from candled.tools.plugin_subcommands import find_commands

        self.commands = {**find_commands(), **self.commands}

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each heading."""
        self._add_plugins()
        width = max(map(len, self.commands))
        sections: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            row = name.ljust(width), command.get_short_help_str(formatter.width)
            sections.setdefault(getattr(command, "rich_help_panel", "Commands"), []).append(row)
        for heading, rows in sections.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


_config = typer.Typer(help="Print the JSON Schema of the settings, for editors.")
app = typer.Typer(cls=_Commands, help=_HELP, epilog=_NOTES, context_settings={"max_content_width": 100})


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    try:
        run = parse(sys.argv[1:] if argv is None else argv)
        status = 0 if run is None else _run(run)
        sys.stdout.flush()
    except typer.TyperException as error:
        context: typer.Context | None = getattr(error, "ctx", None)
        print(f"candled: {error.format_message().replace('Value error, ', '')}", file=sys.stderr)  # pydantic's word
        print(f"candled: see {context.command_path if context else 'candled'} --help", file=sys.stderr)
        return 2
    except ConfigError as error:
        for problem in error.problems:
            print(f"candled: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # `candled export … | head`: the rest of the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def parse(argv: Sequence[str]) -> "partial[Outcome] | None":
    """Parse a command line; return the command, bound to its options, or None if help or the like was printed.

    Raises:
        typer.TyperException: the arguments are wrong.
    """
    run = _make_command(sys.stdout.isatty()).main(_with_window_count(argv), prog_name="candled", standalone_mode=False)
    return run if isinstance(run, partial) else None  # else an exit status, after --help


@cache
def _make_command(draws: bool) -> Any:
    app.rich_markup_mode = "rich" if draws else None
    return typer.main.get_command(app)


def _with_window_count(argv: Sequence[str]) -> list[str]:
    """Add the default value of `--exchange-check` if it has none: Typer has no options with an optional value."""
    words: list[str] = []
    for word, following in zip_longest(argv, argv[1:], fillvalue=""):
        words.append(word)
        if word == "--exchange-check" and following != "all" and not following.isdigit():
            words.append("10")
    return words


def _run(run: "partial[Outcome]") -> int:
    if run.func not in (_run_daemon, demo):
        signals.obey_as_command()
    is_debug = os.environ.get("CANDLED_LOG__LEVEL", "").strip().lower() == "debug"
    level = logging.DEBUG if is_debug else logging.WARNING  # until the settings are read
    logging.basicConfig(level=level, handlers=[BoundedHandler("candled: %(message)s")])
    outcome = run()
    if isinstance(outcome, int):
        return outcome
    import asyncio

    return asyncio.run(outcome)


# ---------------------------------------------------------------- the daemon


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"candled {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _parse_daemon(
    context: typer.Context,
    config: ConfigFile = None,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            metavar="N",
            show_default="one process that does everything",
            help="Run one process that ingests and N that serve and share the port. Needs Redis and PostgreSQL.",
        ),
    ] = None,
    worker: Annotated[str | None, typer.Option(hidden=True)] = None,  # given by `candled.workers`
) -> "partial[Outcome] | None":
    if context.invoked_subcommand is not None:
        if workers is not None:
            raise typer.BadParameter("--workers is for the daemon, which runs without a command")
        return None
    return partial(_run_daemon, config, workers, worker)


def _run_daemon(config: ConfigFile, count: int | None, worker: str | None) -> Outcome:
    from candled import app as daemon  # commands need no server
    from candled.plugins import discover

    plugins = discover()
    # the same file at each reload, even if it is removed meanwhile
    read = partial(load_config, find_config(config), plugins)
    if count is None:
        return daemon.run(read, plugins)
    return daemon.run_workers(read, plugins, count, worker)


@declare(app, _DAEMON)
def demo(
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65535, metavar="PORT", show_default="7000", help="The port of the chart; 0 for any free one."
        ),
    ] = None,
) -> Outcome:
    """Run the daemon with recorded market data on the present clock, without a network.

    Open the address that it logs to see a chart. It keeps its store in the current directory: candled-demo.db and
    candled-demo.journal.
    """
    from candled import app as daemon
    from candled.plugins import discover

    plugins = discover()
    env = os.environ if port is None else {**os.environ, "CANDLED_SERVER__PORT": str(port)}
    return daemon.run(partial(load_config, _DEMO, plugins, env), plugins)


@declare(app, _DAEMON)
def check_config(
    config: ConfigFile = None,
    markets: Annotated[
        bool,
        typer.Option(
            "--markets", help="Instead of the settings, print the markets that they choose today, and their cost."
        ),
    ] = False,
) -> Outcome:
    """Check the settings, and print them as they take effect.

    With --markets it reads the list of markets of each exchange, within half of the request budget.
    """
    import yaml

    from candled.config import as_plain, config_warnings
    from candled.reloader import check_parts

    settings = load_config(config)
    check_parts(settings, make_clock())
    for warning in config_warnings(settings):
        print(f"candled: warning: {warning}", file=sys.stderr)
    if markets:
        from candled.tools.markets import check_markets

        return check_markets(settings, make_clock())
    print(yaml.safe_dump(as_plain(settings), sort_keys=False, allow_unicode=True), end="")
    for exchange in settings.exchanges:
        print(f"# proxy of exchanges.{exchange.name}: {exchange.proxies.describe()}")
    return 0


@declare(app, _DAEMON)
def doctor(config: ConfigFile = None) -> Outcome:
    """Examine candled and its surroundings, and print a page without secrets.

    Shows versions, limits, the clock, settings that are probably wrong, and whether the store, the bus and the
    exchanges answer. The status is 1 if there is a problem.
    """
    from candled.plugins import discover
    from candled.tools.doctor import Doctor

    plugins, path = discover(), find_config(config)
    return Doctor(plugins, make_clock()).examine(partial(load_config, path, plugins), path)


@declare(app, _DAEMON)
def reload(
    config: ConfigFile = None,
    socket: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", show_default="control.socket of the settings", help="The control socket of the daemon."
        ),
    ] = None,
) -> Outcome:
    """Have the running daemon read its settings again, and print the result.

    No client is disconnected. If the settings have mistakes, the daemon continues with its former ones.
    """
    from candled.config import control_socket
    from candled.tools.reload import reload_daemon

    return reload_daemon(control_socket(find_config(config), os.environ) if socket is None else socket)


@declare(_config)
def schema() -> Outcome:
    """Print the JSON Schema of the settings, for editors."""
    import json

    from candled.plugins import discover
    from candled.settings_schema import make_schema

    found = discover()
    print(json.dumps(make_schema(found.exchanges, found.settings), indent=2, ensure_ascii=False))
    return 0


@declare(app, _DAEMON)
def plugins() -> Outcome:
    """List the installed plugins and their problems."""
    from candled.plugins import discover
    from candled.tools.tables import print_rows

    found = discover()
    rows: list[Sequence[str]] = []
    lines: list[str] = []
    for status in found.statuses:
        exchanges = ", ".join(_with_level(found.exchanges[one]) for one in status.exchanges) or "none"
        hooks = ", ".join(status.hooks)
        rows.append((status.name, f"{status.distribution} {status.version}", exchanges, hooks, status.error or ""))
        offers = f"exchanges: {exchanges}" + (f"; hooks: {hooks}" if hooks else "")
        lines.append(f"{status}: {offers}" if status.ok else f"{status}: cannot be used: {status.error}")
    print_rows(("plugin", "package", "exchanges", "hooks", "problem"), rows, lines)
    if not rows:
        print("no plugins: install candled with pip, which registers the bundled ones")
    return 0 if all(status.ok for status in found.statuses) else 1


def _with_level(exchange: "type[Exchange]") -> str:
    level = exchange.evidence.level
    return exchange.name if level == "unproven" else f"{exchange.name} ({level})"


@declare(app, _DAEMON)
def tail(
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="For instance BTC/USDT.")],
    interval: Annotated[str, typer.Argument(metavar="INTERVAL", help="For instance 5m.")],
    url: Annotated[
        str, typer.Option(parser=parse_url, metavar="URL", help="The address of the server.")
    ] = "ws://localhost:7000/ws",
    exchange: Annotated[
        str | None, typer.Option(metavar="X", show_default="the server's first one", help="The exchange.")
    ] = None,
    bars: Annotated[int, typer.Option(min=0, metavar="N", help="The number of bars to begin with.")] = 10,
) -> Outcome:
    """Follow the bars of a running server in the terminal."""
    from candled.tools.tail import tail

    return tail(url, symbol, interval, exchange, bars)


app.add_typer(_config, name="config", rich_help_panel=_DAEMON)
app.add_typer(token_commands.app, name="token", rich_help_panel=_DAEMON)
app.add_typer(plugin_commands.app, name="plugin", rich_help_panel=_DAEMON)
app.add_typer(commands.app)
