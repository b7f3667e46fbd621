"""Runs a command on stored history in this process, with settings made by hand."""

import asyncio
from contextlib import suppress
from unittest.mock import patch

from candled.cli import parse
from candled.clock import SystemClock
from candled.config import Config, ExchangeConfig, make_store
from candled.config.sections import StoreSettings
from candled.errors import ConfigError, StoreRejected
from candled.exchange import Clock
from candled.model import Symbol
from candled.tools.options import Outcome
from candled_plugins.bitget.exchange import Bitget

BTC, ETH = Symbol("BTC", "USDT"), Symbol("ETH", "USDT")


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
    outcome = called(config, *arguments)
    return outcome if isinstance(outcome, int) else asyncio.run(outcome)


def called(config: Config, *arguments: object, clock: Clock | None = None) -> Outcome:
    """What the command of a command line returns with these settings, and with `clock` instead of the real one."""
    command = parse([str(argument) for argument in arguments])
    assert command is not None
    with (
        patch("candled.tools.options.load_config", return_value=config),
        patch("candled.tools.options.make_clock", return_value=clock or SystemClock()),
    ):
        return command()


def refusal(config: Config, *arguments: object) -> str:
    """The problems that such a command ends with."""
    try:
        run(config, *arguments)
    except ConfigError as error:
        return str(error)
    raise AssertionError("the command was not refused")
