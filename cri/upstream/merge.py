"""Two runtimes' answers as one. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cri.api import runtime_pb2 as pb
from cri.upstream.choice import Side

_READY: Final = ("RuntimeReady", "NetworkReady")
_DRIVERS: Final = {pb.SYSTEMD: "systemd", pb.CGROUPFS: "cgroupfs"}


@dataclass(frozen=True, slots=True)
class Upstream:
    """What the other runtime says of itself. ``driver`` is ``None`` where it does not tell its cgroup driver."""

    status: pb.StatusResponse
    driver: pb.CgroupDriver.ValueType | None = None


def status(
    ours: pb.StatusResponse,
    upstream: Upstream | str,
    *,
    default: Side,
    driver: pb.CgroupDriver.ValueType,
) -> pb.StatusResponse:
    """Ready is what both are: a kubelet that is told so gives the node pods of both.

    Handlers are those of both, ours where both have one of a name, and the unnamed one is ``default``'s. What the node
    as a whole can do is what both can.

    :param upstream: its own answer, or why there is none.
    :param driver: our cgroup driver, which a kubelet uses for the pods of both.
    """
    merged = pb.StatusResponse()
    merged.CopyFrom(ours)
    if isinstance(upstream, str):
        _not_ready(merged, "RuntimeReady", "UpstreamUnavailable", upstream)
        return merged
    for condition in upstream.status.status.conditions:
        if condition.type not in _READY:
            # Others say what is good to know, and none of ours has such a name.
            merged.status.conditions.add().CopyFrom(condition)
        elif not condition.status:
            _not_ready(merged, condition.type, condition.reason or "UpstreamNotReady", f"upstream: {condition.message}")
    if upstream.driver not in (None, driver):
        theirs, here = _DRIVERS[upstream.driver or pb.SYSTEMD], _DRIVERS[driver]
        _not_ready(
            merged,
            "RuntimeReady",
            "UpstreamCgroupDriver",
            f"the upstream runtime's cgroup driver is {theirs} and ForgeOne's is {here}: native.cgroup_driver must say"
            " what upstream has",
        )
    names = {handler.name for handler in ours.runtime_handlers if handler.name or default is Side.OURS}
    theirs_only = [one for one in upstream.status.runtime_handlers if one.name not in names]
    kept = [one for one in ours.runtime_handlers if one.name in names]
    del merged.runtime_handlers[:]
    merged.runtime_handlers.extend(
        sorted([one for one in theirs_only if one.name or default is Side.UPSTREAM] + kept, key=lambda one: one.name)
    )
    for field in pb.RuntimeFeatures.DESCRIPTOR.fields:
        both = getattr(ours.features, field.name) and getattr(upstream.status.features, field.name)
        setattr(merged.features, field.name, both)
    for key, value in upstream.status.info.items():
        merged.info[f"upstream.{key}"] = value
    return merged


def _not_ready(merged: pb.StatusResponse, type_: str, reason: str, message: str) -> None:
    """That condition is false; what was false before keeps its own reason."""
    for condition in merged.status.conditions:
        if condition.type == type_:
            if condition.status:
                condition.status, condition.reason, condition.message = False, reason, message
            return
    merged.status.conditions.add(type=type_, status=False, reason=reason, message=message)


def images(ours: Iterable[pb.Image], upstream: Iterable[pb.Image]) -> list[pb.Image]:
    """All of both, one for each id: with the names of both, as large as both, kept if either wants it kept."""
    found: dict[str, pb.Image] = {}
    for image in (*ours, *upstream):
        known = found.get(image.id)
        if known is None:
            found[image.id] = known = pb.Image()
            known.CopyFrom(image)
            continue
        known.repo_tags.extend(one for one in image.repo_tags if one not in known.repo_tags)
        known.repo_digests.extend(one for one in image.repo_digests if one not in known.repo_digests)
        known.size += image.size
        known.pinned = known.pinned or image.pinned
    return list(found.values())


def filesystems(
    ours: pb.ImageFsInfoResponse,
    upstream: pb.ImageFsInfoResponse,
    *,
    first: Side,
    device: Callable[[str], int | None],
) -> pb.ImageFsInfoResponse:
    """What images and containers of both take; a kubelet looks at the first entry alone.

    What is on one device is one entry, with the sum of both. On two devices ``first``'s comes first.

    :param device: the device that a path is on; ``None`` where that cannot be told, which is no other's.
    """
    pair = (ours, upstream) if first is Side.OURS else (upstream, ours)
    return pb.ImageFsInfoResponse(
        image_filesystems=_by_device([one for each in pair for one in each.image_filesystems], device),
        container_filesystems=_by_device([one for each in pair for one in _containers(each)], device),
    )


def _containers(answer: pb.ImageFsInfoResponse) -> Sequence[pb.FilesystemUsage]:
    """Runtimes that do not tell keep what containers write beside the images, and have counted it there."""
    if answer.container_filesystems:
        return answer.container_filesystems
    return [pb.FilesystemUsage(timestamp=one.timestamp, fs_id=one.fs_id) for one in answer.image_filesystems]


def _by_device(usages: Iterable[pb.FilesystemUsage], device: Callable[[str], int | None]) -> list[pb.FilesystemUsage]:
    merged: dict[object, pb.FilesystemUsage] = {}
    for usage in usages:
        where: object = device(usage.fs_id.mountpoint)
        where = usage.fs_id.mountpoint if where is None else where
        known = merged.get(where)
        if known is None:
            merged[where] = known = pb.FilesystemUsage()
            known.CopyFrom(usage)
            known.used_bytes.value += 0
            known.inodes_used.value += 0
            continue
        known.timestamp = min(known.timestamp, usage.timestamp)
        known.used_bytes.value += usage.used_bytes.value
        known.inodes_used.value += usage.inodes_used.value
    return list(merged.values())
