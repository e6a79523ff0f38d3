"""Whether a package may be used here: asked before anything of it but its documents has been read.

What is signed is an in-toto statement that lists config and layers by type, digest and size. It has to be, value for
value, the one that the OCI manifest at hand gives.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from forgeone_shim.attestation import dsse
from forgeone_shim.attestation.keys import PublicKey
from forgeone_shim.errors import FailedPrecondition, UntrustedImage
from forgeone_shim.package import media
from forgeone_shim.package.manifest import Blob, Package, abi_version, parse
from forgeone_shim.registry.digest import algorithm, encoded, matches
from forgeone_shim.registry.manifest import Descriptor

PAYLOAD: Final = "application/vnd.in-toto+json"
_STATEMENT: Final = "https://in-toto.io/Statement/v1"
_PREDICATE: Final = "https://forgeone.dev/package/v1"
_NAMES: Final = {
    media.CONFIG: "config",
    media.MODULE: "module",
    media.ASSETS: "assets",
    **dict.fromkeys(media.SBOMS, "sbom"),
}
_MAX_LAYERS: Final = 4


@dataclass(frozen=True, slots=True)
class Trust:
    """What is asked of a package. ``abi`` is the version of the host interface there is here; ``None``: any will do."""

    keys: tuple[PublicKey, ...] = ()
    unsigned: bool = False
    abi: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Verified:
    """A package, and which trusted keys stand behind it."""

    package: Package
    signers: tuple[PublicKey, ...]


@dataclass(frozen=True, slots=True)
class Parts:
    """A package's OCI manifest, sorted out; ``layers`` are all but the signature."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    signature: Descriptor | None


def parts(config: Descriptor, layers: Sequence[Descriptor], name: str) -> Parts:
    """Tell the signature from what it is over.

    :raises FailedPrecondition: there is too much of something, or too little.
    """
    signatures = [layer for layer in layers if layer.media_type == media.SIGNATURE]
    others = tuple(layer for layer in layers if layer.media_type != media.SIGNATURE)
    if config.media_type != media.CONFIG:
        raise FailedPrecondition(f"{name} is no package: its config is {config.media_type[:100]!r}")
    if len(signatures) > 1 or not others or len(layers) > _MAX_LAYERS:
        raise FailedPrecondition(
            f"{name} is no package: it has {len(others)} layers and {len(signatures)} signatures",
            fix="one signature layer holds the signatures of all who sign",
        )
    for layer in signatures:
        if layer.size > dsse.MAX_ENVELOPE:
            raise FailedPrecondition(f"{name}: its signature claims {layer.size} bytes")
    return Parts(config, others, signatures[0] if signatures else None)


def statement(config: Descriptor, layers: Sequence[Descriptor]) -> bytes:
    """What a signature of this package is over."""
    return msgspec.json.encode(_statement(config, layers), order="sorted")


def verify(found: Parts, config: bytes, envelope: bytes | None, trust: Trust, name: str) -> Verified:
    """Check signature, config and needs, in that order.

    :raises UntrustedImage: nobody that is trusted signed it, or a signature is bad.
    :raises FailedPrecondition: it is malformed, its parts do not fit together, or it needs what is not here.
    """
    signers: tuple[PublicKey, ...] = ()
    if found.signature is not None:
        if envelope is None or not matches(found.signature.digest, envelope):
            raise UntrustedImage(f"{name}: its signature is not what the manifest names")
        signers = _signers(found, envelope, trust, name)
    elif not trust.unsigned:
        raise UntrustedImage(
            f"{name} is not signed", fix='sign it with forge pkg sign, or set packages.unsigned to "allow"'
        )
    if not matches(found.config.digest, config):
        raise FailedPrecondition(f"{name}: its config is not what the manifest names")
    package = parse(config, f"the manifest of {name}")
    _check_layers(package, found, name)
    _check_abi(package, trust.abi, name)
    return Verified(package, signers)


def _signers(found: Parts, envelope: bytes, trust: Trust, name: str) -> tuple[PublicKey, ...]:
    parsed = dsse.parse(envelope, f"the signature of {name}")
    if parsed.payload_type != PAYLOAD:
        raise UntrustedImage(f"{name}: {parsed.payload_type[:100]!r} is signed, not a statement")
    try:
        said: Any = msgspec.json.decode(parsed.payload)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        said = None
    if said != _statement(found.config, found.layers):
        raise UntrustedImage(f"{name}: its signature is over another package")
    try:
        signers = dsse.signers(parsed, trust.keys, name)
    except dsse.BadSignature as error:
        raise UntrustedImage(error.what) from None
    if not signers and not trust.unsigned:
        ids = ", ".join(each.key_id[:100] or "an unnamed key" for each in parsed.signatures)
        raise UntrustedImage(
            f"{name} is signed by {ids}, and none of the {len(trust.keys)} trusted keys is among them",
            fix="put the signer's public key into packages.trusted_keys",
        )
    return signers


def _statement(config: Descriptor, layers: Sequence[Descriptor]) -> dict[str, Any]:
    return {
        "_type": _STATEMENT,
        "predicateType": _PREDICATE,
        "subject": [
            {
                "name": _NAMES.get(each.media_type, each.media_type),
                "digest": {algorithm(each.digest): encoded(each.digest)},
            }
            for each in (config, *layers)
        ],
        "predicate": {
            "artifactType": media.ARTIFACT,
            "config": _descriptor(config),
            "layers": [_descriptor(layer) for layer in layers],
        },
    }


def _descriptor(of: Descriptor) -> dict[str, Any]:
    return {"mediaType": of.media_type, "digest": of.digest, "size": of.size}


def _check_layers(package: Package, found: Parts, name: str) -> None:
    """The layers are those that the package names, in its order."""
    wanted: list[tuple[str, Blob]] = [(media.MODULE, package.module)]
    if package.assets is not None:
        wanted.append((media.ASSETS, package.assets))
    if package.sbom is not None:
        wanted.append((package.sbom.media_type, package.sbom))
    have = [(layer.media_type, layer.digest, layer.size) for layer in found.layers]
    if have != [(kind, blob.digest, blob.size) for kind, blob in wanted]:
        raise FailedPrecondition(f"{name}: its layers are not those that its manifest names")


def _check_abi(package: Package, offered: tuple[int, int] | None, name: str) -> None:
    """A later minor version has all that an earlier one has; another major one need not."""
    if offered is None or not package.host_abi:
        return
    major, minor = abi_version("host_abi", package.host_abi)
    if major != offered[0] or minor > offered[1]:
        here = f"{offered[0]}.{offered[1]}"
        raise FailedPrecondition(
            f"{name} needs version {package.host_abi} of the host interface, and this is {here}",
            fix="update ForgeOne on this node" if (major, minor) > offered else "build the package again",
        )
