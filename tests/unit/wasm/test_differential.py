"""The same programs here and in wasmtime's own command: exit code, output, and what is left on disk."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from engines.wasm.guest.plan import GuestPlan, Preopen
from hack.guests import HERE, compile_c, find
from tests.unit.wasm.guests import Guests

CASES = tuple(
    line.strip().removeprefix("CASE(").partition(")")[0]
    for row in (HERE / "cases.c").read_text().split("#define CASE(name) {#name, name}")[1].split("};")[0].splitlines()
    for line in row.split(",")
    # The command has no read-only directories.
    if "CASE(" in line and "CASE(readonly)" not in line
)
P1 = "wasi_snapshot_preview1"
# Functions and what they are given: their error numbers are printed. Addresses from 1024 on are anybody's; of the texts
# at 100 and 200 each is twenty bytes apart from the next.
CALLS = (
    ("sched_yield", ()),
    ("args_sizes_get", (1024, 1028)),
    ("environ_sizes_get", (1024, 1028)),
    ("clock_time_get", (0, 1, 1024)),
    ("clock_res_get", (1, 1024)),
    ("random_get", (1024, 64)),
    ("fd_close", (99,)),
    ("fd_read", (0, 32, 1, 1024)),
    ("fd_sync", (1,)),
    ("fd_tell", (1, 1024)),
    ("fd_seek", (3, 0, 0, 1024)),
    ("fd_fdstat_get", (1, 1024)),
    ("fd_filestat_get", (2, 1024)),
    ("fd_prestat_get", (3, 1024)),
    ("fd_prestat_get", (5, 1024)),
    ("fd_prestat_dir_name", (3, 1024, 1)),
    ("path_open", (3, 0, 100, 8, 0, 2, 0, 0, 1024)),
    ("fd_read", (5, 32, 1, 1024)),
    ("fd_write", (5, 32, 1, 1024)),
    ("path_open", (3, 0, 120, 9, 0, 2, 0, 0, 1024)),
    ("path_open", (3, 0, 140, 11, 0, 2, 0, 0, 1024)),
    ("path_open", (3, 0, 160, 4, 1, 66, 0, 0, 1024)),
    ("path_open", (3, 0, 160, 4, 5, 66, 0, 0, 1024)),
    ("path_create_directory", (3, 180, 3)),
    ("path_create_directory", (3, 180, 3)),
    ("path_create_directory", (3, 120, 9)),
    ("path_filestat_get", (3, 0, 160, 4, 1024)),
    ("path_rename", (3, 160, 4, 3, 120, 9)),
    ("path_rename", (3, 160, 4, 3, 180, 3)),
    ("path_symlink", (120, 9, 3, 200, 3)),
    ("path_symlink", (140, 11, 3, 220, 3)),
    ("path_open", (3, 1, 200, 3, 0, 2, 0, 0, 1024)),
    ("path_readlink", (3, 200, 3, 1024, 64, 1100)),
    ("path_link", (3, 0, 160, 4, 3, 240, 3)),
    ("path_unlink_file", (3, 180, 3)),
    ("path_remove_directory", (3, 180, 3)),
    ("path_unlink_file", (3, 180, 3)),
    ("poll_oneoff", (1024, 1100, 0, 1200)),
    ("sock_shutdown", (1, 1)),
    ("fd_renumber", (6, 5)),
    ("fd_close", (6,)),
)
LONGS = {"clock_time_get": {1}, "fd_seek": {1}, "path_open": {5, 6}}
TEXTS = {
    100: "seed.txt",
    120: "../secret",
    140: "/etc/passwd",
    160: "file",
    180: "dir",
    200: "out",
    220: "abs",
    240: "new",
}
ENDS = {
    "returns": "",
    **{f"exits with {code}": f"(call $exit (i32.const {code}))" for code in (0, 1, 42, 125)},
    "does what it must not": "unreachable",
    "divides by zero": "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
    "reads beyond its memory": "(drop (i32.load (i32.const -4)))",
    "recurses": "(call $deep)",
    "calls nothing": "(call_indirect (i32.const 0))",
    "gives an address beyond its memory": "(drop (call $args_sizes_get (i32.const -8) (i32.const 0)))",
}
STDIN = b"one\ntwo\nthree, without an end"


@dataclass(frozen=True)
class Result:
    code: int
    stdout: bytes
    files: dict[str, bytes | str]


@pytest.fixture(scope="module")
def wasmtime() -> Path:
    found = find("wasmtime")
    if found is None:
        pytest.skip("needs wasmtime's command: python -m hack.guests")
    return found


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("cases") / "cases.wasm"
    if not compile_c([HERE / "cases.c"], output):
        pytest.skip("needs clang, lld, wasi-libc and libclang-rt-dev-wasm32")
    return output


@pytest.fixture(scope="module")
def component() -> Path:
    found = find("cases.component.wasm")
    if found is None:
        pytest.skip("needs a component: python -m hack.guests")
    return found


def printing(body: str) -> str:
    """A module in words, which needs nobody to compile it: ``$say`` prints a byte as two letters."""
    kinds = {
        name: " ".join("i64" if at in LONGS.get(name, ()) else "i32" for at in range(len(given)))
        for name, given in CALLS
    } | {"fd_write": "i32 i32 i32 i32"}
    imports = "".join(
        f'(import "{P1}" "{name}" (func ${name} (param {kind}) (result i32)))' for name, kind in kinds.items()
    )
    texts = "".join(f'(data (i32.const {at}) "{text}")' for at, text in TEXTS.items())
    return f"""(module {imports} (import "{P1}" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1) (table 1 funcref) {texts}
        (func $deep (call $deep))
        (data (i32.const 32) "\\00\\08\\00\\00\\08\\00\\00\\00")
        (data (i32.const 48) "\\40\\00\\00\\00\\02\\00\\00\\00")
        (func $say (param $byte i32)
          (i32.store8 (i32.const 64) (i32.add (i32.const 97) (i32.shr_u (local.get $byte) (i32.const 4))))
          (i32.store8 (i32.const 65) (i32.add (i32.const 97) (i32.and (local.get $byte) (i32.const 15))))
          (drop (call $fd_write (i32.const 1) (i32.const 48) (i32.const 1) (i32.const 56))))
        (func $start (export "_start") {body}))"""


def test_every_error_number_is_wasmtimes(wasmtime: Path, guests: Guests, tmp_path: Path) -> None:
    body = ""
    for name, given in CALLS:
        words = (f"({'i64' if at in LONGS.get(name, ()) else 'i32'}.const {one})" for at, one in enumerate(given))
        body += f"(call $say (call ${name} {' '.join(words)}))"
    module = tmp_path / "module.wat"
    module.write_text(printing(body))
    ours = _ours(guests, module, [], tmp_path)
    assert ours == _theirs(wasmtime, module, [], tmp_path)
    assert ours.code == 0 and len(ours.stdout) == 2 * len(CALLS)


@pytest.mark.parametrize("end", ENDS)
def test_every_end_is_wasmtimes(end: str, wasmtime: Path, guests: Guests, tmp_path: Path) -> None:
    module = tmp_path / "module.wat"
    module.write_text(printing(f"(call $say (i32.const 7)) {ENDS[end]}"))
    assert _ours(guests, module, [], tmp_path) == _theirs(wasmtime, module, [], tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_a_module_does_what_it_does_in_wasmtime(
    case: str, module: Path, wasmtime: Path, guests: Guests, tmp_path: Path
) -> None:
    assert _ours(guests, module, [case], tmp_path) == _theirs(wasmtime, module, [case], tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_a_component_does_what_it_does_in_wasmtime(
    case: str, component: Path, wasmtime: Path, guests: Guests, tmp_path: Path
) -> None:
    assert _ours(guests, component, [case], tmp_path) == _theirs(wasmtime, component, [case], tmp_path)


def test_arguments_come_as_they_were_given(module: Path, wasmtime: Path, guests: Guests, tmp_path: Path) -> None:
    words = ["arguments", "", "two words", "ünï", "-x", "--", "'\"\\", "x" * 5000]
    ours = _ours(guests, module, words, tmp_path)
    assert ours == _theirs(wasmtime, module, words, tmp_path)
    assert ours.code == len(words) + 1


@pytest.mark.parametrize("kind", ["module", "component"])
def test_a_directory_that_is_readonly_stays_as_it_is(
    kind: str, guests: Guests, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    ours = _ours(guests, request.getfixturevalue(kind), ["readonly"], tmp_path)
    assert ours.stdout.splitlines() == [
        b"read: ok",
        *(
            what + b": Operation not permitted"
            for what in (b"write", b"create", b"unlink", b"mkdir", b"rename", b"truncate", b"out of it")
        ),
    ]
    assert {name: what for name, what in ours.files.items() if not name.startswith("room")} == {
        "ro": "directory",
        "ro/kept": b"kept",
    }


def _room(directory: Path) -> tuple[Path, Path]:
    """Of one run: what the guest may write to, inside a directory with a secret, and what it may read."""
    data, kept = directory / "room/data", directory / "ro"
    data.mkdir(parents=True)
    kept.mkdir()
    (data / "seed.txt").write_text("a seed to be read\n")
    (data.parent / "secret").write_text("secret")
    (kept / "kept").write_text("kept")
    return data, kept


def _left(directory: Path) -> dict[str, bytes | str]:
    found: dict[str, bytes | str] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        else:
            found[name] = "directory" if path.is_dir() else path.read_bytes()
    return found


def _ours(guests: Guests, module: Path, words: list[str], directory: Path) -> Result:
    own = directory / "ours"
    data, kept = _room(own)
    plan = GuestPlan(
        argv=("cases", *words),
        env=("HOME=/home/x", "EMPTY=", "EQUALS=a=b"),
        preopens=(Preopen(str(data), "/data"), Preopen(str(kept), "/ro", readonly=True)),
    )
    ran = guests.run(module, plan, STDIN)
    assert not ran.refused
    return Result(ran.code, ran.stdout, _left(own))


def _theirs(wasmtime: Path, module: Path, words: list[str], directory: Path) -> Result:
    """In a directory of its own."""
    own = directory / "theirs"
    data, kept = _room(own)
    argv = [str(wasmtime), "run", "--argv0", "cases", "--dir", f"{data}::/data", "--dir", f"{kept}::/ro"]
    for one in ("HOME=/home/x", "EMPTY=", "EQUALS=a=b"):
        argv += ["--env", one]
    ran = subprocess.run([*argv, str(module), *words], input=STDIN, capture_output=True, check=False)
    code = ran.returncode if ran.returncode >= 0 else 128 - ran.returncode
    return Result(code, ran.stdout, _left(own))
