"""The daemon as a subprocess, for tests that need the whole of it."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from tests import deadlines, prefork
from tests.ports import free_port
from tests.prefork import ROOT, Program


def _limit_files(most: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Daemon:
    """`python -m candled --config FILE`, started and stopped any number of times on one port and directory.

    It is forked (tests/prefork.py) unless the test is about the start of an interpreter, or limits its descriptors.

    Everything it prints goes to one file; `output` is all of it so far. Used as a context manager it is killed at
    the end, whatever happened.
    """

    arguments: tuple[str, ...] = ()

    def __init__(self, directory: Path, *, is_forked: bool = True) -> None:
        self.directory = directory
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | Program | None = None
        self._is_forked = is_forked
        self._output = directory / "daemon.log"

    def __enter__(self) -> "Daemon":
        return self

    def __exit__(self, *_: object) -> None:
        if self.running:
            self.stop(signal.SIGKILL)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        """`ws://127.0.0.1:PORT/ws`."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def output(self) -> str:
        """What the daemon printed so far, over all its starts."""
        return self._output.read_text("utf-8", "replace") if self._output.exists() else ""

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def write(self, config: Mapping[str, Any]) -> Path:
        """Write the settings; return their file. `server.port` is set to `port`, `host` to 127.0.0.1.

        Everyone may read the details of `/health`.
        """
        server = {"host": "127.0.0.1", "port": self.port, "health_details": True, **config.get("server", {})}
        path = self.directory / "candled.yaml"
        path.write_text(yaml.safe_dump({**config, "server": server}, sort_keys=False), "utf-8")
        return path

    def launch(
        self, config: Mapping[str, Any], *, env: Mapping[str, str] | None = None, open_files: int | None = None
    ) -> None:
        """Start the process with the settings that `write` writes, and do not wait.

        `open_files` is the limit of its file descriptors.
        """
        if self.running:
            raise RuntimeError("the daemon is already running")
        path = self.write(config)
        arguments = ["--config", str(path), *self.arguments]
        with self._output.open("ab") as output:
            if self._is_forked and open_files is None:
                self.process = prefork.start("candled", arguments, cwd=self.directory, output=output, env=env)
                return
            self.process = subprocess.Popen(
                [sys.executable, "-m", "candled", *arguments],
                cwd=self.directory,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=None if open_files is None else partial(_limit_files, open_files),
            )

    def start(
        self,
        config: Mapping[str, Any],
        *,
        env: Mapping[str, str] | None = None,
        open_files: int | None = None,
        within_s: float = 20.0,
    ) -> dict[str, Any]:
        """Start the process, wait until `/health` answers, and return that answer.

        Raises:
            AssertionError: it ended, or did not answer within `within_s` seconds; the text carries its output.
        """
        self.launch(config, env=env, open_files=open_files)
        deadline = deadlines.now() + within_s
        while deadlines.now() < deadline:
            assert self.running, f"the daemon ended with status {self.status}:\n{self.output}"
            try:
                return self.get("/health?verbose")
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"/health did not answer within {within_s} s:\n{self.output}")

    def get(self, path: str) -> Any:
        """GET `path` and parse the JSON body, whatever the status."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return json.load(error)

    def reload(self) -> tuple[int, str]:
        """Run `candled reload` in the daemon's directory; return its exit status and its output."""
        done = subprocess.run(
            [sys.executable, "-m", "candled", "reload"],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def stop(self, how: int = signal.SIGTERM, *, within_s: float = 15.0) -> int:
        """Send the signal, wait for the end and return the exit status (negative: killed by that signal)."""
        if self.process is None:
            raise RuntimeError("the daemon was not started")
        self.process.send_signal(how)
        try:
            return deadlines.wait_for_end(self.process, within_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the daemon did not end within {within_s} s:\n{self.output}") from None

    @property
    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return None if self.process is None else self.process.poll()
