"""What images this node has: one document an image in the state store, and who still needs which layer."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from forgeone_shim.errors import ForgeError, InvalidInput, NotFound
from forgeone_shim.registry.model import Image
from forgeone_shim.registry.reference import Reference
from forgeone_shim.state.store import StateStore

_KIND: Final = "image"
_LEASE: Final = "image-lease"
# Shorter than what crictl prints, an id would too easily be mistaken for the name of an image that is not here.
_SHORT_ID = re.compile(r"(?:sha256:)?([0-9a-f]{12,63})")
_ID = re.compile(r"(?:sha256:)?([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Lease:
    """Layers and blobs a pull in flight counts on, and the process that pulls: it may have died since."""

    pid: int
    started: int
    layers: tuple[str, ...]
    blobs: tuple[str, ...]


class ImageRecords:
    """Reads and writes image documents. Thread-safe, and safe beside a second process."""

    def __init__(self, store: StateStore, pinned: Sequence[str]) -> None:
        self._store = store
        self._pinned = tuple(pinned)

    def pin(self, pinned: Sequence[str]) -> None:
        """Which images are pinned from now on."""
        self._pinned = tuple(pinned)

    def all(self) -> list[Image]:
        """Every image, by id."""
        return [self._with_pin(image) for _, image in self._store.items(_KIND, Image)]

    def find(self, text: str, *, wasm: bool = False) -> Image:
        """The image of an id (with or without ``sha256:``), a name, or the unique beginning of an id (12 digits up).

        Of a name that stands for two, ``wasm`` says which one is meant; without that one there is none.

        :raises NotFound: when there is none. InvalidInput: when the beginning fits several, or the text fits nothing.
        """
        named = self.named(text)
        meant = [image for image in named if image.is_wasm is wasm or not _shares(image, text)]
        if not meant:
            raise NotFound("image", text)
        return meant[0]

    def named(self, text: str) -> list[Image]:
        """Like :meth:`find`, with both of a name that stands for two."""
        if match := _ID.fullmatch(text):
            image = self._store.get(_KIND, f"sha256:{match[1]}", Image)
            if image is None:
                raise NotFound("image", text)
            return [self._with_pin(image)]
        images = self.all()
        try:
            found = _by_name(images, Reference.parse(text))
        except InvalidInput:
            if not _SHORT_ID.fullmatch(text):
                raise
            found = []
        if not found and (match := _SHORT_ID.fullmatch(text)):
            fitting = [image for image in images if image.id.startswith(f"sha256:{match[1]}")]
            if len(fitting) > 1:
                raise InvalidInput("image", f"{text!r} is the beginning of {len(fitting)} image ids")
            found = fitting
        if not found:
            raise NotFound("image", text)
        return found

    def commit(self, image: Image, reference: Reference, target: str, *, shared: bool = False) -> Image:
        """Add an image, or a name to one that is here. A tag that pointed elsewhere moves.

        ``target`` is the digest the name stood for in its registry; ``shared`` says that a WebAssembly image and one of
        the host's programs are what it stands for: the other of the two keeps the tag.
        """
        names, digest = {reference.repo_tag, reference.at(target)} - {""}, reference.at(target)
        with self._store.transaction():
            if reference.repo_tag:
                for _, other in self._store.items(_KIND, Image):
                    twin = shared and other.is_wasm is not image.is_wasm and digest in other.shared
                    if other.id != image.id and reference.repo_tag in other.repo_tags and not twin:
                        self._store.put(_KIND, other.id, _without(other, reference.repo_tag))
            known = self._store.get(_KIND, image.id, Image)
            kept = set(known.shared if known else ()) - names
            before = known.evidence if known else {}
            evidence = {**before, **image.evidence}
            stale = {*before.values()} - {*evidence.values()}
            whole = replace(
                image,
                repo_tags=_with(known.repo_tags if known else (), reference.repo_tag),
                repo_digests=_with(known.repo_digests if known else (), reference.at(target)),
                shared=tuple(sorted(kept | names if shared else kept)),
                blobs=tuple(
                    dict.fromkeys(b for b in (*(known.blobs if known else ()), *image.blobs) if b not in stale)
                ),
                evidence=evidence,
            )
            self._store.put(_KIND, image.id, whole)
        return self._with_pin(whole)

    def evidence(self, image_id: str) -> tuple[str, ...]:
        """The digests of what is kept of those who stand behind an image, if it is here."""
        known = self._store.get(_KIND, image_id, Image)
        return tuple(known.evidence.values()) if known is not None else ()

    def keep_evidence(self, image_id: str, name: str, digest: str) -> tuple[str, ...]:
        """Say where the evidence is that an image of this name was judged by; returns what it takes the place of.

        :raises NotFound: the image has gone.
        """
        with self._store.transaction():
            known = self._store.get(_KIND, image_id, Image)
            if known is None:
                raise NotFound("image", image_id)
            evidence = {**known.evidence, name: digest}
            stale = {*known.evidence.values()} - {*evidence.values()}
            blobs = tuple(dict.fromkeys((*(blob for blob in known.blobs if blob not in stale), digest)))
            self._store.put(_KIND, image_id, replace(known, evidence=evidence, blobs=blobs))
        return tuple(stale)

    def replace(self, image: Image) -> None:
        """Say something else of an image that is here; one that is gone stays so."""
        with self._store.transaction():
            if self._store.get(_KIND, image.id, Image) is not None:
                self._store.put(_KIND, image.id, image)

    def delete(self, image_id: str) -> None:
        """Forget an image under all its names; its layers are for :meth:`needed` to count."""
        self._store.delete(_KIND, image_id)

    def lease(self, layers: Iterable[str], blobs: Iterable[str]) -> str:
        """Keep layers and blobs from being collected until the key is released or this process ends."""
        key = uuid.uuid4().hex
        self._store.put(_LEASE, key, Lease(os.getpid(), _started(os.getpid()), tuple(layers), tuple(blobs)))
        return key

    def release(self, key: str) -> None:
        """End a lease; one that has ended is no error."""
        self._store.delete(_LEASE, key)

    def needed(self) -> tuple[set[str], set[str]]:
        """Layers and blobs that an image or a pull in flight counts on. Leases of dead processes end here."""
        layers: set[str] = set()
        blobs: set[str] = set()
        for _, image in self._store.items(_KIND, Image):
            layers.update(image.layers)
            blobs.update(image.blobs)
        for key, lease in self._store.items(_LEASE, Lease):
            if _started(lease.pid) != lease.started:
                self._store.delete(_LEASE, key)
                continue
            layers.update(lease.layers)
            blobs.update(lease.blobs)
        return layers, blobs

    def _with_pin(self, image: Image) -> Image:
        return replace(image, pinned=any(is_pinned(image, pattern) for pattern in self._pinned))


def is_pinned(image: Image, pattern: str) -> bool:
    """Whether a pattern names this image: a name as users write it, an id, or a glob over full names (``*pause*``)."""
    names = {image.id, *image.repo_tags, *image.repo_digests}
    names |= {name.partition("@")[0] for name in image.repo_digests}
    if any(fnmatchcase(name, pattern) for name in names):
        return True
    try:
        return str(Reference.parse(pattern)) in names
    except ForgeError:
        return False


def _by_name(images: Sequence[Image], reference: Reference) -> list[Image]:
    name = _name(reference)
    return [image for image in images if name in image.repo_tags or name in image.repo_digests]


def _name(reference: Reference) -> str:
    return reference.at(reference.digest) if reference.digest else reference.repo_tag


def _shares(image: Image, text: str) -> bool:
    """Whether ``text`` is a name of the image's that stands for another one as well."""
    if not image.shared:
        return False
    try:
        return _name(Reference.parse(text)) in image.shared
    except InvalidInput:
        return False


def _without(image: Image, tag: str) -> Image:
    tags, shared = (tuple(name for name in names if name != tag) for names in (image.repo_tags, image.shared))
    return replace(image, repo_tags=tags, shared=shared)


def _with(names: Sequence[str], name: str) -> tuple[str, ...]:
    return tuple(sorted({*names, name} - {""}))


def _started(pid: int) -> int:
    """When a process began, in ticks since boot; 0 for one that is gone. With the pid it names a process for good."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])
