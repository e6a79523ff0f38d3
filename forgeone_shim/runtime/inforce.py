"""The policies that are in force: those of the node's files, as last read, and the cluster's, as they came."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from forgeone_shim.attestation.keys import PublicKey
from forgeone_shim.cluster.policies import ClusterPolicies
from forgeone_shim.config.model import ClusterConfig, Config
from forgeone_shim.contract import policies
from forgeone_shim.contract.policies import Policies
from forgeone_shim.contract.policy import Policy
from forgeone_shim.metrics.figures import Figure
from forgeone_shim.runtime.views import Condition


@dataclass(frozen=True, slots=True)
class Files:
    """What a node's configuration and files say. ``may_come``: the default policy may be one of the cluster's."""

    policies: tuple[Policy, ...]
    issuers: tuple[PublicKey, ...]
    default: str
    may_come: bool


def read(config: Config) -> Files:
    """Everything that is a file of the node's.

    :raises InvalidInput: something cannot be used, or the policies not together.
    """
    given = config.contract
    found = policies.read(policies.directory_of(given))
    issuers = policies.read_issuers(Path(given.issuers_dir))
    may_come = bool(config.cluster.kubeconfig)
    Policies(found, issuers, given.default_policy, default_may_come=may_come)
    return Files(found, issuers, given.default_policy, may_come)


@dataclass(frozen=True, slots=True)
class Users:
    """Who is to know when the policies change: ``follow`` takes them and says whether they differ from those before.

    ``changed`` is called where they do, once they count; ``synced`` with the names of the cluster's that did.
    """

    follow: Callable[[Policies], bool]
    changed: Callable[[], None]
    synced: Callable[[Sequence[str], str], None]


class InForce:
    """Joins both, whichever of them changes. Thread-safe: the last word of each counts."""

    def __init__(self, files: Files, cluster: ClusterPolicies) -> None:
        self._files, self._cluster = files, cluster
        self._theirs = cluster.policies
        self._lock = threading.Lock()
        self._users: Users | None = None

    @property
    def policies(self) -> Policies:
        """All of them, as of now."""
        with self._lock:
            return self._joined()[0]

    def demanding(self, namespace: str, annotations: Mapping[str, str]) -> str:
        """Why a pod of that namespace, without a contract, is not to run where nobody keeps policies; empty: it may."""
        if why := self._cluster.waiting(annotations):
            return why
        name = self.policies.without_contract(namespace)
        return f"policy {name!r} applies to namespace {namespace!r}" if name else ""

    def begin(self, users: Users) -> None:
        """From now on they hear of changes, and the cluster is watched."""
        self._users = users
        self._cluster.start(self._taken)

    def reread(self, files: Files, config: ClusterConfig) -> bool:
        """These are the files, and where the cluster is; whether anything differs. Cannot fail."""
        self._cluster.follow(config)
        with self._lock:
            self._files, self._theirs = files, self._cluster.policies
            differs, shadowed = self._apply()
        self._cluster.shadowed(shadowed)
        return differs

    def condition(self) -> Condition | None:
        """How it stands with the cluster; ``None`` where no policies come from one."""
        if not self._cluster.on:
            return None
        reason, message = self._cluster.problem()
        return Condition(not reason, reason, message)

    def figures(self) -> Iterable[Figure]:
        """What there is to count."""
        return self._cluster.figures()

    def close(self) -> None:
        """Watch no more."""
        self._cluster.close()

    def _taken(self, found: Mapping[str, Policy]) -> frozenset[str]:
        with self._lock:
            before = {one.name: one.digest for one in self._theirs}
            self._theirs = tuple(found[name] for name in sorted(found))
            after = {one.name: one.digest for one in self._theirs}
            differs, shadowed = self._apply()
        changed = sorted(name for name, _ in before.items() ^ after.items())
        if changed and self._users is not None:
            self._users.synced(sorted(set(changed)), self.policies.digest)
        if differs and self._users is not None:
            self._users.changed()
        return shadowed

    def _apply(self) -> tuple[bool, frozenset[str]]:
        """Have them used; whether they differ from those before, and the names of the cluster's that do not count."""
        found, shadowed = self._joined()
        return self._users is not None and self._users.follow(found), shadowed

    def _joined(self) -> tuple[Policies, frozenset[str]]:
        files = self._files
        found, shadowed = policies.joined(files.policies, self._theirs)
        return Policies(found, files.issuers, files.default, default_may_come=files.may_come), shadowed
