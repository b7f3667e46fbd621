"""The exchange of examples/candled-plumline, which is not installed, and its recordings."""

import sys

from candled.testing.recording import read_recording
from tests.sources import ROOT

EXAMPLE = ROOT / "examples" / "candled-plumline"
sys.path.insert(0, str(EXAMPLE))

from candled_plumline.exchange import Plumline, PlumlineFeed  # noqa: E402

RECORDINGS = {path.name: read_recording(path) for path in sorted((EXAMPLE / "tests").glob("*.jsonl*"))}

__all__ = ["EXAMPLE", "RECORDINGS", "Plumline", "PlumlineFeed"]
