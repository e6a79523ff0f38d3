"""What the database knows of the log."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from forgeone_shim.audit.ledger import Damage, Ledger, Mark, read_mark
from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.state.store import StateStore
from tests.unit.audit.logs import Node

ONE, TWO = Mark("o", 1, "AA=="), Mark("o", 2, "AA==")


def test_a_mark_is_read_beside_forgeoned_and_without_it(node: Node) -> None:
    node.start()
    node.write(2)
    database = node.root / "forgeone.db"
    mark = node.ledger.mark()
    assert mark is not None
    assert mark.size == 3
    assert read_mark(database) == mark
    node.close()
    node.store.close()
    assert read_mark(database) == mark


def test_no_database_has_no_mark(tmp_path: Path) -> None:
    assert read_mark(tmp_path / "none") is None


def test_what_is_no_database_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"x" * 5000)
    with pytest.raises(FailedPrecondition, match="cannot be read"):
        read_mark(tmp_path / "db")


def test_a_mark_that_somebody_else_moved_is_not_moved_again(tmp_path: Path) -> None:
    ledger = Ledger(StateStore(tmp_path / "db"))
    assert ledger.save(ONE, [None])
    assert not ledger.save(TWO, [None])
    assert ledger.mark() == ONE
    assert ledger.save(TWO, [None, ONE])


def test_a_mark_is_known_again_however_it_was_written(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "db")
    ledger = Ledger(store)
    store.put("audit", "mark", msgspec.Raw(msgspec.json.format(msgspec.json.encode(ONE))))
    assert ledger.save(TWO, [ONE])
    assert ledger.mark() == TWO


def test_damage_is_not_forgotten_for_more_damage(tmp_path: Path) -> None:
    ledger = Ledger(StateStore(tmp_path / "db"))
    for _ in range(2):
        ledger.report(Damage("it is gone", "/a"))
    ledger.report(Damage("it was cut", "/b"))
    assert ledger.damage() == Damage("it is gone (/a); then it was cut", "/b")
    ledger.accept("o", ("entry 4",))
    assert ledger.damage() is None
    ledger.accept("o", ("entry 5",))
    assert ledger.accepted("o") == ("entry 4", "entry 5")
    assert ledger.accepted("another") == ()
