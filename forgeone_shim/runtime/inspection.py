"""Everything that is known of a container or a pod, as one document: what ``forge inspect`` shows.

Its fields are in ``docs/dna.md``. Rooms that know something of their own add a section.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from forgeone_shim.contract.facts import Bound
from forgeone_shim.dna.score import WEIGHTS
from forgeone_shim.errors import NotFound
from forgeone_shim.runtime.identity import Identity
from forgeone_shim.runtime.parts import Parts
from forgeone_shim.runtime.records import ContainerRecord, SandboxRecord
from forgeone_shim.runtime.table import Entry

Json = dict[str, Any]
Section = Callable[[ContainerRecord], object]
PodSection = Callable[[SandboxRecord], object]


class Inspection:
    """Thread-safe, once all sections are added."""

    def __init__(self, parts: Parts, identity: Identity) -> None:
        self._p, self._identity = parts, identity
        self._sections: dict[str, Section] = {}
        self._pod_sections: dict[str, PodSection] = {}
        self._log = structlog.get_logger("inspect")

    def section(self, name: str, ask: Section) -> None:
        """What a room knows of a container; ``None``: nothing to tell. Dataclasses and plain values may be told."""
        self._sections[name] = ask

    def pod_section(self, name: str, ask: PodSection) -> None:
        """The same of a pod."""
        self._pod_sections[name] = ask

    def of(self, id_: str) -> Json:
        """The container or the pod with that id, or a beginning of it that no other has.

        :raises NotFound: there is neither.
        """
        try:
            return self.container(self._p.containers.find(id_))
        except NotFound:
            pass
        try:
            return self.pod(self._p.sandboxes.find(id_).record)
        except NotFound:
            raise NotFound("container or pod", id_) from None

    def pod(self, record: SandboxRecord) -> Json:
        """A pod, and all its containers."""
        spec = record.spec
        found = {
            "kind": "pod",
            "id": record.id,
            "name": spec.name,
            "namespace": spec.namespace,
            "uid": spec.uid,
            "engine": record.engine,
            "handler": spec.runtime_handler,
            **({"placed": record.placed} if record.placed else {}),
            "lifecycle": {"state": record.state, "created_at": _time(record.created_at)},
            "addresses": record.ips,
            "contract": _contract(record.bound),
            **{
                name: value
                for name, ask in self._pod_sections.items()
                if (value := self._asked(name, ask, record)) is not None
            },
        }
        mine = [entry for entry in self._p.containers.all() if entry.record.sandbox_id == record.id]
        return _plain({**found, "containers": [self.container(entry) for entry in mine]})

    def container(self, entry: Entry[ContainerRecord]) -> Json:
        """A container."""
        record = entry.record
        score = self._identity.score(record)
        genome = record.genome
        return _plain(
            {
                "kind": "container",
                "id": record.id,
                "name": record.spec.name,
                "attempt": record.spec.attempt,
                "pod": self._pod(record),
                "engine": {"name": record.engine, "version": "" if genome is None else genome.engine_version},
                "image": _image(record),
                "lifecycle": _lifecycle(record, entry.pid),
                "contract": _contract(record.bound),
                "dna": {**asdict(self._identity.dna(record)), "seal": record.seal, "genome": genome},
                "entropy": {
                    "bits": record.entropy,
                    "events": [{**asdict(one), "at": _time(one.at)} for one in record.seedings],
                    "source": self._source(),
                },
                "score": {
                    "total": score.total,
                    "parts": {name: {"points": getattr(score, name), "of": most} for name, most in WEIGHTS.items()},
                },
                **{
                    name: value
                    for name, ask in self._sections.items()
                    if (value := self._asked(name, ask, record)) is not None
                },
            }
        )

    def _asked(self, name: str, ask: Callable[[Any], object], record: ContainerRecord | SandboxRecord) -> object:
        try:
            return ask(record)
        except Exception as error:
            # The rest is wanted most where something is amiss.
            self._log.warning("a section is not known", section=name, id=record.id, error=str(error))
            return {"error": str(error)}

    def _pod(self, record: ContainerRecord) -> Json:
        try:
            spec = self._p.sandboxes.find(record.sandbox_id).record.spec
        except NotFound:
            return {"id": record.sandbox_id}
        return {"id": record.sandbox_id, "name": spec.name, "namespace": spec.namespace, "uid": spec.uid}

    def _source(self) -> Json:
        found = self._identity.source.health()
        return {**asdict(found), "healthy": found.healthy}


def _image(record: ContainerRecord) -> Json:
    trusted = record.trusted
    return {
        "id": record.image_id,
        "ref": record.image_ref,
        "name": record.spec.user_specified_image or record.spec.image,
        "verified_by": record.verified_by,
        "attestations": () if trusted is None else trusted.attestations,
    }


def _lifecycle(record: ContainerRecord, pid: int) -> Json:
    ended = bool(record.finished_at)
    return {
        "state": record.state,
        "created_at": _time(record.created_at),
        "started_at": _time(record.started_at),
        "finished_at": _time(record.finished_at),
        "exit_code": record.exit_code if ended else None,
        "reason": record.reason,
        "message": record.message,
        "restored": record.restored,
        "pid": pid or None,
    }


def _contract(bound: Bound) -> Json:
    contract = bound.contract
    return {
        "given": bound.given,
        "signers": bound.signers,
        "policies": bound.policies,
        "digest": contract.digest if bound.given or bound.policies else "",
        "effective": contract,
    }


def _plain(value: Json) -> Json:
    found: Json = msgspec.to_builtins(value)
    return found


def _time(nanoseconds: int) -> str | None:
    if not nanoseconds:
        return None
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
