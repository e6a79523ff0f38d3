"""The vocabulary of images: what a pull yields, what the store keeps, what a caller may give."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry import modules


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """How an image wants to be run.

    https://github.com/opencontainers/image-spec/blob/main/config.md#properties
    """

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    user: str = ""
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image of this node.

    ``id`` is the digest of the config (CRI: equal to ``PullImageResponse.image_ref``). ``layers`` are diff ids, lowest
    first, exactly as the config lists them: one diff id may occur twice. ``size`` is in bytes, unpacked. ``blobs`` are
    the digests of what is kept beside the layers: index, manifest, config, and layer blobs where the node keeps them.

    ``artifact`` is the type of an OCI artifact, which is no container image: its layers hold files, it has no config of
    how to run, and its ``id`` is the digest of its manifest.

    ``module`` is where the WebAssembly module of an image that is nothing else lies in its root file system; its ``id``
    is the digest of its manifest, too, and it can be run although it may be an artifact. ``shared`` are those of its
    names that stand for a WebAssembly image and for one of this host's programs: which is meant, a pod's handler says.

    ``evidence`` has, for those of its digest names that it was judged by, the digest of what was found then.
    """

    id: str
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    size: int = 0
    layers: tuple[str, ...] = ()
    config: ImageConfig = field(default_factory=ImageConfig)
    annotations: Mapping[str, str] = field(default_factory=dict)
    pinned: bool = False
    created: str = ""
    os: str = "linux"
    architecture: str = ""
    variant: str = ""
    manifest_digest: str = ""
    blobs: tuple[str, ...] = ()
    artifact: str = ""
    module: str = ""
    shared: tuple[str, ...] = ()
    evidence: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_wasm(self) -> bool:
        """Whether it is made for no processor of this kind, but for WebAssembly."""
        return bool(self.module) or modules.is_platform(self.os, self.architecture)

    @property
    def platform(self) -> str:
        """``os/architecture[/variant]``, as far as it says."""
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    @property
    def uid(self) -> int | None:
        """The numeric user the image runs as, if it names one by number (CRI ``Image.uid``)."""
        user = self.config.user.partition(":")[0]
        return int(user) if user.isascii() and user.isdigit() and len(user) < 19 else None

    @property
    def username(self) -> str:
        """The user the image runs as, if it names one by name (CRI ``Image.username``)."""
        return "" if self.uid is not None else self.config.user.partition(":")[0]


class LayerState(StrEnum):
    """Where a layer is on its way to this node."""

    WAITING = "waiting"
    DOWNLOADING = "downloading"
    EXISTS = "exists"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class LayerProgress:
    """One layer of a pull in flight: compressed bytes read so far, of how many."""

    digest: str
    total: int
    done: int
    state: LayerState


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Credentials:
    """What a registry may be told to let us in: the fields of CRI's ``AuthConfig``.

    ``server_address`` limits the rest to that host; without it they are for the registry the image names.
    """

    username: str = ""
    password: str = ""
    auth: str = ""
    server_address: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        secrets = ("username", "password", "auth", "identity_token", "registry_token")
        given = ", ".join(f"{name}=<hidden>" for name in secrets if getattr(self, name))
        return f"Credentials({given})"

    def __bool__(self) -> bool:
        return bool(self.username or self.password or self.auth or self.identity_token or self.registry_token)

    def login(self) -> tuple[str, str]:
        """User name and password, from the two fields or from ``auth``; both empty when neither is given.

        :raises InvalidInput: when ``auth`` is not base64 of ``user:password``.
        """
        if self.username or not self.auth:
            return self.username, self.password
        try:
            decoded = base64.b64decode(self.auth, validate=True).decode()
        except (binascii.Error, ValueError):
            raise InvalidInput("auth.auth", "not base64 of user:password") from None
        user, colon, password = decoded.partition(":")
        if not colon:
            raise InvalidInput("auth.auth", "not base64 of user:password")
        return user, password.strip("\0")

    def refresh_token(self) -> str:
        """The OAuth2 refresh token; Docker's clients write one as the password of the user ``<token>``."""
        if self.identity_token:
            return self.identity_token
        user, password = self.login()
        return password if user == "<token>" else ""
