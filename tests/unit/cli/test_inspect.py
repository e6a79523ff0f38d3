"""``forge inspect``, ``forge dna show``, ``forge dna diff``."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from engines.base import Resources
from forgeone_shim.dna.fingerprint import Genome
from tests.unit.cli.conftest import Forge
from tests.unit.cli.node_double import NodeDouble

Capture = pytest.CaptureFixture[str]

GENOME = Genome(
    image="sha256:i",
    layers=(),
    engine="native",
    engine_version="crun 1",
    argv=("sh",),
    cwd="/",
    env=(),
    uid=0,
    gid=0,
    groups=(),
    mounts=(),
    devices=(),
    namespaces={},
    privileged=False,
    no_new_privileges=False,
    readonly_rootfs=False,
    masked_paths=(),
    readonly_paths=(),
    capabilities=(),
    seccomp="",
    apparmor="",
    edits="",
    limits=Resources(),
    engine_facts={},
)


def document(id_: str, **changes: Any) -> dict[str, Any]:
    """A container's, as far as the command looks at it."""
    genome = {**msgspec.to_builtins(GENOME), **changes} if changes.get("genome", True) else None
    return {
        "id": id_,
        "image": {"id": "sha256:i"},
        "engine": {"name": "native", "version": "crun 1"},
        "dna": {
            "hash": "sha256:h" if genome else "",
            "signer": [],
            "trust_label": "gold\x1b[2J",
            "runtime_entropy": 256,
            "resource_limits": {"memory_limit": 5, "cpu_quota": 0},
            "genome": genome,
        },
        "score": {"total": 31, "parts": {"entropy": {"points": 10, "of": 10}}},
    }


@pytest.fixture
def containers(node: NodeDouble, forge: Forge, capsys: Capture) -> tuple[str, str]:
    for name in ("one", "two"):
        assert forge("run", "-d", "-q", "--name", name, "reg/app:1") == 0
    capsys.readouterr()
    ids = {node.pods.pods[pod].metadata.name: id_ for id_, (pod, _) in node.pods._of.items()}
    node.images.documents = {ids["one"]: document(ids["one"]), ids["two"]: document(ids["two"], argv=["ls", "\x1b"])}
    return ids["one"], ids["two"]


def test_inspect_prints_what_the_node_knows(containers: tuple[str, str], forge: Forge, capsys: Capture) -> None:
    assert forge("inspect", containers[0][:12]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == containers[0]
    assert forge("inspect", *containers) == 0
    assert [each["id"] for each in json.loads(capsys.readouterr().out)] == list(containers)


def test_show_says_who_a_container_is_and_obeys_nothing_in_it(
    containers: tuple[str, str], forge: Forge, capsys: Capture
) -> None:
    assert forge("dna", "show", "one") == 0
    out = capsys.readouterr().out
    assert "sha256:h" in out and "256 bits" in out and "memory_limit=5" in out and "cpu_quota" not in out
    assert "31 of 100 (entropy 10/10)" in out and "gold\\x1b[2J" in out
    assert forge("dna", "show", "-o", "json", "one") == 0
    assert json.loads(capsys.readouterr().out)["hash"] == "sha256:h"


def test_diff_tells_what_differs_and_its_code_whether(
    containers: tuple[str, str], forge: Forge, capsys: Capture
) -> None:
    assert forge("dna", "diff", "one", "one") == 0
    assert capsys.readouterr().out == ""
    assert forge("dna", "diff", "one", "two") == 1
    assert capsys.readouterr().out.splitlines()[1].split() == ["argv", '["sh"]', '["ls",', '"\\u001b"]']
    assert forge("dna", "diff", "-o", "json", *containers) == 1
    assert json.loads(capsys.readouterr().out) == [{"field": "argv", "before": ["sh"], "after": ["ls", "\x1b"]}]


@pytest.mark.parametrize(
    ("changes", "says"), [({"genome": None}, "never had a process"), ({"argv": 5}, "of another version")]
)
def test_what_cannot_be_compared_is_said(
    containers: tuple[str, str],
    node: NodeDouble,
    forge: Forge,
    capsys: Capture,
    changes: dict[str, Any],
    says: str,
) -> None:
    node.images.documents[containers[1]] = document(containers[1], **changes)
    assert forge("dna", "diff", "one", "two") == 2
    assert says in capsys.readouterr().err


def test_a_pod_with_several_containers_needs_a_name(
    containers: tuple[str, str], node: NodeDouble, forge: Forge, capsys: Capture
) -> None:
    pod = node.pods._of[containers[0]][0]
    node.pods._of.update({id_: (pod, config) for id_, (_, config) in node.pods._of.items()})
    assert forge("dna", "show", pod) == 2
    assert "2 containers" in capsys.readouterr().err
