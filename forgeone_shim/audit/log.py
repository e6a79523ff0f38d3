"""The audit log of a node: entries in a Merkle tree, durable under a signed checkpoint before anybody is told of them.

What is queued is taken as one group, and made durable, with the checkpoint that the log has with it, by one write.
Whoever waits for an entry writes its group, unless another does already: to hand it to a thread and back would take
longer than the write. A thread writes what nobody waits for. Another moves groups into the tiles, in nobody's way.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog

from forgeone_shim.attestation.keys import SigningKey
from forgeone_shim.audit import entry as entries
from forgeone_shim.audit import keys, merkle, opening, wal
from forgeone_shim.audit.checkpoint import Checkpoint
from forgeone_shim.audit.entry import Entry
from forgeone_shim.audit.files import Files, sync_directory
from forgeone_shim.audit.keys import NodeKey
from forgeone_shim.audit.ledger import Damage, Ledger, Mark
from forgeone_shim.audit.merkle import Frontier
from forgeone_shim.audit.note import Signer, Verifier
from forgeone_shim.audit.scrub import scrub
from forgeone_shim.audit.snapshot import Snapshot
from forgeone_shim.audit.ticket import Ticket
from forgeone_shim.audit.tiler import Tiler
from forgeone_shim.audit.wal import Group, Segments
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, Unavailable, syscall_error

LOCK: Final = "audit.lock"
SUBJECT: Final = "audit"
BEHIND: Final = 30.0
"""Seconds after which entries are moved into the tiles although the segment has room."""

LINGER: Final = 0.01
"""Seconds after which an entry is written although nobody waits for it."""

_FIRST_RETRY, _LAST_RETRY = 0.1, 5.0
_MARKS: Final = 1000
_TOLD: Final = 3


@dataclass(frozen=True, slots=True)
class _Queued:
    data: bytes
    rotation: SigningKey | None = None
    since: float = field(default_factory=time.monotonic)


class _NoRoomError(Exception):
    """There is room once groups were moved into the tiles."""


@dataclass(frozen=True, slots=True)
class Options:
    """``keep``: how many bytes of entries are kept, 0: all of them. ``refuse``: nothing starts while damage stands."""

    keep: int = 0
    refuse: bool = True


class AuditLog:
    """Made by :meth:`open`; every method may be called from any thread."""

    def __init__(
        self, files: Files, key: NodeKey, ledger: Ledger, *, found: Snapshot | None, origin: str, options: Options
    ) -> None:
        self.origin = origin
        self._key, self._ledger, self._options = key, ledger, options
        self._signer = keys.signer(origin, key.current)
        self._out = structlog.get_logger("audit")
        self._frontier = Frontier() if found is None else _frontier(found)
        self._directory = files.directory
        self._segments = Segments(files.wal, () if found is None else found.groups)
        sync_directory(files.directory)
        self._tiler = Tiler(files, found)
        self._lock = threading.Lock()
        self._work, self._done, self._behind = (threading.Condition(self._lock) for _ in range(3))
        self._queue: deque[_Queued] = deque()
        self._next = self._durable = self._frontier.size
        self._settled = self._tiler.size
        self._ahead: list[Group] = [] if found is None else list(found.groups)
        self._stall = self._damage = ""
        self._closing = self._written = self._hurry = False
        # Somebody writes; the segments are full; the thread that writes sleeps until there is an entry.
        self._writing = self._full = self._resting = False
        self._ahead_bytes = 0
        self._prune = 0, 0
        # What the database may say: an error may come after the commit.
        self._marks = [ledger.mark()]
        self._rotating = threading.Lock()
        self._threads = [
            threading.Thread(target=self._write, name="audit", daemon=True),
            threading.Thread(target=self._tile, name="audit-tiles", daemon=True),
            *([threading.Thread(target=self._scrub, args=(found,), name="audit-scrub", daemon=True)] if found else ()),
        ]
        self._ended = threading.Event()
        self._in_place: tuple[str, ...] = ()
        self._lock_fd = -1

    @classmethod
    def open(
        cls, directory: Path, key_directory: Path, ledger: Ledger, *, name: str, options: Options | None = None
    ) -> AuditLog:
        """Take the log over and go on with it; begin one where there is none.

        A log that is not whole any more is moved aside and another one is begun, which says so.

        :param name: of the node, for the log's own name.
        :raises FailedPrecondition: another process writes it, or the node's key cannot be used.
        :raises InternalError: its files cannot be made.
        """
        lock = opening.take(directory.with_name(LOCK))
        try:
            key = NodeKey(key_directory)
            found, damage = opening.recover(directory, key, ledger.mark())
            if damage:
                opening.set_aside(directory, damage, ledger)
            directory.mkdir(mode=0o700, exist_ok=True)
            sync_directory(directory.parent)
            opening.finish_rotation(key, found)
            origin = found.origin if found else f"{opening.plain(name)}/forgeone/{secrets.token_hex(4)}"
            log = cls(Files(directory), key, ledger, found=found, origin=origin, options=options or Options())
        except OSError as error:
            os.close(lock)
            raise syscall_error("open", error.filename or directory, error) from None
        except BaseException:
            os.close(lock)
            raise
        log._begin(lock, found)
        return log

    def _begin(self, lock: int, found: Snapshot | None) -> None:
        self._lock_fd = lock
        damage = self._ledger.damage()
        if found is None:
            before = {} if damage is None else {"damaged": damage.reason, "kept": damage.kept}
            self.append(
                Entry(type="audit.created", subject=SUBJECT, data={"key": str(self._signer.verifier), **before})
            )
        elif found.torn:
            self.append(Entry(type="audit.torn", subject=SUBJECT, data={"at": found.size}))
        if damage is not None:
            self._tell(damage)
        for thread in self._threads:
            thread.start()

    # -- entries

    @property
    def verifier(self) -> Verifier:
        """What the newest checkpoint is verified with."""
        return self._signer.verifier

    def append(self, entry: Entry) -> Ticket:
        """Queue an entry; never blocks, never fails."""
        return self._append(entry, None)

    def _append(self, entry: Entry, rotation: SigningKey | None) -> Ticket:
        with self._work:
            index = self._next
            self._queue.append(_Queued(entries.encode(entry, self.origin, index), rotation))
            self._next += 1
            self._wake()
        return Ticket(index, self)

    def wait(self, size: int, deadline: Deadline) -> None:
        """Return once the first ``size`` entries are durable.

        The deadline is for waiting: a write that this thread makes itself takes as long as the disk does.

        :raises Unavailable: they cannot be written now. :raises DeadlineExceeded: they are not yet.
        """
        with self._done:
            while self._durable < size:
                if self._stall:
                    raise Unavailable(self._stall)
                if self._queue and not (self._writing or self._full):
                    self._write_group()
                    continue
                left = deadline.remaining()
                if left == 0:
                    raise DeadlineExceeded("the audit log is behind")
                self._done.wait(left)

    def barrier(self, deadline: Deadline) -> None:
        """The same of everything that was appended before this call."""
        # Written by others meanwhile, it is only more than need be waited for.
        if self._durable != self._next:
            self.wait(self._next, deadline)

    def require(self) -> None:
        """:raises Unavailable: nothing can be written now. :raises FailedPrecondition: it is not trusted."""
        if self._stall:
            raise Unavailable(self._stall)
        if self._damage and self._options.refuse:
            raise FailedPrecondition(self.problem(), fix="look into it, then: forge audit accept")

    def problem(self) -> str:
        """What an operator has to know of the log; empty: it is as it should be."""
        return self._stall or (self._damage and f"the audit log was damaged: {self._damage}")

    def accept(self, deadline: Deadline) -> None:
        """Somebody has looked into the damage: things may start again."""
        damage = self._damage
        if not damage:
            return
        self.append(Entry(type="audit.accepted", subject=SUBJECT, data={"damaged": damage})).wait(deadline)
        mark = self._ledger.mark()
        self._ledger.accept(self.origin, self._in_place)
        with self._work:
            self._damage = ""
            self._marks.append(mark)

    def rotate(self, deadline: Deadline) -> Verifier:
        """Sign with a new key from now on, which the log tells in an entry that both keys signed.

        The old one is gone when this returns.

        :raises Unavailable: the log cannot be written now; the key is replaced once it can.
        """
        with self._rotating:
            if self._key.next is not None:
                raise Unavailable("the key is being replaced already", fix="try again, or restart forgeoned")
            old, staged = self._signer, self._key.stage()
            new = keys.signer(self.origin, staged)
            data = {"old": str(old.verifier), "new": str(new.verifier)}
            data["note"] = keys.endorsement(self.origin, old, new)
            self._append(Entry(type="audit.key.rotated", subject=SUBJECT, data=data), staged).wait(deadline)
            return new.verifier

    def close(self) -> None:
        """Write what is queued, have the tiles hold everything, and let others have the log."""
        self._ended.set()
        with self._work:
            self._closing = True
            self._work.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        with self._done:
            while self._writing:
                self._done.wait()
        self._segments.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # -- the writer

    def _write(self) -> None:
        with self._work:
            try:
                self._write_what_is_left()
            finally:
                # However it ends: nobody waits for ever.
                self._written = True
                self._stall = self._stall or "the audit log is closed"
                self._done.notify_all()
                self._behind.notify()

    def _write_what_is_left(self) -> None:
        retry = _FIRST_RETRY
        while self._await_work():
            self._write_group(patient=True)
            if not self._stall:
                retry = _FIRST_RETRY
                continue
            if self._closing:
                return
            self._work.wait(retry)
            retry = min(2 * retry, _LAST_RETRY)

    def _await_work(self) -> bool:
        """Whether there is something that nobody has written in time; else there will be nothing more."""
        while True:
            if self._writing:
                self._done.wait()
            elif not self._queue:
                if self._closing:
                    return False
                self._resting = True
                self._work.wait()
                self._resting = False
            elif self._closing or self._full or self._stall:
                return True
            elif (left := self._queue[0].since + LINGER - time.monotonic()) > 0:
                self._work.wait(left)
            else:
                return True

    def _wake(self) -> None:
        # At other times it looks by itself; each time it wakes up, it takes the interpreter from somebody.
        if self._resting:
            self._resting = False
            self._work.notify()

    def _write_group(self, *, patient: bool = False) -> None:
        """Write what is queued as one group. Called with the lock, which others may have meanwhile.

        :param patient: wait for room; without it this is left to the thread that writes.
        """
        batch = self._take_batch()
        self._writing, self._full = True, False
        before = self._frontier
        try:
            self._lock.release()
            try:
                self._commit(batch, patient=patient)
            finally:
                self._lock.acquire()
        except BaseException as error:
            if self._frontier is before:
                self._queue.extendleft(reversed(batch))
            if not isinstance(error, Exception):
                raise
            self._failed(error)
        finally:
            self._writing, self._durable = False, self._frontier.size
            if self._frontier is not before and not self._written:
                self._stall = ""
            self._done.notify_all()
            if self._queue:
                self._wake()

    def _failed(self, error: Exception) -> None:
        # The thread that writes tries again.
        self._work.notify()
        if isinstance(error, _NoRoomError):
            self._full = True
            return
        if not self._stall:
            self._out.error("the audit log cannot be written, nothing starts", error=str(error))
        self._stall = f"the audit log cannot be written: {getattr(error, 'strerror', None) or error}"

    def _take_batch(self) -> list[_Queued]:
        """What is to be written together."""
        batch: list[_Queued] = []
        size = 0
        while self._queue and len(batch) < wal.MAX_COUNT and size < wal.MAX_GROUP:
            batch.append(self._queue.popleft())
            size += len(batch[-1].data)
            if batch[-1].rotation is not None:
                # The last that the old key signs.
                break
        return batch

    def _commit(self, batch: list[_Queued], *, patient: bool) -> None:
        frontier = self._frontier.copy()
        first = frontier.size
        for one in batch:
            frontier.push(merkle.leaf(one.data))
        checkpoint = Checkpoint(self.origin, frontier.size, frontier.root())
        rotation = batch[-1].rotation
        signers = [self._signer] if rotation is None else [self._signer, keys.signer(self.origin, rotation)]
        group = Group(first, tuple(one.data for one in batch), checkpoint.sign(signers))
        data = wal.encode(group)
        self._await_room(len(data), patient=patient)
        self._segments.write(data, group.end)
        with self._behind:
            self._frontier = frontier
            self._ahead.append(group)
            self._ahead_bytes += len(data)
            self._hurry = self._hurry or self._ahead_bytes > wal.SEGMENT // 2
            if self._hurry or len(self._ahead) == 1:
                self._behind.notify()
        if rotation is not None:
            self._adopt(signers[-1])
        self._remember(checkpoint)

    def _await_room(self, length: int, *, patient: bool) -> None:
        with self._done:
            while not self._segments.room(length, self._settled):
                self._hurry = True
                self._behind.notify()
                if not patient:
                    raise _NoRoomError
                if not self._done.wait(_LAST_RETRY):
                    raise TimeoutError("its tiles cannot be written")

    def _adopt(self, new: Signer) -> None:
        self._signer = new
        try:
            self._key.adopt()
        except Exception as error:
            # The log has the new key's signature: the next start finishes this.
            self._out.warning("the node's key was replaced, but not its file", error=str(error))

    def _remember(self, checkpoint: Checkpoint) -> None:
        mark = Mark.of(checkpoint)
        before, self._marks = self._marks, [*self._marks[-_MARKS:], mark]
        try:
            if self._ledger.save(mark, before):
                self._marks = [mark]
            elif not self._damage:
                found = Damage("two processes write it", str(self._directory))
                self._ledger.report(found)
                self._tell(found)
        except Exception as error:
            # It is in the log, and cannot be taken back; the next group's mark covers it.
            self._out.warning("how far the audit log came was not stored", error=str(error))

    def _tell(self, damage: Damage) -> None:
        self._out.error("the audit log was damaged", reason=damage.reason, kept=damage.kept)
        self._damage = f"{damage.reason} ({damage.kept})"

    def _scrub(self, found: Snapshot) -> None:
        """What a start does not look at, looked at beside everything else."""
        known = self._ledger.accepted(self.origin)
        reasons = tuple(one for one in scrub(found, self._ended) if one not in known)
        if not reasons:
            return
        self._in_place = reasons
        self.append(Entry(type="audit.damaged", subject=SUBJECT, data={"damaged": list(reasons)}))
        # Not stored: as long as it is there, and nobody has accepted it, each start finds it.
        self._tell(Damage("; ".join(reasons[:_TOLD]), str(self._directory)))

    # -- the tiles

    def _tile(self) -> None:
        retry = _FIRST_RETRY
        while groups := self._take_groups():
            try:
                self._tiler.write(groups)
                retry = _FIRST_RETRY
            except Exception as error:
                self._out.warning("tiles of the audit log were not written", error=str(error), retry_in_s=retry)
                with self._behind:
                    if self._written:
                        return
                    # Whatever the haste was for is still to be done, but no sooner because more comes meanwhile.
                    self._hurry, until = True, time.monotonic() + retry
                    while not self._written and (left := until - time.monotonic()) > 0:
                        self._behind.wait(left)
                retry = min(2 * retry, _LAST_RETRY)
                continue
            with self._done:
                del self._ahead[: len(groups)]
                self._settled = self._tiler.size
                self._done.notify_all()
            try:
                self._prune_when_told()
            except OSError as error:
                self._out.warning("old entries of the audit log were not given up", error=str(error))

    def _take_groups(self) -> list[Group]:
        """What is to be moved, once there is enough of it or it has waited for long; empty when all is done."""
        with self._behind:
            while not (self._ahead or self._written):
                self._behind.wait()
            until = time.monotonic() + BEHIND
            while not (self._hurry or self._written) and (left := until - time.monotonic()) > 0:
                self._behind.wait(left)
            self._hurry, self._ahead_bytes = False, 0
            return list(self._ahead)

    def _prune_when_told(self) -> None:
        """Give up what is too much, once the log itself says durably that it does."""
        told, first = self._prune
        if first and told < self._tiler.size:
            self._tiler.prune(first)
            self._prune = 0, 0
        elif self._options.keep and not first and (surplus := self._tiler.surplus(self._options.keep)):
            pruned = Entry(type="audit.pruned", subject=SUBJECT, data={"before": surplus})
            self._prune = self.append(pruned).index, surplus


def _frontier(found: Snapshot) -> Frontier:
    frontier = found.edge.frontier.copy()
    for group in found.groups:
        for one in group.entries:
            frontier.push(merkle.leaf(one))
    return frontier
