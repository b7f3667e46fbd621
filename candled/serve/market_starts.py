"""The start of a market on demand for a WebSocket client, with the errors of its protocol."""

import logging
from collections.abc import Callable

from candled.addresses import client_of
from candled.errors import Unavailable
from candled.model import MarketKey
from candled.on_demand import DemandRefused, MarketsOnDemand
from candled.protocol.requests import LIMIT, NOT_AVAILABLE, RequestError, UnknownMarket, not_allowed
from candled.rooms.recipients import RecipientConnection
from candled.tasks import TaskSet

logger = logging.getLogger(__name__)
_tasks = TaskSet()


async def start_market(demand: MarketsOnDemand | None, connection: RecipientConnection, error: UnknownMarket) -> None:
    """Start the market of a refused request for a client.

    Raises:
        RequestError: it cannot be started. This is `error` if the exchange does not list it.
    """
    if demand is None:
        raise error
    await demand.wait_for_lists((error.exchange,))
    market = demand.find_market(error.exchange, error.symbol)
    if market is None:
        raise error
    grant = connection.grant
    if grant is not None and not grant.allows_symbol(market.symbol):
        raise about(error, not_allowed(market.symbol))
    try:
        await demand.start_market(market, client_of(connection.address))
    except DemandRefused as refusal:
        refused = RequestError(f"Too many markets on demand: {refusal}", code=LIMIT, temporary=True)
        raise about(error, refused) from None
    except Unavailable as failure:
        logger.warning("%s: %s", market, failure)
        refused = RequestError(
            f"Market not started: {market.symbol}, ask again later", code=NOT_AVAILABLE, temporary=True
        )
        raise about(error, refused) from None


def about(asked: RequestError, refusal: RequestError) -> RequestError:
    """Return `refusal` as the error about the request of `asked`."""
    refusal.request_id = asked.request_id
    return refusal


def start_later(demand: MarketsOnDemand, market: MarketKey, address: str, on_end: Callable[[str], None]) -> None:
    """Start a market for a client, then call `on_end` with "", or with the reason if it cannot be started."""
    _tasks.start(_start(demand, market, address, on_end))


def wait_later(demand: MarketsOnDemand, exchange: str, on_end: Callable[[], None]) -> None:
    """Wait for the list of an exchange, then call `on_end`."""
    _tasks.start(_wait(demand, exchange, on_end))


async def _wait(demand: MarketsOnDemand, exchange: str, on_end: Callable[[], None]) -> None:
    await demand.wait_for_lists((exchange,))
    on_end()


async def _start(demand: MarketsOnDemand, market: MarketKey, address: str, on_end: Callable[[str], None]) -> None:
    problem = ""
    try:
        await demand.start_market(market, client_of(address))
    except DemandRefused as refusal:
        problem = f"Too many markets on demand: {refusal}"
    except Unavailable as failure:
        logger.warning("%s: %s", market, failure)
        problem = f"Market not started: {market.symbol}, ask again later"
    on_end(problem)
