"""Which name an image's signer has to have given it: ``signedIdentity`` of containers-policy.json(5).

A simple signature says a name. A bundle does not, unless its statement's subject has one: cosign leaves that empty, so
what ties its signer to a repository is the scope in the policy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from forgeone_shim.attestation.signed import Unverified
from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry.reference import Reference


class Match(Enum):
    """The types of ``signedIdentity``."""

    ANY = ""
    """No name is asked for: a ClusterImagePolicy's globs say which images it is about."""
    EXACT = "matchExact"
    REPO_DIGEST_OR_EXACT = "matchRepoDigestOrExact"
    REPOSITORY = "matchRepository"
    EXACT_REFERENCE = "exactReference"
    EXACT_REPOSITORY = "exactRepository"
    REMAP = "remapIdentity"


@dataclass(frozen=True, slots=True)
class SignedIdentity:
    """A rule for names. ``reference`` is what the two exact types compare with; the prefixes are the last one's."""

    match: Match = Match.REPO_DIGEST_OR_EXACT
    reference: str = ""
    prefix: str = ""
    signed_prefix: str = ""

    def check(self, asked: Reference, said: str, name: str) -> None:
        """Whether the signer's name for an image is the one it goes by.

        :param asked: what the image was asked for.
        :param said: the name in the signature, ``""`` where it has none.
        :raises Unverified: it is not, or it has none and one is needed.
        """
        if self.match is Match.ANY:
            return
        if not said:
            self._check_nameless(asked, name)
            return
        signed = _parse(said)
        if signed is None or not self._fits(asked, signed):
            raise Unverified(f"{name} is for {said[:200]!r}, and {self._wanted(asked)} is asked for")

    def _check_nameless(self, asked: Reference, name: str) -> None:
        if self.match is Match.REPOSITORY or (self.match is Match.REPO_DIGEST_OR_EXACT and asked.digest):
            return
        raise Unverified(
            f"{name} names no image, and {self._wanted(asked)} is asked for: "
            'signedIdentity of type "matchRepository" takes it for images of the scope'
        )

    def _fits(self, asked: Reference, signed: Reference) -> bool:
        match self.match:
            case Match.EXACT:
                return _exact(asked, signed)
            case Match.REPOSITORY:
                return signed.name == asked.name
            case Match.EXACT_REFERENCE:
                wanted = _parse(self.reference)
                return wanted is not None and _exact(wanted, signed)
            case Match.EXACT_REPOSITORY:
                wanted = _parse(self.reference)
                return wanted is not None and signed.name == wanted.name
            case Match.REMAP:
                return _repo_digest_or_exact(self._remapped(asked), signed)
            case _:
                return _repo_digest_or_exact(asked, signed)

    def _remapped(self, asked: Reference) -> Reference:
        name = asked.name
        if name != self.prefix and not name.startswith(f"{self.prefix}/"):
            return asked
        registry, _, repository = f"{self.signed_prefix}{name[len(self.prefix) :]}".partition("/")
        return Reference(registry, repository, asked.tag, asked.digest)

    def _wanted(self, asked: Reference) -> str:
        match self.match:
            case Match.REPOSITORY:
                return f"any image of {asked.name}"
            case Match.EXACT_REFERENCE | Match.EXACT_REPOSITORY:
                return self.reference
            case Match.REMAP:
                return str(self._remapped(asked))
            case _:
                return str(asked)


def _parse(text: str) -> Reference | None:
    """A signer's name of an image; a tag is none that it did not write."""
    try:
        found = Reference.parse(text)
    except InvalidInput:
        return None
    tagged = found.tag and text.partition("@")[0].endswith(f":{found.tag}")
    return found if tagged or not found.tag else Reference(found.registry, found.repository)


def _exact(asked: Reference, signed: Reference) -> bool:
    return bool(signed.tag or signed.digest) and signed == asked


def _repo_digest_or_exact(asked: Reference, signed: Reference) -> bool:
    return signed.name == asked.name if asked.digest else _exact(asked, signed)
