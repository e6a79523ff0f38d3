"""``forgepkg.toml``: what a package is built from."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Annotated, Final

import msgspec

from forgeone_shim.errors import InvalidInput
from forgeone_shim.package.manifest import MIN_CPU, Contract, Limits, Run

FILE: Final = "forgepkg.toml"
_MAX_FILE: Final = 256 * 1024
_AMOUNT = re.compile(r"(\d{1,15})(k|M|G|T|Ki|Mi|Gi|Ti)?")
_UNITS: Final = {
    "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40
}  # fmt: skip
_CPU = re.compile(r"(\d{1,6})(m?)|(\d{1,4})\.(\d{1,3})")

TEMPLATE: Final = """\
# A ForgeOne package: `forge pkg build` makes {base}-0.1.0.forgepkg of it.
name = "{name}"
version = "0.1.0"
description = ""

# Paths beside this file. `assets` is a directory whose files the module finds below /, `sbom` a bill of materials
# (SPDX or CycloneDX, JSON).
module = "{base}.wasm"
# assets = "assets"
# sbom = "sbom.json"

# The version of ForgeOne's own host interface the module needs, if it imports any of it.
# host_abi = "1.0"

# What holds unless a pod says otherwise.
[run]
args = []
env = {{}}

[limits]
# memory = "64Mi"
# cpu = "500m"

[contract]
# runtime_policy_id = ""
# trusted_issuers = []
# minimum_entropy = 0
# exec_mode = ""
"""


class _Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    memory: str | int = 0
    cpu: str | int | float = 0


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: str
    module: Annotated[str, msgspec.Meta(min_length=1)]
    description: str = ""
    assets: str = ""
    sbom: str = ""
    host_abi: str = ""
    run: Run = Run()
    limits: _Limits = _Limits()
    contract: Contract = Contract()


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be built; files are paths, and empty where there are none."""

    name: str
    version: str
    module: Path
    description: str = ""
    assets: Path | None = None
    sbom: Path | None = None
    host_abi: str = ""
    run: Run = Run()
    limits: Limits = Limits()
    contract: Contract = Contract()


def read(path: Path) -> Project:
    """The project of a file, or of the directory it is in.

    :raises InvalidInput: naming the file and the key that is wrong.
    """
    file = path / FILE if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            text = opened.read(_MAX_FILE + 1)
    except OSError as error:
        raise InvalidInput("project", f"{file}: {error.strerror}", fix="forge pkg new makes one") from None
    if len(text) > _MAX_FILE:
        raise InvalidInput("project", f"{file} is larger than {_MAX_FILE} bytes")
    try:
        found = msgspec.convert(tomllib.loads(text.decode()), _File)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("project", f"{file}: {error}") from None
    folder = file.parent
    return Project(
        name=found.name,
        version=found.version,
        module=folder / found.module,
        description=found.description,
        assets=folder / found.assets if found.assets else None,
        sbom=folder / found.sbom if found.sbom else None,
        host_abi=found.host_abi,
        run=found.run,
        limits=Limits(memory=amount(found.limits.memory), cpu=millicores(found.limits.cpu)),
        contract=found.contract,
    )


def amount(value: str | int, key: str = "limits.memory") -> int:
    """Bytes: a number, or one with a unit as Kubernetes writes it. :raises InvalidInput: neither."""
    match = _AMOUNT.fullmatch(str(value))
    if match is None:
        raise InvalidInput(key, f"{value!r} is not a number of bytes, as 64Mi is")
    return int(match[1]) * (_UNITS[match[2]] if match[2] else 1)


def millicores(value: str | float, key: str = "limits.cpu") -> int:
    """Thousandths of a CPU: ``0.5``, ``2`` or ``500m``. :raises InvalidInput: none of these."""
    match = _CPU.fullmatch(str(value))
    if match is None:
        raise InvalidInput(key, f"{value!r} is not a number of CPUs, as 0.5 and 500m are")
    if match[1] is not None:
        found = int(match[1]) * (1 if match[2] else 1000)
    else:
        found = int(match[3]) * 1000 + int(match[4].ljust(3, "0"))
    if 0 < found < MIN_CPU:
        raise InvalidInput(key, f"{value!r} is less than the kernel gives anybody, which is {MIN_CPU}m")
    return found
