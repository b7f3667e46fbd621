"""Libraries that take seconds to import, for the one test file that needs each: every worker reads all files."""

import importlib
import warnings
from typing import Any


class LazyModule:
    """Stand for a module, which is imported when its first name is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_", "pytest")):  # pytest asks each name of a test file whether it is a fixture
            raise AttributeError(attribute)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # python-binance imports old names of websockets
            return getattr(importlib.import_module(self._name), attribute)
