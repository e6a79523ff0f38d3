from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.base import (
    ContainerPlan,
    Device,
    Edits,
    Hook,
    HookStage,
    Mount,
    NetDeviceEdit,
    Process,
    RdtEdit,
    Resources,
    Security,
    User,
)
from engines.native import capabilities, hooks, spec
from engines.native.defaults import CGROUP_ANNOTATION, DEVICES_ANNOTATION
from engines.native.devices import Node
from engines.native.extras import Extras, ExtraSettings
from engines.native.spec import Gathered
from forgeone_shim.deadline import NEVER, Deadline
from forgeone_shim.dropins.files import untrusted
from forgeone_shim.errors import FailedPrecondition, InvalidInput, PermissionDenied
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.kernel.host import Host
from tests.unit.native.conftest import PlanMaker, make_host

DELEGATING = make_host(cgroup_mount_options=("nsdelegate",))


def extras(host: Host | None = None, **settings: Any) -> Extras:
    return Extras(ExtraSettings(**settings), host or make_host(), lambda: (1, 8, 1))


def made(plan: ContainerPlan, host: Host | None = None, deadline: Deadline = NEVER, **settings: Any) -> dict[str, Any]:
    """The configuration, as the engine makes it, but for what it reads from the host."""
    host = host or make_host()
    added = extras(host, **settings)
    plan = added.asked(plan)
    gathered = Gathered(mount_points={}, mounts=plan.spec.mounts)
    whole = spec.config(plan, host, added.found(plan, gathered), lambda profile: None)
    added.put(whole, plan, deadline)
    return whole


def test_a_container_of_which_nothing_is_asked_stays_as_it_is(plan: PlanMaker, host: Host) -> None:
    asked = plan()
    assert extras().asked(asked) is asked
    before = spec.config(asked, host, Gathered(mount_points={}), lambda profile: None)
    assert made(asked, host) == before


# Defaults


def test_default_variables_give_way_to_the_image_and_the_container(plan: PlanMaker) -> None:
    process = Process(args=("a",), env=("A=own",), cwd="/", user=User())
    found = made(plan(process=process), default_env=("A=node", "B=node"))["process"]["env"]
    assert "A=own" in found
    assert "B=node" in found
    assert "A=node" not in found


def test_default_mounts_are_there_unless_the_container_has_one_at_that_place(plan: PlanMaker) -> None:
    own = Mount("/b", "/mine")
    found = made(plan(mounts=(own,)), default_mounts=("/srv/a:/a:ro", "/srv/b:/b"))["mounts"]
    binds = {mount["destination"]: (mount["source"], mount["options"][2]) for mount in found if mount["type"] == "bind"}
    assert binds == {"/a": ("/srv/a", "ro"), "/b": ("/mine", "rw")}


def test_default_devices_come_before_the_containers_own(plan: PlanMaker) -> None:
    asked = extras(additional_devices=("/dev/fuse:rw",)).asked(plan(devices=(Device("/dev/x", "/dev/y", "r"),)))
    assert asked.spec.devices == (Device("/dev/fuse", "/dev/fuse", "rw"), Device("/dev/x", "/dev/y", "r"))


@pytest.mark.parametrize(
    ("security", "held"),
    [
        (Security(), {"CHOWN", "NET_ADMIN"}),
        (Security(add_capabilities=("SYS_TIME",)), {"CHOWN", "NET_ADMIN", "SYS_TIME"}),
        (Security(add_capabilities=("kill",)), {"CHOWN", "NET_ADMIN", "KILL"}),
        (Security(drop_capabilities=("CHOWN",)), {"NET_ADMIN"}),
        (Security(drop_capabilities=("ALL",)), set()),
        (Security(drop_capabilities=("ALL",), add_capabilities=("KILL",)), {"KILL"}),
        (Security(add_ambient_capabilities=("KILL",)), {"CHOWN", "NET_ADMIN", "KILL"}),
    ],
)
def test_default_capabilities_are_what_is_added_to_and_dropped_from(
    plan: PlanMaker, security: Security, held: set[str]
) -> None:
    found = made(plan(security=security), default_capabilities=("CHOWN", "CAP_NET_ADMIN"))["process"]["capabilities"]
    assert set(found["bounding"]) == {f"CAP_{name}" for name in held}


def test_all_capabilities_are_all_whatever_the_default_is(plan: PlanMaker) -> None:
    security = Security(add_capabilities=("ALL",))
    found = made(plan(security=security), default_capabilities=("CHOWN",))["process"]["capabilities"]
    assert set(found["bounding"]) == set(capabilities.KNOWN)


def test_a_default_capability_that_the_host_cannot_give_is_left_out(plan: PlanMaker) -> None:
    host = make_host(capabilities=frozenset({"CAP_CHOWN"}))
    found = made(plan(), host, default_capabilities=("CHOWN", "SYS_ADMIN"))["process"]["capabilities"]
    assert found["bounding"] == ["CAP_CHOWN"]


def test_process_limits_are_the_nodes(plan: PlanMaker) -> None:
    found = made(plan(), default_ulimits=("nofile=10:20", "core=-1", "nofile=30"))["process"]["rlimits"]
    assert found == [
        {"type": "RLIMIT_NOFILE", "soft": 30, "hard": 30},
        {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]


def test_without_cap_sys_resource_no_limit_is_above_our_own(plan: PlanMaker) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    host = make_host(capabilities=frozenset({"CAP_CHOWN"}))
    found = made(plan(), host, default_ulimits=(f"nofile=5:{hard + 1}",))["process"]["rlimits"]
    assert found == [{"type": "RLIMIT_NOFILE", "soft": 5, "hard": hard}]


def test_an_exec_has_the_containers_limits(plan: PlanMaker) -> None:
    whole = made(plan(), default_ulimits=("nofile=10:20",))
    assert spec.exec_process(msgspec.json.encode(whole), ("a",))["rlimits"] == whole["process"]["rlimits"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("default_env", ("=x",)),
        ("default_mounts", ("/a",)),
        ("default_capabilities", ("FLY",)),
        ("default_ulimits", ("files=1",)),
        ("additional_devices", ("fuse",)),
        ("allowed_devices", ("fuse",)),
        ("allowed_devices", ("/dev/fuse:/dev/other",)),
        ("cgroup_writable", "sometimes"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(key: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        extras(**{key: value})
    assert caught.value.field == f"native.{key}"


# What pods may ask for


def test_a_pod_gets_the_devices_that_the_node_offers(plan: PlanMaker) -> None:
    asked = plan(pod_annotations={DEVICES_ANNOTATION: "/dev/fuse, /dev/net/tun:/dev/tun:rw"})
    found = extras(allowed_devices=("/dev/fuse", "/dev/net/tun")).asked(asked).spec.devices
    assert found == (Device("/dev/fuse", "/dev/fuse", "rwm"), Device("/dev/tun", "/dev/net/tun", "rw"))


def test_a_pod_that_asks_for_another_device_is_refused(plan: PlanMaker) -> None:
    asked = plan(pod_annotations={DEVICES_ANNOTATION: "/dev/fuse,/dev/sda"})
    with pytest.raises(PermissionDenied, match="/dev/sda"):
        extras(allowed_devices=("/dev/fuse",)).asked(asked)
    with pytest.raises(InvalidInput):
        extras(allowed_devices=("/dev/fuse",)).asked(plan(pod_annotations={DEVICES_ANNOTATION: ""}))


def test_a_pod_gets_a_device_with_no_more_than_what_the_node_offers(plan: PlanMaker) -> None:
    node = extras(allowed_devices=("/dev/kmsg:r",))
    assert node.asked(plan(pod_annotations={DEVICES_ANNOTATION: "/dev/kmsg:r"})).spec.devices[0].permissions == "r"
    for text in ("/dev/kmsg", "/dev/kmsg:rw", "/dev/kmsg:/dev/mine:w"):
        with pytest.raises(PermissionDenied, match="with 'r', not"):
            node.asked(plan(pod_annotations={DEVICES_ANNOTATION: text}))


def test_the_containers_own_annotations_ask_for_nothing(plan: PlanMaker) -> None:
    asked = plan(annotations={DEVICES_ANNOTATION: "/dev/sda", CGROUP_ANNOTATION: "true"})
    made(asked)


@pytest.mark.parametrize(
    ("setting", "annotation", "option"),
    [
        ("never", None, "ro"),
        ("never", "false", "ro"),
        ("annotation", None, "ro"),
        ("annotation", "true", "rw"),
        ("always", None, "rw"),
        ("always", "false", "ro"),
    ],
)
def test_a_cgroup_can_be_written_to_where_node_and_pod_agree(
    plan: PlanMaker, setting: str, annotation: str | None, option: str
) -> None:
    annotations = {} if annotation is None else {CGROUP_ANNOTATION: annotation}
    mounts = made(plan(pod_annotations=annotations), DELEGATING, cgroup_writable=setting)["mounts"]
    assert option in next(mount["options"] for mount in mounts if mount["destination"] == "/sys/fs/cgroup")


def test_a_cgroup_that_the_node_does_not_give_is_refused(plan: PlanMaker) -> None:
    asked = plan(pod_annotations={CGROUP_ANNOTATION: "true"})
    with pytest.raises(PermissionDenied, match="cgroup"):
        made(asked)
    with pytest.raises(FailedPrecondition, match="v2"):
        made(asked, make_host(Mode.V1), cgroup_writable="annotation")
    with pytest.raises(FailedPrecondition, match="nsdelegate"):
        # It could lift its own limits there.
        made(asked, make_host(), cgroup_writable="annotation")
    with pytest.raises(InvalidInput):
        made(plan(pod_annotations={CGROUP_ANNOTATION: "yes"}), cgroup_writable="always")


def test_only_devices_that_were_asked_for_change_their_owner_and_never_to_root(plan: PlanMaker) -> None:
    devices = (Device("/dev/x", "/dev/null"), Device("/dev/dri", "/dev/dri"))
    nodes = tuple(Node(path, "c", 1, 3, 0o660, 0, 44) for path in ("/dev/x", "/dev/dri/card0", "/dev/drifter"))
    owned = extras(device_ownership_from_security_context=True)
    asked = plan(devices=devices, security=Security(run_as_user=1000, run_as_group=0))
    found = owned.found(asked, Gathered(mount_points={}, devices=nodes)).devices
    assert [(node.uid, node.gid) for node in found] == [(1000, 44), (1000, 44), (0, 44)]
    kept = extras().found(asked, Gathered(mount_points={}, devices=nodes)).devices
    assert kept == nodes


# Hooks and devices


def hook(tmp_path: Path, stage: HookStage, **changes: Any) -> Hook:
    program = tmp_path / "hook"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return Hook(stage, str(program), ("hook", "a"), **changes)


def test_crun_gets_the_hooks_of_creation_and_the_others_are_kept(plan: PlanMaker, tmp_path: Path) -> None:
    hooks = tuple(hook(tmp_path, stage) for stage in HookStage)
    asked = plan(edits=Edits(hooks=hooks), bundle=str(tmp_path))
    added = extras()
    whole = spec.config(asked, make_host(), Gathered(mount_points={}), lambda profile: None)
    chosen = added.put(whole, asked, NEVER)
    assert list(whole["hooks"]) == ["prestart", "createRuntime", "createContainer", "startContainer"]
    assert whole["hooks"]["prestart"] == [{"path": hooks[0].path, "args": ["hook", "a"], "timeout": 60}]
    assert not (tmp_path / "hooks.json").exists()
    chosen.keep(str(tmp_path))
    assert b"poststart" in (tmp_path / "hooks.json").read_bytes()
    assert b"prestart" not in (tmp_path / "hooks.json").read_bytes()


def test_no_hook_of_creation_outlasts_the_callers_deadline(plan: PlanMaker, tmp_path: Path) -> None:
    hooks = tuple(hook(tmp_path, stage, timeout=30) for stage in (HookStage.PRESTART, HookStage.START_CONTAINER))
    found = made(plan(edits=Edits(hooks=hooks)), deadline=Deadline.after(5.5))["hooks"]
    assert found["prestart"][0]["timeout"] == 5
    assert found["startContainer"][0]["timeout"] == 30


@pytest.mark.parametrize("fault", ["missing", "writable", "not executable", "directory", "replaceable"])
def test_a_hook_that_is_not_roots_alone_is_refused(plan: PlanMaker, tmp_path: Path, fault: str) -> None:
    one = hook(tmp_path, HookStage.PRESTART)
    path = Path(one.path)
    if fault == "missing":
        path.unlink()
    elif fault == "directory":
        path.unlink()
        path.mkdir()
    elif fault == "replaceable":
        path.parent.chmod(0o777)
    else:
        path.chmod({"writable": 0o777, "not executable": 0o644}[fault])
    with pytest.raises(FailedPrecondition, match=str(path)):
        made(plan(edits=Edits(hooks=(one,))))


@pytest.mark.parametrize(
    ("mode", "owner", "group", "trusted"),
    [
        (0o755, 0, 7, True),
        (0o775, 0, 0, True),
        (0o775, 0, 7, False),
        (0o757, 0, 0, False),
        (0o755, 7, 0, False),
    ],
)
def test_what_root_alone_can_change_is_trusted(mode: int, owner: int, group: int, trusted: bool) -> None:
    status = os.stat_result((0o100000 | mode, 1, 1, 1, owner, group, 0, 0, 0, 0))
    assert (untrusted(status) == "") is trusted


def test_a_hook_below_a_sticky_directory_of_roots_is_safe(plan: PlanMaker, tmp_path: Path) -> None:
    one = hook(tmp_path, HookStage.PRESTART)
    tmp_path.chmod(0o1777)
    assert made(plan(edits=Edits(hooks=(one,))))["hooks"]


def test_a_hook_that_was_changed_since_is_not_run(tmp_path: Path) -> None:
    one = hook(tmp_path, HookStage.POSTSTART)
    hooks.keep(str(tmp_path), [one], {})
    Path(one.path).chmod(0o777)
    with pytest.raises(FailedPrecondition, match="by everybody"):
        hooks.poststart(str(tmp_path), "c", 1, {}, NEVER)


def test_a_hook_inside_the_container_is_not_looked_for_on_the_host(plan: PlanMaker) -> None:
    found = made(plan(edits=Edits(hooks=(Hook(HookStage.START_CONTAINER, "/in/the/image"),))))["hooks"]
    assert found["startContainer"][0]["path"] == "/in/the/image"


def test_a_crun_that_would_leave_something_out_is_too_old(plan: PlanMaker) -> None:
    with pytest.raises(FailedPrecondition, match=r"install crun 1\.22"):
        made(plan(edits=Edits(net_devices=(NetDeviceEdit("a", "b"),))))


def test_hooks_see_the_annotations_they_were_chosen_by_but_none_that_crun_obeys(
    plan: PlanMaker, tmp_path: Path
) -> None:
    directory = tmp_path / "hooks.d"
    directory.mkdir()
    one = hook(tmp_path, HookStage.PRESTART)
    when = {"annotations": {".": "."}}
    content = {"version": "1.0.0", "stages": ["prestart"], "when": when, "hook": {"path": one.path}}
    (directory / "a.json").write_text(json.dumps(content))
    annotations = {"run.oci.handler": "wasm", "org.systemd.property.X": "1", "example.com/a": "b"}
    whole = made(plan(pod_annotations=annotations, resources=Resources()), hooks_dirs=(str(directory),))
    assert whole["annotations"] == {"example.com/a": "b"}
    assert whole["hooks"]["prestart"][0]["path"] == one.path


def test_the_class_of_a_device_takes_the_place_of_another(plan: PlanMaker) -> None:
    asked = plan(edits=Edits(rdt=RdtEdit(clos_id="gold")), rdt_class="silver")
    assert extras().asked(asked).rdt_class == "gold"
    made_here = Edits(rdt=RdtEdit(clos_id="gold", l3_cache_schema="L3:0=f"))
    assert extras().asked(plan(edits=made_here, rdt_class="silver")).rdt_class == ""
    assert extras().asked(plan(rdt_class="silver")).rdt_class == "silver"


def test_what_is_in_the_way_of_the_settings_is_told(tmp_path: Path) -> None:
    assert extras().problems() == []
    (tmp_path / "a.json").write_text("{")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    host = make_host(Mode.V1, capabilities=frozenset({"CAP_CHOWN"}))
    found = extras(
        host,
        hooks_dirs=(str(tmp_path),),
        additional_devices=("/dev/no-such-device",),
        cgroup_writable="always",
        default_ulimits=(f"nofile={hard + 1}", "core=0"),
    ).problems()
    assert [problem.fatal for problem in found] == [True, True, False, True]
    assert [
        word
        for problem, word in zip(found, ("/dev/no-such-device", "v2", "nofile", "a.json"), strict=True)
        if word not in problem.what
    ] == []


def test_a_default_mount_is_none_that_the_caller_asked_for(plan: PlanMaker, tmp_path: Path) -> None:
    one = hook(tmp_path, HookStage.PRESTART)
    directory = tmp_path / "hooks.d"
    directory.mkdir()
    content = {"version": "1.0.0", "stages": ["prestart"], "when": {"hasBindMounts": True}, "hook": {"path": one.path}}
    (directory / "a.json").write_text(json.dumps(content))
    settings = {"hooks_dirs": (str(directory),), "default_mounts": ("/srv:/srv",)}
    assert "hooks" not in made(plan(), **settings)
    assert "hooks" in made(plan(mounts=(Mount("/a", "/b"),)), **settings)
