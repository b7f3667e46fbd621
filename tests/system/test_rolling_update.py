"""A rolling update: processes of the last release and of this version on one Redis and one PostgreSQL."""

import asyncio
import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import websockets

from tests import deadlines
from tests.environments import build
from tests.redis_servers import shared_redis
from tests.servers import Database, shared_postgres
from tests.sources import ROOT, read
from tests.system.daemon import Daemon

pytestmark = [
    pytest.mark.usefixtures("postgres", "redis", "daemon"),
    pytest.mark.slow,
    pytest.mark.no_cover,
    pytest.mark.long,
]

SUBSCRIBE = {"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 3}
NEW_SETTINGS = {"health_details"}  # which the tests set, and the release does not know


def git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


def find_release() -> str:
    """The commit of the last release: its tag, or else the one that cut it in the changelog."""
    versions = re.findall(r"^## (\d\S+) - ", read(ROOT / "CHANGELOG.md"), re.MULTILINE)
    for version in versions[:1]:
        for name in (f"v{version}", version):
            if tagged := git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"):
                return tagged.decode().strip()
        commits = git("log", "--format=%H", f"-S## {version} - ", "--", "CHANGELOG.md").decode().split()
        if commits:
            return commits[-1]
    pytest.skip("needs the project's history in Git, with the last release")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """The unpacked wheel of the last release."""
    folder = tmp_path_factory.mktemp("release")
    with tarfile.open(fileobj=BytesIO(git("archive", find_release()))) as archive:
        archive.extractall(folder / "source", filter="data")
    with zipfile.ZipFile(build(folder / "source")) as wheel:
        wheel.extractall(folder / "wheel")
    # the wheel of 0.1.0 has no tables of PostgreSQL
    shutil.copytree(folder / "source" / "candled", folder / "wheel" / "candled", dirs_exist_ok=True)
    return folder / "wheel"


class Released(Daemon):
    """The daemon of the last release."""

    def __init__(self, directory: Path, wheel: Path) -> None:
        super().__init__(directory, is_forked=False)
        self._wheel = wheel

    def write(self, config: Mapping[str, Any]) -> Path:
        path = super().write(config)
        kept = [line for line in path.read_text("utf-8").splitlines() if line.strip().split(":")[0] not in NEW_SETTINGS]
        path.write_text("\n".join(kept), "utf-8")
        return path

    def launch(self, config: Mapping[str, Any], **options: Any) -> None:
        super().launch(config, **{**options, "env": {"PYTHONPATH": str(self._wheel)}})


@pytest.mark.parametrize("roles", [("ingest", "serve"), ("serve", "ingest")], ids=lambda roles: f"release-{roles[0]}s")
async def test_processes_of_both_versions_are_one_site(release, roles, tmp_path):
    for name in ("release", "new"):
        (tmp_path / name).mkdir()
    with (
        Database(shared_postgres()) as database,
        Released(tmp_path / "release", release) as former,
        Daemon(tmp_path / "new") as new,
    ):
        settings = {
            "exchanges": {"replay": {"symbols": ["BTC/USDT"], "speed": 20}},
            "ingest": {"backfill": "1h"},
            "store": {"url": database.url(), "journal": ""},
            "bus": {"url": shared_redis(), "prefix": f"{tmp_path.name}:"},
        }
        by_role = dict(zip(roles, (former, new), strict=True))
        for role in ("ingest", "serve"):
            await asyncio.to_thread(by_role[role].start, {**settings, "roles": [role]}, within_s=40)
        times = await read_times(by_role["serve"])
        assert times == sorted(times)
        for daemon in (former, new):
            assert daemon.stop() == 0
            assert not re.search(r"Traceback| ERROR | CRITICAL ", daemon.output), daemon.output


async def read_times(daemon: Daemon, bars: int = 3) -> list[int]:
    """Subscribe, and read updates until several bars are over; return the times of the bars."""
    times: list[int] = []
    async with deadlines.timeout(60), websockets.connect(daemon.ws_url) as socket:
        await socket.send(json.dumps(SUBSCRIBE))
        async for text in socket:
            message = json.loads(text)
            assert message["type"] != "error", message
            if message["type"] == "update":
                times.append(message["bar"]["time"])
            if len({*times}) > bars:
                return times
    raise AssertionError("the connection was closed")
