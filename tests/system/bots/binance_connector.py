"""Watch an interval with binance-connector; print two answers, or the error, one line of JSON each."""

import json
import sys
import threading
import time

from binance.websocket.spot.websocket_stream import SpotWebsocketStreamClient


def main() -> None:
    port, interval = sys.argv[1:]
    over = threading.Event()
    received: list[dict] = []

    def take(_: object, text: str) -> None:
        message = json.loads(text)
        if "error" in message:
            received.append({"refused": message["error"]["msg"], "ms": (time.monotonic() - begun) * 1000})
        elif "k" in message:
            received.append({"time": message["k"]["t"], "close": float(message["k"]["c"])})
        if len(received) == 2 or "error" in message:
            over.set()

    client = SpotWebsocketStreamClient(stream_url=f"ws://127.0.0.1:{port}", on_message=take)
    begun = time.monotonic()
    client.kline(symbol="btcusdt", interval=interval)
    over.wait(30)
    client.stop()
    for one in received[:2]:
        print(json.dumps(one))


main()
