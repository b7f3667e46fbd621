"""All routes of the API, for a server to mount."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
from candled.serve.kept_pages import KeptPages
from candled.serve.rate_limit import RateLimits
from candled.universe import Universe

from . import klines, operations, rest, udf
from .catalog import MarketCatalog, binance_name
from .context import ApiContext
from .handler import AccessPolicy, NotFound
from .kline_streams import KlineClient, KlineStreams, Reader
from .openapi import document
from .scopes import Scopes

logger = logging.getLogger(__name__)

Route = tuple[str, type[Any], dict[str, Any]]
Stream = tuple[str, Callable[[RecipientConnection, str], KlineClient]]


def make_routes(config: Config, source: ApiContext, limits: RateLimits, clock: Clock) -> list[Route]:
    """Return the routes enabled in the settings."""
    pages = KeptPages(clock)
    access = AccessPolicy(config.server.allowed_origins, networks(config.server.trusted_proxies))

    def limited(group: str) -> dict[str, Any]:
        shared = {"compress_from": config.server.compress_from, "pages": pages}
        return {"access": access, "limit": limits.groups[group], **shared}

    facade = _klines(source, config.klines, limited("klines")) if config.klines.enabled else []
    return [
        *facade,
        *_rest(source, limited("api"), needs_token=config.access.needs_tokens),
        *_udf(source, config.udf.next_time, limited("udf")),
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


def _rest(source: ApiContext, shared: dict[str, Any], *, needs_token: bool) -> list[Route]:
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
    resources = zip(made, kinds, strict=True)
    return [
        *(
            (operation.path, kind, {**shared, "operation": operation, "source": source})
            for operation, kind in resources
        ),
        (
            description.path,
            rest.Description,
            {**shared, "source": source, "description": partial(_describe, source.catalog, needs_token)},
        ),
        (r"/api(?:/.*)?", NotFound, shared),
    ]


def _operations(catalog: MarketCatalog) -> Sequence[operations.Operation]:
    return (
        operations.candles(catalog),
        operations.pages(catalog),
        operations.symbols(catalog),
        operations.intervals(),
        operations.exchanges(),
        operations.coverage(catalog),
        operations.gaps(catalog),
        operations.description(),
    )


async def _describe(catalog: MarketCatalog, needs_token: bool) -> bytes:
    """Return the description for the markets that are served now."""
    return msgspec.json.encode(document(_operations(catalog), __version__, needs_token=needs_token))


def _udf(source: ApiContext, next_time: str, shared: dict[str, Any]) -> list[Route]:
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
    more = {**shared, "source": source, "next_time": next_time}
    return [
        *((f"/udf/{name}", kind, more) for name, kind in resources.items()),
        ("/udf/search", udf.Search, {**more, "pages": KeptPages(source.clock)}),  # searches displace no other pages
        (r"/udf(?:/.*)?", udf.UnknownUdfPath, more),
    ]


def _klines(source: ApiContext, settings: KlinesSettings, shared: dict[str, Any]) -> list[Route]:
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
    more = {**shared, "source": source, "markets": markets}
    return [(f"{settings.prefix}/api/v3/{name}", kind, more) for name, kind in resources.items()]


def make_streams(
    config: Config,
    source: ApiContext,
    universe: Universe,
    bars: BarSource,
    make_reader: Callable[[RecipientConnection], Reader],
    publish: Callable[[Recipients, Frame], None],
    clock: Clock,
    limits: ClientLimits,
) -> list[Stream]:
    """Return the paths of kline streams, if enabled. `make_reader` makes a client of candled's own protocol."""
    settings = config.klines
    if not settings.enabled:
        return []
    markets = source.catalog.binance_markets(settings.exchange or source.catalog.default)
    streams = KlineStreams(markets, bars, make_reader, publish, clock, limits, source.offered)
    bare = [f"{settings.prefix}/ws"] if settings.prefix else ["/", "/ws"]  # shared with candled's own protocol
    raw = [*bare, rf"{settings.prefix}/ws/.*"]
    universe.add_listener(streams.on_markets_changed)
    return [*((path, streams.make_raw) for path in raw), (rf"{settings.prefix}/stream", streams.make_combined)]
