"""What guests draw that are forked from one process. In a process of the test's own: others have drawn in this one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """(module
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "draw") (result i64)
    (drop (call $random (i32.const 0) (i32.const 8)))
    (i64.load (i32.const 0))))"""

COMPONENT = """(component
  (import "wasi:random/%(interface)s@0.2.0" (instance $r (export "%(function)s" (func (result u64)))))
  (core func $get (canon lower (func $r "%(function)s")))
  (core module $m (import "r" "get" (func $get (result i64))) (func (export "draw") (result i64) call $get))
  (core instance $i (instantiate $m (with "r" (instance (export "get" (func $get))))))
  (func (export "draw") (result u64) (canon lift (core func $i "draw"))))"""

SEED = """(component
  (import "wasi:random/insecure-seed@0.2.0" (instance $r (export "insecure-seed" (func (result (tuple u64 u64))))))
  (core module $memory (memory (export "memory") 1))
  (core instance $memory (instantiate $memory))
  (core func $get (canon lower (func $r "insecure-seed") (memory (core memory $memory "memory"))))
  (core module $m
    (import "r" "get" (func $get (param i32)))
    (import "m" "memory" (memory 1))
    (func (export "draw") (result i64) (call $get (i32.const 0)) (i64.load (i32.const 0))))
  (core instance $i (instantiate $m (with "r" (instance (export "get" (func $get)))) (with "m" (instance $memory))))
  (func (export "draw") (result u64) (canon lift (core func $i "draw"))))"""

ZYGOTE = """
import sys
watched = "threading" in sys.modules
from pathlib import Path
from engines.wasm.zygote import Zygote

zygote = Zygote()
zygote.rehearse(sys.argv[1])
# Nothing of threads, which every guest would pay for.
assert watched or "threading" not in sys.modules

from engines.wasm.aot.target import Variant
from engines.wasm.guest.plan import GuestPlan
from tests.unit.wasm.conftest import make_cache
from tests.unit.wasm.guests import Guests

guests = Guests(make_cache(Path(sys.argv[1])))
guests._engines = zygote._engines
for variant, budget in ((Variant.PLAIN, 0), (Variant.METERED, 60_000_000)):
    guests.load(sys.argv[2], variant)
    for _ in range(3):
        ran = guests.run(sys.argv[2], GuestPlan(argv=("x",), function="draw", cpu_budget=budget))
        print(ran.stdout.decode().strip() or ran.refused)
"""

SERVERS = """
import os
import random
from engines.wasm.guest.http.wasi_cli import FUNCTIONS
from engines.wasm.zygote import Zygote

Zygote()
named = {name: call for name, call in FUNCTIONS.items() if name.startswith("wasi:random/")}
assert len(named) == 5
for _ in range(3):
    if os.fork() == 0:
        given = {name: (16,) if name.endswith("-bytes") else () for name in named}
        for _ in range(2):
            drawn = [call(None, *given[name]) for name, call in named.items()]
            os.write(1, f"{repr(drawn).encode().hex()} {random.getrandbits(64)}\\n".encode())
        os._exit(0)
    os.wait()
"""


def drawn(program: str, *words: str) -> list[str]:
    argv = [sys.executable, "-c", program, *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "guest",
    [
        MODULE,
        COMPONENT % {"interface": "random", "function": "get-random-u64"},
        COMPONENT % {"interface": "insecure", "function": "get-insecure-random-u64"},
        SEED,
    ],
    ids=["module", "component", "insecure", "seed"],
)
def test_guests_that_are_forked_from_one_process_draw_each_their_own(guest: str, tmp_path: Path) -> None:
    found = drawn(ZYGOTE, str(tmp_path), guest)
    assert len(found) == 6 and all(one.lstrip("-").isdigit() for one in found), found
    assert len(set(found)) == 6


def test_servers_that_are_forked_from_one_process_draw_each_their_own() -> None:
    """Their WASI is Python's, and so is what their connections need."""
    found = [part for line in drawn(SERVERS) for part in line.split()]
    assert len(found) == len(set(found)) == 12
