"""A third party's plugin from its first file to its removal, in an environment of its own beside candled."""

import asyncio
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
import websockets
import yaml

from candled import __version__
from candled.clock import SystemClock
from candled.model import Symbol
from candled.testing.template import render_files
from tests import deadlines
from tests.environments import Environment, build, run_program
from tests.fakes.bitget import FakeBitget, FakeMarket
from tests.fakes.plumline import FakePlumline
from tests.fakes.tapes import Synthetic
from tests.ports import free_port
from tests.sources import ROOT

pytestmark = [pytest.mark.usefixtures("daemon"), pytest.mark.slow]

EXAMPLE = ROOT / "examples" / "candled-plumline"
RECORDINGS = {"tests/btc-usdt.jsonl.gz", "tests/nocoin-usdt.jsonl"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Environment:
    return Environment(tmp_path_factory.mktemp("environment") / "venv")


def filled_in(parent: Path) -> Path:
    """Make a plugin from the template, and fill in the functions as the example did; return its folder."""
    run_program(sys.executable, "-m", "candled", "plugin", "new", "plumline", cwd=parent)
    folder = parent / "candled-plumline"
    shutil.copy(EXAMPLE / "candled_plumline" / "exchange.py", folder / "candled_plumline")
    for recording in RECORDINGS:
        shutil.copy(EXAMPLE / recording, folder / recording)
    return folder


def build_version(folder: Path, version: str) -> Path:
    """Build a wheel of that version; return it."""
    project = folder / "pyproject.toml"
    project.write_text(project.read_text("utf-8").replace('"0.1.0"', f'"{version}"'), "utf-8")
    return build(folder)


def plugins_of(environment: Environment, cwd: Path) -> list[str]:
    return environment.run("-m", "candled", "plugins", cwd=cwd).splitlines()


def test_the_example_is_the_template_filled_in():
    files = render_files("plumline")
    own = {"README.md", "candled_plumline/exchange.py"}
    assert {path for path, text in files.items() if (EXAMPLE / path).read_text("utf-8") != text} == own
    assert "NotImplementedError" not in (EXAMPLE / "candled_plumline" / "exchange.py").read_text("utf-8")
    unknown = {path.relative_to(EXAMPLE).as_posix() for path in EXAMPLE.rglob("*") if path.is_file()} - files.keys()
    assert {path for path in unknown if "__pycache__" not in path} == RECORDINGS


def test_an_empty_plugin_fails_its_tests_and_names_the_functions(tmp_path):
    run_program(sys.executable, "-m", "candled", "plugin", "new", "plumline", cwd=tmp_path)
    folder = tmp_path / "candled-plumline"
    printed = run_program(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder, status=1)
    for text in ("fill in subscribe", "fill in read_frame", "candled plugin record plumline BTC/USDT"):
        assert text in printed


async def test_a_plugin_is_made_built_installed_found_run_upgraded_and_removed(environment, tmp_path):
    folder = await asyncio.to_thread(filled_in, tmp_path)
    newer = tmp_path / "newer"
    shutil.copytree(folder, newer)
    wheel, upgrade = await asyncio.gather(
        asyncio.to_thread(build_version, folder, "0.1.0"), asyncio.to_thread(build_version, newer, "0.2.0")
    )
    install = "install", "--quiet", "--no-deps", "--no-index"
    await asyncio.to_thread(environment.pip, *install, str(wheel), cwd=tmp_path)
    found = plugins_of(environment, tmp_path)
    assert "plumline (candled-plumline 0.1.0): exchanges: plumline" in found
    assert f"bitget (candled {__version__}): exchanges: bitget (bronze)" in found
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    printed, _ = await asyncio.gather(
        asyncio.to_thread(environment.run, *tests, cwd=folder), check_bars_beside_bitget(environment, tmp_path)
    )
    assert " passed" in printed
    await asyncio.to_thread(environment.pip, *install, str(upgrade), cwd=tmp_path)
    assert "plumline (candled-plumline 0.2.0): exchanges: plumline" in plugins_of(environment, tmp_path)
    await asyncio.to_thread(environment.pip, "uninstall", "--quiet", "--yes", "candled-plumline", cwd=tmp_path)
    found = plugins_of(environment, tmp_path)
    assert found
    assert not any(line.startswith("plumline") for line in found)


async def check_bars_beside_bitget(environment: Environment, folder: Path) -> None:
    """Run the daemon with both exchanges until both have delivered bars."""
    clock, btc = SystemClock(), Symbol("BTC", "USDT")
    fakes = FakePlumline(clock, push_every_s=0.2), FakeBitget(clock, [FakeMarket(symbol=btc, tape=Synthetic(1))])
    async with fakes[0] as plumline, fakes[1] as bitget:
        port = free_port()
        own = {"ws_url": bitget.ws_url, "rest_url": bitget.rest_url}
        settings = {
            "server": {"host": "127.0.0.1", "port": port},
            "exchanges": {
                "bitget": {"symbols": ["BTC/USDT"], **own},
                "plumline": {"symbols": ["BTC/USDT"], **plumline.settings},
            },
            "ingest": {"backfill": "0s"},
            "store": {"url": f"sqlite:///{folder / 'candled.db'}", "journal": ""},
        }
        (folder / "candled.yaml").write_text(yaml.safe_dump(settings), "utf-8")
        command = [str(environment.python), "-m", "candled"]
        daemon = await asyncio.create_subprocess_exec(*command, cwd=folder, stderr=asyncio.subprocess.PIPE)
        try:
            async with deadlines.timeout(60):
                for exchange in ("bitget", "plumline"):
                    await read_update(port, exchange)
        finally:
            daemon.send_signal(signal.SIGTERM)
            _, log = await daemon.communicate()
    assert daemon.returncode == 0, log.decode()
    assert plumline.pongs > 0


async def read_update(port: int, exchange: str) -> None:
    """Wait for the bars of an exchange and for an update of the newest one."""
    request = {"type": "subscribe", "exchange": exchange, "symbol": "BTC/USDT", "interval": "1m", "initialBars": 3}
    async for socket in websockets.connect(f"ws://127.0.0.1:{port}/ws", open_timeout=None):
        await socket.send(json.dumps(request))
        while True:
            message = json.loads(await socket.recv())
            assert message["type"] != "error", message
            if message["type"] == "update":
                await socket.close()
                return
