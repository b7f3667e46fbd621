"""Compile a fresh checkout once. Otherwise each worker would compile all of it, at the same time as the others."""

import compileall
import contextlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def compile_share(config: pytest.Config, number: int, count: int) -> None:
    """Compile one of `count` shares of the files: that of the worker with this number, before it reads the tests."""
    files = [path for folder in ("candled", "plugins", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    for path in files[number::count]:
        if path.name.startswith("test_") or path.name == "conftest.py":
            with contextlib.suppress(Exception):  # pytest documents none of this; without it, workers compile these
                rewrite_assertions(path, config)
        else:
            compileall.compile_file(path, quiet=2)


def rewrite_assertions(path: Path, config: pytest.Config) -> None:
    """Write the file that pytest looks for when it imports a module of tests, unless there is a newer one."""
    from _pytest.assertion import rewrite

    compiled = rewrite.get_cache_dir(path) / (path.stem + rewrite.PYC_TAIL)
    if compiled.exists() and compiled.stat().st_mtime > path.stat().st_mtime:
        return
    compiled.parent.mkdir(exist_ok=True)
    tag, code = rewrite._rewrite_test(path, config)
    rewrite._write_pyc(config.stash[rewrite.assertstate_key], code, tag, compiled)
