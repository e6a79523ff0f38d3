"""Modules compiled once, sealed, found again, and refused where they are none."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.wasm.aot import cache as caches
from engines.wasm.aot import compiler, seals, target
from engines.wasm.aot.cache import Cache
from engines.wasm.aot.compiler import Compiled, Limits
from engines.wasm.aot.seals import Entry
from engines.wasm.aot.target import Kind, Variant
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    ForgeError,
    InternalError,
    InvalidInput,
    ResourceExhausted,
    Unavailable,
)
from tests.unit.wasm.conftest import make_cache

TEXT = b'(module (import "wasi_snapshot_preview1" "x" (func)) (memory 1) (func (export "_start")))'
CODE = b"native code"
OPENED: list[int] = []


class Compiler:
    """In place of the helper: counts, writes :data:`CODE`, and does what a test wants before."""

    def __init__(self) -> None:
        self.modules: list[bytes] = []
        self.error: ForgeError | None = None
        self.go = threading.Event()
        self.go.set()

    def __call__(self, module: int, code: int, variant: Variant, empty: Path, limits: Limits) -> Compiled:
        self.modules.append(os.pread(module, 1 << 20, 0))
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error
        os.write(code, CODE)
        return Compiled(Kind.MODULE, ("_start",), ())


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    double = Compiler()
    monkeypatch.setattr(compiler, "compile_module", double)
    return double


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """What a test has opened."""
    yield
    while OPENED:
        os.close(OPENED.pop())


@pytest.fixture
def module(tmp_path: Path) -> int:
    return opened(tmp_path / "module.wasm", TEXT)


def opened(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    OPENED.append(os.open(path, os.O_RDONLY))
    return OPENED[-1]


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return make_cache(tmp_path / "aot")


def read(cache: Cache, entry: Entry) -> bytes:
    fd = cache.open_verified(entry)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


# What code is for

CPUINFO = b"processor\t: 0\nflags\t\t: sse avx fpu\nbogomips : 1\n\nprocessor\t: 1\nflags\t\t: sse\n"


def test_the_order_of_a_cpus_features_says_nothing() -> None:
    assert target.cpu_features(CPUINFO) == "avx fpu sse"
    assert target.cpu_features(b"Features\t: fp asimd\n") == "asimd fp"
    assert target.cpu_features(b"") == ""


def test_a_key_is_of_the_module_and_the_variant() -> None:
    keys = {target.key(digest, variant) for digest in ("a", "b") for variant in Variant}
    assert len(keys) == 4


def test_a_key_is_of_wasmtimes_version_and_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def key() -> str:
        target.fingerprint.cache_clear()
        return target.key("a", Variant.PLAIN)

    keys = [key()]
    monkeypatch.setattr(target, "wasmtime_version", lambda: "1.2.3")
    keys.append(key())
    (tmp_path / "cpuinfo").write_bytes(CPUINFO)
    monkeypatch.setattr(target, "_CPUINFO", tmp_path / "cpuinfo")
    keys.append(key())
    monkeypatch.undo()
    assert len(set(keys)) == 3
    assert key() == keys[0]


# Once


def test_a_module_is_compiled_once(cache: Cache, compiled: Compiler, module: int, tmp_path: Path) -> None:
    entry = cache.entry(module, NEVER)
    assert (entry.kind, entry.exports, entry.size) == (Kind.MODULE, ("_start",), len(CODE))
    assert cache.entry(module, NEVER) == entry
    assert cache.entry(opened(tmp_path / "same", TEXT), NEVER) == entry
    assert read(cache, entry) == CODE
    assert compiled.modules == [TEXT]


def test_a_later_daemon_finds_it(cache: Cache, compiled: Compiler, module: int, tmp_path: Path) -> None:
    entry = cache.entry(module, NEVER)
    later = make_cache(tmp_path / "aot")
    assert later.entry(module, NEVER) == entry
    assert read(later, entry) == CODE
    assert len(compiled.modules) == 1


def test_each_variant_has_its_own(cache: Cache, compiled: Compiler, module: int) -> None:
    plain, metered = (cache.entry(module, NEVER, variant=variant) for variant in Variant)
    assert plain.key != metered.key
    assert plain.digest == metered.digest


def test_callers_at_once_share_a_compilation(cache: Cache, compiled: Compiler, module: int) -> None:
    compiled.go.clear()
    found: list[Entry] = []
    threads = [threading.Thread(target=lambda: found.append(cache.entry(module, NEVER))) for _ in range(8)]
    for thread in threads:
        thread.start()
    compiled.go.set()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(compiled.modules) == 1


def test_a_slow_compilation_keeps_no_other_waiting(
    cache: Cache, compiled: Compiler, module: int, tmp_path: Path
) -> None:
    slow, compiled.go = compiled.go, threading.Event()
    thread = threading.Thread(target=lambda: cache.entry(module, NEVER))
    thread.start()
    while not compiled.modules:
        thread.join(0.001)
    blocked, compiled.go = compiled.go, slow
    assert cache.entry(opened(tmp_path / "other", b"(module)"), Deadline.after(10)).size == len(CODE)
    blocked.set()
    thread.join(10)


def test_a_compilation_outlives_who_waits_for_it(cache: Cache, compiled: Compiler, module: int) -> None:
    compiled.go.clear()
    with pytest.raises(DeadlineExceeded, match="still being compiled"):
        cache.entry(module, Deadline.after(0.01))
    compiled.go.set()
    assert cache.entry(module, Deadline.after(10)).size == len(CODE)
    assert len(compiled.modules) == 1


def test_who_goes_away_waits_no_longer(cache: Cache, compiled: Compiler, module: int) -> None:
    compiled.go.clear()
    deadline = Deadline()
    threading.Timer(0.02, deadline.abandon).start()
    with pytest.raises(DeadlineExceeded):
        cache.entry(module, deadline)
    compiled.go.set()
    assert cache.entry(module, NEVER).size == len(CODE)


def test_what_is_no_module_is_not_tried_again(cache: Cache, compiled: Compiler, module: int) -> None:
    compiled.error = InvalidInput("module", "is a poem")
    for _ in range(3):
        with pytest.raises(InvalidInput, match="is a poem"):
            cache.entry(module, NEVER)
    assert len(compiled.modules) == 1


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            b"\nthread 'a' panicked at x:\nmemory allocation of 9 bytes failed\nnote: run with `RUST_BACKTRACE=1`\n\n",
            "9 bytes",
        ),
        (b"", "exit code 134"),
    ],
)
def test_why_a_helper_died_is_told_without_its_advice_to_programmers(said: bytes, told: str) -> None:
    with pytest.raises(ResourceExhausted, match=told):
        compiler._read(b"", said, 134)


def test_what_failed_for_want_of_memory_is_tried_again(cache: Cache, compiled: Compiler, module: int) -> None:
    compiled.error = ResourceExhausted("no memory")
    with pytest.raises(ResourceExhausted):
        cache.entry(module, NEVER)
    compiled.error = None
    assert cache.entry(module, NEVER).size == len(CODE)


def test_nothing_is_left_of_what_failed(cache: Cache, compiled: Compiler, module: int, tmp_path: Path) -> None:
    compiled.error = InternalError("ended")
    with pytest.raises(InternalError):
        cache.entry(module, NEVER)
    assert list((tmp_path / "aot/code").iterdir()) == []


def test_a_module_that_changes_is_another(cache: Cache, compiled: Compiler, tmp_path: Path) -> None:
    path = tmp_path / "module.wasm"
    first = cache.entry(opened(path, TEXT), NEVER)
    second = cache.entry(opened(path, TEXT + b" "), NEVER)
    assert first.key != second.key
    assert compiled.modules == [TEXT, TEXT + b" "]


def test_what_is_sealed_is_what_was_compiled(
    cache: Cache, compiled: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "module.wasm"
    module = opened(path, TEXT)
    digest = seals.digest

    def then_changed(fd: int, deadline: Deadline) -> str:
        found = digest(fd, deadline)
        monkeypatch.setattr(seals, "digest", digest)
        path.write_bytes(b"(module)")
        return found

    monkeypatch.setattr(seals, "digest", then_changed)
    with pytest.raises(FailedPrecondition, match="was changed"):
        cache.entry(module, NEVER)
    assert compiled.modules == []


def test_within_a_scope_a_file_is_known_on_another_mount(
    cache: Cache, compiled: Compiler, module: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cache.entry(module, NEVER, scope="image")
    mark = seals.mark
    monkeypatch.setattr(seals, "digest", lambda *_: pytest.fail("was read again"))
    monkeypatch.setattr(seals, "mark", lambda fd: seals.Mark(77, *_parts(mark(fd))[1:]) if fd == module else mark(fd))
    assert cache.entry(module, NEVER, scope="image") == entry


def _parts(mark: seals.Mark) -> tuple[int, ...]:
    return mark.device, mark.inode, mark.size, mark.modified, mark.changed


def test_an_empty_file_is_no_module(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="has 0 bytes"):
        cache.entry(opened(tmp_path / "empty", b""), NEVER)


def test_a_huge_file_is_not_read(cache: Cache, tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb+") as huge:
        huge.truncate(1 << 40)
        with pytest.raises(InvalidInput, match="bytes; 1 to"):
            cache.entry(huge.fileno(), NEVER)


# Sealed


def files(tmp_path: Path, entry: Entry) -> tuple[Path, Path]:
    directory = tmp_path / "aot/code" / entry.key
    return directory / "code", directory / "seal"


@pytest.mark.parametrize(
    "what", ["code", "seal", "no seal", "garbage", "no MAC", "another's seal", "longer", "another key"]
)
def test_what_is_not_as_it_was_sealed_is_made_anew(
    what: str, cache: Cache, compiled: Compiler, module: int, tmp_path: Path
) -> None:
    entry = cache.entry(module, NEVER)
    other = cache.entry(module, NEVER, variant=Variant.METERED)
    code, seal = files(tmp_path, entry)
    if what == "code":
        code.write_bytes(b"evil code!!")
    elif what == "seal":
        seal.write_bytes(seal.read_bytes().replace(b"_start", b"_other"))
    elif what == "no seal":
        seal.unlink()
    elif what == "garbage":
        seal.write_bytes(b'{"entry": 1}\xff')
    elif what == "no MAC":
        seal.write_bytes(seal.read_bytes().replace(b'"mac":"', '"mac":"ü'.encode()))
    elif what == "another's seal":
        shutil.copy(files(tmp_path, other)[1], seal)
    elif what == "longer":
        code.write_bytes(CODE + b"\0")
    else:
        (tmp_path / "aot/key").unlink()
    later = make_cache(tmp_path / "aot")
    with pytest.raises(Unavailable):
        later.open_verified(entry)
    assert later.entry(module, NEVER) == entry
    assert read(later, entry) == CODE
    assert len(compiled.modules) == 3


def test_a_change_is_seen_by_a_daemon_that_has_verified_it(
    cache: Cache, compiled: Compiler, module: int, tmp_path: Path
) -> None:
    entry = cache.entry(module, NEVER)
    files(tmp_path, entry)[0].write_bytes(b"evil code!!")
    with pytest.raises(Unavailable):
        cache.open_verified(entry)


def test_it_is_verified_once(
    cache: Cache, compiled: Compiler, module: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cache.entry(module, NEVER)
    later = make_cache(tmp_path / "aot")
    assert read(later, entry) == CODE
    monkeypatch.setattr(seals.Sealer, "verified", lambda *_: pytest.fail("verified again"))
    assert read(later, entry) == CODE


@pytest.mark.parametrize("how", ["readable", "short", "link"])
def test_a_key_that_others_may_know_is_refused(
    how: str, cache: Cache, compiled: Compiler, module: int, tmp_path: Path
) -> None:
    cache.entry(module, NEVER)
    key = tmp_path / "aot/key"
    assert key.stat().st_mode & 0o777 == 0o600
    if how == "readable":
        key.chmod(0o644)
    elif how == "short":
        key.write_bytes(b"short")
    else:
        key.rename(tmp_path / "elsewhere")
        key.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InternalError, match="key"):
        make_cache(tmp_path / "aot").entry(module, NEVER)


# As long as the image


def test_code_goes_with_the_last_image_that_needs_it(cache: Cache, compiled: Compiler, module: int) -> None:
    entry = cache.entry(module, NEVER, image_id="sha256:a")
    cache.entry(module, NEVER, image_id="sha256:b")
    assert cache.retain(["sha256:a", "sha256:b"]) == {entry.key}
    assert cache.retain(["sha256:b"]) == {entry.key}
    assert cache.retain([]) == frozenset()
    with pytest.raises(Unavailable):
        cache.open_verified(entry)
    assert cache.entry(module, NEVER, image_id="sha256:a") == entry
    assert cache.retain(["sha256:a"]) == {entry.key}


def test_images_are_remembered_by_a_later_daemon(
    cache: Cache, compiled: Compiler, module: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_LOOSE_MAX", 0)
    entry = cache.entry(module, NEVER, image_id="sha256:a")
    assert make_cache(tmp_path / "aot").retain(["sha256:a", "sha256:c"]) == {entry.key}


def test_of_code_without_an_image_the_last_used_stays(
    cache: Cache, compiled: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caches, "_LOOSE_MAX", 1)
    old, new = (cache.entry(opened(tmp_path / name, name.encode()), NEVER) for name in ("old", "new"))
    os.utime(tmp_path / "aot/code" / old.key, (1, 1))
    assert cache.retain([]) == {new.key}


def test_nothing_to_retain_is_no_error(cache: Cache) -> None:
    assert cache.retain(["sha256:a"]) == frozenset()


def test_what_a_killed_daemon_left_is_removed(cache: Cache, compiled: Compiler, module: int, tmp_path: Path) -> None:
    left = tmp_path / "aot/code/.new-left"
    left.mkdir(parents=True)
    (left / "code").write_bytes(b"half")
    entry = cache.entry(module, NEVER)
    assert [one.name for one in (tmp_path / "aot/code").iterdir()] == [entry.key]


def test_what_another_daemon_is_making_stays(cache: Cache, compiled: Compiler, module: int, tmp_path: Path) -> None:
    compiled.go.clear()
    thread = threading.Thread(target=lambda: cache.entry(module, NEVER))
    thread.start()
    while not compiled.modules:
        thread.join(0.001)
    other = make_cache(tmp_path / "aot")
    other._prepare()
    compiled.go.set()
    thread.join(10)
    assert read(other, cache.entry(module, NEVER)) == CODE


# By the helper itself


@pytest.mark.parametrize(
    ("content", "kind"),
    [(TEXT, Kind.MODULE), (b"\0asm\1\0\0\0", Kind.MODULE), (b"\0asm\x0d\0\1\0", Kind.COMPONENT)],
)
def test_the_helper_compiles_binaries_and_texts(content: bytes, kind: Kind, cache: Cache, tmp_path: Path) -> None:
    entry = cache.entry(opened(tmp_path / "m", content), Deadline.after(60))
    assert entry.kind is kind
    assert read(cache, entry).startswith(b"\x7fELF")
    if content is TEXT:
        assert (entry.exports, entry.imports) == (("_start",), ("wasi_snapshot_preview1",))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"hello", "does not begin with"),
        (b"(module (func unknown))", "unknown operator"),
        (b"(module \xff", "UTF-8"),
        (b"\x7fELF\2\1\1\0", "native code"),
        (b"#!/bin/sh\n", "does not begin with"),
        (b"\0asm\7\0\0\0", "unknown binary version"),
        (b"\0asm\1\0\0\0\1\xff\xff\xff\xff\x0f", "unexpected"),
    ],
)
def test_the_helper_says_why_something_is_no_module(content: bytes, why: str, cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=why):
        cache.entry(opened(tmp_path / "m", content), Deadline.after(60))


def test_the_helper_of_another_installation_is_refused(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "fingerprint", lambda _variant: "before")
    with pytest.raises(InternalError, match="restart"):
        cache.entry(opened(tmp_path / "m", TEXT), Deadline.after(60))


def test_the_helper_has_its_time(tmp_path: Path) -> None:
    limited = Cache(tmp_path / "aot", compile_timeout=0.01, compile_memory=1 << 30)
    with pytest.raises(DeadlineExceeded, match=r"not compiled in 0\.01 s"):
        limited.entry(opened(tmp_path / "m", TEXT), Deadline.after(60))


def test_the_helper_has_its_memory(tmp_path: Path) -> None:
    limited = Cache(tmp_path / "aot", compile_timeout=60, compile_memory=64 << 20)
    # Its data is in it, and in the code made of it.
    text = b'(module (memory 800) (data (i32.const 0) "' + b"x" * (48 << 20) + b'"))'
    with pytest.raises(ResourceExhausted, match="within its limits"):
        limited.entry(opened(tmp_path / "m", text), Deadline.after(60))
