"""What one update to all clients of a room costs over plain TCP, over TLS, and with nginx in front.

    python -m bench.tls [--clients 1000] [--rounds 25]

Processor time per client of a broadcast, kernel included: of candled's thread, and of nginx where it ends TLS. They
take turns, round by round. The clients are a process of their own; the delay is that of the client that gets the update
last, and contains the work of reading it.
"""

import argparse
import json
import os
import re
import resource
import select
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.fanout import GAP_S, SUBSCRIBE, Server
from bench.process import ROOT, spread
from tests.certificates import Authority
from tests.serve.peers import TEXT, frame
from tests.system.daemon import free_port

HOST = "127.0.0.1"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_EPOCH = 10**15
_STAMP = re.compile(rb'"volume":(\d{16})')
_CONFIGURATION = """
daemon off; {user}pid {folder}/pid; worker_processes 1; error_log stderr crit;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen {port} ssl;
        ssl_certificate {certificate}; ssl_certificate_key {key};
        location / {{
            proxy_pass http://127.0.0.1:{behind}; proxy_http_version 1.1; proxy_buffering off;
            proxy_set_header Host $host; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
        }}
    }}
}}
"""


class Clients:
    """A process with subscribed clients."""

    def __init__(self, port: int, count: int, authority: str) -> None:
        command = [sys.executable, "-m", "bench.tls", "--read", json.dumps([port, count, authority])]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # all are subscribed

    def results(self) -> list[float]:
        """End them; return the delay of the last client in each round, in milliseconds."""
        output, _ = self._process.communicate("\n")
        found: list[float] = json.loads(output)
        return found

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def read(port: int, count: int, authority: str) -> None:
    """Be the clients until a line comes on standard input."""
    trusting = ssl.create_default_context(cafile=authority) if authority else None
    poller, peers = select.epoll(), {}
    for _ in range(count):
        peer: Any = socket.create_connection((HOST, port))
        if trusting is not None:
            peer = trusting.wrap_socket(peer, server_hostname=HOST)
        peer.sendall(
            b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b" 101 " in peer.recv(4096)
        peer.sendall(frame(TEXT, SUBSCRIBE.encode()))
        peer.setblocking(False)
        poller.register(peer, select.EPOLLIN)
        peers[peer.fileno()] = peer
    print("ready", flush=True)
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), ended.set()), daemon=True).start()
    last: dict[int, float] = defaultdict(float)
    while not ended.is_set():
        for descriptor, _ in poller.poll(0.2):
            try:
                data = peers[descriptor].recv(16_384)
            except ssl.SSLWantReadError:
                continue
            for stamp in map(int, _STAMP.findall(data)):
                delay = time.monotonic_ns() % _EPOCH - stamp % _EPOCH
                last[stamp] = max(last[stamp], delay / 1e6)
    print(json.dumps(list(last.values())))


class Nginx:
    """nginx, which ends TLS before a server."""

    def __init__(self, folder: Path, behind: int, certificate: Path, key: Path) -> None:
        self.port = free_port()
        is_root = os.geteuid() == 0
        text = _CONFIGURATION.format(
            user="user root; " if is_root else "",
            folder=folder, port=self.port, behind=behind, certificate=certificate, key=key,
        )  # fmt: skip
        (folder / "nginx.conf").write_text(text)
        assert NGINX is not None
        self._process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")])
        while True:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            if children:
                self._worker = int(children[0])
                return
            time.sleep(0.05)

    def spent_us(self) -> float:
        """The processor time of the process that serves, in microseconds."""
        fields = Path(f"/proc/{self._worker}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S * 1e6

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()


def measure(count: int, rounds: int, folder: Path) -> None:
    """Measure and print."""
    authority = Authority(folder)
    certificate, key = authority.sign(HOST)
    quiet = {"ping_interval": 3600}  # the clients answer no pings
    files = {**quiet, "tls_certificate": str(certificate), "tls_key": str(key)}
    trusted = str(authority.certificate)
    with ExitStack() as stack:
        servers = {"plain": Server("candled", **quiet), "TLS": Server("candled", **files)}
        servers["TLS by Tornado"] = Server("candled", own_sockets=False, **files)
        ports = {name: (server.port, "" if name == "plain" else trusted) for name, server in servers.items()}
        nginx = None
        if NGINX is not None:
            servers["nginx"] = Server("candled", **quiet)
            nginx = Nginx(folder, servers["nginx"].port, certificate, key)
            ports["nginx"] = (nginx.port, trusted)
            stack.callback(nginx.end)
        for server in servers.values():
            stack.callback(server.end)
        clients = {name: Clients(port, count, trust) for name, (port, trust) in ports.items()}
        for one in clients.values():
            stack.callback(one.end)
        time.sleep(2)
        costs: dict[str, list[float]] = defaultdict(list)
        before = 0.0
        for number in range(rounds + 1):
            if number == 1 and nginx is not None:
                before = nginx.spent_us()
            for name, server in servers.items():
                spent = server.ask("send") / count
                if number:
                    costs[name].append(spent)
                time.sleep(GAP_S)
        extra = 0.0 if nginx is None else (nginx.spent_us() - before) / count / rounds
        base = statistics.median(costs["plain"])
        for name, own in costs.items():
            total = statistics.median(own) + (extra if name == "nginx" else 0.0)
            more = f" + {extra:.1f} of nginx" if name == "nginx" else ""
            late = statistics.median(clients[name].results()[-rounds:])
            cost = f"{spread(own, '.1f')} µs each{more}: {total / base:.2f} of plain"
            print(f"{count} clients, {name:<14} {cost}; last client p50 {late:.1f} ms", flush=True)
        if NGINX is None:
            print(f"{count} clients, nginx          skipped: apt-get install nginx-light")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or be the clients of a measurement."""
    parser = argparse.ArgumentParser(prog="python -m bench.tls", description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if options.read:
        read(*json.loads(options.read))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(options.clients, options.rounds, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
