"""What a wheel holds: every file of the packages that is not Python is matched by a pattern of setup.py."""

import re
import runpy
from importlib.metadata import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
FOLDERS = {"candled": "candled", "candled_plugins": "plugins", "candled_clients": "clients"}
NOT_SHIPPED = {".md", ".json"}  # pages and manifests for those who read the repository


def read_setup() -> dict[str, Any]:
    """The arguments of `setup` in setup.py."""
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


def test_a_wheel_has_every_file_that_the_packages_read():
    shipped: set[Path] = set()
    for package, patterns in read_setup()["package_data"].items():
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


def test_the_page_of_licences_has_each_requirement_with_the_licence_that_it_declares():
    page = (ROOT / "docs" / "reference" / "licences.md").read_text("utf-8")
    rows = re.findall(r"^\| ([\w-]+) \| (?:`(\w+)`)? ?\| ([^|]+) \|$", page, re.MULTILINE)
    listed = {(name, extra): licence for name, extra, licence in rows}
    facts = read_setup()
    groups = {"": facts["install_requires"], **facts["extras_require"]}
    wanted = {
        (re.match(r"[\w-]+", requirement)[0], extra)
        for extra, requirements in groups.items()
        if extra not in ("test", "bench", "lint")
        for requirement in requirements
    }
    assert listed.keys() == wanted
    for (name, _), licence in listed.items():
        declared = metadata(name)
        expression = declared.get("License-Expression")
        if expression is not None:
            assert licence == expression, name
        else:  # older metadata, in free words
            text = f"{declared.get('License')} {declared.get_all('Classifier')}"
            assert re.search(licence.split("-")[0].replace("BSD", "BSD|3-Clause"), text), name
