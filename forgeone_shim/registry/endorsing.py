"""Who stands behind the images of this node: asked when one is pulled, and again when a container is made of it.

What is found at a pull is kept with the image, so that a container can be made without the registry, and a policy that
has changed since can be applied. Where that is not enough the registry is asked again, with the credentials that the
node itself has: those of a pull are forgotten with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

import msgspec
import structlog

from forgeone_shim.attestation.evidence import Endorsement, Evidence, Kind, Subject
from forgeone_shim.config.model import RegistryConfig
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidInput,
    NotFound,
    Unavailable,
    Unimplemented,
    UntrustedImage,
)
from forgeone_shim.package import image as packaged
from forgeone_shim.package import media
from forgeone_shim.registry import authfiles, enclosed
from forgeone_shim.registry.archives import LayoutSource
from forgeone_shim.registry.digest import digest_of
from forgeone_shim.registry.evidence import Found, search
from forgeone_shim.registry.fetch import BlobFolder, Resolved
from forgeone_shim.registry.hosts import endpoints_for
from forgeone_shim.registry.manifest import (
    MAX_INDEX_DEPTH,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Malformed,
    parse_manifest,
)
from forgeone_shim.registry.model import Credentials, Image
from forgeone_shim.registry.records import ImageRecords
from forgeone_shim.registry.reference import Reference
from forgeone_shim.registry.source import Source
from forgeone_shim.registry.transport import Cancelled, Session, TlsContexts
from forgeone_shim.registry.verifiers import Target, auth_document
from forgeone_shim.registry.vetting import Case, Vetting

SEARCH_SECONDS: Final = 30.0
"""How long registries are asked when a container is made: one that is gone must not take all of the call's time."""

# Shorter than that, it is no id but a name (see records).
_SHORT_ID: Final = 12

Read = Callable[[str], bytes | None]
"""An index or manifest that is kept on this node, by its digest."""


class Witness(Protocol):
    """Who is told what came of a pull."""

    def endorsed(self, subject: Subject, namespace: str, found: Endorsement, deadline: Deadline) -> None:
        """An image may come, and somebody stands behind it."""

    def refused(self, subject: Subject, namespace: str, why: str, deadline: Deadline) -> str:
        """One may not; returns where that is recorded (``audit:17``)."""


class NoWitness:
    """Nobody is told."""

    def endorsed(self, subject: Subject, namespace: str, found: Endorsement, deadline: Deadline) -> None:
        """Nothing."""

    def refused(self, subject: Subject, namespace: str, why: str, deadline: Deadline) -> str:  # noqa: ARG002
        """Nowhere."""
        return ""


@dataclass(frozen=True, slots=True)
class Asking:
    """How this node asks registries, and what it asks of images."""

    config: RegistryConfig
    vetting: Vetting
    contexts: TlsContexts


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""


class Endorser:
    """Thread-safe. ``gated`` is a lock under which nothing is collected."""

    def __init__(
        self,
        records: ImageRecords,
        documents: BlobFolder,
        gated: Callable[[], AbstractContextManager[None]],
        witness: Witness,
    ) -> None:
        self._records, self._documents, self._gated, self._witness = records, documents, gated, witness
        self._log = structlog.get_logger("images")

    def pulled(self, source: Source, resolved: Resolved, namespace: str, vetting: Vetting) -> Resolved:
        """Judge an image of which nothing but its documents has come; the evidence is among them when this returns.

        :raises UntrustedImage: it may not come. Unavailable: a place of signatures cannot be asked.
        """
        case, deadline = case_of(source.reference, resolved, namespace), source.session.deadline
        subject = case.subject

        def find(wanted: frozenset[Kind]) -> Found:
            return search(source, subject.digests, wanted)

        try:
            vetted = vetting.vet(
                case,
                (find,),
                lambda: target_of(resolved),
                lambda: auth_document(source.reference.registry, source.credentials),
                deadline,
            )
        except UntrustedImage as error:
            entry = self._witness.refused(subject, namespace, error.reason, deadline)
            raise UntrustedImage(f"{error.reason} [{entry}]" if entry else error.reason, fix=error.fix) from None
        self._tell(subject, namespace, vetted.endorsement, deadline)
        return self._with(source.reference, resolved, vetted.evidence)

    def imported(self, source: LayoutSource, resolved: Resolved) -> Resolved:
        """Keep what an archive has of those who stand behind an image; that is judged when a container is made."""
        digests = dict.fromkeys((resolved.manifest_digest, resolved.target))
        found = search(source, tuple(digests), frozenset(Kind))
        for problem in found.problems:
            self._log.warning("a signature was passed over", image=str(source.reference), why=problem)
        return self._with(source.reference, resolved, found.evidence)

    def created(
        self, image: Image, name: str, namespace: str, deadline: Deadline, asking: Asking, *, signers: tuple[str, ...]
    ) -> Endorsement:
        """Judge an image of this node that was asked for by ``name``, or by an id: then by any name that it has here.

        :param signers: who signed it as a package, and is trusted now.
        :raises UntrustedImage: it may not be used, or who would have to be asked does not answer.
        """
        failure: UntrustedImage | None = None
        patience = _Patience(SEARCH_SECONDS)
        for subject in subjects(image, name, self._documents.read):
            try:
                return self._created(image, Case(subject, namespace, signers), deadline, patience, asking)
            except UntrustedImage as error:
                failure = error
            except (Unavailable, FailedPrecondition, InvalidInput) as error:
                # Of a file of hosts or credentials, perhaps: the image is refused, and not what was asked for.
                failure = UntrustedImage(error.what, fix=error.fix)
        raise failure or UntrustedImage(f"{name or image.id} has no name that a policy could be about")

    def _created(
        self, image: Image, case: Case, deadline: Deadline, patience: _Patience, asking: Asking
    ) -> Endorsement:
        subject, config = case.subject, asking.config
        known = asking.vetting.known(case)
        if known is not None:
            return known
        target = subject.index_digest or subject.digest

        def kept(_: frozenset[Kind]) -> Found | None:
            found = self._kept(image, subject)
            return None if found is None else Found(found)

        def credentials() -> Credentials | None:
            return authfiles.find(
                subject.reference, case.namespace, namespaces=config.namespaced_auth_dir, node=config.auth_file
            )

        def fetched(wanted: frozenset[Kind]) -> Found:
            hosts = endpoints_for(Path(config.config_path), subject.reference.registry, credentials())
            try:
                with patience.within(deadline) as left, _session(asking, left) as session:
                    return search(Source(session, subject.reference, hosts), subject.digests, wanted)
            except DeadlineExceeded:
                deadline.check("while signatures were looked for")
                return Found(Evidence(), (f"{subject.reference.registry} did not answer in time",), unreached=True)

        vetted = asking.vetting.vet(
            case,
            (kept, fetched),
            lambda: _target(self._documents.read(target), target),
            lambda: auth_document(subject.reference.registry, credentials()),
            deadline,
        )
        for warning in vetted.endorsement.warnings:
            self._log.warning("an image would be refused", image=str(subject.reference), why=warning)
        if vetted.evidence:
            self._keep(image, subject, vetted.evidence)
        return vetted.endorsement

    def _tell(self, subject: Subject, namespace: str, found: Endorsement, deadline: Deadline) -> None:
        for warning in found.warnings:
            self._log.warning("an image would be refused", image=str(subject.reference), why=warning)
        if found.signers or found.warnings:
            self._witness.endorsed(subject, namespace, found, deadline)

    def _kept(self, image: Image, subject: Subject) -> Evidence | None:
        return self._read(image, _place(subject))

    def _read(self, image: Image, place: str) -> Evidence | None:
        digest = image.evidence.get(place, "")
        data = self._documents.read(digest) if digest else None
        return None if data is None else enclosed.decode(data)

    def _with(self, reference: Reference, resolved: Resolved, evidence: Evidence | None) -> Resolved:
        if not evidence:
            return resolved
        place = reference.at(resolved.target)
        with suppress(NotFound):
            for image in self._records.named(place):
                evidence = _beside(self._read(image, place), evidence)
        data = enclosed.encode(evidence)
        digest = digest_of(data)
        return replace(resolved, documents={**resolved.documents, digest: data}, evidence=digest)

    def _keep(self, image: Image, subject: Subject, evidence: Evidence) -> None:
        place = _place(subject)
        data = enclosed.encode(_beside(self._read(image, place), evidence))
        digest = digest_of(data)
        if image.evidence.get(place) == digest:
            return
        with self._gated():
            # Inside, nobody collects what no record names yet.
            self._documents.write(digest, data)
            try:
                stale = self._records.keep_evidence(image.id, place, digest)
            except NotFound:
                stale = (digest,)
            self._documents.retain(self._records.needed()[1], stale)


class _Patience:
    """The time that registries have for all names of an image together; ``seconds`` of waiting for them."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds

    @contextmanager
    def within(self, deadline: Deadline) -> Iterator[Deadline]:
        """What is left of it, and no later than ``deadline``."""
        began = time.monotonic()
        try:
            with deadline.within(self._left) as inner:
                yield inner
        finally:
            self._left = max(0.0, self._left - (time.monotonic() - began))


def case_of(reference: Reference, resolved: Resolved, namespace: str) -> Case:
    """An image that is about to come, or not, for pods of a namespace."""
    index = resolved.target if resolved.target != resolved.manifest_digest else ""
    package = resolved.manifest.artifact == media.ARTIFACT
    signers = packaged.signers(resolved.manifest.annotations) if package else ()
    return Case(Subject(reference, resolved.manifest_digest, index), namespace, signers)


def target_of(resolved: Resolved) -> Target:
    """What its name stands for in its registry."""
    return _target(resolved.documents[resolved.target], resolved.target)


def subjects(image: Image, name: str, read: Read) -> list[Subject]:
    """What a policy is to judge: the image under ``name``, by each index or manifest that it came by under that name.

    By an id it is meant by all of its names.

    :raises UntrustedImage: the name has a digest, and it is not this image's.
    """
    reference = _named(image, name)
    known = [Reference.parse(one) for one in image.repo_digests]
    if reference is None:
        every = [Reference.parse(tag) for tag in image.repo_tags]
        told = {one.name for one in every}
        return [
            subject
            for one in (*every, *(each for each in known if each.name not in told))
            for subject in _subjects(image, one, known, read)
        ]
    return _subjects(image, reference, known, read)


def _subjects(image: Image, reference: Reference, known: list[Reference], read: Read) -> list[Subject]:
    targets = [each.digest for each in known if each.name == reference.name]
    if reference.digest:
        targets = [target for target in targets if target == reference.digest]
        if not targets and reference.digest != image.manifest_digest:
            raise UntrustedImage(f"{reference} is not the image {image.id}")
    found = [_subject(image, reference, target, read) for target in targets]
    return list(dict.fromkeys(found)) or [Subject(reference, image.manifest_digest)]


def _subject(image: Image, reference: Reference, target: str, read: Read) -> Subject:
    manifest = _below(image, target, read, MAX_INDEX_DEPTH)
    if manifest is None:
        return Subject(reference, image.manifest_digest)
    return Subject(reference, manifest, target if target != manifest else "")


def _below(image: Image, digest: str, read: Read, depth: int) -> str | None:
    """The manifest of this image that an index leads to, or the digest itself where it is one of its manifests."""
    if digest == image.manifest_digest:
        return digest
    data = read(digest) if depth >= 0 else None
    try:
        parsed = parse_manifest(data, "", digest) if data is not None else None
    except (Malformed, Unimplemented):
        return None
    if isinstance(parsed, Index):
        entries = [entry.digest for entry in parsed.entries]
        if image.manifest_digest in entries:
            return image.manifest_digest
        return next((found for one in entries if (found := _below(image, one, read, depth - 1)) is not None), None)
    # The same image, packed in another way: an id that is a config's holds for the files, too.
    return digest if parsed is not None and parsed.config.digest == image.id else None


def _named(image: Image, name: str) -> Reference | None:
    """What ``name`` says; ``None``: it is an id, or nothing."""
    digits = name.removeprefix("sha256:")
    if not name or (len(digits) >= _SHORT_ID and image.id.removeprefix("sha256:").startswith(digits)):
        return None
    try:
        return Reference.parse(name)
    except InvalidInput:
        return None


def _beside(kept: Evidence | None, found: Evidence) -> Evidence:
    """What was found; of forms that nothing was found of, since nobody asked for them, perhaps, what was kept."""
    return found if kept is None else replace(kept, **{kind: some for kind in Kind if (some := getattr(found, kind))})


def _target(data: bytes | None, digest: str) -> Target:
    if data is None:
        raise UntrustedImage(
            f"{digest} is not kept on this node, so that no verifier can be asked", fix="pull it again"
        )
    kind = msgspec.json.decode(data, type=_Kind).media_type
    if not kind:
        kind = OCI_INDEX if isinstance(parse_manifest(data, "", digest), Index) else OCI_MANIFEST
    return Target(kind, digest, len(data))


def _place(subject: Subject) -> str:
    """Under which name an image's evidence is kept."""
    return subject.reference.at(subject.index_digest or subject.digest)


@contextmanager
def _session(asking: Asking, deadline: Deadline) -> Iterator[Session]:
    session = Session(asking.contexts, Deadline.after(deadline.remaining()), asking.config.progress_timeout)
    deadline.listen(session.cancel)
    try:
        yield session
    except Cancelled:
        deadline.check("while signatures were looked for")
        raise Unavailable("the search for signatures was ended", fix="do it again") from None
    finally:
        deadline.ignore(session.cancel)
        session.close()
