"""The baselines of this node, in its state database. Thread-safe.

Of an image there is at most one draft, which is learned, and one pinned baseline, which containers are compared with.
What is pinned is kept by its digest too, for contracts that name one.
"""

from __future__ import annotations

import threading
from typing import Final

import msgspec

from forgeone_shim.dna.behaviour.baseline import Baseline, learn
from forgeone_shim.dna.behaviour.profile import Profile
from forgeone_shim.errors import NotFound
from forgeone_shim.state.store import StateStore

_DRAFT: Final = "behaviour-draft"
_PINNED: Final = "behaviour-baseline"
_CHOSEN: Final = "behaviour-pin"
_LEARN: Final = "forge dna learn CONTAINER, of one that is watched"


class _Pin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of an image: the digest of its baseline."""

    digest: str


class Library:
    """Baselines by image (its config's digest) and by their own."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._lock = threading.Lock()

    def learn(self, image: str, engine: str, seen: Profile, *, anew: bool = False) -> Baseline:
        """Add what a container did to its image's draft; ``anew``: forget what was learned before.

        The first draft of an image that has a pinned baseline begins with that.
        """
        with self._lock:
            before = None if anew else self._draft(image) or self._pinned(image)
            made = learn(before, image, engine, seen)
            self._store.put(_DRAFT, image, made)
            return made

    def pin(self, image: str) -> Baseline:
        """The image's draft is its baseline from now on.

        :raises NotFound: nothing was learned of it.
        """
        with self._lock:
            draft = self._draft(image) or self._pinned(image)
            if draft is None:
                raise NotFound("what is usual for image", image, fix=_LEARN)
            self._choose(draft)
            self._store.delete(_DRAFT, image)
            return draft

    def adopt(self, baseline: Baseline) -> None:
        """One from elsewhere is its image's baseline from now on."""
        with self._lock:
            self._choose(baseline)

    def _choose(self, baseline: Baseline) -> None:
        digest = baseline.digest
        self._store.put(_PINNED, digest, baseline)
        self._store.put(_CHOSEN, baseline.image, _Pin(digest))

    def unpin(self, image: str) -> None:
        """Containers of the image are compared with nothing, but where a contract names a baseline.

        :raises NotFound: none is pinned.
        """
        with self._lock:
            if self._store.get(_CHOSEN, image, _Pin) is None:
                raise NotFound("baseline of image", image)
            self._store.delete(_CHOSEN, image)

    def draft(self, image: str) -> Baseline | None:
        """What was learned of an image since its baseline was pinned."""
        with self._lock:
            return self._draft(image)

    def pinned(self, image: str) -> Baseline | None:
        """The image's baseline."""
        with self._lock:
            return self._pinned(image)

    def named(self, digest: str) -> Baseline | None:
        """The baseline of that digest, if it was ever pinned here."""
        return self._store.get(_PINNED, digest, Baseline)

    def _draft(self, image: str) -> Baseline | None:
        return self._store.get(_DRAFT, image, Baseline)

    def _pinned(self, image: str) -> Baseline | None:
        pin = self._store.get(_CHOSEN, image, _Pin)
        return None if pin is None else self._store.get(_PINNED, pin.digest, Baseline)
