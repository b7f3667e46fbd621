"""The store of the settings and the markets of the command line, for commands on stored history."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager

from candled.config import Config, ExchangeConfig, make_store
from candled.errors import ConfigError, StoreRejected, StoreUnavailable
from candled.model import MINUTE_MS, WEEK, Candle, MarketKey, Range, RangeSet, Symbol
from candled.settings import suggestion
from candled.store.interface import SEQ_UNPUBLISHED, Store


@contextmanager
def name_errors(part: str) -> Iterator[None]:
    """Turn errors of the store within the block into a `ConfigError` that begins with the name of a part."""
    try:
        yield
    except (StoreUnavailable, StoreRejected) as error:
        raise ConfigError(f"{part}: {error}") from error


@contextmanager
def open_store(config: Config) -> Iterator[Store]:
    """Open the store of the settings as a guest (see `Store`) for the length of the block.

    Raises:
        ConfigError: it could not be opened, or failed within the block.
    """
    with name_errors("store"), closing(make_store(config)) as store:
        store.open()
        yield store


def exchange_of(config: Config, name: str | None) -> ExchangeConfig:
    """Return the configured exchange of that name; the first one for None.

    Raises:
        ConfigError: there is none.
    """
    by_name = {exchange.name: exchange for exchange in config.exchanges}
    if name is None:
        return config.exchanges[0]
    if name not in by_name:
        raise ConfigError(f"--exchange: no exchange {name} in the settings{suggestion(name, by_name)}")
    return by_name[name]


def markets_of(config: Config, symbols: Sequence[Symbol], exchange: str | None) -> list[MarketKey]:
    """Return the markets of a command: the configured ones with these symbols, or all if no symbol is given.

    A symbol that is not in the settings means the market at `exchange`, by default the first: its history may still be
    stored.

    Raises:
        ConfigError: there is no such exchange.
    """
    asked = config.exchanges if exchange is None else (exchange_of(config, exchange),)
    if not symbols:
        return [MarketKey(one.name, symbol) for one in asked for symbol in one.symbols]
    found = []
    for symbol in symbols:
        names = [one.name for one in asked if symbol in one.symbols] or [asked[0].name]
        found += [MarketKey(name, symbol) for name in names]
    return list(dict.fromkeys(found))


def before_beginning(store: Store, market: MarketKey, since_ms: int) -> int:
    """Return the start of the week in which history begins if it begins at `since_ms`, else `since_ms`.

    A bar that contains the beginning of history is complete although it starts earlier.
    """
    for gap in store.known_gaps(market, Range(since_ms - MINUTE_MS, since_ms)):
        if gap.reason == "beyond_history" and gap.end_ms >= since_ms:
            return min(since_ms, max(gap.start_ms, WEEK.floor(since_ms)))
    return since_ms


def put_past(store: Store, market: MarketKey, minutes: Sequence[Candle]) -> None:
    """Store past minutes, oldest first. Log the change first, so that clients that reconnect receive the bars.

    This works without a running daemon too.
    """
    if minutes:
        changes = [
            (SEQ_UNPUBLISHED, span) for span in RangeSet.of_parts((minute.open_ms for minute in minutes), MINUTE_MS)
        ]
        store.log_changes(market, None, changes)
        store.write_minutes([(market, minute) for minute in minutes])
