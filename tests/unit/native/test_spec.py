from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from engines.base import (
    ContainerPlan,
    IdMapping,
    Mount,
    Namespaces,
    Process,
    Profile,
    ProfileType,
    Propagation,
    Resources,
    Security,
    SELinux,
    SELinuxLabels,
    User,
)
from engines.native import spec
from engines.native.devices import Node
from engines.native.spec import Gathered
from forgeone_shim import binds
from forgeone_shim.binds import MountPoint
from forgeone_shim.errors import FailedPrecondition, InvalidInput, Unimplemented
from forgeone_shim.kernel.cgroups import Mode
from forgeone_shim.kernel.host import Host
from forgeone_shim.limits.resources import page_size
from tests.unit.native.conftest import PlanMaker, make_host


def made(plan: ContainerPlan, host: Host, **found: Any) -> dict[str, Any]:
    gathered = Gathered(**{"mount_points": {}, "mounts": plan.spec.mounts, **found})
    return spec.config(plan, host, gathered, lambda profile: None)


def options(config: dict[str, Any], destination: str) -> list[str]:
    return next(list(mount["options"]) for mount in config["mounts"] if mount["destination"] == destination)


def destinations(config: dict[str, Any]) -> list[str]:
    return [mount["destination"] for mount in config["mounts"]]


# Process


def test_the_image_s_variables_win_over_ours_and_the_last_of_two_counts(plan: PlanMaker, host: Host) -> None:
    asked = Process(args=("a",), env=("PATH=/x", "A=1", "A=2", "E="), cwd="", user=User(home="/home/u"))
    found = made(plan(process=asked, tty=True), host)["process"]
    assert found["env"] == ["PATH=/x", "HOSTNAME=pod", "TERM=xterm", "A=2", "E=", "HOME=/home/u"]
    assert found["cwd"] == "/"
    assert found["terminal"] is True


def test_without_variables_there_is_a_path_and_a_home(plan: PlanMaker, host: Host) -> None:
    found = made(plan(), host)["process"]["env"]
    assert found == [spec.PATH, "HOSTNAME=pod", "HOME=/"]


@pytest.mark.parametrize(
    "bad",
    [
        Process(args=(), env=(), cwd="/", user=User()),
        Process(args=("",), env=(), cwd="/", user=User()),
        Process(args=("a\0b",), env=(), cwd="/", user=User()),
        Process(args=("a",), env=("=x",), cwd="/", user=User()),
        Process(args=("a",), env=("A=\0",), cwd="/", user=User()),
        Process(args=("a",), env=(), cwd="etc", user=User()),
    ],
)
def test_a_process_that_cannot_be_is_refused(plan: PlanMaker, host: Host, bad: Process) -> None:
    with pytest.raises(InvalidInput):
        made(plan(process=bad), host)


def test_the_user_and_all_its_groups_are_set(plan: PlanMaker, host: Host) -> None:
    asked = Process(args=("a",), env=(), cwd="/", user=User(uid=1000, gid=100, additional_gids=(5, 6)))
    assert made(plan(process=asked), host)["process"]["user"] == {"uid": 1000, "gid": 100, "additionalGids": [5, 6]}


def test_an_oom_score_is_never_below_what_the_host_can_give(plan: PlanMaker, host: Host) -> None:
    asked = plan(resources=Resources(oom_score_adj=-900))
    assert made(asked, host)["process"]["oomScoreAdj"] == -900
    poor = make_host(capabilities=host.capabilities - {"CAP_SYS_RESOURCE"}, oom_score_adj=-5)
    assert made(asked, poor)["process"]["oomScoreAdj"] == -5
    assert made(plan(resources=Resources(oom_score_adj=900)), poor)["process"]["oomScoreAdj"] == 900


def test_exec_takes_everything_but_its_arguments_from_the_container(plan: PlanMaker, host: Host) -> None:
    whole = made(plan(tty=True, security=Security(no_new_privs=True)), host)
    found = spec.exec_process(json.dumps(whole).encode(), ("ls", "-l"))
    assert found["args"] == ["ls", "-l"]
    assert found["terminal"] is False
    assert found["noNewPrivileges"] is True
    assert found["capabilities"] == whole["process"]["capabilities"]
    for bad in ((), ("",), ("a\0",)):
        with pytest.raises(InvalidInput):
            spec.exec_process(json.dumps(whole).encode(), bad)


# Namespaces


def test_namespaces_are_joined_made_or_the_host_s(plan: PlanMaker, host: Host) -> None:
    asked = plan(namespaces=Namespaces(network=None, ipc="/n/ipc", uts=None, pid=""))
    assert made(asked, host)["linux"]["namespaces"] == [
        {"type": "ipc", "path": "/n/ipc"},
        {"type": "pid"},
        {"type": "mount"},
        {"type": "cgroup"},
    ]


@pytest.mark.parametrize(
    ("mode", "privileged", "private"),
    [(Mode.V2, False, True), (Mode.V2, True, False), (Mode.HYBRID, False, False), (Mode.V1, False, False)],
)
def test_only_an_unprivileged_container_on_v2_has_a_cgroup_namespace(
    plan: PlanMaker, mode: Mode, privileged: bool, private: bool
) -> None:
    found = made(plan(security=Security(privileged=privileged)), make_host(mode))["linux"]["namespaces"]
    assert ({"type": "cgroup"} in found) is private


# Mounts


def test_a_plain_container_has_the_kernel_s_file_systems(plan: PlanMaker, host: Host) -> None:
    found = made(plan(), host)
    assert destinations(found) == ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup"]
    assert "ro" in options(found, "/sys")
    assert "ro" in options(found, "/sys/fs/cgroup")


def test_a_privileged_container_may_write_sys_and_keeps_the_host_s_cgroup_options(plan: PlanMaker) -> None:
    host = make_host(cgroup_mount_options=("nsdelegate",))
    found = made(plan(security=Security(privileged=True)), host)
    assert "rw" in options(found, "/sys")
    assert options(found, "/sys/fs/cgroup")[-2:] == ["rw", "nsdelegate"]


@pytest.mark.parametrize("mode", list(Mode))
def test_a_user_namespace_on_the_host_s_network_has_the_host_s_sys_apart_from_the_host_s_own(
    plan: PlanMaker, mode: Mode
) -> None:
    asked = plan(namespaces=Namespaces(user="/u", network=None, ipc="/i", uts="/t", pid=""))
    found = made(asked, make_host(mode))
    [sys] = [mount for mount in found["mounts"] if mount["destination"] == "/sys"]
    assert (sys["type"], sys["source"]) == ("bind", "/sys")
    assert {"rbind", "rprivate", "rro"} <= set(sys["options"])
    assert destinations(found).index("/sys") < destinations(found).index("/sys/fs/cgroup")


def test_the_host_s_ipc_namespace_has_no_queue_of_its_own(plan: PlanMaker, host: Host) -> None:
    asked = plan(namespaces=Namespaces(network="/n", ipc=None, uts="/u", pid=""))
    assert "/dev/mqueue" not in destinations(made(asked, host))


def test_the_caller_s_mount_wins_over_the_pod_s_and_both_over_defaults(plan: PlanMaker, host: Host) -> None:
    asked = plan(
        pod_mounts=(Mount("/etc/hosts", "/pod/hosts"), Mount("/dev/shm", "/pod/shm")),
        mounts=(Mount("/etc/hosts/", "/mine/hosts", readonly=True), Mount("/sys", "/mine/sys")),
    )
    found = made(asked, host)
    by_place = {mount["destination"]: mount["source"] for mount in found["mounts"]}
    assert by_place["/etc/hosts/"] == "/mine/hosts"
    assert "/etc/hosts" not in by_place
    assert by_place["/dev/shm"] == "/pod/shm"
    assert by_place["/sys"] == "/mine/sys"
    assert options(found, "/etc/hosts/") == ["rbind", "rprivate", "ro"]


def test_a_dev_of_the_caller_s_hides_our_own_below_it(plan: PlanMaker, host: Host) -> None:
    found = destinations(made(plan(mounts=(Mount("/dev", "/dev"),)), host))
    assert [place for place in found if place.startswith("/dev")] == ["/dev"]


def test_outer_mounts_come_before_inner_ones(plan: PlanMaker, host: Host) -> None:
    asked = plan(mounts=(Mount("/a/b/c", "/1"), Mount("/a", "/2"), Mount("/a/b", "/3")))
    assert destinations(made(asked, host))[-3:] == ["/a", "/a/b", "/a/b/c"]


SHARED, SLAVE, PLAIN = (MountPoint("/m", frozenset(tags)) for tags in ({"shared"}, {"master"}, set()))


@pytest.mark.parametrize(
    ("propagation", "point", "rootfs"),
    [
        (Propagation.BIDIRECTIONAL, SHARED, "rshared"),
        (Propagation.HOST_TO_CONTAINER, SHARED, "rslave"),
        (Propagation.HOST_TO_CONTAINER, SLAVE, "rslave"),
    ],
)
def test_propagation_reaches_the_root(
    plan: PlanMaker, host: Host, propagation: Propagation, point: MountPoint, rootfs: str
) -> None:
    asked = plan(mounts=(Mount("/x", "/m/x", propagation=propagation),))
    found = made(asked, host, mount_points={"/m/x": point})
    assert found["linux"]["rootfsPropagation"] == rootfs
    assert options(found, "/x") == ["rbind", rootfs, "rw"]


@pytest.mark.parametrize(
    ("propagation", "point", "words"),
    [
        (Propagation.BIDIRECTIONAL, PLAIN, 'path "/m/x" is mounted on "/m" but it is not a shared mount'),
        (Propagation.BIDIRECTIONAL, SLAVE, "not a shared mount"),
        (Propagation.HOST_TO_CONTAINER, PLAIN, "not a shared or slave mount"),
    ],
)
def test_propagation_the_host_does_not_have_is_refused_with_the_command_that_makes_it(
    plan: PlanMaker, host: Host, propagation: Propagation, point: MountPoint, words: str
) -> None:
    asked = plan(mounts=(Mount("/x", "/m/x", propagation=propagation),))
    with pytest.raises(FailedPrecondition, match=words) as caught:
        made(asked, host, mount_points={"/m/x": point})
    assert "mount --make-rshared /m" in caught.value.fix


def test_the_mount_a_path_lies_on_is_the_longest_and_the_last() -> None:
    table = (
        "1 0 8:1 / / rw shared:1 - ext4 a rw\n"
        "2 1 0:5 / /a\\040b rw master:2 - tmpfs t rw\n"
        "3 1 0:6 / /a\\040b rw - tmpfs t rw\n"
        "4 1 0:7 / /ab rw shared:9 - tmpfs t rw\n"
    )
    points = binds.parse_mountinfo(table)
    assert binds.mount_of("/a b/c", points) == MountPoint("/a b", frozenset())
    assert binds.mount_of("/abc", points) == MountPoint("/", frozenset({"shared"}))


def test_a_missing_source_becomes_a_directory_and_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("file")
    found = binds.resolve([Mount("/a", str(tmp_path / "new" / "dir")), Mount("b", str(tmp_path / "link"))])
    assert (tmp_path / "new" / "dir").is_dir()
    assert found[1].source == str(tmp_path / "file")
    assert found[1].destination == "/b"


@pytest.mark.parametrize(
    ("mount", "error"),
    [
        (Mount("/a", "relative"), InvalidInput),
        (Mount("", "/tmp"), InvalidInput),
        (Mount("/a", "/tmp\0"), InvalidInput),
        (Mount("/a", "", image="busybox"), Unimplemented),
        (Mount("/a", "/tmp", recursive_read_only=True), InvalidInput),
        (Mount("/a", "/tmp", True, Propagation.HOST_TO_CONTAINER, recursive_read_only=True), InvalidInput),
        (Mount("/a", "/tmp", uid_mappings=(IdMapping(0, 0, 1),)), InvalidInput),
        (Mount("/a", "/tmp", options=("noexec", "suid")), InvalidInput),
        (Mount("/a", "/tmp", options=("bind",)), InvalidInput),
    ],
)
def test_mounts_that_cannot_be_made_are_refused(mount: Mount, error: type[Exception]) -> None:
    with pytest.raises(error):
        binds.resolve([mount])


def test_a_mount_s_options_are_kept(tmp_path: Path, plan: PlanMaker, host: Host) -> None:
    able = dataclasses.replace(host, recursive_attributes=True)
    asked = (
        Mount("/a", str(tmp_path), readonly=True, recursive_read_only=True, options=("noexec", "nosuid")),
        Mount("/b", str(tmp_path), readonly=True, options=("nodev",)),
    )
    assert binds.resolve(asked) == asked
    found = made(plan(mounts=asked), able)
    assert options(found, "/a") == ["rbind", "rprivate", "rro", "noexec", "nosuid"]
    assert options(found, "/b") == ["rbind", "rprivate", "ro", "nodev"]


def test_a_kernel_that_cannot_make_mounts_recursively_read_only_refuses_them(plan: PlanMaker, host: Host) -> None:
    unable = dataclasses.replace(host, recursive_attributes=False)
    with pytest.raises(FailedPrecondition, match="mount_setattr"):
        made(plan(mounts=(Mount("/a", "/m/a", readonly=True, recursive_read_only=True),)), unable)


# Resources


def test_limits_are_passed_as_they_are(plan: PlanMaker, host: Host) -> None:
    asked = Resources(cpu_period=100000, cpu_quota=50000, cpu_shares=512, cpuset_cpus="0-1", memory_limit=1 << 26)
    found = made(plan(resources=asked), host)["linux"]["resources"]
    assert found["cpu"] == {"period": 100000, "quota": 50000, "shares": 512, "cpus": "0-1"}
    assert found["memory"] == {"limit": 1 << 26, "swap": 1 << 26}


def test_swap_is_left_alone_where_the_kernel_does_not_count_it(plan: PlanMaker) -> None:
    asked = plan(resources=Resources(memory_limit=1 << 26, memory_swap_limit=1 << 27))
    assert made(asked, make_host(swap_limit=False))["linux"]["resources"]["memory"] == {"limit": 1 << 26}
    assert made(asked, make_host())["linux"]["resources"]["memory"]["swap"] == 1 << 27


def test_huge_pages_are_limited_only_in_sizes_the_host_has(plan: PlanMaker) -> None:
    # A kubelet names every size the node has, and one that a pod may not use with a limit of 0.
    asked = plan(resources=Resources(hugepages=(("2048KB", 4), ("1GB", 0))))
    found = made(asked, make_host(hugepage_sizes=frozenset({"2MB"})))["linux"]["resources"]
    assert found["hugepageLimits"] == [{"pageSize": "2MB", "limit": 4}]
    assert "hugepageLimits" not in made(asked, make_host())["linux"]["resources"]
    with pytest.raises(
        FailedPrecondition, match=r"hugepage_limits\[64KB\]: this host has no pages of that size, but 2MB"
    ):
        made(plan(resources=Resources(hugepages=(("64KB", 1),))), make_host(hugepage_sizes=frozenset({"2MB"})))


@pytest.mark.parametrize(
    ("text", "name"),
    [("2MB", "2MB"), ("2048KB", "2MB"), ("1024MB", "1GB"), ("64KB", "64KB"), ("2Mi" + "B", "2MB"), ("65536B", "64KB")],
)
def test_a_page_size_has_the_kernel_s_name(text: str, name: str) -> None:
    assert page_size(text) == name


@pytest.mark.parametrize("text", ["", "2", "MB", "0MB", "-2MB", "2TB", "100B", "2MB/", "../2MB", "1000000000000000MB"])
def test_what_is_no_page_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        page_size(text)


def test_swap_that_a_key_allows_is_not_taken_back_by_the_memory_limit(plan: PlanMaker, host: Host) -> None:
    asked = plan(resources=Resources(memory_limit=1 << 26, unified={"memory.swap.max": "1000000"}))
    found = made(asked, host)["linux"]["resources"]
    assert found["memory"] == {"limit": 1 << 26}
    assert found["unified"] == {"memory.swap.max": "1000000"}


def test_unified_keys_need_v2(plan: PlanMaker, host: Host) -> None:
    asked = plan(resources=Resources(unified={"memory.high": "100M"}))
    assert made(asked, host)["linux"]["resources"]["unified"] == {"memory.high": "100M"}
    with pytest.raises(FailedPrecondition, match="cgroup v2"):
        made(asked, make_host(Mode.HYBRID))


@pytest.mark.parametrize(
    "bad",
    [
        Resources(cpuset_cpus="0,evil\n"),
        Resources(cpuset_mems="../0"),
        Resources(cpu_shares=-1),
        Resources(memory_limit=-2),
        Resources(memory_limit=100, memory_swap_limit=50),
        Resources(memory_limit=100, memory_swap_limit=-2),
        Resources(memory_swap_limit=100),
        Resources(oom_score_adj=1001),
        Resources(unified={"../memory.max": "1"}),
    ],
)
def test_limits_that_cannot_be_are_refused(plan: PlanMaker, host: Host, bad: Resources) -> None:
    with pytest.raises(InvalidInput):
        made(plan(resources=bad), host)


# Devices


NODE = Node("/dev/x", "c", 10, 200, 0o600, 0, 0, "r")


def test_a_device_is_made_and_allowed_as_asked(plan: PlanMaker, host: Host) -> None:
    found = made(plan(), host, devices=(NODE,))["linux"]
    assert found["devices"][0]["path"] == "/dev/x"
    assert found["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 10, "minor": 200, "access": "r"},
    ]


def test_a_privileged_container_may_use_every_device(plan: PlanMaker, host: Host) -> None:
    found = made(plan(security=Security(privileged=True)), host, devices=(NODE,))["linux"]
    assert found["resources"]["devices"] == [{"allow": True, "access": "rwm"}]


# Security


def test_masked_and_readonly_paths_are_exactly_those_sent(plan: PlanMaker, host: Host) -> None:
    sent = Security(masked_paths=("/proc/kcore",), readonly_paths=("/proc/sys",))
    found = made(plan(security=sent), host)["linux"]
    assert (found["maskedPaths"], found["readonlyPaths"]) == (["/proc/kcore"], ["/proc/sys"])
    assert made(plan(), host)["linux"]["maskedPaths"] == []
    privileged = made(plan(security=dataclasses.replace(sent, privileged=True)), host)["linux"]
    assert "maskedPaths" not in privileged
    assert "readonlyPaths" not in privileged
    with pytest.raises(InvalidInput):
        made(plan(security=Security(masked_paths=("proc",))), host)


def test_a_filter_goes_in_compiled_or_else_as_it_is(plan: PlanMaker, host: Host) -> None:
    profile = {"defaultAction": "SCMP_ACT_ALLOW"}
    gathered = Gathered(mount_points={}, seccomp=profile)
    plain = spec.config(plan(), host, gathered, lambda _: None)
    assert plain["linux"]["seccomp"] == profile
    assert "annotations" not in plain
    compiled = spec.config(plan(), host, gathered, lambda _: "QUJD")
    assert "seccomp" not in compiled["linux"]
    assert compiled["annotations"] == {"run.oci.seccomp_bpf_data": "QUJD"}


def test_a_privileged_container_has_no_filter(plan: PlanMaker, host: Host) -> None:
    asked = plan(security=Security(privileged=True, seccomp=Profile(ProfileType.RUNTIME_DEFAULT)))
    assert spec.gather(asked, host, "/nowhere").seccomp is None


def test_the_caller_s_annotations_never_reach_crun(plan: PlanMaker, host: Host) -> None:
    asked = plan(annotations={"run.oci.hooks.stderr": "/etc/x", "run.oci.seccomp_bpf_data": ""})
    assert "annotations" not in made(asked, host)


def test_the_profile_found_is_entered_by_execs_too(plan: PlanMaker, host: Host) -> None:
    assert "apparmorProfile" not in made(plan(), host)["process"]
    config = made(plan(), host, apparmor="mine")
    assert config["process"]["apparmorProfile"] == "mine"
    assert spec.exec_process(json.dumps(config).encode(), ("true",))["apparmorProfile"] == "mine"


def test_selinux_labels_are_the_plan_s(plan: PlanMaker, host: Host) -> None:
    bare = made(plan(security=Security(selinux=SELinux(level="s0:c1,c2"))), host)
    assert "selinuxLabel" not in bare["process"]
    assert "mountLabel" not in bare["linux"]
    found = made(plan(selinux=SELinuxLabels(process="u:r:p_t:s0", mount="u:r:f_t:s0")), host)
    assert (found["process"]["selinuxLabel"], found["linux"]["mountLabel"]) == ("u:r:p_t:s0", "u:r:f_t:s0")
