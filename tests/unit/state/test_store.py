"""Documents survive, keys are unique, transactions are whole, and no writer waits for the disk."""

import shutil
import sqlite3
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from forgeone_shim.errors import FailedPrecondition
from forgeone_shim.state.store import QUARANTINE, StateStore


@dataclass(frozen=True)
class Doc:
    name: str
    ports: tuple[int, ...] = ()


def test_what_was_put_is_there_after_reopening(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "db")
    store.put("pod", "a", Doc("a", (1, 2)))
    store.put("pod", "a", Doc("a", (3,)))
    store.put("other", "a", Doc("x"))
    store.close()
    again = StateStore(tmp_path / "db")
    assert again.get("pod", "a", Doc) == Doc("a", (3,))
    assert again.items("pod", Doc) == [("a", Doc("a", (3,)))]
    again.delete("pod", "a")
    again.delete("pod", "a")
    assert again.get("pod", "a", Doc) is None
    again.close()


def test_one_of_many_inserts_wins_across_connections(tmp_path: Path) -> None:
    stores = [StateStore(tmp_path / "db") for _ in range(4)]
    wins: list[int] = []

    def claim(index: int) -> None:
        wins.extend(key for key in range(50) if stores[index].insert("lease", str(key), Doc(str(index))))

    threads = [threading.Thread(target=claim, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == list(range(50))
    for store in stores:
        store.close()


def test_a_document_is_replaced_only_by_who_knows_what_is_there(tmp_path: Path) -> None:
    with closing(StateStore(tmp_path / "db")) as one, closing(StateStore(tmp_path / "db")) as other:
        assert not one.replace("kind", "key", ["new"], None)
        assert one.get("kind", "key", list) is None
        one.put("kind", "key", ["first"])
        assert other.replace("kind", "key", ["second"], ["first"])
        assert not one.replace("kind", "key", ["third"], ["first"])
        assert one.get("kind", "key", list) == ["second"]


def test_a_transaction_that_raises_leaves_nothing(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "db")
    with pytest.raises(RuntimeError), store.transaction():
        store.put("pod", "a", Doc("a"))
        raise RuntimeError
    assert store.get("pod", "a", Doc) is None
    with store.transaction():
        store.put("pod", "b", Doc("b"))
    assert store.get("pod", "b", Doc) == Doc("b")
    store.close()


def test_a_document_that_cannot_be_read_is_set_aside_and_hides_no_other(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "db")
    for key, text in (("b", b'{"name": 7}'), ("c", b"\xff\x00 secret"), ("d", b"{}")):
        store._db.execute("INSERT INTO docs VALUES ('pod',?,?)", (key, text))
    store.put("pod", "a", Doc("a"))
    with capture_logs() as logs:
        assert store.items("pod", Doc) == [("a", Doc("a"))]
        assert store.items("pod", Doc) == [("a", Doc("a"))]
    assert [(line["kind"], line["key"]) for line in logs] == [("pod", "b"), ("pod", "c"), ("pod", "d")]
    assert "secret" not in str(logs)
    rows = store._db.execute("SELECT key, doc FROM docs WHERE kind=?", (QUARANTINE + "pod",)).fetchall()
    assert sorted(rows) == [("b", b'{"name": 7}'), ("c", b"\xff\x00 secret"), ("d", b"{}")]
    store.close()


def test_a_file_that_is_no_database_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(FailedPrecondition, match=r"not a database.*move it away"):
        StateStore(tmp_path / "db")


def test_the_log_is_copied_into_the_database_beside_the_writers(tmp_path: Path) -> None:
    path = tmp_path / "db"
    store = StateStore(path, checkpoint=100)
    pages = store._db.execute("PRAGMA wal_autocheckpoint").fetchone()[0]
    for number in range(1000):
        store.put("thing", str(number), {"text": "x" * 3000})
        if number % 100 == 99:
            assert store._checkpointer is not None
            store._checkpointer.join(30)
    log = path.with_name("db-wal").stat().st_size
    assert log < pages * 4096 / 10, "bytes: it begins anew"
    copied = shutil.copy(path, tmp_path / "copy")
    with closing(sqlite3.connect(copied)) as alone:
        assert alone.execute("SELECT count(*) FROM docs").fetchone()[0] == 1000
    store.close()
    assert len(StateStore(path).items("thing", dict)) == 1000
