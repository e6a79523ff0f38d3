"""Interpreters and components as people have them, where ``python -m hack.guests`` has made them."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from engines.wasm.guest.plan import GuestPlan, Outcome, Preopen
from hack.guests import find
from tests.unit.wasm.guests import Guests


def real(name: str) -> Path:
    found = find(name)
    if found is None:
        pytest.skip(f"needs {name}: python -m hack.guests")
    return found


def test_cpython_runs(real_guests: Guests, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("kept")
    script = "import os,sys; print(open('/data/note').read(), sys.platform, os.environ['A']); sys.exit(42)"
    plan = GuestPlan(argv=("python", "-c", script), env=("A=b",), preopens=(Preopen(str(tmp_path), "/data"),))
    ran = real_guests.run(real("python.wasm"), plan)
    assert (ran.outcome, ran.stdout) == (Outcome(42), b"kept wasi b\n")


def test_cpython_reads_what_it_is_told(real_guests: Guests) -> None:
    ran = real_guests.run(real("python.wasm"), GuestPlan(argv=("python", "-")), b"print(6 * 7)\n")
    assert (ran.outcome, ran.stdout) == (Outcome(0), b"42\n")


def test_cpython_is_told_when_there_is_no_more_memory(real_guests: Guests) -> None:
    script = "x = []\nwhile True: x.append(bytearray(1 << 20))"
    ran = real_guests.run(real("python.wasm"), GuestPlan(argv=("python", "-c", script), memory_max=128 << 20))
    assert ran.code == 1
    assert b"MemoryError" in ran.stderr


def test_quickjs_runs(real_guests: Guests, tmp_path: Path) -> None:
    (tmp_path / "main.js").write_text(
        'import * as std from "qjs:std"; const fruit = JSON.parse(std.loadFile("/app/fruit.json"));'
        " console.log(fruit.map((one) => one.toUpperCase()).join()); std.exit(200);"
    )
    (tmp_path / "fruit.json").write_text('["fig", "pear"]')
    plan = GuestPlan(argv=("qjs", "-m", "/app/main.js"), preopens=(Preopen(str(tmp_path), "/app", readonly=True),))
    ran = real_guests.run(real("quickjs.wasm"), plan)
    assert (ran.outcome, ran.stdout) == (Outcome(200), b"FIG,PEAR\n")


def test_a_component_of_cpython_runs(real_guests: Guests) -> None:
    component = real("app.component.wasm")
    ran = real_guests.run(component, GuestPlan(argv=("app",), env=("WHO=forge",)))
    assert (ran.outcome, ran.stdout) == (Outcome(0), b"hello from cpython forge\n")
    ran = real_guests.run(component, GuestPlan(argv=("app", "copy")), b"quiet\n")
    assert (ran.outcome, ran.stdout) == (Outcome(0), b"QUIET\n")


def test_a_component_of_cpython_ends_with_a_code(real_guests: Guests) -> None:
    ran = real_guests.run(real("app.component.wasm"), GuestPlan(argv=("app", "exit", "7")))
    assert ran.code in (1, 7)


def test_a_component_connects(real_guests: Guests) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(30)
        port = str(server.getsockname()[1])

        def answer() -> None:
            peer, _ = server.accept()
            peer.settimeout(30)
            with peer:
                peer.sendall(b"pong to " + peer.recv(100))

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        ran = real_guests.run(real("app.component.wasm"), GuestPlan(argv=("app", "connect", "127.0.0.1", port)))
        thread.join(10)
    assert (ran.outcome, ran.stdout) == (Outcome(0), b"got pong to ping\n")


def test_a_component_connects_to_nothing_where_it_may_not(real_guests: Guests) -> None:
    plan = GuestPlan(argv=("app", "connect", "127.0.0.1", "1"), network=False)
    ran = real_guests.run(real("app.component.wasm"), plan)
    assert ran.code != 0
    assert b"gaierror" in ran.stderr
