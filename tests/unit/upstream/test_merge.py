"""Two answers as one."""

from __future__ import annotations

import pytest

from cri.api import runtime_pb2 as pb
from cri.upstream import merge
from cri.upstream.choice import Side
from cri.upstream.metrics import Labels, relabel

SYSTEMD, CGROUPFS = pb.SYSTEMD, pb.CGROUPFS


def status(*handlers: str, runtime: bool = True, network: bool = True, **info: str) -> pb.StatusResponse:
    conditions = [
        pb.RuntimeCondition(type="RuntimeReady", status=runtime, reason="" if runtime else "Broken", message="says"),
        pb.RuntimeCondition(type="NetworkReady", status=network, reason="" if network else "NoCni", message="says"),
    ]
    return pb.StatusResponse(
        status=pb.RuntimeStatus(conditions=conditions),
        info=info,
        runtime_handlers=[pb.RuntimeHandler(name=name) for name in handlers],
        features=pb.RuntimeFeatures(supplemental_groups_policy=True),
    )


def told(answer: pb.StatusResponse) -> dict[str, tuple[bool, str, str]]:
    return {one.type: (one.status, one.reason, one.message) for one in answer.status.conditions}


def merged(ours: pb.StatusResponse, upstream: merge.Upstream | str, default: Side = Side.UPSTREAM) -> pb.StatusResponse:
    return merge.status(ours, upstream, default=default, driver=CGROUPFS)


def test_ready_is_what_both_are() -> None:
    both = told(merged(status(), merge.Upstream(status(), CGROUPFS)))
    assert [both[name][0] for name in ("RuntimeReady", "NetworkReady")] == [True, True]
    theirs = told(merged(status(), merge.Upstream(status(network=False), CGROUPFS)))
    assert theirs["NetworkReady"] == (False, "NoCni", "upstream: says")
    ours = told(merged(status(runtime=False), merge.Upstream(status(runtime=False), SYSTEMD)))
    assert ours["RuntimeReady"] == (False, "Broken", "says")


def test_one_that_does_not_answer_makes_the_node_not_ready_and_says_why() -> None:
    answer = merged(status("", "forgeone-native"), "/run/x.sock does not answer: UNAVAILABLE")
    assert told(answer)["RuntimeReady"] == (False, "UpstreamUnavailable", "/run/x.sock does not answer: UNAVAILABLE")
    assert told(answer)["NetworkReady"][0]


@pytest.mark.parametrize(
    ("driver", "ready"), [(CGROUPFS, True), (None, True), (SYSTEMD, False)], ids=["the same", "not told", "another"]
)
def test_cgroup_drivers_must_agree(driver: pb.CgroupDriver.ValueType | None, ready: bool) -> None:
    found, reason, message = told(merged(status(), merge.Upstream(status(), driver)))["RuntimeReady"]
    assert found is ready
    assert ready or (reason == "UpstreamCgroupDriver" and "is systemd and ForgeOne's is cgroupfs" in message)


def test_other_conditions_of_the_other_one_are_shown() -> None:
    theirs = status()
    theirs.status.conditions.add(type="NoDeprecations", status=False, reason="Old", message="m")
    assert told(merged(status(), merge.Upstream(theirs)))["NoDeprecations"] == (False, "Old", "m")


@pytest.mark.parametrize(("default", "of_default"), [(Side.UPSTREAM, True), (Side.OURS, False)])
def test_handlers_are_those_of_both_and_the_unnamed_one_is_the_defaults(default: Side, of_default: bool) -> None:
    theirs = status("", "runc", "gpu")
    for handler in theirs.runtime_handlers:
        handler.features.user_namespaces = True
    answer = merged(status("", "gpu", "forgeone-native"), merge.Upstream(theirs), default)
    features = {handler.name: handler.features.user_namespaces for handler in answer.runtime_handlers}
    assert features == {"": of_default, "forgeone-native": False, "gpu": False, "runc": True}


def test_one_that_tells_of_no_handlers_leaves_the_unnamed_one_out() -> None:
    answer = merged(status("", "forgeone-native"), merge.Upstream(status()))
    assert [handler.name for handler in answer.runtime_handlers] == ["forgeone-native"]


def test_the_node_can_do_what_both_can() -> None:
    theirs = status()
    theirs.features.user_namespaces_host_network = True
    features = merged(status(), merge.Upstream(theirs)).features
    assert features.supplemental_groups_policy
    assert not features.user_namespaces_host_network


def test_verbose_parts_are_kept_apart() -> None:
    answer = merged(status(config="ours"), merge.Upstream(status(config="theirs")))
    assert dict(answer.info) == {"config": "ours", "upstream.config": "theirs"}


def image(number: int, *tags: str, size: int = 1, pinned: bool = False, digests: tuple[str, ...] = ()) -> pb.Image:
    return pb.Image(id=f"sha256:{number}", repo_tags=tags, repo_digests=digests, size=size, pinned=pinned)


def test_an_image_of_both_is_one_with_the_names_and_the_size_of_both() -> None:
    ours = [image(1, "a:1", "a:2", size=10, digests=("a@x",)), image(2, "b:1")]
    theirs = [image(1, "a:2", "c:1", size=5, pinned=True, digests=("a@x", "c@y")), image(3, "d:1")]
    both, ours_only, theirs_only = merge.images(ours, theirs)
    assert both == image(1, "a:1", "a:2", "c:1", size=15, pinned=True, digests=("a@x", "c@y"))
    assert (ours_only, theirs_only) == (ours[1], theirs[1])
    assert ours[0].size == 10


def described(name: str, help_: str, *labels: str) -> pb.MetricDescriptor:
    return pb.MetricDescriptor(name=name, help=help_, label_keys=labels)


def samples(name: str, *labels: str) -> pb.PodSandboxMetrics:
    sample = pb.Metric(name=name, label_values=labels)
    return pb.PodSandboxMetrics(metrics=[sample], container_metrics=[pb.ContainerMetrics(metrics=[sample])])


def test_a_metric_has_the_same_labels_whoever_measured_it() -> None:
    ours = [described("cpu", "ours", "pod", "name"), described("here", "ours", "pod")]
    theirs = [described("cpu", "x", "image", "pod"), described("there", "x", "id")]
    labels = Labels.of(ours, theirs)
    assert labels.descriptors == (
        described("cpu", "ours", "pod", "name", "image"),
        described("here", "ours", "pod"),
        described("there", "x", "id"),
    )
    mine, other, alone = samples("cpu", "p", "n"), samples("cpu", "i", "p"), samples("there", "1")
    relabel([mine], labels.ours)
    relabel([other, alone], labels.theirs)
    assert (mine, other, alone) == (samples("cpu", "p", "n", ""), samples("cpu", "p", "", "i"), samples("there", "1"))


def test_samples_whose_labels_are_the_same_are_left_alone() -> None:
    same = [described("cpu", "x", "pod")]
    labels = Labels.of(same, same)
    assert (labels.ours, labels.theirs) == ({}, {})


def used(path: str, bytes_: int, inodes: int, at: int = 5) -> pb.FilesystemUsage:
    return pb.FilesystemUsage(
        timestamp=at,
        fs_id=pb.FilesystemIdentifier(mountpoint=path),
        used_bytes=pb.UInt64Value(value=bytes_),
        inodes_used=pb.UInt64Value(value=inodes),
    )


def usage(images: list[pb.FilesystemUsage], containers: list[pb.FilesystemUsage]) -> pb.ImageFsInfoResponse:
    return pb.ImageFsInfoResponse(image_filesystems=images, container_filesystems=containers)


OURS = usage([used("/ours/layers", 10, 1)], [used("/ours", 3, 2, at=4)])
THEIRS = usage([used("/theirs", 100, 7)], [])


def test_what_is_on_one_device_is_one_entry_at_the_defaults_place() -> None:
    answer = merge.filesystems(OURS, THEIRS, first=Side.UPSTREAM, device=lambda _: 1)
    assert answer == usage([used("/theirs", 110, 8)], [used("/theirs", 3, 2, at=4)])
    answer = merge.filesystems(OURS, THEIRS, first=Side.OURS, device=lambda _: 1)
    assert answer == usage([used("/ours/layers", 110, 8)], [used("/ours", 3, 2, at=4)])


@pytest.mark.parametrize("device", [len, lambda _: None], ids=["two devices", "unknown devices"])
def test_what_is_on_two_is_two_entries_and_the_defaults_come_first(device: object) -> None:
    answer = merge.filesystems(OURS, THEIRS, first=Side.UPSTREAM, device=device)  # type: ignore[arg-type]
    assert list(answer.image_filesystems) == [used("/theirs", 100, 7), used("/ours/layers", 10, 1)]
    assert [one.fs_id.mountpoint for one in answer.container_filesystems] == ["/theirs", "/ours"]
    assert [one.used_bytes.value for one in answer.container_filesystems] == [0, 3]
