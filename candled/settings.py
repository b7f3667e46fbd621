"""placeholder"""

from typing import Any


def setting(
    default: Any, *, help: str, at_least: Any = None, at_most: Any = None, one_of: Any = None, secret: bool = False
) -> Any: ...
