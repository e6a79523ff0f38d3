"""The boot manifest: what a machine boots, as the document that is signed.

``{"format": 1, "release": "6.1.0-56-cloud-amd64", "kernel": {"digest": "sha256:...", "size": N}, "initrd": {...},
"agent": {...}, "cmdline": {"kvm": "...", "tcg": "..."}}`` as canonical JSON (RFC 8785). Under TCG the frequency of the
host's clock is added to the command line, ``tsc_early_khz=N``, and nothing else ever.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
import rfc8785

from forgeone_shim.errors import FailedPrecondition

FORMAT: Final = 1
PAYLOAD_TYPE: Final = "application/vnd.forgeone.boot.v1+json"
MAX_MANIFEST: Final = 64 * 1024

_Digest = Annotated[str, msgspec.Meta(pattern=r"\Asha256:[0-9a-f]{64}\Z")]
# What a kernel takes is 2047 bytes (COMMAND_LINE_SIZE on x86), of which some are for tsc_early_khz.
_Line = Annotated[str, msgspec.Meta(max_length=1900, pattern=r"\A[ -~]*\Z")]


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file by its SHA-256 and its size in bytes."""

    digest: _Digest
    size: Annotated[int, msgspec.Meta(ge=1, le=1 << 32)]


class Lines(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The kernel's command lines, one for each accelerator."""

    kvm: _Line
    tcg: _Line


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that a machine boots. ``release`` is the kernel's; the agent is in the initrd, and named for people."""

    format: Literal[1] = FORMAT
    release: Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
    kernel: Item
    initrd: Item
    agent: Item
    cmdline: Lines


def encode(manifest: Manifest) -> bytes:
    """The one form that a manifest has."""
    return rfc8785.dumps(msgspec.to_builtins(manifest))


def decode(data: bytes, name: str) -> Manifest:
    """Read the manifest called ``name``. :raises FailedPrecondition: it is none, or not in its one form."""
    if len(data) > MAX_MANIFEST:
        raise FailedPrecondition(f"{name} is larger than {MAX_MANIFEST} bytes")
    try:
        found = msgspec.json.decode(data, type=Manifest)
        same = encode(found) == data
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise FailedPrecondition(f"{name} is no boot manifest: {str(error)[:200]}") from None
    if not same:
        raise FailedPrecondition(f"{name} is no boot manifest in canonical form (RFC 8785)")
    return found
