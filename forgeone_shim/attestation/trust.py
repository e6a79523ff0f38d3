"""Which images are trusted, by the policy files of this node, and why.

Nothing is fetched, and nothing but the named files is read. Import this where there is a policy: ``cryptography`` and
the parsers come with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from forgeone_shim.attestation import containers_policy, image_policies, notation_policy
from forgeone_shim.attestation.containers_policy import ContainersPolicy
from forgeone_shim.attestation.image_policies import ImagePolicy
from forgeone_shim.attestation.keyless import TrustedRoot
from forgeone_shim.attestation.notation_policy import NotationPolicy
from forgeone_shim.attestation.policyfiles import Files
from forgeone_shim.attestation.requirements import Requirements, Rule
from forgeone_shim.attestation.rules import Refused, Warned
from forgeone_shim.errors import InvalidInput
from forgeone_shim.registry.reference import Reference

ALLOW: Final = "allow"
WARN: Final = "warn"
DENY: Final = "deny"
UNMATCHED: Final = (ALLOW, WARN, DENY)
DEFAULT_ROOT: Final = "trusted_root"
"""The trusted root of a policy that names none."""

_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_GET_ROOT: Final = "put one there: sigstore's own is a target of its TUF repository"


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the policies are; ``None``: none of that kind. What is named has to be there, but for ``roots``.

    :param policy: a containers-policy.json(5).
    :param namespaces: a directory of ``NAMESPACE.json``: the same, in place of ``policy`` for pods of a namespace.
    :param images: a directory of ClusterImagePolicy documents (``*.yaml``, ``*.json``), one in each file.
    :param notation: a trust policy of the Notary Project (``trustpolicy.json``).
    :param roots: a directory of sigstore's trusted roots (``NAME.json``) and, below ``x509``, the Notary Project's
        trust stores (``x509/ca/NAME/*.crt``).
    :param unmatched: what happens to an image that no policy is about: ``allow``, ``warn`` or ``deny``.
    """

    policy: Path | None = None
    namespaces: Path | None = None
    images: Path | None = None
    notation: Path | None = None
    roots: Path | None = None
    unmatched: str = DENY


class TrustPolicy:
    """All policies of this node, read once; a change of the files needs a new one."""

    def __init__(
        self,
        digest: str = "",
        *,
        policy: ContainersPolicy | None = None,
        namespaces: Mapping[str, ContainersPolicy] | None = None,
        images: Sequence[ImagePolicy] = (),
        notation: NotationPolicy | None = None,
        unmatched: str = DENY,
    ) -> None:
        self.digest = digest
        """``sha256:`` over all that was read; what :meth:`Requirements.check` said holds while this is the same."""
        self._policy, self._namespaces, self._images = policy, dict(namespaces or {}), tuple(images)
        self._notation, self._unmatched = notation, unmatched

    @classmethod
    def load(cls, sources: Sources) -> TrustPolicy:
        """Read all files.

        :raises InvalidInput: naming file and field.
        :raises FailedPrecondition: a file cannot be read, or others than root could have written it.
        """
        if sources.unmatched not in UNMATCHED:
            raise InvalidInput("unmatched", f"{sources.unmatched!r} is not one of {', '.join(UNMATCHED)}")
        files = Files()
        roots = _Roots(sources.roots, files)
        policy = containers_policy.read(sources.policy, files) if sources.policy is not None else None
        namespaces = {
            _namespace(path): containers_policy.read(path, files)
            for path in (files.listed(sources.namespaces, (".json",)) if sources.namespaces is not None else ())
        }
        images = [
            image_policies.read(path, files, roots.named)
            for path in (files.listed(sources.images, (".yaml", ".json")) if sources.images is not None else ())
        ]
        stores = sources.roots / "x509" if sources.roots is not None else None
        notation = notation_policy.read(sources.notation, stores, files) if sources.notation is not None else None
        return cls(
            files.digest(also=sources.unmatched),
            policy=policy,
            namespaces=namespaces,
            images=images,
            notation=notation,
            unmatched=sources.unmatched,
        )

    def required(self, reference: Reference, namespace: str = "") -> Requirements:
        """What is required of an image that is asked for by this name; ``namespace`` is the pod's, ``""`` for none.

        Every policy that is about the image counts; where none is, ``unmatched`` does.
        """
        policy = self._namespaces.get(namespace, self._policy)
        asked = [policy.required(reference)] if policy is not None else []
        asked += [(one.rule,) for one in self._images if one.about(reference)]
        if self._notation is not None and (rules := self._notation.required(reference)) is not None:
            asked.append(rules)
        return Requirements(tuple(rule for rules in asked for rule in rules) if asked else self._nothing())

    def _nothing(self) -> tuple[Rule, ...]:
        refused = Refused("no policy of this node is about it", "write one, or set signatures.unmatched")
        return {ALLOW: (), WARN: (Warned(refused),)}.get(self._unmatched, (refused,))


def _namespace(path: Path) -> str:
    if not _NAMESPACE.fullmatch(path.stem):
        raise InvalidInput(str(path), f"{path.stem[:100]!r} is not the name of a namespace")
    return path.stem


class _Roots:
    """Trusted roots by name, each read once."""

    def __init__(self, directory: Path | None, files: Files) -> None:
        self._directory, self._files = directory, files
        self._read: dict[str, TrustedRoot] = {}

    def named(self, name: str) -> TrustedRoot:
        """The root ``NAME.json``, or the default one. :raises InvalidInput: there is none."""
        if self._directory is None:
            raise InvalidInput("roots", "there is no directory of trusted roots")
        if name and not _NAME.fullmatch(name):
            raise InvalidInput("trustRootRef", f"{name[:100]!r} is no name")
        path = self._directory / f"{name or DEFAULT_ROOT}.json"
        if str(path) not in self._read:
            if not path.exists():
                raise InvalidInput("roots", f"there is no trusted root {path}", fix=_GET_ROOT)
            self._read[str(path)] = TrustedRoot.parse(self._files.read(path), str(path))
        return self._read[str(path)]
