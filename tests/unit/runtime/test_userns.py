"""Which user namespaces a pod can have, and what follows from them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engines.base import IdMapping, NamespaceMode, NamespaceOptions
from forgeone_shim.errors import FailedPrecondition, InvalidInput
from forgeone_shim.fs.owners import OVERFLOW, Owners
from forgeone_shim.runtime import userns

USUAL = (IdMapping(host_id=65536, container_id=0, length=65536),)
PARTS = (
    IdMapping(host_id=5000, container_id=0, length=1000),
    IdMapping(host_id=9000, container_id=1000, length=1000),
)


def _options(
    uids: tuple[IdMapping, ...] = USUAL, gids: tuple[IdMapping, ...] = USUAL, **more: object
) -> NamespaceOptions:
    base = NamespaceOptions(pid=NamespaceMode.CONTAINER, user=NamespaceMode.POD, uid_mappings=uids, gid_mappings=gids)
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        NamespaceOptions(),
        _options(),
        _options(uids=PARTS),
        _options(pid=NamespaceMode.POD),
        _options(network=NamespaceMode.NODE),
        _options(uids=(IdMapping(1, 0, 2**32 - 2),)),
    ],
)
def test_what_a_pod_can_have(options: NamespaceOptions) -> None:
    userns.check(options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (_options(uids=()), r"userns_options\.uids: 0 mappings"),
        (_options(gids=()), r"userns_options\.gids: 0 mappings"),
        (_options(uids=tuple(IdMapping(n + 1, n, 1) for n in range(341))), "341 mappings"),
        (_options(uids=(IdMapping(1000, 1, 100),)), "id 0 of the containers"),
        (_options(uids=(IdMapping(1000, 0, 100), IdMapping(2000, 0, 100))), "container id 0 is mapped twice"),
        (_options(gids=(IdMapping(1000, 0, 100), IdMapping(1099, 100, 1))), "host id 1099 is mapped twice"),
        (_options(uids=(IdMapping(0, 0, 65536),)), "host's root"),
        (_options(gids=(IdMapping(65536, 0, 10), IdMapping(0, 10, 1))), "host's root"),
        (_options(uids=(IdMapping(65536, 0, 0),)), "cannot be mapped"),
        (_options(gids=(IdMapping(2**32 - 10, 0, 11),)), "cannot be mapped"),
        (_options(gids=(IdMapping(65536, 0, 2**32 - 1),)), "cannot be mapped"),
        (_options(pid=NamespaceMode.NODE), r"\.pid: .*node's"),
        (_options(ipc=NamespaceMode.NODE), r"\.ipc: .*node's"),
        (_options(user=NamespaceMode.CONTAINER), "POD or NODE"),
    ],
)
def test_what_a_pod_cannot_have(options: NamespaceOptions, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        userns.check(options)


def test_a_container_has_the_mappings_of_its_pod() -> None:
    userns.check_container(_options(), _options(pid=NamespaceMode.POD))
    userns.check_container(NamespaceOptions(), NamespaceOptions())
    for pod, container in (
        (_options(), NamespaceOptions()),
        (NamespaceOptions(), _options()),
        (_options(), _options(uids=PARTS)),
        (_options(), _options(gids=PARTS)),
    ):
        with pytest.raises(InvalidInput, match="for sandbox is different from container"):
            userns.check_container(pod, container)


def test_a_container_is_not_in_the_nodes_pid_namespace() -> None:
    with pytest.raises(InvalidInput, match=r"\.pid"):
        userns.check_container(_options(), _options(pid=NamespaceMode.NODE))


def test_every_group_means_every_group_of_the_pod() -> None:
    given = {userns.PING_GROUPS: userns.EVERY_GROUP, "net.core.somaxconn": "100"}
    assert userns._fitting(given, PARTS) == {userns.PING_GROUPS: "0 999", "net.core.somaxconn": "100"}
    assert userns._fitting({userns.PING_GROUPS: "5 6"}, PARTS) == {userns.PING_GROUPS: "5 6"}


def test_a_directory_that_the_pods_root_cannot_reach_is_named(tmp_path: Path) -> None:
    (tmp_path / "closed/pod").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    with pytest.raises(FailedPrecondition, match="cannot be entered") as raised:
        userns.open_to_root(tmp_path / "closed/pod", Owners("/ns/user", USUAL, USUAL))
    assert raised.value.fix == f"chmod o+x {tmp_path / 'closed'}"


def test_ids_on_the_host() -> None:
    owners = Owners("/ns/user", PARTS, USUAL)
    assert owners.root == (5000, 65536)
    assert owners.outside(999, 7) == (5999, 65543)
    assert owners.outside(1000, 65535) == (9000, 131071)
    assert owners.outside(2000, 65536) == (OVERFLOW, OVERFLOW)
