"""What becomes of what the cluster says: read whole, kept on disk, in force, and a verdict for each object.

An object that cannot be used changes nothing: the policy of that name that was there before stays. What is not there
any more goes, once a list that is complete, or a watch that follows one, says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final

import structlog

from forgeone_shim.cluster import objects
from forgeone_shim.cluster.store import Kept, Store
from forgeone_shim.cluster.wire import Begun, Came, Gone, Listed, Told, Verdict
from forgeone_shim.contract.policies import MAX_POLICIES
from forgeone_shim.contract.policy import Policy
from forgeone_shim.errors import InternalError, InvalidInput

SHADOWED: Final = "a policy of that name is in contract.policies_dir of this node, and goes before"
_FULL: Final = f"is one more than the {MAX_POLICIES} that a node keeps"
_STAYS: Final = "what it said before stays in force"

Take = Callable[[Mapping[str, Policy]], frozenset[str]]
"""Puts these in force in place of all that came from the cluster before; returns the names that files have as well."""


@dataclass(frozen=True, slots=True)
class _Which:
    """One generation of an object."""

    uid: str
    generation: int


class Sync:
    """Not thread-safe: for the one thread that listens to the watch."""

    def __init__(self, store: Store, kept: Kept, take: Take) -> None:
        self._store, self._take = store, take
        self._policies = dict(kept.policies)
        self._on_disk = {name: one.digest for name, one in kept.policies.items()} | dict.fromkeys(kept.broken, "")
        self._unwritten: dict[str, bytes] = {}
        self._beyond: dict[str, Came] = {}
        self._known: dict[str, _Which] = {}
        self._shadowed: frozenset[str] = frozenset()
        self._listing: dict[str, Came] | None = None
        self._complete = False
        self.refused: Mapping[str, str] = {}
        self._log = structlog.get_logger("cluster")

    @property
    def policies(self) -> Mapping[str, Policy]:
        """Those in force that came from the cluster."""
        return self._policies

    @property
    def complete(self) -> bool:
        """Whether a whole list has come since this was made."""
        return self._complete

    def begin(self) -> None:
        """A watch begins, which knows nothing of what another one told."""
        self._listing, self._complete = None, False

    def feed(self, messages: Iterable[Told]) -> list[Verdict]:
        """Take in what came together, at once; what is to be said of it.

        :raises InternalError: it is in force, and cannot be kept: all of it has to come anew.
        """
        before, asked, listed = self._digests(), set[str](), False
        for message in messages:
            if isinstance(message, Begun):
                self._listing = {}
            elif isinstance(message, Came):
                if self._listing is None:
                    asked.add(self._came(message))
                else:
                    self._listing[_named(message)] = message
            elif isinstance(message, Gone):
                # A watch follows a list: without one nothing that it says of what is not there counts.
                if self._complete:
                    self._gone(message.name)
            elif isinstance(message, Listed) and self._listing is not None:
                asked |= self._listed(self._listing)
                self._listing, self._complete, listed = None, True, True
        asked |= self._room()
        shadows = self._settle(before, listed=listed)
        return [self._verdict(name) for name in sorted((asked | shadows) & self._known.keys())]

    def shadowed(self, names: frozenset[str]) -> list[Verdict]:
        """Which names files have now; what is to be said of those that changed."""
        changed, self._shadowed = self._shadowed ^ names, names
        return [self._verdict(name) for name in sorted(changed & self._known.keys())]

    def _listed(self, found: Mapping[str, Came]) -> set[str]:
        for name in [*self._known, *self._policies]:
            if name not in found:
                self._gone(name)
        # In the order of names, so that of too many every node keeps the same.
        return {self._came(found[name]) for name in sorted(found)}

    def _gone(self, name: str) -> None:
        self._known.pop(name, None)
        self._policies.pop(name, None)
        self._unwritten.pop(name, None)
        self._beyond.pop(name, None)
        self._refuse(name, "")

    def _room(self) -> set[str]:
        """Take in what found no room, as far as there is some now; which those are."""
        found = set[str]()
        while self._beyond and len(self._policies) < MAX_POLICIES:
            found.add(self._came(self._beyond.pop(min(self._beyond))))
        return found

    def _came(self, message: Came) -> str:
        name = _named(message)
        self._known[name] = _Which(message.uid, message.generation)
        self._beyond.pop(name, None)
        before = self._policies.get(name)
        try:
            if message.fault:
                raise InvalidInput(f"{objects.place(name)}: spec", message.fault)
            data = objects.file_of(message.given)
            if before is None or before.digest != _digest(data):
                if before is None and len(self._policies) >= MAX_POLICIES:
                    if len(self._beyond) < MAX_POLICIES:
                        self._beyond[name] = message
                    raise InvalidInput(objects.place(name), _FULL)
                self._policies[name] = objects.read(name, data)
            if self._on_disk.get(name) != _digest(data):
                self._unwritten[name] = data
            self._refuse(name, "")
        except InvalidInput as error:
            self._refuse(name, f"{error}; {_STAYS}" if before is not None else str(error))
        except Exception as error:
            # One object that breaks its reader must not keep all others from coming.
            self._log.exception("policy cannot be read", policy=name)
            self._refuse(name, f"{objects.place(name)} cannot be read: {type(error).__name__}")
        return name

    def _refuse(self, name: str, why: str) -> None:
        if why and self.refused.get(name) != why:
            self._log.warning("policy cannot be used", policy=name, why=why)
        others = {key: told for key, told in self.refused.items() if key != name}
        # Replaced whole: other threads look at it.
        self.refused = others | {name: why} if why else others

    def _settle(self, before: Mapping[str, str], *, listed: bool) -> frozenset[str]:
        """Keep what has changed, and put it in force; the names whose standing towards files is another now."""
        failed: InternalError | None = None
        for name, data in list(self._unwritten.items()):
            try:
                self._store.write(name, data)
                self._on_disk[name] = _digest(data)
                del self._unwritten[name]
            except InternalError as error:
                failed = error
        for name in self._on_disk.keys() - self._policies.keys() if self._complete else ():
            try:
                self._store.remove(name)
                del self._on_disk[name]
            except InternalError as error:
                failed = error
        changed = frozenset[str]()
        if listed or self._digests() != before:
            shadowed = self._take(dict(self._policies))
            changed, self._shadowed = self._shadowed ^ shadowed, shadowed
        if failed is not None:
            raise failed
        if listed:
            self._store.complete()
        return changed

    def _digests(self) -> dict[str, str]:
        return {name: one.digest for name, one in self._policies.items()}

    def _verdict(self, name: str) -> Verdict:
        which = self._known[name]
        why = self.refused.get(name, "") or (SHADOWED if name in self._shadowed else "")
        return Verdict(name, which.uid, which.generation, why)


def _named(message: Came) -> str:
    """A name as the object has it, which may be none that a policy can have."""
    metadata: Any = message.given.get("metadata")
    return str(metadata.get("name") or "") if isinstance(metadata, dict) else ""


def _digest(data: bytes) -> str:
    return f"sha256:{sha256(data).hexdigest()}"
