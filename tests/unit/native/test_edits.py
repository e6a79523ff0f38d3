from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from engines.base import NO_EDITS, Edits, MountEdit, Namespaces, NetDeviceEdit, NodeEdit, RdtEdit, User
from engines.native import edits, spec
from engines.native.spec import Gathered
from forgeone_shim.errors import FailedPrecondition, InvalidInput, Unimplemented
from forgeone_shim.kernel.host import Host
from tests.unit.native.conftest import PlanMaker


@pytest.fixture
def whole(plan: PlanMaker, host: Host) -> dict[str, Any]:
    return spec.config(plan(), host, Gathered(mount_points={}), lambda profile: None)


def null(**given: Any) -> NodeEdit:
    """A node like the host's /dev/null, 1:3."""
    return NodeEdit(**{"path": "/dev/x", "host_path": "/dev/null", **given})


def applied(whole: dict[str, Any], *nodes: NodeEdit, **given: Any) -> dict[str, Any]:
    found = Edits(nodes=nodes, **given)
    edits.apply(whole, found, edits.nodes(found))
    return whole


def test_no_edits_are_false() -> None:
    assert not Edits()
    assert not NO_EDITS
    assert Edits(env=("A=1",))


def test_a_node_is_as_on_the_host_and_may_be_used(whole: dict[str, Any]) -> None:
    linux = applied(whole, null())["linux"]
    mode = Path("/dev/null").stat().st_mode & 0o777
    assert linux["devices"] == [
        {"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": mode, "uid": 0, "gid": 0}
    ]
    assert linux["resources"]["devices"][-1] == {
        "allow": True,
        "type": "c",
        "major": 1,
        "minor": 3,
        "access": "rwm",
    }


def test_what_is_given_of_a_node_counts(whole: dict[str, Any]) -> None:
    node = null(kind="c", major=9, minor=8, mode=0o600, uid=5, gid=6, permissions="r", host_path="/nonexistent")
    linux = applied(whole, node)["linux"]
    assert linux["devices"] == [
        {"path": "/dev/x", "type": "c", "major": 9, "minor": 8, "fileMode": 0o600, "uid": 5, "gid": 6}
    ]
    assert linux["resources"]["devices"][-1]["access"] == "r"


def test_a_node_without_an_owner_is_the_container_users(plan: PlanMaker, host: Host) -> None:
    base = plan()
    process = type(base.process)(args=("a",), env=(), cwd="/", user=User(uid=1000, gid=100))
    whole = spec.config(plan(process=process), host, Gathered(mount_points={}), lambda profile: None)
    assert [applied(whole, null())["linux"]["devices"][0][key] for key in ("uid", "gid")] == [1000, 100]


def test_a_node_may_be_there_and_not_be_used(whole: dict[str, Any]) -> None:
    before = list(whole["linux"]["resources"]["devices"])
    assert applied(whole, null(permissions=""))["linux"]["resources"]["devices"] == before


def test_of_two_nodes_at_one_path_the_last_counts(whole: dict[str, Any]) -> None:
    devices = applied(whole, null(uid=1), null(uid=2))["linux"]["devices"]
    assert [device["uid"] for device in devices] == [2]


def test_a_fifo_has_no_numbers_and_no_rule(whole: dict[str, Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f", 0o640)
    before = list(whole["linux"]["resources"]["devices"])
    linux = applied(whole, null(host_path=str(tmp_path / "f")))["linux"]
    assert linux["devices"] == [{"path": "/dev/x", "type": "p", "fileMode": 0o640, "uid": 0, "gid": 0}]
    assert linux["resources"]["devices"] == before


@pytest.mark.parametrize("given", [{"host_path": "/nonexistent"}, {"host_path": "/etc/passwd"}, {"kind": "b"}])
def test_a_node_that_the_host_does_not_have_is_named(given: dict[str, Any]) -> None:
    with pytest.raises(FailedPrecondition, match=given.get("host_path", "/dev/null")):
        edits.nodes(Edits(nodes=(null(**given),)))


def test_variables_and_groups_are_added_and_replaced(whole: dict[str, Any]) -> None:
    process = applied(whole, env=("PATH=/x", "NEW=1"), additional_gids=(7, 7))["process"]
    assert process["env"] == ["PATH=/x", "HOSTNAME=pod", "HOME=/", "NEW=1"]
    assert process["user"]["additionalGids"] == [7]


def test_mounts_take_the_place_of_others_and_none_hides_another(whole: dict[str, Any]) -> None:
    asked = (
        MountEdit("/a/b/c", "/etc", "", ("rbind",)),
        MountEdit("/a", "/etc", "", ("bind",)),
        MountEdit("/proc", "/usr"),
    )
    mounts = applied(whole, mounts=asked)["mounts"]
    places = [mount["destination"] for mount in mounts]
    assert places.index("/a") < places.index("/a/b/c")
    assert [mount["source"] for mount in mounts if mount["destination"] == "/proc"] == ["/usr"]
    assert sorted(places, key=lambda place: place.count("/")) == places
    assert next(mount for mount in mounts if mount["destination"] == "/a")["options"] == ["bind"]


@pytest.mark.parametrize(
    ("mount", "options"),
    [
        (MountEdit("/a", "/etc", "", ("rbind", "ro")), ["rbind", "ro", "ridmap", "rprivate"]),
        (MountEdit("/a", "/etc", "", ("bind", "ro")), ["bind", "ro", "idmap", "rprivate"]),
        (MountEdit("/a", "/etc", "bind", ("rro",)), ["rro", "idmap", "rprivate"]),
        (MountEdit("/a", "/etc", "bind"), ["rprivate"]),
        (MountEdit("/a", "/etc", "", ("rbind", "rw")), ["rbind", "rw", "rprivate"]),
        (MountEdit("/a", "/etc", "", ("rbind", "idmap")), ["rbind", "idmap", "rprivate"]),
        (MountEdit("/a", "/etc", "", ("bind", "rslave")), ["bind", "rslave"]),
        (MountEdit("/a", "tmpfs", "tmpfs", ("nosuid",)), ["nosuid"]),
    ],
)
def test_binds_into_a_user_namespace_are_apart_from_the_hosts_and_read_only_ones_keep_their_owners(
    whole: dict[str, Any], mount: MountEdit, options: list[str]
) -> None:
    whole["linux"]["namespaces"].append({"type": "user"})
    assert applied(whole, mounts=(mount,))["mounts"][0]["destination"] in {"/a", "/proc"}
    assert next(one for one in whole["mounts"] if one["destination"] == "/a")["options"] == options


def test_a_resctrl_class_has_only_what_was_given(whole: dict[str, Any]) -> None:
    rdt = RdtEdit(clos_id="gold", schemata=("L3:0=f",))
    assert applied(whole, rdt=rdt)["linux"]["intelRdt"] == {"closID": "gold", "schemata": ["L3:0=f"]}


def test_interfaces_are_moved_into_a_pod_with_a_network_of_its_own(plan: PlanMaker, host: Host) -> None:
    device = NetDeviceEdit("eth1", "net1")
    whole = spec.config(plan(), host, Gathered(mount_points={}), lambda profile: None)
    assert applied(whole, net_devices=(device,))["linux"]["netDevices"] == {"eth1": {"name": "net1"}}
    hosts = plan(namespaces=Namespaces(network=None, ipc=None, uts=None, pid=""))
    whole = spec.config(hosts, host, Gathered(mount_points={}), lambda profile: None)
    with pytest.raises(InvalidInput, match="host's network"):
        applied(whole, net_devices=(device,))


@pytest.mark.parametrize(
    ("given", "version"),
    [
        ({"env": ("A=1",)}, None),
        ({"rdt": RdtEdit(clos_id="a")}, None),
        ({"rdt": RdtEdit(clos_id="a", l3_cache_schema="L3:0=f")}, (1, 10)),
        ({"rdt": RdtEdit(clos_id="a", schemata=("L3:0=f",))}, (1, 22)),
        ({"net_devices": (NetDeviceEdit("a", "b"),)}, (1, 22)),
    ],
)
def test_what_an_older_crun_would_leave_out_asks_for_a_newer_one(
    given: dict[str, Any], version: tuple[int, ...] | None
) -> None:
    found = edits.needed(Edits(**given))
    assert (found.version if found else None) == version


def test_a_class_is_entered_where_none_is_to_be_made() -> None:
    assert edits.rdt_class(RdtEdit(clos_id="gold")) == "gold"
    assert edits.rdt_class(RdtEdit(clos_id="/")) == ""
    assert edits.rdt_class(RdtEdit(clos_id="gold", mem_bw_schema="MB:0=50")) is None


@pytest.mark.parametrize(
    "rdt", [RdtEdit(schemata=("L3:0=f",)), RdtEdit(clos_id="a", monitoring=True), RdtEdit(clos_id="/", schemata=("a",))]
)
def test_a_class_that_nobody_would_remove_is_not_made(rdt: RdtEdit) -> None:
    with pytest.raises(Unimplemented):
        edits.rdt_class(rdt)


def test_a_mount_whose_source_is_not_there_is_named(whole: dict[str, Any]) -> None:
    with pytest.raises(FailedPrecondition, match="/no/such/place"):
        applied(whole, mounts=(MountEdit("/a", "/no/such/place", "", ("bind",)),))
