"""Small WebAssembly guests (WASI preview 1), put together from steps and assembled here: nothing has to be compiled.

::

    guest(say("begin\\n"), put("/out/file", "text"), exit_with(3))
"""

from __future__ import annotations

from collections.abc import Callable

from wasmtime import wat2wasm

_WASI = """
 (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "fd_close" (func $fd_close (param i32) (result i32)))
 (import "wasi_snapshot_preview1" "path_open" (func $path_open
   (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes_get (param i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "args_get" (func $args_get (param i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes_get (param i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "environ_get" (func $environ_get (param i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
 (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
"""
# Of the memory: 0 is scratch, from 1024 on are constants, from 65536 on is room for what is read.
_CONSTANTS, _ROOM, _ROOM_SIZE = 1024, 65536, 65536
_HELPERS = f"""
 (func $must (param $error i32) (param $code i32)
  (if (local.get $error) (then (call $proc_exit (local.get $code)))))
 (func $out (param $fd i32) (param $at i32) (param $size i32) (local $done i32)
  (loop $again
   (i32.store (i32.const 0) (i32.add (local.get $at) (local.get $done)))
   (i32.store (i32.const 4) (i32.sub (local.get $size) (local.get $done)))
   (call $must (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8)) (i32.const 98))
   (local.set $done (i32.add (local.get $done) (i32.load (i32.const 8))))
   (br_if $again (i32.lt_u (local.get $done) (local.get $size)))))
 (func $copy (param $from i32)
  (loop $again
   (i32.store (i32.const 0) (i32.const {_ROOM}))
   (i32.store (i32.const 4) (i32.const {_ROOM_SIZE}))
   (call $must (call $fd_read (local.get $from) (i32.const 0) (i32.const 1) (i32.const 12)) (i32.const 97))
   (if (i32.load (i32.const 12)) (then
    (call $out (i32.const 1) (i32.const {_ROOM}) (i32.load (i32.const 12)))
    (br $again)))))
 (func $open (param $path i32) (param $size i32) (param $flags i32) (param $rights i64) (result i32)
  (local $error i32)
  (local.set $error (call $path_open (i32.const 3) (i32.const 1) (local.get $path) (local.get $size)
   (local.get $flags) (local.get $rights) (i64.const 0) (i32.const 0) (i32.const 16)))
  (call $must (local.get $error) (i32.add (i32.const 100) (local.get $error)))
  (i32.load (i32.const 16)))
 (func $lines (param $size i32) (local $i i32)
  (loop $again
   (if (i32.eqz (i32.load8_u (i32.add (i32.const {_ROOM}) (local.get $i))))
    (then (i32.store8 (i32.add (i32.const {_ROOM}) (local.get $i)) (i32.const 10))))
   (local.set $i (i32.add (local.get $i) (i32.const 1)))
   (br_if $again (i32.lt_u (local.get $i) (local.get $size))))
  (call $out (i32.const 1) (i32.const {_ROOM}) (local.get $size)))
 (func $sleep (param $nanoseconds i64)
  (memory.fill (i32.const 128) (i32.const 0) (i32.const 48))
  (i32.store (i32.const 144) (i32.const 1))
  (i64.store (i32.const 152) (local.get $nanoseconds))
  (drop (call $poll_oneoff (i32.const 128) (i32.const 192) (i32.const 1) (i32.const 24))))
 (func $deep (param i32) (result i32)
  (i32.add (call $deep (i32.add (local.get 0) (i32.const 1))) (i32.const 1)))
"""
_READ, _WRITE, _CREATE_TRUNCATE = 2, 64, 9

Constant = Callable[[str], tuple[int, int]]
Step = Callable[[Constant], str]


def guest(*steps: Step, more: str = "", pages: int = 4) -> bytes:
    """A module whose ``_start`` takes the steps; ``more`` are further fields of it (exported functions)."""
    data: list[str] = []
    at = _CONSTANTS

    def constant(text: str) -> tuple[int, int]:
        nonlocal at
        raw = text.encode()
        data.append(f'(data (i32.const {at}) "{"".join(f"{chr(92)}{byte:02x}" for byte in raw)}")')
        at += len(raw)
        return at - len(raw), len(raw)

    body = "\n".join(step(constant) for step in steps)
    start = f'(func (export "_start")\n{body})'
    return bytes(
        wat2wasm(f'(module {_WASI} (memory (export "memory") {pages}) {_HELPERS} {start} {more} {"".join(data)})')
    )


def say(text: str, fd: int = 1) -> Step:
    """Write it."""

    def step(constant: Constant) -> str:
        at, size = constant(text)
        return f"(call $out (i32.const {fd}) (i32.const {at}) (i32.const {size}))"

    return step


def cat(path: str) -> Step:
    """Write a file's content; exit code 100 and WASI's errno where it cannot be opened."""

    def step(constant: Constant) -> str:
        at, size = constant(path.lstrip("/"))
        return f"(call $copy (call $open (i32.const {at}) (i32.const {size}) (i32.const 0) (i64.const {_READ})))"

    return step


def put(path: str, text: str) -> Step:
    """Make a file with this content; errors as of :func:`cat`."""

    def step(constant: Constant) -> str:
        at, size = constant(path.lstrip("/"))
        what, length = constant(text)
        flags = f"(i32.const {_CREATE_TRUNCATE}) (i64.const {_WRITE})"
        return (
            f"(i32.store (i32.const 20) (call $open (i32.const {at}) (i32.const {size}) {flags}))\n"
            f"(call $out (i32.load (i32.const 20)) (i32.const {what}) (i32.const {length}))\n"
            "(drop (call $fd_close (i32.load (i32.const 20))))"
        )

    return step


def echo() -> Step:
    """Write what is read, to its end."""
    return lambda _: "(call $copy (i32.const 0))"


def arguments() -> Step:
    """Write the arguments, a line each."""
    return _strings("args")


def environment() -> Step:
    """Write the variables, a line each."""
    return _strings("environ")


def _strings(what: str) -> Step:
    return lambda _: (
        f"(drop (call ${what}_sizes_get (i32.const 24) (i32.const 28)))\n"
        f"(drop (call ${what}_get (i32.const 512) (i32.const {_ROOM})))\n"
        "(call $lines (i32.load (i32.const 28)))"
    )


def sleep(seconds: float) -> Step:
    """In the host, as a program that waits for something is."""
    return lambda _: f"(call $sleep (i64.const {int(seconds * 1e9)}))"


def spin() -> Step:
    """Without end, and without a call into the host."""
    return lambda _: "(loop $for (br $for))"


def take(mebibytes: int) -> Step:
    """Grow the memory by so much and write to every page of it; exit code 99 where it does not grow."""
    pages = mebibytes * 16
    return lambda _: (
        f"(if (i32.eq (memory.grow (i32.const {pages})) (i32.const -1)) (then (call $proc_exit (i32.const 99))))\n"
        f"(memory.fill (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const {pages * 65536}))"
        f" (i32.const 1) (i32.const {pages * 65536}))"
    )


def trap() -> Step:
    """``unreachable``."""
    return lambda _: "unreachable"


def recurse() -> Step:
    """Until the stack is used up."""
    return lambda _: "(drop (call $deep (i32.const 0)))"


def exit_with(code: int) -> Step:
    """End."""
    return lambda _: f"(call $proc_exit (i32.const {code}))"
