"""The Autobahn suite against the socket that candled keeps itself, through an echo."""

import asyncio
import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from tests.serve.peers import echo_harness
from tests.tiers import LONG

pytestmark = pytest.mark.usefixtures("daemon")

ROOT = Path(__file__).parents[2]
# Group 9 sends messages of 16 MiB.
LARGEST = 16 * 2**20
FINE = {"OK", "NON-STRICT", "INFORMATIONAL"}
# Group 13 asks for windows smaller than the one in which all clients share a compressed frame: compression is declined.
DECLINED = {"UNIMPLEMENTED"}


def wstest() -> str:
    """The program, made by `make autobahn`; it needs Python 2.7."""
    found = shutil.which("wstest") or ROOT / ".autobahn" / "bin" / "wstest"
    if not Path(found).exists():
        pytest.skip("needs wstest: make autobahn (needs Python 2.7)")
    return str(found)


async def failed(directory: Path, cases: list[str], exclude: list[str], allowed: set[str], **settings) -> int:
    """Run cases; return how many were run, and fail with those that did not behave."""
    # a ping of ours in the middle of a frame of theirs makes them answer there, and break it
    calm = {"ping_interval": timedelta(hours=1), "max_handshakes_per_second": 0}
    async with echo_harness(largest_message=LARGEST, **calm, **settings) as harness:
        report = directory / "report"
        spec = {
            "outdir": str(report),
            "servers": [{"agent": "candled", "url": f"ws://127.0.0.1:{harness.port}/ws"}],
            "cases": cases,
            "exclude-cases": exclude,
            "exclude-agent-cases": {},
        }
        (directory / "spec.json").write_text(json.dumps(spec))
        run = await asyncio.create_subprocess_exec(
            wstest(), "-m", "fuzzingclient", "-s", str(directory / "spec.json"),
            cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await run.communicate()
    assert run.returncode == 0, output[-2000:]
    results = json.loads((report / "index.json").read_text())["candled"]
    bad = {
        case: (result["behavior"], result["behaviorClose"])
        for case, result in results.items()
        if result["behavior"] not in FINE | allowed or result["behaviorClose"] not in FINE | allowed
    }
    assert bad == {}
    return len(results)


async def test_cases_1_to_10(tmp_path):
    """Promise 18. Group 9 repeats a few exchanges with larger and larger messages; the long form runs all of them."""
    groups = [f"{group}.*" for group in range(1, 11) if group != 9 or LONG]
    sizes = [] if LONG else ["9.1.1", "9.1.4", "9.2.1", "9.2.4", "9.3.4", "9.4.4", "9.5.4", "9.6.4", "9.7.1", "9.8.1"]
    assert await failed(tmp_path, [*groups, *sizes], [], set()) >= (301 if LONG else 257)


async def test_compressed_messages_of_the_first_size(tmp_path):
    """Groups 12 and 13 differ in sizes and windows only; the long form runs them all."""
    sizes = ["12.1.1", "13.1.1"]
    assert await failed(tmp_path, sizes, [], DECLINED, compression=True) == len(sizes)


@pytest.mark.long
@pytest.mark.timeout(5400)
async def test_all_cases(tmp_path):
    assert await failed(tmp_path, ["*"], [], DECLINED, compression=True) >= 517
