from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import Edits, Hook, HookStage, MountEdit, NetDeviceEdit, NodeEdit, RdtEdit
from forgeone_shim.devices.spec import VERSIONS, device_file
from forgeone_shim.dropins import documents
from forgeone_shim.errors import InvalidInput

ENV = {"env": ["A=1"]}


def document(edits: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A file of one device with these edits."""
    whole = {
        "cdiVersion": "1.1.0",
        "kind": "vendor.com/net",
        "devices": [{"name": "one", "containerEdits": ENV if edits is None else edits}],
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


def one(edits: dict[str, Any], **changes: Any) -> Edits:
    return device_file("f", document(edits, **changes)).devices["one"]


def test_everything_that_can_be_said_is_understood() -> None:
    edits = one(
        {
            "env": ["A=1", "B="],
            "deviceNodes": [
                {"path": "/dev/a"},
                {
                    "path": "/dev/b",
                    "hostPath": "/dev/hb",
                    "type": "b",
                    "major": 7,
                    "minor": 0,
                    "fileMode": 0o660,
                    "permissions": "rw",
                    "uid": 5,
                    "gid": 6,
                },
                {"path": "/dev/u", "type": "u", "major": 1, "permissions": "none"},
            ],
            "mounts": [{"hostPath": "/h", "containerPath": "/c", "type": "bind", "options": ["rbind", "ro"]}],
            "hooks": [{"hookName": "createRuntime", "path": "/h", "args": ["h", "x"], "env": ["Z=1"], "timeout": 3}],
            "intelRdt": {"closID": "gold", "schemata": ["L3:0=f"], "enableMonitoring": True},
            "netDevices": [{"hostInterfaceName": "eth1", "name": "net1"}],
            "additionalGids": [44, 0],
        }
    )
    assert edits == Edits(
        env=("A=1", "B="),
        nodes=(
            NodeEdit(path="/dev/a", host_path="/dev/a"),
            NodeEdit(
                path="/dev/b",
                host_path="/dev/hb",
                kind="b",
                major=7,
                minor=0,
                mode=0o660,
                uid=5,
                gid=6,
                permissions="rw",
            ),
            NodeEdit(path="/dev/u", host_path="/dev/u", kind="c", major=1, minor=0, permissions=""),
        ),
        mounts=(MountEdit("/c", "/h", "bind", ("rbind", "ro")),),
        hooks=(Hook(HookStage.CREATE_RUNTIME, "/h", ("h", "x"), ("Z=1",), 3),),
        rdt=RdtEdit(clos_id="gold", schemata=("L3:0=f",), monitoring=True),
        net_devices=(NetDeviceEdit("eth1", "net1"),),
        additional_gids=(44,),
    )


def test_a_hook_without_arguments_has_its_path_as_its_name() -> None:
    assert one({"hooks": [{"hookName": "poststop", "path": "/h"}]}).hooks[0].args == ("/h",)


def test_a_file_has_edits_of_its_own_and_notes_that_change_nothing() -> None:
    found = device_file("f", document(containerEdits={"env": ["G=1"]}, annotations={"a": "b"}))
    assert found.edits.env == ("G=1",)
    assert found.kind == "vendor.com/net"


def test_what_is_null_is_not_given() -> None:
    assert one({"env": ["A=1"], "mounts": None}).mounts == ()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"cdiVersion": ...}, "f.cdiVersion"),
        ({"cdiVersion": "9.9.9"}, "f.cdiVersion"),
        ({"cdiVersion": 1.0}, "f.cdiVersion"),
        ({"kind": "vendor"}, "f.kind"),
        ({"kind": "vendor.com/a/b"}, "f.kind"),
        ({"kind": "1vendor/a"}, "f.kind"),
        ({"kind": "vendor.com/" + "a" * 64}, "f.kind"),
        ({"devices": []}, "f.devices"),
        ({"devices": {}}, "f.devices"),
        ({"devices": [{"name": "a", "containerEdits": ENV}] * 2}, "f.devices"),
        ({"devices": [{"name": "-a", "containerEdits": ENV}]}, "f.devices[0].name"),
        ({"devices": [{"name": "a", "containerEdits": {}}]}, "f.devices[0].containerEdits"),
        ({"devices": [{"name": "a"}]}, "f.devices[0].containerEdits"),
        ({"devices": [{"name": "a", "containerEdits": ENV, "colour": 1}]}, "f.devices[0].colour"),
        ({"containerEdits": [ENV]}, "f.containerEdits"),
        ({"annotations": {"a": 1}}, "f.annotations"),
        ({"devcies": []}, "f.devcies"),
    ],
)
def test_a_file_that_says_something_else_is_refused_with_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        device_file("f", document(**changes))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("edits", "field"),
    [
        ({"env": ["=x"]}, "env"),
        ({"env": ["A"]}, "env"),
        ({"env": "A=1"}, "env"),
        ({"env": ["A=\0"]}, "env"),
        ({"deviceNodes": [{"hostPath": "/a"}]}, "deviceNodes[0].path"),
        ({"deviceNodes": [{"path": "dev/a"}]}, "deviceNodes[0].path"),
        ({"deviceNodes": [{"path": "/a", "type": "x"}]}, "deviceNodes[0].type"),
        ({"deviceNodes": [{"path": "/a", "permissions": "rx"}]}, "deviceNodes[0].permissions"),
        ({"deviceNodes": [{"path": "/a", "major": -1}]}, "deviceNodes[0].major"),
        ({"deviceNodes": [{"path": "/a", "uid": True}]}, "deviceNodes[0].uid"),
        ({"deviceNodes": [{"path": "/a", "fileMode": 0o10000}]}, "deviceNodes[0].fileMode"),
        ({"mounts": [{"hostPath": "/a"}]}, "mounts[0].containerPath"),
        ({"mounts": [{"hostPath": "a", "containerPath": "/a", "options": ["bind"]}]}, "mounts[0].hostPath"),
        ({"hooks": [{"hookName": "never", "path": "/h"}]}, "hooks[0].hookName"),
        ({"hooks": [{"hookName": "prestart", "path": "h"}]}, "hooks[0].path"),
        ({"hooks": [{"hookName": "prestart", "path": "/h", "timeout": 0}]}, "hooks[0].timeout"),
        ({"intelRdt": {"closID": ".."}}, "intelRdt.closID"),
        ({"intelRdt": {"closID": "a/b"}}, "intelRdt.closID"),
        ({"netDevices": [{"hostInterfaceName": "a/b", "name": "x"}]}, "netDevices[0].hostInterfaceName"),
        ({"netDevices": [{"hostInterfaceName": "a", "name": "x" * 16}]}, "netDevices[0].name"),
        ({"netDevices": [{"hostInterfaceName": name, "name": "x"} for name in "ab"]}, "netDevices"),
        ({"additionalGids": [-1]}, "additionalGids"),
    ],
)
def test_an_edit_that_cannot_be_made_is_refused_with_the_field(edits: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        one(edits)
    assert caught.value.field == f"f.devices[0].containerEdits.{field}"


def test_a_mount_of_a_kernel_file_system_has_no_path_on_the_host() -> None:
    mount = {"hostPath": "tmpfs", "containerPath": "/t", "type": "tmpfs", "options": ["nosuid"]}
    assert one({"mounts": [mount]}).mounts == (MountEdit("/t", "tmpfs", "tmpfs", ("nosuid",)),)


@pytest.mark.parametrize(
    ("needed", "changes"),
    [
        ("0.4.0", {"containerEdits": {"mounts": [{"hostPath": "/a", "containerPath": "/a", "type": "bind"}]}}),
        ("0.5.0", {"containerEdits": {"deviceNodes": [{"path": "/a", "hostPath": "/b"}]}}),
        ("0.5.0", {"devices": [{"name": "0", "containerEdits": ENV}]}),
        ("0.6.0", {"annotations": {"a": "b"}}),
        ("0.6.0", {"devices": [{"name": "a", "annotations": {"a": "b"}, "containerEdits": ENV}]}),
        ("0.6.0", {"kind": "vendor.com/a.b"}),
        ("0.7.0", {"containerEdits": {"intelRdt": {"closID": "a"}}}),
        ("0.7.0", {"containerEdits": {"additionalGids": [1]}}),
        ("1.1.0", {"containerEdits": {"intelRdt": {"enableMonitoring": False}}}),
        ("1.1.0", {"containerEdits": {"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}}),
    ],
)
def test_a_file_must_say_the_version_that_what_is_in_it_needs(needed: str, changes: dict[str, Any]) -> None:
    device_file("f", document(cdiVersion=needed, **changes))
    older = VERSIONS[VERSIONS.index(needed) - 1]
    with pytest.raises(InvalidInput, match=f"needs {needed}"):
        device_file("f", document(cdiVersion=older, **changes))


def test_the_oldest_version_is_enough_for_what_is_plain() -> None:
    assert one(ENV, cdiVersion="v0.3.0").env == ("A=1",)


YAML = b"""---
# as vendors' tools write them
cdiVersion: 0.5.0
kind: vendor.com/gpu
devices:
  - name: "0"
    containerEdits:
      deviceNodes:
        - path: /dev/gpu0
          major: 195
          fileMode: 438
containerEdits:
  env: [GPU=all, WHEN=2026-01-01]
  hooks:
  - hookName: createContainer
    path: /usr/bin/gpu-hook
    args: [gpu-hook, update]
"""


def test_yaml_says_the_same_as_json() -> None:
    found = device_file("f", documents.parse("/etc/cdi/f.yaml", YAML))
    assert found.devices["0"].nodes == (
        NodeEdit(path="/dev/gpu0", host_path="/dev/gpu0", major=195, minor=0, mode=0o666),
    )
    assert found.edits.env == ("GPU=all", "WHEN=2026-01-01")
    assert found.edits.hooks[0].args == ("gpu-hook", "update")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.json", b""),
        ("a.json", b"{"),
        ("a.json", b'{"a": 1, "a": 2}'),
        ("a.json", b'{"a": NaN}'),
        ("a.json", b"\xff\xfe"),
        ("a.json", b"[" * 100_000),
        ("a.yaml", b"a: 1\na: 2"),
        ("a.yaml", b"a: &x [1]\nb: *x"),
        ("a.yaml", b"1: a"),
        ("a.yaml", b"a: [1"),
        ("a.yaml", b"[" * 100_000),
        ("a.yaml", b"--- 1\n--- 2\n"),
        ("a.yaml", b"a: !!python/object/apply:os.getpid []"),
        ("a.yaml", b"\xff\xfeab"),
    ],
)
def test_text_that_is_not_plainly_one_document_is_refused_with_the_file(name: str, data: bytes) -> None:
    with pytest.raises(InvalidInput, match=name):
        documents.parse(name, data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
WHOLE = document(
    {
        "env": ["A=1"],
        "deviceNodes": [{"path": "/dev/a", "type": "c", "major": 1}],
        "mounts": [{"hostPath": "/h", "containerPath": "/c", "options": ["rbind"]}],
        "hooks": [{"hookName": "createRuntime", "path": "/h", "args": ["h"]}],
        "intelRdt": {"closID": "gold"},
        "netDevices": [{"hostInterfaceName": "eth1", "name": "net1"}],
    }
)


@given(st.data())
def test_whatever_stands_anywhere_the_answer_is_devices_or_the_field_that_is_wrong(data: st.DataObject) -> None:
    whole: Any = copy.deepcopy(WHOLE)
    place = whole
    while True:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    try:
        assert device_file("f", json.loads(json.dumps(whole))).devices
    except InvalidInput as error:
        assert error.field.startswith("f")


@given(st.binary(max_size=60), st.sampled_from(["a.json", "a.yaml"]))
def test_no_bytes_are_worse_than_refused(data: bytes, name: str) -> None:
    try:
        device_file(name, documents.parse(name, data))
    except InvalidInput as error:
        assert name in str(error)
