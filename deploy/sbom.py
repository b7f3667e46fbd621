"""Print a bill of materials of the installed candled as CycloneDX JSON: `python deploy/sbom.py candled[zstd,jwt]`.

It lists candled, each package that it needs in this environment with version and licence, and the vendored JavaScript.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

VENDORED = Path("candled") / "serve" / "static" / "vendor"
_VENDORED_PACKAGE = re.compile(r"npm package\s+`([\w-]+)` ([\d.]+) \(([^)]+)\)")
_SPDX = {"Apache License 2.0": "Apache-2.0"}


def find_packages(wanted: str) -> Iterator[Distribution]:
    """Yield the installed distribution of a requirement and those that it needs, each once."""
    waiting, seen = [Requirement(wanted)], set[tuple[str, str]]()
    found = set[str]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        try:
            package = distribution(name)
        except PackageNotFoundError as error:
            raise SystemExit(f"{name}: expected it to be installed, as {wanted} needs it") from error
        if name not in found:
            found.add(name)
            yield package
        for extra in {"", *requirement.extras} - {known for one, known in seen if one == name}:
            seen.add((name, extra))
            needed = map(Requirement, package.requires or ())
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]


def licence_of(package: Distribution) -> str:
    """Return the licence that a package declares: an SPDX expression, or free words of older metadata."""
    metadata = package.metadata
    classifiers = [
        text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier", ()) if text.startswith("License ::")
    ]
    declared = metadata.get("License-Expression") or ", ".join(classifiers) or metadata.get("License")
    return declared.splitlines()[0] if declared else "unknown"


def as_component(package: Distribution) -> dict[str, Any]:
    """Return the entry of a package."""
    name, version = canonicalize_name(package.metadata["Name"]), package.version
    return {
        "type": "library",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
        "licenses": [{"license": {"name": licence_of(package)}}],
    }


def find_vendored(root: Path) -> Iterator[dict[str, Any]]:
    """Yield an entry for each vendored JavaScript file below the folder that has the package `candled`."""
    for script in sorted((root / VENDORED).rglob("*.js")):
        found = _VENDORED_PACKAGE.search(script.with_name("README.md").read_text("utf-8"))
        if found is None:
            raise SystemExit(f"{script.parent}: expected a README.md with name, version and licence of the npm package")
        name, version, licence = found.groups()
        yield {
            "type": "library",
            "name": name,
            "version": version,
            "purl": f"pkg:npm/{name}@{version}",
            "licenses": [{"license": {"name": _SPDX.get(licence, licence)}}],
            "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(script.read_bytes()).hexdigest()}],
        }


def make_bill(wanted: str, root: Path) -> dict[str, Any]:
    """Return the bill of materials of a requirement such as `candled[zstd]`, with the JavaScript below `root`."""
    own, *packages = map(as_component, find_packages(wanted))
    components = [*sorted(packages, key=lambda one: str(one["name"])), *find_vendored(root)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {**own, "type": "application"}},
        "components": components,
    }


if __name__ == "__main__":
    chosen = sys.argv[1] if len(sys.argv) > 1 else "candled"
    print(json.dumps(make_bill(chosen, Path(__file__).parents[1]), indent=2))
