"""The servers that `bench.http` compares with: klines from a list in memory, encoded by orjson for each request.

python -m bench.http_servers tornado|aiohttp|fastapi PORT
"""

import asyncio
import sys
from typing import Any

import orjson

_START_MS = 1_759_708_800_000
ROWS = [
    [_START_MS + 60_000 * number, "67234.5", "67340", "67200", f"{67310 + number}.25", "145.23",
     _START_MS + 60_000 * number + 59_999, "9772345.67", 0, "0", "0", "0"]
    for number in range(1000)
]  # fmt: skip
PATH = "/api/v3/klines"


def body(limit: str) -> bytes:
    """The newest rows."""
    return orjson.dumps(ROWS[-int(limit) :])


async def tornado(port: int) -> None:
    """A plain handler of Tornado."""
    from tornado.web import Application, RequestHandler

    class Klines(RequestHandler):
        def get(self) -> None:
            self.set_header("Content-Type", "application/json")
            self.finish(body(self.get_argument("limit")))

    Application([(PATH, Klines)], log_function=lambda _: None).listen(port, "127.0.0.1", backlog=4096)
    await asyncio.Event().wait()


async def aiohttp(port: int) -> None:
    """A handler of aiohttp."""
    from aiohttp import web

    async def klines(request: web.Request) -> web.Response:
        return web.Response(body=body(request.query["limit"]), content_type="application/json")

    app = web.Application()
    app.router.add_get(PATH, klines)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    await asyncio.Event().wait()


def fastapi(port: int) -> None:
    """A route of FastAPI, served by uvicorn with httptools and uvloop."""
    import uvicorn
    from fastapi import FastAPI, Response

    app = FastAPI()

    @app.get(PATH)
    async def klines(limit: str) -> Any:
        return Response(body(limit), media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=port, http="httptools", loop="uvloop", log_level="error", backlog=4096)


if __name__ == "__main__":
    name, port = sys.argv[1], int(sys.argv[2])
    if name == "fastapi":
        fastapi(port)
    else:
        asyncio.run({"tornado": tornado, "aiohttp": aiohttp}[name](port))
