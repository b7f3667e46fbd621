"""`python -m candled` is `candled`."""

import sys

from candled import signals


def main() -> int:
    """Run a command; return the exit status."""
    signals.obey()  # before the imports that take time
    from candled.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
