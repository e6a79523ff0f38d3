"""Images: ``AuthConfig`` -> Credentials, Image -> ``Image``, usage -> ``FilesystemUsage``."""

from __future__ import annotations

from cri.api import runtime_pb2 as pb
from cri.translate import fields
from forgeone_shim.registry.model import Credentials, Image
from forgeone_shim.runtime.views import FilesystemUsage


def reference(spec: pb.ImageSpec, path: str = "image.image") -> str:
    """What the image is called in a request."""
    return fields.given(path, spec.image)


def credentials(request: pb.PullImageRequest) -> Credentials | None:
    """What the kubelet gave to pull with; ``None`` is anonymous."""
    if not request.HasField("auth"):
        return None
    auth = request.auth
    return Credentials(
        username=auth.username,
        password=auth.password,
        auth=auth.auth,
        server_address=auth.server_address,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )


def message(image: Image) -> pb.Image:
    """An image as CRI shows it."""
    return pb.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size,
        uid=None if image.uid is None else pb.Int64Value(value=image.uid),
        username=image.username,
        spec=pb.ImageSpec(image=image.id, annotations=image.annotations),
        pinned=image.pinned,
    )


def filesystem(usage: FilesystemUsage) -> pb.FilesystemUsage:
    """How much of a filesystem is used."""
    return pb.FilesystemUsage(
        timestamp=usage.at,
        fs_id=pb.FilesystemIdentifier(mountpoint=usage.mountpoint),
        used_bytes=pb.UInt64Value(value=usage.used_bytes),
        inodes_used=pb.UInt64Value(value=usage.used_inodes),
    )
