"""The distributions: an sdist of the project, a wheel that is built of it, and the demo of that wheel."""

import asyncio
import json
import re
import shutil
import signal
import subprocess
import tarfile
import urllib.request
import zipfile
from pathlib import Path

import pytest
import websockets

from candled import __version__
from tests import deadlines
from tests.environments import Environment, build
from tests.sources import ROOT

pytestmark = [pytest.mark.usefixtures("daemon"), pytest.mark.slow, pytest.mark.no_cover]

LARGEST_WHEEL = 2_000_000
IN_WHEEL = {
    "candled/demo.yaml",
    "candled/py.typed",
    "candled/serve/static/index.html",
    "candled_clients/js/candled.js",
    "candled_plugins/replay/recordings/binance-spot-btcusdt.csv.gz",
    "LICENSE",
    "entry_points.txt",
}


def project_files() -> set[str]:
    """Return the files of the project as it was released: those of Git, or all of an unpacked sdist."""
    if (ROOT / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
    made = {"__pycache__", ".venv", ".lowest", "build", "dist", "candled.egg-info", "PKG-INFO", "setup.cfg"}
    paths = {path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file()}
    return {path.as_posix() for path in paths if made.isdisjoint(path.parts) and path.suffix != ".db"}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in project_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return build(folder, "sdist")


@pytest.fixture(scope="module")
def unpacked(sdist) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent / "unpacked", filter="data")
    return sdist.parent / "unpacked" / f"candled-{__version__}"


@pytest.fixture(scope="module")
def wheel(unpacked) -> Path:
    return build(unpacked)


def test_the_sdist_has_every_file_of_the_project(unpacked):
    packed = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    assert sorted(project_files() - packed) == []


def test_a_wheel_of_the_sdist_is_small_and_has_what_the_demo_reads(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {re.sub(r"^candled-[^/]+/(licenses/)?", "", name) for name in archive.namelist()}
    assert sorted(IN_WHEEL - names) == []
    assert not any(name.startswith(("tests/", "bench/")) for name in names)
    assert wheel.stat().st_size < LARGEST_WHEEL


async def test_the_demo_of_an_installed_wheel_runs_in_an_empty_directory(wheel, tmp_path):
    environment = await asyncio.to_thread(Environment, tmp_path / "venv")
    offline = "--quiet", "--no-deps", "--no-index", "--no-compile"
    await asyncio.to_thread(environment.pip, "install", *offline, str(wheel), cwd=tmp_path)
    (folder := tmp_path / "empty").mkdir()
    assert str(tmp_path) in environment.run("-c", "import candled; print(candled.__file__)", cwd=folder)
    command = str(environment.python.with_name("candled")), "demo", "--port", "0"
    daemon = await asyncio.create_subprocess_exec(*command, cwd=folder, stderr=asyncio.subprocess.PIPE)
    try:
        async with deadlines.timeout(30):
            address = await read_address(daemon)
            assert (await read_bar(address))["open"] > 0
            page = await asyncio.to_thread(read_page, f"http://{address}/")
            assert "<script" in page
    finally:
        daemon.send_signal(signal.SIGTERM)
        _, log = await daemon.communicate()
    assert daemon.returncode == 0, log.decode()


async def read_address(daemon: asyncio.subprocess.Process) -> str:
    """Read the log to the address of the chart; return its host and port."""
    lines = []
    async for line in daemon.stderr:
        if found := re.search(r"chart on http://([^/]+)/", line.decode()):
            return found[1]
        lines.append(line.decode())
    raise AssertionError("".join(lines))


async def read_bar(address: str) -> dict[str, float]:
    """Wait until the newest bar changes; return it."""
    async with websockets.connect(f"ws://{address}/ws") as socket:
        await socket.send(json.dumps({"type": "subscribe", "symbol": "BTC/USDT", "interval": "1m", "initialBars": 3}))
        async for text in socket:
            message = json.loads(text)
            assert message["type"] != "error", message
            if message["type"] == "update":
                return message["bar"]
    raise AssertionError("the connection was closed")


def read_page(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()
