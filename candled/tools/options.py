"""The parts of a command's declaration: arguments, options, and the settings that `--config` names."""

import os
from collections.abc import Callable, Coroutine, Mapping
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import typer

from candled.model import Interval, Symbol, parse_iso_ms

if TYPE_CHECKING:
    from candled.config import Config
    from candled.exchange import Clock
    from candled.plugins import Plugins

T = TypeVar("T")

DEFAULT_CONFIG = Path("candled.yaml")


def load_config(path: Path | None, plugins: "Plugins | None" = None, env: Mapping[str, str] = os.environ) -> "Config":
    """Read the settings of a file, by default of `DEFAULT_CONFIG` if it exists, and of the environment.

    Raises:
        ConfigError: with one line per problem, all of them in one run.
    """
    from candled import config  # the command line is parsed before the modules that take time are loaded
    from candled.plugins import discover

    return config.load(find_config(path), env, plugins or discover())


def find_config(path: Path | None) -> Path | None:
    """Return the file of settings: `path`, else `DEFAULT_CONFIG` if it exists, else None."""
    return DEFAULT_CONFIG if path is None and DEFAULT_CONFIG.exists() else path


def make_clock() -> "Clock":
    """Return the clock of the commands."""
    from candled.clock import SystemClock

    return SystemClock()


# ---------------------------------------------------------------- values: a ValueError is the message of a mistake


def parse_time(text: str) -> int:
    """Parse a time; return UTC epoch milliseconds."""
    try:
        return parse_iso_ms(text)
    except ValueError:
        raise ValueError(f"expected a time such as 2026-11-01T12:00Z, got {text!r}") from None


def parse_url(text: str) -> str:
    """Check the address of a WebSocket server."""
    try:
        parts = urlsplit(text)
        is_valid = parts.scheme in ("ws", "wss") and parts.hostname and parts.port != 0
    except ValueError:  # the port is no number
        is_valid = False
    if not is_valid:
        from candled.settings import redacted

        raise ValueError(f"expected ws://HOST:PORT/ws or wss://HOST/ws, got {redacted(text)!r}")
    return text


def parse_windows(text: str) -> int | Literal["all"]:
    """Parse the number of windows to compare."""
    if text == "all":
        return "all"
    if not (text.isascii() and text.isdigit()) or int(text) == 0:
        raise ValueError(f"expected a whole number from 1, or all, got {text!r}")
    return int(text)


def _inherit_config(context: typer.Context, path: Path | None) -> Path | None:
    """Return `--config` of the command, or else the one before it: `candled --config FILE COMMAND`."""
    inherited: Path | None = context.find_root().params.get("config")
    return path or inherited


# ---------------------------------------------------------------- arguments and options

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        readable=False,  # a file that cannot be read is reported with the other problems of settings
        callback=_inherit_config,
        show_default="./candled.yaml, if it exists",
        help="The file of settings.",
    ),
]
OneSymbol = Annotated[Symbol, typer.Argument(parser=Symbol.parse, metavar="SYMBOL", help="For instance BTC/USDT.")]
Symbols = Annotated[
    list[Symbol] | None,
    typer.Argument(
        parser=Symbol.parse,
        metavar="SYMBOL",
        show_default="all in the settings",
        help="The markets, for instance BTC/USDT.",
    ),
]
OnlyExchange = Annotated[str | None, typer.Option("--exchange", metavar="X", help="Only markets of this exchange.")]
ExchangeName = Annotated[
    str | None,
    typer.Option(
        "--exchange", metavar="X", show_default="the exchange of the symbol", help="Its name in the settings."
    ),
]
From = Annotated[
    int | None,
    typer.Option(
        "--from",
        parser=parse_time,
        metavar="TIME",
        show_default="the oldest",
        help="The first time, for instance 2026-11-01 or 2026-11-01T12:00Z.",
    ),
]
To = Annotated[
    int | None,
    typer.Option("--to", parser=parse_time, metavar="TIME", show_default="the newest", help="The time to stop before."),
]
OneInterval = Annotated[
    Interval | None,
    typer.Option("--interval", parser=Interval.parse, metavar="I", show_default="1m", help="The length of the bars."),
]
Intervals = Annotated[
    list[Interval] | None,
    typer.Option(
        "--drop-interval",
        parser=Interval.parse,
        metavar="I",
        help="Drop the bars of an interval that is not in the settings. You may give it more than once.",
    ),
]
Reread = Annotated[
    bool,
    typer.Option(
        "--reread", help="Also fetch stored minutes, and replace those for which the exchange has other values."
    ),
]
ExchangeCheck = Annotated[
    Any,
    typer.Option(
        parser=parse_windows,
        metavar="[N|all]",
        help="Also compare N random windows of each market (10 if you give no N), and a stretch of each longer "
        "interval that the exchange has in UTC, with the exchange; or all that it has. Takes at most half of its "
        "request budget.",
    ),
]
MemoryUrl = Annotated[
    str | None,
    typer.Option(
        parser=parse_url,
        metavar="URL",
        help="Also compare the bars that the daemon at this address shows, for instance ws://localhost:7000/ws.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]

# ---------------------------------------------------------------- commands

Outcome = int | Coroutine[Any, Any, int]
"""The exit status of a command, or a coroutine that returns it."""

F = TypeVar("F", bound=Callable[..., Outcome])


def declare(app: typer.Typer, heading: str = "Commands", epilog: str | None = None) -> Callable[[F], F]:
    """Declare a command with the name, the options and the docstring of a function.

    Parsing a command line that names it returns a `partial` of the function, for `candled.cli.main` to call. The
    command then runs outside Typer, which would handle Ctrl-C and broken pipes differently.
    """

    def register(function: F) -> F:
        @wraps(function)
        def bind(**options: Any) -> partial[Outcome]:
            return partial(function, **options)

        name = function.__name__.rstrip("_").replace("_", "-")
        app.command(name, help=unwrap(function.__doc__ or ""), epilog=epilog, rich_help_panel=heading)(bind)
        return function

    return register


def unwrap(text: str) -> str:
    """Make one line of each paragraph, for terminals of any width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
