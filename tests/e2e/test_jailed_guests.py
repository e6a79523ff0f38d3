"""Real guests in real jails: what WebAssembly is given works behind the walls, and what it is not stays away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wasmtime import Engine, Module
from wasmtime.component import Component

from engines.wasm import jail
from engines.wasm.aot.target import Kind, Variant
from engines.wasm.guest.loading import EngineSet, Loaded, configure, load
from engines.wasm.guest.plan import GuestPlan, Preopen
from engines.wasm.guest.running import prepare, run
from engines.wasm.jail.plan import Bind, JailPlan
from tests.e2e.jails import plan

pytestmark = pytest.mark.root

# Opens the path at 64 (its length first) below preopen 4 with the rights and flags given, and says the error.
FILES = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_readdir" (func $list (param i32 i32 i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_rename" (func $rename (param i32 i32 i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "tmp/f") (data (i32.const 80) "tmp/g") (data (i32.const 96) "hello")
  (data (i32.const 112) "../escape") (data (i32.const 128) "abs") (data (i32.const 144) "proc/self/environ")
  (data (i32.const 176) "ro/f") (data (i32.const 192) "dev/urandom")
  (func $must (param $errno i32) (param $where i32)
    (if (local.get $errno) (then (call $exit (local.get $where)))))
  (func $refused (param $path i32) (param $length i32) (param $flags i32) (param $where i32)
    (if (i32.eqz (call $open (i32.const 4) (i32.const 0) (local.get $path) (local.get $length) (local.get $flags)
          (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 0)))
      (then (call $exit (local.get $where)))))
  (func (export "_start")
    (call $must (call $open (i32.const 4) (i32.const 0) (i32.const 64) (i32.const 5) (i32.const 1)
      (i64.const 66) (i64.const 0) (i32.const 0) (i32.const 0)) (i32.const 11))
    (i32.store (i32.const 8) (i32.const 96)) (i32.store (i32.const 12) (i32.const 5))
    (call $must (call $write (i32.load (i32.const 0)) (i32.const 8) (i32.const 1) (i32.const 16)) (i32.const 12))
    (call $must (call $rename (i32.const 4) (i32.const 64) (i32.const 5) (i32.const 4) (i32.const 80) (i32.const 5))
      (i32.const 13))
    (call $must (call $list (i32.const 4) (i32.const 1024) (i32.const 4096) (i64.const 0) (i32.const 16))
      (i32.const 14))
    (call $must (call $open (i32.const 4) (i32.const 0) (i32.const 192) (i32.const 11) (i32.const 0)
      (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 0)) (i32.const 15))
    (i32.store (i32.const 8) (i32.const 512))
    (call $must (call $read (i32.load (i32.const 0)) (i32.const 8) (i32.const 1) (i32.const 16)) (i32.const 16))
    (call $refused (i32.const 112) (i32.const 9) (i32.const 0) (i32.const 21))
    (call $refused (i32.const 128) (i32.const 3) (i32.const 0) (i32.const 22))
    (call $refused (i32.const 144) (i32.const 17) (i32.const 0) (i32.const 23))
    (call $refused (i32.const 176) (i32.const 4) (i32.const 1) (i32.const 24))
    (call $exit (i32.const 7))))"""

# Sleeps through poll_oneoff, for which wasmtime makes threads.
SLEEP = """(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 20000000))
    (call $exit (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)))))"""

BEYOND = """(module (memory 1) (func (export "_start") (drop (i32.load (i32.const 0x7fffffff)))))"""
DEEP = """(module (func $down (param i32) (result i32) (i32.add (call $down (local.get 0)) (i32.const 1)))
  (func (export "_start") (drop (call $down (i32.const 0)))))"""
GROW = """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32))) (memory (export "memory") 1)
  (func (export "_start")
    (if (i32.eq (memory.grow (i32.const 1600)) (i32.const -1)) (then (call $exit (i32.const 3))))
    (memory.fill (i32.const 0) (i32.const 1) (i32.const 100000000))
    (call $exit (i32.load8_u (i32.const 99999999)))))"""

# Looks up a name and makes a socket: 0 when the first address is one of IPv4, and the socket is there.
SOCKETS = """(component
  (import "wasi:io/poll@0.2.3" (instance $p
    (export "pollable" (type $pollable (sub resource)))
    (export "[method]pollable.block" (func (param "self" (borrow $pollable))))))
  (alias export $p "pollable" (type $pollable))
  (import "wasi:sockets/network@0.2.3" (instance $n
    (export "network" (type (sub resource)))
    (type $code (enum "unknown" "access-denied" "not-supported" "invalid-argument" "out-of-memory" "timeout"
      "concurrency-conflict" "not-in-progress" "would-block" "invalid-state" "new-socket-limit" "address-not-bindable"
      "address-in-use" "remote-unreachable" "connection-refused" "connection-reset" "connection-aborted"
      "datagram-too-large" "name-unresolvable" "temporary-resolver-failure" "permanent-resolver-failure"))
    (export "error-code" (type (eq $code)))
    (type $family (enum "ipv4" "ipv6"))
    (export "ip-address-family" (type (eq $family)))
    (type $four (tuple u8 u8 u8 u8)) (export "ipv4-address" (type $ipv4 (eq $four)))
    (type $six (tuple u16 u16 u16 u16 u16 u16 u16 u16)) (export "ipv6-address" (type $ipv6 (eq $six)))
    (type $address (variant (case "ipv4" $ipv4) (case "ipv6" $ipv6)))
    (export "ip-address" (type (eq $address)))))
  (alias export $n "network" (type $network))
  (alias export $n "error-code" (type $code))
  (alias export $n "ip-address-family" (type $family))
  (alias export $n "ip-address" (type $address))
  (import "wasi:sockets/instance-network@0.2.3" (instance $in
    (alias outer 1 $network (type $on)) (export "network" (type $net (eq $on)))
    (export "instance-network" (func (result (own $net))))))
  (import "wasi:sockets/ip-name-lookup@0.2.3" (instance $l
    (alias outer 1 $network (type $on)) (export "network" (type $net (eq $on)))
    (alias outer 1 $code (type $oc)) (export "error-code" (type $error (eq $oc)))
    (alias outer 1 $address (type $oa)) (export "ip-address" (type $ip (eq $oa)))
    (alias outer 1 $pollable (type $op)) (export "pollable" (type $poll (eq $op)))
    (export "resolve-address-stream" (type $stream (sub resource)))
    (export "resolve-addresses" (func (param "network" (borrow $net)) (param "name" string)
      (result (result (own $stream) (error $error)))))
    (export "[method]resolve-address-stream.subscribe" (func (param "self" (borrow $stream)) (result (own $poll))))
    (export "[method]resolve-address-stream.resolve-next-address" (func (param "self" (borrow $stream))
      (result (result (option $ip) (error $error)))))))
  (import "wasi:sockets/tcp@0.2.3" (instance $t (export "tcp-socket" (type (sub resource)))))
  (alias export $t "tcp-socket" (type $socket))
  (import "wasi:sockets/tcp-create-socket@0.2.3" (instance $c
    (alias outer 1 $code (type $oc)) (export "error-code" (type $error (eq $oc)))
    (alias outer 1 $family (type $of)) (export "ip-address-family" (type $kind (eq $of)))
    (alias outer 1 $socket (type $os)) (export "tcp-socket" (type $tcp (eq $os)))
    (export "create-tcp-socket" (func (param "address-family" $kind) (result (result (own $tcp) (error $error)))))))
  (core module $memory (memory (export "memory") 1) (data (i32.const 256) "me.example"))
  (core instance $mem (instantiate $memory))
  (core func $network_ (canon lower (func $in "instance-network")))
  (core func $resolve (canon lower (func $l "resolve-addresses") (memory (core memory $mem "memory"))))
  (core func $subscribe (canon lower (func $l "[method]resolve-address-stream.subscribe")))
  (core func $block (canon lower (func $p "[method]pollable.block")))
  (core func $next (canon lower (func $l "[method]resolve-address-stream.resolve-next-address")
    (memory (core memory $mem "memory"))))
  (core func $create (canon lower (func $c "create-tcp-socket") (memory (core memory $mem "memory"))))
  (core module $m
    (import "c" "network" (func $network (result i32)))
    (import "c" "resolve" (func $resolve (param i32 i32 i32 i32)))
    (import "c" "subscribe" (func $subscribe (param i32) (result i32)))
    (import "c" "block" (func $block (param i32)))
    (import "c" "next" (func $next (param i32 i32)))
    (import "c" "create" (func $create (param i32 i32)))
    (import "m" "memory" (memory 1))
    (func (export "run") (result i32)
      (local $stream i32)
      (call $resolve (call $network) (i32.const 256) (i32.const 10) (i32.const 16))
      (if (i32.load8_u (i32.const 16)) (then (return (i32.const 1))))
      (local.set $stream (i32.load (i32.const 20)))
      (call $block (call $subscribe (local.get $stream)))
      (call $next (local.get $stream) (i32.const 32))
      (if (i32.load8_u (i32.const 32)) (then (return (i32.const 1))))
      (if (i32.ne (i32.load8_u (i32.const 34)) (i32.const 1)) (then (return (i32.const 1))))
      (if (i32.ne (i32.load8_u (i32.const 36)) (i32.const 0)) (then (return (i32.const 1))))
      (call $create (i32.const 0) (i32.const 64))
      (i32.load8_u (i32.const 64))))
  (core instance $i (instantiate $m (with "m" (instance $mem)) (with "c" (instance
    (export "network" (func $network_)) (export "resolve" (func $resolve)) (export "subscribe" (func $subscribe))
    (export "block" (func $block)) (export "next" (func $next)) (export "create" (func $create))))))
  (func $run (result (result)) (canon lift (core func $i "run")))
  (instance $r (export "run" (func $run)))
  (export "wasi:cli/run@0.2.3" (instance $r)))"""


@pytest.fixture(scope="module")
def engines() -> EngineSet:
    return EngineSet()


@contextmanager
def code_of(text: str) -> Iterator[tuple[int, Kind]]:
    component = text.startswith("(component")
    code = os.memfd_create("code")
    try:
        os.write(code, (Component if component else Module)(Engine(configure(Variant.PLAIN)), text).serialize())
        yield code, Kind.COMPONENT if component else Kind.MODULE
    finally:
        os.close(code)


def ran(engines: EngineSet, text: str, made: JailPlan, memory: int = 0) -> int:
    """The guest's exit code; 200 where it was not even made ready."""
    with code_of(text) as (code, kind):
        loaded = load(engines, code, kind, Variant.PLAIN)
        parent = os.fork()
        if parent == 0:
            _parent(loaded, made, memory)
        return os.waitstatus_to_exitcode(os.waitpid(parent, 0)[1])


def _parent(loaded: Loaded, made: JailPlan, memory: int) -> None:
    try:
        jail.before_fork(made)
        child = os.fork()
        if child == 0:
            _guest(loaded, made, memory)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    finally:
        os._exit(201)


def _guest(loaded: Loaded, made: JailPlan, memory: int) -> None:
    try:
        jail.enter(made)
        jail.become(made)
        preopens = Preopen(path="/tmp", name="."), Preopen(path="/", name="/")
        ready = prepare(GuestPlan(argv=("guest",), preopens=preopens, memory_max=memory), loaded)
        jail.restrict(made)
        os._exit(run(ready).code)
    finally:
        os._exit(200)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    found = tmp_path / "root"
    found.mkdir()
    for directory in (found, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    (found / "tmp").mkdir()
    (found / "tmp").chmod(0o1777)
    (found / "etc").mkdir()
    (found / "etc/hosts").write_text("192.0.2.7 me.example\n")
    # A library of the image's would be asked first, if it could be loaded.
    (found / "etc/nsswitch.conf").write_text("hosts: evil files\n")
    return found


def test_files_are_read_and_written_and_nothing_outside_is(engines: EngineSet, root: Path, tmp_path: Path) -> None:
    (tmp_path / "escape").write_text("of the host")
    (tmp_path / "escape").chmod(0o666)
    (root / "abs").symlink_to("/etc/shadow")
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o777)
    bind = Bind(source=str(volume), destination="/ro", attributes=1)
    assert ran(engines, FILES, plan(str(root), binds=(bind,))) == 7
    assert (root / "tmp/g").read_text() == "hello"
    assert list(volume.iterdir()) == []


def test_a_guest_sleeps_on_threads_of_its_own(engines: EngineSet, root: Path) -> None:
    assert ran(engines, SLEEP, plan(str(root))) == 0


@pytest.mark.parametrize("text", [BEYOND, DEEP])
def test_a_trap_is_caught_behind_the_filter(engines: EngineSet, root: Path, text: str) -> None:
    assert ran(engines, text, plan(str(root))) == 134


def test_memory_grows_as_far_as_it_may(engines: EngineSet, root: Path) -> None:
    assert ran(engines, GROW, plan(str(root))) == 1
    assert ran(engines, GROW, plan(str(root)), memory=64 << 20) == 3


def test_a_component_resolves_names_and_makes_sockets(engines: EngineSet, root: Path) -> None:
    assert ran(engines, SOCKETS, plan(str(root), network="")) == 0
    (root / "etc/hosts").write_text("")
    (root / "etc/nsswitch.conf").write_text("hosts: files\n")
    assert ran(engines, SOCKETS, plan(str(root), network="")) == 1
