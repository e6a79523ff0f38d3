"""Policies of files and of a cluster, joined, whichever of them changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest

from forgeone_shim.cluster import objects
from forgeone_shim.cluster.policies import ClusterPolicies, Take
from forgeone_shim.config.model import ClusterConfig, Config, ContractConfig
from forgeone_shim.contract.policies import Policies
from forgeone_shim.contract.policy import Policy
from forgeone_shim.errors import InvalidInput
from forgeone_shim.runtime import inforce
from forgeone_shim.runtime.inforce import InForce, Users


def policy(name: str, *, floor: bool = True) -> Policy:
    given = {"apiVersion": objects.API_VERSION, "kind": objects.KIND, "metadata": {"name": name}}
    return objects.policy_of(given | {"spec": {"floor": floor}})


class Cluster:
    """A cluster whose word is put into its mouth."""

    def __init__(self, *policies: Policy) -> None:
        self.policies = policies
        self.on, self.told = True, ("", "")
        self.waits = ""
        self.take: Take = lambda _: frozenset()
        self.shadows: list[frozenset[str]] = []
        self.config = ClusterConfig(kubeconfig="/k")

    def start(self, take: Take) -> None:
        self.take = take

    def follow(self, config: ClusterConfig) -> None:
        self.config = config
        if not config.kubeconfig:
            self.policies, self.on = (), False

    def shadowed(self, names: frozenset[str]) -> None:
        self.shadows.append(names)

    def waiting(self, annotations: Mapping[str, str]) -> str:
        return self.waits

    def problem(self) -> tuple[str, str]:
        return self.told

    def says(self, *policies: Policy) -> frozenset[str]:
        self.policies = policies
        found: Mapping[str, Policy] = {one.name: one for one in policies}
        return self.take(found)


class Heard:
    """Who is told what."""

    def __init__(self) -> None:
        self.policies = Policies()
        self.changes = 0
        self.synced: list[Sequence[str]] = []

    def follow(self, policies: Policies) -> bool:
        before, self.policies = self.policies, policies
        return before.digest != policies.digest

    def changed(self) -> None:
        self.changes += 1

    def told(self, names: Sequence[str], digest: str) -> None:
        assert digest == self.policies.digest
        self.synced.append(names)

    @property
    def names(self) -> list[str]:
        return [one.name for one in self.policies.all]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "policies").mkdir()
    contract = ContractConfig(policies_dir=str(tmp_path / "policies"), issuers_dir=str(tmp_path / "issuers"))
    return Config(contract=contract, cluster=ClusterConfig(kubeconfig="/k"))


def write(config: Config, name: str) -> None:
    path = Path(config.contract.policies_dir, f"{name}.yaml")
    path.write_text(f"apiVersion: forgeone.dev/v1\nkind: ZTAPolicy\nmetadata: {{name: {name}}}\nspec: {{}}\n")


def begun(config: Config, cluster: Cluster) -> tuple[InForce, Heard]:
    made, heard = InForce(inforce.read(config), cast(ClusterPolicies, cluster)), Heard()
    heard.follow(made.policies)
    made.begin(Users(heard.follow, heard.changed, heard.told))
    return made, heard


def test_what_is_kept_of_the_cluster_counts_from_the_start(config: Config) -> None:
    write(config, "mine")
    _, heard = begun(config, Cluster(policy("theirs")))
    assert heard.names == ["mine", "theirs"]


def test_a_change_in_the_cluster_is_told_of_and_what_runs_is_judged_again(config: Config) -> None:
    cluster = Cluster(policy("a"), policy("b"))
    _, heard = begun(config, cluster)
    assert cluster.says(policy("a", floor=False), policy("c")) == frozenset()
    assert (heard.names, heard.synced, heard.changes) == (["a", "c"], [["a", "b", "c"]], 1)
    cluster.says(policy("a", floor=False), policy("c"))
    assert (len(heard.synced), heard.changes) == (1, 1)


def test_a_file_that_comes_and_goes_hides_and_shows_its_namesake(config: Config) -> None:
    write(config, "a")
    cluster = Cluster()
    made, heard = begun(config, cluster)
    assert cluster.says(policy("a")) == frozenset({"a"})
    assert (heard.changes, heard.policies.all[0].floor) == (0, False)
    Path(config.contract.policies_dir, "a.yaml").unlink()
    assert made.reread(inforce.read(config), config.cluster)
    assert heard.policies.all[0].floor and cluster.shadows == [frozenset()]


def test_a_file_that_is_changed_without_a_reload_does_not_come_with_the_cluster(config: Config) -> None:
    cluster = Cluster()
    _, heard = begun(config, cluster)
    write(config, "half")
    cluster.says(policy("a"))
    assert heard.names == ["a"]


def test_without_a_cluster_there_is_nothing_of_it(config: Config) -> None:
    cluster = Cluster(policy("a"))
    made, heard = begun(config, cluster)
    condition = made.condition()
    assert condition is not None and condition.ready
    cluster.told = ("Unreachable", "why")
    condition = made.condition()
    assert condition is not None and (condition.ready, condition.reason) == (False, "Unreachable")
    made.reread(inforce.read(config), ClusterConfig())
    assert heard.names == [] and made.condition() is None


def test_a_default_may_be_one_of_the_clusters_where_there_is_one(config: Config) -> None:
    plain = Config(contract=ContractConfig(policies_dir=config.contract.policies_dir, default_policy="theirs"))
    with pytest.raises(InvalidInput):
        inforce.read(plain)
    assert inforce.read(Config(contract=plain.contract, cluster=config.cluster)).may_come


def test_it_says_what_keeps_a_pod_from_where_nobody_keeps_policies(config: Config) -> None:
    cluster = Cluster()
    made, _ = begun(config, cluster)
    assert made.demanding("shop", {}) == ""
    cluster.says(policy("a"))
    assert made.demanding("shop", {}) == "policy 'a' applies to namespace 'shop'"
    cluster.waits = "not yet"
    assert made.demanding("shop", {}) == "not yet"
