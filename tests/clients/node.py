"""The JavaScript client in a Node process, driven and read by lines of JSON."""

import asyncio
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests import deadlines

FOLDER = Path(__file__).parent
NODE = shutil.which("node")
NEEDS_NODE = "needs Node 20 or newer: apt-get install nodejs, or see nodejs.org"
# No open connection is given up because a busy machine is slow to answer: a test of a silent server takes `IMPATIENT`.
QUICK = {"firstRetryMs": 20, "longestRetryMs": 100, "pingEveryMs": 150, "answerWithinMs": 60_000, "openWithinMs": 1000}
IMPATIENT = {"answerWithinMs": 150}


@cache
def arguments() -> tuple[str, ...]:
    """Return the command that starts Node with a WebSocket, which version 20 keeps behind a flag; skip without Node."""
    for flags in ((), ("--experimental-websocket", "--no-warnings")):
        probe = [NODE or "node", *flags, "-p", "typeof WebSocket"]
        if NODE and subprocess.run(probe, capture_output=True, text=True, check=False).stdout.strip() == "function":
            return NODE, *flags
    pytest.skip(NEEDS_NODE)


class JsClient:
    """One `CandledClient`, or another object of a driver; `received` has all of its events so far."""

    def __init__(
        self, url: str, options: dict[str, Any] | None = None, *, library: str = "", driver: str = "driver.mjs"
    ) -> None:
        self._command = [str(FOLDER / driver), url, json.dumps({**QUICK, **(options or {})}), library]
        self.received: list[dict[str, Any]] = []
        self._changed = asyncio.Event()

    async def __aenter__(self) -> "JsClient":
        self._process = await asyncio.create_subprocess_exec(
            *arguments(), *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 26
        )
        self._reader = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()  # on which the driver closes its client
        try:
            await deadlines.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()
            raise AssertionError("the client keeps the process alive after close()") from None
        finally:
            await self._reader
        assert self._process.returncode == 0

    def send_command(self, do: str, name: str = "", **more: Any) -> None:
        """Have the driver do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, "name": name, **more}).encode() + b"\n")

    def events(self, event: str, name: str = "a") -> list[Any]:
        """The facts of every event of that name so far."""
        return [one["facts"] for one in self.received if (one["name"], one["event"]) == (name, event)]

    async def until(self, event: str, count: int = 1, name: str = "a", within_s: float = 10.0) -> Any:
        """Wait until an event was received `count` times; return the facts of the last one."""
        async with deadlines.timeout(within_s):
            while len(self.events(event, name)) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.events(event, name)[-1]

    async def ask(self, do: str, answer: str, name: str = "a", **more: Any) -> Any:
        """Have the driver do something and wait for the facts of the event that tells how it went."""
        before = len(self.events(answer, name))
        self.send_command(do, name, **more)
        return (await self.until(answer, before + 1, name))[0]

    async def report(self, name: str = "a") -> Any:
        """`bars`, `bar`, `status` and `end` of a subscription."""
        return await self.ask("report", "report", name)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.received.append(json.loads(line))
            self._changed.set()
