"""What lies in a container's bundle, as a fingerprint counts it: the digest of its note and what decides in it."""

from __future__ import annotations

import functools
import hashlib
from typing import Final

import msgspec

from engines.base import Imprint
from engines.wasm import notes
from engines.wasm.aot.target import wasmtime_version
from engines.wasm.notes import Note

_ENCODER: Final = msgspec.json.Encoder(order="sorted")


def seal(bundle: str, container_id: str) -> str:
    """The digest of the note.

    :raises NotFound: there is no such container (any more).
    """
    return _digest(notes.content(bundle, container_id))


def imprint(bundle: str, container_id: str) -> Imprint:
    """What the note says.

    :raises NotFound: there is no such container (any more).
    """
    content = notes.content(bundle, container_id)
    note = notes.decoded(bundle, content)
    return Imprint(
        version=_version(),
        seal=_digest(content),
        seccomp=_digest(_ENCODER.encode(note.jail.filters)),
        apparmor=note.jail.apparmor,
        facts=_facts(note),
    )


def _facts(note: Note) -> dict[str, str]:
    guest = note.guest
    found = {
        "variant": note.code.variant.value,
        "module": note.module,
        "function": guest.function,
        "exports": " ".join(sorted(note.exports)),
        "memory_max": str(guest.memory_max),
        "cpu_budget": str(guest.cpu_budget),
        "cpu_slice": str(guest.cpu_slice),
    }
    if note.jail.selinux:
        # user:role:type:level, and the level is another in each pod.
        found["selinux"] = ":".join(note.jail.selinux.split(":")[:3])
    if not note.image_id:
        # From a volume: of all else only this tells it from another module.
        found["code"] = note.code.key
    return found


@functools.cache
def _version() -> str:
    return f"wasmtime {wasmtime_version()}"


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
