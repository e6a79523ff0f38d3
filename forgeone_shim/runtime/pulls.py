"""What the audit log is told of images that came, or were not let in."""

from __future__ import annotations

from typing import Any

from forgeone_shim.attestation.evidence import Endorsement, Subject
from forgeone_shim.deadline import Deadline
from forgeone_shim.runtime.chronicle import Chronicle


class Pulls:
    """The witness of an image service (:class:`~forgeone_shim.registry.endorsing.Witness`)."""

    def __init__(self, chronicle: Chronicle) -> None:
        self._chronicle = chronicle

    def endorsed(self, subject: Subject, namespace: str, found: Endorsement, deadline: Deadline) -> None:
        """Somebody stands behind an image that is about to come, or a policy only warns of it."""
        attested = [{"type": one.predicate_type, "signer": one.signer} for one in found.attestations]
        told = {"signers": list(found.signers), "attestations": attested, "warnings": list(found.warnings)}
        self._chronicle.note("image.endorsed", _image(subject), **_about(subject, namespace), **told)
        # It starts nothing, and what is made of it is told once more.
        self._chronicle.settle(deadline, must=False)

    def refused(self, subject: Subject, namespace: str, why: str, deadline: Deadline) -> str:
        """A policy or a verifier does not let it in; returns where that is recorded."""
        about = _about(subject, namespace)
        return self._chronicle.denied("pull", _image(subject), deadline, rule="signatures", reason=why, **about)


def _image(subject: Subject) -> str:
    return f"image/{subject.digest}"


def _about(subject: Subject, namespace: str) -> dict[str, Any]:
    index = {"index": subject.index_digest} if subject.index_digest else {}
    return {"image": {"ref": str(subject.reference), "digest": subject.digest, **index}, "namespace": namespace}
