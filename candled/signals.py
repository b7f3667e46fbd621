"""Signal handling before the event loop runs.

A process may be asked to stop at any moment, even while it imports its modules, which takes a second on a slow machine.
As process 1 of a container it needs a handler, because the kernel ignores signals with the default action.
"""

import os
import signal
from types import FrameType


def obey() -> None:
    """End the process at SIGTERM or SIGINT with status 0. Call this first.

    SIGHUP waits until `obey_as_command` or the daemon's own handler decides about it.
    """
    signal.signal(signal.SIGTERM, _leave)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell may have had it ignored
        signal.signal(signal.SIGINT, _leave)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})


def obey_as_command() -> None:
    """Let SIGTERM end a command as Ctrl-C does, and restore SIGHUP. Does nothing unless `obey` was called before."""
    if signal.getsignal(signal.SIGTERM) is not _leave:
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def unblock_hangup() -> None:
    """Let SIGHUP reach the handler that is now installed, even if it was sent earlier."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(0)
