"""What a fingerprint counts of a WebAssembly container's note."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.wasm import imprint, notes
from engines.wasm.aot.target import Kind, Variant
from engines.wasm.card import Identity, Limits
from engines.wasm.guest.plan import GuestPlan
from engines.wasm.jail.plan import Filter, JailPlan
from engines.wasm.messages import Code, Insight
from engines.wasm.notes import Note
from forgeone_shim.errors import InternalError, NotFound


def note(**changes: Any) -> Note:
    of = Note(
        log_path="",
        code=Code("k" * 64, Kind.MODULE, Variant.PLAIN),
        image_id="sha256:i",
        module="/a.wasm",
        exports=("b", "a"),
        guest=GuestPlan(argv=("a",), memory_max=5, function="f"),
        jail=JailPlan(rootfs="/r", uid=0, gid=0, filters=(Filter(b"\x01"),), apparmor="p"),
        insight=Insight(bundle="/b", identity=Identity("i", "n", "p"), limits=Limits()),
    )
    return msgspec.structs.replace(of, **changes)


def made(directory: Path, of: Note) -> dict[str, Any]:
    notes.write(str(directory), of)
    return asdict(imprint.imprint(str(directory), "id"))


def test_it_says_what_decides_and_is_sealed_whole(tmp_path: Path) -> None:
    found = made(tmp_path, note())
    assert found["version"].startswith("wasmtime ") and found["apparmor"] == "p" and found["capabilities"] == ()
    assert found["facts"] == {
        "variant": "plain",
        "module": "/a.wasm",
        "function": "f",
        "exports": "a b",
        "memory_max": "5",
        "cpu_budget": "0",
        "cpu_slice": "0",
    }
    content = (tmp_path / notes.NAME).read_bytes()
    assert found["seal"] == f"sha256:{hashlib.sha256(content).hexdigest()}" == imprint.seal(str(tmp_path), "id")


def test_a_module_from_a_volume_is_known_by_its_code(tmp_path: Path) -> None:
    assert made(tmp_path, note(image_id=""))["facts"]["code"] == "k" * 64


def test_another_filter_is_another_fingerprint(tmp_path: Path) -> None:
    jail = msgspec.structs.replace(note().jail, filters=(Filter(b"\x02"),))
    assert made(tmp_path, note())["seccomp"] != made(tmp_path, note(jail=jail))["seccomp"]


def test_a_label_counts_without_its_level(tmp_path: Path) -> None:
    jail = msgspec.structs.replace(note().jail, selinux="u:r:container_t:s0:c1,c2")
    assert made(tmp_path, note(jail=jail))["facts"]["selinux"] == "u:r:container_t"


def test_without_a_note_there_is_no_container(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        imprint.seal(str(tmp_path), "id")
    (tmp_path / notes.NAME).write_text("{}")
    with pytest.raises(InternalError, match="not as it was written"):
        imprint.imprint(str(tmp_path), "id")
