"""Verifying looks at every byte: what a start does not see is found here."""

from __future__ import annotations

import random
from pathlib import Path

import pymerkle
import pytest

from forgeone_shim.audit import checkpoint, keys, merkle, snapshot, tiles, verify
from forgeone_shim.audit.entry import Entry
from forgeone_shim.audit.note import BadNote, Verifier
from forgeone_shim.audit.snapshot import Damaged
from forgeone_shim.errors import ForgeError
from tests.unit.audit.logs import Node, files, flip, soon
from tests.unit.audit.test_note import PETER, peter


@pytest.fixture
def written(node: Node) -> Node:
    """Whole tiles, parts of tiles, and entries ahead of both."""
    node.start()
    node.write(600, together=True)
    node.close()
    node.start()
    node.write(20, together=True)
    return node


def of_now(node: Node) -> list[Path]:
    """The files that the newest checkpoint speaks of, and not those of an earlier one."""
    parts = {f"{number:03d}.p/{width}" for _, number, width in tiles.levels(node.read().size)}
    found = (path for path in files(node.directory) if path.parent.name != "wal")
    return [path for path in found if path.parent.suffix != ".p" or f"{path.parent.name}/{path.name}" in parts]


def test_a_log_that_is_as_it_was_written_is_sound(written: Node) -> None:
    looked: list[int] = []
    report = verify.verify(written.read(), progress=looked.append)
    assert (report.entries, report.first, looked[-1]) == (621, 0, 621)
    assert verify.verify(written.read(), since=615).entries == 6
    assert verify.verify(written.read(), since=621).entries == 0


def test_another_implementation_comes_to_the_same_root(written: Node) -> None:
    found = written.read()
    oracle = pymerkle.InmemoryTree(algorithm="sha256")
    for data in found.entries(0):
        oracle.append_entry(data)
    assert oracle.get_root() == found.signed.checkpoint.root
    proof = oracle.prove_inclusion(5, found.size)
    pymerkle.verify_inclusion(merkle.leaf(found.entry(4)), found.signed.checkpoint.root, proof)


def test_every_flipped_byte_is_found(written: Node) -> None:
    written.close()
    rng = random.Random(7)
    for path in of_now(written):
        for at in {0, path.stat().st_size - 1, *(rng.randrange(path.stat().st_size) for _ in range(4))}:
            flip(path, at)
            with pytest.raises(ForgeError):
                verify.verify(written.read())
            flip(path, at)
    assert verify.verify(written.read()).entries == 621


def test_every_missing_file_is_found(written: Node) -> None:
    written.close()
    for path in of_now(written):
        data = path.read_bytes()
        path.unlink()
        # Nothing is left to read without its checkpoint.
        with pytest.raises((ForgeError, AssertionError)):
            verify.verify(written.read())
        path.write_bytes(data)
    assert verify.verify(written.read()).entries == 621


def test_a_wrong_entry_and_hash_that_fit_each_other_are_found(written: Node) -> None:
    written.close()
    found = written.read()
    entries = found.bundle(0)
    entries[3] = entries[3].replace(b"started", b"stopped")
    (written.directory / tiles.path(tiles.ENTRIES, 0)).write_bytes(tiles.bundle(entries))
    hashes = b"".join(map(verify.merkle.leaf, entries))
    (written.directory / tiles.path(0, 0)).write_bytes(hashes)
    with pytest.raises(Damaged, match="tile 0 of level 0"):
        verify.verify(written.read())


def test_a_checkpoint_that_was_kept_shows_a_log_that_was_rewritten(written: Node) -> None:
    log, found = written.log, written.read()
    assert log is not None
    kept = found.signed.data
    written.write(5)
    trusted = written.verifiers(log.origin)
    assert verify.check_earlier(written.read(), kept, trusted).checkpoint.size == 621
    forged = checkpoint.Checkpoint(log.origin, 600, bytes(32)).sign([log._signer])
    with pytest.raises(Damaged, match="first 600 entries are not those"):
        verify.check_earlier(written.read(), forged, trusted)
    longer = checkpoint.Checkpoint(log.origin, 10_000, bytes(32)).sign([log._signer])
    with pytest.raises(Damaged, match="it had 10000 entries, and has 626"):
        verify.check_earlier(written.read(), longer, trusted)
    with pytest.raises(BadNote):
        verify.check_earlier(
            written.read(), checkpoint.Checkpoint("PeterNeumann", 1, bytes(32)).sign([peter()]), trusted
        )


def test_a_key_that_was_pinned_leads_to_the_one_of_now(written: Node) -> None:
    log = written.log
    assert log is not None
    first = log.verifier
    second = log.rotate(soon())
    third = log.rotate(soon())
    report = verify.verify(written.read())
    assert report.rotations == [(first, second), (second, third)]
    for pinned in (first, second, third):
        verify.check_key(report, pinned)
    with pytest.raises(Damaged, match="did not sign it"):
        verify.check_key(report, Verifier.parse(PETER))


def test_a_rotation_that_the_old_key_did_not_sign_is_found(written: Node) -> None:
    log = written.log
    assert log is not None
    alone = keys.endorsement(log.origin, log._signer, log._signer)
    forged = alone.replace("key-rotation/v1", "key-rotation/v2")
    log.append(Entry(type="audit.key.rotated", subject="audit", data={"note": forged})).wait(soon())
    with pytest.raises(Damaged, match="entry 621"):
        verify.verify(written.read())


def test_an_entry_that_says_it_is_another_is_found(written: Node) -> None:
    log = written.log
    assert log is not None
    log._next += 1
    log.append(Entry(type="x", subject="s"))
    log.wait(622, soon())
    with pytest.raises(Damaged, match="entry 621: it is 622"):
        verify.verify(written.read())


def test_oldest_entries_that_somebody_removed_are_found(written: Node) -> None:
    written.close()
    for level in (tiles.ENTRIES, 0):
        (written.directory / tiles.path(level, 0)).unlink()
    assert written.read().first == 256
    with pytest.raises(Damaged, match="entries 0 to 255 are missing"):
        verify.verify(written.read())
    # Whoever asks for what is newer has it.
    assert verify.verify(written.read(), since=256).entries == 365


def test_no_log_is_no_snapshot(node: Node) -> None:
    assert snapshot.read(node.directory, node.verifiers) is None
