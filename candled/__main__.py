"""Runs the command `candled` for `python -m candled`."""

import gc
import sys

from candled import signals


def main() -> int:
    """Run a command; return the exit status."""
    if sys.platform == "win32":
        print(
            "candled: expected Linux or macOS, got Windows: run it in WSL 2 or in Docker; candled.client works here",
            file=sys.stderr,
        )
        return 2
    signals.obey()  # before the imports that take time
    gc.disable()  # they make many objects and no garbage; searching it takes a fifth of their time
    from candled.cli import main as run

    gc.enable()
    return run()


if __name__ == "__main__":
    sys.exit(main())
