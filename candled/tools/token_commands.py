"""The commands for access tokens, `candled token …`."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from candled.errors import ConfigError
from candled.model import MINUTE_MS, iso_ms

from . import options as opt
from .options import Outcome, declare

if TYPE_CHECKING:
    from candled.access.token_file import Entry

app = typer.Typer(help="Make, list and revoke access tokens.")


def _parse_duration(text: str) -> timedelta:
    from candled.settings import parse_duration

    try:
        return parse_duration(text)
    except (TypeError, ValueError):
        raise ValueError(f"expected a duration such as 12h or 90d, got {text!r}") from None


TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--file", metavar="FILE", readable=False, show_default="access.tokens_file of the settings", help="The file."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Its name in lists and metrics, for instance desk-3.")]


def _limit(help: str) -> Any:
    """Return the option of a limit, 0 for that of the server."""
    return typer.Option(min=0, metavar="N", show_default="no limit but the server's", help=help)


@declare(app)
def new(
    name: Name,
    symbols: Annotated[
        list[str] | None,
        typer.Option(
            "--symbol", metavar="S", show_default="all", help="A symbol, or a pattern such as */USDT. Repeatable."
        ),
    ] = None,
    intervals: Annotated[
        list[str] | None,
        typer.Option("--interval", metavar="I", show_default="all", help="An interval such as 5m. Repeatable."),
    ] = None,
    expires: Annotated[
        timedelta | None,
        typer.Option(parser=_parse_duration, metavar="D", show_default="never", help="After this time, such as 90d."),
    ] = None,
    connections: Annotated[int, _limit("Connections at a time.")] = 0,
    rooms: Annotated[int, _limit("Subscriptions of one connection.")] = 0,
    messages: Annotated[int, _limit("Messages of one connection per second.")] = 0,
    requests: Annotated[int, _limit("HTTP requests per minute.")] = 0,
    file: TokenFile = None,
    config: opt.ConfigFile = None,
) -> Outcome:
    """Make a token, and print it.

    The file gets only its hash, so that this is the only time that you see it. A running daemon knows the token a
    second later.
    """
    from candled.access import token_file

    token = token_file.make_token(name)
    entry = token_file.Entry(
        sha256=token_file.digest_of(token),
        expires=None if expires is None else _time_after(expires),
        symbols=symbols or None,
        intervals=intervals or None,
        connections=connections,
        rooms=rooms,
        messages=messages,
        requests=requests,
    )
    token_file.add_entry(_find_file(file, config), name, entry)
    print(token)
    return 0


@declare(app)
def list_(file: TokenFile = None, config: opt.ConfigFile = None) -> Outcome:
    """List the tokens of the file, with their claims. Secrets are not in it."""
    from candled.access import token_file

    from .tables import print_rows

    path = _find_file(file, config)
    grants = token_file.read_grants(path)
    now_ms = opt.make_clock().now_ms()
    rows = []
    for name, grant in grants.items():
        expires = "never" if grant.expires_ms is None else iso_ms(grant.expires_ms)
        if grant.expires_ms is not None and grant.expires_ms <= now_ms:
            expires += " (expired)"
        rows.append((name, expires, "; ".join(grant.describe()) or "everything"))
    print_rows(("token", "expires", "allows"), rows, [": ".join(row) for row in rows])
    return 0


@declare(app)
def revoke(name: Name, file: TokenFile = None, config: opt.ConfigFile = None) -> Outcome:
    """Remove a token from the file. A running daemon closes its connections a second later."""
    from candled.access import token_file

    path = _find_file(file, config)
    entries: dict[str, Entry] = token_file.read_entries(path)
    if entries.pop(name, None) is None:
        raise ConfigError(f"{path}: has no token {name[:64]}; `candled token list` lists them")
    token_file.write_entries(path, entries)
    print(f"revoked {name}")
    return 0


def _time_after(duration: timedelta) -> str:
    """Return the time that lies a duration from now, rounded down to a minute."""
    at_ms = opt.make_clock().now_ms() + duration // timedelta(milliseconds=1)
    return iso_ms(at_ms // MINUTE_MS * MINUTE_MS)


def _find_file(file: Path | None, config: Path | None) -> Path:
    """Return the file of tokens: the one given, else that of the settings.

    Raises:
        ConfigError: the settings have none.
    """
    if file is not None:
        return file
    settings = opt.load_config(config).access
    if not settings.tokens_file:
        raise ConfigError("access.tokens_file: is not set; set it, or give --file")
    return Path(settings.tokens_file)
