"""The policies of this node: which of them apply to a pod, what contract that leaves it, and what they allow.

Floors apply to every pod, first and in the order of their names. Besides them applies the policy that the pod's
contract names (``runtime_policy_id``), or the node's default policy where it names none. Each of them can be for some
namespaces alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Final

from forgeone_shim.attestation.keys import PublicKey, read_trusted
from forgeone_shim.config.model import ContractConfig
from forgeone_shim.contract import judge, parse, policy
from forgeone_shim.contract.facts import Bound, Facts, Own, Point
from forgeone_shim.contract.judge import ALLOWED, Ruling
from forgeone_shim.contract.merge import tighten
from forgeone_shim.contract.model import UNRESTRICTED, Contract
from forgeone_shim.contract.policy import Policy
from forgeone_shim.dropins.files import DropIns, replaceable
from forgeone_shim.errors import FailedPrecondition, InvalidInput

SUFFIXES: Final = (".yaml", ".yml", ".json")
MAX_POLICIES: Final = 256


class Policies:
    """All of them, as they were when they were read. Immutable, and so safe to ask from many threads."""

    def __init__(
        self,
        policies: Sequence[Policy] = (),
        issuers: Sequence[PublicKey] = (),
        default: str = "",
        *,
        default_may_come: bool = False,
    ) -> None:
        """:param default_may_come: until the default one is there, whatever would be made under it is denied.

        :raises InvalidInput: two have one name, or there is no ``default`` among them.
        """
        self._all = {one.name: one for one in sorted(policies, key=lambda one: one.name)}
        if len(self._all) < len(policies):
            names = [one.name for one in policies]
            twice = next(one for one in policies if names.count(one.name) > 1)
            raise InvalidInput(twice.path or "policies", f"metadata.name: {twice.name!r} is another policy's, too")
        if default and default not in self._all and not default_may_come:
            raise InvalidInput(
                "contract.default_policy",
                f"there is no policy {default!r}",
                fix=f"one of: {', '.join(self._all)}" if self._all else "put it into contract.policies_dir",
            )
        self._issuers, self._default = tuple(issuers), default
        self._floors = tuple(one for one in self._all.values() if one.floor)
        self._joined: dict[tuple[str, ...], Contract] = {}

    @classmethod
    def load(cls, directory: Path, issuers: Path, default: str = "") -> Policies:
        """Those of a directory's files, and the public keys of a directory. A directory that is not there has none.

        :raises InvalidInput: a file of either cannot be used; all of them are refused then.
        """
        return cls(read(directory), read_issuers(issuers), default)

    @property
    def all(self) -> tuple[Policy, ...]:
        """By name."""
        return tuple(self._all.values())

    @property
    def default(self) -> str:
        """The name of the policy for contracts that name none; empty: there is none."""
        return self._default

    @property
    def issuers(self) -> tuple[PublicKey, ...]:
        """Whose contracts count as signed."""
        return self._issuers

    @property
    def digest(self) -> str:
        """Of all there is here: two nodes with the same digest decide alike."""
        told = [f"default {self._default}"]
        told += [f"policy {one.name} {one.digest}" for one in self._all.values()]
        told += sorted(f"issuer {key.id}" for key in self._issuers)
        return f"sha256:{sha256(chr(10).join(told).encode()).hexdigest()}"

    def bind(
        self, annotations: Mapping[str, str], container: str = "", *, namespace: str, name: str, package: str = ""
    ) -> Bound:
        """The contract that holds for the pod of that namespace and name, or for its container.

        ``package`` is the document of the container's package; empty: it has none.

        :raises InvalidInput: naming the annotation: what it says is no contract, is not for this pod, names a policy
            that is not here or not for this namespace, or contradicts one that applies.
        """
        offer = parse.offered(
            annotations, container, pod=parse.Pod(namespace, name), issuers=self._issuers, package=package
        )
        if self._default and self._default not in self._all and not offer.contract.runtime_policy_id:
            raise InvalidInput("contract.default_policy", f"there is no policy {self._default!r} on this node yet")
        if offer is parse.NO_OFFER and not self._all:
            return Bound(namespace=namespace)
        return self._bound(
            Bound(
                contract=offer.contract,
                given=offer.given,
                signers=offer.signers,
                namespace=namespace,
                own=Own.of(offer.contract),
            )
        )

    def rebind(self, bound: Bound) -> Bound:
        """What holds under the policies of now: at least as tight as it was.

        Where policies say otherwise than they did of what there can be one of, it is as they say now. A signer who is
        not trusted any more is left out.

        :raises InvalidInput: a policy that it names is gone, or contradicts it.
        """
        if not self._all and not bound.given and bound.contract == UNRESTRICTED and not bound.policies:
            return bound
        trusted = {key.id for key in self._issuers}
        return self._bound(replace(bound, signers=tuple(one for one in bound.signers if one in trusted)))

    def without_contract(self, namespace: str) -> str:
        """The first policy that applies to a pod of that namespace which asks for nothing; empty: there is none.

        The default one counts already while it may still come.
        """
        if self._default and self._default not in self._all:
            return self._default
        return next(self._names(UNRESTRICTED, namespace), "")

    def concerned(self, point: Point, bound: Bound) -> bool:
        """Whether anything could be denied at that point: otherwise no facts need be gathered."""
        if not self._all and bound.contract == UNRESTRICTED:
            return False
        applying = self._applying(bound.contract, bound.namespace)
        return bound.contract != UNRESTRICTED or any(one is None or one.concerned(point) for one in applying)

    def mark(self, bound: Bound) -> str:
        """The digest of the policies that applied when the contract was bound; empty where none did."""
        told = [f"{name} {self._all[name].digest}" for name in bound.policies if name in self._all]
        return f"sha256:{sha256(chr(10).join(told).encode()).hexdigest()}" if told else ""

    def judge(self, point: Point, facts: Facts) -> Ruling:
        """Whether it may be done. What cannot be decided may not.

        The contract of ``facts`` is taken as :meth:`bind` or :meth:`rebind` gave it; floors are asked in any case.
        """
        held, namespace = facts.contract.contract, facts.pod.namespace
        applying = list(self._applying(held, namespace))
        activation: Mapping[str, object] = {}
        if any(point in rule.at for one in applying if one is not None for rule in one.rules):
            from forgeone_shim.contract import rules

            try:
                activation = rules.activation(point, facts)
            except (TypeError, ValueError) as error:
                return Ruling(False, rule="facts", reason=f"cannot be told to rules: {error}")
        for name, one in zip(self._names(held, namespace), applying, strict=True):
            if one is None:
                return Ruling(False, rule="runtime_policy_id", reason=f"there is no policy {name!r} on this node")
            rule, why = one.violated(point, facts, activation)
            if rule:
                return Ruling(False, policy=one.name, rule=rule, reason=why)
        field, why = judge.violated(point, facts)
        if not field:
            return ALLOWED
        return Ruling(False, policy=self._whose(point, facts, field), rule=field, reason=why)

    def _bound(self, bound: Bound) -> Bound:
        named = bound.contract.runtime_policy_id
        if named and (named not in self._all or not self._all[named].is_for(bound.namespace)):
            raise InvalidInput(
                "runtime_policy_id", f"there is no policy {named!r} here for namespace {bound.namespace!r}"
            )
        names = tuple(self._names(bound.contract, bound.namespace))
        try:
            demanded = self._demanded(names)
            contract = tighten(demanded, _followed(bound, demanded))
        except InvalidInput as error:
            raise InvalidInput(error.field, f"{error.reason} ({', '.join(names)})", fix=error.fix) from None
        return replace(bound, contract=contract, policies=names)

    def _names(self, held: Contract, namespace: str) -> Iterator[str]:
        """Of the policies that apply: floors, then the one that is named or the default."""
        last = held.runtime_policy_id
        default = self._all.get(self._default)
        if not last and default is not None and default.is_for(namespace):
            last = self._default
        yield from (one.name for one in self._floors if one.name != last and one.is_for(namespace))
        if last:
            yield last

    def _applying(self, held: Contract, namespace: str) -> Iterator[Policy | None]:
        return (self._all.get(name) for name in self._names(held, namespace))

    def _demanded(self, names: tuple[str, ...]) -> Contract:
        """The contracts of these policies, joined."""
        found = self._joined.get(names)
        if found is None:
            found = UNRESTRICTED
            for name in names:
                found = tighten(found, self._all[name].contract)
            if len(self._joined) < MAX_POLICIES:
                self._joined[names] = found
        return found

    def _whose(self, point: Point, facts: Facts, field: str) -> str:
        """The policy whose contract alone denies the same; empty where it is the pod's own that does."""
        for one in self._applying(facts.contract.contract, facts.pod.namespace):
            if one is not None and judge.violated(point, facts, one.contract)[0] == field:
                return one.name
        return ""


def _followed(bound: Bound, demanded: Contract) -> Contract:
    """The contract, but for what policies alone have said so far of what there can be one of, and say otherwise now."""

    def now(own: str, held: str, asked: str) -> str:
        return asked if asked and not own else held

    held, own = bound.contract, bound.own
    engine = now(own.exec_mode, held.exec_mode, demanded.exec_mode)
    label = now(own.trust_label, held.profile.trust_label, demanded.profile.trust_label)
    baseline = now(own.baseline, held.behaviour.baseline, demanded.behaviour.baseline)
    if Own(engine, label, baseline) == Own.of(held):
        return held
    return replace(
        held,
        exec_mode=engine,
        profile=replace(held.profile, trust_label=label),
        behaviour=replace(held.behaviour, baseline=baseline),
    )


def directory_of(config: ContractConfig) -> Path:
    """Where a node's policies are. Only the usual directory need not be there: without policies all is allowed.

    :raises InvalidInput: it was named, and is no directory.
    """
    named = Path(config.policies_dir)
    if config.policies_dir != ContractConfig().policies_dir and not named.is_dir():
        raise InvalidInput("contract.policies_dir", f"{named} is no directory", fix="make it, or leave the key out")
    return named


def read(directory: Path) -> tuple[Policy, ...]:
    """The policies of a directory's files, by name of the file; none where there is no directory.

    :raises InvalidInput: naming the first file that cannot be used, and why.
    """
    found = DropIns((str(directory),), SUFFIXES, policy.parse).read()
    for one in found:
        if one.value is None:
            raise InvalidInput(one.path, one.error.removeprefix(f"{one.path}: "))
    if len(found) > MAX_POLICIES:
        raise InvalidInput(str(directory), f"has {len(found)} policies, more than {MAX_POLICIES}")
    try:
        # A link's file has a way of its own.
        places = [str(directory / "."), *(one.path for one in found)] if found else []
        fault = next(filter(None, map(replaceable, places)), "")
    except OSError as error:
        fault = str(error)
    if fault:
        raise InvalidInput(
            str(directory), f"its policies are not trusted: {fault}", fix="let none but root write there"
        )
    return tuple(one.value for one in found if one.value is not None)


def joined(files: Sequence[Policy], cluster: Sequence[Policy]) -> tuple[tuple[Policy, ...], frozenset[str]]:
    """Those of a node's files, and of the cluster's those without a namesake among them; the names of the others.

    Whoever may write to the cluster must not be able to take away what the node's administrator demands.
    """
    names = {one.name for one in files}
    shadowed = frozenset(one.name for one in cluster if one.name in names)
    return (*files, *(one for one in cluster if one.name not in shadowed)), shadowed


def read_issuers(directory: Path) -> tuple[PublicKey, ...]:
    """The public keys of those whose contracts count as signed.

    :raises InvalidInput: a file of the directory cannot be used.
    """
    try:
        return read_trusted(directory)
    except FailedPrecondition as error:
        raise InvalidInput("contract.issuers_dir", error.what, fix=error.fix) from None
