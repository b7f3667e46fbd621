"""The command line."""

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from candled import __version__, config, signals
from candled.bus.redis.address import RedisAddress
from candled.clock import SystemClock
from candled.errors import ConfigError
from candled.plugins import Plugins, discover
from candled.settings import redacted
from candled.tools import TOOLS, Run

DEFAULT_CONFIG = Path("candled.yaml")

_EPILOG = """\
settings:
  Without --config, ./candled.yaml is read if it is there; else every setting has its default.
  Each setting can be given by the environment too, which goes over the file. Two underscores stand
  between section and key; values are YAML:
    CANDLED_SERVER__PORT=7001
    CANDLED_STORE__URL=sqlite:////var/lib/candled/candled.db
    CANDLED_INTERVALS='[1m, 5m]'
    CANDLED_EXCHANGES__BITGET__SYMBOLS='[BTC/USDT, ETH/USDT]'

exit status:
  0  ended as asked, by Ctrl-C or SIGTERM too, and nothing was wrong
  1  the daemon ended with candles it could not store, `candled plugins` found a plugin that cannot be used, or
     a command on stored history found something missing or wrong
  2  a mistake in settings or arguments, a port in use, a file that cannot be read, a subscription that the
     server refused: a line for each on standard error
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    options = _parser().parse_args(argv)
    if options.command is not _run:
        signals.obey_as_command()
    logging.basicConfig(level=_level(os.environ), format="candled: %(message)s")
    try:
        status: int = options.command(options)
        sys.stdout.flush()
    except ConfigError as error:
        for problem in error.problems:
            print(f"candled: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # `candled tail … | head`: what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return status


def _level(env: Mapping[str, str]) -> int:
    """What is logged until the settings are read: warnings, or all if the environment says so."""
    return logging.DEBUG if env.get("CANDLED_LOG__LEVEL", "").strip().lower() == "debug" else logging.WARNING


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="candled",
        description="A self-hosted candle server. Without a command it runs until Ctrl-C or SIGTERM.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"candled {__version__}")
    _add_config(parser, None)
    parser.set_defaults(command=_run)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    check = commands.add_parser("check-config", help="check the settings and print them as they take effect")
    _add_config(check, argparse.SUPPRESS)
    check.set_defaults(command=_check_config)

    schema = commands.add_parser("config", help="config schema: print the JSON Schema of the settings, for editors")
    schema.add_argument("what", choices=["schema"])
    schema.set_defaults(command=_config_schema)

    plugins = commands.add_parser("plugins", help="list the plugins that are installed, and what is wrong with them")
    plugins.set_defaults(command=_plugins)

    tail = commands.add_parser("tail", help="follow the bars of a running server in the terminal")
    tail.add_argument("symbol", metavar="SYMBOL", help="for instance BTC/USDT")
    tail.add_argument("interval", metavar="INTERVAL", help="for instance 5m")
    tail.add_argument(
        "--url", type=_url, default="ws://localhost:7000/ws", help="where the server is (default: %(default)s)"
    )
    tail.add_argument("--exchange", metavar="X", help="which exchange, if not the server's first one")
    tail.add_argument("--bars", type=_bars, default=10, metavar="N", help="bars to begin with (default: %(default)s)")
    tail.set_defaults(command=_tail)

    for add_tool in TOOLS:
        add_tool(_Commands(commands))
    return parser


class _Commands:
    """`candled.tools.Commands` over argparse."""

    def __init__(self, commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        self._commands = commands

    def add(self, name: str, run: Run, *, help: str, **more: Any) -> argparse.ArgumentParser:
        parser = self._commands.add_parser(name, help=help, **more)
        _add_config(parser, argparse.SUPPRESS)
        parser.set_defaults(command=lambda options: run(options, _load(options, discover())))
        return parser


def _add_config(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--config", metavar="FILE", type=Path, default=default, help="the settings (default: ./candled.yaml, if any)"
    )


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"expected ws://HOST:PORT/ws or wss://HOST/ws, got {redacted(text)!r}")
    return text


def _bars(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    from candled import app  # the other commands need no server

    plugins = discover()
    return app.run(_load(options, plugins), plugins)


def _check_config(options: argparse.Namespace) -> int:
    from candled.bus.redis.connections import check_files  # the client of Redis is slow to load

    settings = _load(options, discover())
    config.make_exchanges(settings, SystemClock())
    config.make_store(settings)  # reads the address, connects to nothing
    if settings.bus.url != "memory://":
        check_files(RedisAddress.parse(settings.bus.url))
    for doubt in config.doubts(settings):
        print(f"candled: warning: {doubt}", file=sys.stderr)
    print(yaml.safe_dump(config.as_plain(settings), sort_keys=False, allow_unicode=True), end="")
    for exchange in settings.exchanges:
        print(f"# proxy of exchanges.{exchange.name}: {exchange.proxies.describe()}")
    return 0


def _config_schema(_: argparse.Namespace) -> int:
    from candled.settings_schema import make_schema

    print(json.dumps(make_schema(discover().exchanges), indent=2, ensure_ascii=False))
    return 0


def _plugins(_: argparse.Namespace) -> int:
    statuses = discover().statuses
    for status in statuses:
        offers = f"exchanges: {', '.join(status.exchanges) or 'none'}"
        print(f"{status}: {offers if status.ok else f'cannot be used: {status.error}'}")
    if not statuses:
        print("no plugins: install candled with pip, which registers the bundled ones")
    return 0 if all(status.ok for status in statuses) else 1


def _tail(options: argparse.Namespace) -> int:
    from candled.tools.tail import Tail  # only this command is a client

    return asyncio.run(Tail(options.url, options.symbol, options.interval, options.exchange, options.bars).run())


def _load(options: argparse.Namespace, plugins: Plugins) -> config.Config:
    path: Path | None = options.config
    if path is None and DEFAULT_CONFIG.exists():
        path = DEFAULT_CONFIG
    return config.load(path, os.environ, plugins)
