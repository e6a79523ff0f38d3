"""One policy of a node, read strictly from its file.

``apiVersion: forgeone.dev/v1``, ``kind: ZTAPolicy``; ``spec`` says for which namespaces it is, and has a contract that
all it applies to is held to, what it demands of contracts and images, and rules in CEL.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from forgeone_shim.contract import merge, patterns, reader, values
from forgeone_shim.contract.facts import Facts, Point
from forgeone_shim.contract.model import UNRESTRICTED, Contract, NetworkRule
from forgeone_shim.contract.parse import plain
from forgeone_shim.dropins.table import Table
from forgeone_shim.errors import InvalidInput
from forgeone_shim.network.policy import Surroundings, plan

if TYPE_CHECKING:
    from forgeone_shim.contract.rules import Rule

API_VERSION: Final = "forgeone.dev/v1"
KIND: Final = "ZTAPolicy"
MAX_RULES: Final = 64
MAX_FILE: Final = 256 * 1024
MAX_TEXT: Final = 8192
_WITH_IMAGE: Final = frozenset({Point.CREATE, Point.START, Point.RECOVER, Point.RESTORE})


@dataclass(frozen=True, slots=True)
class NamedRule:
    """A rule, where it is asked, and what a denial says besides (``message``)."""

    name: str
    at: frozenset[Point]
    expression: str
    message: str
    rule: Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """One policy. ``floor``: it applies to every pod. ``digest`` is of its file, ``path`` where that was.

    :param namespaces: those whose pods it is for, names or names with ``*``; empty: all but ``excepted``.
    :param contract: what everything is held to that it applies to.
    :param signed: a pod must bring a contract, and one of ``issuers`` (ids of keys; empty: any that is trusted here)
        must have signed it.
    :param verified: somebody who is trusted must have signed the image.
    """

    name: str
    path: str = ""
    digest: str = ""
    floor: bool = False
    namespaces: tuple[str, ...] = ()
    excepted: tuple[str, ...] = ()
    contract: Contract = UNRESTRICTED
    signed: bool = False
    issuers: tuple[str, ...] = ()
    verified: bool = False
    rules: tuple[NamedRule, ...] = ()

    def is_for(self, namespace: str) -> bool:
        """Whether it is for pods of this namespace; of one that is not known (empty) it is."""
        if not namespace:
            return True
        if any(patterns.matches(glob, namespace) for glob in self.excepted):
            return False
        return not self.namespaces or any(patterns.matches(glob, namespace) for glob in self.namespaces)

    def concerned(self, point: Point) -> bool:
        """Whether it could deny anything at this point, besides by its contract."""
        return self.signed or (self.verified and point in _WITH_IMAGE) or any(point in one.at for one in self.rules)

    def violated(self, point: Point, facts: Facts, activation: Mapping[str, object]) -> tuple[str, str]:
        """The first demand or rule that is not met, and why; two empty texts where all are.

        :param activation: the variables of rules; may be empty where it has none.
        """
        if self.signed and not self._signed(facts.contract.signers):
            who = ", ".join(self.issuers) or "an issuer that is trusted here"
            return "requireSignedContract", f"the pod has no contract that is signed by {who}"
        # A pod that is restored is asked about first, and then each of its containers.
        pod_alone = point is Point.RESTORE and facts.container is None
        asked = self.verified and point in _WITH_IMAGE and not pod_alone
        if asked and not (facts.image and facts.image.verified_by):
            name = facts.image.name if facts.image else "the image"
            return "requireVerifiedImage", f"nobody who is trusted has signed {name}"
        for one in self.rules:
            if point not in one.at or (pod_alone and one.rule.of_container):
                continue
            if why := one.rule.why_not(activation):
                return one.name, one.message if one.message and why == "is false" else self._told(one, why)
        return "", ""

    def _signed(self, signers: tuple[str, ...]) -> bool:
        return bool({*signers} & {*self.issuers} if self.issuers else signers)

    def _told(self, one: NamedRule, why: str) -> str:
        expression = " ".join(one.expression.split())
        return f"{one.message}: {why}" if one.message else f"{expression[:200]} {why}"


def parse(path: str, data: bytes) -> Policy:
    """A policy of a file's bytes, its rules compiled.

    :raises InvalidInput: naming the file and the field.
    """
    if len(data) > MAX_FILE:
        raise InvalidInput(path, f"is larger than {MAX_FILE} bytes")
    with reader.located(path):
        value = plain(reader.ROOT, data)
        reader.bounded(reader.ROOT, value, max_text=MAX_TEXT, lines=True)
        with Table(reader.ROOT, value) as table:
            for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
                if table.text(key, required=True) != wanted:
                    raise table.wrong(key, f"is not {wanted}")
            name = table.table("metadata", _name)
            if not name:
                raise table.wrong("metadata", "is missing")
            found = table.table("spec", lambda spec: _spec(spec, name, path, f"sha256:{sha256(data).hexdigest()}"))
            if found is None:
                raise table.wrong("spec", "is missing")
            return found


def _name(table: Table) -> str:
    return values.policy(f"{table.where}.name", table.text("name", required=True))


def _spec(table: Table, name: str, path: str, digest: str) -> Policy:
    contract = UNRESTRICTED
    if "contract" in table.given:
        value = table.value("contract")
        reader.bounded(f"{table.where}.contract", value)
        with Table(f"{table.where}.contract", value) as given:
            contract = merge.normal(reader.policy_contract(given))
        _enforceable(f"{table.where}.contract", contract)
    signed = table.truth("requireSignedContract")
    asked = "contractIssuers" in table.given
    issuers = table.texts("contractIssuers")
    for index, issuer in enumerate(issuers):
        values.digest(f"{table.where}.contractIssuers[{index}]", issuer)
    if asked and not issuers:
        raise table.wrong("contractIssuers", "is empty", fix="leave it out for all that are trusted here")
    if issuers and not signed:
        raise table.wrong("contractIssuers", "means nothing without requireSignedContract")
    return Policy(
        name=name,
        path=path,
        digest=digest,
        floor=table.truth("floor"),
        namespaces=_namespaces(table, "namespaces"),
        excepted=_namespaces(table, "exceptNamespaces"),
        contract=contract,
        signed=signed,
        issuers=issuers,
        verified=table.truth("requireVerifiedImage"),
        rules=_rules(table),
    )


def _enforceable(where: str, contract: Contract) -> None:
    """What could be enforced on no pod would stop them all."""
    try:
        plan(contract.profile.network or NetworkRule(), Surroundings())
    except InvalidInput as error:
        raise InvalidInput(f"{where}.profile.{error.field}", error.reason) from None


def _namespaces(table: Table, key: str) -> tuple[str, ...]:
    given = key in table.given
    found = table.texts(key)
    if given and not found:
        raise table.wrong(key, "is empty", fix="leave it out")
    return tuple(values.name_glob(f"{table.where}.{key}[{index}]", one) for index, one in enumerate(found))


def _rules(table: Table) -> tuple[NamedRule, ...]:
    found = table.tables("rules", _rule)
    names = [one.name for one in found]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise table.wrong("rules", f"{twice!r} is there twice")
    return found


def _rule(table: Table) -> NamedRule:
    from forgeone_shim.contract.rules import Rule

    name = values.label(f"{table.where}.name", table.text("name", required=True))
    at = frozenset(_point(f"{table.where}.at[{index}]", one) for index, one in enumerate(table.texts("at")))
    if not at:
        raise table.wrong("at", "is missing", fix=f"some of {', '.join(Point)}")
    expression = table.text("expression", required=True)
    return NamedRule(name, at, expression, table.text("message"), Rule(f"{table.where}.expression", expression, at))


def _point(where: str, text: str) -> Point:
    try:
        return Point(text)
    except ValueError:
        raise InvalidInput(where, f"{text!r} is not one of {', '.join(Point)}") from None
