"""A plain `candled.exchange.Http` over Tornado's client, without budgets or waiting."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.simple_httpclient import SimpleAsyncHTTPClient

from candled.errors import ExchangeError, Unavailable
from candled.ingest.http import HttpRejected
from tests import deadlines


class PlainHttp:
    """One request at a time per call; the errors are those that `Http.get_json` promises."""

    def __init__(self) -> None:
        self._client = SimpleAsyncHTTPClient(force_instance=True)

    async def get_json(self, url: str, params: Mapping[str, str] | None = None) -> Any:
        request = HTTPRequest(f"{url}?{urlencode(params or {})}", connect_timeout=900, request_timeout=900)
        try:
            response = await deadlines.wait_for(self._client.fetch(request, raise_error=False), 5)
        except (OSError, HTTPClientError) as error:
            raise Unavailable(str(error)) from error
        if response.code in (418, 429) or response.code >= 500:
            raise Unavailable(f"status {response.code}")
        try:
            body = json.loads(response.body, parse_float=Decimal)
        except ValueError as error:
            raise ExchangeError(f"status {response.code} without JSON") from error
        if response.code >= 400:
            raise HttpRejected(f"status {response.code}", status=response.code, body=body)
        return body

    def close(self) -> None:
        self._client.close()
