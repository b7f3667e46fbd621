"""All routes of the API, for a server to mount."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from candled import __version__
from candled.access.verifier import TokenVerifier
from candled.config import Config
from candled.config.sections import KlinesSettings
from candled.exchange import Clock
from candled.protocol.frames import Frame
from candled.rooms.encoded_bars import BarSource
from candled.rooms.recipients import RecipientConnection, Recipients
from candled.serve.access import AccessGuard
from candled.serve.connection_limiter import ClientLimits, networks
from candled.serve.hot_path import Route
from candled.serve.kept_pages import KeptPages
from candled.serve.rate_limit import RateLimits
from candled.universe import Universe

from . import klines, operations, rest, udf
from .catalog import MarketCatalog, binance_name
from .context import ApiContext
from .handler import AccessPolicy, DialectContext, NotFound
from .kline_streams import KlineClient, KlineStreams, Reader
from .openapi import document
from .scopes import Scopes

logger = logging.getLogger(__name__)

Stream = tuple[str, Callable[[RecipientConnection, str], KlineClient]]


def make_routes(config: Config, source: ApiContext, limits: RateLimits) -> list[Route]:
    """Return the routes enabled in the settings."""
    pages = KeptPages(source.clock)
    access = AccessPolicy(config.server.allowed_origins, networks(config.server.trusted_proxies))
    dialects = {
        group: DialectContext(access, limit, config.server.compress_from, pages)
        for group, limit in limits.groups.items()
    }
    facade = _klines(source, config.klines, dialects["klines"]) if config.klines.enabled else []
    return [
        *facade,
        *_rest(source, dialects["api"], needs_token=config.access.needs_tokens),
        *_udf(source, config.udf.next_time, dialects["udf"]),
    ]


def make_guard(config: Config, catalog: MarketCatalog, clock: Clock) -> AccessGuard | None:
    """Return the checks of access tokens; None if the settings want none.

    Raises:
        ConfigError: the file of tokens or the key cannot be read.
    """
    if not config.access.needs_tokens:
        return None
    settings = config.klines
    markets = catalog.binance_markets(settings.exchange or catalog.default)
    scopes = Scopes(catalog, (markets, settings.prefix) if settings.enabled else None)
    return AccessGuard(TokenVerifier(config.access, clock), clock, scopes.find_asked)


def _rest(source: ApiContext, dialect: DialectContext, *, needs_token: bool) -> list[Route]:
    kinds: tuple[type[rest.RestHandler], ...] = (
        rest.Candles,
        rest.Pages,
        rest.Symbols,
        rest.Intervals,
        rest.Exchanges,
        rest.Coverage,
        rest.Gaps,
    )
    *made, description = _operations(source.catalog)
    shared = {"dialect": dialect, "source": source}
    describe = partial(_describe, source.catalog, needs_token)
    return [
        *((one.path, kind, {**shared, "operation": one}) for one, kind in zip(made, kinds, strict=True)),
        (description.path, rest.Description, {**shared, "description": describe}),
        (r"/api(?:/.*)?", NotFound, shared),
    ]


def _operations(catalog: MarketCatalog) -> Sequence[operations.Operation]:
    return (
        operations.candles(catalog),
        operations.pages(catalog),
        operations.symbols(catalog),
        operations.INTERVALS,
        operations.EXCHANGES,
        operations.coverage(catalog),
        operations.gaps(catalog),
        operations.DESCRIPTION,
    )


async def _describe(catalog: MarketCatalog, needs_token: bool) -> bytes:
    """Return the description for the markets that are served now."""
    return msgspec.json.encode(document(_operations(catalog), __version__, needs_token=needs_token))


def _udf(source: ApiContext, next_time: str, dialect: DialectContext) -> list[Route]:
    resources: dict[str, type[udf.UdfHandler]] = {
        "config": udf.Config,
        "symbols": udf.Symbols,
        "symbol_info": udf.SymbolInfo,
        "history": udf.History,
        "time": udf.Time,
        "quotes": udf.Quotes,
        "marks": udf.Marks,
        "timescale_marks": udf.TimescaleMarks,
    }
    more = {"dialect": dialect, "source": source, "next_time": next_time}
    searches = replace(dialect, pages=KeptPages(source.clock))  # which displace no other pages
    return [
        *((f"/udf/{name}", kind, more) for name, kind in resources.items()),
        ("/udf/search", udf.Search, {**more, "dialect": searches}),
        (r"/udf(?:/.*)?", udf.UnknownUdfPath, more),
    ]


def _klines(source: ApiContext, settings: KlinesSettings, dialect: DialectContext) -> list[Route]:
    resources: dict[str, type[klines.KlinesHandler]] = {
        "klines": klines.Klines,
        "uiKlines": klines.Klines,
        "exchangeInfo": klines.ExchangeInfo,
        "time": klines.Time,
        "ping": klines.Ping,
        ".*": klines.UnknownPath,
    }
    markets = source.catalog.binance_markets(settings.exchange or source.catalog.default)
    for name, market in markets.markets.items():
        plain = binance_name(market.symbol)
        if name != plain:
            taken = markets.markets[markets.stream_names[plain.lower()]].symbol
            logger.warning("klines: %s is served as %s: %s is %s", market.symbol, name, plain, taken)
    more = {"dialect": dialect, "source": source, "markets": markets}
    return [(f"{settings.prefix}/api/v3/{name}", kind, more) for name, kind in resources.items()]


def make_streams(
    config: Config,
    source: ApiContext,
    universe: Universe,
    bars: BarSource,
    make_reader: Callable[[RecipientConnection], Reader],
    publish: Callable[[Recipients, Frame], None],
    limits: ClientLimits,
) -> list[Stream]:
    """Return the paths of kline streams, if enabled. `make_reader` makes a client of candled's own protocol."""
    settings = config.klines
    if not settings.enabled:
        return []
    markets = source.catalog.binance_markets(settings.exchange or source.catalog.default)
    streams = KlineStreams(markets, bars, make_reader, publish, source.clock, limits, source.offered)
    bare = [f"{settings.prefix}/ws"] if settings.prefix else ["/", "/ws"]  # shared with candled's own protocol
    raw = [*bare, rf"{settings.prefix}/ws/.*"]
    universe.add_listener(streams.on_markets_changed)
    return [*((path, streams.make_raw) for path in raw), (rf"{settings.prefix}/stream", streams.make_combined)]
