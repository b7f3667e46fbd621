"""Commands that work on stored history: each module adds its commands to the command line."""

import argparse
from collections.abc import Callable
from typing import Any, Protocol

from candled.config import Config

Run = Callable[[argparse.Namespace, Config], int]


class Commands(Protocol):
    """Where a tool adds its commands; `candled.cli` has it."""

    def add(self, name: str, run: Run, *, help: str, **more: Any) -> argparse.ArgumentParser:
        """Add a command with `--config`; `run` gets the options and the settings, and returns the exit status."""


from . import backfill, gaps, init_db, transfer, verify  # noqa: E402 - the modules need what is above

TOOLS: tuple[Callable[[Commands], None], ...] = (init_db.add, backfill.add, gaps.add, transfer.add, verify.add)
