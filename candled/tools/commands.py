"""The commands on stored history, as the command line shows them. Each loads the module that does its work."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from candled.model import END_OF_TIME_MS, MINUTE, REASONS, MarketKey, Range, Symbol

from . import options as opt
from .options import ConfigFile, Outcome, declare

if TYPE_CHECKING:
    from candled.config import Config

app = typer.Typer()

_STORE, _EXCHANGE, _FILES = "Store", "Store and exchange", "Files"

_GAPS_NOTES = """\
\b
Why a minute is missing:
""" + "".join(f"  {reason:<16}  {why}\n" for reason, why in REASONS.items())
_GAPS_STATUS = """
\b
Exit status:
  0  the exchange was asked for all missing minutes
  1  some minutes were not fetched yet (missing)
  2  a mistake in settings or arguments
"""
_MOVE_STATUS = """\
\b
Exit status:
  0  both stores have the same
  1  some bars differ
  2  a mistake in settings or arguments, or a store failed: run it again
"""
_FETCH_STATUS = """\
\b
Exit status:
  0  everything was requested, and stored if the exchange has it
  1  the exchange or the store failed for minutes, or some answers were not
     usable: run it again
  2  a mistake in settings or arguments
"""


def _load(
    config: Path | None, symbols: Sequence[Symbol] | None, exchange: str | None
) -> tuple["Config", list[MarketKey]]:
    from .store_access import markets_of

    settings = opt.load_config(config)
    return settings, markets_of(settings, symbols or (), exchange)


def _between(start: int | None, end: int | None) -> Range:
    return Range(start or 0, END_OF_TIME_MS if end is None else end)


@declare(app, _STORE)
def init_db(
    drop_interval: opt.Intervals = None,
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing: print the version of the schema, and what is pending.")
    ] = False,
    to: Annotated[
        int | None,
        typer.Option(
            "--to",
            metavar="VERSION",
            help="Only bring the tables to this version, at most one step back: see the docs.",
        ),
    ] = None,
    config: ConfigFile = None,
) -> Outcome:
    """Create or upgrade the tables of the store, as the daemon does on start.

    Also aggregates the stored minutes into intervals that are new in the settings. The daemon does the same on start
    if store.init allows it; no other command changes tables or intervals. If you remove an interval from the
    settings, its bars stay in the store and are kept up to date until you drop them here.
    """
    from .init_db import check_db, init_db, migrate_db

    if (to is not None) + check + bool(drop_interval) > 1:
        raise typer.BadParameter("--check, --to and --drop-interval exclude each other")
    if check:
        return check_db(opt.load_config(config))
    if to is not None:
        return migrate_db(opt.load_config(config), to)
    return init_db(opt.load_config(config), drop_interval or [])


@declare(app, _STORE)
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")], config: ConfigFile = None
) -> Outcome:
    """Copy the SQLite store to a new file, also while a daemon runs.

    The copy is complete and checked once the file has its name.
    """
    from .backup import back_up

    return back_up(opt.load_config(config), file)


@declare(app, _STORE)
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of candled backup.")], config: ConfigFile = None
) -> Outcome:
    """Put a backup in place of the SQLite store, and keep the former file under another name.

    Stop the daemon first.
    """
    from .backup import restore

    return restore(opt.load_config(config), file)


@declare(app, _STORE, _MOVE_STATUS)
def move(
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="The address of the new store, as in store.url, without password.")
    ],
    source: Annotated[
        str | None,
        typer.Option(metavar="URL", show_default="store.url of the settings", help="The store to copy from."),
    ] = None,
    quiet: opt.Quiet = False,
    config: ConfigFile = None,
) -> Outcome:
    """Copy the store to another one, SQLite or PostgreSQL, while the daemon runs.

    Copies all markets with all that is stored about them, compares both stores, and repeats the newest part until
    nothing is behind. It only reads the source. If you stop it, run it again: it continues. At the end it prints how to
    switch over.
    """
    from .move import move

    return move(opt.load_config(config), target, source, opt.make_clock(), quiet=quiet)


@declare(app, _STORE, _GAPS_NOTES + _GAPS_STATUS)
def gaps(
    symbols: opt.Symbols = None,
    exchange: opt.OnlyExchange = None,
    every: Annotated[bool, typer.Option("--all", help="Also list minutes without trades one by one.")] = False,
    as_json: opt.Json = False,
    config: ConfigFile = None,
) -> Outcome:
    """List the minutes that are missing, and why.

    Reads only the store and asks no exchange.
    """
    from .gaps import list_gaps

    settings, markets = _load(config, symbols, exchange)
    return list_gaps(settings, markets, opt.make_clock(), every=every, as_json=as_json)


@declare(app, _STORE)
def verify(
    symbols: opt.Symbols = None,
    exchange: opt.OnlyExchange = None,
    start: opt.From = None,
    end: opt.To = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Rebuild wrong bars from their minutes, and delete rows that are no bars. With --exchange-check, also "
            "replace minutes for which the exchange has other values.",
        ),
    ] = False,
    exchange_check: opt.ExchangeCheck = None,
    seed: Annotated[
        int | None, typer.Option(metavar="S", help="Choose the same windows as the run that printed S.")
    ] = None,
    memory: opt.MemoryUrl = None,
    digest: Annotated[
        bool,
        typer.Option(
            "--digest", help="Only print a SHA-256 of each market and UTC day, to compare two deployments by."
        ),
    ] = False,
    as_json: opt.JsonLines = False,
    quiet: opt.Quiet = False,
    config: ConfigFile = None,
) -> Outcome:
    """Prove that stored bars are right.

    Recomputes every stored bar from its minutes and compares digit for digit, week by week; it checks the whole of each
    week that the time range touches. Prints a line for each difference, and for each row that is no bar. You may run it
    beside the daemon.
    """
    from .verify import verify

    settings, markets = _load(config, symbols, exchange)
    return verify(
        settings,
        markets,
        _between(start, end),
        repair=repair,
        windows=exchange_check,
        seed=seed,
        memory=memory,
        digest=digest,
        as_json=as_json,
        quiet=quiet,
    )


@declare(app, _EXCHANGE, _FETCH_STATUS)
def backfill(
    symbols: opt.Symbols = None,
    exchange: opt.OnlyExchange = None,
    start: opt.From = None,
    end: opt.To = None,
    reread: opt.Reread = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan, and store nothing.")] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    config: ConfigFile = None,
) -> Outcome:
    """Fetch the history of markets from their exchange.

    Fetches every minute that is missing, newest first. The stored minutes are the progress: if you stop it at any
    moment and start it again, it continues where it stopped. You may run it beside the daemon, whose live repair keeps
    half of the request budget. Without --from, it finds out where the exchange's history begins, and remembers it.
    """
    from .backfill import backfill

    settings, markets = _load(config, symbols, exchange)
    return backfill(
        settings,
        markets,
        _between(start, end),
        opt.make_clock(),
        reread=reread,
        dry_run=dry_run,
        as_json=as_json,
        quiet=quiet,
    )


@declare(app, _EXCHANGE, _FETCH_STATUS)
def repair(
    symbols: opt.Symbols = None,
    exchange: opt.OnlyExchange = None,
    start: opt.From = None,
    end: opt.To = None,
    reread: opt.Reread = False,
    every: Annotated[
        bool, typer.Option("--all", help="Also ask for minutes that are older than the exchange's history.")
    ] = False,
    as_json: opt.Json = False,
    quiet: opt.Quiet = False,
    config: ConfigFile = None,
) -> Outcome:
    """Ask the exchange again for the minutes that are missing.

    Asks for all of them now, regardless of earlier answers, and remembers those that the exchange still does not have.
    You may run it beside the daemon, which notices the repaired minutes within ten seconds.
    """
    from .gaps import repair

    settings, markets = _load(config, symbols, exchange)
    return repair(
        settings,
        markets,
        _between(start, end),
        opt.make_clock(),
        reread=reread,
        every=every,
        as_json=as_json,
        quiet=quiet,
    )


@declare(app, _FILES)
def export(
    symbol: opt.OneSymbol,
    exchange: opt.ExchangeName = None,
    interval: opt.OneInterval = None,
    start: opt.From = None,
    end: opt.To = None,
    output: Annotated[
        str, typer.Option(metavar="FILE", help="The file; - is standard output, and .gz compresses.")
    ] = "-",
    kind: Annotated[
        Literal["csv", "parquet"] | None, typer.Option("--format", show_default="by the name of the file")
    ] = None,
    quiet: opt.Quiet = False,
    config: ConfigFile = None,
) -> Outcome:
    """Write stored bars to a CSV or Parquet file."""
    from .transfer import export

    settings, [market, *_] = _load(config, [symbol], exchange)
    return export(settings, market, interval or MINUTE, _between(start, end), output=output, kind=kind, quiet=quiet)


@declare(app, _FILES)
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", readable=False, help="CSV, .gz too, or Parquet.")],
    symbol: Annotated[Symbol, typer.Option(parser=Symbol.parse, metavar="SYMBOL", help="The symbol of the minutes.")],
    exchange: opt.ExchangeName = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Store the good rows of a file that has bad ones.")
    ] = False,
    sparse: Annotated[
        bool, typer.Option("--sparse", help="Treat the rows as minutes, however far apart they are.")
    ] = False,
    as_json: opt.JsonLines = False,
    quiet: opt.Quiet = False,
    config: ConfigFile = None,
) -> Outcome:
    """Store minutes from CSV or Parquet files.

    Checks all files completely before it stores any minute. A stored minute is replaced only by a newer version of it
    (column as_of_ms), so an import never undoes a correction, and you can repeat an interrupted one.
    """
    from .transfer import import_files

    settings, [market, *_] = _load(config, [symbol], exchange)
    return import_files(settings, market, files, skip_bad=skip_bad, sparse=sparse, as_json=as_json, quiet=quiet)
