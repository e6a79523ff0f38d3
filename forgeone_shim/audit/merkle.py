"""The Merkle tree of RFC 6962 section 2.1: hashes, roots, proofs and their verification. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Final

HASH_SIZE: Final = 32
EMPTY: Final = sha256(b"").digest()

Subtrees = Callable[[int, int], bytes]
"""The root of a complete subtree by height and place: of the entries from ``place << height`` on."""


def leaf(data: bytes) -> bytes:
    """The hash of an entry."""
    return sha256(b"\x00" + data).digest()


def node(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return sha256(b"\x01" + left + right).digest()


def fold(hashes: Sequence[bytes]) -> bytes:
    """The root over subtrees of one height, of which there are a power of two."""
    level = list(hashes)
    while len(level) > 1:
        level = [node(level[at], level[at + 1]) for at in range(0, len(level), 2)]
    return level[0]


class Frontier:
    """As much of a tree as it takes to go on with it: the roots of its complete subtrees, largest first."""

    __slots__ = ("_subtrees", "size")

    def __init__(self, subtrees: Iterable[tuple[int, bytes]] = ()) -> None:
        """``subtrees`` by height and root, from the left."""
        self.size = 0
        self._subtrees: list[tuple[int, bytes]] = []
        for height, root in subtrees:
            self.push(root, height)

    def push(self, root: bytes, height: int = 0) -> None:
        """Add a complete subtree on the right, of no greater height than the last one."""
        self.size += 1 << height
        while self._subtrees and self._subtrees[-1][0] == height:
            root, height = node(self._subtrees.pop()[1], root), height + 1
        self._subtrees.append((height, root))

    def root(self) -> bytes:
        """The root of the whole tree."""
        if not self._subtrees:
            return EMPTY
        root = self._subtrees[-1][1]
        for _, left in reversed(self._subtrees[:-1]):
            root = node(left, root)
        return root

    def copy(self) -> Frontier:
        """One that goes on by itself."""
        made = Frontier()
        made.size, made._subtrees = self.size, list(self._subtrees)
        return made


def root(size: int, subtrees: Subtrees) -> bytes:
    """The root of the tree's first ``size`` entries."""
    return EMPTY if size == 0 else _range(0, size, subtrees)


def inclusion(index: int, size: int, subtrees: Subtrees) -> list[bytes]:
    """The proof (section 2.1.1) that an entry is in the tree of the first ``size``."""
    if not 0 <= index < size:
        raise ValueError(f"there is no entry {index} among {size}")
    proof, low, high = [], 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            proof.append(_range(middle, high, subtrees))
            high = middle
        else:
            proof.append(_range(low, middle, subtrees))
            low = middle
    return proof[::-1]


def consistency(old: int, new: int, subtrees: Subtrees) -> list[bytes]:
    """The proof (section 2.1.2) that the tree of the first ``new`` entries begins with that of the first ``old``."""
    if not 0 <= old <= new:
        raise ValueError(f"a tree of {new} entries does not begin with {old}")
    if old in (0, new):
        return []
    proof, low, high, whole = [], 0, new, True
    while old < high:
        middle = low + _split(high - low)
        if old <= middle:
            proof.append(_range(middle, high, subtrees))
            high = middle
        else:
            proof.append(_range(low, middle, subtrees))
            low, whole = middle, False
    if not whole:
        proof.append(_range(low, high, subtrees))
    return proof[::-1]


def included(index: int, size: int, entry: bytes, proof: Sequence[bytes], tree: bytes) -> bool:
    """Whether the proof leads from the hash of an entry to the root of a tree (RFC 9162 section 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    at, last, found = index, size - 1, entry
    for step in proof:
        if last == 0:
            return False
        if at & 1 or at == last:
            found = node(step, found)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            found = node(found, step)
        at, last = at >> 1, last >> 1
    return last == 0 and found == tree


def consistent(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the proof shows that one tree begins with the other (RFC 9162 section 2.1.4.2)."""
    if not 0 <= old <= new:
        return False
    if old in (0, new):
        return not proof and (old_root == (EMPTY if old == 0 else new_root))
    steps = list(proof)
    if old & (old - 1) == 0:
        steps.insert(0, old_root)
    if not steps:
        return False
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    before = after = steps[0]
    for step in steps[1:]:
        if last == 0:
            return False
        if at & 1 or at == last:
            before, after = node(step, before), node(step, after)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            after = node(after, step)
        at, last = at >> 1, last >> 1
    return last == 0 and before == old_root and after == new_root


def _split(count: int) -> int:
    """The largest power of two below ``count``."""
    return 1 << (count - 1).bit_length() - 1


def _range(low: int, high: int, subtrees: Subtrees) -> bytes:
    """The root of entries ``low`` to ``high``, a range that some split of a tree begins."""
    frontier: list[bytes] = []
    while low < high:
        # As large a subtree as begins here and fits.
        height = (high - low).bit_length() - 1
        if low:
            height = min(height, (low & -low).bit_length() - 1)
        frontier.append(subtrees(height, low >> height))
        low += 1 << height
    found = frontier.pop()
    while frontier:
        found = node(frontier.pop(), found)
    return found
