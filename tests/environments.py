"""Virtual environments beside that of the tests, for packages that are built and installed."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path


class Environment:
    """A virtual environment that sees the packages of the tests' own, but none of the plugins under test."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        packages = next(folder.glob("lib/python*/site-packages"))
        parent = sysconfig.get_path("purelib")
        (packages / "parent.pth").write_text(f"import site; site.addsitedir({parent!r})\n", "utf-8")

    def run(self, *arguments: str, cwd: Path, status: int = 0) -> str:
        """Run Python with arguments; return the output."""
        return run_program(str(self.python), *arguments, cwd=cwd, status=status)

    def pip(self, *arguments: str, cwd: Path) -> str:
        """Run pip for this environment, without a network."""
        own = ["-m", "pip", "--python", str(self.python), "--disable-pip-version-check", "--no-input"]
        return run_program(sys.executable, *own, *arguments, cwd=cwd)


def run_program(*command: str, cwd: Path, status: int = 0) -> str:
    """Run a program without the settings of the tests' own environment; return the output."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CANDLED_", "PYTHONPATH"))}
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # an author has pytest alone
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == status, f"{command}:\n{done.stdout}{done.stderr}"
    return done.stdout


def build(folder: Path, kind: str = "wheel") -> Path:
    """Build a wheel or an sdist of the project in a folder, by the backend that its pyproject.toml names; return it.

    Other than with pip, the backend is that of the tests' environment.
    """
    dist = folder / "dist" / kind
    run_program(
        sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_{kind}({str(dist)!r})", cwd=folder
    )
    (built,) = dist.iterdir()
    return built
