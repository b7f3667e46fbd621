"""The commands for authors of plugins, `candled plugin …`. Each loads the module that does its work."""

from pathlib import Path
from typing import Annotated

import typer

from candled.model import Symbol

from . import options as opt
from .options import Outcome, declare

app = typer.Typer(help="Write, record and test a plugin.")

Module = Annotated[
    str,
    typer.Argument(metavar="MODULE", help="An installed plugin, or a module, also one in the current directory."),
]
Exchange = Annotated[
    str | None,
    typer.Option("--exchange", metavar="X", show_default="the only one", help="The exchange, if there are several."),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="A setting of the exchange, for instance rest_url=http://localhost:8000."
    ),
]
RecordingFile = Annotated[Path, typer.Argument(metavar="FILE", readable=False, help="The recording.")]


@declare(app)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the exchange, for instance coinfair.")],
    directory: Annotated[
        Path,
        typer.Option(metavar="DIR", show_default="the current one", help="Where to create the folder candled-NAME."),
    ] = Path(),
) -> Outcome:
    """Write the files of a new plugin.

    Creates the folder candled-NAME: a distribution with a pyproject.toml, the exchange with four functions to fill in,
    tests, and a file for continuous integration.
    """
    from candled.testing.template import write_plugin

    folder = write_plugin(name, directory)
    module = folder.name.replace("-", "_")
    print(f"wrote {folder}: fill in the four functions of {folder / module / 'exchange.py'}")
    return 0


@declare(app)
def record(
    module: Module,
    symbol: opt.OneSymbol,
    minutes: Annotated[int, typer.Option(min=1, max=1440, metavar="N", help="The number of whole minutes.")] = 5,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", show_default="by exchange, symbol and time", help="The new file; .gz compresses it."
        ),
    ] = None,
    hour_later: Annotated[
        bool, typer.Option("--hour-later", help="Wait for an hour, and ask for the same minutes again.")
    ] = False,
    exchange: Exchange = None,
    settings: Assignments = None,
) -> Outcome:
    """Record the frames and answers of an exchange.

    Reads the list of markets, a page of history, and then the stream for some minutes, all of it through the plugin, as
    the daemon does. Then it asks for the same minutes over REST. The file contains no personal details.
    """
    from .plugin_record import record_exchange

    return record_exchange(
        module,
        symbol,
        opt.make_clock(),
        minutes=minutes,
        path=output,
        is_hour_later=hour_later,
        exchange=exchange,
        assignments=settings or (),
    )


@declare(app)
def reread(file: RecordingFile, settings: Assignments = None) -> Outcome:
    """Ask the exchange again for the minutes of a recording.

    Adds the answers to the file, at least an hour after its last minute.
    """
    from .plugin_record import reread_minutes

    return reread_minutes(file, opt.make_clock(), settings or ())


@declare(app)
def test(
    module: Module,
    recording: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", readable=False, show_default="those in tests/", help="A recording; repeat it for several."
        ),
    ] = None,
    exchange: Exchange = None,
    settings: Assignments = None,
) -> Outcome:
    """Test a plugin with recordings.

    Plays each recording to the plugin, and then lets a scripted exchange, made from the recorded frames and pages,
    misbehave: silence, duplicates, disorder, lies about the time, bad rows, refusals, pages of all kinds. Prints a line
    for each check, and why a failure matters. The status is 1 if one has failed.
    """
    from .plugin_test import check_plugin

    return check_plugin(module, recording or (), exchange, settings or ())


@declare(app)
def convert(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", readable=False, help="The files to convert.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The new recording; .gz compresses it.")],
    exchange: Annotated[
        str, typer.Option(metavar="X", show_default="as the files say", help="The name of the exchange.")
    ] = "",
    symbol: Annotated[
        Symbol | None,
        typer.Option(parser=Symbol.parse, metavar="SYMBOL", show_default="the only one", help="The symbol."),
    ] = None,
    match: Annotated[
        str, typer.Option(metavar="TEXT", show_default="all", help="Keep only received frames with this text.")
    ] = "",
) -> Outcome:
    """Convert files of other programs to a recording.

    Reads the static tests of ccxt (response, request and ws), logs of cryptofeed, and samples of requests and frames.
    """
    from .plugin_record import convert_recordings

    return convert_recordings(files, output, exchange=exchange, symbol=symbol, match=match)
