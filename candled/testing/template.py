"""The files of a new plugin, for `candled plugin new`."""

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template

from candled.errors import ConfigError

FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".github/workflows/test.yml": "test.yml",
    "$module/__init__.py": "init.py",
    "$module/exchange.py": "exchange.py",
    "tests/test_$module.py": "test_plugin.py",
}
"""The files of a distribution, and the templates that they are made from."""

_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")


def render_files(name: str) -> dict[str, str]:
    """Return the files of a plugin for an exchange of that name, by their paths.

    Raises:
        ConfigError: the name cannot be that of an exchange.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(
            f"expected a name such as coinfair or coin-fair, of lower-case letters and digits, got {name}"
        )
    words = re.split("[_-]", name)
    values = {
        "name": name,
        "distribution": f"candled-{'-'.join(words)}",
        "module": f"candled_{'_'.join(words)}",
        "class_name": "".join(word.capitalize() for word in words),
    }
    folder = resources.files(__package__) / "new_plugin"
    return {
        Template(path).substitute(values): Template((folder / f"{source}.txt").read_text("utf-8")).substitute(values)
        for path, source in FILES.items()
    }


def write_plugin(name: str, parent: Path) -> Path:
    """Write the files of a new plugin into a new folder of `parent`; return the folder.

    Raises:
        ConfigError: the name cannot be that of an exchange, or the folder exists or cannot be written.
    """
    files = render_files(name)
    folder = parent / f"candled-{name.replace('_', '-')}"
    try:
        folder.mkdir()
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return folder
