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
