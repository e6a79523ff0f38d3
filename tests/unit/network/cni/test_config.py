"""Network configurations as files: which counts, what is accepted, and how the rest is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgeone_shim.errors import InvalidInput
from forgeone_shim.network.cni.config import NetworkList, decode, files_in, parse_list, read_file, read_folder

# What network add-ons install, in shape.
FLANNEL = """{
  "name": "cbr0", "cniVersion": "0.3.1",
  "plugins": [
    {"type": "flannel", "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}"""
CALICO = """{
  "name": "k8s-pod-network", "cniVersion": "0.3.1",
  "plugins": [
    {"type": "calico", "log_level": "info", "datastore_type": "kubernetes", "nodename": "node-1", "mtu": 0,
     "ipam": {"type": "calico-ipam"}, "policy": {"type": "k8s"},
     "kubernetes": {"kubeconfig": "/etc/cni/net.d/calico-kubeconfig"}},
    {"type": "portmap", "snat": true, "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
  ]
}"""
CILIUM = '{"cniVersion": "0.3.1", "name": "cilium", "plugins": [{"type": "cilium-cni", "enable-debug": false}]}'
KIND = """{
  "cniVersion": "0.3.1", "name": "kindnet",
  "plugins": [
    {"type": "ptp", "ipMasq": false, "mtu": 1500,
     "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state",
              "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.244.0.0/24"}]]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}"""
PODMAN = """{
  "cniVersion": "0.4.0", "name": "podman",
  "plugins": [
    {"type": "bridge", "bridge": "cni-podman0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}],
              "ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]]}},
    {"type": "portmap", "capabilities": {"portMappings": true}}, {"type": "firewall"}, {"type": "tuning"}
  ]
}"""


def put(folder: Path, name: str, content: object) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.mark.parametrize(
    ("text", "name", "version", "types"),
    [
        (FLANNEL, "cbr0", "0.3.1", ("flannel", "portmap")),
        (CALICO, "k8s-pod-network", "0.3.1", ("calico", "portmap", "bandwidth")),
        (CILIUM, "cilium", "0.3.1", ("cilium-cni",)),
        (KIND, "kindnet", "0.3.1", ("ptp", "portmap")),
        (PODMAN, "podman", "0.4.0", ("bridge", "portmap", "firewall", "tuning")),
    ],
)
def test_what_network_addons_install_is_read(
    tmp_path: Path, text: str, name: str, version: str, types: tuple[str, ...]
) -> None:
    network = read_file(put(tmp_path, "10-addon.conflist", text))
    assert (network.name, network.version, network.types) == (name, version, types)


@pytest.mark.parametrize("file", ["5-x.conf", "5-x.json"])
def test_a_single_plugin_is_a_list_of_one(tmp_path: Path, file: str) -> None:
    network = read_file(
        put(tmp_path, file, {"cniVersion": "1.0.0", "name": "one", "type": "macvlan", "master": "eth0"})
    )
    assert network.types == ("macvlan",)
    assert network.plugins[0]["master"] == "eth0"


def test_files_count_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("20-b.conflist", "10-a.conf", "readme.md", ".hidden.conflist", "100-c.json", "x.conflist.bak"):
        put(tmp_path, name, CILIUM)
    (tmp_path / "00-folder.conflist").mkdir()
    assert files_in(str(tmp_path)) == [".hidden.conflist", "10-a.conf", "100-c.json", "20-b.conflist"]


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    folder = read_folder(str(tmp_path / "gone"), 1)
    assert (folder.networks, folder.problem, folder.present) == ((), "", False)


def test_only_so_many_files_are_read(tmp_path: Path) -> None:
    put(tmp_path, "10.conflist", FLANNEL)
    put(tmp_path, "20.conflist", CILIUM)
    put(tmp_path, "30.conflist", "broken")
    assert [network.name for network in read_folder(str(tmp_path), 2).networks] == ["cbr0", "cilium"]
    assert "30.conflist" in read_folder(str(tmp_path), 0).problem


def test_two_files_of_one_network_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "10.conflist", CILIUM)
    put(tmp_path, "20.conflist", CILIUM)
    assert "'cilium'" in read_folder(str(tmp_path), 0).problem


BASE = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": None}, "name None"),
        ({"name": "../etc"}, "not a network's name"),
        ({"name": ""}, "not a network's name"),
        ({"plugins": []}, "has no plugins"),
        ({"plugins": {}}, "not a list"),
        ({"plugins": ["bridge"]}, r"plugins\[0\] is not an object"),
        ({"plugins": [{"bridge": "x"}]}, r"plugins\[0\] has no type"),
        ({"plugins": [{"type": "../../bin/sh"}]}, "not a plugin's name"),
        ({"plugins": [{"type": "a", "capabilities": ["dns"]}]}, "capabilities"),
        ({"plugins": [{"type": "a", "capabilities": {"dns": "yes"}}]}, "capabilities"),
        ({"cniVersion": "0.2.0"}, "0.2.0 is not supported"),
        ({"cniVersion": "2.0.0"}, "2.0.0 is not supported"),
        ({"cniVersion": 1}, "not a version"),
        ({"cniVersion": "1.0"}, "not a version"),
        ({"cniVersions": "1.0.0"}, "not a list"),
        ({"cniVersions": ["one"]}, "not a version"),
        ({"disableCheck": "maybe"}, "disableCheck is neither true nor false"),
        ({"disableGC": 1}, "disableGC is neither true nor false"),
        ({"loadOnlyInlinedPlugins": True, "plugins": []}, "loadOnlyInlinedPlugins"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_file_and_the_reason(
    tmp_path: Path, change: dict[str, object], reason: str
) -> None:
    path = put(tmp_path, "10.conflist", BASE | change)
    with pytest.raises(InvalidInput, match=reason) as caught:
        read_file(path)
    assert caught.value.field == path


def test_a_file_without_a_version_is_told_what_that_means(tmp_path: Path) -> None:
    path = put(tmp_path, "10.conflist", {"name": "net", "plugins": [{"type": "bridge"}]})
    with pytest.raises(InvalidInput, match=r"which means 0\.1\.0"):
        read_file(path)


def test_a_list_in_a_file_for_one_plugin_is_told_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"ends in \.conflist"):
        read_file(put(tmp_path, "10.conf", FLANNEL))


@pytest.mark.parametrize("content", ["", "  \n", "{", "[]", "null", '"x"', '{"name": "a",}', "\x00"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(InvalidInput):
        read_file(put(tmp_path, "10.conflist", content))


def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "10.conflist")
    assert "not a regular file" in read_folder(str(tmp_path), 1).problem


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "10.conflist", " " * 2_000_000)
    assert "larger than 1 MiB" in read_folder(str(tmp_path), 1).problem


def test_a_dangling_symlink_is_told(tmp_path: Path) -> None:
    (tmp_path / "10.conflist").symlink_to("nowhere")
    assert "10.conflist" in read_folder(str(tmp_path), 1).problem


def test_flags_may_be_strings(tmp_path: Path) -> None:
    network = read_file(put(tmp_path, "1.conflist", {**BASE, "disableCheck": "true", "disableGC": "FALSE"}))
    assert (network.disable_check, network.disable_gc) == (True, False)


def test_of_several_versions_the_newest_known_counts() -> None:
    network = parse_list({**BASE, "cniVersion": "0.4.0", "cniVersions": ["1.1.0", "0.3.1", "9.9.9"]}, "x")
    assert (network.version, network.candidates) == ("1.1.0", ("1.1.0", "0.4.0", "0.3.1"))


def test_plugins_in_the_folder_of_the_networks_name_follow_those_in_the_list(tmp_path: Path) -> None:
    beside = tmp_path / "net"
    beside.mkdir()
    put(beside, "20.conf", {"type": "later"})
    put(beside, "10.conf", {"type": "sooner"})
    put(beside, "30.json", {"type": "not-this"})
    assert read_file(put(tmp_path, "1.conflist", BASE)).types == ("bridge", "sooner", "later")
    only = {**BASE, "loadOnlyInlinedPlugins": True}
    assert read_file(put(tmp_path, "1.conflist", only)).types == ("bridge",)
    bare = {"cniVersion": "1.1.0", "name": "net"}
    assert read_file(put(tmp_path, "1.conflist", bare)).types == ("sooner", "later")


def test_a_bad_plugin_in_that_folder_is_told_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    put(tmp_path / "net", "10.conf", {"kind": "x"})
    put(tmp_path, "1.conflist", BASE)
    assert "net/10.conf: has no type" in read_folder(str(tmp_path), 1).problem


def test_what_came_with_a_version_is_known() -> None:
    assert NetworkList("n", "1.0.0", ()).at_least("0.4.0")
    assert not NetworkList("n", "0.3.1", ()).at_least("0.4.0")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
KEYS = st.sampled_from(
    ["name", "cniVersion", "cniVersions", "plugins", "type", "capabilities", "disableCheck", "loadOnlyInlinedPlugins"]
)


@given(st.dictionaries(KEYS, JSON))
def test_any_json_is_a_network_or_refused(table: dict[str, object]) -> None:
    try:
        network = parse_list(table, "x")
    except InvalidInput:
        return
    assert network.plugins


@given(st.binary(max_size=64))
def test_any_bytes_are_an_object_or_refused(data: bytes) -> None:
    try:
        assert isinstance(decode("x", data), dict)
    except InvalidInput:
        return
