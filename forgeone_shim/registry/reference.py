"""Image references, normalised the way every Kubernetes user expects (``busybox`` is docker.io/library/busybox:latest).

The grammar is https://pkg.go.dev/github.com/distribution/reference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry.digest import is_digest

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_MAX_NAME = 255
_MAX_TEXT = 512

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-fA-F:]+\])(?P<port>:[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BARE_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A fully qualified name; ``digest``, when given, is what counts and ``tag`` is only remembered.

    Without a digest there always is a tag.
    """

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read what a user wrote.

        :raises InvalidInput: naming ``image`` and the part that is wrong.
        """
        if not text or len(text) > _MAX_TEXT:
            raise InvalidInput("image", "a name of 1 to 512 characters is needed")
        if _BARE_ID.fullmatch(text):
            raise InvalidInput("image", f"{text!r} is an image id, not a name")
        rest, at, digest = text.partition("@")
        if at and not is_digest(digest):
            raise InvalidInput("image", f"{text!r}: {digest!r} is not a sha256 or sha512 digest")
        registry, path = _split_registry(rest)
        path, colon, tag = path.partition(":")
        if colon and not _TAG.fullmatch(tag):
            raise InvalidInput("image", f"{text!r}: {tag!r} is not a tag")
        if registry == DEFAULT_REGISTRY and "/" not in path:
            path = f"library/{path}"
        if not _PATH.fullmatch(path):
            raise InvalidInput("image", f"{text!r}: {path!r} is not a repository (lower case, digits, . _ - and /)")
        if len(registry) + 1 + len(path) > _MAX_NAME:
            raise InvalidInput("image", f"{text!r}: the name is longer than {_MAX_NAME} characters")
        return cls(registry, path, tag or ("" if digest else DEFAULT_TAG), digest)

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def repo_tag(self) -> str:
        """The tag this reference gives an image; empty when a digest says what is meant."""
        return "" if self.digest else f"{self.name}:{self.tag}"

    def at(self, digest: str) -> str:
        """The repo digest of this name."""
        return f"{self.name}@{digest}"

    def __str__(self) -> str:
        return self.name + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def _split_registry(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    named = slash and (any(c in first for c in ".:[") or first == "localhost" or first != first.lower())
    if not named:
        return DEFAULT_REGISTRY, text
    match = _HOST.fullmatch(first)
    if match is None or (match["port"] and not 0 < int(match["port"][1:]) < 65536):
        raise InvalidInput("image", f"{text!r}: {first!r} is not a registry host")
    registry = first.lower()
    return (DEFAULT_REGISTRY if registry == "index.docker.io" else registry), rest
