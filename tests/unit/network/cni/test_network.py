"""Pods on CNI networks: chains, what is stored of them, and that a DEL comes for every ADD in the end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.base import DNSConfig, PortMapping, PortProtocol
from forgeone_shim.deadline import Deadline
from forgeone_shim.errors import DeadlineExceeded, FailedPrecondition, ForgeError, InternalError, InvalidInput
from forgeone_shim.network.cni.plugin import CniError, Command, Invocation
from tests.unit.network.cni.fakes import Node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path)
    yield made
    made.close()


def test_a_pod_gets_what_the_chain_gives(node: Node) -> None:
    node.write("first", "second")
    got = node.network.attach(node.pod())
    assert (got.ips, got.interface, got.mac) == (("10.9.0.2",), "eth0", "0a:58:0a:09:00:02")
    assert node.network.attachment("pod1") == got
    first, second = node.fakes.calls
    assert (first.command, first.container_id, first.netns, first.ifname) == ("ADD", "pod1", "/nowhere/net", "eth0")
    assert first.args == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": "default",
        "K8S_POD_NAME": "web",
        "K8S_POD_INFRA_CONTAINER_ID": "pod1",
        "K8S_POD_UID": "u-1",
    }
    assert "prevResult" not in first.config
    assert first.config["name"] == "pods"
    assert second.config["prevResult"]["routes"] == [{"dst": "10.0.0.0/16"}]


def test_a_detach_goes_backwards_with_the_last_result(node: Node) -> None:
    node.write("first", "second")
    node.network.attach(node.pod())
    node.network.detach("pod1")
    assert node.fakes.told() == ["ADD first", "ADD second", "DEL second", "DEL first"]
    assert all(len(call.config["prevResult"]["routes"]) == 2 for call in node.fakes.calls[2:])
    assert node.stored() == []
    assert node.network.attachment("pod1") is None


def test_a_namespace_that_is_gone_is_told_as_none_and_the_pod_is_deleted_all_the_same(node: Node) -> None:
    node.write("first")
    node.network.attach(node.pod())
    node.network.detach("pod1")
    assert node.fakes.calls[-1].netns == ""


def test_a_namespace_that_is_there_is_told_to_del(node: Node) -> None:
    node.write("first")
    node.network.attach(node.pod(netns="/proc/self/ns/net"))
    node.network.detach("pod1")
    assert node.fakes.calls[-1].netns == "/proc/self/ns/net"


def test_del_uses_the_configuration_of_add_whatever_has_become_of_the_file(node: Node) -> None:
    node.write({"type": "first", "bridge": "old0"})
    node.network.attach(node.pod())
    node.write("second", "third")
    node.restart()
    node.network.detach("pod1")
    last = node.fakes.calls[-1]
    assert (last.command, last.config["type"], last.config["bridge"]) == (Command.DEL, "first", "old0")


def test_an_add_that_fails_in_the_middle_is_undone_whole_and_with_what_was_known(node: Node) -> None:
    node.write("first", "second", "third")
    node.fakes.fail("second", Command.ADD)
    with pytest.raises(CniError, match="network 'pods': plugin 'second' failed to ADD: it is broken"):
        node.network.attach(node.pod())
    assert node.fakes.told() == ["ADD first", "ADD second", "DEL third", "DEL second", "DEL first"]
    assert node.fakes.calls[-1].config["prevResult"]["ips"]
    assert node.stored() == []
    assert not node.jobs


def test_a_plugin_with_a_bug_is_undone_as_well(node: Node) -> None:
    node.write("first", "second")
    node.fakes.fail("second", Command.ADD, KeyError("oops"))
    with pytest.raises(KeyError):
        node.network.attach(node.pod())
    assert node.stored() == []


def test_what_could_not_be_undone_is_repeated_until_it_is(node: Node) -> None:
    node.write("first", "second")
    node.fakes.fail("second", Command.ADD)
    node.fakes.fail("first", Command.DEL)
    with pytest.raises(CniError, match="second"):
        node.network.attach(node.pod())
    assert node.stored() == ["pod1"]
    ((_, job),) = node.jobs
    with pytest.raises(CniError):
        job()
    node.fakes.failing.clear()
    job()
    assert node.stored() == []


def test_a_detach_that_fails_says_so_and_is_repeated(node: Node) -> None:
    node.write("first")
    node.network.attach(node.pod())
    node.fakes.fail("first", Command.DEL)
    for _ in range(2):
        with pytest.raises(CniError, match="failed to DEL"):
            node.network.detach("pod1")
    assert len(node.jobs) == 1, "one retry at a time"
    node.fakes.failing.clear()
    node.run_jobs()
    node.network.detach("pod1")
    assert node.stored() == []


def test_a_detach_after_a_restart_is_finished_by_the_next_process(node: Node) -> None:
    node.write("first")
    node.network.attach(node.pod())
    node.fakes.fail("first", Command.DEL)
    with pytest.raises(CniError):
        node.network.detach("pod1")
    node.restart()
    assert node.network.reconcile(lambda: {"pod1"}) == ("pod1",)
    node.fakes.failing.clear()
    assert node.network.reconcile(lambda: {"pod1"}) == ()
    assert node.stored() == []


@pytest.mark.parametrize("cut", ["first", "second", "third"])
def test_a_process_that_dies_in_an_add_leaves_all_that_del_needs(node: Node, cut: str) -> None:
    class Killed(BaseException):
        pass

    def die(invocation: Invocation) -> None:
        if invocation.config["type"] == cut:
            raise Killed

    node.write("first", "second", "third")
    node.fakes.before = die
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node.network, "_abandon", lambda _: None)
        with pytest.raises(Killed):
            node.network.attach(node.pod())
    node.fakes.before = lambda _: None
    node.fakes.calls.clear()
    node.restart()
    assert node.network.reconcile(set) == ()
    assert node.fakes.told() == ["DEL third", "DEL second", "DEL first"]
    assert ("prevResult" in node.fakes.calls[-1].config) == (cut != "first")
    assert node.stored() == []


def test_a_pod_that_is_known_and_attached_is_left_alone(node: Node) -> None:
    node.write("first")
    got = node.network.attach(node.pod())
    node.restart()
    assert node.network.reconcile(lambda: {"pod1"}) == ()
    assert node.network.attach(node.pod()) == got
    assert node.fakes.told() == ["ADD first"]


def test_nothing_is_added_where_the_namespace_could_not_be_made(node: Node) -> None:
    node.write("first")

    def pinned() -> None:
        raise InternalError("no namespace")

    with pytest.raises(InternalError):
        node.network.attach(node.pod(), pinned)
    assert node.fakes.calls == []
    assert node.stored() == []


def test_the_intent_is_stored_before_the_first_plugin_runs(node: Node) -> None:
    node.write("first")
    seen: list[list[str]] = []
    node.fakes.before = lambda _: seen.append(node.stored())
    node.network.attach(node.pod())
    assert seen == [["pod1"]]


def test_a_deadline_that_passes_undoes(node: Node) -> None:
    node.write("first", "second")
    deadline = Deadline.after(100)

    def slow(invocation: Invocation) -> None:
        if invocation.command is Command.ADD and invocation.config["type"] == "second":
            deadline.abandon()
            raise DeadlineExceeded("deadline passed")

    node.fakes.before = slow
    with pytest.raises(DeadlineExceeded):
        node.network.attach(node.pod(), deadline=deadline)
    assert node.fakes.told()[-2:] == ["DEL second", "DEL first"]
    assert node.stored() == []


def test_a_result_without_an_address_is_refused(node: Node) -> None:
    node.write("first")
    node.fakes.address = ""
    with pytest.raises(CniError, match=r"ips\[0\]\.address"):
        node.network.attach(node.pod())
    assert node.stored() == []


def test_name_servers_of_a_network_are_told_and_bad_ones_refused(node: Node) -> None:
    node.write("first")
    node.fakes.dns = {"nameservers": ["10.0.0.10"], "search": ["cluster.local"], "options": ["ndots:5"]}
    assert node.network.attach(node.pod("one")).dns == DNSConfig(("10.0.0.10",), ("cluster.local",), ("ndots:5",))
    node.fakes.dns = {"search": ["a\nnameserver 192.0.2.1"]}
    with pytest.raises(InternalError, match="name servers nobody can use"):
        node.network.attach(node.pod("two"))
    assert node.stored() == ["one"]


def test_capabilities_reach_only_those_that_declare_them(node: Node) -> None:
    node.write(
        {"type": "first", "capabilities": {"portMappings": True, "dns": False, "ipRanges": True}},
        {"type": "second", "capabilities": {"bandwidth": True, "io.kubernetes.cri.pod-annotations": True}},
        "third",
    )
    annotations = {"kubernetes.io/ingress-bandwidth": "10M", "kubernetes.io/egress-bandwidth": "1.5Gi"}
    node.network.use_ranges(("10.1.0.0/24", "fd00::/64"))
    ports = (
        PortMapping(80, 8080, PortProtocol.TCP, "192.0.2.1"),
        PortMapping(36412, 36412, PortProtocol.SCTP),
        PortMapping(9, 0),
    )
    dns = DNSConfig(servers=("10.0.0.10",))
    node.network.attach(node.pod(annotations=annotations, port_mappings=ports, dns=dns))
    first, second, third = (call.config for call in node.fakes.calls)
    assert first["runtimeConfig"] == {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.1"},
            {"hostPort": 36412, "containerPort": 36412, "protocol": "sctp"},
        ],
        "ipRanges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "fd00::/64"}]],
    }
    assert second["runtimeConfig"] == {
        "bandwidth": {
            "ingressRate": 10_000_000,
            "ingressBurst": 2**32 - 1,
            "egressRate": 3 * 2**29,
            "egressBurst": 2**32 - 1,
        },
        "io.kubernetes.cri.pod-annotations": annotations,
    }
    assert "runtimeConfig" not in third
    node.network.detach("pod1")
    assert node.fakes.calls[-1].config["runtimeConfig"] == first["runtimeConfig"], "DEL is told the same"


@pytest.mark.parametrize("rate", ["fast", "1", "2P", "-1M", "", "1 M", "NaN", "1e99999"])
def test_a_bandwidth_that_makes_no_sense_is_refused_by_its_name(node: Node, rate: str) -> None:
    node.write("first")
    with pytest.raises(InvalidInput, match=r"kubernetes\.io/ingress-bandwidth"):
        node.network.attach(node.pod(annotations={"kubernetes.io/ingress-bandwidth": rate}))
    assert node.stored() == []


def test_a_name_that_would_begin_another_argument_is_refused(node: Node) -> None:
    node.write("first")
    with pytest.raises(InvalidInput, match="K8S_POD_NAME"):
        node.network.attach(node.pod(name="web;K8S_POD_UID=0"))


def test_without_a_configuration_a_pod_cannot_be_attached(node: Node) -> None:
    with pytest.raises(FailedPrecondition, match="no network configuration"):
        node.network.attach(node.pod())


def test_a_bad_first_file_is_told_and_the_next_is_not_taken(node: Node) -> None:
    node.write("first", file="20-good.conflist")
    (node.folder / "10-bad.conflist").write_text('{"name": "pods"')
    ready, reason, message = node.network.status()
    assert (ready, reason) == (False, "NetworkPluginNotReady")
    assert "10-bad.conflist" in message
    assert "JSON" in message
    with pytest.raises(FailedPrecondition, match=r"10-bad\.conflist"):
        node.network.attach(node.pod())
    (node.folder / "10-bad.conflist").unlink()
    assert node.network.status() == (True, "", "")


def test_a_configuration_changed_just_now_counts_for_the_next_pod(node: Node) -> None:
    node.write("first")
    node.network.attach(node.pod("one"))
    node.write("second")
    node.network.attach(node.pod("two"))
    assert node.fakes.told() == ["ADD first", "ADD second"]


def test_a_missing_program_makes_the_network_not_ready(node: Node) -> None:
    node.write("first", "flannel")
    ready, _, message = node.network.status()
    assert not ready
    assert "'flannel'" in message
    assert str(node.directory / "bin") in message


def test_several_configurations_give_several_interfaces(tmp_path: Path) -> None:
    node = Node(tmp_path, max_conf_num=2)
    try:
        node.write("first")
        node.write("second", file="20-more.conflist", name="more")
        node.write("third", file="30-not.conflist", name="not")
        got = node.network.attach(node.pod())
        assert got.interface == "eth0"
        assert [(call.config["name"], call.ifname) for call in node.fakes.calls] == [("pods", "eth0"), ("more", "eth1")]
        assert set(node.network.details("pod1")["cniResult"]) == {"eth0", "eth1"}
        node.fakes.calls.clear()
        node.network.detach("pod1")
        assert [(call.config["name"], call.ifname) for call in node.fakes.calls] == [("more", "eth1"), ("pods", "eth0")]
    finally:
        node.close()


def test_a_second_network_that_fails_takes_the_first_back(tmp_path: Path) -> None:
    node = Node(tmp_path, max_conf_num=0)
    try:
        node.write("first")
        node.write("second", file="20-more.conflist", name="more")
        node.fakes.fail("second", Command.ADD)
        with pytest.raises(CniError):
            node.network.attach(node.pod())
        assert node.fakes.told() == ["ADD first", "ADD second", "DEL second", "DEL first"]
        assert node.fakes.calls[-1].config["prevResult"]["ips"]
    finally:
        node.close()


@pytest.mark.parametrize(("version", "checked"), [("0.3.1", False), ("0.4.0", True), ("1.1.0", True)])
def test_check_tells_what_is_damaged_and_changes_nothing(node: Node, version: str, *, checked: bool) -> None:
    node.write("first", cniVersion=version)
    node.network.attach(node.pod())
    node.fakes.fail("first", Command.CHECK)
    node.network.check()
    assert ("CHECK first" in node.fakes.told()) is checked
    assert ("it is broken" in str(node.network.details("pod1").get("cniCheck"))) is checked
    assert node.network.attachment("pod1") is not None
    node.fakes.failing.clear()
    node.network.check()
    assert "cniCheck" not in node.network.details("pod1")


def test_a_check_that_the_end_of_the_process_cuts_off_finds_nothing_wrong(node: Node) -> None:
    node.write("first")
    node.network.attach(node.pod())
    node.network.attach(node.pod("pod2"))
    node.fakes.fail("first", Command.CHECK)
    node.fakes.before = lambda _: node.network._life.abandon()
    node.fakes.calls.clear()
    node.network.check()
    assert node.fakes.told() == ["CHECK first"]
    assert "cniCheck" not in node.network.details("pod1")


def test_a_network_may_forbid_checks_and_garbage_collection(node: Node) -> None:
    node.write("first", cniVersion="1.1.0", disableCheck=True, disableGC=True)
    node.network.attach(node.pod())
    node.network.check()
    node.network.collect_garbage()
    assert node.fakes.told() == ["ADD first"]


def test_garbage_collection_names_every_attachment_of_the_network(node: Node) -> None:
    node.write("first", "second", cniVersion="1.1.0")
    node.network.attach(node.pod("one"))
    node.network.attach(node.pod("two"))
    node.fakes.fail("first", Command.GC)
    node.network.collect_garbage()
    gc = [call for call in node.fakes.calls if call.command is Command.GC]
    assert [call.config["type"] for call in gc] == ["first", "second"]
    valid = [{"containerID": "one", "ifname": "eth0"}, {"containerID": "two", "ifname": "eth0"}]
    assert all(call.config["cni.dev/valid-attachments"] == valid for call in gc)
    assert all((call.container_id, call.netns, call.ifname) == ("", "", "") for call in gc)


def test_no_pod_is_added_while_garbage_is_collected(node: Node) -> None:
    node.write("first", cniVersion="1.1.0")
    node.network.attach(node.pod("one"))
    inside, go_on = threading.Event(), threading.Event()

    def wait(invocation: Invocation) -> None:
        if invocation.command is Command.GC:
            inside.set()
            assert go_on.wait(10)

    node.fakes.before = wait
    collector = threading.Thread(target=node.network.collect_garbage)
    collector.start()
    assert inside.wait(10)
    with pytest.raises(DeadlineExceeded):
        node.network.attach(node.pod("two"), deadline=Deadline.after(0.05))
    go_on.set()
    collector.join()
    node.network.attach(node.pod("two"))


def test_a_new_configuration_is_followed_by_garbage_collection(node: Node) -> None:
    node.write("first", cniVersion="1.1.0")
    node.network.folder()
    node.write("first", cniVersion="1.1.0", extra=1, file="10-net.conflist", disableCheck=True)
    node.network.folder()
    # The thread that watches may have seen it first, and asks for it a moment later.
    until = time.monotonic() + 10
    while not any("garbage" in name for name, _ in node.jobs):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_status_is_asked_since_1_1_and_what_it_says_is_told(node: Node) -> None:
    node.write("first", cniVersion="1.0.0")
    node.fakes.fail("first", Command.STATUS, CniError(50, "no route to the control plane"))
    assert node.network.status()[0]
    node.write("first", cniVersion="1.1.0")
    ready, reason, message = node.network.status()
    assert (ready, reason) == (False, "NetworkPluginNotReady")
    assert "no route to the control plane" in message
    asked = node.fakes.told().count("STATUS first")
    node.network.status()
    assert node.fakes.told().count("STATUS first") == asked, "asked once for those that ask together"


def test_the_newest_version_that_all_plugins_know_is_chosen(node: Node) -> None:
    programs = node.directory / "bin"
    programs.mkdir()
    old = programs / "old"
    supported = '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}'
    old.write_text(f"#!/bin/sh\n[ $CNI_COMMAND = VERSION ] && exec echo '{supported}'\ncat\n")
    old.chmod(0o755)
    node.write("first", "old", cniVersion="0.4.0", cniVersions=["0.4.0", "1.0.0", "1.1.0", "2.0.0"])
    with pytest.raises(ForgeError):
        node.network.attach(node.pod())
    assert node.fakes.calls[0].config["cniVersion"] == "1.0.0"


def test_a_handlers_folder_is_taken_instead(node: Node) -> None:
    other = node.directory / "other.d"
    other.mkdir()
    node.write("first")
    (other / "5.conf").write_text('{"cniVersion": "1.0.0", "name": "other", "type": "third"}')
    node.network.attach(node.pod(conf_dir=str(other)))
    assert node.fakes.told() == ["ADD third"]


def test_programs_can_be_asked_for(tmp_path: Path) -> None:
    node = Node(tmp_path, in_process=False)
    try:
        node.write("first")
        with pytest.raises(CniError, match="no executable 'first'"):
            node.network.attach(node.pod())
        assert node.fakes.calls == []
    finally:
        node.close()


def test_the_preferred_family_is_first(tmp_path: Path) -> None:
    for preference, first in (("ipv4", "10.9.0.2"), ("ipv6", "fd00::2"), ("cni", "fd00::2")):
        (tmp_path / preference).mkdir()
        node = Node(tmp_path / preference, ip_preference=preference)
        try:
            node.write("first")
            result: dict[str, Any] = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/n"}]}
            result["ips"] = [{"address": "fd00::2/64", "interface": 0}, {"address": "10.9.0.2/24", "interface": 0}]
            node.fakes._result = lambda _, told=result: told  # type: ignore[method-assign,misc]
            assert node.network.attach(node.pod()).ips[0] == first
        finally:
            node.close()


@pytest.mark.parametrize("dies", [True, False], ids=["and the process dies", "and it goes on"])
@pytest.mark.parametrize("write", range(1, 8))
def test_whichever_write_fails_nothing_is_left_in_the_end(node: Node, write: int, *, dies: bool) -> None:
    node.write("first", "second", "third")
    left = write

    def count(wrapped: Callable[..., object]) -> Callable[..., object]:
        def counted(*args: object) -> object:
            nonlocal left
            left -= 1
            if left == 0 or (dies and left < 0):
                raise OSError(28, "No space left on device")
            return wrapped(*args)

        return counted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node.store, "put", count(node.store.put))
        patch.setattr(node.store, "delete", count(node.store.delete))
        with contextlib.suppress(ForgeError, OSError):
            node.network.attach(node.pod())
            node.network.detach("pod1")
    jobs = node.jobs
    if dies:
        node.restart()
        assert node.network.reconcile(set) == ()
    else:
        for _, job in jobs:
            job()
        node.network.detach("pod1")
    assert node.fakes.there == set()
    assert node.stored() == []
