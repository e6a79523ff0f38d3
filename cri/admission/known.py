"""What is known of the cluster when a pod is looked at: its policies, whose signatures count, its RuntimeClasses. Pure.

What nodes have in files of their own, and tell nobody, is said by flags (:mod:`cri.admission.options`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cri.admission.options import ENGINES, Options
from forgeone_shim.attestation.keys import PublicKey
from forgeone_shim.config.handlers import BUILT_IN_PREFIX, DEFAULT_ENGINE
from forgeone_shim.contract.policies import Policies
from forgeone_shim.contract.policy import NamedRule, Policy

OTHERS: Final = ""
"""In place of an engine: another runtime's pods."""

# What only a node knows, as rules name it.
_OF_NODES: Final = ("node.", "runtime.", "request.", "pod.uid", "pod.name", "pod.runtime_handler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What reviews are decided by; immutable, and replaced as a whole.

    :param certain: the policies, as far as it is certain here what nodes make of them: without their rules, and
        where ``issuers`` are not known without demands for signatures.
    :param foreseen: the policies with those of their rules that can be tried before there is a pod.
    :param classes: the handler of each RuntimeClass.
    :param handlers: the engine of each handler that is not built in.
    :param default: the engine of pods without a RuntimeClass; :data:`OTHERS`: another runtime's.
    :param fill: pods without a RuntimeClass are given one.
    :param all_named: contracts can name no other policies; else nodes alone know which there are.
    """

    certain: Policies = field(default_factory=Policies)
    foreseen: Policies = field(default_factory=Policies)
    classes: Mapping[str, str] = field(default_factory=dict)
    handlers: Mapping[str, str] = field(default_factory=dict)
    default: str = DEFAULT_ENGINE
    fill: bool = False
    all_named: bool = True

    def supposing(self, names: Iterable[str]) -> Known:
        """The same with policies of these names, of which nothing is known but that they may be there."""
        found = Policies([Policy(name=one) for one in names], self.certain.issuers)
        return replace(self, certain=found, foreseen=found)

    def engine(self, runtime_class: str) -> str | None:
        """The engine of a RuntimeClass' pods; ``None``: its handler is none of those known here."""
        # One that was just made has not been heard of yet, and the built-in ones are called as their handlers are.
        handler = self.classes.get(runtime_class, runtime_class)
        built_in = handler.removeprefix(BUILT_IN_PREFIX)
        if handler.startswith(BUILT_IN_PREFIX) and built_in in ENGINES:
            return built_in
        return self.handlers.get(handler)

    def runtime_class(self, engine: str) -> str:
        """The RuntimeClass for pods of an engine; empty: there is none in the cluster.

        The one of the built-in handler's name goes before others, and among these the first by name.
        """
        usual = f"{BUILT_IN_PREFIX}{engine}"
        if self.engine(usual) == engine and usual in self.classes:
            return usual
        return min((name for name in self.classes if self.engine(name) == engine), default="")


def of(
    options: Options,
    policies: Iterable[Policy] = (),
    issuers: Sequence[PublicKey] | None = None,
    classes: Mapping[str, str] | None = None,
) -> Known:
    """All of it. ``issuers`` that are ``None`` are not known here, and signatures the business of nodes alone."""
    # Where both have one of a name, a node goes by its file.
    here = {one.name: replace(one, verified=False) for one in policies if one.name not in options.node_policies}
    for name in (*options.node_policies, options.default_policy):
        # Of a policy that nodes have in a file nothing is known but that it is there.
        if name and name not in here:
            here[name] = Policy(name=name)
    keys, signed = tuple(issuers or ()), issuers is not None
    certain = [replace(one, rules=(), signed=one.signed and signed) for one in here.values()]
    foreseen = [replace(one, rules=_foreseen(one.rules, signed), signed=False) for one in here.values()]
    return Known(
        certain=Policies(certain, keys, options.default_policy),
        foreseen=Policies(foreseen, keys, options.default_policy),
        classes=dict(classes or {}),
        handlers=options.handlers,
        default=options.default_engine,
        fill=options.fill,
        all_named=options.policies,
    )


def _foreseen(rules: Sequence[NamedRule], signers: bool) -> tuple[NamedRule, ...]:
    beyond = _OF_NODES if signers else (*_OF_NODES, "signers")
    return tuple(one for one in rules if not any(word in one.expression for word in beyond))
