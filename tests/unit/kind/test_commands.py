"""``python -m hack.kind`` beside doubles of docker, kind and helm, which write down how they were called."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from forgeone_shim.version import VERSION
from hack.kind import __main__ as kind
from hack.kind import plan
from hack.kind.settings import Settings

_DOUBLE = """#!{python} -IS
import os, sys
with open({log!r}, "a") as log:
    log.write(" ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
sys.exit(3 if {failing!r} and {failing!r} in " ".join(sys.argv) else 0)
"""


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts the doubles in place; the file has a line for each call."""
    doubles(tmp_path, monkeypatch)
    return tmp_path / "log"


def doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str = "") -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir(exist_ok=True)
    for name in ("docker", "kind", "helm", "python"):
        text = _DOUBLE.format(python=sys.executable, log=str(tmp_path / "log"), failing=failing)
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(binaries))
    monkeypatch.setenv("FORGEONE_KIND_DIR", str(tmp_path / "clusters"))
    monkeypatch.setattr(kind.sys, "executable", str(binaries / "python"))
    dist = tmp_path / "dist"
    dist.mkdir(exist_ok=True)
    for template in ("tar.gz", "oci.tar"):
        name = kind._named(f"forgeone-{{version}}-{{machine}}.{template}")
        (dist / name).write_bytes(b"bundle")


def up(tmp_path: Path, *options: str) -> int:
    return kind.main(["up", "--dist", str(tmp_path / "dist"), *options])


def test_a_cluster_comes_up(tmp_path: Path, called: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert up(tmp_path, "--workers", "1") == 0
    files = tmp_path / "clusters/forgeone"
    lines = called.read_text().splitlines()
    assert [line.split()[:3] for line in lines] == [
        ["docker", "build", "--tag"],
        ["docker", "run", "--detach"],
        ["kind", "create", "cluster"],
        ["docker", "network", "connect"],
    ]
    assert f"VERSION={VERSION}" in lines[0] and lines[0].endswith(str(files / "image"))
    context = {path.name for path in (files / "image").iterdir()}
    copied = re.findall(r"^(?:COPY|ADD) (\S+?)/? ", Path(kind.__file__).with_name("Dockerfile").read_text(), re.M)
    assert set(copied) | {"Dockerfile"} == context
    assert (files / "certs.d/forgeone-registry:5000/hosts.toml").read_text().startswith("server = ")
    assert capsys.readouterr().out == f"export KUBECONFIG={files / 'kubeconfig'}\n"


def test_a_second_one_of_the_name_is_refused(tmp_path: Path, called: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert up(tmp_path) == 0
    before = called.read_text()
    assert up(tmp_path) == 1
    assert called.read_text() == before
    assert "take it down first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("failing", "undone"),
    [
        ("build", []),
        ("run --detach", ["docker rm --force --volumes forgeone-registry"]),
        ("create cluster", ["kind delete cluster", "docker rm --force"]),
        ("network connect", ["kind delete cluster", "docker rm --force"]),
    ],
)
def test_a_cluster_that_does_not_come_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, undone: list[str]
) -> None:
    doubles(tmp_path, monkeypatch, failing)
    assert up(tmp_path) == 3
    lines = (tmp_path / "log").read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if failing in line)
    assert len(lines[at + 1 :]) == len(undone)
    assert all(line.startswith(start) for line, start in zip(lines[at + 1 :], undone, strict=True))
    assert not (tmp_path / "clusters/forgeone").exists()


def test_it_goes_down_and_can_come_up_again(tmp_path: Path, called: Path) -> None:
    assert up(tmp_path) == 0
    called.unlink()
    assert kind.main(["down"]) == 0
    assert [line.split()[:2] for line in called.read_text().splitlines()] == [["kind", "delete"], ["docker", "rm"]]
    assert up(tmp_path) == 0


def test_images_come_to_every_node(tmp_path: Path, called: Path) -> None:
    assert up(tmp_path, "--workers", "1") == 0
    called.unlink()
    assert kind.main(["load", "shop:1"]) == 0
    lines = called.read_text().splitlines()
    assert lines[0].startswith("docker save --output ") and lines[0].endswith(" shop:1")
    assert lines[1].startswith("kind load image-archive ")
    imports = [line for line in lines if "images import" in line]
    assert [line.split()[2] for line in imports] == ["forgeone-control-plane", "forgeone-worker"]
    assert sum(" rm --force " in line for line in lines) == 2


def test_the_chart_is_installed_with_its_image(tmp_path: Path, called: Path) -> None:
    assert up(tmp_path, "--mode", "installer") == 0
    called.unlink()
    assert kind.main(["install", "--dist", str(tmp_path / "dist")]) == 0
    load, helm = called.read_text().splitlines()
    assert load.startswith("kind load image-archive ") and ".oci.tar" in load
    assert helm.startswith("helm upgrade --install forgeone charts/forgeone --namespace forgeone-system")


def test_the_tests_are_told_where_the_cluster_is(tmp_path: Path) -> None:
    step = plan.test(Settings(), plan.Place(tmp_path), "python", ["-k", "probes"])
    assert step.argv[-3:] == ("tests/e2e/cluster", "-k", "probes")
    assert step.env["KUBECONFIG"] == str(tmp_path / "kubeconfig")
    assert step.env["LAB_REGISTRY_INSIDE"] == "forgeone-registry:5000"


def test_arguments_of_pytest_are_passed_on(tmp_path: Path, called: Path) -> None:
    assert up(tmp_path) == 0
    called.unlink()
    assert kind.main(["test", "-k", "probes"]) == 0
    assert called.read_text() == "python -m pytest -p no:cacheprovider tests/e2e/cluster -k probes\n"


def test_a_dry_run_executes_nothing(tmp_path: Path, called: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert up(tmp_path, "--dry-run") == 0
    assert not called.exists() and not (tmp_path / "clusters").exists()
    assert capsys.readouterr().out.startswith("docker build ")


def test_a_command_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doubles(tmp_path, monkeypatch)
    (tmp_path / "bin/kind").unlink()
    assert up(tmp_path) == 1
    said = capsys.readouterr().err
    assert "the command kind is missing" in said and "https://" in said
    assert not (tmp_path / "log").exists()


def test_what_was_not_made_cannot_be_used(called: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kind.main(["install"]) == 1
    assert "`python -m hack.kind up` makes one" in capsys.readouterr().err
