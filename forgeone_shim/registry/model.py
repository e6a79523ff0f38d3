"""The vocabulary of images: what a pull yields, what the store keeps, what a caller may give."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from forgeone_shim.errors import InvalidInput


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
