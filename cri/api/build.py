"""Generates the Python side of every .proto of the project, next to it: messages, services and type stubs.

``python -m cri.api.build`` does it in a checkout; the setuptools build does it for a wheel (``setup.py``). The result
is never committed. Files whose .proto has not changed since are left alone.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTOS = ("cri/api/runtime.proto", "forgeone_shim/rpc/node.proto")


def outputs(proto: str, *, stubs: bool) -> tuple[str, ...]:
    """What protoc writes for ``proto``; all paths are relative to the root of the tree."""
    stem = proto.removesuffix(".proto")
    made = (f"{stem}_pb2.py", f"{stem}_pb2_grpc.py")
    return (*made, f"{stem}_pb2.pyi") if stubs else made


def arguments(proto: str, out: str, well_known: str, *, stubs: bool) -> list[str]:
    """The protoc command line that writes :func:`outputs` below ``out``."""
    plugins = [f"--python_out={out}", f"--grpc_python_out={out}", *([f"--mypy_out={out}"] if stubs else [])]
    return ["protoc", f"-I{out}", f"-I{well_known}", *plugins, proto]


def generate(protos: Sequence[str] = PROTOS, root: Path = ROOT, *, force: bool = False) -> list[Path]:
    """Generate what is missing or older than its .proto and return it.

    :raises RuntimeError: protoc refused a file; its message is on standard error.
    """
    stubs = shutil.which("protoc-gen-mypy", path=_search_path()) is not None
    return [made for proto in protos for made in _generate_one(proto, root, stubs=stubs, force=force)]


def _generate_one(proto: str, root: Path, *, stubs: bool, force: bool) -> list[Path]:
    source, made = root / proto, [root / output for output in outputs(proto, stubs=stubs)]
    if not force and all(path.exists() and path.stat().st_mtime >= source.stat().st_mtime for path in made):
        return []
    # Imported here: an installed ForgeOne has no compiler, and needs none.
    from grpc_tools import protoc

    with as_file(files("grpc_tools").joinpath("_proto")) as well_known:
        argv = arguments(proto, str(root), str(well_known), stubs=stubs)
        if stubs:
            argv.insert(1, f"--plugin=protoc-gen-mypy={shutil.which('protoc-gen-mypy', path=_search_path())}")
        if protoc.main(argv) != 0:
            raise RuntimeError(f"protoc refused {source}")
    return made


def _search_path() -> str:
    # A virtual environment's programs are found even when it was not activated.
    return str(Path(sys.executable).parent)


if __name__ == "__main__":
    for path in generate(force="--force" in sys.argv[1:]):
        print(path.relative_to(ROOT))
