"""What lies in a container's bundle, as a fingerprint counts it: the digest of its note and what decides in it."""

from __future__ import annotations

import hashlib

from engines.base import Imprint
from engines.microvm import notes
from engines.microvm.notes import Note
from forgeone_shim.kernel import capabilities


def seal(bundle: str, container_id: str) -> str:
    """The digest of the note.

    :raises NotFound: there is no such container (any more).
    """
    return _digest(notes.content(bundle, container_id))


def imprint(bundle: str, container_id: str) -> Imprint:
    """What the note says: of the container, and of the machine that it is in.

    :raises NotFound: there is no such container (any more).
    """
    content = notes.content(bundle, container_id)
    note = notes.decoded(bundle, content)
    return Imprint(
        version=note.version,
        seal=_digest(content),
        seccomp=_digest(note.program.seccomp) if note.program.seccomp else "",
        capabilities=_capabilities(note),
        facts=note.facts,
    )


def _capabilities(note: Note) -> tuple[str, ...]:
    held = capabilities.from_mask(note.program.caps.bounding)
    return tuple(name for name in capabilities.KNOWN if name in held)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
