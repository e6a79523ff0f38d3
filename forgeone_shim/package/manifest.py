"""What a package says of itself: the JSON document that is the config of its OCI artifact.

Every key is known and any other is an error, so that nothing a package asks for is passed over in silence.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from forgeone_shim.contract.reader import document
from forgeone_shim.errors import FailedPrecondition, ForgeError, InvalidInput
from forgeone_shim.registry.digest import is_digest
from forgeone_shim.registry.reference import Reference

SCHEMA: Final = 1
MAX_CONFIG: Final = 1024 * 1024
MAX_MODULE: Final = 512 * 1024 * 1024
MAX_ASSETS: Final = 4 * 1024 * 1024 * 1024
MAX_SBOM: Final = 8 * 1024 * 1024
MIN_CPU: Final = 10
"""Thousandths: a millisecond (the kernel's least quota) in each tenth of a second."""

REGISTRY: Final = "localhost"
"""Where a package that came as a file is said to be from."""

_OWN: Final = "forgeone:"
_ENGINE: Final = "wasm"
_VERSION = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})(-[0-9A-Za-z-]+(\.[0-9A-Za-z-]+)*)?")
_ABI = re.compile(r"(0|[1-9]\d{0,3})\.(0|[1-9]\d{0,3})")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,255}")

_Text = Annotated[str, msgspec.Meta(max_length=64 * 1024)]
_Digest = Annotated[str, msgspec.Meta(max_length=71)]


class Blob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A layer by what it holds; ``size`` in bytes."""

    digest: _Digest
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_ASSETS)]


class Module(Blob, frozen=True, forbid_unknown_fields=True):
    """The module: a core module or a component, and the names of what it imports from its host."""

    kind: Literal["module", "component"]
    imports: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=4096)] = ()


class Sbom(Blob, frozen=True, forbid_unknown_fields=True):
    """The bill of materials, and in which format it is."""

    media_type: Literal["application/spdx+json", "application/vnd.cyclonedx+json"]


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the module is started with unless a pod says otherwise: arguments after its own name, and variables."""

    args: Annotated[tuple[_Text, ...], msgspec.Meta(max_length=4096)] = ()
    env: dict[str, _Text] = {}


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it may take unless a pod says otherwise: bytes of memory, thousandths of a CPU. 0: as much as there is."""

    memory: Annotated[int, msgspec.Meta(ge=0, le=1 << 48)] = 0
    cpu: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 0


class Contract(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the package asks for its containers. It grants nothing: theirs is joined with it."""

    runtime_policy_id: str = ""
    trusted_issuers: Annotated[tuple[str, ...], msgspec.Meta(max_length=64)] = ()
    minimum_entropy: Annotated[int, msgspec.Meta(ge=0, le=4096)] = 0
    exec_mode: str = ""

    def document(self) -> dict[str, object]:
        """As :mod:`forgeone_shim.contract` has it, without what is not asked."""
        return {key: value for key, value in msgspec.to_builtins(self).items() if value}


class Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The whole document. ``host_abi`` is the version of ForgeOne's own host interface it needs; empty: none of it."""

    schema: Literal[1]
    name: str
    version: str
    module: Module
    description: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    host_abi: str = ""
    assets: Blob | None = None
    sbom: Sbom | None = None
    run: Run = Run()
    limits: Limits = Limits()
    contract: Contract = Contract()

    @property
    def reference(self) -> Reference:
        """The name of this package where no registry gave it another."""
        return Reference(REGISTRY, self.name, tag=self.version)

    def blobs(self) -> list[Blob]:
        """Its layers in the order they have in the OCI manifest, but for the signature."""
        return [blob for blob in (self.module, self.assets, self.sbom) if blob is not None]


def encode(package: Package) -> bytes:
    """The document; the same package gives the same bytes. ``schema`` stands in it whatever it is."""
    return msgspec.json.encode(package, order="sorted")


def parse(data: bytes, name: str) -> Package:
    """Read the document; ``name`` is what it is called.

    :raises FailedPrecondition: naming the key that is wrong.
    """
    if len(data) > MAX_CONFIG:
        raise FailedPrecondition(f"{name} is larger than {MAX_CONFIG} bytes")
    try:
        package = msgspec.json.decode(data, type=Package)
        check(package)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FailedPrecondition(f"{name} cannot be used: {str(error)[:300]}") from None
    except InvalidInput as error:
        raise FailedPrecondition(f"{name} cannot be used: {error.what}", fix=error.fix) from None
    return package


def check(package: Package) -> None:
    """Refuse what the types allow and sense does not.

    :raises InvalidInput: naming the key.
    """
    check_name(package.name)
    if not _VERSION.fullmatch(package.version) or len(package.version) > 128:
        raise InvalidInput("version", f"{package.version[:100]!r} is not MAJOR.MINOR.PATCH[-PRE.RELEASE]")
    if package.host_abi:
        abi_version("host_abi", package.host_abi)
    elif own := next((name for name in package.module.imports if name.startswith(_OWN)), ""):
        raise InvalidInput("host_abi", f"is missing, and the module imports {own[:100]!r}", fix='host_abi = "1.0"')
    for key, blob, limit in (
        ("module", package.module, MAX_MODULE),
        ("assets", package.assets, MAX_ASSETS),
        ("sbom", package.sbom, MAX_SBOM),
    ):
        if blob is None:
            continue
        if not is_digest(blob.digest) or not blob.digest.startswith("sha256:"):
            raise InvalidInput(f"{key}.digest", f"{blob.digest[:100]!r} is not a sha256 digest")
        if blob.size > limit:
            raise InvalidInput(f"{key}.size", f"{blob.size} bytes are more than {limit}")
    digests = [blob.digest for blob in package.blobs()]
    if len(set(digests)) != len(digests):
        raise InvalidInput("module.digest", "two parts of the package are the same bytes")
    _check_run(package.run)
    if 0 < package.limits.cpu < MIN_CPU:
        raise InvalidInput("limits.cpu", f"{package.limits.cpu} is less than {MIN_CPU} thousandths")
    if package.contract.exec_mode not in {"", _ENGINE}:
        raise InvalidInput("contract.exec_mode", f"{package.contract.exec_mode[:100]!r}: a package runs on {_ENGINE}")
    document("contract", package.contract.document())


def check_name(name: str) -> None:
    """What a package may be called: a repository's name. :raises InvalidInput: it may not."""
    try:
        found = Reference.parse(f"{REGISTRY}/{name}:0")
    except ForgeError:
        found = None
    if found is None or found.repository != name or found.tag != "0":
        raise InvalidInput("name", f"{name[:100]!r} is not lower-case words with '/', '-', '_' or '.' between")


def abi_version(key: str, text: str) -> tuple[int, int]:
    """``MAJOR.MINOR`` as numbers. :raises InvalidInput: it is none."""
    match = _ABI.fullmatch(text)
    if match is None:
        raise InvalidInput(key, f"{text[:100]!r} is not MAJOR.MINOR")
    return int(match[1]), int(match[2])


def _check_run(run: Run) -> None:
    for text in (*run.args, *run.env.values()):
        if "\0" in text:
            raise InvalidInput("run", "an argument or variable holds a NUL character")
    for name in run.env:
        if not _VARIABLE.fullmatch(name):
            raise InvalidInput("run.env", f"{name[:100]!r} is not the name of a variable")
