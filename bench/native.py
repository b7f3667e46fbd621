"""The C parts of the benchmarks, compiled when needed; without a compiler there is no floor, and a slower load."""

import ctypes
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@cache
def compiler() -> str | None:
    """A C compiler, if this machine has one."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


@cache
def compiled(name: str, *options: str) -> Path | None:
    """What `NAME.c` beside this file compiles to, kept for the next process; None without a compiler."""
    program = compiler()
    if program is None:
        return None
    source = HERE / f"{name}.c"
    target = HERE / "__pycache__" / f"{name}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / name
            subprocess.run([program, "-O2", *options, "-o", str(made), str(source)], check=True)
            made.replace(target)
    return target


class Floor:
    """`send()` in a C loop on the sockets of this very process."""

    def __init__(self, descriptors: Sequence[int]) -> None:
        library = compiled("floor", "-shared", "-fPIC")
        if library is None:
            raise RuntimeError("there is no C compiler")
        self._send = ctypes.CDLL(str(library)).floor_send
        self._descriptors = (ctypes.c_int * len(descriptors))(*descriptors)
        self._count = len(descriptors)

    def send(self, frame: bytes) -> int:
        """Send a frame to all; return how many took it whole."""
        return int(self._send(self._descriptors, self._count, bytes(frame), len(frame)))


class Load:
    """The load client in a process of its own. `results` ends it."""

    def __init__(self, port: int, clients: int, *options: str) -> None:
        native = compiled("load")
        command = [str(native)] if native else [sys.executable, "-m", "bench.load"]
        self._process = subprocess.Popen(
            [*command, "--port", str(port), "--n", str(clients), *options],
            cwd=HERE.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def results(self) -> dict[str, Any]:
        """End it, unless it ended by itself; return what it counted.

        Raises:
            RuntimeError: it failed.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        output, _ = self._process.communicate(timeout=60)
        if self._process.returncode:
            raise RuntimeError(f"the load client ended with {self._process.returncode}")
        found: dict[str, Any] = json.loads(output)
        return found

    def wait(self, within_s: float) -> dict[str, Any]:
        """What it counted, once it has ended by itself."""
        output, _ = self._process.communicate(timeout=within_s)
        found: dict[str, Any] = json.loads(output)
        return found

    def kill(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._process.wait()


def connections() -> list[int]:
    """The descriptors of all TCP connections of this process."""
    found = []
    for path in list(Path("/proc/self/fd").iterdir()):
        try:
            copy = os.dup(int(path.name))
        except OSError:
            continue
        try:
            known = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)
            continue
        with known:
            try:
                if known.type == socket.SOCK_STREAM and known.family in (socket.AF_INET, socket.AF_INET6):
                    known.getpeername()
                    found.append(int(path.name))
            except OSError:
                continue
    return sorted(found)
