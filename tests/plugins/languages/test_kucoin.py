"""KuCoin: a token over POST before each connection, the ping period from the answer, and a greeting to wait for."""

import asyncio
import contextlib
import json

import pytest
from tornado.web import RequestHandler

from candled import Candle, Candles, Event, ExchangeError, Http, Pong, Ready, SocketFeed, Symbol
from tests import deadlines
from tests.plugins.local import recorded, running, socket_server, web_server

BCHSV = Symbol("BCHSV", "USDT")
DAPPT = Symbol("DAPPT", "BTC")


class KucoinFeed(SocketFeed):
    ping = '{"id":"1","type":"ping"}'
    awaits_ready = True
    ready_within_s = 0.5

    async def prepare_connection(self, http: Http) -> str:
        answer = await http.post_json(f"{self.url}/api/v1/bullet-public")
        try:
            (server, *_), token = answer["data"]["instanceServers"], answer["data"]["token"]
            self.ping_every_s = server["pingInterval"] / 1000
            self.pong_within_s = server["pingTimeout"] / 1000
            return f"{server['endpoint']}?token={token}&connectId=1"
        except (LookupError, TypeError, ValueError) as error:
            raise ExchangeError(f"expected a token and servers, got {str(answer)[:200]}") from error

    def subscribe(self, symbols):
        topics = ",".join(f"{symbol.base}-{symbol.quote}_1min" for symbol in symbols)
        return [json.dumps({"id": "1", "type": "subscribe", "topic": f"/market/candles:{topics}", "response": True})]

    def read_frame(self, frame: str | bytes) -> list[Event]:
        message = json.loads(frame)
        if message["type"] in ("welcome", "pong", "ack"):
            return {"welcome": [Ready()], "pong": [Pong()]}.get(message["type"], [])
        data = message["data"]
        open_s, opened, close, high, low, volume, quote = data["candles"]
        candle = Candle.parse(
            int(open_s) * 1000, opened, high, low, close, volume, quote, as_of_ms=data["time"] // 10**6
        )
        return [Candles(Symbol(*data["symbol"].split("-")), (candle,))]


def bullet(*answers: dict[str, object]) -> type[RequestHandler]:
    """A handler that gives out one answer after the other, the last one again and again."""
    left = list(answers)

    class Bullet(RequestHandler):
        def post(self) -> None:
            self.finish(left.pop(0) if len(left) > 1 else left[0])

    return Bullet


def token(number: int, endpoint: str) -> dict[str, object]:
    server = {"endpoint": endpoint, "pingInterval": 300, "pingTimeout": 2000}
    return {"code": "200000", "data": {"token": f"t{number}", "instanceServers": [server]}}


async def test_each_connection_asks_for_a_token_and_waits_for_the_greeting():
    paths, early, pings = [], [], asyncio.Queue()

    async def handle(peer):
        paths.append(peer.request.path)
        with contextlib.suppress(TimeoutError):
            early.append(await asyncio.wait_for(peer.recv(), 0.2))
        welcome, ack, *pushes = map(json.loads, recorded("languages/kucoin_socket.txt"))
        await peer.send(json.dumps(welcome))
        assert json.loads(await peer.recv())["topic"] == "/market/candles:BCHSV-USDT_1min,DAPPT-BTC_1min"
        for message in (ack, *pushes):
            await peer.send(json.dumps(message))
        pings.put_nowait(await peer.recv())
        await peer.close(4001, "token is expired")

    async with socket_server(handle) as ws_url:
        route = ("/api/v1/bullet-public", bullet(token(1, ws_url), token(2, ws_url)))
        async with web_server(route) as rest_url, running(KucoinFeed(rest_url, [BCHSV, DAPPT])) as (sink, _):
            candles = await sink.candles(5)
            assert await deadlines.wait_for(pings.get(), 10) == KucoinFeed.ping  # after 0.3 s
            assert "token is expired" in await sink.reason()
            await sink.candles(5)
    assert paths[:2] == ["/?token=t1&connectId=1", "/?token=t2&connectId=1"]
    assert early == []
    assert [candle.open_ms for candle in candles] == [
        1619378220000, 1619378280000, 1619378280000, 1619378280000, 1619378340000,
    ]  # fmt: skip
    assert candles[0].as_of_ms == 1619378328806


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"code": "200000", "data": {}}, "expected a token and servers"),
        (token(1, "not an address"), "the address cannot be used"),
        (token(1, "ws://127.0.0.1:1/"), "ConnectionRefusedError"),
    ],
    ids=["no token", "no address", "no server"],
)
async def test_an_answer_without_a_usable_address_is_an_interruption_that_repeats_no_token(answer, reason):
    async with (
        web_server(("/api/v1/bullet-public", bullet(answer))) as url,
        running(KucoinFeed(url, [BCHSV])) as (sink, _),
    ):
        found = await sink.reason()
        assert reason in found or ("ConnectionRefused" in reason and "Connect call failed" in found)
        assert "token=" not in found


async def test_a_server_that_does_not_greet_is_left():
    async def handle(peer):
        await peer.wait_closed()

    async with (
        socket_server(handle) as ws_url,
        web_server(("/api/v1/bullet-public", bullet(token(1, ws_url)))) as url,
        running(KucoinFeed(url, [BCHSV])) as (sink, _),
    ):
        assert await sink.reason() == "the exchange is not ready after 0.5 s"
