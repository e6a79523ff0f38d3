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

ZYGOTE = """
import sys
from pathlib import Path
from engines.wasm.aot.target import Variant
from engines.wasm.guest import running
from engines.wasm.guest.plan import GuestPlan
from tests.unit.wasm.conftest import make_cache
from tests.unit.wasm.guests import Guests

guests = Guests(make_cache(Path(sys.argv[1])))
guests.load(sys.argv[2])
running.rehearse(guests._engines.engine(Variant.PLAIN))
for _ in range(3):
    ran = guests.run(sys.argv[2], GuestPlan(argv=("x",), function="draw"))
    print(ran.stdout.decode().strip() or ran.refused)
"""


@pytest.mark.parametrize(
    "guest",
    [
        MODULE,
        COMPONENT % {"interface": "random", "function": "get-random-u64"},
        COMPONENT % {"interface": "insecure", "function": "get-insecure-random-u64"},
    ],
    ids=["module", "component", "insecure"],
)
def test_guests_that_are_forked_from_one_process_draw_each_their_own(guest: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", ZYGOTE, str(tmp_path), guest]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    drawn = done.stdout.split()
    assert len(drawn) == 3 and all(one.lstrip("-").isdigit() for one in drawn), done.stdout
    assert len(set(drawn)) == 3
