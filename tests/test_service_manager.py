"""Reports to systemd: a real socket takes them, from the class alone and from a whole daemon."""

import os
import signal
import socket
from pathlib import Path

import pytest

from candled.service_manager import ServiceManager
from candled.tasks import TaskSet
from tests.clocks import ManualClock
from tests.system.daemon import Daemon


class Manager:
    """The socket that systemd would listen on."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(60)

    def read(self, *, beats: bool = False) -> str:
        """The next report; without `beats` those of the watchdog are skipped."""
        while (text := self._socket.recv(4096).decode()) == "WATCHDOG=1" and not beats:
            pass
        return text.partition("\n")[0]

    def read_all(self) -> list[str]:
        """The reports that have arrived."""
        found = []
        self._socket.setblocking(False)
        try:
            while True:
                found.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["file", "abstract"])
def manager(request, tmp_path):
    one = Manager(str(tmp_path / "notify") if request.param == "file" else f"@candled-test-{os.getpid()}")
    yield one
    one.close()


def test_each_change_of_state_is_one_report(manager):
    environment = {"NOTIFY_SOCKET": manager.address, "HOME": "/"}
    service = ServiceManager(environment)
    service.report_ready()
    service.report_reload()
    service.report_stop()
    ready, reload, stop = manager.read_all()
    assert (ready, stop) == ("READY=1", "STOPPING=1")
    name, at = reload.split("\n")
    assert name == "RELOADING=1"
    assert at.removeprefix("MONOTONIC_USEC=").isdigit()
    assert environment == {"HOME": "/"}  # programs that it starts report nothing


async def test_beats_stop_while_nothing_moves(manager):
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    service, clock, tasks, is_moving = ServiceManager(environment), ManualClock(), TaskSet(), [True]
    assert service.watchdog_s == 30.0
    service.start_beats(tasks, clock, lambda: is_moving[0])
    await clock.advance(30)
    assert len(manager.read_all()) >= 3
    is_moving[0] = False
    await clock.advance(300)
    assert manager.read_all() == []
    is_moving[0] = True
    await clock.advance(11)
    assert manager.read_all() == ["WATCHDOG=1"]
    await tasks.cancel()


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": ""}],
)
async def test_without_a_watchdog_there_are_no_beats(environment):
    clock, tasks = ManualClock(), TaskSet()
    ServiceManager(environment).start_beats(tasks, clock, lambda: True)
    await clock.settle()
    assert clock.sleepers == 0


def test_a_socket_that_is_gone_disturbs_nothing(tmp_path):
    ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "gone")}).report_ready()


@pytest.mark.usefixtures("daemon")
def test_a_daemon_reports_its_start_its_reload_its_beats_and_its_stop(tmp_path):
    manager = Manager(str(tmp_path / "notify"))
    settings = {
        "exchanges": {"replay": {"symbols": ["BTC/USDT"]}},
        "store": {"url": f"sqlite:///{tmp_path}/candled.db"},
    }
    with Daemon(Path(tmp_path)) as daemon:
        daemon.start(settings, env={"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "500000"})
        assert manager.read() == "READY=1"
        assert manager.read(beats=True) == "WATCHDOG=1"
        daemon.process.send_signal(signal.SIGHUP)
        assert manager.read() == "RELOADING=1"
        assert manager.read() == "READY=1"
        assert daemon.stop() == 0
        assert manager.read() == "STOPPING=1"
    manager.close()
