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
    refused = await _start(demand, market, connection.address)
    if refused is not None:
        raise about(error, refused)


def about(asked: RequestError, refusal: RequestError) -> RequestError:
    """Return `refusal` as the error about the request of `asked`."""
    refusal.request_id = asked.request_id
    return refusal


def start_later(
    demand: MarketsOnDemand, exchange: str, market: MarketKey | None, address: str, on_end: Callable[[str], None]
) -> None:
    """Start a market for a client, then call `on_end` with "", or with the reason if it cannot be started.

    Without a market, wait for the list of the exchange.
    """

    async def start() -> None:
        refused = None
        if market is None:
            await demand.wait_for_lists((exchange,))
        else:
            refused = await _start(demand, market, address)
        on_end("" if refused is None else str(refused))

    _tasks.start(start())


async def _start(demand: MarketsOnDemand, market: MarketKey, address: str) -> RequestError | None:
    """Start a market for a client; return the error if it cannot be started."""
    try:
        await demand.start_market(market, client_of(address))
    except DemandRefused as refusal:
        return RequestError(f"Too many markets on demand: {refusal}", code=LIMIT, temporary=True)
    except Unavailable as failure:
        logger.warning("%s: %s", market, failure)
        return RequestError(f"Market not started: {market.symbol}, ask again later", code=NOT_AVAILABLE, temporary=True)
    return None
