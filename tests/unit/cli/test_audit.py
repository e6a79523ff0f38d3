"""``forge audit`` over a log on disk, without a forgeoned."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forgeone_shim.audit.entry import Entry
from forgeone_shim.cli import main
from tests.unit.audit.logs import Node, flip, soon

ID = "0123456789ab" + "c" * 52

Forge = Callable[..., tuple[int, str, str]]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    log = made.start()
    made.write(300, together=True)
    for name in ("started", "exited"):
        log.append(Entry(type=f"container.{name}", subject=f"container/{ID}", data={"reason": "x\x1b[31m"})).wait(
            soon()
        )
    yield made
    made.close()


@pytest.fixture
def forge(node: Node, capsys: pytest.CaptureFixture[str]) -> Forge:
    config = node.root / "config.toml"
    config.write_text(f'root = "{node.root}"\nstate = "{node.root}-state"\n')

    def run(*args: str) -> tuple[int, str, str]:
        own = () if "--log" in args or args[0] == "check" else ("--config", str(config))
        code = main.main(["audit", args[0], *own, *args[1:]])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run


def test_the_last_entries_are_shown(forge: Forge) -> None:
    code, out, _ = forge("tail", "-n", "2")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines] == ["301", "302"]
    assert "container.started" in lines[0]
    # A terminal obeys nothing that an entry says.
    assert "\x1b" not in out
    _, out, _ = forge("tail", "-n", "1", "-o", "json")
    assert json.loads(out)["subject"] == f"container/{ID}"
    _, out, _ = forge("tail", "-n", "1000")
    assert len(out.splitlines()) == 303


def test_a_line_says_what_people_ask_for(forge: Forge, node: Node) -> None:
    assert node.log is not None
    data = {
        "sandbox": "d" * 64,
        "pod": {"namespace": "shop", "name": "web", "uid": "u"},
        "container": {"id": ID, "name": "main"},
        "image": {"id": "sha256:1", "ref": "busybox@sha256:" + "e" * 64},
        "policies": ["a", "b"],
        "odd": {"x": 1},
        "message": "",
    }
    node.log.append(Entry(type="container.started", subject=f"container/{ID}", data=data)).wait(soon())
    said = forge("tail", "-n", "1")[1].split("container.started", 1)[1].split(maxsplit=1)
    assert said[0] == f"container/{ID[:13]}"
    assert said[1].strip() == (
        'pod=shop/web container=main image=busybox@sha256:eeeeeeeeeeee policies=["a","b"] odd={"x":1}'
    )


def test_entries_to_come_are_shown(forge: Forge, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    from forgeone_shim.cli import audit

    seen: list[str] = []
    shown = audit._line

    def line(event: audit.Event, output: str) -> str:
        seen.append(event.id)
        if event.id == "304":
            raise KeyboardInterrupt
        return shown(event, output)

    def write() -> None:
        assert node.log is not None
        node.write(2)

    monkeypatch.setattr(audit, "_line", line)
    writer = threading.Timer(0.2, write)
    writer.start()
    assert forge("tail", "-f", "-n", "1")[0] == 130
    writer.join()
    assert seen == ["302", "303", "304"]


def test_a_sound_log_is_said_to_be_sound(forge: Forge, node: Node) -> None:
    code, out, _ = forge("verify")
    assert code == 0
    assert node.log is not None
    assert f"{node.log.origin}: 303 entries, 303 of them read" in out
    assert str(node.log.verifier) in out
    assert "303 entries, 2 of them read" in forge("verify", "--since", "audit:301")[1]


def test_a_kept_checkpoint_is_gone_on_from(forge: Forge, node: Node) -> None:
    kept = node.root / "kept"
    kept.write_bytes(node.read().signed.data)
    node.write(3)
    assert "goes on from the 303 entries" in forge("verify", "--since", str(kept))[1]


def test_a_damaged_log_is_an_error_that_names_the_entry(forge: Forge, node: Node) -> None:
    node.close()
    flip(node.directory / "tile/entries/000", 5000)
    code, out, err = forge("verify")
    assert (code, out) == (1, "")
    assert "is not the one that was logged" in err


def test_a_log_shorter_than_the_database_knows_is_an_error(forge: Forge, node: Node) -> None:
    node.close()
    shutil.copytree(node.directory, node.root / "older")
    node.start()
    node.write(2)
    node.close()
    shutil.rmtree(node.directory)
    (node.root / "older").rename(node.directory)
    code, _, err = forge("verify")
    assert code == 1
    assert "it has 303 entries, and had 305" in err


def test_a_receipt_is_checked_without_the_log(forge: Forge, node: Node) -> None:
    assert node.log is not None
    file, key = str(node.root / "%.tlog-proof"), str(node.log.verifier)
    code, out, _ = forge("receipt", "-o", file, ID[:12])
    assert (code, out.split()) == (0, [str(node.root / f"{number}.tlog-proof") for number in (301, 302)])
    shutil.rmtree(node.root / "keys")
    code, out, err = forge("check", "--key", key, str(node.root / "301.tlog-proof"))
    assert code == 0
    assert "container.started" in out
    assert "entry 301" in err
    other = key.replace("node", "mode")
    assert forge("check", "--key", other, str(node.root / "301.tlog-proof"))[0] == 1
    receipt = node.root / "301.tlog-proof"
    receipt.write_bytes(receipt.read_bytes().replace(b"index 301", b"index 300"))
    assert forge("check", "--key", key, str(receipt))[0] == 1


def test_one_entry_has_one_receipt(forge: Forge) -> None:
    code, out, err = forge("receipt", "audit:5")
    assert (code, err) == (0, "")
    assert out.startswith("c2sp.org/tlog-proof@v1\nextra ")
    assert "\nindex 5\n" in out


@pytest.mark.parametrize("what", ["audit:303", "99999", "zzzz", "ab"])
def test_what_is_not_there_has_no_receipt(forge: Forge, what: str) -> None:
    assert forge("receipt", what)[0] == 1


def test_growth_is_proven_as_witnesses_are_asked(forge: Forge) -> None:
    code, out, _ = forge("proof", "--from", "100")
    assert code == 0
    assert out.startswith("old 100\n")
    assert forge("proof", "--from", "304")[0] == 1
    assert forge("proof", "--from", "x")[0] == 2


def test_an_exported_log_is_verified_by_its_key_alone(forge: Forge, node: Node) -> None:
    exported = str(node.root / "exported")
    code, out, _ = forge("export", exported)
    assert code == 0
    key = out.strip()
    shutil.copytree(exported, node.root / "copy")
    assert "303 entries, 303 of them read" in forge("verify", "--log", exported, "--key", key)[1]
    assert forge("verify", "--log", exported)[0] == 2
    assert forge("verify", "--log", exported, "--key", key.replace("node", "mode"))[0] == 1
    # Again, after it grew, with a key that came to the place of the first.
    assert node.log is not None
    node.log.rotate(soon())
    assert forge("export", exported)[0] == 0
    assert "304 entries, 304 of them read" in forge("verify", "--log", exported, "--key", key)[1]
    assert forge("export", str(node.root))[0] == 1
    assert forge("tail", "-f", "--log", exported, "--key", key)[0] == 2


def test_an_export_is_not_written_over_by_what_the_log_was_before_or_by_another(forge: Forge, node: Node) -> None:
    exported = node.root / "exported"
    earlier = node.killed()
    node.write(3)
    assert forge("export", str(exported))[0] == 0
    was = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    # Rolled back, with the database.
    node.close()
    shutil.rmtree(node.directory)
    shutil.copytree(earlier.directory, node.directory)
    code, _, err = forge("export", str(exported))
    assert code == 1
    assert "it has 303 entries, and had 306" in err
    shutil.rmtree(node.directory)
    node.ledger.begin()
    node.start()
    code, _, err = forge("export", str(exported))
    assert code == 1
    assert "holds the log node/forgeone/" in err
    assert {path: path.read_bytes() for path in was} == was


def test_a_node_without_a_log_says_so(forge: Forge, node: Node) -> None:
    node.close()
    shutil.rmtree(node.directory)
    code, _, err = forge("tail")
    assert code == 1
    assert "audit log" in err
