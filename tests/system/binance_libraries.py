"""Libraries that read Binance's streams and are no dependencies of the tests: installed when they are needed."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.node import NEEDS_NODE, NODE

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "bots"
NPM = ROOT / ".pytest_cache" / "npm-bots"
INSTALL_NPM = (
    "npm install --prefix .pytest_cache/npm-bots --no-save --ignore-scripts --no-audit --no-fund"
    " ccxt@4 binance-api-node@0.13"
)
CONNECTOR = ROOT / ".pytest_cache" / "binance-connector"  # apart: python-binance is called `binance`, too
INSTALL_CONNECTOR = (
    f"{sys.executable} -m pip install -q --target .pytest_cache/binance-connector binance-connector==3.*"
)


def _install(command: str, sign: Path) -> None:
    """Install what a command installs, unless it is there; skip the test where that fails."""
    if not sign.exists() and shutil.which(command.split()[0]) is not None:
        subprocess.run(command.split(), cwd=ROOT, capture_output=True, timeout=180, check=False)
    if not sign.exists():
        pytest.skip(f"needs a library: {command}")


def command_of(library: str, port: int, interval: str) -> tuple[list[str], dict[str, str]]:
    """The command that watches an interval with a library, and its additions to the environment."""
    if library == "binance-connector":
        _install(INSTALL_CONNECTOR, CONNECTOR / "binance")
        script = SCRIPTS / "binance_connector.py"
        return [sys.executable, str(script), str(port), interval], {"PYTHONPATH": str(CONNECTOR)}
    if NODE is None:
        pytest.skip(NEEDS_NODE)
    folder = NPM / "node_modules"
    _install(INSTALL_NPM, folder / library)
    script = SCRIPTS / f"{library.replace('-', '_')}.mjs"
    return [NODE, str(script), str(folder), str(port), interval], {}


def snippet(language: str, code: str) -> tuple[list[str], dict[str, str]]:
    """The command that runs a snippet with binance-connector or with ccxt for JavaScript, and its environment."""
    if language == "python":
        _install(INSTALL_CONNECTOR, CONNECTOR / "binance")
        return [sys.executable, "-c", code], {"PYTHONPATH": str(CONNECTOR)}
    if NODE is None:
        pytest.skip(NEEDS_NODE)
    _install(INSTALL_NPM, NPM / "node_modules" / "ccxt")
    (NPM / "snippet.mjs").write_text(code)
    return [NODE, str(NPM / "snippet.mjs")], {}


def without_proxies() -> dict[str, str]:
    """Our environment without proxies, of which some libraries ask the way to this very machine."""
    return {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}


async def watch(library: str, port: int, interval: str) -> list[dict[str, Any]]:
    """Two bars that a library was sent of an interval, or its error."""
    command, more = command_of(library, port, interval)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, env={**without_proxies(), **more}
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return [json.loads(line) for line in output.splitlines()]
