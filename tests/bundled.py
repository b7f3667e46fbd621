"""The bundled plugins as setup.py declares them, whatever else is installed where the tests run, and since when."""

import re
from importlib.metadata import EntryPoint

from candled.plugins import GROUP, discover
from tests.sources import ROOT, read

ENTRY_POINTS = [
    EntryPoint(name, value, GROUP)
    for name, value in re.findall(r'"(\w+) = (candled_plugins\.\w+)"', read(ROOT / "setup.py"))
]
PLUGINS = discover(ENTRY_POINTS)
