from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime

from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.package import file
from forgeone_shim.package.project import Project

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
WAT = """(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1) (func (export "_start") i32.const 3 call $exit))"""
SBOM = b'{"spdxVersion": "SPDX-2.3", "packages": []}'

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Builds a package; keywords go over the project's."""

    def built(out: str = "it.forgepkg", /, *, key: SigningKey | None = KEY, **over: object) -> Path:
        source = tmp_path / "source"
        assets = source / "assets"
        (assets / "sub").mkdir(parents=True, exist_ok=True)
        (assets / "sub" / "hello.txt").write_text("hello")
        (assets / "run.sh").write_text("#!/bin/sh\n")
        os.chmod(assets / "run.sh", 0o700)
        (source / "it.wasm").write_bytes(wasmtime.wat2wasm(WAT))
        (source / "sbom.json").write_bytes(SBOM)
        fields = {
            "name": "acme/logger",
            "version": "1.2.0",
            "module": source / "it.wasm",
            "assets": assets,
            "sbom": source / "sbom.json",
            **over,
        }
        file.build(Project(**fields), tmp_path / out, key)  # type: ignore[arg-type]
        return tmp_path / out

    return built
