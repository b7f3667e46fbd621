"""Runs a command on stored history in this process, with settings made by hand."""

import argparse
from contextlib import suppress
from typing import Any

from candled.config import Config, ExchangeConfig, StoreSettings, make_store
from candled.errors import ConfigError, StoreRejected
from candled.model import Symbol
from candled.tools import TOOLS, Run
from candled_plugins.bitget.exchange import Bitget

BTC, ETH = Symbol("BTC", "USDT"), Symbol("ETH", "USDT")


class _Parser:
    """`candled.tools.Commands` without a settings file."""

    def __init__(self) -> None:
        self.parser = argparse.ArgumentParser()
        self._commands = self.parser.add_subparsers()

    def add(self, name: str, run: Run, *, help: str, **more: Any) -> argparse.ArgumentParser:
        parser = self._commands.add_parser(name, help=help, **more)
        parser.set_defaults(run=run)
        return parser


def settings(url: str, *exchanges: ExchangeConfig) -> Config:
    """Settings with a store and exchanges; by default `bitget`, which these commands need not know more of."""
    known = exchanges or (ExchangeConfig(name="bitget", plugin=Bitget, symbols=(BTC, ETH), settings=None),)
    return Config(store=StoreSettings(url=url), exchanges=known)


def prepare(config: Config) -> None:
    """Make the tables where there are none, as `candled init-db` does."""
    for owns in (False, True):
        store = make_store(config, owns=owns)
        with suppress(StoreRejected):
            store.open()
            store.close()
            return


def run(config: Config, *arguments: object, fresh: bool = False) -> int:
    """Run `candled ARGUMENTS…` on a store that has tables unless it is `fresh`; return the exit status.

    Raises:
        ConfigError: what the command line prints before it ends with status 2.
    """
    if not fresh:
        prepare(config)
    parser = _Parser()
    for add in TOOLS:
        add(parser)
    options = parser.parser.parse_args([str(argument) for argument in arguments])
    return options.run(options, config)


def refusal(config: Config, *arguments: object) -> str:
    """The problems that such a command ends with."""
    try:
        run(config, *arguments)
    except ConfigError as error:
        return str(error)
    raise AssertionError("the command was not refused")
