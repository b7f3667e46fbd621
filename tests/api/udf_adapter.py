"""What TradingView's UDF adapter does with answers: `s` decides, not the status; polls deliver the last two bars.

Written from its documented behaviour; the adapter itself is not published in a registry.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

SECONDS = {"1": 60, "5": 300, "15": 900, "60": 3600, "240": 14_400, "1D": 86_400, "1W": 604_800}


class UdfError(Exception):
    """The adapter would call `onError` with this text."""


class Adapter:
    """The datafeed of a chart. Bars are those of the library: `time` in ms and five numbers."""

    def __init__(self, get: Callable[[str], Awaitable[Any]]) -> None:
        self._get = get

    async def request(self, name: str, parameters: Mapping[str, Any] | None = None) -> Any:
        """`fetch(...).then(r => r.text()).then(JSON.parse)`."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        return await self._get(f"/udf/{name}{query}")

    async def resolve(self, name: str) -> dict[str, Any]:
        info = await self.request("symbols", {"symbol": name})
        if "s" in info:
            raise UdfError("unknown_symbol")
        return dict(info)

    async def bars(
        self, ticker: str, resolution: str, from_s: int, to_s: int, count_back: int | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """`getBars`: bars and what goes with them, `noData` and `nextTime`."""
        asked: dict[str, Any] = {"symbol": ticker, "resolution": resolution, "from": from_s, "to": to_s}
        if count_back is not None:
            asked["countback"] = count_back
        answer = await self.request("history", asked)
        if answer["s"] not in ("ok", "no_data"):
            raise UdfError(answer["errmsg"])
        if answer["s"] == "no_data":
            return [], {"noData": True, "nextTime": answer.get("nextTime")}
        columns = zip(*(answer[key] for key in "tohlcv"), strict=True)
        bars = [dict(zip(("time", "open", "high", "low", "close", "volume"), row, strict=True)) for row in columns]
        for bar in bars:
            bar["time"] = int(bar["time"]) * 1000
        return bars, {"noData": False}


class Pane:
    """A chart of one series: loads back until there is no data, then polls."""

    def __init__(self, adapter: Adapter, ticker: str, resolution: str) -> None:
        self._adapter = adapter
        self._ticker = ticker
        self._resolution = resolution
        self._last_ms: int | None = None
        self.bars: list[dict[str, Any]] = []

    async def load(self, now_s: int, count_back: int) -> None:
        """Scroll back to the beginning."""
        length, to_s = SECONDS[self._resolution], now_s + SECONDS[self._resolution]
        while True:
            bars, more = await self._adapter.bars(
                self._ticker, self._resolution, to_s - count_back * length, to_s, count_back
            )
            assert bars or more["noData"]
            if more["noData"]:
                return
            self.bars = [*bars, *self.bars]
            to_s = bars[0]["time"] // 1000

    async def poll(self, now_s: int) -> None:
        """What the adapter does every ten seconds for a subscribed series."""
        length = SECONDS[self._resolution]
        bars, _ = await self._adapter.bars(self._ticker, self._resolution, now_s - 10 * length, now_s, 2)
        if not bars:
            return
        last = bars[-1]
        if self._last_ms is not None and last["time"] < self._last_ms:
            return
        if self._last_ms is not None and last["time"] > self._last_ms:
            assert len(bars) > 1, "Not enough bars in history for proper pulse update. Need at least 2."
            self._tick(bars[-2])
        self._last_ms = last["time"]
        self._tick(last)

    def _tick(self, bar: dict[str, Any]) -> None:
        """`onTick` may only touch the last bar or a newer one."""
        if self.bars and bar["time"] == self.bars[-1]["time"]:
            self.bars[-1] = bar
            return
        assert not self.bars or bar["time"] > self.bars[-1]["time"], "putToCacheNewBar: time violation"
        self.bars.append(bar)
