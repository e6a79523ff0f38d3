"""What a container may know of itself and cannot find out: a small file that the engine keeps and its guest has mapped.

The guest's process makes the file while the container is created, if its guest asks for such things at all, and maps it
for reading only. The engine amends it: at each transition of the container's life, and when its limits change.

Of two slots one is valid: the last bit of a generation says which. An amendment is written to the other, then the
generation is raised: a reader that finds it unchanged after reading has read one state, and a writer that is killed
leaves the one before.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from engines.base import Step, Trust
from forgeone_shim import abi
from forgeone_shim.errors import InternalError, syscall_error

NAME: Final = "card"

_MAGIC: Final = b"F1CARD\x00\x01"
_GENERATION: Final = 8
_SLOTS: Final = (64, 2048)
_SIZE: Final = 4096
_STEPS_MAX: Final = 64
# State, number of steps; the limits and the steps follow.
_HEAD: Final = struct.Struct("<BxxxI")
_SHA256: Final = "sha256:"
# Of a slot: behind as many steps as there can be. Who knows nothing of it leaves nought there.
_TRUST_AT: Final = 1536
# A writer that amends without pause cannot keep a reader for ever.
_ATTEMPTS: Final = 100
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]


class Identity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who a container is, for good: no part of the file."""

    id: str
    name: str
    pod_id: str


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """As ``struct forgeone_limits`` of the interface has them; 0: none."""

    memory: int = 0
    linear_memory: int = 0
    cpu_quota: int = 0
    cpu_period: int = 0
    cpu_shares: int = 0
    cpu_budget: int = 0


@dataclass(frozen=True, slots=True)
class Card:
    """``steps`` are the latest ones, oldest first. ``trust`` is as it was at one of them."""

    state: str = abi.STATES[0]
    limits: Limits = field(default_factory=Limits)
    steps: tuple[Step, ...] = ()
    trust: Trust = field(default_factory=Trust)


class View:
    """The file as its guest's process sees it, mapped for as long as that lives; no descriptor is left open."""

    def __init__(self, fd: int) -> None:
        """``fd`` stays the caller's, who opened it for reading only. Raises OSError."""
        # Of what is not in the file there are no pages, and a look at it would end the process.
        if os.fstat(fd).st_size < _SIZE:
            raise OSError(errno.EINVAL, "it is too short")
        # Python's own keeps a descriptor, by which whoever breaks out of the guest could write the file.
        at = _libc.mmap(None, _SIZE, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
        if at is None or at == ctypes.c_void_p(-1).value:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._start = int(at)

    def _bytes(self, at: int, count: int) -> bytes:
        return ctypes.string_at(self._start + at, count)

    def read(self) -> Card:
        """:raises InternalError: it is amended faster than it can be read, or is no such file."""
        for _ in range(_ATTEMPTS):
            before = self._bytes(_GENERATION, 8)
            content = self._bytes(_SLOTS[before[0] & 1], _SLOTS[1] - _SLOTS[0])
            if self._bytes(_GENERATION, 8) == before:
                return _decode(content)
        raise InternalError("what the container is does not stand still")


def create(path: str, card: Card) -> View:
    """Make the file, and see it.

    :raises FileExistsError: somebody else has made it.
    :raises ForgeError: it cannot be made; nothing is left of it then.
    """
    # Whole from the moment it has its name.
    draft = f"{path}.{os.urandom(8).hex()}"
    try:
        fd = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, _SIZE)
            os.pwrite(fd, _MAGIC, 0)
            os.pwrite(fd, _encode(card), _SLOTS[0])
            view = _seen(draft)
            os.link(draft, path)
        finally:
            os.close(fd)
            os.unlink(draft)  # noqa: PTH108
    except FileExistsError:
        raise
    except OSError as error:
        raise syscall_error("write", path, error) from error
    return view


def _seen(path: str) -> View:
    """By a descriptor for reading: by another mprotect(2) would make the mapping one that can be written to.

    Raises OSError.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return View(fd)
    finally:
        os.close(fd)


def see(path: str) -> View | None:
    """One that another process of the container has made; ``None`` where none has.

    :raises ForgeError: it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise syscall_error("open", path, error) from error
    try:
        return View(fd)
    except OSError as error:
        raise InternalError(f"{path} cannot be mapped: {error.strerror}") from error
    finally:
        os.close(fd)


def take(path: str, step: Step) -> None:
    """Note a transition; where there is no such file nobody wants to know."""
    _amend(path, lambda card: replace(card, state=step.after, steps=(*card.steps, step)[-_STEPS_MAX:]))


def correct(path: str, state: str) -> None:
    """Have it say ``state``: of a transition that was cut off there may be no note."""
    _amend(path, lambda card: card if card.state == state else replace(card, state=state))


def trust(path: str, found: Trust) -> None:
    """Have it say how the container is known."""
    _amend(path, lambda card: replace(card, trust=found))


def limit(path: str, limits: Callable[[Limits], Limits]) -> None:
    """Have it say other limits."""
    _amend(path, lambda card: replace(card, limits=limits(card.limits)))


def _amend(path: str, change: Callable[[Card], Card]) -> None:
    with _opened(path) as fd:
        if fd is None:
            return
        # Of two forgeoneds during a hot reload, or of two threads of one.
        fcntl.flock(fd, fcntl.LOCK_EX)
        content = os.pread(fd, _SIZE, 0)
        if len(content) != _SIZE or content[:8] != _MAGIC:
            raise InternalError(f"{path} is not what it was written as")
        generation = int.from_bytes(content[_GENERATION : _GENERATION + 8], "little")
        before = _decode(content[_SLOTS[generation & 1] :])
        after = change(before)
        if after == before:
            return
        os.pwrite(fd, _encode(after), _SLOTS[(generation + 1) & 1])
        os.pwrite(fd, (generation + 1).to_bytes(8, "little"), _GENERATION)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int | None]:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise syscall_error("open", path, error) from error
    try:
        yield fd
    except OSError as error:
        raise syscall_error("write", path, error) from error
    finally:
        os.close(fd)


def _encode(card: Card) -> bytes:
    head = _HEAD.pack(abi.STATES.index(card.state), len(card.steps))
    told = head + packed(card.limits) + packed_steps(card.steps)
    return told.ljust(_TRUST_AT, b"\0") + packed_trust(card.trust)


def packed(limits: Limits) -> bytes:
    """``struct forgeone_limits``."""
    return abi.LIMITS.pack(
        limits.memory,
        limits.linear_memory,
        limits.cpu_quota,
        limits.cpu_period,
        limits.cpu_shares,
        limits.cpu_budget,
    )


def packed_trust(found: Trust) -> bytes:
    """``struct forgeone_trust``."""
    return abi.TRUST.pack(_digest(found.fingerprint), _digest(found.contract), found.entropy, found.score)


def packed_steps(steps: Sequence[Step]) -> bytes:
    """An array of ``struct forgeone_transition``."""
    return b"".join(
        abi.TRANSITION.pack(
            one.at, abi.STATES.index(one.before), abi.EVENTS.index(one.event), abi.STATES.index(one.after)
        )
        for one in steps
    )


def _decode(content: bytes) -> Card:
    state, count = _HEAD.unpack_from(content)
    at = _HEAD.size + abi.LIMITS.size
    try:
        steps = [
            Step(when, abi.STATES[before], abi.EVENTS[event], abi.STATES[after])
            for when, before, event, after in (
                abi.TRANSITION.unpack_from(content, at + place * abi.TRANSITION.size)
                for place in range(min(count, _STEPS_MAX))
            )
        ]
        limits = Limits(*abi.LIMITS.unpack_from(content, _HEAD.size))
        return Card(abi.STATES[state], limits, tuple(steps), _trust(content))
    except IndexError as error:
        raise InternalError("what is known of the container is of another version") from error


def _trust(content: bytes) -> Trust:
    fingerprint, contract, entropy, score = abi.TRUST.unpack_from(content, _TRUST_AT)
    return Trust(fingerprint=_text(fingerprint), contract=_text(contract), entropy=entropy, score=score)


def _digest(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix(_SHA256))


def _text(digest: bytes) -> str:
    """No digest is nought: so says who has none."""
    return f"{_SHA256}{digest.hex()}" if any(digest) else ""
