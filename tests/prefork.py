"""Start Python programs of the project as forks of one process that has imported it, for a fraction of a start's cost.

`start` does what `python -m MODULE ARGUMENTS` does, without most of the imports. A test of the start itself, such as
tests/system/test_stop_early.py, starts a new interpreter instead.

This module is also the program that forks: `python -m tests.prefork DESCRIPTOR`. One runs for each worker of the suite,
from the first `start` on, and kills its programs when the worker ends.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

from tests import tiers

ROOT = Path(__file__).parents[1]

_MODULES = (
    "candled.app", "candled.bus.factory", "candled.cli", "candled.plugins", "candled.store.postgres.store",
    "candled.store.sqlite.store", "tests.clocks",
)  # fmt: skip
_STEP_S = 0.005
_MOST_BYTES = 1 << 17  # of a request: arguments and an environment


class Program:
    """A started program, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, launcher: "_Launcher", pid: int, args: Sequence[str]) -> None:
        self.pid = pid
        self.args = args
        #: the exit status; None until `poll` or `wait` has seen the end
        self.returncode: int | None = None
        self._launcher = launcher

    def poll(self) -> int | None:
        """Return the exit status (negative: ended by that signal), None while it runs."""
        if self.returncode is None:
            self.returncode = self._launcher.ask({"wait": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status.

        Raises:
            subprocess.TimeoutExpired: it runs on after `timeout` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(_STEP_S)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a power failure would."""
        self.send_signal(signal.SIGKILL)


def start(
    module: str, arguments: Sequence[str], *, cwd: Path, output: IO[bytes], env: Mapping[str, str] | None = None
) -> Program:
    """Run a module as a program, without input; both of its outputs go to one file.

    `env` is added to the environment.
    """
    tiers.require("daemon")
    launcher = _launcher()
    request = {"module": module, "arguments": [*arguments], "cwd": str(cwd), "env": {**os.environ, **(env or {})}}
    return Program(launcher, launcher.ask(request, [output.fileno()]), [module, *arguments])


@cache
def _launcher() -> "_Launcher":
    launcher = _Launcher()
    atexit.register(launcher.close)
    return launcher


class _Launcher:
    """The process that forks, seen from the one that runs tests."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.prefork", str(other.fileno())],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[other.fileno()],
            )

    def ask(self, request: dict[str, Any], descriptors: Iterable[int] = ()) -> Any:
        """Send a request; return the answer."""
        with self._lock:
            socket.send_fds(self._channel, [json.dumps(request).encode()], [*descriptors])
            answer = self._channel.recv(_MOST_BYTES)
        assert answer, "the process that starts programs has ended"
        return json.loads(answer)

    def close(self) -> None:
        """End it and its programs."""
        self._channel.close()
        self._process.wait(60)


# ---------------------------------------------------------------- the process that forks


def _serve(channel: socket.socket) -> dict[str, Any] | None:
    """Answer requests until the channel is closed; return the request in each new process."""
    running: set[int] = set()
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, _MOST_BYTES, 1)
        if not data:
            break
        request = json.loads(data)
        if "wait" in request:
            ended, status = os.waitpid(request["wait"], os.WNOHANG)
            running.discard(ended)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            answer = os.fork()
            if answer == 0:
                channel.close()
                return {**request, "output": descriptors[0]}
            running.add(answer)
            os.close(descriptors[0])
        channel.send(json.dumps(answer).encode())
    for pid in running:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return None


def _become(request: dict[str, Any]) -> None:
    """Run the program of a request in this process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(request["output"], 1)
    os.dup2(request["output"], 2)
    os.close(request["output"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _main(descriptor: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which then close the channel
    for module in _MODULES:
        importlib.import_module(module)
    sys.modules["candled.plugins"].discover()  # imports the plugins
    sys.modules["candled.cli"].parse([])  # makes the commands, and keeps them
    gc.collect()
    gc.freeze()
    if request := _serve(socket.socket(fileno=descriptor)):
        _become(request)


if __name__ == "__main__":
    _main(int(sys.argv[1]))
