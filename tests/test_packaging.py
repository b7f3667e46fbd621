"""What a wheel holds: every file of the packages that is not Python is matched by a pattern of setup.py."""

import runpy
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
FOLDERS = {"candled": "candled", "candled_plugins": "plugins", "candled_clients": "clients"}
NOT_SHIPPED = {".md", ".json"}  # pages and manifests for those who read the repository


def test_a_wheel_has_every_file_that_the_packages_read():
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    shipped: set[Path] = set()
    for package, patterns in setup.call_args.kwargs["package_data"].items():
        name, *parts = package.split(".")
        folder = ROOT.joinpath(FOLDERS[name], *parts)
        for pattern in patterns:
            found = [path for path in folder.glob(pattern) if path.is_file()]
            assert found, f"{package}: nothing is like {pattern}"
            shipped.update(found)
    there = {
        path
        for folder in ("candled", "plugins")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc", *NOT_SHIPPED}
    }
    assert sorted(there - shipped) == []
