"""``forge pkg`` as it is used: a key, a project, a package, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import wasmtime

from forgeone_shim.cli import main as cli
from tests.unit.package.conftest import KEY, Make, make

__all__ = ["make"]

Capture = pytest.CaptureFixture[str]


def forge(*argv: object) -> int:
    return cli.main(["pkg", *map(str, argv)])


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node's configuration of the test's own, and a directory to be in."""
    (tmp_path / "trusted").mkdir(mode=0o755)
    file = tmp_path / "config.toml"
    file.write_text(f'[packages]\ntrusted_keys = "{tmp_path}/trusted"\n')
    monkeypatch.setenv("FORGEONE_CONFIG", str(file))
    monkeypatch.chdir(tmp_path)


def test_from_a_name_to_a_package_that_the_node_trusts(tmp_path: Path, capsys: Capture) -> None:
    assert forge("new", "acme/logger") == 0
    (tmp_path / "logger/logger.wasm").write_bytes(wasmtime.wat2wasm("(module)"))
    assert forge("keygen", "my.key") == 0
    assert forge("build", "--key", "my.key", "logger") == 0
    out = capsys.readouterr().out.splitlines()
    key, (file, digest) = out[1], out[2].split()
    assert (out[0], file) == ("logger/forgepkg.toml", "logger-0.1.0.forgepkg")
    assert forge("verify", file) == 1
    assert "SignatureValidationFailed" in capsys.readouterr().err
    (tmp_path / "my.key.pub").rename(tmp_path / "trusted/my.key.pub")
    assert forge("verify", file) == 0
    assert capsys.readouterr().out.splitlines() == [f"{digest}  acme/logger:0.1.0", f"signed by {key}  my.key.pub"]


def test_a_private_key_is_never_shown_nor_written_over(tmp_path: Path, capsys: Capture) -> None:
    assert forge("keygen", "my.key") == 0
    assert (tmp_path / "my.key").stat().st_mode & 0o777 == 0o600
    assert forge("keygen", "my.key") == 1
    (tmp_path / "my.key").rename("other.key")
    assert forge("keygen", "my.key") == 1
    assert not (tmp_path / "my.key").exists()
    out, err = capsys.readouterr()
    assert "PRIVATE" not in out + err
    assert "my.key exists" in err
    assert "my.key.pub exists" in err


def test_signing_adds_what_verifying_asks_for(make: Make, tmp_path: Path, capsys: Capture) -> None:
    path = make(key=None)
    assert forge("verify", path) == 1
    assert forge("verify", "--allow-unsigned", path) == 0
    KEY.save(tmp_path / "it.key")
    (tmp_path / "it.pub").write_bytes(KEY.public.pem())
    assert forge("sign", "--key", "it.key", "-o", "signed.forgepkg", path) == 0
    assert forge("verify", "--trust", "it.pub", "signed.forgepkg") == 0
    assert forge("verify", path) == 1
    capsys.readouterr()


def test_what_a_package_says_is_shown_and_control_characters_are_not_obeyed(make: Make, capsys: Capture) -> None:
    path = make(description="it logs\x1b[31m")
    assert forge("inspect", path) == 0
    out = capsys.readouterr().out
    assert "localhost/acme/logger:1.2.0" in out
    assert "wasi_snapshot_preview1" in out
    assert "it logs\\x1b[31m" in out
    assert KEY.public.id in out
    assert forge("inspect", "-o", "json", path) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["manifest"]["module"]["kind"] == "module"
    assert said["signatures"] == [{"key": KEY.public.id}]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["new", "Upper"], "name:"),
        (["build"], "forge pkg new makes one"),
        (["verify", "absent"], "package 'absent' not found"),
        (["sign", "--key", "absent", "absent"], "key 'absent' not found"),
        (["push", "absent", "x/y"], "not found"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(argv: list[str], says: str, capsys: Capture) -> None:
    assert forge(*argv) in (1, 2)
    assert says in capsys.readouterr().err


def test_a_failed_build_leaves_the_package_of_before(make: Make, tmp_path: Path, capsys: Capture) -> None:
    assert forge("new", "acme/logger") == 0
    (tmp_path / "logger-0.1.0.forgepkg").write_text("before")
    (tmp_path / "logger/logger.wasm").write_text("no module")
    assert forge("build", "logger") == 2
    assert (tmp_path / "logger-0.1.0.forgepkg").read_text() == "before"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    capsys.readouterr()
