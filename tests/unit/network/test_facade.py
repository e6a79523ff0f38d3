"""Which network a pod gets, and who takes it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from engines.base import DNSConfig
from forgeone_shim.config.model import CniConfig, NetworkConfig
from forgeone_shim.contract.model import NetworkRule, Peer
from forgeone_shim.errors import FailedPrecondition, InvalidInput, NotFound
from forgeone_shim.network import network as facade
from forgeone_shim.network import podfiles
from forgeone_shim.network.bandwidth import EGRESS, INGRESS, UNLIMITED, Limits
from forgeone_shim.network.enforcement import Enforcement
from forgeone_shim.network.facts import Attachment
from forgeone_shim.network.network import Network
from tests.unit.network.cni.fakes import Node


class Builtin:
    """Stands for the built-in network, which needs root."""

    def __init__(self, _config: NetworkConfig, _store: object) -> None:
        self.pods: dict[str, Attachment] = {}
        self.asked = 0

    def attach(self, sandbox_id: str, _netns: str, _ports: Sequence[object], **more: object) -> Attachment:
        self.limits = more["limits"]
        return self.pods.setdefault(sandbox_id, Attachment(("10.88.0.2", "fd88::2"), "eth0", "0a:58:0a:58:00:02"))

    def attachment(self, sandbox_id: str) -> Attachment | None:
        return self.pods.get(sandbox_id)

    def detach(self, sandbox_id: str) -> None:
        self.pods.pop(sandbox_id, None)

    def in_use(self) -> bool:
        return bool(self.pods)

    def reconcile(self, _known: Callable[[], set[str]]) -> tuple[str, ...]:
        return ()

    def status(self) -> tuple[bool, str, str]:
        self.asked += 1
        return True, "", ""

    def settle(self, _timeout: float | None = None) -> bool:
        return True


class Host(Node):
    """A node with both networks."""

    def open(self, mode: str = "auto", **cni: Any) -> None:
        super().open()
        self.both = Network(
            NetworkConfig(mode=mode),
            CniConfig(conf_dir=str(self.folder), bin_dirs=(str(self.directory / "bin"),), **cni),
            self.store,
            self.fakes.find,
            lambda name, job: self.jobs.append((name, job)),
        )
        self.builtin: Builtin = self.both._builtin  # type: ignore[assignment]

    def close(self) -> None:
        self.both.close()
        super().close()


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(facade, "PodNetwork", Builtin)
    made = Host(tmp_path)
    yield made
    made.close()


def test_the_builtin_network_is_told_of_a_pods_bandwidth(host: Host) -> None:
    host.both.attach(host.pod())
    assert host.builtin.limits == UNLIMITED
    host.both.attach(host.pod("pod2", annotations={INGRESS: "10M", EGRESS: "1.5k"}))
    assert host.builtin.limits == Limits(10_000_000, 1500)
    with pytest.raises(InvalidInput, match="egress-bandwidth"):
        host.both.attach(host.pod("pod3", annotations={EGRESS: "fast"}))
    assert "pod3" not in host.builtin.pods


def test_a_pod_that_cannot_be_kept_to_its_rule_is_taken_off_its_network_again(host: Host) -> None:
    ruled = host.pod("ruled", netns="/nowhere", rule=NetworkRule(egress=()))
    with pytest.raises(NotFound, match="network namespace"):
        host.both.attach(ruled)
    assert not host.builtin.pods
    host.write("first")
    with pytest.raises(NotFound, match="network namespace"):
        host.both.attach(ruled)
    assert host.fakes.told() == ["ADD first", "DEL first"]
    # It is nobody's to be kept to a rule later.
    with pytest.raises(NotFound):
        host.both.enforce(ruled, ("10.9.0.2",))


def test_a_rule_knows_the_name_servers_that_the_pod_will_ask(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []
    monkeypatch.setattr(Enforcement, "admit", lambda _self, restraint: seen.append(restraint.resolvers))
    resolv_conf = host.directory / "resolv.conf"
    resolv_conf.write_text("# nameserver 192.0.2.1\nnameserver 192.0.2.9\nnameserver nonsense\nsearch a.example\n")
    monkeypatch.setattr(podfiles, "HOST_RESOLV_CONF", resolv_conf)
    rule = NetworkRule(egress=(Peer(),))
    host.both.attach(host.pod("asked", rule=rule, dns=DNSConfig(servers=("10.96.0.10", "fd00::a"))))
    host.both.attach(host.pod("hosts", rule=rule))
    host.both.attach(host.pod("searches", rule=rule, dns=DNSConfig(searches=("a.example",))))
    host.both.attach(host.pod("free"))
    assert seen == [("10.96.0.10", "fd00::a"), ("192.0.2.9",), (), ()]


def test_a_pod_without_a_rule_is_not_looked_at_when_a_container_starts(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.both.attach(host.pod())
    monkeypatch.setattr(facade, "_restraint", None)
    host.both.enforce(host.pod(), ("10.88.0.2",))
    host.both.enforce(host.pod("unknown"), ())


def test_without_a_configuration_pods_are_on_the_builtin_network(host: Host) -> None:
    assert host.both.attach(host.pod()).ips == ("10.88.0.2", "fd88::2")
    assert host.both.status() == (True, "", "")
    assert host.both.details("pod1") == {}


def test_from_the_first_configuration_on_new_pods_are_on_cni_and_old_ones_stay(host: Host) -> None:
    old = host.both.attach(host.pod("old"))
    host.write("first")
    assert host.both.attach(host.pod("new")).ips == ("10.9.0.2",)
    assert host.both.attach(host.pod("old")) == old
    (host.folder / "10-net.conflist").unlink()
    assert host.both.attach(host.pod("new")).ips == ("10.9.0.2",)
    host.both.detach("new")
    assert host.fakes.told() == ["ADD first", "DEL first"]
    host.both.detach("old")
    assert not host.builtin.pods


def test_a_bad_configuration_does_not_lead_to_the_builtin_network(host: Host) -> None:
    (host.folder / "10-bad.conflist").write_text("{")
    with pytest.raises(FailedPrecondition, match="10-bad"):
        host.both.attach(host.pod())
    assert not host.both.status()[0]
    assert host.builtin.asked == 0, "its bridge is not made where nobody needs it"


def test_the_builtin_network_is_still_looked_after_while_pods_are_on_it(host: Host) -> None:
    host.both.attach(host.pod("old"))
    host.write("first")
    assert host.both.status()[0]
    assert host.builtin.asked == 1


def test_the_mode_decides_where_it_is_set(host: Host) -> None:
    host.write("first")
    host.both.reconfigure("builtin", host.config, set())
    assert host.both.attach(host.pod("one")).ips[0] == "10.88.0.2"
    (host.folder / "10-net.conflist").unlink()
    host.both.reconfigure("cni", host.config, set())
    with pytest.raises(FailedPrecondition, match="no network configuration"):
        host.both.attach(host.pod("two"))
    assert not host.both.status()[0]


def test_a_handlers_folder_means_cni_whatever_the_mode(host: Host) -> None:
    host.both.reconfigure("builtin", host.config, set())
    host.write("first")
    assert host.both.attach(host.pod(conf_dir=str(host.folder))).ips == ("10.9.0.2",)


def test_a_template_means_cni_before_its_configuration_is_there(host: Host) -> None:
    host.close()
    template = host.directory / "template"
    template.write_text(
        '{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"first","capabilities":{"ipRanges":true}}]}'
    )
    host.open(conf_template=str(template))
    with pytest.raises(FailedPrecondition):
        host.both.attach(host.pod())
    host.both.use_ranges(("10.1.0.0/24",))
    host.both.attach(host.pod())
    assert host.fakes.calls[0].config["runtimeConfig"] == {"ipRanges": [[{"subnet": "10.1.0.0/24"}]]}


def test_ranges_outlive_the_process(host: Host) -> None:
    host.both.use_ranges(("10.1.0.0/24", "fd00::/64"))
    host.restart()
    host.write({"type": "first", "capabilities": {"ipRanges": True}})
    host.both.attach(host.pod())
    assert len(host.fakes.calls[0].config["runtimeConfig"]["ipRanges"]) == 2


def test_the_preferred_family_counts_for_the_builtin_network_too(host: Host) -> None:
    host.close()
    host.open(ip_preference="ipv6")
    assert host.both.attach(host.pod()).ips == ("fd88::2", "10.88.0.2")


def test_after_a_start_pods_are_checked_and_garbage_is_collected(host: Host) -> None:
    host.both.recovered(set())
    assert host.jobs == []
    host.write("first", cniVersion="1.1.0")
    host.both.attach(host.pod())
    host.restart()
    host.fakes.calls.clear()
    host.both.recovered(set())
    host.run_jobs()
    assert set(host.fakes.told()) == {"CHECK first", "GC first"}
