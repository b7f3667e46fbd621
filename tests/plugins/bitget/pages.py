"""Read a page of Bitget's REST API, as the plugin does."""

import asyncio
from typing import Any

from candled import Candle, InvalidRow
from candled_plugins.bitget import messages
from tests.clocks import ManualClock


def read_page(body: Any, *request: Any) -> list[Candle | InvalidRow]:
    """Return the rows of an answer to a request: its product type, its end, and perhaps its interval."""
    product, end_ms, *interval = request
    return asyncio.run(messages.read_page(body, product, end_ms, ManualClock(), *interval))
