"""What a wheel holds: every file of the packages that is not Python is matched by a pattern of setup.py."""

import hashlib
import re
import runpy
from collections.abc import Iterator
from importlib.metadata import metadata, version
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
FOLDERS = {"candled": "candled", "candled_plugins": "plugins", "candled_clients": "clients"}
NOT_SHIPPED = {".md", ".json"}  # pages and manifests for those who read the repository


def read_setup() -> dict[str, Any]:
    """The arguments of `setup` in setup.py."""
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return setup.call_args.kwargs


def requirements() -> Iterator[Requirement]:
    """The requirements of setup.py, but those of the benchmarks, and of the linters, which have one version each."""
    facts = read_setup()
    groups = {"": facts["install_requires"], **facts["extras_require"]}
    for extra, texts in groups.items():
        if extra not in ("bench", "lint"):
            yield from map(Requirement, texts)


def pins(name: str) -> dict[str, Version]:
    """The versions of a file of constraints, by name."""
    lines = [line for line in (ROOT / name).read_text("utf-8").splitlines() if not line.startswith("#")]
    found = {canonicalize_name(package): Version(pinned) for package, pinned in (line.split("==") for line in lines)}
    assert len(found) == len(lines)
    return found


def test_the_tested_versions_are_within_the_bounds_of_setup():
    tested = pins("constraints.txt")
    assert [str(one) for one in requirements() if tested[canonicalize_name(one.name)] not in one.specifier] == []


def test_the_lowest_versions_are_the_bounds_of_setup():
    bounds = {
        canonicalize_name(one.name): Version(bound.version)
        for one in requirements()
        for bound in one.specifier
        if bound.operator == ">="
    }
    assert pins("constraints-lowest.txt") == bounds


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


def test_the_bill_of_materials_has_every_package_with_its_licence_and_the_vendored_javascript():
    facts = read_setup()
    extras = [extra for extra in facts["extras_require"] if extra not in ("test", "bench", "lint")]
    bill = runpy.run_path(str(ROOT / "deploy" / "sbom.py"))["make_bill"](f"candled[{','.join(extras)}]", ROOT)
    assert bill["metadata"]["component"]["name"] == "candled"
    components = {one["name"]: one for one in bill["components"]}
    assert len(components) == len(bill["components"])
    wanted = [*facts["install_requires"], *(one for extra in extras for one in facts["extras_require"][extra])]
    for name in (canonicalize_name(Requirement(one).name) for one in wanted):
        assert components[name]["version"] == version(name)
    assert {"pydantic-core", "cryptography"} <= components.keys()  # needed by those, one of them by an extra
    unknown = [name for name, one in components.items() if one["licenses"] == [{"license": {"name": "unknown"}}]]
    assert unknown == []
    for script in (ROOT / "candled" / "serve" / "static" / "vendor").rglob("*.js"):
        one = components[script.parent.name]
        assert f"v{one['version']}" in script.read_text("utf-8")[:200]
        assert one["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(script.read_bytes()).hexdigest()}]


def test_the_classifiers_the_workflow_and_the_readme_name_the_same_versions_of_python():
    named = [text.rpartition(" ")[2] for text in read_setup()["classifiers"] if re.search(r":: 3\.\d+$", text)]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "check.yaml").read_text("utf-8"))["jobs"]
    assert jobs["check"]["strategy"]["matrix"]["python"] == named
    assert f">={named[0]}" == read_setup()["python_requires"]
    assert all(one in (ROOT / "README.md").read_text("utf-8") for one in named)
