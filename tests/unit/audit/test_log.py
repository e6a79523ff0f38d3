"""The log: what is durable and when, and that nothing is missing or changed without being noticed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from forgeone_shim.audit import log as logs
from forgeone_shim.audit import merkle, note, tiles, wal
from forgeone_shim.audit.entry import Entry
from forgeone_shim.audit.ledger import Mark
from forgeone_shim.audit.log import AuditLog
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from tests.unit.audit.logs import SOON, Node, entry, flip, soon


def test_an_entry_is_in_the_log_once_its_ticket_says_so(node: Node) -> None:
    log = node.start()
    ticket = log.append(entry(5))
    assert ticket.wait(soon()) == f"audit:{ticket.index}"
    after = node.killed()
    found = after.read()
    assert found.entry(ticket.index) == node.read().entry(ticket.index)
    assert b"container/5" in found.entry(ticket.index)
    assert found.signed.signers == node.verifiers(log.origin)


def test_entries_are_in_the_order_in_which_they_came(node: Node) -> None:
    log = node.start()
    tickets = [log.append(entry(number)) for number in range(500)]
    tickets[-1].wait(soon())
    assert [one.index for one in tickets] == list(range(1, 501))
    assert [one.subject for one in node.events()][1:] == [f"container/{number}" for number in range(500)]


def test_many_threads_share_a_group(node: Node) -> None:
    log = node.start()
    ids: list[str] = []

    def work(number: int) -> None:
        ids.append(log.append(entry(number)).wait(soon()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(ids, key=lambda one: int(one[6:])) == [f"audit:{number}" for number in range(1, 51)]
    assert node.read().size == 51


def test_a_barrier_waits_for_what_others_appended(node: Node) -> None:
    log = node.start()
    tickets = [log.append(entry(number)) for number in range(10)]
    log.barrier(soon())
    for one in tickets:
        one.wait(Deadline.after(0))


@pytest.mark.parametrize("count", [0, 1, 255, 256, 600])
def test_a_log_goes_on_after_it_was_closed(node: Node, count: int) -> None:
    origin = node.start().origin
    if count:
        node.write(count, together=True)
    node.close()
    before = node.read()
    assert (before.size, before.groups) == (count + 1, ())
    again = node.start()
    assert (again.origin, again.problem()) == (origin, "")
    node.write(3)
    assert node.read().root(count + 1) == before.signed.checkpoint.root


@pytest.mark.parametrize("count", [1, 255, 300])
def test_a_log_goes_on_after_a_kill(node: Node, count: int) -> None:
    node.start()
    node.write(count, together=count > 10)
    after = node.killed()
    again = after.start()
    assert again.problem() == ""
    after.write(2)
    after.close()
    assert after.types() == ["audit.created", *["container.started"] * (count + 2)]


def test_segments_are_used_again_and_again(node: Node) -> None:
    node.start()
    # Three times what both segments hold.
    for _ in range(12):
        node.write(20, together=True, size=2000)
        for _ in range(8):
            node.write(30, together=True, size=60_000)
    assert node.log is not None
    assert node.read().size == 12 * 260 + 1
    node.close()
    assert node.start().problem() == ""
    assert [one.id for one in node.events()] == [str(number) for number in range(12 * 260 + 1)]


def test_what_an_entry_says_is_never_taken_for_a_group(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "SEGMENT", 16 * wal.BLOCK)
    monkeypatch.setattr(wal, "MAX_GROUP", 4 * wal.BLOCK)
    log = node.start()
    text = "FORGEAL1" * 256
    for shift in range(8):
        # Each beginning of a block is reached by one of them.
        said = {"shift": "x" * shift, "texts": [text] * 4}
        log.append(Entry(type="denied", subject="container/1", data=said)).wait(soon())
    # Written over, a large group leaves blocks of its middle.
    for _ in range(32):
        node.write(1)
        assert not node.read().torn


def test_the_tiles_are_a_log_of_their_own(node: Node) -> None:
    node.start()
    node.write(300, together=True)
    node.close()
    names = {str(path.relative_to(node.directory)) for path in node.directory.rglob("*") if path.is_file()}
    # 301 entries; the parts of what is whole are gone.
    assert names - {"wal/0", "wal/1"} == {
        "checkpoint",
        "tile/0/000",
        "tile/0/001.p/45",
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/45",
    }
    shutil.rmtree(node.directory / "wal")
    assert node.read().size == 301


def test_files_are_their_owners_alone(node: Node) -> None:
    node.start()
    node.write(3)
    node.close()
    for path in [*node.directory.rglob("*"), node.keys / "node.pem"]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert (node.keys / "node.pub").stat().st_mode & 0o777 == 0o644


# -- one writer


def test_a_second_writer_is_refused(node: Node) -> None:
    node.start()
    with pytest.raises(FailedPrecondition, match="held by another process"):
        AuditLog.open(node.directory, node.keys, node.ledger, name="node")


def test_two_writers_that_got_past_the_lock_are_found(node: Node) -> None:
    first = node.start()
    node.write(2)
    # A lock that somebody removed locks nobody out.
    (node.root / logs.LOCK).unlink()
    second = AuditLog.open(node.directory, node.keys, node.ledger, name="node")
    try:
        for number in range(3):
            second.append(entry(number, 100)).wait(soon())
            first.append(entry(number, 200)).wait(soon())
        with pytest.raises(FailedPrecondition, match="two processes write it"):
            first.require()
        after = node.killed()
        assert after.start().problem().startswith("the audit log was damaged")
        after.close()
    finally:
        second.close()


# -- damage


def damaged(node: Node) -> str:
    """What the next start finds, having gone on with another log."""
    log = node.start()
    with pytest.raises(FailedPrecondition, match="forge audit accept"):
        log.require()
    node.write(1)
    first = node.events()[0]
    assert first.type == "dev.forgeone.audit.created"
    assert Path(first.data["kept"]).name.startswith("audit.damaged-")
    return str(first.data["damaged"])


def test_a_flipped_byte_in_a_group_is_found(node: Node) -> None:
    node.start()
    node.write(5)
    after = node.killed()
    # The third group's entry.
    flip(after.directory / "wal" / "0", 2 * wal.BLOCK + 500)
    assert "entries 2 to 2 are missing" in damaged(after)
    after.close()


def test_a_flipped_byte_in_the_last_group_is_found(node: Node) -> None:
    node.start()
    node.write(5)
    after = node.killed()
    flip(after.directory / "wal" / "0", 5 * wal.BLOCK + 500)
    assert "it has 5 entries, and had 6" in damaged(after)
    after.close()


@pytest.mark.parametrize("name", ["tile/0/000.p/11", "tile/entries/000.p/11", "checkpoint"])
def test_a_flipped_byte_at_the_right_edge_is_found(node: Node, name: str) -> None:
    node.start()
    node.write(10)
    node.close()
    flip(node.directory / name, 40)
    damaged(node)


@pytest.mark.parametrize("name", ["tile/0/000.p/11", "tile/entries/000.p/11"])
def test_a_missing_file_is_found(node: Node, name: str) -> None:
    node.start()
    node.write(10)
    node.close()
    (node.directory / name).unlink()
    damaged(node)


def test_a_missing_checkpoint_is_made_up_for_by_what_was_written_ahead_or_found(node: Node) -> None:
    node.start()
    node.write(10)
    node.close()
    (node.directory / "checkpoint").unlink()
    assert node.start().problem() == ""
    node.close()
    (node.directory / "checkpoint").unlink()
    shutil.rmtree(node.directory / "wal")
    assert "it is gone" in damaged(node)


def test_a_checkpoint_that_cannot_be_read_is_found(node: Node) -> None:
    node.start()
    node.write(3)
    node.close()
    (node.directory / "checkpoint").unlink()
    (node.directory / "checkpoint").mkdir()
    assert "Is a directory" in damaged(node)


def test_a_removed_tail_is_found(node: Node) -> None:
    node.start()
    node.write(5)
    after = node.killed()
    with (after.directory / "wal" / "0").open("r+b") as file:
        file.seek(4 * wal.BLOCK)
        file.write(bytes(wal.SEGMENT - 4 * wal.BLOCK))
    assert "it has 4 entries, and had 6" in damaged(after)
    after.close()


def test_a_log_that_was_rolled_back_is_found(node: Node) -> None:
    node.start()
    node.write(5)
    node.close()
    shutil.copytree(node.directory, node.root / "older")
    node.start()
    node.write(5)
    node.close()
    shutil.rmtree(node.directory)
    (node.root / "older").rename(node.directory)
    assert "it has 6 entries, and had 11" in damaged(node)


def test_a_log_that_is_gone_is_found(node: Node) -> None:
    node.start()
    node.write(5)
    node.close()
    shutil.rmtree(node.directory)
    assert "it is gone: it had 6 entries" in damaged(node)


def test_a_log_of_another_key_is_found(node: Node) -> None:
    node.start()
    node.write(5)
    node.close()
    shutil.rmtree(node.keys)
    assert "no trusted key signed it" in damaged(node)


def test_another_log_in_its_place_is_found(node: Node, tmp_path: Path) -> None:
    node.start()
    node.write(5)
    node.close()
    shutil.rmtree(node.directory)
    node.store.delete("audit", "mark")
    mark = node.ledger.mark()
    assert mark is None
    node.start()
    node.write(20)
    newer = node.ledger.mark()
    node.close()
    assert newer is not None
    shutil.rmtree(node.directory)
    node.store.delete("audit", "mark")
    node.start()
    node.write(30)
    node.close()
    node.store.put("audit", "mark", newer)
    assert f", and was {newer.origin}" in damaged(node)


def test_flipped_bytes_far_from_the_edge_are_found_soon_after_a_start(node: Node) -> None:
    node.start()
    node.write(600, together=True)
    node.close()
    flip(node.directory / "tile/entries/000", 1000)
    for _ in range(2):
        log = node.start()
        _eventually(lambda log=log: "is not the one that was logged" in log.problem())
        with pytest.raises(FailedPrecondition, match="forge audit accept"):
            log.require()
        log.barrier(soon())
        assert "audit.damaged" in node.types()[-3:]
        node.close()
    log = node.start()
    _eventually(lambda: bool(log.problem()))
    log.accept(soon())
    node.close()
    # What was accepted is no news, and hides none.
    log = node.start()
    log._threads[-1].join(10)
    log.require()
    node.close()
    flip(node.directory / "tile/0/001", 1000)
    log = node.start()
    _eventually(lambda: "tile 1 of level 0 is not the one that was signed" in log.problem())
    assert "that was logged" not in log.problem()


def _eventually(done: Callable[[], bool]) -> None:
    until = soon()
    while not done():
        until.check("before it was found")
        threading.Event().wait(0.01)


def test_damage_is_remembered_until_somebody_accepts_it(node: Node) -> None:
    node.start()
    node.write(5)
    node.close()
    shutil.rmtree(node.directory)
    for _ in range(2):
        log = node.start()
        assert "it is gone" in log.problem()
        node.close()
    log = node.start()
    log.accept(soon())
    log.require()
    assert log.problem() == ""
    node.close()
    log = node.start()
    log.require()
    assert node.types() == ["audit.created", "audit.accepted"]


def test_where_damage_is_only_reported_things_start(node: Node) -> None:
    node.start()
    node.write(5)
    node.close()
    shutil.rmtree(node.directory)
    log = node.start(refuse=False)
    log.require()
    assert "it is gone" in log.problem()


def test_what_was_being_written_at_a_kill_is_left_out_and_told(node: Node) -> None:
    node.start()
    node.write(3)
    after = node.killed()
    # A group that nobody was told of: its first block came to the disk, and not its second.
    torn = wal.encode(wal.Group(4, (b"x" * 2 * wal.BLOCK,), b"n"))[: wal.BLOCK]
    with (after.directory / "wal" / "0").open("r+b") as file:
        file.seek(4 * wal.BLOCK)
        file.write(torn)
    log = after.start()
    assert log.problem() == ""
    after.write(1)
    assert after.types() == ["audit.created", *["container.started"] * 3, "audit.torn", "container.started"]
    after.close()


# -- a disk that does not take it


def fail(monkeypatch: pytest.MonkeyPatch, failing: threading.Event) -> None:
    write = wal.Segments.write

    def attempt(self: wal.Segments, data: bytes, end: int) -> None:
        if failing.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, data, end)

    monkeypatch.setattr(wal.Segments, "write", attempt)


def test_a_disk_that_is_full_is_said_and_nothing_is_lost(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = threading.Event()
    fail(monkeypatch, failing)
    log = node.start()
    node.write(1)
    failing.set()
    tickets = [log.append(entry(number)) for number in range(5)]
    for one in tickets:
        with pytest.raises(Unavailable, match="No space left on device"):
            one.wait(soon())
    with pytest.raises(Unavailable, match="No space left on device"):
        log.require()
    assert "No space left" in log.problem()
    failing.clear()
    late = log.append(entry(6))
    _eventually_durable(log, late.index + 1)
    log.require()
    assert node.types() == ["audit.created", *["container.started"] * 7]


def _eventually_durable(log: AuditLog, size: int) -> None:
    until = soon()
    while True:
        until.check("before the log was written again")
        try:
            log.wait(size, until)
            return
        except Unavailable:
            threading.Event().wait(0.02)


def test_who_waits_no_longer_than_a_deadline_is_told(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    held, begun, write = threading.Event(), threading.Event(), wal.Segments.write

    def slow(self: wal.Segments, data: bytes, end: int) -> None:
        begun.set()
        held.wait(SOON)
        write(self, data, end)

    log = node.start()
    node.write(1)
    monkeypatch.setattr(wal.Segments, "write", slow)
    ticket = log.append(entry(1))
    writer = threading.Thread(target=ticket.wait, args=(soon(),))
    writer.start()
    assert begun.wait(SOON)
    for one in (ticket, log.append(entry(2))):
        with pytest.raises(DeadlineExceeded):
            one.wait(Deadline.after(0.05))
    held.set()
    writer.join()
    one.wait(soon())


def test_tiles_that_cannot_be_written_hold_up_nobody(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BEHIND", 0.0)
    failing, write = threading.Event(), logs.Tiler.write

    def attempt(self: logs.Tiler, groups: list[wal.Group]) -> None:
        if failing.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, groups)

    monkeypatch.setattr(logs.Tiler, "write", attempt)
    node.start()
    failing.set()
    node.write(20)
    failing.clear()
    node.close()
    assert node.read().settled.size == 21


def test_tiles_that_cannot_be_written_twice_are_written_soon_after(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "SEGMENT", 8 * wal.BLOCK)
    failed, full, write, room = [0], threading.Event(), logs.Tiler.write, wal.Segments.room

    def attempt(self: logs.Tiler, groups: list[wal.Group]) -> None:
        failed[0] += 1
        if failed[0] <= 2:
            assert full.wait(SOON)
            raise OSError(errno.EIO, "Input/output error")
        write(self, groups)

    def asked(self: wal.Segments, length: int, settled: int) -> bool:
        there_is = room(self, length, settled)
        if not there_is:
            full.set()
        return there_is

    monkeypatch.setattr(logs.Tiler, "write", attempt)
    monkeypatch.setattr(wal.Segments, "room", asked)
    # Nobody who waits for room looks again before everything is too late.
    monkeypatch.setattr(logs, "_LAST_RETRY", 2 * SOON)
    log = node.start()
    for number in range(40):
        log.append(entry(number)).wait(soon())
    assert failed[0] > 2


def test_tiles_that_cannot_be_written_for_long_stop_the_log_and_lose_nothing(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_LAST_RETRY", 0.1)
    failing, write = threading.Event(), logs.Tiler.write

    def attempt(self: logs.Tiler, groups: list[wal.Group]) -> None:
        if failing.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, groups)

    monkeypatch.setattr(logs.Tiler, "write", attempt)
    log = node.start()
    failing.set()
    count = 1
    with pytest.raises(Unavailable, match="tiles"):
        # Until both segments are full.
        for _ in range(100):
            tickets = [log.append(big()) for _ in range(8)]
            count += 8
            tickets[-1].wait(soon())
    failing.clear()
    _eventually_durable(log, count)
    node.close()
    assert node.read().size == count


def big() -> Entry:
    return Entry(type="x", subject="s", data={"list": ["y" * 2000] * 30})


def test_a_store_that_fails_does_not_stop_the_log(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    log = node.start()
    node.write(1)

    save = node.ledger.save

    def fail(mark: Mark, before: Sequence[Mark | None]) -> bool:
        # Some errors come before the commit, some after it.
        if mark.size % 2:
            save(mark, before)
        raise OSError("database is locked")

    monkeypatch.setattr(node.ledger, "save", fail)
    for number in range(5):
        log.append(entry(number)).wait(soon())
    monkeypatch.undo()
    log.append(entry(1)).wait(soon())
    log.require()
    assert log.problem() == ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_a_writer_that_died(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    log = node.start()
    node.write(1)

    def die(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(wal.Segments, "write", die)
    ticket = log.append(entry(1))
    until = soon()
    while "closed" not in log.problem():
        until.check("before the writer died")
        threading.Event().wait(0.02)
    with pytest.raises(Unavailable, match="closed"):
        ticket.wait(soon())
    with pytest.raises(Unavailable, match="closed"):
        log.require()
    monkeypatch.undo()
    node.close()
    assert node.start().problem() == ""


@pytest.mark.parametrize("behind", [False, True])
def test_what_somebody_was_cut_off_in_writing_others_write_once(
    node: Node, monkeypatch: pytest.MonkeyPatch, *, behind: bool
) -> None:
    log = node.start()
    node.write(1)
    where = (node.ledger, "save") if behind else (wal.Segments, "write")

    def cut(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(*where, cut)
    with pytest.raises(KeyboardInterrupt):
        log.append(entry(1)).wait(soon())
    _eventually_durable(log, 3)
    node.write(1)
    log.require()
    assert node.types() == ["audit.created", *["container.started"] * 3]


def test_what_nobody_waits_for_is_written_all_the_same(node: Node) -> None:
    log = node.start()
    node.write(1)
    for number in range(3):
        index, until = log.append(entry(number)).index, soon()
        while node.read().size <= index:
            until.check("before it was written")
            threading.Event().wait(0.01)


def test_whoever_waits_writes(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LINGER", 2 * SOON)
    log = node.start()
    for number in range(3):
        assert log.append(entry(number)).wait(soon())
    # Whose time is over too: what it did is written all the same.
    log.append(entry(3)).wait(Deadline.after(0))
    node.close()
    assert node.read().size == 5


def test_after_the_end_nothing_is_durable(node: Node) -> None:
    log = node.start()
    node.close()
    with pytest.raises(Unavailable, match="closed"):
        log.append(entry(1)).wait(soon())


# -- what is given up


def test_a_log_gives_up_its_oldest_entries_and_says_so(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "BEHIND", 0.0)
    log = node.start(keep=200_000)
    for _ in range(8):
        node.write(256, together=True, size=300)
        _tiled(log)
    node.write(1)
    _tiled(log)
    node.close()
    found = node.read()
    pruned = [one for one in node.events() if one.type == "dev.forgeone.audit.pruned"]
    assert 0 < found.first <= pruned[-1].data["before"]
    assert not (node.directory / tiles.path(0, 0)).exists()
    assert sum(size for _, size in found.files.bundles()) < 400_000
    # Consistency of what stays can be shown all the same.
    old = found.first + 1
    proof = merkle.consistency(old, found.size, found.subtree)
    assert merkle.consistent(old, found.size, found.root(old), found.signed.checkpoint.root, proof)


def _tiled(log: AuditLog) -> None:
    with log._done:
        assert log._done.wait_for(lambda: log._settled >= log._durable, 10)


# -- keys


def test_a_key_is_replaced_and_both_say_so(node: Node) -> None:
    log = node.start()
    node.write(3)
    old = log.verifier
    new = log.rotate(soon())
    assert new != old
    assert log.verifier == new
    node.write(3)
    assert node.read().signed.signers == (new,)
    node.close()
    again = node.start()
    assert (again.verifier, again.problem()) == (new, "")
    assert [path.name for path in sorted(node.keys.iterdir())] == ["node.pem", "node.pub"]


def test_a_rotation_cut_off_after_its_entry_counts(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    log = node.start()
    node.write(3)

    def cut(_: object) -> None:
        raise OSError("cut off")

    monkeypatch.setattr(logs.NodeKey, "adopt", cut)
    new = log.rotate(soon())
    monkeypatch.undo()
    node.write(1)
    after = node.killed()
    again = after.start()
    assert (again.verifier, again.problem()) == (new, "")
    after.close()


def test_whoever_verifies_knows_the_key_while_it_is_replaced(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    log = node.start()
    node.write(3)
    replace = Path.replace

    def cut(path: Path, target: Path) -> Path:
        if path.name == "node.next.pem":
            raise OSError("cut off")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", cut)
    new = log.rotate(soon())
    node.write(1)
    assert node.read().signed.signers == (new,)
    with pytest.raises(Unavailable, match="being replaced already"):
        log.rotate(soon())
    monkeypatch.undo()
    node.close()
    assert node.start().verifier == new
    assert node.log is not None
    assert node.log.rotate(soon()) != new


def test_a_rotation_cut_off_before_its_entry_never_was(node: Node) -> None:
    log = node.start()
    old = log.verifier
    node.write(3)
    node.close()
    logs.NodeKey(node.keys).stage()
    again = node.start()
    assert (again.verifier, again.problem()) == (old, "")
    assert not (node.keys / "node.next.pem").exists()


def test_a_key_that_others_can_read_is_refused(node: Node) -> None:
    node.start()
    node.close()
    (node.keys / "node.pem").chmod(0o644)
    with pytest.raises(FailedPrecondition, match="others than its owner can read it"):
        node.start()


def test_a_key_that_was_being_made_at_a_kill_is_made_anew(node: Node) -> None:
    node.keys.mkdir()
    (node.keys / "node.pem.new").write_bytes(b"half")
    node.start()
    node.write(1)
    assert note.text_of(node.read().signed.data, "it")


# -- kill -9

_WRITER = """
import sys
from pathlib import Path
from forgeone_shim.audit.entry import Entry
from forgeone_shim.audit.ledger import Ledger
from forgeone_shim.audit.entry import Entry
from forgeone_shim.audit.ledger import Mark
from forgeone_shim.audit.log import AuditLog
from forgeone_shim.deadline import Deadline
from forgeone_shim.state.store import StateStore

root = Path(sys.argv[1])
log = AuditLog.open(root / "audit", root / "keys", Ledger(StateStore(root / "forgeone.db")), name="node")
while True:
    ticket = log.append(Entry(type="container.started", subject="container/1", data={"x": ["y" * 2000] * 15}))
    print(ticket.wait(Deadline.after(10)), flush=True)
"""


def test_what_was_acknowledged_outlives_kill_9_at_any_moment(tmp_path: Path) -> None:
    told = 0
    for turn in range(4):
        with subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(37 * (turn + 1)):
                told = int(writer.stdout.readline().strip().removeprefix(b"audit:"))
            os.kill(writer.pid, signal.SIGKILL)
            rest = writer.stdout.read().split()
            told = int(rest[-1].removeprefix(b"audit:")) if rest else told
        node = Node(tmp_path)
        log = node.start()
        assert log.problem() == ""
        assert node.read().size > told
        node.close()
        node.store.close()
